"""The command gaze-vlm: films in; findings, scanpaths, reports and evidence out."""

import json
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from . import __version__, cli_ask, cli_data, cli_export, cli_push, cli_score, cli_space
from .cli_films import (
    Batch,
    Images,
    Json,
    Model,
    Out,
    OutputError,
    Overwrite,
    folder_for,
    pipeline,
    read_films,
    read_gaze,
    tracked,
    write,
)
from .terminal import complain, console, print_json, shown, waiting

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Gaze-guided reading of chest X-rays: research software, no medical device.",
)
app.add_typer(cli_score.app, name="score")
app.command()(cli_data.data)
app.command()(cli_ask.ground)
app.command()(cli_ask.ask)
app.command()(cli_export.export)
app.command()(cli_space.space)
app.command()(cli_push.push)


class Protocol(StrEnum):
    abcdef = "abcdef"


def pictures(film, scanpath, boxes=(), samples=(), spoken=(), video="gif") -> dict[str, Callable[[Path], None]]:
    """Overlay, heat map and animation of a scanpath, and the density of several samples, as files to write.

    `spoken` are the sentences that go with it, `{"text", "start", "end"}` each.
    """
    from .visualize import animate_scanpath, draw_density, draw_heatmap, draw_scanpath

    image = film.to_pil("L")
    files = {
        "overlay.png": lambda path: draw_scanpath(image, scanpath, boxes=boxes).save(path),
        "heatmap.png": lambda path: draw_heatmap(image, scanpath).save(path),
        f"scanpath.{video}": lambda path: animate_scanpath(image, scanpath, path, sentences=spoken),
    }
    if len(samples) > 1:
        files["density.png"] = lambda path: draw_density(image, samples).save(path)
    return files


def present_boxes(findings: list[dict]) -> list[dict]:
    """The first region of each present finding as a labelled box; findings of one region share it."""
    names: dict[tuple, list[str]] = {}
    for finding in findings:
        if finding["present"] and finding["regions"]:
            names.setdefault(tuple(finding["regions"][0]["box"]), []).append(finding["name"])
    return [{"name": ", ".join(shared), "box": list(box)} for box, shared in names.items()]


def findings_table(findings: list[dict]) -> Table:
    table = Table("finding", "probability", "", "regions", box=None, header_style="dim")
    block = "#" if console.encoding.startswith("ascii") else "█"
    for finding in sorted(findings, key=lambda finding: -finding["probability"]):
        bar = block * round(20 * finding["probability"])
        style = "bold" if finding["present"] else "dim"
        regions = ", ".join(region["name"] for region in finding["regions"]) if finding["present"] else ""
        table.add_row(finding["name"], f"{finding['probability']:.2f}", bar, regions, style=style)
    return table


def save_reading(reading, folder: Path, overwrite: bool, also: Collection[str] = ()) -> list[str]:
    """Write all about a reading; what of `also` ("sr", "fhir") cannot be made is left out, and told why."""
    image, refused = reading.film.to_pil("L"), []
    files = pictures(reading.film, reading.scanpath, present_boxes(reading.findings))
    files["report.txt"] = lambda path: path.write_text(reading.report + "\n", encoding="utf-8")
    files["evidence.json"] = lambda path: path.write_text(reading.evidence.to_json() + "\n", encoding="utf-8")
    files["evidence.html"] = lambda path: path.write_text(reading.evidence.to_html(image), encoding="utf-8")
    makers = {
        "sr": (cli_export.SR, lambda: cli_export.structured_report(reading.evidence, Path(reading.film.path))),
        "fhir": (cli_export.FHIR, lambda: cli_export.fhir(reading.evidence)),
    }
    for name, make in (makers[one] for one in also):
        try:
            files[name] = make()
        except (ValueError, ImportError) as error:
            refused.append(f"{name}: {error}")
    write(folder, files, overwrite, stale=(cli_export.SR, cli_export.FHIR))
    return refused


def reading_document(path: str, model: str, reading) -> dict:
    evidence = json.loads(reading.evidence.to_json())
    return {
        "image": path,
        "model": model,
        "report": reading.report,
        "findings": reading.findings,
        "scanpath": reading.scanpath.to_records(),
        "evidence": evidence["sentences"],
    }


def read_all(batch: Batch, models, readings, out: Path | None, overwrite: bool, quiet: bool, also=()) -> list[dict]:
    """The readings of a batch's films: documents for --json, files in --out, words on the terminal."""
    documents, taken = [], set()
    for path, reading in zip(batch.paths, tracked(readings, len(batch.films), quiet), strict=True):
        documents.append(reading_document(path, reading.evidence.model["name"], reading))
        if not quiet:
            console.rule(shown(path), align="left")
            console.print(reading.report, markup=False, highlight=False)
            console.print(findings_table(reading.findings))
        if out is not None:
            folder = folder_for(out, path, taken)
            try:
                for reason in save_reading(reading, folder, overwrite, also):
                    batch.fail(f"{path}: {reason}")
            except OutputError as error:
                batch.fail(str(error))
                continue
            if not quiet:
                console.print(Text("Pictures and evidence: ") + shown(folder))
    return documents


