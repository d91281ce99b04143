"""Reports for every film of a folder, or of a data set, by one process or by many.

    python examples/predict_folder.py FILMS --out results.jsonl
    accelerate launch examples/predict_folder.py FILMS --out results.jsonl --model PATH_OR_REPO --batch_size 16
    torchrun --nproc_per_node 2 examples/predict_folder.py FILMS --out results.jsonl --gaze none
    python examples/predict_folder.py EXPORT --out results.jsonl --split test

FILMS is a folder, with all its subfolders, of DICOM, PNG and JPEG; EXPORT is one that `gaze-vlm data` wrote. Each film
gets a line in --out: what `gaze-vlm report --json` prints of it, `image` being its path in the folder or its image_id.

The same command goes on where a run was stopped, be it by kill -9, with any number of processes. Until all films are
done the lines stand in results.jsonl.part-RANK; the settings are kept in results.jsonl.run.json. A film that cannot be
read gets {"image", "error"} and is tried again by the next run. Exit status: 0 all films are read, 1 some cannot be
read, 2 nothing was begun.

The embedded nano is the default model: research software, no medical device.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from resumable_lines import ResumableLines

from gaze_vlm import ReadingPipeline, __version__
from gaze_vlm.cli import reading_document
from gaze_vlm.images import Film, ImageError, read_film
from gaze_vlm.terminal import errors, shown

SUFFIXES = {".dcm", ".dicom", ".jpeg", ".jpg", ".png"}

# ---- the films


class FilmFolder:
    """The films of a folder, by their paths in it."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def names(self) -> list[str]:
        """Sorted; nothing hidden."""

        def refuse(error: OSError):
            raise error

        found = []
        for folder, folders, files in os.walk(self.folder, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = (Path(folder, name) for name in files if not name.startswith("."))
            found += [path.relative_to(self.folder).as_posix() for path in paths if is_film(path)]
        return sorted(found)

    def read(self, name: str) -> Film:
        return film_of(self.folder / name)


class FilmRows:
    """The films of a folder that `gaze-vlm data` wrote, by their image_id; a film of several rows is one film."""

    def __init__(self, folder: Path, split: str | None):
        import datasets

        from gaze_vlm.training.rows import has_image, load_rows

        datasets.disable_progress_bars()
        splits = load_rows([str(folder)])
        if split and split not in splits:
            raise ValueError(f"{folder}: no {split} split, only {', '.join(splits)}")
        rows = datasets.concatenate_datasets([splits[split]] if split else list(splits.values()))
        self.rows = rows.select_columns(["image", "image_id", "view"])
        self.rows = self.rows.cast_column("image", datasets.Image(decode=False))
        self.numbers: dict[str, int] = {}  # image_id -> its first row with an image
        for number, (there, name) in enumerate(zip(has_image(rows), self.rows["image_id"], strict=True)):
            if there and name is None:
                raise ValueError(f"{folder}: row {number} has an image and no image_id")
            if there:
                self.numbers.setdefault(name, number)

    @property
    def names(self) -> list[str]:
        return list(self.numbers)

    def read(self, name: str) -> Film:
        row = self.rows[self.numbers[name]]
        with tempfile.NamedTemporaryFile() as file:  # a file, for these are what is checked
            file.write(row["image"]["bytes"])
            file.flush()
            film = film_of(Path(file.name))
        return replace(film, path=name, view=row["view"])


def open_films(folder: Path, split: str | None) -> FilmFolder | FilmRows:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if (folder / "export.json").is_file():
        return FilmRows(folder, split)
    if split:
        raise ValueError(f"--split {split}: {folder} is no data set that gaze-vlm data wrote")
    return FilmFolder(folder)


def is_film(path: Path) -> bool:
    """By its suffix; DICOM files often have none, or one that says nothing."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.name == "DICOMDIR" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def film_of(path: Path) -> Film:
    """`read_film`, whose error does not name the path."""
    try:
        return read_film(path)
    except ImageError as error:
        raise ImageError(str(error).removeprefix(f"{path}: ")) from None


def attempt(films: FilmFolder | FilmRows, name: str) -> Film | str:
    """A frontal film, or why it is none, in the words of `gaze-vlm report`."""
    try:
        film = films.read(name)
    except ImageError as error:
        return str(error)
    if film.is_lateral:
        return f"a lateral view ({film.view}); the models know frontal films only"
    return film


def batches(films: FilmFolder | FilmRows, names: list[str], size: int) -> Iterator[list[tuple[str, Film | str]]]:
    """`size` films at a time; the next ones are decoded while these are with the models."""
    with ThreadPoolExecutor(4) as pool:
        parts = (names[start : start + size] for start in range(0, len(names), size))
        begun = ([(name, pool.submit(attempt, films, name)) for name in part] for part in parts)
        ahead = next(begun, None)
        while ahead is not None:
            batch, ahead = ahead, next(begun, None)
            yield [(name, future.result()) for name, future in batch]


# ---- reading


def load(models: ReadingPipeline, gaze: str) -> None:
    """All that a reading needs, before any film is touched."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    _, (vlm, _) = models.classifier, models.vlm
    if gaze == "predicted" and vlm.model.scanpath_predictor is None:
        raise ValueError(f"{models.source}: predicts no gaze; pass --gaze none")


def read(models: ReadingPipeline, films: FilmFolder | FilmRows, names: list[str], part: Path) -> None:
    """The line of each film, into `part` as soon as it is known."""
    with part.open("a") as file:

        def write(document: dict) -> None:
            file.write(json.dumps(document, allow_nan=False) + "\n")
            file.flush()

        for batch in batches(films, names, models.batch_size):
            good = {name: film for name, film in batch if isinstance(film, Film)}
            for name, reason in batch:
                if name not in good:
                    write({"image": name, "error": reason})
            for name, reading in zip(good, models.read(list(good.values())), strict=True):
                write(reading_document(name, models.name, reading))


@contextmanager
def progress(results: ResumableLines, done: int, total: int) -> Iterator[None]:
    """Says how many films all processes have done: on a terminal in one line, else every 10 seconds."""
    seen = {part: part.stat().st_size for part in results.parts}
    start, added, over = time.monotonic(), 0, threading.Event()

    def tell(show: Callable[[str], None]) -> None:
        nonlocal added
        added += results.count_added(seen)
        text = f"{done + added:,} of {total:,} films"
        if added:
            rate = added / (time.monotonic() - start)
            left = round((total - done - added) / rate)
            text += f", {rate:.3g} a second" + f", {timedelta(seconds=left)} left" * (done + added < total)
        show(text)

    def watch(show: Callable[[str], None], seconds: float) -> None:
        while not over.wait(seconds):
            tell(show)

    with errors.status(f"{done:,} of {total:,} films") if errors.is_terminal else nullcontext() as line:
        thread = threading.Thread(target=watch, args=(line.update, 1) if line else (say, 10))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
    tell(say)


def say(text: str) -> None:
    errors.print(shown(text), highlight=False)


# ---- the processes


def processes() -> PartialState:
    """This process among the others. They talk by way of the CPU, so that several may share a GPU, and wait long."""
    options = {"backend": "gloo", "timeout": timedelta(days=30)} if "LOCAL_RANK" in os.environ else {}
    return PartialState(cpu=not torch.accelerator.is_available(), **options)


@contextmanager
def main_first(state: PartialState) -> Iterator[None]:
    """The block in the main process, then in the others; they end without a word where it fails there."""
    if state.is_main_process:
        try:
            yield
        except BaseException:
            broadcast_object_list([False])
            raise
        broadcast_object_list([True])
    else:
        if not broadcast_object_list([None])[0]:
            raise SystemExit(0)  # not 2: a launcher would stop the main process before it has spoken
        yield


@contextmanager
def refusing() -> Iterator[None]:
    """What is wrong with options, films or models is said in one line: status 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        say(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}")
        raise SystemExit(2) from None


# ---- the command


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(message)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", type=Path, help="folder of films, or one that gaze-vlm data wrote")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines, one a film")
    parser.add_argument("--model", help="folder or Hub repository of the models; the embedded nano by default")
    parser.add_argument("--gaze", choices=("predicted", "none"), default="predicted", help="what guides a report")
    parser.add_argument("--batch_size", type=int, default=8, help="films that go through a model together")
    parser.add_argument("--split", choices=("train", "validation", "test"), help="of a data set; all by default")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {options.batch_size}")
    return options


def begin(results: ResumableLines, options: argparse.Namespace, names: list[str]) -> list[str]:
    """The films that are to be read yet."""
    if not names:
        raise ValueError(f"{options.films}: no film in it (DICOM, PNG or JPEG)")
    model = options.model or "nano"
    settings = {
        "films": str(options.films.resolve()),
        "split": options.split or "all",
        "model": str(Path(model).resolve()) if options.model and Path(model).exists() else model,
        "gaze": options.gaze,
        "version": __version__,
    }
    return results.begin(settings, names)


def finish(results: ResumableLines, names: list[str], todo: list[str]) -> int:
    """The lines of all processes into --out; exit status."""
    if not todo and results.complete:
        say(f"{results.out}: complete, all {len(names):,} films are in it; nothing to do")
        return 0
    failed = results.finish(names)
    if failed:
        say(f"{results.out}: {failed:,} of {len(names):,} films cannot be read; the same command tries them again")
    return int(failed > 0)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: that of the main process tells, the others' is 0."""
    warnings.filterwarnings("ignore", module="torch|transformers|timm|torchvision")  # not the user's to mend
    with refusing():
        options = parse(arguments)
        state, results = processes(), ResumableLines(options.out)
    with refusing(), main_first(state):
        films = open_films(options.films, options.split)
        models = ReadingPipeline(options.model, state.device, options.batch_size, options.gaze == "predicted")
    with refusing(), main_first(state):
        todo = begin(results, options, films.names) if state.is_main_process else None
        results.lock()
    [todo] = broadcast_object_list([todo])
    with refusing(), main_first(state):
        if todo:
            load(models, options.gaze)
    names = films.names if state.is_main_process else []
    with progress(results, len(names) - len(todo), len(names)) if todo and names else nullcontext():
        if todo:
            rank = state.process_index
            read(models, films, todo[rank :: state.num_processes], results.part(rank))
        state.wait_for_everyone()
    status = finish(results, names, todo) if state.is_main_process else 0
    state.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main())
