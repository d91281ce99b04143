"""What can be seen on a chest X-ray, and where: findings, thoracic regions, and the order in which they are read.

Everything here is data with small look-ups. `FINDINGS` is the vocabulary of the package; `SYNONYMS` brings the labels
of each released data set into it; `FINDING_REGIONS` says where each finding is looked for; `READING_ORDER` is the
ABCDEF search that is taught for chest films.

Frame of every box: x1, y1, x2, y2 in a frontal film, 0..1 from the top left. Left and right are the patient's, so
"right" lies on the left of the image.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

NO_FINDING = "No Finding"

FINDINGS: tuple[str, ...] = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    NO_FINDING,
)
"""The 14 observations of CheXpert (Irvin et al., AAAI 2019), in CheXbert's order (Smit et al., EMNLP 2020)."""

PARENTS: dict[str, str] = {
    "Cardiomegaly": "Enlarged Cardiomediastinum",
    "Lung Lesion": "Lung Opacity",
    "Edema": "Lung Opacity",
    "Consolidation": "Lung Opacity",
    "Pneumonia": "Consolidation",
    "Atelectasis": "Lung Opacity",
}
"""CheXpert's hierarchy, child to parent; what is not a key stands alone."""

FINER_FINDINGS: dict[str, str | None] = {
    "Infiltration": "Lung Opacity",
    "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion",
    "Fibrosis": "Lung Opacity",
    "Pleural Thickening": "Pleural Other",
    "Emphysema": None,
    "Hernia": None,
}
"""Names that NIH ChestX-ray14 has and CheXpert lacks, and the finding they are a kind of (None: no such finding)."""


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


_REFLACX_LATE = _same("Atelectasis", "Consolidation", "Pneumothorax") | {
    "Abnormal mediastinal contour": ("Enlarged Cardiomediastinum",),
    "Acute fracture": ("Fracture",),
    "Enlarged cardiac silhouette": ("Cardiomegaly",),
    "Enlarged hilum": (),
    "Groundglass opacity": ("Lung Opacity",),
    "Hiatal hernia": (),
    "High lung volume / emphysema": (),
    "Interstitial lung disease": ("Lung Opacity",),
    "Lung nodule or mass": ("Lung Lesion",),
    "Other": (),
    "Pleural abnormality": ("Pleural Effusion",),
    "Pulmonary edema": ("Edema",),
    "Support devices": ("Support Devices",),
}

SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "chexpert": _same(*FINDINGS),
    "nih14": _same("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pneumonia", "Pneumothorax", NO_FINDING)
    | {
        "Effusion": ("Pleural Effusion",),
        "Emphysema": (),
        "Fibrosis": ("Lung Opacity",),
        "Hernia": (),
        "Infiltration": ("Lung Opacity",),
        "Mass": ("Lung Lesion",),
        "Nodule": ("Lung Lesion",),
        "Pleural_Thickening": ("Pleural Other",),
    },
    "reflacx_phase1": _same("Atelectasis", "Consolidation", "Fracture", "Pneumothorax")
    | {
        "Airway wall thickening": (),
        "Emphysema": (),
        "Enlarged cardiac silhouette": ("Cardiomegaly",),
        "Fibrosis": ("Lung Opacity",),
        "Groundglass opacity": ("Lung Opacity",),
        "Mass": ("Lung Lesion",),
        "Nodule": ("Lung Lesion",),
        "Other": (),
        "Pleural effusion": ("Pleural Effusion",),
        "Pleural thickening": ("Pleural Other",),
        "Pulmonary edema": ("Edema",),
        "Quality issue": (),
        "Support devices": ("Support Devices",),
        "Wide mediastinum": ("Enlarged Cardiomediastinum",),
    },
    "reflacx_phase2": _REFLACX_LATE,
    "reflacx_phase3": _REFLACX_LATE,
    "egd_cxr": {f"{name.lower().replace(' ', '_')}__chx": (name,) for name in FINDINGS}
    | {
        "Normal": (NO_FINDING,),
        "CHF": ("Edema",),
        "pneumonia": ("Pneumonia",),
        "consolidation": ("Consolidation",),
        "enlarged_cardiac_silhouette": ("Cardiomegaly",),
        "linear__patchy_atelectasis": ("Atelectasis",),
        "lobar__segmental_collapse": ("Atelectasis",),
        "not_otherwise_specified_opacity___pleural__parenchymal_opacity__": ("Lung Opacity",),
        "pleural_effusion_or_thickening": ("Pleural Effusion",),
        "pulmonary_edema__hazy_opacity": ("Edema",),
        "normal_anatomically": (NO_FINDING,),
        "elevated_hemidiaphragm": (),
        "hyperaeration": (),
        "vascular_redistribution": ("Edema",),
    },
    "gazesearch": {name.lower(): (name,) for name in FINDINGS if name != NO_FINDING},
    "ms_cxr": _same(
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Edema",
        "Lung Opacity",
        "Pleural Effusion",
        "Pneumonia",
        "Pneumothorax",
    ),
}
"""Vocabulary -> its label as released -> our findings; an empty tuple where CheXpert has no word for it.

Choices: a label that leaves open which of two findings it means ("effusion or thickening", "pleural abnormality")
goes to the more frequent one; heart failure and vascular redistribution go to Edema, as CheXpert's labeler does.
"""

