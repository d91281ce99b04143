"""What the commands about films share: their options, reading films and gaze, the models, folders of results."""

import statistics
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from .terminal import complain, errors

Images = Annotated[list[Path], typer.Argument(help="Chest X-rays: PNG, JPEG or DICOM.", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option(help="Folder or Hub repository of the models; the embedded nano by default.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder for pictures and evidence, one folder an image.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace or remove what is already in --out.")]


class OutputError(ValueError):
    """Something that cannot be written; the message names it and says why."""


@dataclass
class Batch:
    """The images of one call: what could be read, and what went wrong with the rest."""

    films: list = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # as the user typed them
    failures: int = 0

    def fail(self, message: str) -> None:
        self.failures += 1
        complain(message)

    def finish(self) -> None:
        """Exit status: 0 all done, 1 some done, 2 nothing done."""
        if self.failures:
            raise typer.Exit(1 if self.films else 2)


def read_films(images: list[Path]) -> Batch:
    """All readable films; a line on stderr for each other one."""
    from .images import ImageError, read_film

    batch = Batch()
    for path in images:
        try:
            film = read_film(path)
        except ImageError as error:
            batch.fail(str(error))
            continue
        if film.is_lateral:
            batch.fail(f"{path}: a lateral view ({film.view}); the models know frontal films only")
            continue
        batch.films.append(film)
        batch.paths.append(str(path))
    if not batch.films:
        batch.finish()
    return batch


def read_gaze(path: Path, film):
    """A recorded scanpath, unless its numbers are plainly in other units."""
    from .scanpath import Scanpath, ScanpathError

    scanpath = Scanpath.from_file(path, film.size)
    if not scanpath.inside.any():
        raise ScanpathError(f"{path}: no fixation lies on the image; x and y are 0..1 of the image, not pixels")
    typical = statistics.median(scanpath.duration.tolist())
    if typical > 10:
        raise ScanpathError(f"{path}: median fixation of {typical:g} s; durations are seconds, not milliseconds")
    return scanpath


def pipeline(model: str | None):
    """The models, without any word of transformers on the terminal."""
    import transformers

    from .pipelines import ReadingPipeline

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return ReadingPipeline(model)


def tracked(readings: Iterator, count: int, quiet: bool) -> Iterator:
    """A progress bar over films, on a terminal only."""
    from rich.progress import track

    if quiet or not errors.is_terminal:
        return readings
    return track(readings, description="Reading", total=count, console=errors, transient=True)


def folder_for(out: Path, path: str, taken: set[Path]) -> Path:
    """A folder of its own for an image: two images of one stem do not share one, and a file is none."""
    stem = Path(path).stem
    folder, number = out / stem, 2
    while folder in taken or folder.is_file():
        folder, number = out / f"{stem}-{number}", number + 1
    taken.add(folder)
    return folder


def write(
    folder: Path, files: dict[str, Callable[[Path], None]], overwrite: bool, stale: Collection[str] = ()
) -> None:
    """Write files by name, all or none when one is already there; of `stale` what is there and not written again is
    removed, for it was of something else."""
    existing = [name for name in (*files, *stale) if (folder / name).exists()]
    if existing and not overwrite:
        fate = "replace" if existing[0] in files else "remove"
        raise OutputError(f"{folder / existing[0]}: already there; pass --overwrite to {fate} it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in set(stale) - files.keys():
            (folder / name).unlink(missing_ok=True)
        for name, save in files.items():
            save(folder / name)
    except OSError as error:
        raise OutputError(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from None
