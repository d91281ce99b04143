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
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import json_schema as schema
from ..scanpath import Scanpath
from ..visualize import heat_layer, to_grey
from .schema import JSON_SCHEMA, NOTICE, SCHEMA_VERSION


class EvidenceError(ValueError):
    """Evidence that breaks its contract, or a file that must not be overwritten; the message names the place."""


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
    key_frames: list[int] = field(default_factory=list)
    stage: str | None = None
    source: str = "model"
    review: dict[str, str | None] | None = None

    @property
    def stands(self) -> bool:
        """Is it in the report in the words that its evidence is about?"""
        return self.review is None or self.review["status"] == "accepted"


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
    key_frames: list[dict[str, Any]] = field(default_factory=list)
    coverage: dict[str, Any] | None = None
    flags: list[dict[str, Any]] = field(default_factory=list)
    sign_off: dict[str, str] | None = None
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
        self._check_gaps()
        self._check_boxes()
        self._check_numbers(fixations)
        self._check_sign_off()

    def _check_gaps(self) -> None:
        """Whoever decides on every sentence has decided on the whole report: no word stands outside of them."""
        ends = [0, *(sentence.end for sentence in self.sentences)]
        starts = [*(sentence.start for sentence in self.sentences), len(self.report)]
        for end, start in zip(ends, starts, strict=True):
            if not _NO_WORD.fullmatch(self.report, end, start):
                raise EvidenceError(f"evidence.report: no sentence holds {self.report[end:start].strip()[:40]!r}")

    def _check_boxes(self) -> None:
        """A region has an area; a key frame may be a point or a line."""
        places = [(f"sentences[{i}]", sentence.regions) for i, sentence in enumerate(self.sentences)]
        places += [(f"findings[{i}]", finding["regions"]) for i, finding in enumerate(self.findings)]
        places += [("coverage", self.coverage["regions"])] if self.coverage else []
        boxes = [(f"{place}.regions[{i}]", one["box"], False) for place, ones in places for i, one in enumerate(ones)]
        boxes += [(f"key_frames[{i}]", frame["box"], True) for i, frame in enumerate(self.key_frames)]
        for place, (x1, y1, x2, y2), may_be_flat in boxes:
            if x1 > x2 or y1 > y2:
                raise EvidenceError(f"evidence.{place}.box: it ends before it begins")
            if not may_be_flat and (x1 == x2 or y1 == y2):
                raise EvidenceError(f"evidence.{place}.box: it has no area")

    def _check_numbers(self, fixations: int) -> None:
        """What refers to fixations, key frames and sentences refers to some that are there."""
        frames, spans = len(self.key_frames), len(self.sentences)
        for what, records, field_name, known in (
            ("findings", self.findings, "fixations", fixations),
            ("key_frames", self.key_frames, "fixations", fixations),
            ("sentences", [asdict(sentence) for sentence in self.sentences], "key_frames", frames),
        ):
            for i, record in enumerate(records):
                if max(record[field_name], default=-1) >= known:
                    raise EvidenceError(f"evidence.{what}[{i}].{field_name}: {max(record[field_name])} of {known}")
        for i, flag in enumerate(self.flags):
            if flag["sentence"] is not None and flag["sentence"] >= spans:
                raise EvidenceError(f"evidence.flags[{i}].sentence: {flag['sentence']} of {spans}")

    def _check_sign_off(self) -> None:
        if self.sign_off is None:
            return
        try:
            signed = datetime.fromisoformat(self.sign_off["signed_at"])
        except ValueError:
            signed = None
        if signed is None or signed.tzinfo is None:
            raise EvidenceError(
                f"evidence.sign_off.signed_at: {self.sign_off['signed_at']!r} is no date and time with its zone"
            )
        for i, sentence in enumerate(self.sentences):
            if sentence.review is None:
                raise EvidenceError(f"evidence.sign_off: sentence {i} is not reviewed")

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
        if isinstance(data, dict) and "schema_version" in data:  # of another layout nothing else is worth telling
            version = JSON_SCHEMA["properties"]["schema_version"]
            schema.check(data["schema_version"], version, "evidence.schema_version", EvidenceError)
        schema.check(data, JSON_SCHEMA, "evidence", EvidenceError)
        return cls(**{**data, "sentences": tuple(EvidenceSentence(**sentence) for sentence in data["sentences"])})

    def review(self, index: int, status: str, text: str | None = None, reviewer: str | None = None) -> EvidenceBundle:
        """A new bundle in which sentence `index` is "accepted", "rejected", or "edited" to `text`."""
        if not 0 <= index < len(self.sentences):
            raise EvidenceError(f"sentence {index} of a report of {len(self.sentences)} sentences")
        reviewed = replace(self.sentences[index], review={"status": status, "text": text, "reviewer": reviewer})
        sentences = (*self.sentences[:index], reviewed, *self.sentences[index + 1 :])
        return replace(self, sentences=sentences, sign_off=None)

    def sign(self, reviewer: str, signed_at: str | None = None) -> EvidenceBundle:
        """A new bundle that `reviewer` answers for; by default now. All sentences must have been reviewed, and a later
        review takes the signature away."""
        signed_at = datetime.now(UTC).isoformat(timespec="seconds") if signed_at is None else signed_at
        return replace(self, sign_off={"reviewer": reviewer, "signed_at": signed_at})

    @property
    def is_decided(self) -> bool:
        """Has a person changed or signed the report, so that what the model concluded does not stand beside it?"""
        return self.sign_off is not None or not all(sentence.stands for sentence in self.sentences)

    @property
    def conclusions(self) -> list[dict[str, Any]]:
        """The findings that the model lists, as long as no person has decided."""
        return [] if self.is_decided else [finding for finding in self.findings if finding["present"]]

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


_NO_WORD = re.compile(r"(?:[\W_]|\d{1,2}[.)])*")  # what may stand around sentences: marks, and numbers of a list
_PAGE_FILM = 1280  # pixels of the longer side at most


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _csp_hash(template: str, element: str) -> str:
    """Hash of the text of the template's one plain `element`, as a Content-Security-Policy names it."""
    content = template.split(f"<{element}>", 1)[1].split(f"</{element}>", 1)[0]
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