_FINER_SPELLINGS = {"high lung volume emphysema": "Emphysema", "hyperaeration": "Emphysema", "hiatal hernia": "Hernia"}


def _key(label: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", label.lower()))


_BY_VOCABULARY = {
    vocabulary: {_key(label): found for label, found in labels.items()} for vocabulary, labels in SYNONYMS.items()
}
_BY_SPELLING = (
    {key: found[0] for labels in _BY_VOCABULARY.values() for key, found in labels.items() if len(found) == 1}
    | {_key(name): name for name in (*FINER_FINDINGS, *FINDINGS)}
    | _FINER_SPELLINGS
)


def to_findings(label: str, vocabulary: str) -> tuple[str, ...]:
    """Findings (a subset of `FINDINGS`, possibly empty) that a data set's own label stands for.

    Case, spaces and underscores in `label` do not matter. `vocabulary` is a key of `SYNONYMS`.
    """
    if vocabulary not in SYNONYMS:
        raise ValueError(f"unknown vocabulary {vocabulary!r}; allowed: {', '.join(SYNONYMS)}")
    try:
        return _BY_VOCABULARY[vocabulary][_key(label)]
    except KeyError:
        allowed = ", ".join(SYNONYMS[vocabulary])
        raise ValueError(f"label {label!r} is not in vocabulary {vocabulary!r}; allowed: {allowed}") from None


def is_known(label: str) -> bool:
    """Whether some vocabulary of `SYNONYMS` has the label, be it a finding of ours or not ("enlarged hilum")."""
    return _key(label) in _BY_SPELLING or any(_key(label) in labels for labels in _BY_VOCABULARY.values())


def to_canonical(label: str) -> str:
    """One name of `FINDINGS` or `FINER_FINDINGS` for any spelling in any vocabulary, such as "pleural_effusion"."""
    key = _key(label)
    if key in _BY_SPELLING:
        return _BY_SPELLING[key]
    close = difflib.get_close_matches(key, _BY_SPELLING, n=3)
    names = list(dict.fromkeys(_BY_SPELLING[match] for match in close)) or [*FINDINGS, *FINER_FINDINGS]
    raise ValueError(f"unknown finding {label!r}; {'did you mean' if close else 'allowed'}: {', '.join(names)}")


def implied(findings: Iterable[str]) -> frozenset[str]:
    """The findings and all that stand above them in CheXpert's hierarchy; finer names lead to their finding."""
    closed: set[str] = set()
    for name in findings:
        if name not in FINDINGS and name not in FINER_FINDINGS:
            raise ValueError(f"unknown finding {name!r}; allowed: {', '.join((*FINDINGS, *FINER_FINDINGS))}")
        above: str | None = name
        while above:
            closed.add(above)
            above = PARENTS.get(above) or FINER_FINDINGS.get(above)
    return frozenset(closed)


@dataclass(frozen=True)
class Region:
    """A part of the thorax.

    Args:
        name: as in the bounding boxes of EGD-CXR (Karargyris et al., Scientific Data 2021).
        side: "left", "right", "both" or "middle", the patient's side.
        box: x1, y1, x2, y2 where it lies on an average upright frontal film, 0..1 from the top left. Drawn by us over
            NIH films: a place to look when the film at hand has no boxes, not a segmentation.
        stage: letter of the `READING_ORDER` stage in which it is read.
    """

    name: str
    side: str
    box: tuple[float, float, float, float]
    stage: str

    @property
    def area(self) -> float:
        """Share of the film that the box covers, 0..1."""
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1)


