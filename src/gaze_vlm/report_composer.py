"""Findings -> keywords -> regions -> sentences that agree with the findings, and never say more than they do.

Stage 2 of Eyes on the Image (arXiv 2508.13068): confidence-weighted keywords, a region for each by dictionary and
attention, sentences by a language model or by templates. The paper publishes neither dictionary nor prompt: both are
ours, and so is the agreement: whatever wrote the report, `gaze_vlm.labeler` reads back exactly what was listed.

A finding is a record as the command line prints it, `{"name", "probability", "present", "regions": [{"name",
"box"}]}`, boxes x1, y1, x2, y2 in 0..1 from the top left; a name without a record is not present, nor judged.
Confidence orders the sentences; it is no severity, so no template grades a finding, and none hedges.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from .findings import FINDING_REGIONS, FINDINGS, FINER_FINDINGS, NO_FINDING, READING_ORDER, REGIONS, Region, implied
from .labeler import Mention, Side, label, sentences
from .report_sentences import MIDLINE, NAMES, SIGNS, WIDE, Box, Keyword, canonical, capital, is_whole, phrase, says

Finding = dict[str, Any]
Writer = Callable[[list[Keyword]], Sequence[str | None]]
"""Keywords -> a candidate for the sentence of each, None where there is none; `ReportComposer.compose` checks them."""

# What a report names; the other finer findings go by the finding they are a kind of.
REPORTED = (*FINDINGS, *(name for name, finding in FINER_FINDINGS.items() if finding is None))

_ORDER = {name: place for place, name in enumerate(name for stage in READING_ORDER for name in stage.findings)}
_ORDER |= {finer: _ORDER[name] for finer, name in FINER_FINDINGS.items() if name}

# The finding behind which it is said -> what is normal there, the widest statement first.
_NORMAL: dict[str, tuple[str, ...]] = {
    "Atelectasis": ("The lungs are clear.", "There is no focal consolidation."),
    "Pleural Other": ("There is no pleural effusion or pneumothorax.", "No pneumothorax.", "No pleural effusion."),
    "Cardiomegaly": ("The cardiomediastinal silhouette is normal.", "Heart size is normal.", "Normal mediastinum."),
    "Fracture": ("The bony structures are intact.",),
}
_IMPRESSION = re.compile(r"(?:in )?(?:impression|conclusion|summary|overall)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class ComposedSentence:
    """A sentence and the listed finding that it asserts; None where it states what is normal, or sums up."""

    text: str
    finding: str | None = None
    confidence: float | None = None
    region: str | None = None
    box: Box | None = None
    source: Literal["template", "model"] = "template"


def text(composed: Iterable[ComposedSentence]) -> str:
    """The report as one paragraph."""
    return " ".join(sentence.text for sentence in composed)


def spans(composed: Iterable[ComposedSentence]) -> list[tuple[int, int]]:
    """Where each sentence starts and ends in `text`."""
    ends = list(accumulate(len(sentence.text) + 1 for sentence in composed))
    return [(start, end - 1) for start, end in zip([0, *ends], ends, strict=False)]


def choose_regions(finding: str, attention: np.ndarray | None = None) -> list[dict[str, Any]]:
    """The finding's regions of the dictionary, those that the classifier attended to first.

    A region counts by the attention in its box per unit of area, of which only what exceeds even attention is counted;
    kept are those with at least half as much as the best. A map that says nothing about them (none, nowhere 1 % above
    even, or above it only elsewhere) leaves all, in the dictionary's order.

    Half, and excess, were chosen on the boxes of NIH ChestX-ray14 and RSNA, most of them of training films: of 165
    pairs of film and finding the sides are named exactly for 78 %, with a third of the best for 74 %, with three
    quarters for 74 %, by whole density at its best share (0.85) for 69 %, by the dictionary's first region for 35 %.
    Of the 18 on validation films 11 are (by the dictionary 9).

    Args:
        finding: a name of `findings.FINDINGS` or `findings.FINER_FINDINGS`.
        attention: (rows, columns) over the whole film, row 0 on top; not negative, on any scale.

    Returns:
        `{"name", "box"}` each, boxes x1, y1, x2, y2 in 0..1 from the top left.
    """
    if finding not in FINDING_REGIONS:
        raise ValueError(f"unknown finding {finding!r}; allowed: {', '.join(FINDING_REGIONS)}")
    regions = [REGIONS[link.region] for link in FINDING_REGIONS[finding]]
    if attention is not None and regions:
        excess = _above_even(attention)
        density = np.array([_density(excess, region) for region in regions])
        if density.max() > 0:
            ranked = np.argsort(-density, kind="stable")
            least = (0.5 - 1e-9) * density.max()  # exactly half is half, whatever the grid rounds it to
            regions = [regions[i] for i in ranked if density[i] >= least]
    return [{"name": region.name, "box": list(region.box)} for region in regions]


def _above_even(attention: np.ndarray) -> np.ndarray:
    """(rows, columns) attention above even, in units of even attention; all zero for a flat map."""
    attention = np.asarray(attention, np.float64)
    if attention.ndim != 2 or not attention.size:
        raise ValueError(f"attention: shape {attention.shape}, expected (rows, columns)")
    wrong = np.argwhere(~(np.isfinite(attention) & (attention >= 0)))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"attention: {attention[row, column]} in row {row}, column {column}; expected 0 or more")
    attention = attention / (attention.max() or 1.0)  # so that no sum overflows
    excess = np.maximum(attention / (attention.mean() or 1.0) - 1, 0)
    return excess if excess.max() >= 0.01 else np.zeros_like(excess)


def _density(values: np.ndarray, region: Region) -> float:
    """Mean of a map over a region's box, cells by the share of them that lies in it."""
    x1, y1, x2, y2 = region.box
    rows, columns = (
        np.clip(np.minimum(high, (np.arange(count) + 1) / count) - np.maximum(low, np.arange(count) / count), 0, None)
        for count, low, high in zip(values.shape, (y1, x1), (y2, x2), strict=True)
    )
    return float(rows @ values @ columns / region.area)


