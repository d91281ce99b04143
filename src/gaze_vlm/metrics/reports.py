"""Clinical agreement of reports: do they name the same findings?

Reports become sets of findings first (see `gaze_vlm.labeler`); scores of different labelers are not comparable.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LabelScores:
    """Agreement of two label sets over many reports. All scores 0..1, higher is better.

    Args:
        findings: C names; the arrays follow their order.
        precision, recall, f1: (C,) float64; 0 where the fraction has no denominator.
        support: (C,) int64, references with the finding.
        macro_f1: mean f1 over the findings with enough support; NaN when none has it.
        micro_f1: f1 of all decisions about all `findings` pooled; NaN when nobody named any.
    """

    findings: tuple[str, ...]
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    macro_f1: float
    micro_f1: float

    def to_dict(self) -> dict:
        """Plain values for JSON: macro_f1, micro_f1, and per finding precision, recall, f1 and support."""
        columns = (self.precision.tolist(), self.recall.tolist(), self.f1.tolist(), self.support.tolist())
        names = ("precision", "recall", "f1", "support")
        per_finding = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return {
            "macro_f1": self.macro_f1,
            "micro_f1": self.micro_f1,
            "findings": dict(zip(self.findings, per_finding, strict=True)),
        }


def label_f1(
    predicted: Sequence[Collection[str]],
    reference: Sequence[Collection[str]],
    findings: Sequence[str],
    *,
    min_support: int = 1,
) -> LabelScores:
    """Precision, recall and F1 of the findings named in predicted against reference reports.

    Source: the "clinical efficacy" F1 of the report generation papers (CheXbert F1 when the labels are CheXbert's).

    Args:
        predicted, reference: one set of findings present a report, in the same order. Names outside `findings` do not
            count.
        findings: the names that count.
        min_support: references a finding needs to enter macro_f1. At 1, a finding no reference has stays out.
    """
    if len(predicted) != len(reference):
        raise ValueError(f"one reference a report: predicted: {len(predicted)}, reference: {len(reference)}")
    predicted_labels, reference_labels = label_matrix(predicted, findings), label_matrix(reference, findings)
    hits, named, support = _counts(predicted_labels, reference_labels)
    return LabelScores(
        findings=tuple(findings),
        precision=hits / np.maximum(named, 1),
        recall=hits / np.maximum(support, 1),
        f1=_f1(hits, named, support),
        support=support,
        macro_f1=macro_f1(predicted_labels, reference_labels, min_support=min_support),
        micro_f1=micro_f1(predicted_labels, reference_labels),
    )


def label_matrix(labels: Sequence[Collection[str]], findings: Sequence[str]) -> np.ndarray:
    """One set of findings a report -> (n, C) bool in the order of `findings`."""
    if len(set(findings)) < len(findings):
        raise ValueError(f"findings must be distinct, got {list(findings)}")
    matrix = [[finding in present for finding in findings] for present in labels]
    return np.array(matrix, dtype=bool).reshape(len(labels), len(findings))


def macro_f1(predicted: np.ndarray, reference: np.ndarray, *, min_support: int = 1) -> float:
    """Mean F1 over the columns with at least `min_support` positive references; 0..1, higher is better.

    Both are (n, C) bool. NaN when no column has the support. Made for `statistics.paired_bootstrap`, which resamples
    the rows.
    """
    hits, named, support = _counts(predicted, reference)
    counted = support >= min_support
    return float(_f1(hits, named, support)[counted].mean()) if counted.any() else float("nan")


def micro_f1(predicted: np.ndarray, reference: np.ndarray) -> float:
    """F1 of all entries pooled; (n, C) bool each; 0..1, higher is better; NaN when nothing is positive in either."""
    hits, named, support = (int(count.sum()) for count in _counts(predicted, reference))
    return 2 * hits / (named + support) if named + support else float("nan")


def _counts(predicted: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C,) each: entries positive in both, in predicted, in reference."""
    predicted, reference = np.asarray(predicted, dtype=bool), np.asarray(reference, dtype=bool)
    if predicted.ndim != 2 or predicted.shape != reference.shape:
        raise ValueError(
            f"labels must be (n, C) alike, got predicted: {predicted.shape}, reference: {reference.shape}"
        )
    return (predicted & reference).sum(axis=0), predicted.sum(axis=0), reference.sum(axis=0)


def _f1(hits: np.ndarray, named: np.ndarray, support: np.ndarray) -> np.ndarray:
    return 2 * hits / np.maximum(named + support, 1)
