"""What a model has to beat: predictors that see no image.

Scanpath baselines share one interface: `fit(scanpaths, findings)` on training paths, one finding each, and
`predict(findings, rng)`, one path a finding. For a finding without training path they use the paths of all findings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from gaze_vlm.metrics.scanpath import scanmatch_matrix
from gaze_vlm.scanpath import Scanpath

NORMAL_TEMPLATE = (
    "The heart is of normal size. The mediastinum and the hila have normal contours. Both lungs are clear, without "
    "consolidation or edema. There is no pleural effusion and no pneumothorax. No acute bone abnormality is seen. "
    "No acute cardiopulmonary disease."
)
"""The report that fits most chest X-rays. It scores well on word overlap and 0 on the F1 of findings."""


class ScanpathBaseline(ABC):
    """`fit(scanpaths, findings)`, then `predict(findings, rng)`."""

    def fit(self, scanpaths: Sequence[Scanpath], findings: Sequence[str]) -> ScanpathBaseline:
        """Learn from training scanpaths and the finding each of them was searching for."""
        if len(scanpaths) != len(findings):
            raise ValueError(f"one finding a scanpath: scanpaths: {len(scanpaths)}, findings: {len(findings)}")
        return self

    @abstractmethod
    def predict(self, findings: Sequence[str], rng: np.random.Generator) -> list[Scanpath]:
        """One scanpath for each of `findings`; what is random comes from `rng`."""


class CentrePrior(ScanpathBaseline):
    """Fixations scattered about the centre (normal, `spread` of the image's side), the first exactly on it.

    Points that fall off the image are moved to its border. It learns nothing from `fit`.
    """

    def __init__(self, fixations: int = 7, spread: float = 30 / 224, duration: float = 0.3):
        self.fixations, self.spread, self.duration = fixations, spread, duration

    def predict(self, findings: Sequence[str], rng: np.random.Generator) -> list[Scanpath]:
        points = rng.normal(0.5, self.spread, size=(len(findings), 2, self.fixations)).clip(0, 1)
        points[..., 0] = 0.5
        return [Scanpath.from_relative(x, y, np.full(self.fixations, self.duration)) for x, y in points]


class Uniform(ScanpathBaseline):
    """Fixations anywhere on the image, the first at the centre, where every GazeSearch path starts."""

    def __init__(self, fixations: int = 7, duration: float = 0.3):
        self.fixations, self.duration = fixations, duration

    def predict(self, findings: Sequence[str], rng: np.random.Generator) -> list[Scanpath]:
        points = rng.random((len(findings), 2, self.fixations))
        points[..., 0] = 0.5
        return [Scanpath.from_relative(x, y, np.full(self.fixations, self.duration)) for x, y in points]


class _FromTrainingPaths(ScanpathBaseline):
    """Keeps the training paths of each finding."""

    def fit(self, scanpaths: Sequence[Scanpath], findings: Sequence[str]) -> ScanpathBaseline:
        super().fit(scanpaths, findings)
        if not scanpaths:
            raise ValueError("this baseline needs at least one training scanpath")
        groups = defaultdict(list)
        for scanpath, finding in zip(scanpaths, findings, strict=True):
            groups[finding].append(scanpath)
        self._all, self._groups = list(scanpaths), dict(groups)
        return self

    def _of(self, finding: str) -> list[Scanpath]:
        return self._groups.get(finding, self._all)


class RandomHuman(_FromTrainingPaths):
    """A random training scanpath of the same finding: a real reader, looking at another patient."""

    def predict(self, findings: Sequence[str], rng: np.random.Generator) -> list[Scanpath]:
        return [self._of(finding)[rng.integers(len(self._of(finding)))] for finding in findings]


class _OnePathAFinding(_FromTrainingPaths):
    """Predicts the same path whenever the finding is the same, and draws nothing."""

    def fit(self, scanpaths: Sequence[Scanpath], findings: Sequence[str]) -> ScanpathBaseline:
        super().fit(scanpaths, findings)
        self._summary = {finding: self._summarise(group) for finding, group in self._groups.items()}
        self._fallback = self._summarise(self._all)
        return self

    def predict(self, findings: Sequence[str], rng: np.random.Generator) -> list[Scanpath]:
        return [self._summary.get(finding, self._fallback) for finding in findings]

    @abstractmethod
    def _summarise(self, scanpaths: list[Scanpath]) -> Scanpath:
        """One scanpath that stands for many."""


class FindingMean(_OnePathAFinding):
    """Mean first, second, ... fixation of the finding's paths (position and duration), up to their median length."""

    def _summarise(self, scanpaths: list[Scanpath]) -> Scanpath:
        length = round(float(np.median([len(scanpath) for scanpath in scanpaths])))
        slots = [np.mean([path.to_array()[i] for path in scanpaths if len(path) > i], axis=0) for i in range(length)]
        x, y, _, duration = np.reshape(slots, (length, 4)).T
        return Scanpath.from_relative(x, y, duration)


class FindingMedoid(_OnePathAFinding):
    """The finding's training path with the highest mean ScanMatch to the others.

    Args:
        at_most: where a finding has more paths, the medoid is sought among this many drawn with `seed`.
    """

    def __init__(self, at_most: int = 400, seed: int = 0):
        self.at_most, self.seed = at_most, seed

    def _summarise(self, scanpaths: list[Scanpath]) -> Scanpath:
        if len(scanpaths) > self.at_most:
            drawn = np.random.default_rng(self.seed).choice(len(scanpaths), self.at_most, replace=False)
            scanpaths = [scanpaths[i] for i in drawn]
        # a path's score with itself is 1 for all alike: it does not change which is highest
        closeness = np.nan_to_num(scanmatch_matrix(scanpaths, scanpaths)).sum(axis=1)
        return scanpaths[int(closeness.argmax())]


class NearestNeighbour:
    """Retrieval: the training case whose feature vector points the same way (highest cosine similarity).

    For reports: predict the training report of the most similar training image.
    """

    def fit(self, features: np.ndarray) -> NearestNeighbour:
        """Keep the training features (n, d), of any scale."""
        self._features = _unit_rows(features)
        if not len(self._features):
            raise ValueError("nearest neighbour needs at least one training case")
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(m, d) -> (m,) int64, index of the most similar training case (the first of equals)."""
        queries = _unit_rows(features)
        if queries.shape[1] != self._features.shape[1]:
            raise ValueError(f"features: {queries.shape[1]} wide, in training: {self._features.shape[1]}")
        parts = [queries[start : start + 1024] for start in range(0, len(queries), 1024)]
        nearest = [(part @ self._features.T).argmax(axis=1) for part in parts]
        return np.concatenate(nearest) if nearest else np.zeros(0, dtype=np.int64)


def _unit_rows(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2:
        raise ValueError(f"features must be (n, d), got shape {features.shape}")
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)
