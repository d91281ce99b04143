"""Agreement of scanpaths with radiologists', and of radiologists' among themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from gaze_vlm.scanpath import Scanpath

from .._numbers import ratio
from ..agreement import Clusters, cluster_vectors, cosine_of_sums, dtw_distance, dwell_sums, icc_of_sums
from ..cases import Case, Pairs
from . import FEW, Metric, ScoreTable, beside, drawn, once, score, systems_of
from .scanpaths import scanpath_baselines, scanpath_of

EPS = 0.05  # of the image's sides
MIN_SAMPLES = 2
DRAWS = 5  # paths of other cases for each reading
AMONG = "readers among themselves"
ELSEWHERE = "a reader of another case"


class Compared(NamedTuple):
    """Pairs of paths, and the number of the case that each pair is of: none, one or several a case."""

    first: list[Scanpath]
    second: list[Scanpath]
    case: np.ndarray

    def of(self, cases: np.ndarray) -> Compared:
        """The pairs of these cases, in ascending order, numbered anew."""
        rows = np.flatnonzero(np.isin(self.case, cases))
        first, second = ([paths[i] for i in rows] for paths in (self.first, self.second))
        return Compared(first, second, np.searchsorted(cases, self.case[rows]))


def agreement_table(
    pairs: Pairs,
    *,
    training: Sequence[Case] = (),
    versus: Mapping[str, Sequence[Case]] | None = None,
    name: str = "predictions",
    resamples: int = 1000,
    seed: int = 0,
) -> ScoreTable:
    """ICC and cosine of dwell over clusters, and DTW distance: with all readers of a case, with each reader by name,
    and of readers with one another; beside paths of other cases and baselines that see no image.

    Args:
        training: readings of other images, for the baselines that learn from them.
        versus: name -> predictions of the same cases in the order of `pairs`, of other systems.
    """
    training = [case for case in training if len(case.value)]
    sides = [(name, pairs.predictions), *(versus or {}).items()]
    sides += [("references", pairs.references), ("training scanpaths", training)]
    timed = all(case.timed for _, cases in sides for case in cases)
    references = [scanpath_of(case) for case in pairs.references]
    known = systems_of(pairs, versus, name, scanpath_of)
    case = _case_numbers(pairs)
    systems = {title: Compared(paths, references, case) for title, paths in known.items()}
    mine = systems[name]
    chance = {f"{name} of another case": known[name], ELSEWHERE: references}
    systems = beside(systems, _of_other_cases(chance, mine, pairs.groups, seed))
    unseeing = scanpath_baselines(references, pairs, training, seed)
    systems = beside(systems, {title: Compared(paths, references, case) for title, paths in unseeing.items()})
    readers = {f"{name} against reader {reader}": compared for reader, compared in _by_reader(mine, pairs).items()}
    readers |= _among(mine, pairs)

    of_pairs = pairs.groups
    groups = [of_pairs[row] for row in np.unique(case, return_index=True)[1]]
    options = {"resamples": resamples, "seed": seed}
    scores = score(systems, agreement_metrics(len(groups), timed=timed), groups=groups, **options)
    for title, compared in readers.items():
        cases = np.unique(compared.case)
        both = beside({name: mine.of(cases)}, {title: compared.of(cases)})
        metrics = agreement_metrics(len(cases), timed=timed)
        scores += score(both, metrics, groups=[groups[i] for i in cases], **options)[1::2]
    order = {title: i for i, title in enumerate(dict.fromkeys([*known, *readers, *systems]))}
    measured = {metric.name: i for i, metric in enumerate(agreement_metrics(0, timed=timed))}
    scores.sort(key=lambda one: (measured[one.metric], order.get(one.system, len(known))))
    counted = f"{len(groups)} cases, {len(references)} readings; a case counts once, with the mean over its readings"
    drawn_from = drawn(Pairs([], [Case(None, None, group) for group in groups]), resamples)
    protocol = [counted, *pairs.left_out, drawn_from, *_definitions(timed)]
    protocol += [*_about_readers(pairs, readers), _about_chance(pairs, name)]
    learned = f"baselines that learn from readers have {len(training)} training scanpaths"
    none = "no training scanpaths given (--train): baselines that learn from readers are left out"
    protocol += [*_about_paths(sides), learned if training else none]
    return ScoreTable(tuple(scores), tuple(protocol))


def agreement_metrics(cases: int, *, timed: bool) -> list[Metric]:
    """Cosine and both ICC over clusters by DBSCAN and over regions, and DTW distance, of `Compared` paths.

    Args:
        cases: how many there are.
        timed: clusters hold the seconds of their fixations, or else their number.
    """
    what = "seconds" if timed else "fixations"
    dbscan = f"DBSCAN, eps {EPS}, from {MIN_SAMPLES} fixations"
    kinds: dict[str, Clusters] = {dbscan: "dbscan", "17 regions": "regions"}
    metrics = []
    for kind, clusters in kinds.items():
        sums = once(lambda compared, clusters=clusters: _sums(compared, clusters, timed))
        metrics.append(
            Metric(
                f"cosine of {what} a cluster ({kind})",
                True,
                lambda compared, sums=sums: _of_cases(cosine_of_sums(sums(compared)), compared.case, cases),
            )
        )
        metrics += [
            Metric(
                f"ICC({form}) of {what} a cluster ({kind})",
                True,
                lambda compared, sums=sums: _of_cases(sums(compared), compared.case, cases),
                lambda rows, form=form: icc_of_sums(rows, form=form),
            )
            for form in ("2,1", "3,1")
        ]
    metrics.append(
        Metric(
            "DTW distance of fixations, in sides of the image",
            False,
            lambda compared: _of_cases(dtw_distance(compared.first, compared.second), compared.case, cases),
        )
    )
    return metrics


def _sums(compared: Compared, clusters: Clusters, timed: bool) -> np.ndarray:
    """(pairs, 6) `dwell_sums`."""
    sides = [compared.first, compared.second]
    if not timed:
        sides = [[Scanpath.from_relative(path.x, path.y, np.ones(len(path))) for path in side] for side in sides]
    vectors = cluster_vectors(*sides, clusters=clusters, eps=EPS, min_samples=MIN_SAMPLES)
    return dwell_sums(vectors, len(compared.case))


def _of_cases(values: np.ndarray, case: np.ndarray, cases: int) -> np.ndarray:
    """Values (pairs, ...) -> (cases, ...), the mean over a case's pairs that have a value; NaN where none has."""
    defined = ~np.isnan(values.reshape(len(values), -1)).any(axis=1)
    values, case = values[defined], case[defined]
    total = np.zeros((cases, *values.shape[1:]))
    np.add.at(total, case, values)
    number = np.bincount(case, minlength=cases).reshape(-1, *[1] * (values.ndim - 1))
    return ratio(total, np.broadcast_to(number, total.shape))