def written_for(keyword: Keyword, draft: str, findings: Sequence[Finding]) -> str | None:
    """The first sentence of a draft that `report_sentences.says` passes for a keyword of the findings, if one does."""
    names = _listed_names(findings)
    said = (capital(" ".join(draft[start:end].split())) for start, end in sentences(draft))
    return next((sentence for sentence in said if says(sentence, keyword, names)), None)


class ReportComposer:
    """Findings -> a report whose every sentence keeps its finding, confidence and region."""

    def keywords(self, findings: Sequence[Finding]) -> list[Keyword]:
        """What is present, highest confidence first; a finding gives way to a more specific one that is present."""
        present = _present(findings)
        above = {name for record in present for name in implied([record["name"]]) - {record["name"]}}
        return [_keyword(record) for record in present if record["name"] not in above]

    def compose(self, findings: Sequence[Finding], writer: Writer | None = None) -> list[ComposedSentence]:
        """A report in the reading order: a sentence for each keyword, what is normal, and an impression.

        Normal is called what has a record that is not present, and nothing else; so for the impression of a film
        without findings, which needs a record of No Finding.

        Args:
            writer: writes the sentences of the keywords; one that `report_sentences.says` does not pass gives way to
                its template. None: templates. What is normal and the impression are templates.

        Raises:
            ValueError: if the writer gives another number of candidates than there are keywords, or one that is no
                text.
        """
        listed, keywords = _listed(findings), self.keywords(findings)
        written = self._written(keywords, findings, writer) if writer and keywords else {}
        rest = [keyword for keyword in keywords if keyword not in written]
        missing = listed - {NO_FINDING}
        for sentence in written.values():
            missing -= label(sentence.text).positive()
        said = [*written.values(), *self._state(findings, rest, missing)]
        rows = [(_ORDER[sentence.finding], sentence) for sentence in said]
        judged = {canonical(record["name"]) for record in findings}
        for behind, statements in _NORMAL.items():
            told = {words: label(words).mentions for words in statements}
            true = [w for w, all_of in told.items() if all(m.finding in judged and _fits(m, findings) for m in all_of)]
            rows += [(_ORDER[behind], ComposedSentence(words)) for words in true[:1]]
        ordered = [sentence for _, sentence in sorted(rows, key=lambda row: row[0])]
        names = [NAMES[keyword.finding] for keyword in keywords]
        if names:
            together = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
            ordered.append(ComposedSentence(f"Impression: {together}."))
        elif NO_FINDING in judged:
            ordered.append(ComposedSentence("Impression: no acute cardiopulmonary abnormality."))
        return ordered

    def _written(
        self, keywords: list[Keyword], findings: Sequence[Finding], writer: Writer
    ) -> dict[Keyword, ComposedSentence]:
        """The writer's sentences that pass, each once."""
        candidates = list(writer(keywords))
        if len(candidates) != len(keywords):
            raise ValueError(f"writer: {len(candidates)} candidates for {len(keywords)} keywords; each needs one")
        listed = _listed_names(findings)
        written: dict[Keyword, ComposedSentence] = {}
        for keyword, candidate in zip(keywords, candidates, strict=True):
            if not isinstance(candidate, str | None):
                raise ValueError(f"writer: {candidate!r:.80} for {keyword.finding}; expected a text or None")
            sentence = capital((candidate or "").strip())
            if says(sentence, keyword, listed) and sentence not in {one.text for one in written.values()}:
                written[keyword] = ComposedSentence(
                    sentence, keyword.finding, keyword.confidence, keyword.region, keyword.box, "model"
                )
        return written

    def reconcile(self, report: str, findings: Sequence[Finding]) -> list[ComposedSentence]:
        """A language model's report, made to agree with the findings of the same image.

        Dropped are sentences that assert what is not listed or on a side where it is not, that deny what is listed
        (or what stands above it), that hedge, break off, carry a de-identification mark, say one thing twice or,
        before the impression, nothing new. What is then missing is said by a template, before the impression. Where
        nothing is left, or the labeler still reads something else than the list, `compose` writes the whole report.
        """
        listed, spans, said = _listed(findings), sentences(report), set()
        result: list[ComposedSentence] = []
        for start, end in spans:
            sentence = self._keep(report[start:end], findings, is_last=end == spans[-1][1])
            if sentence is None:
                continue
            mentions = label(sentence.text).mentions
            told = [(m.finding, m.detail, m.side, m.status) for m in mentions]
            words = re.sub(r"\W+", " ", sentence.text.lower())
            is_new = not told or _is_impression(sentence.text) or not said.issuperset(told)
            if is_new and words not in said and len(set(told)) == len(told):
                result.append(sentence)
                said.update(told, [words])
        missing = listed - label(text(result)).positive() - {NO_FINDING}
        records = [record for record in _present(findings) if canonical(record["name"]) in missing]
        added = sorted(self._state(findings, self.keywords(records), missing), key=lambda s: _ORDER[s.finding])
        at = next((i for i, s in enumerate(result) if _is_impression(s.text)), len(result))
        merged = result[:at] + added + result[at:]
        return merged if result and label(text(merged)).positive() == listed else self.compose(findings)

    def _state(
        self, findings: Sequence[Finding], keywords: Sequence[Keyword], missing: frozenset[str]
    ) -> list[ComposedSentence]:
        """Template sentences for keywords that also assert what is `missing` (canonical names), and nothing else."""
        spoken = {keyword: (keyword.finding,) for keyword in keywords}
        for name in sorted(missing - {canonical(keyword.finding) for keyword in keywords}):
            records = _records_of(name, None, findings)
            for keyword, said in spoken.items():
                can_say = (*said, name) in SIGNS or (*said, name) in MIDLINE
                if can_say and _is_side_of(keyword.side, records):
                    spoken[keyword] = (*said, name)
                    break
            else:
                spoken[_keyword(records[0])] = (name,)
        return [
            ComposedSentence(phrase(k, said), k.finding, k.confidence, k.region, k.box) for k, said in spoken.items()
        ]

    def _keep(self, sentence: str, findings: Sequence[Finding], is_last: bool) -> ComposedSentence | None:
        """The sentence with what it asserts, or None where it cannot stay."""
        sentence = capital(" ".join(sentence.split()))
        mentions = label(sentence).mentions
        if mentions and sentence[-1].isalnum() and not is_last:  # a line of a list; the last one may be cut off
            sentence += "."
        is_said = is_whole(sentence) and (mentions or len(_WORD.findall(sentence)) >= 3)
        if not is_said or "XXX" in sentence.upper() or not all(_fits(mention, findings) for mention in mentions):
            return None
        told = [
            _keyword(_records_of(mention.finding, mention.detail, findings)[0], mention.side)
            for mention in mentions
            if mention.status == "present" and mention.finding != NO_FINDING
        ]
        if not told:
            return ComposedSentence(sentence, source="model")
        first = max(told, key=lambda keyword: keyword.confidence)
        return ComposedSentence(sentence, first.finding, first.confidence, first.region, first.box, "model")