REGIONS: dict[str, Region] = {
    region.name: region
    for region in (
        Region("trachea", "middle", (0.45, 0.03, 0.55, 0.35), "A"),
        Region("right lung", "right", (0.13, 0.12, 0.47, 0.74), "B"),
        Region("left lung", "left", (0.53, 0.12, 0.87, 0.76), "B"),
        Region("right upper lung zone", "right", (0.17, 0.12, 0.47, 0.32), "B"),
        Region("left upper lung zone", "left", (0.53, 0.12, 0.83, 0.32), "B"),
        Region("right mid lung zone", "right", (0.14, 0.32, 0.46, 0.51), "B"),
        Region("left mid lung zone", "left", (0.54, 0.32, 0.86, 0.51), "B"),
        Region("right lower lung zone", "right", (0.13, 0.51, 0.46, 0.74), "B"),
        Region("left lower lung zone", "left", (0.54, 0.51, 0.87, 0.76), "B"),
        Region("cardiac silhouette", "middle", (0.37, 0.42, 0.70, 0.74), "C"),
        Region("upper mediastinum", "middle", (0.40, 0.12, 0.60, 0.42), "C"),
        Region("right hilar structures", "right", (0.32, 0.33, 0.45, 0.53), "C"),
        Region("left hilar structures", "left", (0.55, 0.30, 0.67, 0.50), "C"),
        Region("right costophrenic angle", "right", (0.10, 0.67, 0.23, 0.79), "D"),
        Region("left costophrenic angle", "left", (0.77, 0.69, 0.90, 0.81), "D"),
        Region("right clavicle", "right", (0.13, 0.08, 0.47, 0.20), "E"),
        Region("left clavicle", "left", (0.53, 0.08, 0.87, 0.20), "E"),
    )
}
"""The 17 anatomies that EGD-CXR boxes on every film, by name."""

_BY_AREA = sorted(REGIONS.values(), key=lambda region: region.area)


def regions_at(x: float, y: float) -> tuple[str, ...]:
    """Names of the regions whose default box holds the point (x, y in 0..1 from the top left), smallest first."""
    return tuple(r.name for r in _BY_AREA if r.box[0] <= x <= r.box[2] and r.box[1] <= y <= r.box[3])


@dataclass(frozen=True)
class RegionLink:
    """A region in which a finding is looked for, and why there."""

    region: str
    reason: str


def _links(*pairs: tuple[str, str]) -> tuple[RegionLink, ...]:
    """`sides` in front of a name stands for the right and the left region of that name."""
    links = []
    for name, reason in pairs:
        names = [name.replace("sides", side) for side in ("right", "left")] if name.startswith("sides") else [name]
        links += [RegionLink(region, reason) for region in names]
    return tuple(links)


