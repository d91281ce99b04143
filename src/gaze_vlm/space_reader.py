"""What the Space answers about files that strangers send: readings, answers, places and comparisons, step by step.

Each task is a generator of steps; a step holds what is new to show, by the name of its place. A file comes as Gradio's
record `{"path", ...}`. What a person can mend is raised as `Refused`.
"""

import contextlib
import copy
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from importlib import resources
from pathlib import Path
from typing import Any

from . import space_views as views
from .cli_films import read_gaze
from .images import Film, ImageError, read_film
from .loading import ModelError
from .pipelines import Reading, ReadingPipeline
from .scanpath import Scanpath, ScanpathError

EXAMPLES = {"Normal": "normal.jpg", "Large heart, effusion": "cardiomegaly_effusion.jpg"}
PREDICTED, NONE, GIVEN = GAZE = ("Predicted", "None", "Given")
MAX_GAZE = 5_000_000  # bytes
MAX_FIXATIONS = 5_000  # a quarter of an hour of reading, at five a second
KEPT = 30 * 60  # seconds that an upload stays
SECONDS = 20  # of one generation at most: a reading has two, a draft and some more where the first has a fault
PAUSE = 0.15  # seconds between two glimpses of a draft

Step = dict[str, Any]
File = dict[str, Any] | None


class Refused(ValueError):
    """What is not done; the message is a sentence for the person who asked, without the name of a file or folder."""


def refusing(task: Callable[..., Iterator[Step]]) -> Callable[..., Iterator[Step]]:
    """The task, with what the models and a text that they cannot read raise as `Refused`."""

    @wraps(task)
    def steps(self, *given, **named):
        try:
            yield from task(self, *given, **named)
        except Refused:
            raise
        except (ModelError, ValueError) as error:
            reason = str(error).removeprefix(f"{self.models.name}: ")
            raise Refused(f"{reason[:1].upper()}{reason[1:]}.") from None

    return steps


class SpaceReader:
    """The models, loaded and warm, and what the Space does with them; one task at a time.

    Args:
        model: as of `LoadedModels`.

    Raises:
        ModelError: if they cannot be loaded.
    """

    def __init__(self, model: str | Path | None = None):
        self.models = ReadingPipeline(model)
        vlm, _ = self.models.vlm
        vlm.generation_config.max_time = SECONDS
        with contextlib.suppress(ModelError):  # `ground` does without
            _ = self.models.scanpath_predictor
        for _ in self.read(example=next(iter(EXAMPLES))):
            pass
        self.blind = copy.copy(self.models)  # the same models
        self.blind.predict_gaze = False

    # ---- what it does

    @refusing
    def read(
        self, film: File = None, example: str | None = None, gaze: str = PREDICTED, gaze_file: File = None
    ) -> Iterator[Step]:
        """Read a film: findings, report and gaze, each sentence with what it rests on.

        Give a film (PNG, JPEG or DICOM), or the name of an example; gaze is "Predicted", "None", or "Given" with a CSV
        or JSON file of fixations (x, y in 0..1, duration and onset in seconds). It comes back as a page, and as what
        evidence.json holds.
        """
        started = time.monotonic()
        image = opened(film, example)
        given = recorded(gaze, gaze_file, image)
        yield {"film": views.film(image), "progress": views.progress(), "viewer": "", "evidence": None}
        models = self.blind if gaze == NONE else self.models
        (findings,) = models.classify([image], [given])
        yield {"progress": views.progress(findings, "")}
        draft = ""
        with ThreadPoolExecutor(1) as worker:
            streamer = self._streamer()
            reading = worker.submit(self._reading, models, image, given, streamer)
            for draft in glimpses(streamer):
                yield {"progress": views.progress(findings, draft)}
            yield {"progress": views.progress(findings, draft, written=True)}
            done = reading.result()
        yield {
            "film": "",
            "progress": views.read(done, draft, time.monotonic() - started),
            "viewer": views.viewer(done),
            "evidence": views.document(done),
        }

    @refusing
    def ask(self, film: File = None, example: str | None = None, question: str = "") -> Iterator[Step]:
        """Ask a question about a film, such as "Is there pleural effusion?"."""
        text = asked(question, "Write a question first.")
        (answer,) = self.models.ask([opened(film, example)], text)
        yield {"answer": answer or "(The model gives no answer.)"}

    @refusing
    def ground(self, film: File = None, example: str | None = None, phrase: str = "") -> Iterator[Step]:
        """Find what a phrase names, such as "lung opacity": boxes [x1, y1, x2, y2] in 0..1 from the top left."""
        text = asked(phrase, "Write what to find first.")
        image = opened(film, example)
        (parsed,) = self.models.ground([image], text)
        boxes = [list(box) for box in parsed.value or ()]
        yield {
            "found": views.found(image, text, boxes, parsed.reason),
            "boxes": {"phrase": text, "boxes": boxes, "reason": parsed.reason},
        }

    @refusing
    def compare(self, film: File = None, example: str | None = None, gaze_file: File = None) -> Iterator[Step]:
        """Read a film with given gaze (where there is a file of it), with predicted gaze and with none."""
        image = opened(film, example)
        given = recorded(GIVEN, gaze_file, image) if gaze_file else None
        readings: dict[str, Reading] = {}
        kinds = [GIVEN] * (given is not None) + [PREDICTED, NONE]
        for kind in kinds:
            yield {"compared": views.compared(readings, waiting=kind)}
            models = self.blind if kind == NONE else self.models
            (readings[kind],) = models.read([image], [given if kind == GIVEN else None])
        reports = {kind: {"report": reading.report, "gaze": reading.gaze} for kind, reading in readings.items()}
        yield {"compared": views.compared(readings), "reports": reports}

    # ---- how

    def _streamer(self):
        from transformers import TextIteratorStreamer

        _, processor = self.models.vlm
        return TextIteratorStreamer(
            processor.tokenizer, skip_prompt=True, timeout=2 * SECONDS, skip_special_tokens=True
        )

    def _reading(self, models: ReadingPipeline, image: Film, given: Scanpath | None, streamer) -> Reading:
        try:
            (reading,) = models.read([image], [given], streamer=streamer)
            return reading
        finally:
            streamer.end()  # whoever reads along must not wait for what will not come


