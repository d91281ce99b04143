"""Where report, classifier and gaze do not go together. A finding is listed if the classifier holds it present."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..findings import NO_FINDING
from ..labeler import Mention
from ..scanpath import Scanpath
from .coverage import is_looked_at


class Opinion(NamedTuple):
    """What the classifier says of a finding that a sentence names, or of one for which a denial leaves no room.

    Args:
        name: of its record.
        probability: 0..1.
        present: whether it is listed.
        on_side: whether it has a region on the side that the sentence names, if the sentence names one.
    """

    name: str
    probability: float
    present: bool
    on_side: bool


def denies(mention: Mention) -> bool:
    """Is something said not to be there? "Normal chest" denies every finding."""
    return mention.status == ("present" if mention.finding == NO_FINDING else "absent")


def sentence_flags(
    number: int,
    said: Sequence[Mention],
    regions: Sequence[dict[str, Any]],
    places: Sequence[Sequence[dict[str, Any]]],
    opinions: Sequence[Sequence[Opinion]],
    scanpath: Scanpath,
) -> list[dict[str, Any]]:
    """Flags of one sentence; what the classifier does not judge gives none, and without gaze nothing is missed.

    A region that no fixation reaches is flagged once, with the first finding that is said to be present there.

    Args:
        number: of the sentence, from 0.
        said: its mentions of findings.
        regions: that it rests on.
        places: for each mention the regions that it alone rests on.
        opinions: for each mention what the classifier says of it, nothing if it does not judge it; for a denial what
            contradicts it.
    """
    flags = []
    pairs = ((mention, one) for mention, its in zip(said, opinions, strict=True) for one in its)
    for mention, opinion in pairs:
        words = f"{opinion.name} ({opinion.probability:.2f})"
        if denies(mention):
            flags.append(_flag("contradicted", number, opinion.name, f"leaves no room for {words}, which is listed"))
        elif mention.finding == NO_FINDING:
            continue
        elif not opinion.present:
            flags.append(_flag("unlikely", number, opinion.name, f"says {words}, which is not listed"))
        elif not opinion.on_side:
            flags.append(
                _flag("unlikely", number, opinion.name, f"says {words} on a side where the classifier does not look")
            )
    if not regions:
        flags.append(_flag("unlinked", number, None, "has no region"))
    missed = {}
    for mention, its_regions in zip(said, places, strict=True):
        if mention.status == "present" and mention.finding != NO_FINDING and len(scanpath):
            for region in its_regions:
                if not is_looked_at(region["box"], scanpath):
                    missed.setdefault(region["name"], mention.finding)
    for region, finding in missed.items():
        flags.append(
            _flag("not looked at", number, finding, f"says {finding}, but no fixation reaches the {region}", region)
        )
    return [flag for place, flag in enumerate(flags) if flag not in flags[:place]]


def zone_flags(coverage: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A flag for each lung zone that was never looked at."""
    missed = [] if coverage is None else coverage["not_looked_at"]
    return [
        {
            "kind": "not looked at",
            "sentence": None,
            "finding": None,
            "region": name,
            "message": f"No fixation reaches the {name}.",
        }
        for name in missed
        if name.endswith("lung zone")
    ]


def _flag(kind: str, sentence: int, finding: str | None, message: str, region: str | None = None) -> dict[str, Any]:
    words = f"Sentence {sentence + 1} {message}."
    return {"kind": kind, "sentence": sentence, "finding": finding, "region": region, "message": words}
