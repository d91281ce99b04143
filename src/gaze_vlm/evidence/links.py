"""Each sentence of a report linked to findings, regions and fixations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PureWindowsPath
from typing import Any

import numpy as np

from ..findings import (
    FINDING_REGIONS,
    FINDINGS,
    FINER_FINDINGS,
    HEIGHT_OF,
    HEIGHT_WORDS,
    NO_FINDING,
    READING_ORDER,
    REGIONS,
    implied,
    regions_at,
    without_side,
)
from ..keyframes import KeyFrame, key_frames, stage_of_text
from ..labeler import Mention, Side, label, named_side
from ..labeler import sentences as sentence_spans
from ..scanpath import Scanpath
from .bundle import EvidenceBundle, EvidenceError, EvidenceSentence
from .coverage import attention_share, coverage, fixations_in
from .flags import Opinion, denies, sentence_flags, zone_flags

Box = Sequence[float]
Places = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Regions that the classifier chose, and usual ones."""


def link_evidence(
    report: str,
    findings: Sequence[dict[str, Any]],
    scanpath: Scanpath | None,
    *,
    spans: Sequence[tuple[int, int]] | None = None,
    sources: Sequence[str] | None = None,
    image: dict[str, Any],
    model: dict[str, str],
    gaze: str,
    attention: Mapping[str, np.ndarray] | None = None,
    spoken: Sequence[dict[str, Any]] | None = None,
) -> EvidenceBundle:
    """Link each sentence of a report to findings, regions, fixations and key frames, and flag what does not agree.

    Args:
        report: the text; `labeler` reads the findings of its sentences.
        findings: the classifier's records `{"name", "probability", "present", "regions": [{"name", "box"}]}`.
        scanpath: the fixations in the image's frame, None when there are none.
        spans: where each sentence starts and ends in the report; those of `labeler.sentences` when left out.
        sources: "model" or "template" for each sentence; all "model" when left out.
        image: `{"name", "sha256", "width", "height"}`; of the name only the file's own part is kept.
        model: `{"name", "version"}`.
        gaze: where the scanpath comes from: "given", "predicted" or "none".
        attention: name of a finding -> the classifier's attention (rows, columns) over the film, whose sum is 1.
        spoken: dictated sentences `{"text", "start", "end"}` on the scanpath's clock, for key frames by sentence;
            None: key frames of windows of time.

    The regions of a sentence are those of every finding it names, whatever its status: one looks there to deny it,
    too. They are the classifier's, else the usual ones of `findings.FINDING_REGIONS`, in both cases on the side and at
    the height (upper, middle, lower) that the sentence names for them. A sentence that names a place and no finding
    has the regions of that stage of inspection, but for those on the side that it does not name.
    """
    spans = sentence_spans(report) if spans is None else spans
    sources = ["model"] * len(spans) if sources is None else sources
    if len(sources) != len(spans):
        raise EvidenceError(f"sources: {len(sources)}, sentences in the report: {len(spans)}")
    scanpath = Scanpath([], [], [], []) if scanpath is None else scanpath
    records = {record["name"]: record for record in findings}
    frames = key_frames(scanpath, spoken)
    linked, flags = [], []
    for index, ((start, end), source) in enumerate(zip(spans, sources, strict=True)):
        text = report[start:end]
        said = label(text).mentions
        places = [_places(mention, said, text, records) for mention in said]
        regions = _merged(places or [_places_of_stage(text)])
        fixations = _inside(scanpath, [region["box"] for region in regions])
        linked.append(
            EvidenceSentence(
                text=text,
                start=start,
                end=end,
                findings=_unique({"name": mention.finding, "status": mention.status} for mention in said),
                confidence=_confidence(said, records),
                regions=regions,
                fixations=fixations,
                key_frames=[i for i, frame in enumerate(frames) if not set(fixations).isdisjoint(frame.fixations)],
                stage=stage_of_text(text),
                source=source,
            )
        )
        opinions = [_opinions(mention, records) for mention in said]
        flags += sentence_flags(index, said, regions, [_merged([place]) for place in places], opinions, scanpath)
    seen = coverage(scanpath) if len(scanpath) else None
    # a name read from a disk may hold bytes that are no UTF-8, and control characters
    name = PureWindowsPath(str(image.get("name", ""))).name.encode("utf-8", "replace").decode()
    name = "".join(character if character.isprintable() else "?" for character in name)
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


