"""Report text -> findings, each with its status, side and place in the text.

Three tables hold the language: `_PHRASES` name a finding outright ("effusion"), `_ORGANS` name a structure that says
something only together with a `_PREDICATES` ("heart ... enlarged", "lungs ... clear"), and `_CUES` negate, weaken or
bound what stands around them. The engine below them works a sentence at a time and knows nothing of medicine.

The rules are our own, made for the vocabulary of `gaze_vlm.findings` on English chest X-ray reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from .findings import FINER_FINDINGS, NO_FINDING

Status = Literal["present", "absent", "uncertain"]
Side = Literal["left", "right", "both"]

# Finding (canonical or finer) and the phrases that name it. The first row that matches at a place wins.
_PHRASES: tuple[tuple[str, str], ...] = (
    ("Hernia", r"(?:hiatal|hiatus|diaphragmatic|para-?esophageal) hernias?"),
    ("Emphysema", r"(?<!subcutaneous )(?<!mediastinal )emphysema(?:tous)?(?: (?:change|disease)s?)?"),
    (
        "Pleural Thickening",
        r"(?:bi)?(?:pleural|apical|fissural)[ -](?:(?!effusion)\w+ ){0,2}?(?:thickening|cap(?:ping|s)?\b)"
        r"|thickening of the (?:\w+ )?(?:pleura|fissures?)\b",
    ),
    (
        "Pleural Other",
        r"pleural (?:(?!effusion)\w+ ){0,2}?(?:plaques?|scar(?:ring|s)?|calcifications?|mass(?:es)?|disease|reaction)"
        r"|pleur\w+[ /-]?parenchymal (?:\w+ )?(?:scar\w*|thickening)|(?:calcified|pleural-based) plaques?|fibrothorax",
    ),
    (
        "Pleural Effusion",
        r"hemothora\w+|(?:pleural |parapneumonic )?(?<!pericardial )effusions?|pleural fluid"
        r"|fluid (?:with)?in the (?:\w+ ){0,3}(?:fissures?|pleural spaces?)",
    ),
    ("Hydropneumothorax", r"(?:hydro|hemo)-?pneumothora\w+"),
    ("Pneumothorax", r"pneumothora\w+|pleural air"),
    (
        "Edema",
        r"(?:pulmonary |interstitial |alveolar )?o?edema|(?:congestive )?heart failure|chf\b|kerley \w+"
        r"|vascular (?:congestive|prominence)|venous hypertension"
        r"|(?:(?:pulmonary|vascular|venous) )*(?:congestion|engorgement)|(?:fluid|volume) overload|cephali[sz]ation",
    ),
    ("Atelectasis", r"atelecta\w+|lob(?:ar|e) collapse|collapse of (?:\w+ ){0,4}(?:lobe|lung)"),
    (
        "Pneumonia",
        r"(?:broncho)?pneumoni(?:as?|c|tis)\b"
        r"|(?<!granulomatous )(?<!histoplasmosis )(?<!tuberculous )infectio(?:n|us)\b",
    ),
    ("Consolidation", r"consolidat\w+"),
    ("Infiltration", r"infiltrat(?:es?|ions?|ive)\b"),
    ("Fibrosis", r"fibrosis|fibrotic"),
    ("Mass", r"mass(?:es)?\b(?! effect)"),
    ("Nodule", r"nodules?\b|nodularit\w+|(?:fibro)?nodular (?:\w+ )?(?:opacit|densit|lesion|foc|shadow)\w+"),
    (
        "Lung Lesion",
        r"granulomas?\b|granulomata|cavitary \w+|cavitation|carcinoma|neoplas\w+|malignan\w+|metasta\w+|tumou?rs?\b"
        r"|(?<!pleural )(?<!thoracic )(?<!abdominal )cavit(?:y|ies)\b|(?:lung|pulmonary) (?:lesion|cancer)s?",
    ),
    (
        "Fracture",
        r"(?:rib |clavic\w+ |compression )*(?<!catheter )(?<!wire )(?<!lead )fractur\w*"
        r"|(?:compression|wedge|wedging)(?: \w+)? deformit\w+"
        r"|(?:rib|clavic\w+|vertebra\w*)(?: body)? (?:deformit\w+|compression|wedging|height loss)"
        r"|deformit\w+ (?:of|in|within|involving) (?:[\w-]+ ){0,5}?(?:ribs?|clavicles?|vertebra\w*|spine|[tl]\d+)\b"
        r"|wedging of (?:\w+ ){0,4}vertebra\w*|loss of (?:vertebral )?(?:body )?height",
    ),
    (
        "Support Devices",
        r"(?:pic|central|venous|jugular|subclavian|midline|arterial|iv|ij) (?:\w+ )?lines?\b|picc\b(?: line)?"
        r"|catheters?|port-?a-?caths?|(?:media|chest |infusion |subclavian |jugular |injection )?-?ports?\b(?! of)"
        r"|(?:tracheostomy|endotracheal|nasogastric|orogastric|enteric|feeding|chest|ng|et|drainage|gastr\w+)"
        r" (?:\w+ )?tubes?|ett\b|tracheostomy|dobb?hoff|swan[- ]ganz|stents?\b|(?:stent|vascular) ?grafts?|drains?\b"
        r"|pacemakers?|pacers?\b|(?:pacing|pacer|pacemaker|icd|monitor\w*|atrial|ventricular) (?:lead|wire|device)s?"
        r"|a?icd\b|defibrillators?|(?:cardiac|implanted|medical|electronic|closure|support) (?:device|apparatus)\w*"
        r"|generators?\b|(?:spinal |nerve )?(?:neuro)?stimulators?|coils?\b|(?:bypass|cabg) markers?"
        r"|(?:sternal|sternotomy|cerclage) (?:\w+ )?(?:wires?|sutures?)"
        r"|(?:surgical |vascular |metallic |cabg )?clips?\b|sutures?\b|staples?\b|shunts?\b|ivc filter"
        r"|(?:\w+ )?valve (?:replacement|prosthes\w+)|prosthetic (?:\w+ )?(?:valve|shoulder|joint)s?\b"
        r"|(?:orthopedic |spinal |surgical |fusion |fixation )?(?:hardware|rods?\b|screws?)|loop recorder"
        r"|(?<!breast )prosthes[ie]s|arthroplast\w+",
    ),
    (
        "Enlarged Cardiomediastinum",
        r"mediastin(?:al|um) (?:widening|enlargement|prominence)|prominence of (?:the )?(?:\w+ )?mediastin\w+",
    ),
    ("Cardiomegaly", r"cardiomegaly|cardiac enlargement|enlargement of (?:the )?(?:heart|cardiac \w+)"),
    (
        "Lung Opacity",
        r"opaci\w+|air ?-?space (?:disease|process|shadow)\w*|haziness|scar(?:ring|s)?\b|cicatri\w+|ground[- ]?glass"
        r"|(?:interstitial|reticul\w+) (?:\w+ )?(?:markings?|pattern|change|disease|prominence|thickening)s?"
        r"|(?:increased|prominent|prominence of|coarse\w*|accentuated) (?:\w+ ){0,3}?(?:markings|interstiti\w+)"
        r"|(?:lung|pulmonary) markings (?:are|appear) (?:(?!not)\w+ ){0,2}?(?:increased|prominent|coarse\w*)"
        r"|reticulation|peribronchial (?:thickening|cuffing)|bronchial (?:wall )?thickening"
        r"|(?<!bone )(?<!bony )(?<!mineral )(?<!calcific )(?<!tissue )densit(?:y|ies)",
    ),
)

_BOTH = {"Hydropneumothorax": ("Pneumothorax", "Pleural Effusion")}  # air and fluid in one word

# Organ: findings that it speaks for, the predicates that go with it, and its names.
_ORGANS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "cardiomediastinum": (
        ("Enlarged Cardiomediastinum", "Cardiomegaly"),
        ("normal", "borderline", "enlarged"),
        r"cardio-? ?mediastin\w+(?: (?:silhouettes?|contours?|size))*",
    ),
    "heart": (
        ("Cardiomegaly",),
        ("normal", "borderline", "enlarged"),
        r"heart\b(?! (?:failure|border|valve|disease|rate))(?: (?:size|silhouette|shadow|contour)s?)*"
        r"|(?:cardiac|cardio\w*)(?: and mediastinal)? (?:silhouettes?|shadow|contours?|size)(?: size)?"
        r"|cardiac(?=,? (?:and )?mediastin)|transverse heart",
    ),
    "mediastinum": (
        ("Enlarged Cardiomediastinum",),
        ("normal", "borderline", "enlarged", "wide"),
        r"mediastin(?:um|al)(?: (?:silhouettes?|contours?|structures?|width|size|shadows?))*",
    ),
    "lungs": (
        ("Lung Opacity", "Consolidation"),
        ("normal", "clear", "abnormal"),
        r"lungs?\b(?! (?:volume|base|apex|apic|nodule|cancer))(?: (?:fields?|xxxx|parenchyma|zones?))?"
        r"|pulmonary(?= (?:\w+ ){0,2}(?:abnormal|disease|process|finding|patholog))",
    ),
    "pleura": (
        ("Pleural Effusion",),
        ("normal", "clear", "abnormal", "blunted"),
        r"pleural (?:spaces?|surfaces?|cavit(?:y|ies)|margins?)|(?:costophrenic|cp)\b(?: (?:angle|sulc|recess)\w*)?"
        r"|pleural?(?= (?:\w+ ){0,2}(?:abnormal|process|finding))",
    ),
    "vessels": (
        ("Edema",),
        ("normal", "congested", "enlarged", "increased"),
        r"(?:(?:central|lung|pulmonary) )*(?:vascula(?:rity|ture)|vascular (?:markings?|pattern)|vessels)\b",
    ),
    "bones": (
        ("Fracture",),
        ("normal", "intact", "abnormal"),
        r"(?:bon(?:y|es?)|osseous|skeletal|skeleton|ribs?|clavicles?)\b(?: (?:structures?|thorax|elements?))?",
    ),
    "chest": (
        (NO_FINDING,),
        ("normal", "clear", "abnormal"),
        r"cardio-?(?:pulmonary|thoracic|respiratory)|intra-?thoracic|chest\b(?! wall)(?: (?:x-?ray|radiograph)s?)?"
        r"|(?:acute|active)(?= (?:radiographic |thoracic )?(?:disease|process|abnormal|finding|patholog))",
    ),
}

# Predicate: the status it gives the organ's findings (for `abnormal`: only when negated), and its words.
_PREDICATES: dict[str, tuple[Status, str]] = {
    "borderline": ("uncertain", r"borderline|normal (?:to|or) (?:\w+ ){0,2}?enlarged"),
    "normal": (
        "absent",
        r"within (?:\w+ )?limits(?: of normal)?|(?<!not )normal(?:ly)?\b(?: limits)?|unremarkable|wnl\b"
        r"|upper limits?\b(?! (?:of )?normal)",
    ),
    "clear": ("absent", r"clear\b(?! of)|well[- ]aerated|sharp"),
    "intact": ("absent", r"intact"),
    "enlarged": (
        "present",
        r"enlarge[dm]\w*|prominen\w+|increased? in size|(?:is|are|appears?|remains?) (?:\w+ )?large\b",
    ),
    "wide": ("present", r"widen(?:ed|ing)|wide\b"),
    "increased": ("present", r"increased"),
    "congested": ("present", r"congest(?:ed|ion)|engorge(?:d|ment)|indistinct\w*|redistribut\w+|cephali[sz]\w+"),
    "blunted": ("uncertain", r"blunt\w+|obscur\w+"),
    "abnormal": ("absent", r"abnormalit(?:y|ies)|disease|process|findings?|patholog\w+|lesions?"),
}

_SEEN = (
    r"(?:seen|identified|noted|visuali[sz]ed|evident|present|demonstrated|detected|appreciated|observed|apparent|found"
    r"|suspected|shown)"
)
# Behind a comma, "and" or "with" these words start a new statement, which an earlier cue does not reach.
_RESTART = (
    r"(?:small|trace|tiny|stable|unchanged"
    r"|mild(?:ly)?|moderate(?:ly)?|minimal(?:ly)?|persistent|chronic|old|again|interval|possibl[ey]"
    r"|probabl[ey]|likely|questionable|there (?:is|are|has|may)|the (?:heart|lungs?|mediast|cardi)|degenerative"
    r"|heart|lungs|cardio\w+ (?:silhouette|is))\b"
)
# Cue -> words. `pseudo` cues only look like negations; `before` and `after` tell on which side the finding stands
# relative to the cue; `versus` stands between two. The first row that matches at a place wins.
_CUES: dict[str, str] = {
    "pseudo": r"(?:no|without|not)(?: (?:significant\w*|interval|appreciabl[ey]|definite|major|substantial\w*|obvious"
    r"|acute|new|other|further|xxxx|real|evidence of|much|any|large))* (?:chang(?:e|es|ed)|increas(?:e|ed)|worsening"
    r"|progression|improvement|difference|only)\b|no (?:comparison|prior|previous)",
    "uncertain_after": r"(?:cannot|can ?not|could not|not|difficult to) (?:be )?(?:entirely |completely )?"
    r"(?:be )?(?:excluded|ruled out)|(?:is|are|also|be) (?:possible|questioned|suspected|questionable)|not excluded"
    r"|(?:should|could) be considered|in the differential|(?:suspected|questioned)(?=$|[.,])"
    r"|(?:is|are|be) (?:an?|another|also an?) (?:\w+ )?(?:consideration|possibility|concern)",
    "uncertain_around": r"in the (?:appropriate|right|correct) (?:clinical )?setting",
    "versus": r"versus|vs\b",
    "uncertain_before": r"possibl[ey]|(?:may|might|could)\b|question\w*|suspect(?:ed)?\b|suspicious|suspicion"
    r"|concern(?:ing)?\b|worrisome|suggest\w*|equivocal|perhaps|potential(?:ly)?|alternatively|consider\w*|if\b"
    r"|(?:cannot|not|difficult to) (?:entirely |completely )?(?:exclude|rule out)|rule[ -]out|r/o\b"
    r"|borderline|(?:evaluat\w+|correlat\w+) (?:for|of(?! (?:the|this)\b))|symptoms of|less likely|differential"
    r"|etiolog\w+ include",
    "absent_after": r"(?:not|no longer|never) (?:\w+ )?" + _SEEN + r"|(?:is|are|has|have|been) (?:\w+ )?(?:resolved"
    r"|cleared|removed)|(?<!^)resolved|ruled out|excluded|(?:is|are) absent|unlikely|within (?:\w+ )?limits"
    r"|: (?:none\b|(?:no|negative|absent)(?=$|[.,;]))",
    "absent_before": r"(?:no|not|nor|without|w/o|neither|never)\b|negative\b(?: for)?|free (?:of|from)|clear of"
    r"|absence of|lack of|resolution of|^resolved|clearing of|removal of|rather than|fails? to",
    "soft_break": r"(?:,|and\b|with\b)(?= (?:and |with |a |an )*" + _RESTART + ")",
    "break": r"(?:but|however|except|although|though|despite|aside from|apart from|other than|otherwise|which"
    r"|whereas|while|(?<!be )secondary to|status post)\b|;",
}

_SIDES: dict[str, str] = {
    "both": r"bilateral\w*|both|bibasilar|bibasal|biapical|(?:right|left) (?:and|greater than|more than|or|&) "
    r"(?:the )?(?:left|right)|bases\b",
    "right": r"right(?:ward|-sided)?\b",
    "left": r"left(?:ward|-sided)?\b",
}
_SIDELESS = {"Cardiomegaly", "Enlarged Cardiomediastinum", "Hernia", NO_FINDING}

_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:dr|mr|mrs|ms|vs|approx|e\.g|i\.e|st|cf|fig|a\.m|p\.m|[a-z])\.$", re.I)
_LONGEST = 1000  # characters of a sentence
_GAP = re.compile(r" (?:(?!and\b|or\b|with\b)\w+ )?", re.IGNORECASE)
_CAUSE = re.compile(r"\b(?:with|represent\w*|reflect\w*|suggest\w*|(?:due|related|secondary) to)\b", re.IGNORECASE)
_VERB = re.compile(r"\b(?:is|are|remains?|appears?)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\s*(?:\(?\d{1,2}[.)](?!\d)|[-*•])\s*")
_BOUNDARY = re.compile(r"[.!?]+(?=\s|$|(?<=[a-z]\.)[A-Z][a-z])|\n\s*\n|\n(?=\s*(?:\d{1,2}[.)]|[-*•]|[A-Z ]+:)\s)")


def _compile(rows: Iterable[str], before: str = r"\b") -> re.Pattern[str]:
    """One pattern with a group per row: `match.lastindex - 1` is the row.

    Rows hold no capturing groups; each of their alternatives starts a word.
    """
    return re.compile(f"{before}(?:{'|'.join(f'({words})' for words in rows)})", re.IGNORECASE)


_PHRASE_RE = _compile((words for _, words in _PHRASES))
_ORGAN_RE = _compile(words for _, _, words in _ORGANS.values())
_PREDICATE_RE = _compile(words for _, words in _PREDICATES.values())
_CUE_RE = _compile(_CUES.values(), before=r"(?:\b|(?=[,;]))")
_SIDE_RE = _compile(_SIDES.values())


@dataclass(frozen=True)
class Mention:
    """One place where the text speaks of a finding.

    Args:
        finding: a name of `findings.FINDINGS`, or "Emphysema" or "Hernia", which have no place there.
        status: "present", "absent" or "uncertain", as the sentence says it.
        start, end: characters of the phrase in the report, `report[start:end] == text`.
        sentence: index into `sentences(report)`.
        text: the phrase.
        side: the patient's side that is named next to the phrase, if any.
        detail: the finer name (a key of `findings.FINER_FINDINGS`) where the phrase gives one.
    """

    finding: str
    status: Status
    start: int
    end: int
    sentence: int
    text: str
    side: Side | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Labels:
    """What a report says, mention by mention. Nothing is implied: close with `findings.implied` where wanted."""

    mentions: tuple[Mention, ...]

    @cached_property
    def status(self) -> dict[str, Status]:
        """Finding -> status over the whole report: present before uncertain before absent; unmentioned ones left out.

        "No Finding", when the report says so, is absent as soon as another finding contradicts it.
        """
        found: dict[str, Status] = {}
        for status in ("absent", "uncertain", "present"):
            found.update({mention.finding: status for mention in self.mentions if mention.status == status})
        if NO_FINDING in found and not self._is_clear(found):
            found[NO_FINDING] = "absent"
        return found

    @staticmethod
    def _is_clear(status: dict[str, Status]) -> bool:
        return all(value == "absent" for name, value in status.items() if name not in (NO_FINDING, "Support Devices"))

    def positive(self, uncertain_as_positive: bool = False) -> frozenset[str]:
        """The findings that are present.

        "No Finding" is among them when no other finding but Support Devices is present or uncertain (CheXpert's rule;
        Emphysema and Hernia count as findings here), so also for a text that mentions none.
        """
        wanted = ("present", "uncertain") if uncertain_as_positive else ("present",)
        names = {name for name, status in self.status.items() if status in wanted}
        return frozenset(names | {NO_FINDING} if self._is_clear(self.status) else names)


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans (start, end in characters) of the sentences, without surrounding blanks and list numbers."""
    spans, start = [], 0
    for end in _bounded([*_sentence_ends(text), len(text)]):
        number = _NUMBER.match(text, start, end)
        first = number.end() if number else start
        stripped = text[first:end].strip()
        if any(character.isalnum() for character in stripped):
            first += len(text[first:end]) - len(text[first:end].lstrip())
            spans.append((first, first + len(stripped)))
        start = end
    return spans


