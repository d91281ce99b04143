"""The commands gaze-vlm ground and gaze-vlm ask: where something is on a film, and what a film shows."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_films import Batch, Json, Model, Out, OutputError, Overwrite, folder_for, pipeline, read_films, write
from .terminal import complain, console, print_json, shown, waiting

Image = Annotated[Path, typer.Argument(help="A chest X-ray: PNG, JPEG or DICOM.", show_default=False)]


EDGES = ("left", "top", "right", "bottom")


def ground(
    image: Image,
    phrase: Annotated[str, typer.Argument(help="What to find, such as 'lung opacity'.", show_default=False)],
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    model: Model = None,
) -> None:
    """Where on the film something is; in --out a picture of it."""
    batch, models = prepared(image, phrase, model, as_json)
    with refusing():
        (parsed,) = models.ground(batch.films, phrase)
    boxes = [{"name": " ".join(phrase.split()), "box": list(box)} for box in parsed.value or ()]
    if as_json:
        found = {"phrase": phrase, "boxes": boxes, "reason": parsed.reason}
        print_json([{"image": batch.paths[0], "model": models.name, **found}])
    else:
        for box in boxes:
            console.print(shown(", ".join(f"{name} {edge:.3f}" for name, edge in zip(EDGES, box["box"], strict=True))))
        if not boxes:
            console.print(
                shown("nowhere" if parsed.reason is None else f"the model's answer is none: {parsed.reason}")
            )
    if out is not None:
        film, folder = batch.films[0], folder_for(out, batch.paths[0], set())
        try:
            write(folder, {"ground.png": lambda file: drawn(film, boxes).save(file)}, overwrite)
        except OutputError as error:
            batch.fail(str(error))
    batch.finish()


def ask(
    image: Image,
    question: Annotated[str, typer.Argument(help="Such as 'Is there pleural effusion?'", show_default=False)],
    as_json: Json = False,
    model: Model = None,
) -> None:
    """An answer to a question about the film."""
    batch, models = prepared(image, question, model, as_json)
    with refusing():
        (answer,) = models.ask(batch.films, question)
    if as_json:
        print_json([{"image": batch.paths[0], "model": models.name, "question": question, "answer": answer}])
    else:
        console.print(shown(answer))


def prepared(image: Path, text: str, model: str | None, quiet: bool) -> tuple[Batch, Any]:
    """The film and the models; one line and status 2 for an empty text."""
    if not text.strip():
        complain("nothing is asked: the text is empty")
        raise typer.Exit(2)
    batch = read_films([image])
    with waiting("Loading the models", quiet):
        return batch, pipeline(model)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What was not learned, or is too long to be read, is said in one line: status 2."""
    try:
        yield
    except ValueError as error:
        complain(str(error))
        raise typer.Exit(2) from None


def drawn(film, boxes: list[dict]):
    """The film with its boxes."""
    from .scanpath import Scanpath
    from .visualize import draw_scanpath

    return draw_scanpath(film.to_pil("L"), Scanpath([], [], [], []), boxes=boxes)