def _present(findings: Sequence[Finding]) -> list[Finding]:
    present = [record for record in findings if record["present"] and record["name"] != NO_FINDING]
    return sorted(present, key=lambda record: (-record["probability"], record["name"]))


def _listed(findings: Sequence[Finding]) -> frozenset[str]:
    """What the labeler shall read from the report; as there, a film with only devices has no finding."""
    names = frozenset(canonical(record["name"]) for record in _present(findings))
    return names if names - {"Support Devices"} else names | {NO_FINDING}


def _listed_names(findings: Sequence[Finding]) -> frozenset[str]:
    """The names that a sentence may use: those listed, and what a report calls them."""
    return _listed(findings) | {record["name"] for record in _present(findings)}


def _records_of(finding: str, detail: str | None, findings: Sequence[Finding]) -> list[Finding]:
    """The present records that a mention can mean, the one with its very name first."""
    records = [record for record in _present(findings) if canonical(record["name"]) == finding]
    exact = [record for record in records if record["name"] == detail]
    return exact or sorted(records, key=lambda record: record["name"] != finding)


def _is_side_of(side: Side | None, records: Iterable[Finding]) -> bool:
    """Is the finding, as far as its records place it, on that side?"""
    known = {REGIONS[region["name"]].side for record in records for region in record["regions"]} & {"left", "right"}
    return side is None or not known or ({"left", "right"} if side == "both" else {side}) <= known