def _bounded(ends: list[int]) -> Iterator[int]:
    """Cut what no writer would call a sentence: time grows with the square of its length."""
    start = 0
    for end in ends:
        yield from range(start + _LONGEST, end, _LONGEST)
        yield end
        start = end


def _sentence_ends(text: str) -> Iterator[int]:
    start = 0
    for match in _BOUNDARY.finditer(text):
        piece = text[start : match.end()]
        if match.group() == "." and (_ABBREVIATION.search(piece[-8:]) or _NUMBER.fullmatch(piece)):
            continue
        start = match.end()
        yield start


def named_side(text: str) -> Side | None:
    """The patient's side that a text names, whatever of; "both" if it names both, None if none."""
    kinds = tuple(_SIDES)
    sides = {kinds[match.lastindex - 1] for match in _SIDE_RE.finditer(text)}
    return sides.pop() if len(sides) == 1 else "both" if sides else None


def label(text: str) -> Labels:
    """Read a report (or any text) into mentions of findings, in the order of the text."""
    mentions = []
    for index, (start, end) in enumerate(sentences(text)):
        # Runs of blanks and line breaks are read as one space; `places` leads back to the text.
        places = [i for i in range(start, end) if not (text[i].isspace() and text[i - 1].isspace())]
        sentence = "".join(" " if text[i].isspace() else text[i] for i in places)
        for name, status, a, b, side in _read(sentence):
            first, last = places[a], places[b - 1] + 1
            finer = FINER_FINDINGS.get(name)
            mentions.append(
                Mention(finer or name, status, first, last, index, text[first:last], side, name if finer else None)
            )
    return Labels(tuple(sorted(mentions, key=lambda mention: (mention.start, mention.end))))