def _opinions(mention: Mention, records: dict[str, dict[str, Any]]) -> list[Opinion]:
    """What the classifier says of a mention's finding, if it judges it; of a denial all that it lists nevertheless, on
    the side that is named."""
    if not denies(mention):
        record = _of(mention, records)
        return [_opinion_of(record, mention)] if record else []
    listed = [record for record in records.values() if record["present"] and _is_denied(record, mention, records)]
    return [opinion for record in listed if (opinion := _opinion_of(record, mention)).on_side]


def _opinion_of(record: dict[str, Any], mention: Mention) -> Opinion:
    on_side = not record["regions"] or bool(_on_side(record["regions"], mention.side))
    return Opinion(record["name"], record["probability"], record["present"], on_side)


def _is_denied(record: dict[str, Any], mention: Mention, records: dict[str, dict[str, Any]]) -> bool:
    """Does a denial leave no room for the record's finding: the same, one that implies it, or, where there is said to
    be no finding, any but a device?"""
    name = record["name"]
    if mention.finding == NO_FINDING:
        return name not in (NO_FINDING, "Support Devices")
    is_known = name in FINDINGS or name in FINER_FINDINGS
    return record is _of(mention, records) or (is_known and (mention.detail or mention.finding) in implied([name]))


_LIST_WORDS = re.compile(r"\b(?:and|or|but|with)\b", re.IGNORECASE)
_OTHER: dict[Side | None, Side] = {"left": "right", "right": "left"}

_STAGES = {stage.letter: stage.regions for stage in READING_ORDER}


def _places(mention: Mention, said: Sequence[Mention], sentence: str, records: dict[str, dict[str, Any]]) -> Places:
    """Where one of the mentions `said` in a sentence is looked for."""
    record, heights = _record(mention, records), _heights(sentence, mention, said)
    if record and record["regions"]:
        return _at_height(record["regions"], heights), []
    usual = [_usual(link.region) for link in _of(mention, FINDING_REGIONS) or ()]
    return [], _at_height(_on_side(usual, mention.side), heights)


def _places_of_stage(sentence: str) -> Places:
    """Where one looks for what a sentence says that names no finding."""
    regions, side = [_usual(name) for name in _STAGES.get(stage_of_text(sentence), ())], named_side(sentence)
    if side in _OTHER:
        regions = [region for region in regions if _side(region) != _OTHER[side]]
    return [], _at_height(regions, [height for _, height in _heights_named(sentence)])


def _merged(places: Sequence[Places]) -> list[dict[str, Any]]:
    """Regions `{"name", "box"}`, the classifier's first; a usual one that lies within another is left out."""
    seen = [region for classified, _ in places for region in classified]
    regions = _unique([*seen, *(region for _, usual in places for region in usual)])
    return [region for region in regions if region in seen or not any(_holds(other, region) for other in regions)]


def _heights_named(sentence: str) -> list[tuple[int, str]]:
    """Where a sentence names a height of the lung, and which, in the order of the text."""
    return sorted(
        (found.start(), height) for height, words in HEIGHT_WORDS.items() for found in words.finditer(sentence)
    )


def _heights(sentence: str, mention: Mention, said: Sequence[Mention]) -> list[str]:
    """The heights named in the mention's own part of the sentence, else the next before it, else the next after it.

    Between two mentions the commas separate, else the words of a list; what lies between separators is of both.
    """
    before = max((other.end for other in said if other.end <= mention.start), default=0)
    behind = min((other.start for other in said if other.start >= mention.end), default=len(sentence))
    if before and (places := _separators(sentence, before, mention.start)):
        before = places[0]
    if behind < len(sentence) and (places := _separators(sentence, mention.end, behind)):
        behind = places[-1]
    named = _heights_named(sentence)
    own = [height for place, height in named if before <= place < behind]
    earlier = [height for place, height in named if place < before]
    return own or earlier[-1:] or [height for _, height in named[:1]]


def _separators(sentence: str, start: int, end: int) -> list[int]:
    found = list(re.finditer("[,;]", sentence[start:end])) or _LIST_WORDS.finditer(sentence[start:end])
    return [start + match.start() for match in found]


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


def _at_height(regions: list[dict[str, Any]], heights: Sequence[str]) -> list[dict[str, Any]]:
    """Those at one of the heights; all of them when none is."""
    return [region for region in regions if HEIGHT_OF.get(without_side(region["name"])) in heights] or regions


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
