"""Findings -> keywords -> regions -> sentences that agree with the findings, and never say more than they do.

Stage 2 of Eyes on the Image (arXiv 2508.13068): confidence-weighted keywords, a region for each by dictionary and
attention, sentences by a language model or by templates. The paper publishes neither dictionary nor prompt: both are
ours, and so is the agreement: whatever wrote the report, `gaze_vlm.labeler` reads back exactly what was listed.

A finding is a record as the command line prints it, `{"name", "probability", "present", "regions": [{"name",
"box"}]}`, boxes x1, y1, x2, y2 in 0..1 from the top left; a name without a record is not present. Confidence orders
the sentences; it is no severity, so no template grades a finding, and none hedges.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .findings import FINDING_REGIONS, FINDINGS, FINER_FINDINGS, NO_FINDING, READING_ORDER, REGIONS, implied
from .labeler import Mention, Side, label, sentences

Box = tuple[float, float, float, float]
Finding = dict[str, Any]

# What a report names; the other finer findings go by the finding they are a kind of.
REPORTED = (*FINDINGS, *(name for name, finding in FINER_FINDINGS.items() if finding is None))

_ORDER = {name: place for place, name in enumerate(name for stage in READING_ORDER for name in stage.findings)}
_ORDER |= {finer: _ORDER[name] for finer, name in FINER_FINDINGS.items() if name}
_WIDE = "Enlarged Cardiomediastinum"

# Finding -> its wordings. One with an article becomes a plural where the finding is on both sides.
_NOUNS: dict[str, tuple[str, ...]] = {
    "Lung Opacity": ("airspace opacity", "hazy opacity", "ill-defined opacity"),
    "Lung Lesion": ("a pulmonary lesion", "a focal lung lesion"),
    "Edema": ("pulmonary edema", "interstitial edema"),
    "Consolidation": ("consolidation", "confluent consolidation"),
    "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis", "atelectatic change"),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("a pleural effusion", "pleural fluid"),
    "Pleural Other": ("pleural disease", "pleural reaction"),
    "Fracture": ("a fracture",),
    "Support Devices": ("a support device",),
    "Infiltration": ("an infiltrate", "patchy infiltration"),
    "Mass": ("a mass", "a pulmonary mass"),
    "Nodule": ("a nodule", "a pulmonary nodule"),
    "Fibrosis": ("fibrosis", "fibrotic change"),
    "Pleural Thickening": ("pleural thickening",),
    "Emphysema": ("emphysema", "emphysematous change"),
}
_FRAMES = ("There {is} {noun}{place}.", "{noun} {is} seen{place}.", "The film shows {noun}{place}.")

# A finding and listed findings above it -> the sign that names those, so that one sentence says them all.
_SIGNS: dict[tuple[str, ...], str] = {
    **dict.fromkeys([(name, "Lung Opacity") for name in ("Lung Lesion", "Mass", "Nodule")], "a rounded opacity"),
    **dict.fromkeys([(name, "Lung Opacity") for name in ("Consolidation", "Pneumonia")], "airspace opacity"),
    ("Edema", "Lung Opacity"): "hazy opacity",
    ("Atelectasis", "Lung Opacity"): "linear opacity",
    ("Pneumonia", "Consolidation"): "consolidation",
    ("Pneumonia", "Consolidation", "Lung Opacity"): "consolidative opacity",
}
_SIGN_FRAMES = ("There {is} {sign}{place}, consistent with {noun}.", "{sign}{place} {is} in keeping with {noun}.")

# What lies in the middle has no side, and sentences of its own.
_MIDLINE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("Cardiomegaly",): ("The heart is enlarged.", "The cardiac silhouette is enlarged.", "There is cardiomegaly."),
    (_WIDE,): ("The mediastinum is widened.", "There is mediastinal widening."),
    ("Cardiomegaly", _WIDE): ("The cardiomediastinal silhouette is enlarged.",),
    ("Hernia",): ("There is a hiatal hernia.", "A hiatal hernia projects behind the heart."),
}
_NAMES = {finding: re.sub("^an? ", "", nouns[0]) for finding, nouns in _NOUNS.items()}
_NAMES |= {"Cardiomegaly": "cardiomegaly", _WIDE: "mediastinal widening", "Hernia": "hiatal hernia"}

# Region without its side -> place, {} for the side; then what some findings say otherwise.
_PLACES: dict[str, str] = {
    **{name: f"in {{}} {name}" for name in ("lung", "upper lung zone", "mid lung zone", "lower lung zone")},
    "hilar structures": "in {} perihilar region",
    "costophrenic angle": "in {} lower lung zone",
    "clavicle": "in {} upper lung zone",
    "cardiac silhouette": "in the retrocardiac region",
    "upper mediastinum": "beside the mediastinum",
    "trachea": "",
}
_PLEURAL = dict.fromkeys(("upper lung zone", "clavicle"), "in {} apical region") | {"lung": "along {} chest wall"}
_PLEURAL |= dict.fromkeys(("lower lung zone", "costophrenic angle"), "at {} lung base")
_OWN_PLACES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("Pneumothorax", "Pleural Effusion", "Pleural Other", "Pleural Thickening"), _PLEURAL),
    "Edema": {"cardiac silhouette": "around the heart"},
    "Emphysema": {"cardiac silhouette": ""},
    "Fracture": {"lung": "along {} chest wall", "clavicle": "in {} clavicle", "upper mediastinum": "in the spine"},
    "Support Devices": {stem: f"projecting over {{}} {stem}" for stem in _PLACES},
}

# The finding behind which it is said -> what is normal there, the widest statement first.
_NORMAL: dict[str, tuple[str, ...]] = {
    "Atelectasis": ("The lungs are clear.", "There is no focal consolidation."),
    "Pleural Other": ("There is no pleural effusion or pneumothorax.", "No pneumothorax.", "No pleural effusion."),
    "Cardiomegaly": ("The cardiomediastinal silhouette is normal.", "Heart size is normal.", "Normal mediastinum."),
    "Fracture": ("The bony structures are intact.",),
}
_IMPRESSION = re.compile(r"(?:in )?(?:impression|conclusion|summary|overall)\b", re.IGNORECASE)
_STOP, _WORD = re.compile(r"[\w)%]\.$"), re.compile(r"[^\W\d_]+")
_STUMP = re.compile(
    r"\b(?:an?|the|no|is|are|was|were|be|has|have|of|and|or|with|without|in|on|at|to|for|from|by|as|than)\.$"
)

_PROMPT = """\
Write the text of a chest X-ray report for a frontal film.

