"""What train_classifier.py has measured, as one table: kinds of supervision against one another, over all seeds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoConfig

from gaze_vlm.metrics.cases import Case, Pairs
from gaze_vlm.metrics.classification import auroc, average_precision, calibration_error, threshold_scores
from gaze_vlm.metrics.tables import Metric, Score, ScoreTable, drawn, score
from gaze_vlm.metrics.tables.attention import attention_scores
from gaze_vlm.training.classifier_data import ClassifierRows
from gaze_vlm.training.classifier_trainer import MIN_POSITIVES, Predictions, boxed_cases

RESAMPLES = 1000


@dataclass(frozen=True)
class Run:
    """One kind of supervision with one seed, and where it is trained."""

    kind: str
    seed: int
    folder: Path

    @property
    def is_done(self) -> bool:
        return (self.folder / "metrics.json").is_file()


def table(runs: Sequence[Run], items: ClassifierRows, frequency: np.ndarray, split: str) -> ScoreTable:
    """The runs' models on the films of a split, beside what needs no model.

    Args:
        items: the films, in the order in which the models saw them.
        frequency: (C,) share of the training films that have each finding.
    """
    kinds = list(dict.fromkeys(one.kind for one in runs))
    said = {kind: [load_predictions(one, split) for one in runs if one.kind == kind] for kind in kinds}
    seeds = len(said[kinds[0]])
    truth = np.array(items.targets)
    enough = ((truth == 1).sum(axis=0) >= MIN_POSITIVES) & (truth == 0).any(axis=0) & ~np.isnan(frequency)
    enough = np.flatnonzero(enough)
    # each film's labels (-1: unknown), of each seed the probabilities, and what it calls: (n, 1 + 2 seeds, C)
    labels = np.where(np.isnan(truth), -1, truth)[:, None]
    systems = {}
    for kind in kinds:
        scores = [decided(one, found) for one, found in zip(of_kind(runs, kind), said[kind], strict=True)]
        systems[name_of(kind)] = np.concatenate([labels, *np.stack(scores, axis=2)], axis=1)
    constant = np.broadcast_to(frequency, (len(truth), seeds, len(frequency)))
    systems["label frequency"] = np.concatenate([labels, constant, constant >= 0.5], axis=1)

    def mean_of(measure, first: int = 1):
        def statistic(cases: np.ndarray) -> float:
            values = []
            for number in enough:
                there = cases[:, 0, number] >= 0
                seen = cases[there, first : first + seeds, number]
                values.append(measure(np.broadcast_to(cases[there, :1, number] == 1, seen.shape), seen))
            return float(np.nanmean(values))

        return statistic

    metrics = [
        Metric(name, higher, np.asarray, statistic)
        for name, higher, statistic in (
            ("AUROC, mean", True, mean_of(auroc)),
            ("AUPRC (average precision), mean", True, mean_of(average_precision)),
            ("F1, mean, own thresholds", True, mean_of(lambda y, p: threshold_scores(y, p, 0.5).f1, 1 + seeds)),
            ("expected calibration error (15 bins), mean", False, mean_of(calibration_error)),
        )
    ]
    scores = score(systems, metrics, groups=items.patients, resamples=RESAMPLES)
    notes = [
        f"{len(items)} readings of {len(set(items.images))} films ({split} split), {seeds} seed{'s' * (seeds > 1)}; "
        f"means over findings with at least {MIN_POSITIVES} positives ({len(enough)}): "
        + ", ".join(items.labels[number] for number in enough),
        interval_note(items.patients),
    ]
    if any(items.boxes):
        more, note = attention_rows(said, items)
        scores, notes = [*scores, *more], [*notes, note]
    if split == "validation":
        notes.append("temperature and thresholds were chosen on these very films, which flatters F1 and calibration")
    if seeds > 1 and len(enough):
        notes += [spread_note(kind, of_kind(runs, kind), split) for kind in kinds]
    return ScoreTable(tuple(scores), tuple(notes))


def name_of(kind: str) -> str:
    return {"none": "no supervision"}.get(kind, f"supervised by {'gaze and boxes' if kind == 'both' else kind}")


def of_kind(runs: Sequence[Run], kind: str) -> list[Run]:
    return [one for one in runs if one.kind == kind]


def load_predictions(one: Run, split: str) -> Predictions:
    with np.load(one.folder / f"predictions-{split}.npz") as stored:
        return Predictions(**stored)


def decided(one: Run, found: Predictions) -> np.ndarray:
    """(2, n, C): probabilities of each finding, and whether it is called."""
    config = AutoConfig.from_pretrained(one.folder)
    probabilities = 1 / (1 + np.exp(-found.logits.astype(np.float64) / config.temperature))
    called = probabilities >= np.array(config.thresholds or [0.5] * config.num_labels)
    return np.stack([probabilities, called])


def interval_note(groups: Sequence[str]) -> str:
    return drawn(Pairs([], [Case(None, None, group=who) for who in groups]), RESAMPLES)


def attention_rows(said: dict[str, list[Predictions]], items: ClassifierRows) -> tuple[list[Score], str]:
    """Where each finding's attention lies against the boxes that radiologists drew for it."""
    cases = {kind: [boxed_cases(one.attention, items.boxes) for one in seeds] for kind, seeds in said.items()}
    _, reference, films = zip(*next(iter(cases.values()))[0], strict=True)
    groups = [items.patients[film] for film in films]
    systems = {
        name_of(kind): [np.stack([case[0] for case in seed]) for seed in seeds] for kind, seeds in cases.items()
    }
    note = f"attention: {len(films)} findings with boxes on {len(set(films))} films; {interval_note(groups)}"
    return attention_scores(systems, reference, groups=groups, resamples=RESAMPLES), note


def spread_note(kind: str, runs: Sequence[Run], split: str) -> str:
    values = [json.loads((one.folder / "metrics.json").read_text())[split][f"{split}_auroc"] for one in runs]
    return f"{name_of(kind)}: mean AUROC of {len(values)} seeds {min(values):.3f} to {max(values):.3f}"