# ---- who is compared with whom


def _case_numbers(pairs: Pairs) -> np.ndarray:
    """(pairs,) int64: equal where readings are of one case, from 0 in the order in which cases first occur."""
    numbers: dict[str | int, int] = {}
    ids = [row if case.id is None else case.id for row, case in enumerate(pairs.references)]
    return np.array([numbers.setdefault(name, len(numbers)) for name in ids], dtype=np.int64)


def _of_other_cases(
    paths: Mapping[str, Sequence[Scanpath]], mine: Compared, groups: Sequence[str], seed: int
) -> dict[str, Compared]:
    """Each reading against `DRAWS` of the paths that are of other patients or images; none where there is no other."""
    group = np.unique(groups, return_inverse=True)[1]
    if group.max() == 0:
        return {}
    rng = np.random.default_rng(seed)
    other = rng.integers(len(group), size=(DRAWS, len(group)))
    while (same := group[other] == group).any():
        other[same] = rng.integers(len(group), size=same.sum())
    case = np.tile(mine.case, DRAWS)
    return {title: Compared([of[i] for i in other.ravel()], mine.second * DRAWS, case) for title, of in paths.items()}


def _by_reader(mine: Compared, pairs: Pairs) -> dict[str, Compared]:
    """Reader -> the pairs of their cases, of readers with `FEW` cases or more; none where only one is named."""
    rows: dict[str, list[int]] = {}
    for row, case in enumerate(pairs.references):
        if case.reader is not None:
            rows.setdefault(case.reader, []).append(row)
    if len(rows) < 2:
        return {}
    return {
        reader: Compared([mine.first[i] for i in known], [mine.second[i] for i in known], mine.case[known])
        for reader, known in sorted(rows.items())
        if len(known) >= FEW
    }


