"""What a classifier's logits are made into after training: probabilities and decisions, chosen on validation cases."""

import numpy as np
import torch

from ..metrics.classification import best_thresholds

THRESHOLDS = ("f1", "frequency")


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T for which `sigmoid(logits / T)` is likeliest to have given the labels.

    One number for all findings: the order of the cases stays, and there is little to overfit. The loss is convex in
    1 / T, which Newton's method finds. Source: Guo et al., ICML 2017, for one label of several.

    Args:
        logits: (n, C).
        labels: (n, C) 1, 0 or NaN where unknown.

    Returns:
        T, 0.05..20.

    Raises:
        ValueError: where no label is known.
    """
    known = ~np.isnan(labels)
    if not known.any():
        raise ValueError("no label is known: there is nothing to calibrate on")
    z, y = torch.from_numpy(logits[known]).double(), torch.from_numpy(labels[known]).double()
    scale = torch.ones((), dtype=torch.float64)
    for _ in range(100):
        p = (z * scale).sigmoid()
        slope, curvature = ((p - y) * z).mean(), (p * (1 - p) * z.square()).mean()
        # a step of at most half the scale: far from the optimum the curve is flatter than where Newton lands
        step = (slope / curvature.clamp(min=1e-12)).clamp(-0.5 * scale, 0.5 * scale)
        scale = (scale - step).clamp(1 / 20, 20)
        if step.abs() < 1e-9:
            break
    return float(1 / scale)


def choose_thresholds(
    probabilities: np.ndarray, labels: np.ndarray, rule: str = "f1", frequency: np.ndarray | None = None
) -> list[float]:
    """Probability of each finding from which it counts as present.

    - "f1": where F1 is highest among the cases with a known label, midway to the next lower probability; 0.5 for a
      finding without a positive. With few positives this is mostly luck.
    - "frequency": so that a finding is called `frequency` times as often as there are cases; labels are not looked at;
      0.5 for one whose frequency is unknown.

    Args:
        probabilities: (n, C) in 0..1.
        labels: (n, C) 1, 0 or NaN where unknown.
        frequency: (C,) share of cases to call, for "frequency"; NaN where unknown.
    """
    if rule not in THRESHOLDS:
        raise ValueError(f"rule must be one of {', '.join(THRESHOLDS)}; got {rule!r}")
    thresholds = []
    for number, (scores, truth) in enumerate(zip(probabilities.T, labels.T, strict=True)):
        known = ~np.isnan(truth)
        if rule == "frequency" and not np.isnan(frequency[number]):
            thresholds.append(float(np.quantile(scores, min(1.0, max(0.0, 1 - frequency[number])))))
        elif rule == "f1" and truth[known].any():
            best = best_thresholds(truth[known, None] == 1, scores[known, None])[0]
            thresholds.append(float((best + max(scores[known & (scores < best)], default=0.0)) / 2))
        else:
            thresholds.append(0.5)
    return thresholds