def glimpses(streamer) -> Iterator[str]:
    """The text so far, now and then."""
    text, shown = "", 0.0
    try:
        for piece in streamer:
            text += piece
            if piece and time.monotonic() - shown > PAUSE:
                yield text
                shown = time.monotonic()
    except queue.Empty:
        raise Refused("The reading takes too long and was given up.") from None
    yield text


def opened(file: File, example: str | None) -> Film:
    """The film that somebody sent, or else the example of that name."""
    if not file:
        if example not in EXAMPLES:
            raise Refused("Choose a film first, or one of the examples.")
        with resources.as_file(resources.files("gaze_vlm") / "films" / EXAMPLES[example]) as path:
            return read_film(path)
    path = present(file, "The film")
    try:
        film = read_film(path)
    except ImageError as error:
        raise Refused(f"The film cannot be read: {str(error).removeprefix(f'{path}: ')}.") from None
    if film.is_lateral:
        raise Refused(f"The film is a lateral view ({film.view}); the models know frontal films only.")
    return film


def recorded(gaze: str, file: File, film: Film) -> Scanpath | None:
    """The gaze that somebody sent, where it is asked for."""
    if gaze not in GAZE:
        raise Refused(f"Gaze is one of {', '.join(GAZE)}.")
    if gaze != GIVEN:
        return None
    if not file:
        raise Refused("Choose the file of the recorded gaze (CSV or JSON), or another kind of gaze.")
    path = present(file, "The gaze file")
    if path.stat().st_size > MAX_GAZE:
        raise Refused(f"The gaze file is too large (at most {MAX_GAZE / 1e6:.0f} MB).")
    try:
        scanpath = read_gaze(path, film)
    except ScanpathError as error:
        raise Refused(f"The gaze file cannot be read: {str(error).removeprefix(f'{path}: ')}.") from None
    if len(scanpath) > MAX_FIXATIONS:
        raise Refused(f"The gaze file has {len(scanpath):,} fixations; {MAX_FIXATIONS:,} can be read.")
    return scanpath


def present(file: dict[str, Any], what: str) -> Path:
    path = Path(file["path"])
    if not path.is_file():
        raise Refused(f"{what} is no longer here: files are removed after {KEPT // 60} minutes. Choose it again.")
    return path


def asked(text: str | None, otherwise: str) -> str:
    """The text in one line, or `otherwise` is what is said."""
    line = " ".join((text or "").split())
    if not line:
        raise Refused(otherwise)
    return line
