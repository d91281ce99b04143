"""What a report rests on: sentence by sentence the findings, the regions, the fixations, the confidence.

`link_evidence` makes an `EvidenceBundle` from a report, a classifier's findings and a scanpath. The bundle travels as
JSON (`JSON_SCHEMA` is the contract, and every bundle is checked against it when it is made) and as one self-contained
page. A reviewer's decision on a sentence is part of it.

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
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from . import json_schema as schema
from .findings import FINDING_REGIONS, REGIONS
from .labeler import Mention, label, sentences
from .scanpath import Scanpath
from .visualize import heat_layer, to_grey

SCHEMA_VERSION = "1.0"
NOTICE = "This is a research demonstration and not a medical device: nothing in it may guide the care of a patient."

Box = Sequence[float]


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
        template = files(__package__).joinpath("evidence.html").read_text(encoding="utf-8")
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


# ---- linking


def link_evidence(
    report: str,
    findings: Sequence[dict[str, Any]],
    scanpath: Scanpath | None,
    *,
    sources: Sequence[str] | None = None,
    image: dict[str, Any],
    model: dict[str, str],
    gaze: str,
) -> EvidenceBundle:
    """Link each sentence of a report to findings, regions and fixations.

    Args:
        report: the text; `labeler` splits it into sentences and reads their findings.
        findings: the classifier's records `{"name", "probability", "present", "regions": [{"name", "box"}]}`.
        scanpath: the fixations in the image's frame, None when there are none.
        sources: "model" or "template" for each sentence of `labeler.sentences(report)`; all "model" when left out.
        image: `{"name", "sha256", "width", "height"}`; of the name only the file's own part is kept.
        model: `{"name", "version"}`.
        gaze: where the scanpath comes from: "given", "predicted" or "none".

    The regions of a sentence are those of every finding it names, whatever its status: one looks there to deny it,
    too. They are the classifier's, else the usual ones of `findings.FINDING_REGIONS`, in both cases on the side and at
    the height (upper, middle, lower) that the sentence names.
    """
    spans = sentences(report)
    sources = ["model"] * len(spans) if sources is None else sources
    if len(sources) != len(spans):
        raise EvidenceError(f"sources: {len(sources)}, sentences in the report: {len(spans)}")
    scanpath = Scanpath([], [], [], []) if scanpath is None else scanpath
    records = {record["name"]: record for record in findings}
    mentions = label(report).mentions
    linked = []
    for index, ((start, end), source) in enumerate(zip(spans, sources, strict=True)):
        said = [mention for mention in mentions if mention.sentence == index]
        regions = _regions(said, report[start:end], records)
        linked.append(
            EvidenceSentence(
                text=report[start:end],
                start=start,
                end=end,
                findings=_unique({"name": mention.finding, "status": mention.status} for mention in said),
                confidence=_confidence(said, records),
                regions=regions,
                fixations=_inside(scanpath, [region["box"] for region in regions]),
                source=source,
            )
        )
    # a name read from a disk may hold bytes that are no UTF-8
    name = PureWindowsPath(str(image.get("name", ""))).name.encode("utf-8", "replace").decode()
    return EvidenceBundle(
        {**image, "name": name}, model, report, tuple(linked), list(findings), scanpath.to_records(), gaze
    )


_HEIGHTS = (
    (re.compile(r"\bupper\b|\bapic|\bapex", re.IGNORECASE), re.compile("upper|clavicle")),
    (re.compile(r"\bmid(?:dle|-?lung|-?zone)?\b|\blingula|\bperihilar", re.IGNORECASE), re.compile("mid |hilar")),
    (re.compile(r"\blower\b|\bbases?\b|\bbas(?:al|ilar)|\bbi-?bas", re.IGNORECASE), re.compile("lower|costophrenic")),
)
"""How a sentence names a height of the lung, and the names of the regions that lie there."""


def _regions(said: Sequence[Mention], sentence: str, records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Regions `{"name", "box"}` of a sentence and its mentions; a usual one that lies within another is left out."""
    seen, usual = [], []
    for mention in said:
        record = _record(mention, records)
        if record and record["regions"]:
            seen += _at_height(record["regions"], sentence)
        else:
            links = _of(mention, FINDING_REGIONS) or ()
            boxes = [{"name": link.region, "box": list(REGIONS[link.region].box)} for link in links]
            usual += _at_height(_on_side(boxes, mention.side), sentence)
    regions = _unique([*seen, *usual])
    return [region for region in regions if region in seen or not any(_holds(other, region) for other in regions)]


def _record(mention: Mention, records: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The classifier's record with the regions on the mention's side; None when all it has lie on the other."""
    record = _of(mention, records)
    if not record or not record["regions"]:
        return record
    regions = _on_side(record["regions"], mention.side)
    return {**record, "regions": regions} if regions else None


def _of(mention: Mention, table: dict[str, Any]) -> Any:
    """The table's entry for the mention: for its finer name ("Nodule"), else for its finding, else None."""
    return next((table[name] for name in (mention.detail, mention.finding) if name in table), None)


def _on_side(regions: list[dict[str, Any]], side: str | None) -> list[dict[str, Any]]:
    return regions if side in (None, "both") else [region for region in regions if _side(region) == side]


def _side(region: dict[str, Any]) -> str:
    """The patient's side: the named region's own, else that of the box's centre."""
    if region["name"] in REGIONS:
        return REGIONS[region["name"]].side
    return "left" if region["box"][0] + region["box"][2] > 1 else "right"


def _at_height(regions: list[dict[str, Any]], sentence: str) -> list[dict[str, Any]]:
    """Those at a height that the sentence names; all of them when none is."""
    named = [names for words, names in _HEIGHTS if words.search(sentence)]
    return [region for region in regions if any(names.search(region["name"]) for names in named)] or regions


def _holds(outer: dict[str, Any], inner: dict[str, Any]) -> bool:
    """Is `inner` a part of `outer`, so that it adds nothing to it?"""
    (a1, b1, a2, b2), (x1, y1, x2, y2) = outer["box"], inner["box"]
    return outer is not inner and a1 <= x1 and b1 <= y1 and x2 <= a2 and y2 <= b2


def _confidence(said: Sequence[Mention], records: dict[str, dict[str, Any]]) -> float | None:
    """The classifier's agreement: with what is present, else with what is uncertain, else with the denial of all."""
    for status in ("present", "uncertain", "absent"):
        stated = [_record(mention, records) for mention in said if mention.status == status]
        if stated:
            highest = max((record["probability"] for record in stated if record), default=None)
            return highest if highest is None or status != "absent" else 1 - highest
    return None


def _inside(scanpath: Scanpath, boxes: Iterable[Box]) -> list[int]:
    """Indices of the fixations that lie in one of the boxes, their borders included."""
    x, y = scanpath.x.astype(float), scanpath.y.astype(float)
    inside = np.zeros(len(scanpath), bool)
    for x1, y1, x2, y2 in boxes:
        inside |= (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
    return np.flatnonzero(inside).tolist()


def _unique(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for record in records:
        if record not in kept:
            kept.append(record)
    return kept