def _fits(mention: Mention, findings: Sequence[Finding]) -> bool:
    """Does a mention agree with the findings? A hedge never does: the listed is asserted, nothing else is raised."""
    listed = _listed(findings)
    if mention.status == "present":
        is_denied = any(record["name"] == mention.detail and not record["present"] for record in findings)
        records = _records_of(mention.finding, mention.detail, findings)
        return mention.finding in listed and not is_denied and _is_side_of(mention.side, records)
    # To deny what stands above a listed finding denies the finding; but a large heart may lie in a normal mediastinum.
    return mention.status == "absent" and mention.finding not in listed | (implied(listed) - {WIDE})


def _keyword(record: Finding, side: Side | None = None) -> Keyword:
    """`side`: where a sentence has put the finding already."""
    name, confidence = record["name"], record["probability"]
    boxes = {region["name"]: tuple(region["box"]) for region in record["regions"]}
    is_midline = (name,) in MIDLINE
    if side in ("left", "right"):
        boxes = {region: box for region, box in boxes.items() if REGIONS[region].side == side} or boxes
    elif side is None and not is_midline and set(boxes) == {link.region for link in FINDING_REGIONS[name]}:
        return Keyword(name, confidence)
    if not boxes:
        return Keyword(name, confidence)
    region, box = next(iter(boxes.items()))
    here = REGIONS[region].side
    if is_midline or here == "middle":
        return Keyword(name, confidence, region, None, box)
    other = boxes.get(region.replace(here, "left" if here == "right" else "right", 1))
    if not other:
        return Keyword(name, confidence, region, here, box)
    hull = (*map(min, box[:2], other[:2]), *map(max, box[2:], other[2:]))
    return Keyword(name, confidence, region, "both", hull)


def _is_impression(statement: str) -> bool:
    return bool(_IMPRESSION.match(statement)) or any(m.finding == NO_FINDING for m in label(statement).mentions)
