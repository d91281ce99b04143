"""Boxes and points against a raster, against every matching, and moved about."""

import sys
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaze_vlm.metrics.grounding import (
    accuracy_at,
    box_iou,
    box_iou_matrix,
    dwell_in_boxes,
    grounding_scores,
    iou_hungarian,
    iou_union,
    map_iou,
    map_peaks,
    mean_iou,
    pointing_game,
)
from gaze_vlm.metrics.statistics import paired_bootstrap
from gaze_vlm.scanpath import Scanpath

SIDE = 16


@st.composite
def raster_boxes(draw, smallest=0, largest=5):
    """Boxes with an area whose edges lie on whole numbers, so that a raster is exact too."""
    edges = st.lists(st.integers(0, SIDE), min_size=2, max_size=2, unique=True).map(sorted)
    boxes = draw(st.lists(st.tuples(edges, edges), min_size=smallest, max_size=largest))
    return np.array([(x1, y1, x2, y2) for (x1, x2), (y1, y2) in boxes], dtype=float).reshape(-1, 4)


def random_boxes(rng, count):
    corners = np.sort(rng.random((count, 2, 2)), axis=1)
    return corners.reshape(-1, 4)


def raster(boxes):
    cells = np.zeros((SIDE, SIDE), dtype=bool)
    for x1, y1, x2, y2 in boxes.astype(int):
        cells[y1:y2, x1:x2] = True
    return cells


def flipped(boxes):
    return np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)


# ---- two boxes


def test_iou_by_hand():
    a = [[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 1, 1], [3, 3, 3, 3]]
    b = [[1, 1, 3, 3], [0, 0, 2, 2], [1, 0, 2, 1], [0, 0, 1, 2], [1, 1, 1, 1], [3, 3, 3, 3]]
    np.testing.assert_allclose(box_iou(a, b), [1 / 7, 1, 0, 0.5, 0, np.nan])


@settings(deadline=None)
@given(raster_boxes(), raster_boxes())
def test_the_matrix_is_every_pair_and_a_raster_agrees(a, b):
    matrix = box_iou_matrix(a, b)
    assert matrix.shape == (len(a), len(b))
    for i, first in enumerate(a):
        for j, second in enumerate(b):
            one, other = raster(first[None]), raster(second[None])
            assert matrix[i, j] == pytest.approx((one & other).sum() / (one | other).sum())
    np.testing.assert_array_equal(matrix, box_iou_matrix(b, a).T)
    same = min(len(a), len(b))
    np.testing.assert_array_equal(box_iou(a[:same], b[:same]), matrix.diagonal())


# ---- areas


@settings(max_examples=200, deadline=None)
@given(raster_boxes(), raster_boxes(smallest=1))
def test_union_iou_is_that_of_a_raster(predicted, reference):
    a, b = raster(predicted), raster(reference)
    assert iou_union([predicted], [reference])[0] == pytest.approx((a & b).sum() / (a | b).sum(), abs=1e-12)


@settings(deadline=None)
@given(raster_boxes(largest=1, smallest=1), raster_boxes(largest=1, smallest=1))
def test_with_one_box_a_side_all_ious_are_one(a, b):
    expected = pytest.approx(box_iou(a, b)[0], abs=1e-12)
    assert iou_union([a], [b])[0] == expected
    pytest.importorskip("scipy")
    assert iou_hungarian([a], [b])[0] == expected


def test_how_an_area_is_cut_up_does_not_matter():
    whole = [[0.1, 0.2, 0.9, 0.8]]
    parts = [[0.1, 0.2, 0.5, 0.8], [0.5, 0.2, 0.9, 0.8], [0.3, 0.4, 0.6, 0.7], [0.3, 0.4, 0.6, 0.7]]
    assert iou_union([parts], [whole])[0] == pytest.approx(1, abs=1e-12)
    pytest.importorskip("scipy")
    assert iou_hungarian([parts], [whole])[0] == pytest.approx(0.5 / 4)  # half the area, and three boxes too many


# ---- matching


