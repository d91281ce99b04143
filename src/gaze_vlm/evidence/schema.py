"""The contract of evidence as JSON, published as docs/evidence.schema.json."""

from __future__ import annotations

import json
from typing import Any

from .. import json_schema as schema

SCHEMA_VERSION = "2.0"
NOTICE = "This is a research demonstration and not a medical device: nothing in it may guide the care of a patient."

FLAGS = ("unlikely", "contradicted", "not looked at", "unlinked")

_LINE = {  # nor what XML cannot hold
    "pattern": r"^(?![\s\S]*[\u0000-\u001f\u007f-\u009f\ufffe\uffff])",
    "$comment": "be one line without control characters",
}
_NAME = {"pattern": _LINE["pattern"] + r"[\s\S]*\S", "$comment": "be one line of text without control characters"}
_SHARE = schema.number("0..1 of the image from the top left.", minimum=0, maximum=1)
_BOX = {
    **schema.array(
        "x1, y1, x2, y2 in 0..1 of the image from the top left, x1 < x2 and y1 < y2; of a key frame also equal.",
        schema.number("", minimum=0, maximum=1),
    ),
    "minItems": 4,
    "maxItems": 4,
}
_REGIONS = schema.array(
    "Where on the film.",
    schema.object(
        "A region of the thorax.",
        name=schema.text("Such as 'left costophrenic angle', the patient's side.", **_NAME),
        box=_BOX,
    ),
)
_FIXATIONS = schema.array("Indices into the scanpath of those that lie in a region.", schema.index(""))
_STAGE = {
    "type": ["string", "null"],
    "pattern": "^[A-F]$",
    "description": "Letter of the stage of inspection, from airways (A) to foreign objects (F); null: of none.",
}
_PROBABILITY = schema.number("Probability given by the classifier.", minimum=0, maximum=1)

JSON_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": f"urn:gaze-vlm:evidence:{SCHEMA_VERSION}",
    "title": "Evidence of a chest X-ray report",
    **schema.object(
        "A report, and for each sentence what it rests on.",
        schema_version=schema.choice("Version of this layout.", SCHEMA_VERSION),
        notice=schema.text("Says that this is no medical device.", **_NAME),
        image=schema.object(
            "The film.",
            name=schema.text("File name without its folder.", **_LINE),
            sha256=schema.text("Hex digest of the file's bytes.", pattern="^[0-9a-f]{64}$"),
            width=schema.index("Pixels.", 1),
            height=schema.index("Pixels.", 1),
        ),
        model=schema.object(
            "What wrote the report.",
            name=schema.text("Name or repository.", **_NAME),
            version=schema.text("Version.", **_NAME),
        ),
        gaze=schema.choice(
            "Where the scanpath comes from: a reader, a model, or there is none.", "given", "predicted", "none"
        ),
        report=schema.text("The whole report as it was written."),
        sentences=schema.array(
            "In the order of the report.",
            schema.object(
                "One sentence and what it rests on.",
                text=schema.text("report[start:end]."),
                start=schema.index("First character in the report (Unicode code points)."),
                end=schema.index("One past the last character in the report."),
                findings=schema.array(
                    "What the sentence says, in its order.",
                    schema.object(
                        "One statement about one finding.",
                        name=schema.text("Such as 'Pleural Effusion'.", **_NAME),
                        status=schema.choice("As the sentence says it.", "present", "absent", "uncertain"),
                    ),
                ),
                confidence=schema.or_null(
                    schema.number(
                        "The classifier's agreement with the sentence; null: none to give.", minimum=0, maximum=1
                    )
                ),
                regions=_REGIONS,
                fixations=_FIXATIONS,
                key_frames=schema.array("Indices of the key frames that share a fixation with it.", schema.index("")),
                stage=_STAGE,
                source=schema.choice("Who wrote the sentence.", "model", "template"),
                review=schema.or_null(
                    schema.object(
                        "A reviewer's decision; null: not reviewed.",
                        status=schema.choice("The decision.", "accepted", "rejected", "edited"),
                        text=schema.or_null(
                            schema.text("The sentence as edited; null unless the status is 'edited'.")
                        ),
                        reviewer=schema.or_null(schema.text("Who decided.", **_NAME)),
                    )
                ),
            ),
        ),
        findings=schema.array(
            "What the classifier found.",
            schema.object(
                "One finding.",
                name=schema.text("Such as 'Pleural Effusion'.", **_NAME),
                probability=_PROBABILITY,
                present={"type": "boolean", "description": "Is the finding listed as what the film shows?"},
                regions=_REGIONS,
                fixations=_FIXATIONS,
                attention=schema.or_null(
                    schema.number(
                        "Share of the classifier's attention in the regions; null: not known.", minimum=0, maximum=1
                    )
                ),
            ),
        ),
        key_frames=schema.array(
            "Places that were rested on, in their order: clusters of fixations.",
            schema.object(
                "One place.",
                x=_SHARE,
                y=_SHARE,
                box=_BOX,
                onset=schema.number("Seconds at which its first fixation begins."),
                dwell=schema.number("Seconds on it.", minimum=0),
                fixations=schema.array("Indices into the scanpath.", schema.index("")),
                stage=_STAGE,
                sentence=schema.or_null(schema.index("Of the dictation; null: it has no times.")),
                regions=schema.array("Names of the regions at it, smallest first.", schema.text("", **_NAME)),
            ),
        ),
        coverage=schema.or_null(
            schema.object(
                "What was looked at; null: no gaze.",
                radius=schema.number("To which a fixation covers, as a fraction of the image's sides."),
                regions=schema.array(
                    "The 17 regions of the thorax.",
                    schema.object(
                        "One region.",
                        name=schema.text("Such as 'left lower lung zone'.", **_NAME),
                        box=_BOX,
                        looked_at=schema.number("Covered share of the box.", minimum=0, maximum=1),
                        dwell=schema.number("Seconds of the fixations in it.", minimum=0),
                    ),
                ),
                not_looked_at=schema.array("Names of regions of which nothing is covered.", schema.text("", **_NAME)),
            )
        ),
        flags=schema.array(
            "Where report, classifier and gaze do not go together.",
            schema.object(
                "One disagreement.",
                kind=schema.choice(
                    "The sentence says what the classifier does not list; denies what it lists; rests on a region "
                    "that was not looked at, or a lung zone was not; has no region.",
                    *FLAGS,
                ),
                sentence=schema.or_null(schema.index("Of the report; null: of none.")),
                finding=schema.or_null(schema.text("Its name.", **_NAME)),
                region=schema.or_null(schema.text("Its name.", **_NAME)),
                message=schema.text("The same in words.", **_NAME),
            ),
        ),
        sign_off=schema.or_null(
            schema.object(
                "Who answers for the reviewed report; null: nobody. All sentences are reviewed then.",
                reviewer=schema.text("Who it is.", **_NAME),
                signed_at=schema.text("ISO 8601 date and time with its zone.", pattern=r"^\d{4}-\d\d-\d\dT"),
            )
        ),
        scanpath=schema.object(
            "The fixations in their order, one entry each.",
            x=schema.array("0..1 of the image from the left; off the image allowed.", schema.number("")),
            y=schema.array("0..1 of the image from the top; off the image allowed.", schema.number("")),
            onset=schema.array("Seconds from the first moment of reading.", schema.number("")),
            duration=schema.array("Seconds.", schema.number("", minimum=0)),
        ),
    ),
}
"""JSON schema (draft 2020-12) of `EvidenceBundle.to_json`."""


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(JSON_SCHEMA, indent=2) + "\n"
