"""What a report rests on: sentence by sentence the findings, the regions, the fixations, the confidence.

`link_evidence` makes an `EvidenceBundle` from a report, a classifier's findings and a scanpath. It travels as JSON and
as one self-contained page.
"""

from .bundle import EvidenceBundle, EvidenceError, EvidenceSentence
from .coverage import coverage
from .links import link_evidence
from .schema import JSON_SCHEMA, NOTICE, SCHEMA_VERSION

__all__ = [
    "JSON_SCHEMA",
    "NOTICE",
    "SCHEMA_VERSION",
    "EvidenceBundle",
    "EvidenceError",
    "EvidenceSentence",
    "coverage",
    "link_evidence",
]