def best_matching(predicted, reference):
    """Every way to give each box of the shorter side one of its own on the longer."""
    short, long = sorted([predicted, reference], key=len)
    ious = box_iou_matrix(short, long)
    rows = np.arange(len(short))
    return max(ious[rows, list(columns)].sum() for columns in permutations(range(len(long)), len(short))) / len(long)


def test_hungarian_is_the_best_of_all_matchings():
    pytest.importorskip("scipy")
    rng = np.random.default_rng(0)
    cases = [[random_boxes(rng, count) for count in rng.integers(1, 6, size=2)] for _ in range(150)]
    predicted, reference = zip(*cases, strict=True)
    expected = [best_matching(*case) for case in cases]
    np.testing.assert_allclose(iou_hungarian(predicted, reference), expected, atol=1e-12)
    # the nearest box for each, one after the other, would not do
    greedy = [box_iou_matrix(*case).max(axis=1).sum() / max(map(len, case)) for case in cases]
    assert not np.allclose(greedy, expected)


def test_missing_and_surplus_boxes_cost():
    pytest.importorskip("scipy")
    left, right = [0.1, 0.1, 0.4, 0.4], [0.6, 0.1, 0.9, 0.4]
    scores = iou_hungarian([[left, right], [right, left], [left], [left, right]], [[left, right]] * 3 + [[right]])
    np.testing.assert_allclose(scores, [1, 1, 0.5, 0.5])


# ---- any measure


@pytest.mark.parametrize("iou", [iou_union, iou_hungarian])
def test_moving_both_sides_changes_nothing(iou):
    if iou is iou_hungarian:
        pytest.importorskip("scipy")
    rng = np.random.default_rng(1)
    predicted, reference = ([random_boxes(rng, count) for count in rng.integers(1, 5, size=60)] for _ in range(2))
    scores = iou(predicted, reference)
    assert (scores >= 0).all() and (scores <= 1).all() and (scores > 0.05).mean() > 0.5
    np.testing.assert_allclose(iou(reference, predicted), scores, atol=1e-12)
    np.testing.assert_allclose(iou([b[::-1] for b in predicted], reference), scores, atol=1e-12)
    np.testing.assert_array_equal(iou(reference, reference), 1)
    moves = (
        flipped,
        lambda boxes: boxes * [640, 480, 640, 480],
        lambda boxes: boxes + np.array([3, 7, 3, 7]),
        lambda boxes: boxes[:, [1, 0, 3, 2]],
    )
    for move in moves:
        moved = iou([move(boxes) for boxes in predicted], [move(boxes) for boxes in reference])
        np.testing.assert_allclose(moved, scores, atol=1e-9)


@pytest.mark.parametrize("iou", [iou_union, iou_hungarian])
def test_no_prediction_is_a_miss_and_no_reference_no_case(iou):
    if iou is iou_hungarian:
        pytest.importorskip("scipy")
    box = [[0, 0, 1, 1]]
    speck = [[0.5, 0.5, 0.5, 0.5]]  # a prediction without an area overlaps nothing
    ious = iou([box, [], speck, box, []], [box, box, box, [], np.zeros((0, 4))])
    np.testing.assert_array_equal(ious, [1, 0, 0, np.nan, np.nan])
    assert iou([], []).shape == (0,)
    scores = grounding_scores([box, [], speck, box, []], [box, box, box, [], []], iou=iou)
    assert (scores.cases, scores.without_reference, scores.without_prediction) == (5, 2, 1)
    assert scores.mean_iou == pytest.approx(1 / 3)
    assert scores.accuracy == pytest.approx({0.3: 1 / 3, 0.5: 1 / 3})


def test_means_leave_out_cases_without_reference():
    ious = np.array([0.2, 0.3, np.nan, 0.5, 1.0])
    assert mean_iou(ious) == 0.5
    assert accuracy_at(ious, 0.3) == 0.75
    assert accuracy_at(ious, 0.5) == 0.5
    assert np.isnan(mean_iou([np.nan]))
    assert np.isnan(accuracy_at([], 0.5))
    assert paired_bootstrap(ious, ious, mean_iou, resamples=50) == (0, 0, 0)
    nothing = grounding_scores([], [])
    assert nothing.cases == 0 and np.isnan(nothing.mean_iou) and np.isnan(nothing.accuracy[0.5])


