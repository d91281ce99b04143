"""Scanpaths against readers' scanpaths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gaze_vlm.scanpath import Scanpath

from .. import baselines, saliency
from .._ranks import rank_correlation, ranks
from ..cases import Case, Pairs
from ..scanpath import (
    MULTIMATCH_DIMENSIONS,
    ScanpathMetric,
    edit_distance,
    fixation_statistics,
    multimatch,
    multimatch_mean4,
    reader_ceiling,
    saccade_amplitudes,
    scanmatch,
    time_delay_similarity,
)
from . import Metric, Score, ScoreTable, beside, drawn, once, score, systems_of

SCREEN = (224, 224)
MAP_SIZE = (56, 56)
MAP_SIGMA = 16 / 224  # GazeSearch's target maps
FINEST = 4000  # different values that a distance between distributions tells apart
CEILING = "another reader"
SAME_FINDING = "readers of the same finding"


def scanpath_of(case: Case) -> Scanpath:
    """The case's scanpath, the centre in front where the file leaves it out."""
    return case.value.with_centre() if case.centred else case.value


def scanpath_table(
    pairs: Pairs,
    *,
    training: Sequence[Case] = (),
    versus: Mapping[str, Sequence[Case]] | None = None,
    name: str = "predictions",
    maps: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> ScoreTable:
    """Scanpaths against readers' scanpaths, beside baselines that see no image.

    Args:
        training: readings of other images, for the baselines that learn from them.
        versus: name -> predictions of the same cases in the order of `pairs`, of other systems.
        maps: score heat maps too.
    """
    references = [scanpath_of(case) for case in pairs.references]
    training = [case for case in training if len(case.value)]
    systems = systems_of(pairs, versus, name, scanpath_of)
    sides = [(name, pairs.predictions), *(versus or {}).items()]
    sides += [("references", pairs.references), ("training scanpaths", training)]
    timed = all(case.timed for _, cases in sides for case in cases)
    systems = beside(systems, scanpath_baselines(references, pairs, training, seed))
    metrics = scanpath_metrics(references, timed=timed)
    longest = max(len(path) for paths in (references, *systems.values()) for path in paths)
    # a fixation that was put in front has a made-up duration
    made_up = any(case.centred for case in pairs.references)
    metrics += likeness_metrics(references, longest=longest, timed=timed, timed_from=int(made_up))
    if maps:
        metrics += map_metrics(references, timed=timed)
    options = {"resamples": resamples, "seed": seed}
    scores = score(systems, metrics, groups=pairs.groups, **options)
    ceilings = _ceilings(pairs, references, timed, options)
    protocol = [f"{len(references)} pairs", *pairs.left_out, drawn(pairs, resamples), *_about_paths(sides)]
    protocol.append(
        "Kolmogorov-Smirnov distances are of all cases together; two finite samples of one kind are not at 0 (a "
        "random reader of the same finding is the floor), and resamples, which repeat cases, lie above the estimate"
    )
    if timed:
        protocol.append("workload correlation: none ('-') for a system that takes the same time in every case")
    if ceilings:
        protocol.append(f"{CEILING}: of each case with several readings, each of them scored against the others")
    if training:
        protocol.append(f"baselines that learn from readers have {len(training)} training scanpaths")
    else:
        protocol.append("no training scanpaths given (--train): baselines that learn from readers are left out")
    return ScoreTable(tuple(_in_order([*scores, *ceilings])), tuple(protocol))


def scanpath_metrics(references: Sequence[Scanpath], *, timed: bool) -> list[Metric]:
    """ScanMatch, string edit distance, time-delay embedding, MultiMatch and the counts, against these references."""
    measured = [
        Metric(
            "ScanMatch (14 x 14 bins, threshold 3.5, gap 0, no duration)", True, lambda p: scanmatch(p, references)
        ),
        Metric("string edit distance (5 x 5 grid, 224 px)", False, lambda p: edit_distance(p, references)),
        Metric("scaled time-delay embedding", True, lambda p: time_delay_similarity(p, references)),
    ]
    dimensions = MULTIMATCH_DIMENSIONS if timed else MULTIMATCH_DIMENSIONS[:4]
    matched = once(lambda predictions: multimatch(predictions, references, screen_size=SCREEN))
    measured += [Metric(f"MultiMatch {d}", True, lambda p, d=d: matched(p)[d]) for d in dimensions]
    measured.append(
        Metric(
            "MultiMatch mean of 4 (no duration)",
            True,
            lambda p: np.mean([matched(p)[d] for d in MULTIMATCH_DIMENSIONS[:4]], axis=0),
        )
    )
    if timed:
        measured.append(
            Metric(
                "ScanMatch (14 x 14 bins, threshold 3.5, gap 0, duration in bins of 50 ms)",
                True,
                lambda p: scanmatch(p, references, temporal_bin=0.05),
            )
        )
    counted = once(fixation_statistics)
    measured.append(Metric("fixations a scanpath", None, lambda p: counted(p)["fixations"].astype(float)))
    if timed:
        seconds = fixation_statistics(references)["total_duration"]
        measured.append(Metric("fixated seconds a scanpath", None, lambda p: counted(p)["total_duration"]))
        measured.append(
            Metric(
                "workload correlation (Spearman, fixated seconds over cases)",
                True,
                # ranks of all cases, so that those of two systems are of one scale and can be swapped
                lambda p: np.stack([ranks(counted(p)["total_duration"]), ranks(seconds)], axis=1),
                lambda cases: rank_correlation(*cases.T),
            )
        )
    return measured


def likeness_metrics(
    references: Sequence[Scanpath], *, longest: int, timed: bool, timed_from: int = 0
) -> list[Metric]:
    """How far the distributions of saccades, durations and lengths are from the references', over all cases.

    Args:
        longest: no path, of whatever system, has more fixations.
        timed_from: the first fixation whose duration counts.
    """
    quantities = {
        "saccade amplitude": lambda p: (saccade_amplitudes(p, screen_size=SCREEN), [max(len(x) - 1, 0) for x in p]),
        "fixations a scanpath": lambda p: ([len(path) for path in p], [1] * len(p)),
    }
    if timed:
        quantities["fixation duration"] = lambda p: (
            np.concatenate([path.duration[timed_from:] for path in p]),
            [len(path.duration[timed_from:]) for path in p],
        )
    return [_distance(what, quantity, references, longest) for what, quantity in quantities.items()]


def _distance(what: str, quantity: Callable, references: Sequence[Scanpath], longest: int) -> Metric:
    """`distribution_distance` of a quantity: paths -> all their values, and how many of them are each path's.

    A row a case, so that cases can be drawn: places of its values among the references' sorted values, which is all
    that the distance depends on, and behind them a place that does not count. Of more than `FINEST` different values
    some quantiles stand for all, and the distance may come out 1 / `FINEST` too small.
    """
    known = np.unique(quantity(references)[0])
    if len(known) > FINEST:
        known = np.unique(np.quantile(quantity(references)[0], np.linspace(0, 1, FINEST), method="nearest"))
    size = 2 * len(known) + 1

    def places(paths: Sequence[Scanpath]) -> np.ndarray:
        values, counts = quantity(paths)
        rows = np.full((len(paths), longest), size, np.uint16)
        rows[np.arange(longest) < np.reshape(counts, (-1, 1))] = sum(
            np.searchsorted(known, values, side=side) for side in ("left", "right")
        )
        return rows

    def statistic(cases: np.ndarray) -> float:
        below = [np.bincount(side.ravel(), minlength=size)[:size].cumsum() for side in cases.swapaxes(0, 1)]
        if not all(count[-1] for count in below):
            return float("nan")
        return float(np.abs(below[0] / below[0][-1] - below[1] / below[1][-1]).max())

    theirs = places(references)
    return Metric(
        f"Kolmogorov-Smirnov distance to the readers' {what}",
        False,
        lambda p: np.stack([places(p), theirs], axis=1),
        statistic,
    )


def spread_table(
    samples: Mapping[str, Mapping[str, Sequence[Scanpath]]],
    references: Sequence[Case],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> ScoreTable:
    """How alike the scanpaths drawn for one case are, beside readers' and beside what baselines draw.

    More alike than readers' are those of a system that repeats itself, less alike those of one that looks anywhere.

    Args:
        samples: system -> finding -> two or more scanpaths drawn for it on one film, the system in question first.
        references: readings; findings with only one are left out.
    """
    readings: dict[str, list[Scanpath]] = {}
    for case in references:
        readings.setdefault(case.finding or "", []).append(scanpath_of(case))
    findings = [finding for finding, paths in readings.items() if len(paths) > 1]
    if not findings:
        raise ValueError(f"no finding has two readings: readings: {len(references)}, findings: {len(readings)}")
    for system, by_finding in samples.items():
        few = [finding for finding in findings if len(by_finding.get(finding, ())) < 2]
        if few:
            raise ValueError(f"{system}: {few[0]!r} needs two scanpaths or more, to be compared with one another")
    first, rng = next(iter(samples.values())), np.random.default_rng(seed)
    unseeing = {
        title: {finding: baseline.predict([finding] * len(first[finding]), rng) for finding in findings}
        for title, baseline in _unfitted([scanpath_of(case) for case in references]).items()
    }

    def among(metric: ScanpathMetric) -> Callable:
        return lambda by_finding: reader_ceiling(
            [path for finding in findings for path in by_finding[finding]],
            [finding for finding in findings for _ in by_finding[finding]],
            metric,
        )[0]

    metrics = [
        Metric("ScanMatch among scanpaths of one case (14 x 14 bins, no duration)", None, among(scanmatch)),
        Metric("MultiMatch mean of 4 among scanpaths of one case", None, among(multimatch_mean4)),
    ]
    systems = beside({**samples, SAME_FINDING: readings}, unseeing)
    protocol = (
        f"among scanpaths of one case: every two compared, a value a finding, {len(findings)} findings; a point "
        "estimate is always the same and has no spread",
        f"{SAME_FINDING}: on whatever films, for want of several readers of one film, who would be more alike",
        drawn(Pairs([], [Case(finding, None) for finding in findings]), resamples),
    )
    return ScoreTable(tuple(score(systems, metrics, resamples=resamples, seed=seed)), protocol)


def map_metrics(references: Sequence[Scanpath], *, timed: bool) -> list[Metric]:
    """Heat maps of predictions against heat maps and fixations of the references."""
    weights = "duration" if timed else "count"
    kept = f"{MAP_SIZE[0]} x {MAP_SIZE[1]}, sigma {MAP_SIGMA:.3f} of the width, weighted by {weights}"
    maps = once(lambda paths: saliency.heat_maps(paths, MAP_SIZE, sigma=MAP_SIGMA, weights=weights))
    truth = maps(references)
    uniform = np.full(MAP_SIZE, 1 / np.prod(MAP_SIZE))
    measured = [
        Metric(f"CC of maps ({kept})", True, lambda p: saliency.cc(maps(p), truth)),
        Metric("KL(reference || prediction) of maps, nats", False, lambda p: saliency.kl_divergence(maps(p), truth)),
        Metric("similarity of maps", True, lambda p: saliency.similarity(maps(p), truth)),
        Metric("NSS", True, lambda p: saliency.nss(maps(p), references)),
        Metric("AUC-Judd", True, lambda p: saliency.auc_judd(maps(p), references)),
        Metric(
            "information gain over a uniform map, bits a fixation",
            True,
            lambda p: saliency.information_gain(maps(p), references, uniform),
        ),
    ]
    if timed:
        masks = once(lambda predictions: saliency.medgaze_scores(predictions, references))
        measured += [Metric(f"MedGaze {key}", True, lambda p, key=key: masks(p)[key]) for key in masks(references)]
    return measured


def _about_paths(sides: Sequence[tuple[str, Sequence[Case]]]) -> list[str]:
    """What a reader of the table has to know of the paths, side by side."""

    def counted(what: Callable[[Case], bool], sentence: str) -> list[str]:
        listed = ", ".join(f"{side}: {count}" for side, cases in sides if (count := sum(map(what, cases))))
        return [f"{sentence} ({listed})"] if listed else []

    return [
        *counted(lambda case: case.centred, "a made-up fixation at the centre put in front"),
        *counted(
            lambda case: not case.timed, "durations are not known on every side, and what needs them is left out"
        ),
        *counted(lambda case: len(case.value) + case.centred < 3, "paths under 3 fixations, undefined in MultiMatch"),
        *counted(
            lambda case: not len(case.value) + case.centred,
            "paths without fixation, 0 in ScanMatch unless both have none",
        ),
    ]


def scanpath_baselines(
    references: Sequence[Scanpath], pairs: Pairs, training: Sequence[Case], seed: int
) -> dict[str, list[Scanpath]]:
    findings = [case.finding or "" for case in pairs.references]
    known = _unfitted(references)
    if training:
        known |= {
            "random reader, same finding": baselines.RandomHuman(),
            "mean of the finding": baselines.FindingMean(),
            "medoid of the finding": baselines.FindingMedoid(),
            "searched path of the finding": baselines.FindingSearch(),
        }
    paths, searched = [scanpath_of(case) for case in training], [case.finding or "" for case in training]
    rng = np.random.default_rng(seed)
    return {title: baseline.fit(paths, searched).predict(findings, rng) for title, baseline in known.items()}


def _unfitted(references: Sequence[Scanpath]) -> dict[str, baselines.ScanpathBaseline]:
    """The baselines that learn nothing, with as many fixations as the references have."""
    fixations = max(1, round(float(np.median([len(path) for path in references]))))
    return {
        f"centre, {fixations} fixations": baselines.CentrePrior(fixations=fixations),
        f"uniform, {fixations} fixations": baselines.Uniform(fixations=fixations),
    }


def _ceilings(pairs: Pairs, references: Sequence[Scanpath], timed: bool, options: dict) -> list[Score]:
    """How well readers of one case agree, where a case has several; n counts such cases."""
    cases = [case.id for case in pairs.references]
    if None in cases or len(set(cases)) == len(cases):
        return []
    group_of = dict(zip(cases, pairs.groups, strict=True))
    ceilings = []
    for i, metric in enumerate(scanpath_metrics(references, timed=timed)):
        if metric.higher_is_better is None or metric.statistic is not np.nanmean:
            continue
        values, shared = reader_ceiling(
            references, cases, lambda first, second, i=i: scanpath_metrics(second, timed=timed)[i].cases(first)
        )
        known = Metric(metric.name, metric.higher_is_better, lambda _, values=values: values)
        ceilings += score({CEILING: None}, [known], groups=[group_of[case] for case in shared], **options)
    return ceilings


def _in_order(scores: Sequence[Score]) -> list[Score]:
    """Metric by metric, systems as they came."""
    order = {name: i for i, name in enumerate(dict.fromkeys(score.metric for score in scores))}
    return sorted(scores, key=lambda score: order[score.metric])
