"""Sentences for keywords: templates, and the check that any other writer's sentence has to pass.

No template grades a finding, and none hedges. `says` holds every sentence to the same: it knows the words of which a
plain statement is made, so that what a labeler has no word for cannot slip through either. Every template passes it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .findings import FINER_FINDINGS, HEIGHT_OF, HEIGHT_WORDS, implied, without_side
from .labeler import Side, label, sentences

Box = tuple[float, float, float, float]

WIDE = "Enlarged Cardiomediastinum"

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
SIGNS: dict[tuple[str, ...], str] = {
    **dict.fromkeys([(name, "Lung Opacity") for name in ("Lung Lesion", "Mass", "Nodule")], "a rounded opacity"),
    **dict.fromkeys([(name, "Lung Opacity") for name in ("Consolidation", "Pneumonia")], "airspace opacity"),
    ("Edema", "Lung Opacity"): "hazy opacity",
    ("Atelectasis", "Lung Opacity"): "linear opacity",
    ("Pneumonia", "Consolidation"): "consolidation",
    ("Pneumonia", "Consolidation", "Lung Opacity"): "consolidative opacity",
}
_SIGN_FRAMES = ("There {is} {sign}{place}, consistent with {noun}.", "{sign}{place} {is} in keeping with {noun}.")

# What lies in the middle has no side, and sentences of its own.
MIDLINE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("Cardiomegaly",): ("The heart is enlarged.", "The cardiac silhouette is enlarged.", "There is cardiomegaly."),
    (WIDE,): ("The mediastinum is widened.", "There is mediastinal widening."),
    ("Cardiomegaly", WIDE): ("The cardiomediastinal silhouette is enlarged.",),
    ("Hernia",): ("There is a hiatal hernia.", "A hiatal hernia projects behind the heart."),
}
NAMES = {finding: re.sub("^an? ", "", nouns[0]) for finding, nouns in _NOUNS.items()}
NAMES |= {"Cardiomegaly": "cardiomegaly", WIDE: "mediastinal widening", "Hernia": "hiatal hernia"}

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

_STOP, _WORD = re.compile(r"[\w)%]\.$"), re.compile(r"[^\W\d_]+")
_STUMP = re.compile(
    r"\b(?:an?|the|no|is|are|was|were|be|has|have|of|and|or|with|without|in|on|at|to|for|from|by|as|than)\.$"
)


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


def _pick(wordings: Sequence[Any], *key: str | None) -> Any:
    """The same wording for the same key, on every machine."""
    return wordings[zlib.crc32(repr(key).encode()) % len(wordings)]


def _numbered(noun: str, is_both: bool) -> tuple[str, str]:
    """The noun and its verb: "a mass", "is" becomes "masses", "are" on both sides."""
    counted = re.fullmatch("an? (.+)", noun)
    if not (counted and is_both):
        return noun, "is"
    return counted[1] + ("es" if noun.endswith("s") else "s"), "are"


def phrase(keyword: Keyword, said: tuple[str, ...]) -> str:
    """One sentence that asserts `said`: the finding itself, then findings above it."""
    key, is_both, place = (*said, keyword.region), keyword.side == "both", ""
    if said in MIDLINE:
        return _pick(MIDLINE[said], *key)
    noun, verb = _numbered(_pick(_NOUNS[keyword.finding], *key, "noun"), is_both)
    sign, verb = _numbered(SIGNS[said], is_both) if said in SIGNS else ("", verb)
    if keyword.region:
        stem = without_side(keyword.region)
        place = (_PLACES | _OWN_PLACES.get(keyword.finding, {}))[stem]
        place = place.format("both" if is_both else f"the {keyword.side}" if keyword.side else "the")
        place += "s" if is_both and not place.endswith("s") else ""
    frame = _pick(_SIGN_FRAMES if sign else _FRAMES, *key)
    return capital(frame.format(noun=noun, sign=sign, place=place and f" {place}", **{"is": verb}))


# The words of plain statements.
_FRAME_WORDS = (
    "a an and are as at beside by demonstrate demonstrated demonstrates evident film finding findings frontal has "
    "have here identified image in is its keeping noted of on over present projecting projects radiograph ray reveals "
    "seen show showing shown shows sided that the there this to view visible visualized which with within x "
    "consistent",
    "angle angles apex apical apices area around base bases basal basilar behind biapical bibasal bibasilar bilateral "
    "bilaterally both cardiac chest clavicle clavicles costophrenic field fields heart hemithorax hilar hilum left "
    "lingula lingular lobe lobes lower lung lungs mediastinal mediastinum mid middle perihilar pleura pleural portion "
    "pulmonary region regions retrocardiac right side sides silhouette spine structures thorax trachea tracheal upper "
    "wall walls zone zones along",
)
_TERMS = (
    "airspace change changes confluent defined focal hazy ill interstitial linear parenchymal patchy rounded",
    "atelectases cardiac cardiomediastinal consolidations densities density devices edematous effusions enlargement "
    "fractures infiltrates infiltration lesions masses nodules oedema opacification opacities size space spaces",
)

# What may stand beside the name of a finding, and nowhere else: alone it would be a finding of its own.
_DESCRIBED = re.compile(
    r"(?:\b(?:airspace|confluent|focal|hazy|ill-defined|interstitial|linear|parenchymal|patchy|rounded) )*$"
)
_CHANGED = re.compile(r"(?: changes?\b)?")

# Words that put a finding somewhere; plurals of what there is once on each side mean both.
_SIDES = {
    "left": re.compile(r"\b(?:left|lingula)"),
    "right": re.compile(r"\b(?:right|middle lobe)"),
    "both": re.compile(
        r"\b(?:both|bilateral|bi(?:bas|apic)|sides|bases|apices|lungs|zones|lobes|fields|angles|clavicles|regions|walls|portions|areas)"
    ),
}
_PARTS = HEIGHT_WORDS | {
    "middle": re.compile(r"\b(?:retrocardiac|behind|mediastin|trachea|spine|heart|cardiac|silhouette)"),
    "wall": re.compile(r"\b(?:walls?|pleura)\b"),
}
# Region without its side -> the words above that mean it.
_PART_OF = HEIGHT_OF | {
    "lung": "wall",
    **dict.fromkeys(("cardiac silhouette", "upper mediastinum", "trachea"), "middle"),
}


def canonical(name: str) -> str:
    """What a report calls a finding: a finer name's finding, where it is a kind of one."""
    return FINER_FINDINGS.get(name) or name