@pytest.mark.parametrize("iou", [box_iou, iou_union])
def test_one_half_is_at_least_one_half(iou):
    """Of boxes in thousandths whose IoU is exactly 1/2 many are 0.49999999999999994 in floating point."""
    edges = np.random.default_rng(3).integers(0, 480, (500, 4)) * [1, 1, 1, 1] + [0, 0, 481, 481]
    edges[:, 2] += (edges[:, 2] - edges[:, 0]) % 2
    halves = edges.copy()
    halves[:, 2] = (edges[:, 0] + edges[:, 2]) // 2
    whole, half = edges[:, None] / 1000, halves[:, None] / 1000
    ious = box_iou(whole[:, 0], half[:, 0]) if iou is box_iou else iou_union(whole, half)
    assert (ious < 0.5).any()
    assert accuracy_at(ious, 0.5) == 1


# ---- points


def test_pointing_game_by_hand():
    boxes = [[0.2, 0.2, 0.4, 0.4], [0.6, 0.6, 0.8, 0.8]]
    points = [[0.3, 0.3], [0.7, 0.7], [0.5, 0.5], [0.2, 0.4], [0.3, 0.7], [0.3, 0.3]]
    hits = pointing_game(points, [boxes] * 5 + [[]])
    np.testing.assert_array_equal(hits, [1, 1, 0, 1, 0, np.nan])


def test_tolerance_is_a_distance_to_the_nearest_box():
    box = [[10, 10, 20, 20]]
    points = [[25, 15], [23, 24], [24, 24], [15, 4.9]]  # 5, 5, 5.7 and 5.1 away
    np.testing.assert_array_equal(pointing_game(points, [box] * 4, tolerance=5), [1, 1, 0, 0])
    np.testing.assert_array_equal(pointing_game(points, [box] * 4, tolerance=6), 1)


def test_peaks_of_maps():
    maps = np.zeros((4, 2, 4))
    maps[0, 1, 0] = 3  # one cell
    maps[1, 0, 2:] = 0.5  # two neighbours
    maps[2] = -7  # flat
    maps[3] = [[-1, -1, -1, -2], [-2, -2, -2, -2]]
    np.testing.assert_allclose(map_peaks(maps), [[0.125, 0.75], [0.75, 0.25], [0.5, 0.5], [0.375, 0.25]])
    mirrored = map_peaks(maps[:, :, ::-1])
    np.testing.assert_allclose(mirrored, map_peaks(maps) * [-1, 1] + [1, 0])


def test_pointing_game_over_maps_is_that_of_the_mirrored_film():
    rng = np.random.default_rng(2)
    maps, boxes = rng.random((80, 7, 9)), [random_boxes(rng, 2) for _ in range(80)]
    hits = pointing_game(map_peaks(maps), boxes, tolerance=0.02)
    assert 0.1 < hits.mean() < 0.9
    mirrored = pointing_game(map_peaks(maps[:, :, ::-1]), [flipped(b) for b in boxes], tolerance=0.02)
    np.testing.assert_array_equal(mirrored, hits)


def test_map_iou_by_hand():
    maps = np.zeros((4, 2, 4))
    maps[0, 0, :2] = 1, 0.5  # half of the peak is reached, the left half of the upper row
    maps[1, 0, :2] = 1, 0.49
    maps[2] = 1  # everywhere
    maps[3, 1, 3] = 1e-30  # however low its peak
    boxes = [[[0, 0, 0.5, 0.5]], [[0, 0, 0.5, 0.5]], [[0, 0, 0.5, 0.5]], [[0.5, 0.5, 1, 1]]]
    np.testing.assert_allclose(map_iou(maps, boxes), [1, 0.5, 0.25, 0.5])
    np.testing.assert_allclose(map_iou(maps, boxes, threshold=0.49), [1, 1, 0.25, 0.5])
    np.testing.assert_allclose(map_iou(maps, boxes, threshold=1), [0.5, 0.5, 0.25, 0.5])


