"""Key frames: the places that a reader rested on, sentence by sentence (GazeX, arXiv 2604.14316).

The paper does not define a key frame. Here it is a cluster of the fixations that belong to one dictated sentence, or
to one window of time where nothing was dictated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .dictation import windows_of_sentences
from .findings import READING_ORDER, REGIONS, STAGE_WORDS, regions_at
from .labeler import label
from .scanpath import Scanpath


@dataclass(frozen=True)
class KeyFrame:
    """A place that was rested on.

    Args:
        fixations: indices into the scanpath, ascending.
        x, y: the place, 0..1 of the image from the top left: the mean of its fixations, weighted by their dwell.
        box: x1, y1, x2, y2 around its fixations, widened by a margin and cut to the image.
        onset: seconds at which the first of them begins, within the window of its sentence or of time.
        dwell: seconds on it, while its sentence or window lasts.
        sentence: index of the sentence it belongs to; None without sentences.
        stage: letter of `findings.READING_ORDER`: of what the sentence speaks of, else of the smallest region at the
            place; None where neither tells.
    """

    fixations: tuple[int, ...]
    x: float
    y: float
    box: tuple[float, float, float, float]
    onset: float
    dwell: float
    sentence: int | None = None
    stage: str | None = None


def key_frames(
    scanpath: Scanpath,
    sentences: Sequence[dict] | None = None,
    *,
    eps: float = 0.05,
    min_dwell: float = 0.4,
    lookback: float = 5.0,
    window: float = 5.0,
    margin: float = 0.03,
) -> list[KeyFrame]:
    """Key frames of a reading, sentence by sentence (or window by window), in each in the order of their first visit.

    Fixations on the image are clustered by DBSCAN (Ester et al., KDD 1996; scikit-learn's) with their dwell as weight:
    a fixation is part of a cluster's core if at least `min_dwell` seconds lie within `eps` of it, its own counted. So
    a single long fixation is a key frame, and a short one by itself is none.

    Args:
        scanpath: on the clock of the sentences.
        sentences: of `dictation.sentences_of`; None: windows of time.
        eps: how near neighbours are, as a fraction of the image's width and height.
        min_dwell: seconds, above 0.
        lookback: seconds before a sentence that belong to it, see `dictation.windows_of_sentences`.
        window: seconds of a window, above 0; the first begins with the first fixation.
        margin: by which boxes are widened on each side, as a fraction of the image.

    Raises:
        ValueError: for a parameter out of its range, and for a sentence without times.
    """
    for name, value in (("eps", eps), ("min_dwell", min_dwell), ("window", window)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number above 0, got {value}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be a number and not negative, got {margin}")
    onset = scanpath.onset.astype(np.float64)
    end = onset + scanpath.duration
    points = np.stack([scanpath.x, scanpath.y], axis=1).astype(np.float64)
    frames = []
    for number, (first, last) in enumerate(_windows(onset, end, sentences, lookback, window)):
        start = np.maximum(onset, first)
        dwell = np.minimum(end, last) - start
        seen = np.flatnonzero(scanpath.inside & (dwell > 0))
        said = {} if sentences is None else {"sentence": number, "stage": stage_of_text(sentences[number]["text"])}
        found = [
            _frame(points, seen[members], start, dwell, margin, **said)
            for members in _clusters(points[seen], dwell[seen] / min_dwell, eps)
        ]
        frames += sorted(found, key=lambda frame: (frame.onset, frame.fixations))
    return frames


def _windows(onset, end, sentences, lookback: float, window: float) -> Iterator[tuple[float, float]]:
    if sentences is not None:
        yield from windows_of_sentences(sentences, lookback=lookback)
    elif len(onset):
        count = max(1, int(np.ceil((end.max() - onset[0]) / window)))
        yield from ((onset[0] + number * window, onset[0] + (number + 1) * window) for number in range(count))


def _clusters(points: np.ndarray, weights: np.ndarray, eps: float) -> list[np.ndarray]:
    """Indices of the points of each cluster whose cores have a weight of at least 1 around them."""
    if not len(points):
        return []
    from sklearn.cluster import DBSCAN  # a second, which who wants no key frames does not wait

    # a rounding must not decide about exactly 1
    labels = DBSCAN(eps=eps, min_samples=1).fit_predict(points, sample_weight=weights * (1 + 1e-6))
    return [np.flatnonzero(labels == number) for number in range(labels.max() + 1)]


def _frame(points, fixations, start, dwell, margin: float, sentence=None, stage=None) -> KeyFrame:
    points, dwell = points[fixations], dwell[fixations]
    x, y = (dwell @ points / dwell.sum()).tolist()
    low, high = (points.min(0) - margin).clip(0, 1), (points.max(0) + margin).clip(0, 1)
    box, onset = (*low.tolist(), *high.tolist()), float(start[fixations].min())
    stage = stage or _stage_at(x, y)
    return KeyFrame(tuple(fixations.tolist()), x, y, box, onset, float(dwell.sum()), sentence, stage)


def stage_of_text(text: str) -> str | None:
    """The letter of `findings.READING_ORDER` that a sentence is about: of the first finding that it names, else of the
    first place; None where it names neither."""
    mentions = sorted(label(text).mentions, key=lambda mention: mention.start)
    for name in (name for mention in mentions for name in (mention.detail, mention.finding)):
        for stage in READING_ORDER:
            if name in stage.findings:
                return stage.letter
    found = [(match.start(), letter) for letter, words in STAGE_WORDS.items() if (match := words.search(text))]
    return min(found)[1] if found else None


def _stage_at(x: float, y: float) -> str | None:
    names = regions_at(x, y)
    return REGIONS[names[0]].stage if names else None