FINDING_REGIONS: dict[str, tuple[RegionLink, ...]] = {
    "Enlarged Cardiomediastinum": _links(
        ("upper mediastinum", "a wide mediastinum is judged by its width at the aortic arch"),
        ("cardiac silhouette", "heart and great vessels share one outline"),
        ("trachea", "a mediastinal mass pushes or narrows the airway"),
    ),
    "Cardiomegaly": _links(
        ("cardiac silhouette", "the heart is measured against the inner width of the thorax"),
        ("left lower lung zone", "an enlarged left ventricle reaches towards the left chest wall"),
    ),
    "Lung Opacity": _links(
        ("sides lung", "whiteness anywhere in the lung field counts"),
        ("sides lower lung zone", "most opacities gather at the bases"),
        ("sides mid lung zone", "opacity around the fissures and behind the hilum shows here"),
        ("sides upper lung zone", "scars and reactivated tuberculosis favour the apices"),
    ),
    "Lung Lesion": _links(
        ("sides upper lung zone", "cancers favour the upper lobes and hide behind ribs and clavicle"),
        ("sides mid lung zone", "round shadows are compared side to side"),
        ("sides lower lung zone", "metastases follow the blood flow to the bases"),
        ("sides hilar structures", "a central tumour makes one hilum denser than the other"),
    ),
    "Edema": _links(
        ("sides hilar structures", "perihilar haze and blurred vessels come first"),
        ("sides lower lung zone", "septal lines and interstitial fluid collect at the bases"),
        ("sides upper lung zone", "upper vessels widen when pressure in the left atrium rises"),
        ("cardiac silhouette", "a large heart speaks for a cardiac cause"),
    ),
    "Consolidation": _links(
        ("sides lower lung zone", "gravity and aspiration fill the lower lobes"),
        ("sides mid lung zone", "middle lobe and lingula border the heart"),
        ("sides upper lung zone", "lobar filling stops sharply at a fissure"),
        ("cardiac silhouette", "a lost heart border or a retrocardiac density gives it away"),
    ),
    "Pneumonia": _links(
        ("sides lower lung zone", "the commonest site of infection"),
        ("sides mid lung zone", "middle lobe and lingular infection blurs the heart border"),
        ("sides upper lung zone", "cavitating infection favours the apices"),
        ("sides hilar structures", "draining nodes and perihilar spread thicken the hilum"),
    ),
    "Atelectasis": _links(
        ("sides lower lung zone", "plate-like bands lie just above the diaphragm"),
        ("cardiac silhouette", "a collapsed left lower lobe hides behind the heart"),
        ("sides hilar structures", "the hilum is pulled towards lost volume"),
        ("trachea", "the airway shifts towards a collapsed lobe"),
    ),
    "Pneumothorax": _links(
        ("sides upper lung zone", "air rises to the apex when the patient is upright"),
        ("sides clavicle", "the thin pleural line runs behind the clavicle"),
        ("sides costophrenic angle", "air in a lying patient deepens the sulcus"),
        ("trachea", "a shift away from it means tension"),
    ),
    "Pleural Effusion": _links(
        ("sides costophrenic angle", "fluid blunts the angle first"),
        ("sides lower lung zone", "a larger effusion climbs the lateral wall as a meniscus"),
    ),
    "Pleural Other": _links(
        ("sides costophrenic angle", "old scarring leaves a blunt angle that never changes"),
        ("sides lung", "plaques and thickening follow the chest wall"),
        ("sides upper lung zone", "apical caps sit above the lung apex"),
    ),
    "Fracture": _links(
        ("sides clavicle", "the clavicle breaks often and is seen in full"),
        ("sides lung", "ribs cross the lung field and are followed one by one"),
        ("upper mediastinum", "the upper thoracic spine shows through it"),
    ),
    "Support Devices": _links(
        ("trachea", "the tip of a tracheal tube is measured from the carina"),
        ("upper mediastinum", "central lines should end in the superior vena cava"),
        ("cardiac silhouette", "pacing leads, valves and sternal wires project over the heart"),
        ("sides upper lung zone", "ports and generators sit below the clavicle"),
        ("sides lower lung zone", "chest drains and feeding tubes end low"),
    ),
    NO_FINDING: (),
    "Infiltration": _links(
        ("sides lower lung zone", "ill-defined shadows gather at the bases"),
        ("sides mid lung zone", "patchy shadows spread from the hilum"),
        ("sides upper lung zone", "both apices are compared for haze"),
    ),
    "Mass": _links(
        ("sides upper lung zone", "apical tumours hide behind the first rib"),
        ("sides mid lung zone", "a large round shadow stands out from the vessels"),
        ("sides lower lung zone", "a mass near the diaphragm is easily covered"),
        ("sides hilar structures", "a central mass enlarges the hilum"),
        ("upper mediastinum", "a mass beside the mediastinum bulges its edge"),
    ),
    "Nodule": _links(
        ("sides upper lung zone", "nodules behind ribs and clavicle are missed most"),
        ("sides mid lung zone", "vessels seen end-on imitate nodules here"),
        ("sides lower lung zone", "nipple shadows must be told from nodules here"),
    ),
    "Fibrosis": _links(
        ("sides lower lung zone", "reticular scarring of usual fibrosis starts at the bases"),
        ("sides upper lung zone", "fibrosis after tuberculosis shrinks the upper lobes"),
        ("sides hilar structures", "a scarred upper lobe lifts the hilum"),
    ),
    "Pleural Thickening": _links(
        ("sides upper lung zone", "an apical cap lines the top of the lung"),
        ("sides costophrenic angle", "thickened pleura rounds the angle"),
        ("sides lung", "thickening runs along the lateral wall"),
    ),
    "Emphysema": _links(
        ("sides upper lung zone", "destroyed lung is black and poor in vessels, most at the top"),
        ("sides lung", "overfilled lungs are long and their field is dark"),
        ("sides costophrenic angle", "flat diaphragms open the angles"),
        ("cardiac silhouette", "a low diaphragm draws the heart narrow"),
    ),
    "Hernia": _links(
        ("cardiac silhouette", "a hiatal hernia is a bubble or density behind the heart"),
        ("left lower lung zone", "bowel through the diaphragm shows most on the left"),
    ),
}
"""Finding (canonical or finer) -> where it is looked for, with a reason; our own compilation of textbook signs."""