def test_map_iou_of_one_cell_is_the_share_of_the_boxes():
    np.testing.assert_allclose(map_iou(np.full((2, 1, 1), 0.3), [[[0.1, 0.2, 0.6, 0.4]], [[0, 0, 1, 1]]]), [0.1, 1])


def test_map_iou_without_reference_is_nan():
    np.testing.assert_allclose(map_iou(np.ones((2, 2, 2)), [[], [[0, 0, 1, 0.5]]]), [np.nan, 0.5])
    assert map_iou(np.ones((0, 2, 2)), []).shape == (0,)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 16]), raster_boxes(smallest=1))
def test_map_iou_is_that_of_a_raster(seed, rows, columns, boxes):
    cells = np.random.default_rng(seed).random((1, rows, columns))
    reached = np.kron(cells[0] >= 0.5 * cells.max(), np.ones((SIDE // rows, SIDE // columns), dtype=bool))
    marked = raster(boxes)
    expected = (reached & marked).sum() / (reached | marked).sum()
    assert map_iou(cells, [boxes / SIDE])[0] == pytest.approx(expected)


# ---- gaze


def gaze(*fixations):
    return Scanpath.from_relative(*np.array(fixations, dtype=float).reshape(-1, 3).T)


def test_dwell_by_hand():
    path = gaze((0.3, 0.3, 0.5), (0.9, 0.1, 1.0), (-0.2, 0.3, 0.25), (0.2, 0.4, 0.25))
    left, right = [0.2, 0.2, 0.4, 0.4], [0.8, 0.0, 1.0, 0.2]
    cases = [[left], [right], [left, right], [left, [0.25, 0.25, 0.35, 0.35]], [[0.6, 0.6, 0.7, 0.7]]]
    shares = dwell_in_boxes([path] * 5, cases)
    assert shares.dtype == np.float64
    np.testing.assert_allclose(shares, [0.375, 0.5, 0.875, 0.375, 0])


@pytest.mark.filterwarnings("error")
def test_dwell_is_undefined_without_boxes_and_without_time():
    path, still, none = gaze((0.5, 0.5, 0.3)), gaze((0.5, 0.5, 0)), gaze()
    shares = dwell_in_boxes([path, still, none, path], [[], GOOD, GOOD, GOOD])
    np.testing.assert_array_equal(shares, [np.nan, np.nan, np.nan, 1])
    assert dwell_in_boxes([], []).shape == (0,)


@settings(max_examples=50, deadline=None)
@given(raster_boxes(smallest=1), st.integers(0, 2**32 - 1))
def test_dwell_equals_a_raster(boxes, seed):
    rng = np.random.default_rng(seed)
    cell, duration = rng.integers(0, SIDE, (12, 2)), rng.exponential(0.3, 12)
    path = Scanpath.from_relative(*((cell.T + 0.5) / SIDE), duration)
    expected = duration[raster(boxes)[cell[:, 1], cell[:, 0]]].sum() / duration.sum()
    (share,) = dwell_in_boxes([path], [boxes / SIDE])
    assert share == pytest.approx(expected, abs=1e-6)


def test_a_fixation_on_the_border_is_in_the_box():
    """As float32 0.3 lies above 0.3, and 0.7 below 0.7."""
    borders = [[x, y, x + 0.1, y + 0.1] for x, y in np.random.default_rng(5).integers(0, 900, (200, 2)) / 1000]
    corners = [gaze((x1, y1, 0.2), (x2, y2, 0.2), (x1, y2, 0.2)) for x1, y1, x2, y2 in borders]
    np.testing.assert_array_equal(dwell_in_boxes(corners, [[box] for box in borders]), 1)


def test_uniform_gaze_dwells_as_long_as_the_boxes_are_large():
    rng = np.random.default_rng(6)
    boxes = [random_boxes(rng, 3) for _ in range(4)]
    path = Scanpath.from_relative(*rng.random((2, 20_000)), np.full(20_000, 0.1))
    area = iou_union([[(0, 0, 1, 1)]] * 4, boxes)
    np.testing.assert_allclose(dwell_in_boxes([path] * 4, boxes), area, atol=0.015)


# ---- errors

GOOD = [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: iou_union([GOOD, [[0, 0, 1, 1], [0.5, 0, 0.2, 1]]], [GOOD, GOOD]),
            "case 1, predicted box 1: .*x2 below",
        ),
        (lambda: iou_union([GOOD], [[[0, 1, 1, 0]]]), "case 0, reference box 0: .*y2 below y1"),
        (lambda: iou_union([GOOD, GOOD], [GOOD, [[0, 0, 0, 1]]]), r"case 1, reference box 0: \[.*\] has no area"),
        (lambda: iou_union([[[0, 0, np.nan, 1]]], [GOOD]), "case 0, predicted box 0: holds nan"),
        (lambda: iou_union([GOOD], [[[0, 0, np.inf, 1]]]), "case 0, reference box 0: holds inf"),
        (lambda: iou_union([[0, 0, 1, 1]], [GOOD]), r"case 0, predicted boxes must be \(k, 4\).*got shape \(4,\)"),
        (lambda: iou_union([[[0, 0, 1], [0, 0, 1, 1]]], [GOOD]), "case 0, predicted boxes must be"),
        (lambda: iou_union([GOOD], []), "predicted: 1, reference: 0"),
        (lambda: box_iou(GOOD, [*GOOD, *GOOD]), "a: 1, b: 2"),
        (lambda: box_iou(GOOD, [[1, 0, 0, 1]]), "b box 0: .*x2 below"),
        (lambda: accuracy_at([0.5], 0), "threshold must be above 0"),
        (lambda: accuracy_at([[0.5]], 0.5), r"\(n,\)"),
        (lambda: pointing_game([[0.5, 0.5]], [GOOD, GOOD]), r"points: \(1, 2\), cases: 2"),
        (lambda: pointing_game([[0.5, 0.5], [np.nan, 0]], [GOOD, GOOD]), "point of case 1: holds nan"),
        (lambda: pointing_game([[0.5, 0.5]], [GOOD], tolerance=-1), "tolerance must not be negative, got -1"),
        (lambda: dwell_in_boxes([gaze()], [GOOD, GOOD]), "scanpaths: 1, cases: 2"),
        (lambda: dwell_in_boxes([gaze()] * 2, [GOOD, [[1, 1, 0, 2]]]), "case 1, reference box 0: .*x2 below x1"),
        (lambda: dwell_in_boxes([gaze()], [[[0, 0, 224, 112]]]), r"case 0: boxes are 0..1 .* got \[0.0, 0.0, 224.0"),
        (lambda: map_peaks(np.array([[[1.0]], [[np.nan]]])), "map of case 1: holds nan"),
        (lambda: map_peaks(np.zeros((3, 3))), r"\(3, 3\)"),
        (lambda: map_iou(np.zeros((3, 3)), [GOOD]), r"\(n, rows, columns\), got shape \(3, 3\)"),
        (lambda: map_iou(np.full((1, 2, 2), np.inf), [GOOD]), "map of case 0: holds inf"),
        (lambda: map_iou(np.array([[[1.0]], [[-7.0]]]), [GOOD] * 2), "map of case 1: holds -7, below zero"),
        (lambda: map_iou(np.ones((1, 2, 2)), [GOOD], threshold=0), "above 0 and at most 1, got 0"),
        (lambda: map_iou(np.ones((1, 2, 2)), [GOOD] * 2), "predicted: 1, reference: 2"),
        (lambda: map_iou(np.ones((1, 2, 2)), [[[0, 0, 224, 112]]]), "case 0: boxes are 0..1 of the image"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r'pip install "gaze2report\[eval\]"'):
        iou_hungarian([GOOD], [GOOD])
    assert iou_union([GOOD], [GOOD])[0] == 1