def _among(mine: Compared, pairs: Pairs) -> dict[str, Compared]:
    """Every two readings of one case, the reader first whose name is; none where no case has two."""
    readings: dict[int, list[int]] = {}
    for row in sorted(range(len(mine.case)), key=lambda row: pairs.references[row].reader or ""):
        readings.setdefault(mine.case[row], []).append(row)
    twos = [two for rows in readings.values() for two in combinations(rows, 2)]
    if not twos:
        return {}
    first, second = ([mine.second[row] for row in side] for side in zip(*twos, strict=True))
    return {AMONG: Compared(first, second, mine.case[[row for row, _ in twos]])}


# ---- what has to be known of it


def _definitions(timed: bool) -> list[str]:
    kept = "" if timed else "; durations are not known on every side, and every fixation counts 1 for its seconds"
    return [
        f"clusters: of the fixations of the two paths compared, those alone each for itself, or the boxes of regions; "
        f"fixations off the image do not count{kept}",
        "ICC: clusters are the subjects, those of all cases together, and the two paths the raters; ICC(2,1) asks for "
        "the same time in each, ICC(3,1) for the same differences",
        "chance is not 0: ICC by DBSCAN lies below it for short paths, cosine and ICC far above it for long ones; so "
        "read every number beside those of other cases",
        "DTW distance: dynamic time warping, the symmetric form of Sakoe and Chiba, divided by the fixations of both",
    ]


def _about_readers(pairs: Pairs, readers: Mapping[str, Compared]) -> list[str]:
    """Which readers have rows, and why others have none."""
    counts = Counter(case.reader for case in pairs.references if case.reader is not None)
    few = sum(count < FEW for count in counts.values())
    if len(counts) < 2:
        said = ["no rows of single readers: the references name " + ("only one" if counts else "none")]
    else:
        said = [f"{few} of {len(counts)} readers have under {FEW} cases, and no row of their own"] if few else []
    if AMONG not in readers:
        return [*said, f"no case has two readings: no row of {AMONG}"]
    cases = len(np.unique(readers[AMONG].case))
    what = f"{AMONG}: every two of a case once, in the order of their names; {cases} cases have several readings"
    return [*said, f"{what}, and with fewer than {FEW} the interval is too narrow" if cases < FEW else what]


def _about_chance(pairs: Pairs, name: str) -> str:
    if len(set(pairs.groups)) < 2:
        return "all there is comes from one patient or image: no rows of other cases"
    return (
        f"{name} of another case, {ELSEWHERE}: {DRAWS} of other patients or images, drawn at random, against each "
        "reading; what any gaze over a chest X-ray reaches"
    )


def _about_paths(sides: Sequence[tuple[str, Sequence[Case]]]) -> list[str]:
    """How many paths of either side are no ordinary ones."""
    said = []
    for what, sentence in (
        (lambda case: case.centred, "a made-up fixation at the centre put in front, in which all such paths agree"),
        (
            lambda case: not len(case.value) + case.centred,
            "paths without fixation, undefined in cosine and DTW distance and without dwell in ICC",
        ),
    ):
        listed = ", ".join(f"{side}: {count}" for side, cases in sides if (count := sum(map(what, cases))))
        said += [f"{sentence} ({listed})"] if listed else []
    return said
