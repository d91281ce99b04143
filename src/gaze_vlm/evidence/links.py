"""Each sentence of a report linked to findings, regions and fixations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PureWindowsPath
from typing import Any

import numpy as np

from ..findings import FINDING_REGIONS, READING_ORDER, REGIONS, regions_at
from ..keyframes import KeyFrame, key_frames, stage_of_text
from ..labeler import Mention, label, sentences
from ..scanpath import Scanpath
from .bundle import EvidenceBundle, EvidenceError, EvidenceSentence
from .coverage import attention_share, coverage, fixations_in
from .flags import Opinion, sentence_flags, zone_flags

Box = Sequence[float]


def link_evidence(
    report: str,
    findings: Sequence[dict[str, Any]],
    scanpath: Scanpath | None,
    *,
    sources: Sequence[str] | None = None,
    image: dict[str, Any],
    model: dict[str, str],
    gaze: str,
    attention: Mapping[str, np.ndarray] | None = None,
    spoken: Sequence[dict[str, Any]] | None = None,
) -> EvidenceBundle:
    """Link each sentence of a report to findings, regions, fixations and key frames, and flag what does not agree.

    Args:
        report: the text; `labeler` splits it into sentences and reads their findings.
        findings: the classifier's records `{"name", "probability", "present", "regions": [{"name", "box"}]}`.
        scanpath: the fixations in the image's frame, None when there are none.
        sources: "model" or "template" for each sentence of `labeler.sentences(report)`; all "model" when left out.
        image: `{"name", "sha256", "width", "height"}`; of the name only the file's own part is kept.
        model: `{"name", "version"}`.
        gaze: where the scanpath comes from: "given", "predicted" or "none".
        attention: name of a finding -> the classifier's attention (rows, columns) over the film, whose sum is 1.
        spoken: dictated sentences `{"text", "start", "end"}` on the scanpath's clock, for key frames by sentence;
            None: key frames of windows of time.

    The regions of a sentence are those of every finding it names, whatever its status: one looks there to deny it,
    too. They are the classifier's, else the usual ones of `findings.FINDING_REGIONS`, in both cases on the side and at
    the height (upper, middle, lower) that the sentence names. A sentence that names a place and no finding has the
    regions of that stage of inspection.
    """
    spans = sentences(report)
    sources = ["model"] * len(spans) if sources is None else sources
    if len(sources) != len(spans):
        raise EvidenceError(f"sources: {len(sources)}, sentences in the report: {len(spans)}")
    scanpath = Scanpath([], [], [], []) if scanpath is None else scanpath
    records = {record["name"]: record for record in findings}
    mentions = label(report).mentions
    frames = key_frames(scanpath, spoken)
    linked, flags = [], []
    for index, ((start, end), source) in enumerate(zip(spans, sources, strict=True)):
        said = [mention for mention in mentions if mention.sentence == index]
        regions = _regions(said, report[start:end], records)
        fixations = _inside(scanpath, [region["box"] for region in regions])
        linked.append(
            EvidenceSentence(
                text=report[start:end],
                start=start,
                end=end,
                findings=_unique({"name": mention.finding, "status": mention.status} for mention in said),
                confidence=_confidence(said, records),
                regions=regions,
                fixations=fixations,
                key_frames=[i for i, frame in enumerate(frames) if not set(fixations).isdisjoint(frame.fixations)],
                stage=stage_of_text(report[start:end]),
                source=source,
            )
        )
        places = [_regions([mention], report[start:end], records) for mention in said]
        opinions = [_opinion(mention, records) for mention in said]
        flags += sentence_flags(index, said, regions, places, opinions, scanpath)
    seen = coverage(scanpath) if len(scanpath) else None
    # a name read from a disk may hold bytes that are no UTF-8
    name = PureWindowsPath(str(image.get("name", ""))).name.encode("utf-8", "replace").decode()
    return EvidenceBundle(
        image={**image, "name": name},
        model=model,
        report=report,
        sentences=tuple(linked),
        findings=[_linked(record, scanpath, attention or {}) for record in findings],
        scanpath=scanpath.to_records(),
        gaze=gaze,
        key_frames=[_frame_record(frame) for frame in frames],
        coverage=seen,
        flags=[*flags, *zone_flags(seen)],
    )


def _linked(record: dict[str, Any], scanpath: Scanpath, attention: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A finding with the fixations and the share of attention in its regions."""
    boxes, given = [region["box"] for region in record["regions"]], attention.get(record["name"])
    if given is not None and not ((given >= 0).all() and abs(given.sum() - 1) < 0.01):
        raise EvidenceError(f"attention of {record['name']!r} must be shares that sum to 1, got {given.sum():.3g}")
    share = attention_share(given, boxes) if boxes and given is not None else None
    return {**record, "fixations": _inside(scanpath, boxes), "attention": share}


def _frame_record(frame: KeyFrame) -> dict[str, Any]:
    record = {**asdict(frame), "regions": list(regions_at(frame.x, frame.y))}
    return {**record, "fixations": list(frame.fixations), "box": list(frame.box)}


def _opinion(mention: Mention, records: dict[str, dict[str, Any]]) -> Opinion | None:
    """What the classifier says of a mention's finding; None if it does not judge it."""
    record = _of(mention, records)
    if record is None:
        return None
    on_side = not record["regions"] or bool(_on_side(record["regions"], mention.side))
    return Opinion(record["name"], record["probability"], record["present"], on_side)


_HEIGHTS = (
    (re.compile(r"\bupper\b|\bapic|\bapex", re.IGNORECASE), re.compile("upper|clavicle")),
    (re.compile(r"\bmid(?:dle|-?lung|-?zone)?\b|\blingula|\bperihilar", re.IGNORECASE), re.compile("mid |hilar")),
    (re.compile(r"\blower\b|\bbases?\b|\bbas(?:al|ilar)|\bbi-?bas", re.IGNORECASE), re.compile("lower|costophrenic")),
)
"""How a sentence names a height of the lung, and the names of the regions that lie there."""

_STAGES = {stage.letter: stage.regions for stage in READING_ORDER}


def _regions(said: Sequence[Mention], sentence: str, records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Regions `{"name", "box"}` of a sentence and its mentions; a usual one that lies within another is left out."""
    seen, usual = [], []
    if not said:
        usual = _at_height([_usual(name) for name in _STAGES.get(stage_of_text(sentence), ())], sentence)
    for mention in said:
        record = _record(mention, records)
        if record and record["regions"]:
            seen += _at_height(record["regions"], sentence)
        else:
            links = _of(mention, FINDING_REGIONS) or ()
            boxes = [_usual(link.region) for link in links]
            usual += _at_height(_on_side(boxes, mention.side), sentence)
    regions = _unique([*seen, *usual])
    return [region for region in regions if region in seen or not any(_holds(other, region) for other in regions)]


def _usual(name: str) -> dict[str, Any]:
    return {"name": name, "box": list(REGIONS[name].box)}


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
    inside = np.zeros(len(scanpath), bool)
    for box in boxes:
        inside |= fixations_in(box, scanpath)
    return np.flatnonzero(inside).tolist()


def _unique(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for record in records:
        if record not in kept:
            kept.append(record)
    return kept