@dataclass(frozen=True)
class Stage:
    """One step of the reading: the regions looked over, and the findings decided there."""

    letter: str
    name: str
    regions: tuple[str, ...]
    findings: tuple[str, ...]


def _stage(letter: str, name: str, *findings: str) -> Stage:
    return Stage(letter, name, tuple(region.name for region in REGIONS.values() if region.stage == letter), findings)


READING_ORDER: tuple[Stage, ...] = (
    _stage("A", "airways"),
    _stage(
        "B",
        "breathing: lungs and pleura",
        *("Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis"),
        *("Pneumothorax", "Pleural Effusion", "Pleural Other"),
        *("Infiltration", "Mass", "Nodule", "Fibrosis", "Pleural Thickening", "Emphysema"),
    ),
    _stage("C", "circulation: heart, mediastinum, hila", "Enlarged Cardiomediastinum", "Cardiomegaly"),
    _stage("D", "diaphragm", "Hernia"),
    _stage("E", "everything else: bones, soft tissue", "Fracture"),
    Stage(
        "F",
        "foreign objects",
        tuple(link.region for link in FINDING_REGIONS["Support Devices"]),
        ("Support Devices",),
    ),
)
"""The ABCDEF search of a chest film. Each region has one stage (`Region.stage`); F looks again where devices lie."""

HEIGHT_WORDS: dict[str, re.Pattern[str]] = {
    "upper": re.compile(r"\b(?:upper|(?:bi)?apical|apex|apices|clavicle)", re.IGNORECASE),
    "mid": re.compile(r"\b(?:mid\b|middle|lingula|(?:peri)?hil(?:ar|um))", re.IGNORECASE),
    "lower": re.compile(r"\b(?:lower|base|basal|basilar|bibas|costophrenic)", re.IGNORECASE),
}
"""Height of the lung -> how a sentence names it."""

HEIGHT_OF: dict[str, str] = {
    **dict.fromkeys(("upper lung zone", "clavicle"), "upper"),
    **dict.fromkeys(("mid lung zone", "hilar structures"), "mid"),
    **dict.fromkeys(("lower lung zone", "costophrenic angle"), "lower"),
}
"""Region `without_side` -> the height that it lies at."""


def without_side(region: str) -> str:
    """A region's name without "left" or "right" in front."""
    return re.sub("^(?:left|right) ", "", region)


STAGE_WORDS: dict[str, re.Pattern[str]] = {
    letter: re.compile(rf"\b(?:{words})", re.IGNORECASE)
    for letter, words in {
        "A": r"airways?\b|trache|carina|bronch",
        "B": r"lungs?\b|pulmonary|pleura|lobes?\b|lobar|apices|apex|apical|bases?\b|basilar|interstiti|parenchym",
        "C": r"heart|cardiac|cardio(?:mediast|megal)|mediastin|aort|hil(?:um|a|ar)\b|pericard|vascul",
        "D": r"(?:hemi|sub)?diaphragm|costophrenic|free air",
        "E": r"bon(?:e|es|y)\b|osseous|ribs?\b|clavic|spin(?:e|al)\b|vertebra|soft tissue|shoulder|scapul|skelet",
        "F": r"tubes?\b|catheter|lines?\b|leads?\b|pacemaker|device|drain|port\b|wires?\b|clips?\b|prosthe|hardware"
        r"|foreign\b",
    }.items()
}
"""Letter of a stage -> words for places and things that are looked at there."""
