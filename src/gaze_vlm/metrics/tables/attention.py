"""Attention maps of findings against the boxes that were drawn for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..grounding import iou_union, map_iou, map_peaks, pointing_game
from . import Metric, Score, beside, score

CENTRE_SIGMA = 0.25  # of the film's sides: where most of a chest is
EVEN = "even attention (the boxes' area)"


def attention_scores(
    systems: Mapping[str, Sequence[np.ndarray]],
    reference: Sequence[np.ndarray],
    *,
    groups: Sequence | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Score]:
    """Pointing game and IoU of each system's maps, beside a Gaussian in the centre of the film and even attention,
    whose IoU is the boxes' share of the film, as is the chance that a point hits them.

    Args:
        systems: name -> its maps (n, rows, columns), one array a seed it was trained with; a case counts with the mean
            over them. A case is a finding of a film.
        reference: for each case (k, 4) boxes, 0..1 of the film.
        groups, resamples, seed: as in `score`.
    """
    y, x = np.meshgrid(*((np.arange(size) + 0.5) / size - 0.5 for size in (32, 32)), indexing="ij")
    centre = np.exp(-(x**2 + y**2) / (2 * CENTRE_SIGMA**2))
    area = iou_union([[(0, 0, 1, 1)]] * len(reference), reference)
    known = {"centre of the film": [np.broadcast_to(centre, (len(reference), *centre.shape))], EVEN: None}

    def mean_of(measure):
        def cases(maps: Sequence[np.ndarray] | None) -> np.ndarray:
            return area if maps is None else np.stack([measure(one, reference) for one in maps]).mean(axis=0)

        return cases

    metrics = [
        Metric("pointing game (no tolerance)", True, mean_of(lambda maps, of: pointing_game(map_peaks(maps), of))),
        Metric("attention IoU (cells from half of the peak on)", True, mean_of(map_iou)),
    ]
    return score(beside(systems, known), metrics, groups=groups, resamples=resamples, seed=seed)