Each line below is one keyword, the most certain first, as a JSON object: "finding" is what is seen, "confidence" how
sure the image classifier is (0 to 1), "region" the part of the thorax where it was seen or null, "side" the patient's
side ("left", "right", "both") or null.

- Give every keyword one sentence that states it plainly as present, without doubt, grade or measurement.
- Name a region or a side only where the keyword has one.
- Mention nothing abnormal that is not among the keywords. What they leave out may be called normal.
- Do not compare with earlier films. Answer with plain sentences only, the last one a summary.

Keywords:
"""


@dataclass(frozen=True)
class Keyword:
    """What one sentence has to say.

    Args:
        finding: a name of `findings.FINDINGS` or `findings.FINER_FINDINGS`.
        confidence: the classifier's probability, 0..1.
        region: the first of the record's regions. None where the record has none, or has all that the dictionary
            knows for the finding, which says nothing about its place.
        side: the patient's side; "both" where the record has the region on both sides.
        box: of the region (of both, where it is on both sides), x1, y1, x2, y2 in 0..1 from the top left.
    """

    finding: str
    confidence: float
    region: str | None = None
    side: Side | None = None
    box: Box | None = None


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


def choose_regions(finding: str, attention_box: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """The finding's regions of the dictionary, those that the classifier attended to first.

    `attention_box` is x1, y1, x2, y2 in 0..1 from the top left. A region counts by the share of it that the box
    covers, then by the distance of the centres; kept are those with at least half the share of the best one, or the
    nearest where the box meets none. Without a box all of them, in the dictionary's order. Each is {"name", "box"}.
    """
    if finding not in FINDING_REGIONS:
        raise ValueError(f"unknown finding {finding!r}; allowed: {', '.join(FINDING_REGIONS)}")
    regions = [REGIONS[link.region] for link in FINDING_REGIONS[finding]]
    if attention_box is not None and regions:
        x1, y1, x2, y2 = attention_box
        if not (x1 < x2 and y1 < y2):
            raise ValueError(f"attention_box: {tuple(attention_box)}, expected x1 < x2 and y1 < y2")
        ranked = []
        for region in regions:
            left, top, right, bottom = region.box
            width, height = min(x2, right) - max(x1, left), min(y2, bottom) - max(y1, top)
            share = max(width, 0.0) * max(height, 0.0) / region.area
            ranked.append((-share, (x1 + x2 - left - right) ** 2 + (y1 + y2 - top - bottom) ** 2, region))
        ranked.sort(key=lambda row: row[:2])
        best = ranked[0][0]
        regions = [region for share, _, region in ranked if share <= best / 2] if best else [ranked[0][2]]
    return [{"name": region.name, "box": list(region.box)} for region in regions]


class ReportComposer:
    """Findings -> a report whose every sentence keeps its finding, confidence and region."""

    def keywords(self, findings: Sequence[Finding]) -> list[Keyword]:
        """What is present, highest confidence first; a finding gives way to a more specific one that is present."""
        present = _present(findings)
        above = {name for record in present for name in implied([record["name"]]) - {record["name"]}}
        return [_keyword(record) for record in present if record["name"] not in above]

    def prompt(self, keywords: Sequence[Keyword]) -> str:
        """Structured prompt for any chat model; pass its answer to `reconcile`."""
        lines = [
            {"finding": k.finding, "confidence": round(k.confidence, 2), "region": k.region, "side": k.side}
            for k in keywords
        ]
        return _PROMPT + ("\n".join(map(json.dumps, lines)) or "(none: the film is normal)")

    def compose(self, findings: Sequence[Finding]) -> list[ComposedSentence]:
        """A report from templates, in the reading order: what is present, what is normal, and an impression."""
        listed = _listed(findings)
        rows = [(_ORDER[s.finding], s) for s in self._state(findings, listed - {NO_FINDING})]
        for behind, statements in _NORMAL.items():
            true = [words for words in statements if all(_fits(m, findings) for m in label(words).mentions)]
            rows += [(_ORDER[behind], ComposedSentence(words)) for words in true[:1]]
        names = [_NAMES[keyword.finding] for keyword in self.keywords(findings)]
        together = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        summary = (
            "Impression: no acute cardiopulmonary abnormality." if NO_FINDING in listed else f"Impression: {together}."
        )
        return [sentence for _, sentence in sorted(rows, key=lambda row: row[0])] + [ComposedSentence(summary)]

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
        added = sorted(self._state(findings, missing), key=lambda s: _ORDER[s.finding])
        at = next((i for i, s in enumerate(result) if _is_impression(s.text)), len(result))
        merged = result[:at] + added + result[at:]
        return merged if result and label(text(merged)).positive() == listed else self.compose(findings)

    def _state(self, findings: Sequence[Finding], missing: frozenset[str]) -> list[ComposedSentence]:
        """Template sentences that assert `missing` (canonical names) and nothing else."""
        records = {record["name"]: record for record in _present(findings) if _canonical(record["name"]) in missing}
        keywords = {keyword: (keyword.finding,) for keyword in self.keywords(list(records.values()))}
        for name in sorted(missing - {_canonical(keyword.finding) for keyword in keywords}):
            for keyword, said in keywords.items():
                can_say = (*said, name) in _SIGNS or (*said, name) in _MIDLINE
                if can_say and _is_side_of(keyword.side, _records_of(name, None, findings)):
                    keywords[keyword] = (*said, name)
                    break
            else:
                keywords[_keyword(records[name])] = (name,)
        return [
            ComposedSentence(_phrase(k, said), k.finding, k.confidence, k.region, k.box)
            for k, said in keywords.items()
        ]

    def _keep(self, sentence: str, findings: Sequence[Finding], is_last: bool) -> ComposedSentence | None:
        """The sentence with what it asserts, or None where it cannot stay."""
        sentence = _capital(" ".join(sentence.split()))
        mentions = label(sentence).mentions
        if mentions and sentence[-1].isalnum() and not is_last:  # a line of a list; the last one may be cut off
            sentence += "."
        is_whole = _STOP.search(sentence) and not _STUMP.search(sentence)
        is_whole = is_whole and (mentions or len(_WORD.findall(sentence)) >= 3)
        if not is_whole or "XXX" in sentence.upper() or not all(_fits(mention, findings) for mention in mentions):
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


def _canonical(name: str) -> str:
    return FINER_FINDINGS.get(name) or name


def _present(findings: Sequence[Finding]) -> list[Finding]:
    present = [record for record in findings if record["present"] and record["name"] != NO_FINDING]
    return sorted(present, key=lambda record: (-record["probability"], record["name"]))


def _listed(findings: Sequence[Finding]) -> frozenset[str]:
    """What the labeler shall read from the report; as there, a film with only devices has no finding."""
    names = frozenset(_canonical(record["name"]) for record in _present(findings))
    return names if names - {"Support Devices"} else names | {NO_FINDING}


def _records_of(finding: str, detail: str | None, findings: Sequence[Finding]) -> list[Finding]:
    """The present records that a mention can mean, the one with its very name first."""
    records = [record for record in _present(findings) if _canonical(record["name"]) == finding]
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
    return mention.status == "absent" and mention.finding not in listed | (implied(listed) - {_WIDE})


def _keyword(record: Finding, side: Side | None = None) -> Keyword:
    """`side`: where a sentence has put the finding already."""
    name, confidence = record["name"], record["probability"]
    boxes = {region["name"]: tuple(region["box"]) for region in record["regions"]}
    is_midline = (name,) in _MIDLINE
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


def _pick(wordings: Sequence[Any], *key: str | None) -> Any:
    """The same wording for the same key, on every machine."""
    return wordings[zlib.crc32(repr(key).encode()) % len(wordings)]


def _is_impression(statement: str) -> bool:
    return bool(_IMPRESSION.match(statement)) or any(m.finding == NO_FINDING for m in label(statement).mentions)


def _numbered(noun: str, is_both: bool) -> tuple[str, str]:
    """The noun and its verb: "a mass", "is" becomes "masses", "are" on both sides."""
    counted = re.fullmatch("an? (.+)", noun)
    if not (counted and is_both):
        return noun, "is"
    return counted[1] + ("es" if noun.endswith("s") else "s"), "are"


def _phrase(keyword: Keyword, said: tuple[str, ...]) -> str:
    """One sentence that asserts `said`: the finding itself, then findings above it."""
    key, is_both, place = (*said, keyword.region), keyword.side == "both", ""
    if said in _MIDLINE:
        return _pick(_MIDLINE[said], *key)
    noun, verb = _numbered(_pick(_NOUNS[keyword.finding], *key, "noun"), is_both)
    sign, verb = _numbered(_SIGNS[said], is_both) if said in _SIGNS else ("", verb)
    if keyword.region:
        stem = re.sub("^(?:left|right) ", "", keyword.region)
        place = (_PLACES | _OWN_PLACES.get(keyword.finding, {}))[stem]
        place = place.format("both" if is_both else f"the {keyword.side}" if keyword.side else "the")
        place += "s" if is_both and not place.endswith("s") else ""
    frame = _pick(_SIGN_FRAMES if sign else _FRAMES, *key)
    return _capital(frame.format(noun=noun, sign=sign, place=place and f" {place}", **{"is": verb}))


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]
