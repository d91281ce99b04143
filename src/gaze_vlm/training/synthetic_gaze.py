"""SYNTHETIC gaze: real scanpaths bent so that they look into boxes. Nobody ever looked like this.

Where films have boxes but no gaze, and scanpaths no films, it teaches a model that what it sees on the film decides
where it looks. It teaches nothing about readers, and whatever was trained on it must say so.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..scanpath import Scanpath

LUNGS = (0.1, 0.1, 0.9, 0.85)  # x1, y1, x2, y2 in the image: about where a frontal film shows them
MARGIN = 0.15  # of a box, on each side, that is left free


def bend_into_boxes(scanpath: Scanpath, boxes: Sequence[Sequence[float]], keep: int = 1) -> Scanpath:
    """The scanpath with every fixation but the first `keep` moved into the box whose centre is nearest to it.

    A fixation goes to the place in the box that it had between the lungs' edges (its own lung's, where there are
    several boxes), so that order and shape of the path stay roughly what they were. Onsets and durations stay.

    Args:
        scanpath: x, y in the image 0..1.
        boxes: (x1, y1, x2, y2) each, 0..1 in the same image.

    Raises:
        ValueError: without a box.
    """
    if not len(boxes):
        raise ValueError("gaze cannot be bent into boxes where there is none")
    corners = np.asarray(boxes, dtype=np.float64)
    x, y = scanpath.x.astype(np.float64), scanpath.y.astype(np.float64)
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    nearest = np.hypot(x[:, None] - centre[:, 0], y[:, None] - centre[:, 1]).argmin(1)
    left, top, right, bottom = LUNGS
    if len(boxes) > 1:
        left, right = np.where(x < 0.5, left, 0.5), np.where(x < 0.5, 0.5, right)
    across, down = np.clip((x - left) / (right - left), 0, 1), np.clip((y - top) / (bottom - top), 0, 1)
    place = MARGIN + (1 - 2 * MARGIN) * np.stack([across, down], axis=1)
    bent = corners[nearest, :2] + place * (corners[nearest, 2:] - corners[nearest, :2])
    moved = np.arange(len(x)) >= keep
    return replace(scanpath, x=np.where(moved, bent[:, 0], x), y=np.where(moved, bent[:, 1], y))
