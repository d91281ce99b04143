"""NIH's films as evaluate.py measures them: films, labels, boxes, patients."""

from pathlib import Path
from typing import NamedTuple

from datasets import Image

from gaze_vlm.data import load
from gaze_vlm.data.matching import present_findings
from gaze_vlm.findings import FINDINGS, FINER_FINDINGS
from gaze_vlm.images import Film, read_film


def films_of(root: Path, split: str):
    """Films of a split, the findings labelled there in NIH's words, and their patients."""
    rows = load("nih_cxr", root)[split].cast_column("image", Image(decode=False))
    films = [read_film(image["path"]) for image in rows["image"]]
    return films, [present_findings(row) for row in rows], list(rows["patient_id"])


def canonical(names) -> frozenset[str]:
    """NIH's findings in CheXpert's words; what those have no word for is left out."""
    return frozenset(FINER_FINDINGS.get(name, name) for name in names) & set(FINDINGS)


class Boxed(NamedTuple):
    """A film and its boxes of one finding."""

    film: Film
    patient: str
    finding: str
    by_rsna: bool
    boxes: list


def boxed_films(root: Path, split: str) -> list[Boxed]:
    rows = load("nih_cxr", root)[split].cast_column("image", Image(decode=False))
    cases = []
    for row in rows:
        by_finding: dict[tuple, list] = {}
        for box in row["boxes"] or ():
            by_finding.setdefault((box["name"], box["annotator"] == "RSNA"), []).append(box["box"])
        film = read_film(row["image"]["path"]) if by_finding else None
        cases += [Boxed(film, row["patient_id"], *key, boxes) for key, boxes in by_finding.items()]
    return cases