@app.command()
def report(
    images: Images,
    gaze: Annotated[
        Path | None,
        typer.Option(
            help="Recorded gaze for a single image: JSON or CSV with x, y, duration[, onset].", show_default=False
        ),
    ] = None,
    composer: Annotated[
        bool, typer.Option("--composer", help="Compose the report finding by finding (Eyes on the Image).")
    ] = False,
    writer: Annotated[
        str | None,
        typer.Option(
            help="Of the composer's sentences: model (the default), template, or a chat model's folder or Hub "
            "repository.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(help="Order of the sentences: abcdef, that of inspection, all stages named.", show_default=False),
    ] = None,
    out: Out = None,
    sr: Annotated[bool, typer.Option("--sr", help="In --out a DICOM structured report too (DICOM films).")] = False,
    fhir: Annotated[bool, typer.Option("--fhir", help="In --out a FHIR DiagnosticReport too.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    model: Model = None,
) -> None:
    """Report, findings, scanpath and evidence of each film."""
    from .scanpath import ScanpathError

    if writer is not None and not composer:
        complain("--writer goes with --composer")
        raise typer.Exit(2)
    also = [name for name, asked in (("sr", sr), ("fhir", fhir)) if asked]
    if also and out is None:
        complain(f"--{also[0]} needs --out, the folder to write it into")
        raise typer.Exit(2)
    batch = read_films(images)
    given = None
    if gaze is not None:
        if len(images) != 1:
            complain(f"--gaze goes with one image, got {len(images)}")
            raise typer.Exit(2)
        try:
            given = [read_gaze(gaze, batch.films[0])]
        except ScanpathError as error:
            complain(str(error))
            raise typer.Exit(2) from None
    with waiting("Loading the models", as_json):
        models = pipeline(model)
        sentences = writer_of(writer or "model") if composer else None
    order = protocol and protocol.value
    readings = (
        models.compose(batch.films, given, sentences, order) if composer else models.read(batch.films, given, order)
    )
    documents = read_all(batch, models, readings, out, overwrite, as_json, also)
    if as_json:
        print_json(documents)
    batch.finish()


def writer_of(name: str):
    """What `ReadingPipeline.compose` takes; one line and status 2 for a chat model that cannot be loaded."""
    from .chat_writer import ChatWriter

    if name in ("model", "template"):
        return name
    try:
        return ChatWriter.from_pretrained(name)
    except ValueError as error:
        complain(f"--writer {error}")
        raise typer.Exit(2) from None


@app.command()
def scanpath(
    images: Annotated[list[Path] | None, typer.Argument(help="Chest X-rays; none: a grey film stands in.")] = None,
    text: Annotated[str | None, typer.Option(help="What the reader looks for: a finding, or a report.")] = None,
    by_sentence: Annotated[bool, typer.Option(help="Follow --text, a report, sentence by sentence.")] = False,
    samples: Annotated[int, typer.Option(min=1, max=1000, help="Scanpaths an image; above 1 they are drawn.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Draw, and draw the same again.")] = None,
    out: Out = None,
    video: Annotated[
        str | None, typer.Option(help="Animation in --out: gif, webp or mp4; gif by default.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    model: Model = None,
) -> None:
    """Where a radiologist would look, for how long and in which order."""
    from .pipelines import grey_film

    if not images and not (text and text.strip()):
        complain("scanpath needs an image, --text, or both")
        raise typer.Exit(2)
    if video is not None:
        check_video(video, out)
    if by_sentence and (samples > 1 or seed is not None or not (text and text.strip())):
        complain("--by-sentence needs --text, and gives one scanpath that is not drawn")
        raise typer.Exit(2)
    batch = read_films(images) if images else Batch([grey_film()], ["grey film"])
    with waiting("Loading the models", as_json):
        models = pipeline(model)
    try:
        predicted = list(
            tracked(gaze_on(models, batch.films, text, by_sentence, samples, seed), len(batch.films), as_json)
        )
    except ValueError as error:  # a text that is too long, or no sentence
        complain(f"--text: {error}{'' if by_sentence else '; --by-sentence reads it piece by piece'}")
        raise typer.Exit(2) from None
    documents, taken = [], set()
    for path, film, (scanpaths, spoken) in zip(batch.paths, batch.films, predicted, strict=True):
        document = {"image": path if images else None, "model": models.name, "scanpath": scanpaths[0].to_records()}
        if text and text.strip():
            document["text"] = text.strip()
        if spoken:
            document["sentences"] = spoken
        if samples > 1:
            document["samples"] = [one.to_records() for one in scanpaths]
        documents.append(document)
        if not as_json:
            console.rule(shown(path), align="left")
            console.print(scanpath_table(scanpaths[0]))
        if out is not None:
            folder = folder_for(out, path, taken)
            try:
                write(folder, pictures(film, scanpaths[0], (), scanpaths, spoken, video or "gif"), overwrite)
            except OutputError as error:
                batch.fail(str(error))
            except ValueError as error:  # a letter that the font of the animation lacks
                batch.fail(f"{path}: {error}")
    if as_json:
        print_json(documents)
    batch.finish()


def gaze_on(models, films, text, by_sentence, samples, seed) -> Iterator[tuple[list, list[dict]]]:
    """Of each film its scanpaths, and the sentences that the first one follows."""
    for batch in models.batches(films):
        if by_sentence:
            yield from (([scanpath], spoken) for scanpath, spoken in models.follow_report(batch, text))
        else:
            yield from ((scanpaths, []) for scanpaths in models.predict_scanpaths(batch, text, samples, seed))


def check_video(video: str, out: Path | None) -> None:
    """One line and status 2 where --video cannot be written."""
    from .animation import FORMATS, check_format

    try:
        if f".{video}" not in FORMATS:
            raise ValueError("an animation is written as gif, webp or mp4")
        if out is None:
            raise ValueError("pass --out, the folder to write it into")
        check_format(f"scanpath.{video}")
    except (ValueError, ImportError) as error:
        complain(f"--video {video}: {error}")
        raise typer.Exit(2) from None


def scanpath_table(path) -> Table:
    table = Table("fixation", "x", "y", "onset s", "duration s", box=None, header_style="dim")
    for number, (x, y, onset, duration) in enumerate(path.to_array(), start=1):
        table.add_row(str(number), f"{x:.3f}", f"{y:.3f}", f"{onset:.2f}", f"{duration:.2f}")
    return table


@app.command()
def classify(
    images: Images,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    model: Model = None,
) -> None:
    """Findings of each film with their probabilities; in --out a picture of the attention of those present."""
    from .visualize import draw_attention

    batch = read_films(images)
    with waiting("Loading the models", as_json):
        models = pipeline(model)
    found = (one for films in models.batches(batch.films) for one in models.attend(films))
    documents, taken = [], set()
    for path, film, (findings, attention) in zip(
        batch.paths, batch.films, tracked(found, len(batch.films), as_json), strict=True
    ):
        documents.append({"image": path, "model": models.name, "findings": findings})
        if not as_json:
            console.rule(shown(path), align="left")
            console.print(findings_table(findings))
        if out is not None:
            image, folder = film.to_pil("L"), folder_for(out, path, taken)
            ranked = sorted(findings, key=lambda finding: -finding["probability"])
            maps = {
                f"{finding['name']} {finding['probability']:.2f}": attention[finding["name"]]
                for finding in [one for one in ranked if one["present"]] or ranked[:1]
            }
            files = {"attention.png": lambda file, image=image, maps=maps: draw_attention(image, maps).save(file)}
            try:
                write(folder, files, overwrite)
            except OutputError as error:
                batch.fail(str(error))
    if as_json:
        print_json(documents)
    batch.finish()


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for the results; a new gaze-vlm-demo by default.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    model: Model = None,
) -> None:
    """The whole job on two films that come with the package: one normal, one not."""
    films = resources.files("gaze_vlm") / "films"
    with resources.as_file(films) as folder:
        batch = read_films(sorted(folder.glob("*.jpg")))
    batch.paths = [Path(path).name for path in batch.paths]
    if out is None:
        out, number = Path("gaze-vlm-demo"), 2
        while out.exists():
            out, number = Path(f"gaze-vlm-demo-{number}"), number + 1
    with waiting("Loading the models", as_json):
        models = pipeline(model)
    documents = read_all(batch, models, models.read(batch.films), out, overwrite, quiet=as_json)
    if as_json:
        print_json(documents)
    else:
        console.print(
            "nano shows how the machine works. It is no medical device: do not use it for care.", style="dim"
        )
    batch.finish()


def version(value: bool) -> None:
    if value:
        console.print(f"gaze-vlm {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    show: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Gaze-guided reading of chest X-rays: research software, no medical device."""


def main() -> None:
    """Entry point: what a person can mend gets one line and status 2, and no traceback."""
    warnings.filterwarnings("ignore", module="torch|transformers|timm|torchvision")  # not the user's to mend
    try:
        app()
    except ValueError as error:
        from .loading import ModelError

        if not isinstance(error, ModelError):
            raise
        complain(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