def capital(words: str) -> str:
    """The words with a capital in front."""
    return words[:1].upper() + words[1:]


def is_whole(sentence: str) -> bool:
    """Does it end as a sentence ends, and not in the middle?"""
    return bool(_STOP.search(sentence) and not _STUMP.search(sentence))


def says(sentence: str, keyword: Keyword, listed: Collection[str]) -> bool:
    """Does a sentence assert a keyword's finding, plainly, and nothing else?

    It is one whole sentence of the words of plain statements (no grade, number, hedge, comparison or other language),
    in which the labeler reads the finding as present, and beside it at most findings above it (`findings.implied`)
    that are `listed` too. It names no side but the keyword's, and no part of the lung but the keyword's region; it
    need not name either.

    Args:
        listed: names of all findings that are present.
    """
    if not re.fullmatch(r"[A-Z][A-Za-z,' -]*\.", sentence) or not is_whole(sentence) or len(sentences(sentence)) != 1:
        return False
    mentions = label(sentence).mentions
    own = canonical(keyword.finding)
    above = implied([keyword.finding]) & set(listed)
    if own not in {mention.finding for mention in mentions} or any(
        mention.status != "present"
        or mention.finding not in {own, *above}
        or mention.detail not in (None, keyword.finding)
        for mention in mentions
    ):
        return False
    words = sentence.lower()
    outside = words
    for mention in mentions:
        start = _DESCRIBED.search(words[: mention.start]).start()
        end = mention.end + _CHANGED.match(words[mention.end :]).end()
        outside = outside[:start] + " " * (end - start) + outside[end:]
    if set(_letters(outside)) - _PLAIN or set(_letters(words)) - _PLAIN - _NAMING:
        return False
    named = _named(words, _SIDES)
    sides = {"left", "right"} if "both" in named else named
    return sides in (set(), _sides_of(keyword)) and _parts(words, keyword)


def _parts(words: str, keyword: Keyword) -> bool:
    """Is no other part of the thorax named than the keyword's?"""
    stem = without_side(keyword.region or "")
    allowed = {_PART_OF.get(stem)} | ({"middle"} if (keyword.finding,) in MIDLINE else set())
    return _named(words.replace(stem, "") if stem else words, _PARTS) <= allowed


def _sides_of(keyword: Keyword) -> set[str]:
    return {"left", "right"} if keyword.side == "both" else {keyword.side} - {None}


def _named(words: str, table: Mapping[str, re.Pattern[str]]) -> set[str]:
    return {name for name, pattern in table.items() if pattern.search(words)}


def _letters(words: str) -> list[str]:
    return re.findall("[a-z]+", words.lower())


_PLAIN = frozenset(_letters(" ".join(_FRAME_WORDS)))
# What may stand in the name of a finding only.
_NAMING = frozenset(
    _letters(
        " ".join([*_TERMS, *SIGNS.values(), *(w for table in (_NOUNS, MIDLINE) for ws in table.values() for w in ws)])
    )
)
