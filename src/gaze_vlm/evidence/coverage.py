"""What of the film was looked at, and what was not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..findings import REGIONS
from ..scanpath import Scanpath

RADIUS = 0.05


def coverage(scanpath: Scanpath, *, radius: float = RADIUS) -> dict[str, Any]:
    """How much of each of the 17 regions (`findings.REGIONS`, at their default boxes) was looked at.

    A fixation covers the square that reaches `radius` to each side of it, so that the covered share of a box is exact
    and can be counted by hand. The default, a twentieth of the film, is our choice: about what a degree or two of
    visual angle covers where a film fills a screen.

    Returns:
        `{"radius", "regions": [{"name", "box", "looked_at", "dwell"}], "not_looked_at": [name]}`: `looked_at` is the
        covered share of the box, 0..1, `dwell` the seconds of fixations that lie in it; `not_looked_at` names the
        regions of which nothing is covered.
    """
    if not radius > 0:
        raise ValueError(f"radius must be above 0, got {radius}")
    squares, regions = _squares(scanpath, radius), []
    for region in REGIONS.values():
        dwell = float(scanpath.duration[fixations_in(region.box, scanpath)].sum())
        share = covered_share(region.box, squares)
        regions.append({"name": region.name, "box": list(region.box), "looked_at": share, "dwell": dwell})
    missed = [region["name"] for region in regions if region["looked_at"] == 0]
    return {"radius": radius, "regions": regions, "not_looked_at": missed}


def fixations_in(box: Sequence[float], scanpath: Scanpath) -> np.ndarray:
    """(n,) bool: which fixations lie in a box (x1, y1, x2, y2), its border included."""
    x1, y1, x2, y2 = np.asarray(box, scanpath.x.dtype)  # else 0.45 would not lie on a border at 0.45
    return (scanpath.x >= x1) & (scanpath.x <= x2) & (scanpath.y >= y1) & (scanpath.y <= y2)


def is_looked_at(box: Sequence[float], scanpath: Scanpath, *, radius: float = RADIUS) -> bool:
    """Whether the square of a fixation (see `coverage`) reaches into a box."""
    squares = _squares(scanpath, radius)
    return bool(((squares[:, :2] < box[2:]) & (squares[:, 2:] > box[:2])).all(axis=1).any())


def covered_share(box: Sequence[float], boxes: np.ndarray) -> float:
    """Share of a box's area, 0..1, that boxes (n, 4) cover together; exact."""
    cut = np.concatenate([np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])], axis=1)
    cut = cut[(cut[:, :2] < cut[:, 2:]).all(axis=1)]
    x, y = np.unique(cut[:, ::2]), np.unique(cut[:, 1::2])
    area = np.outer(np.diff(y), np.diff(x))[_covered(cut, x, y)].sum()
    return float(min(1.0, area / ((box[2] - box[0]) * (box[3] - box[1]))))


def attention_share(attention: np.ndarray, boxes: Sequence[Sequence[float]]) -> float:
    """Share of an attention map (rows, columns) over the whole film, whose sum is 1, that lies in boxes; exact, cells
    that a border cuts counting in part."""
    boxes = np.array(boxes, np.float64).reshape(-1, 4).clip(0, 1)
    rows, columns = attention.shape
    x = np.unique(np.concatenate([np.linspace(0, 1, columns + 1), boxes[:, ::2].ravel()]))
    y = np.unique(np.concatenate([np.linspace(0, 1, rows + 1), boxes[:, 1::2].ravel()]))
    middle_x, middle_y = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
    density = attention[(middle_y * rows).astype(int)][:, (middle_x * columns).astype(int)] * (rows * columns)
    shares = density * np.outer(np.diff(y), np.diff(x))
    return float(min(1.0, shares[_covered(boxes, x, y)].sum()))


def _squares(scanpath: Scanpath, radius: float) -> np.ndarray:
    """(n, 4) what each fixation covers."""
    places = np.stack([scanpath.x, scanpath.y], axis=1).astype(np.float64)
    return np.concatenate([places - radius, places + radius], axis=1)


def _covered(boxes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(len(y) - 1, len(x) - 1) bool: which cells of the grid of edges, all of the boxes' among them, are in a box."""
    edges = np.zeros((max(len(y), 1), max(len(x), 1)), np.int64)
    left, right = np.searchsorted(x, boxes[:, 0]), np.searchsorted(x, boxes[:, 2])
    top, bottom = np.searchsorted(y, boxes[:, 1]), np.searchsorted(y, boxes[:, 3])
    for rows, columns, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(edges, (rows, columns), sign)
    return edges.cumsum(0).cumsum(1)[:-1, :-1] > 0
