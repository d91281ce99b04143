"""Fixations of raw gaze."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..scanpath import Scanpath, ScanpathError

THRESHOLDS = {"idt": 1.0, "ivt": 20.0}  # degrees, degrees a second


def fixations_from_gaze(
    t: Sequence[float],
    x: Sequence[float],
    y: Sequence[float],
    *,
    image_size: tuple[int, int],
    pixels_per_degree: float,
    method: Literal["idt", "ivt"] = "idt",
    threshold: float | None = None,
    minimum_duration: float = 0.1,
) -> Scanpath:
    """Fixations in the samples of an eye tracker, found by pymovements (both: Salvucci and Goldberg, ETRA 2000).

    A fixation lies at the mean of its samples. Lost samples end it: those that are NaN, and those that are missing
    (two samples further apart than one and a half times the usual).

    Args:
        t: (n,) seconds, increasing.
        x, y: (n,) in the image 0..1, NaN where the eye was not found.
        image_size: (width, height) of the image in pixels.
        pixels_per_degree: pixels of the image that one degree of visual angle covers, which depends on screen,
            distance and zoom (REFLACX releases it with each sample). With 1, thresholds are in pixels.
        method: "idt", by dispersion: samples whose spread in x and spread in y add up to less than the threshold.
            "ivt", by velocity: samples slower than it.
        threshold: degrees for "idt" (default 1), degrees a second for "ivt" (default 20).
        minimum_duration: seconds; what is shorter is no fixation.
    """
    try:
        from pymovements.events import idt, ivt
        from pymovements.transforms.numpy import pos2vel
    except ImportError as error:
        raise ImportError('fixations_from_gaze needs pymovements: pip install "gaze2report[gaze]"') from error
    if method not in THRESHOLDS:
        raise ValueError(f'method must be "idt" or "ivt", got {method!r}')
    threshold = THRESHOLDS[method] if threshold is None else threshold
    if not min(threshold, pixels_per_degree, minimum_duration) > 0:
        raise ValueError("threshold, pixels_per_degree and minimum_duration must be above 0")
    t, x, y = _samples(t, x, y)
    steps = np.diff(t)
    usual = float(np.median(steps)) if len(steps) else 1.0
    enough = max(2, round(minimum_duration / usual))  # samples
    degrees = np.stack([x, y], axis=1) * image_size / pixels_per_degree
    lost = np.isnan(degrees).any(axis=1)
    cuts = np.flatnonzero((steps > 1.5 * usual) | (np.diff(lost) != 0)) + 1
    found = []
    for part in np.split(np.arange(len(t)), cuts):
        if len(part) < max(enough, 6) or lost[part[0]]:  # pymovements needs 6 samples to tell a velocity
            continue
        if method == "idt":
            events = idt(degrees[part], minimum_duration=enough, dispersion_threshold=threshold)
        else:
            velocities = pos2vel(degrees[part], sampling_rate=1 / usual, method="smooth")
            events = ivt(velocities, minimum_duration=enough, velocity_threshold=threshold)
        for first, last in zip(events.frame["onset"], events.frame["offset"], strict=True):
            first, last = part[first], part[last]  # pymovements lets "idt" end with the first sample beyond it
            found.append((x[first:last].mean(), y[first:last].mean(), t[last] - t[first], t[first]))
    columns = np.array(found).reshape(-1, 4).T
    return Scanpath.from_relative(*columns, image_size=image_size)


def _samples(t, x, y) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = [np.asarray(values, dtype=np.float64) for values in (t, x, y)]
    if any(column.ndim != 1 for column in columns) or len({len(column) for column in columns}) > 1:
        raise ScanpathError(f"t, x and y must be flat and of one length, got {[column.shape for column in columns]}")
    still = np.flatnonzero(~(np.diff(columns[0]) > 0))
    if len(still):
        i = int(still[0])
        raise ScanpathError(f"sample {i + 1}: t {columns[0][i + 1]:g} s does not lie after {columns[0][i]:g} s")
    return tuple(columns)
