"""What reports rest on, as evaluate.py measures it on NIH's films: links, coverage, disagreements."""

from collections import Counter

import numpy as np
from open_films import films_of

from gaze_vlm.evidence import EvidenceBundle
from gaze_vlm.evidence.schema import FLAGS
from gaze_vlm.metrics.tables import Metric, ScoreTable, score
from gaze_vlm.pipelines import ReadingPipeline

FILMS = 50


def evaluate_evidence(models: ReadingPipeline, arguments) -> ScoreTable:
    """Is every sentence linked, or says that it is not? What do flags and coverage say of predicted gaze?"""
    films, _, patients = films_of(arguments.nih, arguments.split)
    bundles = [reading.evidence for reading in models.read(films[:FILMS])]
    unequal = [bundle.image["name"] for bundle in bundles if EvidenceBundle.from_json(bundle.to_json()) != bundle]
    silent = sum(len(silent_sentences(bundle)) for bundle in bundles)
    kinds = Counter(flag["kind"] for bundle in bundles for flag in bundle.flags)
    metrics = [
        Metric("share of the sentences with a region", True, lambda them: np.array([linked(one) for one in them])),
        Metric(
            "share of the 17 regions that fixations reach", None, lambda them: np.array([seen(one) for one in them])
        ),
        Metric("key frames a film", None, lambda them: np.array([float(len(one.key_frames)) for one in them])),
    ]
    protocol = (
        f"{len(bundles)} films, {arguments.split}; sentences {sum(len(one.sentences) for one in bundles)}, without a "
        f"region and without a flag that says so: {silent}; evidence that does not come back from its JSON: "
        f"{len(unequal)}",
        f"flags: {', '.join(f'{kind} {kinds[kind]}' for kind in FLAGS)}",
    )
    return ScoreTable(tuple(score({models.name: bundles}, metrics, groups=patients[:FILMS])), protocol)


def silent_sentences(bundle: EvidenceBundle) -> list[int]:
    """Sentences that have no region and do not say so."""
    said = {flag["sentence"] for flag in bundle.flags if flag["kind"] == "unlinked"}
    return [number for number, one in enumerate(bundle.sentences) if not one.regions and number not in said]


def linked(bundle: EvidenceBundle) -> float:
    return float(np.mean([bool(sentence.regions) for sentence in bundle.sentences]))


def seen(bundle: EvidenceBundle) -> float:
    return 1 - len(bundle.coverage["not_looked_at"]) / len(bundle.coverage["regions"])
