"""A report in the order in which a chest film is inspected: airways, breathing, circulation, diaphragm, everything
else, foreign objects."""

from collections.abc import Collection, Sequence
from typing import Any

from .findings import FINER_FINDINGS, NO_FINDING, READING_ORDER, Stage, regions_at
from .keyframes import stage_of_text
from .report_composer import ComposedSentence
from .report_sentences import capital
from .scanpath import Scanpath

PROTOCOLS = ("abcdef",)


def in_reading_order(
    sentences: Sequence[ComposedSentence], findings: Sequence[dict[str, Any]], scanpath: Scanpath | None
) -> list[ComposedSentence]:
    """The sentences stage by stage (`findings.READING_ORDER`), and a line for each stage that none is about.

    Such a line says whether the stage was looked at, in part where a fixation lies in some of its regions and none in
    others, and whether the classifier, if it judges a finding of the stage at all, lists none. A sentence stands at
    the first finding that it names, else at the first place; what is about neither closes the report.

    Args:
        findings: the classifier's records `{"name", "present", ...}`.
        scanpath: a reader's, in the image's frame. None: nothing is said of looking; a model looks at nothing.
    """
    looked_at = None
    if scanpath is not None:
        looked_at = {name for x, y in zip(scanpath.x, scanpath.y, strict=True) for name in regions_at(x, y)}
    staged: dict[str | None, list[ComposedSentence]] = {}
    for sentence in sentences:
        staged.setdefault(stage_of_text(sentence.text), []).append(sentence)
    judged = {record["name"] for record in findings} - {NO_FINDING}
    judged |= {FINER_FINDINGS[name] for name in judged if FINER_FINDINGS.get(name)}
    present = {record["name"] for record in findings if record["present"]}
    ordered: list[ComposedSentence] = []
    for stage in READING_ORDER:
        ordered += staged.get(stage.letter, [])
        if stage.letter not in staged and not present & set(stage.findings):
            ordered.append(ComposedSentence(_line(stage, judged, looked_at)))
    return ordered + staged.get(None, [])


def _line(stage: Stage, judged: Collection[str], looked_at: Collection[str] | None) -> str:
    seen = []
    if looked_at is not None:
        reached = set(stage.regions) & set(looked_at)
        seen = [
            "not looked at"
            if not reached
            else "looked at in part"
            if len(reached) < len(stage.regions)
            else "looked at"
        ]
    found = "nothing found" if set(stage.findings) & set(judged) else "not judged"
    return f"{capital(stage.name.replace(':', ','))}: {', '.join([*seen, found])}."