@lru_cache(maxsize=4096)  # reports repeat their sentences
def _read(sentence: str) -> tuple[tuple[str, Status, int, int, Side | None], ...]:
    """Name, status, start, end and side of each mention in one sentence."""
    return tuple(_mentions(sentence))


def _mentions(sentence: str) -> Iterator[tuple[str, Status, int, int, Side | None]]:
    cues: dict[str, list[tuple[int, int]]] = {name: [] for name in _CUES}
    kinds = tuple(_CUES)
    for match in _CUE_RE.finditer(sentence):
        cues[kinds[match.lastindex - 1]].append(match.span())
    breaks = cues["break"] + cues["soft_break"]

    def is_said(certainty: str, a: int, b: int) -> bool:
        """Does a cue of this kind ("absent", "uncertain") reach the phrase at a..b?"""
        low, high = _clause(a, b, breaks, len(sentence))
        around = cues["uncertain_around"] if certainty == "uncertain" else []
        if any(low <= start < b for start, _ in cues[f"{certainty}_before"] + around):
            return True
        after = [start for start, _ in cues[f"{certainty}_after"] + around if b <= start < high]
        if any(_is_one_list(sentence[b:start]) for start in after):
            return True
        gaps = [sentence[min(b, end) : max(a, start)] for start, end in cues["versus"] if low <= start < high]
        return certainty == "uncertain" and any(_is_one_list(gap) and not _CAUSE.search(gap) for gap in gaps)

    def status_of(a: int, b: int, asserted: Status) -> Status:
        return "absent" if is_said("absent", a, b) else "uncertain" if is_said("uncertain", a, b) else asserted

    for match in _PHRASE_RE.finditer(sentence):
        phrase = _PHRASES[match.lastindex - 1][0]
        a, b = match.span()
        for name in _BOTH.get(phrase, (phrase,)):
            yield name, status_of(a, b, "present"), a, b, _side(sentence, name, a, b, breaks)
    for organ, predicate, a, b in _organ_statements(sentence, cues):
        status = _PREDICATES[predicate][0]
        if predicate == "abnormal" and not is_said("absent", a, b):
            continue
        if status != "absent":
            status = status_of(a, b, status)
        for name in _ORGANS[organ][0]:
            said = "present" if name == NO_FINDING else status
            yield name, said, a, b, _side(sentence, name, a, b, breaks)


