"""Questions that labels answer, for releases that have labels and no questions."""

import random
from typing import NamedTuple

import datasets

from ..data.matching import present_findings
from ..findings import FINDINGS, FINER_FINDINGS, NO_FINDING
from .classifier_data import targets

VOCABULARY = (*FINDINGS, *FINER_FINDINGS)
FRONTAL = ("PA", "AP")


class LabelQuestion(NamedTuple):
    """A question about the film of a row.

    Args:
        row: its number.
        question, answer: in words.
        question_type: "presence" (yes or no), "findings" (their names, or none) or "view" (PA or AP).
        finding: that a presence question is about, else None.
    """

    row: int
    question: str
    answer: str
    question_type: str
    finding: str | None = None


def presence_question(finding: str) -> str:
    """Whether a finding is there, such as "Is there pleural effusion?"."""
    return "Is this film normal?" if finding == NO_FINDING else f"Is there {finding.lower()}?"


def label_questions(rows: datasets.Dataset, seed: int = 0) -> list[LabelQuestion]:
    """Presence, findings and view, as far as rows tell.

    Of each finding as many films are asked about that have it as films that do not: drawn by `seed` among those that
    are more. So neither answer is likelier than the other, over all questions or for a finding by itself, and who
    answers without looking is right in half of them.

    Args:
        rows: of the schema; what is known of a finding is what `classifier_data.targets` says, and what is not known
            is not asked.
    """
    rng = random.Random(seed)
    asked: list[LabelQuestion] = []
    having: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in VOCABULARY}
    for number, (findings, view) in enumerate(zip(rows["findings"], rows["view"], strict=True)):
        if view in FRONTAL:
            asked.append(LabelQuestion(number, "Is this a PA or an AP film?", view, "view"))
        for name, value in zip(VOCABULARY, targets(findings, VOCABULARY), strict=True):
            if value in (0, 1):
                having[name][value == 0].append(number)
        if findings:
            present = present_findings({"findings": findings})
            names = [name.lower() for name in VOCABULARY if name in present and name != NO_FINDING]
            asked.append(LabelQuestion(number, "Which findings are there?", ", ".join(names) or "none", "findings"))
    for name, (present, absent) in having.items():
        count = min(len(present), len(absent))
        for numbers, answer in ((present, "yes"), (absent, "no")):
            drawn = sorted(rng.sample(numbers, count))
            asked += [LabelQuestion(number, presence_question(name), answer, "presence", name) for number in drawn]
    return asked
