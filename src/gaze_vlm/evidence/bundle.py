"""A report and what it rests on, as JSON and as a page.

`JSON_SCHEMA` is the contract, and every bundle is checked against it when it is made. A reviewer's decision on a
sentence is part of it.

Frames: boxes are [x1, y1, x2, y2] and fixations x, y in 0..1 of the image from the top left; seconds; left and right
are the patient's, so "left" lies on the right of the image.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import json_schema as schema
from ..scanpath import Scanpath
from ..visualize import heat_layer, to_grey

SCHEMA_VERSION = "1.0"
NOTICE = "This is a research demonstration and not a medical device: nothing in it may guide the care of a patient."


class EvidenceError(ValueError):
    """Evidence that breaks its contract, or a file that must not be overwritten; the message names the place."""


# ---- the contract

_REGIONS = schema.array(
    "Where on the film.",
    schema.object(
        "A region of the thorax.",
        name=schema.text("Such as 'left costophrenic angle', the patient's side."),
        box={
            **schema.array(
                "x1, y1, x2, y2 in 0..1 of the image from the top left.", schema.number("", minimum=0, maximum=1)
            ),
            "minItems": 4,
            "maxItems": 4,
        },
    ),
)
_PROBABILITY = schema.number("Probability given by the classifier.", minimum=0, maximum=1)

JSON_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Evidence of a chest X-ray report",
    **schema.object(
        "A report, and for each sentence what it rests on.",
        schema_version=schema.choice("Version of this layout.", SCHEMA_VERSION),
        notice=schema.text("Says that this is no medical device.", pattern=r"\S"),
        image=schema.object(
            "The film.",
            name=schema.text("File name without its folder."),
            sha256=schema.text("Hex digest of the file's bytes.", pattern="^[0-9a-f]{64}$"),
            width=schema.index("Pixels.", 1),
            height=schema.index("Pixels.", 1),
        ),
        model=schema.object(
            "What wrote the report.",
            name=schema.text("Name or repository."),
            version=schema.text("Version."),
        ),
        gaze=schema.choice(
            "Where the scanpath comes from: a reader, a model, or there is none.", "given", "predicted", "none"
        ),
        report=schema.text("The whole report as it was written."),
        sentences=schema.array(
            "In the order of the report.",
            schema.object(
                "One sentence and what it rests on.",
                text=schema.text("report[start:end]."),
                start=schema.index("First character in the report (Unicode code points)."),
                end=schema.index("One past the last character in the report."),
                findings=schema.array(
                    "What the sentence says, in its order.",
                    schema.object(
                        "One statement about one finding.",
                        name=schema.text("Such as 'Pleural Effusion'."),
                        status=schema.choice("As the sentence says it.", "present", "absent", "uncertain"),
                    ),
                ),
                confidence=schema.or_null(
                    schema.number(
                        "The classifier's agreement with the sentence; null: none to give.", minimum=0, maximum=1
                    )
                ),
                regions=_REGIONS,
                fixations=schema.array("Indices into the scanpath of those that lie in a region.", schema.index("")),
                source=schema.choice("Who wrote the sentence.", "model", "template"),
                review=schema.or_null(
                    schema.object(
                        "A reviewer's decision; null: not reviewed.",
                        status=schema.choice("The decision.", "accepted", "rejected", "edited"),
                        text=schema.or_null(
                            schema.text("The sentence as edited; null unless the status is 'edited'.")
                        ),
                        reviewer=schema.or_null(schema.text("Who decided.")),
                    )
                ),
            ),
        ),
        findings=schema.array(
            "What the classifier found.",
            schema.object(
                "One finding.",
                name=schema.text("Such as 'Pleural Effusion'."),
                probability=_PROBABILITY,
                present={"type": "boolean", "description": "Is the finding listed as what the film shows?"},
                regions=_REGIONS,
            ),
        ),
        scanpath=schema.object(
            "The fixations in their order, one entry each.",
            x=schema.array("0..1 of the image from the left; off the image allowed.", schema.number("")),
            y=schema.array("0..1 of the image from the top; off the image allowed.", schema.number("")),
            onset=schema.array("Seconds from the first moment of reading.", schema.number("")),
            duration=schema.array("Seconds.", schema.number("", minimum=0)),
        ),
    ),
}
"""JSON schema (draft 2020-12) of `EvidenceBundle.to_json`."""


# ---- the bundle


@dataclass(frozen=True)
class EvidenceSentence:
    """One sentence of a report; the fields are those of `JSON_SCHEMA`, described there."""

    text: str
    start: int
    end: int
    findings: list[dict[str, str]]
    confidence: float | None
    regions: list[dict[str, Any]]
    fixations: list[int]
    source: str = "model"
    review: dict[str, str | None] | None = None


@dataclass(frozen=True)
class EvidenceBundle:
    """A report and what it rests on; the fields are those of `JSON_SCHEMA`, described there.

    Raises:
        EvidenceError: naming the field that breaks the schema, or the sentence that does not fit report or scanpath.
    """

    image: dict[str, Any]
    model: dict[str, str]
    report: str
    sentences: tuple[EvidenceSentence, ...]
    findings: list[dict[str, Any]]
    scanpath: dict[str, list[float]]
    gaze: str
    notice: str = NOTICE
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        schema.check(asdict(self), JSON_SCHEMA, "evidence", EvidenceError)
        fixations = len(Scanpath.from_records(self.scanpath))
        if fixations and self.gaze == "none":
            raise EvidenceError(f'evidence.gaze is "none", but the scanpath has {fixations} fixations')
        end = 0
        for i, sentence in enumerate(self.sentences):
            if sentence.start < end or self.report[sentence.start : sentence.end] != sentence.text:
                raise EvidenceError(f"evidence.sentences[{i}]: its text does not stand in the report at its place")
            if max(sentence.fixations, default=-1) >= fixations:
                raise EvidenceError(f"evidence.sentences[{i}]: fixation {max(sentence.fixations)} of {fixations}")
            edit = sentence.review and sentence.review["text"]
            if sentence.review and (sentence.review["status"] == "edited") != bool(edit and edit.strip()):
                raise EvidenceError(
                    f'evidence.sentences[{i}].review: "edited" goes with the new text, the other decisions with none'
                )
            end = sentence.end

    def to_json(self) -> str:
        """The bundle as JSON text; `from_json` gives an equal bundle back."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> EvidenceBundle:
        """The bundle that `to_json` wrote, or an EvidenceError that names what is wrong with the text."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EvidenceError(f"evidence is not valid JSON ({error})") from None
        schema.check(data, JSON_SCHEMA, "evidence", EvidenceError)
        return cls(**{**data, "sentences": tuple(EvidenceSentence(**sentence) for sentence in data["sentences"])})

    def review(self, index: int, status: str, text: str | None = None, reviewer: str | None = None) -> EvidenceBundle:
        """A new bundle in which sentence `index` is "accepted", "rejected", or "edited" to `text`."""
        if not 0 <= index < len(self.sentences):
            raise EvidenceError(f"sentence {index} of a report of {len(self.sentences)} sentences")
        reviewed = replace(self.sentences[index], review={"status": status, "text": text, "reviewer": reviewer})
        return replace(self, sentences=(*self.sentences[:index], reviewed, *self.sentences[index + 1 :]))

    @property
    def reviewed_report(self) -> str:
        """The report without rejected sentences and with the edited ones; the text between sentences stays.

        A sentence that nobody has reviewed stays as it is.
        """
        pieces, end = [], 0
        for sentence in self.sentences:
            review = sentence.review or {"status": None, "text": None}
            if review["status"] != "rejected":
                pieces += [self.report[end : sentence.start], review["text"] or sentence.text]
            end = sentence.end
        return "".join([*pieces, self.report[end:]]).strip()

    def to_html(self, film: Image.Image | np.ndarray) -> str:
        """One page that needs nothing else: no request leaves it, its Content-Security-Policy forbids any.

        The page holds the bundle's JSON and shows it with a script that inserts text as text only.
        `film` is the picture the bundle is about: a PIL image or a (H, W) uint8 array.
        """
        film = to_grey(film)
        size = (self.image["width"], self.image["height"])
        if film.size != size:
            raise EvidenceError(f"film (width, height): {film.size}, evidence: {size}")
        film.thumbnail((_PAGE_FILM, _PAGE_FILM), Image.Resampling.LANCZOS)
        heat = heat_layer(Scanpath.from_records(self.scanpath), size)
        template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        parts = {
            "title": html.escape(self.image["name"]),
            "report": html.escape(self.report),
            "film": _data_uri(film, "jpeg", quality=90),
            "heat": _data_uri(heat, "png", optimize=True),
            # in a script element only "<" can end the data or open a comment
            "evidence": json.dumps(asdict(self), allow_nan=False).replace("<", "\\u003c"),
            "script_hash": _csp_hash(template, "script"),
            "style_hash": _csp_hash(template, "style"),
        }
        # one pass: what is inserted is not searched again
        return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)

    def save(self, folder: str | Path, film: Image.Image | np.ndarray, overwrite: bool = False) -> tuple[Path, Path]:
        """Write evidence.json and evidence.html into `folder` (made when missing) and give their paths."""
        folder = Path(folder)
        contents = {folder / "evidence.json": self.to_json() + "\n", folder / "evidence.html": self.to_html(film)}
        for path in contents:
            if path.exists() and not overwrite:
                raise EvidenceError(f"{path}: exists already")
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in contents.items():
            path.write_text(text, encoding="utf-8", newline="\n")
        return tuple(contents)


_PAGE_FILM = 1280  # pixels of the longer side at most


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _csp_hash(template: str, element: str) -> str:
    """Hash of the text of the template's one plain `element`, as a Content-Security-Policy names it."""
    content = template.split(f"<{element}>", 1)[1].split(f"</{element}>", 1)[0]
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