def _is_one_list(between: str) -> bool:
    """Does a cue still mean a phrase: nothing between them, or a list "A, B or C"?"""
    return "," not in between or " or " in between or " and " in between


def _organ_statements(sentence: str, cues: dict[str, list[tuple[int, int]]]) -> Iterator[tuple[str, str, int, int]]:
    """Organ, predicate and the span of both.

    A predicate right before its organ wins ("normal heart"), then the next one ("heart and aorta are normal"), then
    one that opens the list ("normal heart and mediastinum").
    """
    organs, kinds = tuple(_ORGANS), tuple(_PREDICATES)
    predicates = [(kinds[m.lastindex - 1], *m.span()) for m in _PREDICATE_RE.finditer(sentence)]
    found = [(organs[m.lastindex - 1], *m.span()) for m in _ORGAN_RE.finditer(sentence)] if predicates else []
    for organ, a, b in found:
        low, high = _clause(a, b, cues["break"], len(sentence))
        list_low = _clause(a, b, cues["soft_break"], len(sentence))[0]
        fitting = [p for p in predicates if p[0] in _ORGANS[organ][1] and low <= p[1] and p[2] <= high]
        attached = (p for p in reversed(fitting) if p[2] <= a and _GAP.fullmatch(sentence[p[2] : a]))
        after = (p for p in fitting if p[1] >= b and _is_said_of(sentence, b, p, [o for _, o, _ in found]))
        opening = (p for p in fitting if list_low <= p[1] and p[2] <= a and found[0][1] > p[1])
        chosen = next(attached, None) or next(after, None) or next(opening, None)
        if chosen:
            yield organ, chosen[0], min(a, chosen[1]), max(b, chosen[2])


def _is_said_of(sentence: str, end: int, predicate: tuple[str, int, int], organs: list[int]) -> bool:
    """Is the predicate said of the organ that ends before it, or of another organ that starts in between or behind?"""
    _, start, behind = predicate
    between = sentence[end:start]
    if " with " in between:
        return False
    others = [organ for organ in organs if organ >= end]
    return not any(
        _VERB.search(sentence[end:organ]) if organ < start else _GAP.fullmatch(sentence[behind:organ])
        for organ in others
    )


def _clause(a: int, b: int, breaks: list[tuple[int, int]], length: int) -> tuple[int, int]:
    """Where the clause around a..b begins and ends."""
    low = max((end for _, end in breaks if end <= a), default=0)
    return low, min((start for start, _ in breaks if start >= b), default=length)


def _side(sentence: str, name: str, a: int, b: int, breaks: list[tuple[int, int]]) -> Side | None:
    """The side named in the same member of the list, else before it in the clause, else after it."""
    if name in _SIDELESS:
        return None
    sides, kinds = [(m.lastindex, *m.span()) for m in _SIDE_RE.finditer(sentence)], tuple(_SIDES)
    if not sides:
        return None
    low, high = _clause(a, b, breaks, len(sentence))
    commas = [m.start() for m in re.finditer(r",| and ", sentence)]
    near_low = max((c for c in commas if low <= c < a), default=low)
    near_high = min((c for c in commas if b <= c < high), default=high)
    before = [(start, kind) for kind, start, end in sides if start >= low and end <= a]
    after = [(start, kind) for kind, start, end in sides if start >= a and end <= high]
    near_before = [kind for start, kind in before if start >= near_low]
    near_after = [kind for start, kind in after if start < near_high]
    far = [kind for _, kind in before[-1:] or after[:1]]
    named = near_before or near_after or far
    if not named:
        return None
    return kinds[named[0] - 1] if len(set(named)) == 1 else "both"
