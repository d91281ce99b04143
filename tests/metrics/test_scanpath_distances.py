"""Edit distance, time-delay similarity, statistics of scanpaths and the readers' ceiling, against plain references."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaze_vlm.metrics.scanpath import (
    distribution_distance,
    edit_distance,
    fixation_statistics,
    multimatch_mean4,
    reader_ceiling,
    saccade_amplitudes,
    scanmatch,
    time_delay_similarity,
    workload_correlation,
)
from gaze_vlm.scanpath import Scanpath

EMPTY = Scanpath([], [], [], [])


def random_path(rng, fixations):
    return Scanpath.from_relative(*rng.uniform(-0.1, 1.1, (2, fixations)), rng.exponential(0.3, fixations))


def random_pairs(seed, count, shortest, longest):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(shortest, longest + 1, size=(count, 2))
    return [[random_path(rng, size) for size in column] for column in sizes.T]


def pixel_path(*points, image_size=(224, 224)):
    x, y = zip(*points, strict=True)
    return Scanpath.from_pixels(x, y, [0.3] * len(points), image_size=image_size)


@st.composite
def paths(draw, shortest=0, longest=10):
    size = draw(st.integers(shortest, longest))
    coordinate = st.lists(st.floats(-0.25, 1.25, width=32), min_size=size, max_size=size)
    return Scanpath.from_relative(draw(coordinate), draw(coordinate), [0.3] * size)


# ---- edit distance


def levenshtein(first, second):
    table = [[i + j for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i, letter in enumerate(first, start=1):
        for j, other in enumerate(second, start=1):
            table[i][j] = min(
                table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (0 if letter == other else 1)
            )
    return table[-1][-1]


def letters(path, grid, screen_size):
    if screen_size is None:
        cells = np.floor(path.to_array()[:, :2] * np.float32(grid)).clip(0, grid - 1)
        return [int(column + row * grid) for column, row in cells]
    width, height = screen_size
    return [
        int(x * width) // (width // grid) + int(y * height) // (height // grid) * grid
        for x, y in path.to_array()[:, :2].astype(float)
    ]


@pytest.mark.parametrize("screen_size", [(224, 224), (320, 240), None])
@pytest.mark.parametrize(("grid", "longest"), [(1, 9), (3, 9), (5, 9), (5, 80)])
def test_edit_distance_equals_the_textbook(grid, longest, screen_size):
    a, b = random_pairs(seed=grid, count=30, shortest=0, longest=longest)
    expected = [
        levenshtein(letters(one, grid, screen_size), letters(other, grid, screen_size))
        for one, other in zip(a, b, strict=True)
    ]
    assert len(set(expected)) > 4
    distances = edit_distance(a, b, grid=grid, screen_size=screen_size)
    assert distances.dtype == np.float64
    np.testing.assert_array_equal(distances, expected)


@pytest.mark.parametrize("side", [224, 240, 320, 512, 1920, 3056])
def test_whole_pixels_keep_their_letter(side):
    step = side // 5
    pixels = np.arange(side)
    for axis in range(2):
        points = np.zeros((side, 2), np.int64)
        points[:, axis] = pixels
        paths = [pixel_path(point, image_size=(side, side)) for point in points]
        for cell in range(-(-side // step)):
            inside = [pixel_path(np.eye(2)[axis] * (cell * step + 0.5), image_size=(side, side))] * side
            distances = edit_distance(paths, inside, screen_size=(side, side))
            np.testing.assert_array_equal(distances == 0, pixels // step == cell)


@pytest.mark.parametrize("side", [224, 240, 320, 512, 1920, 3056])
def test_the_next_float32_below_a_border_does_not_pass_it(side):
    """43.999996 px is in the first of the cells of 44 px, though 43.9999999 px, which float32 rounds to 44, is not."""
    step = side // 5
    for border in range(step, side, step):
        below = np.nextafter(np.float32(border), np.float32(0))
        paths = [pixel_path((x, 0), image_size=(side, side)) for x in (below, border - 1e-7 * border / 4)]
        before, behind = (pixel_path((border + x, 0), image_size=(side, side)) for x in (-0.5, 0.5))
        distances = edit_distance([*paths, *paths], [before] * 2 + [behind] * 2, screen_size=(side, side))
        np.testing.assert_array_equal(distances, [0, 1, 1, 0])


def test_the_left_over_column_has_the_next_rows_letters():
    left_over, next_row, corner = pixel_path((222, 10)), pixel_path((10, 50)), pixel_path((180, 10))
    np.testing.assert_array_equal(edit_distance([left_over, left_over], [next_row, corner]), [0, 1])
    exact = edit_distance([left_over, left_over], [next_row, corner], screen_size=None)
    np.testing.assert_array_equal(exact, [1, 0])


def test_coordinates_are_cut_to_whole_pixels():
    np.testing.assert_array_equal(
        edit_distance([pixel_path((43.9, 0)), pixel_path((44.1, 0))], [pixel_path((44, 0))] * 2), [1, 0]
    )


def test_an_empty_path_is_as_far_as_the_other_is_long():
    three = pixel_path((1, 1), (100, 100), (200, 200))
    np.testing.assert_array_equal(edit_distance([EMPTY, three, EMPTY], [EMPTY, EMPTY, three]), [0, 3, 3])
    assert edit_distance([], []).shape == (0,)


@given(paths(), paths(), paths())
@settings(max_examples=60, deadline=None)
def test_edit_distance_is_a_distance(a, b, c):
    ab, ba, bc, ac, aa = edit_distance([a, b, b, a, a], [b, a, c, c, a])
    assert aa == 0 and ab == ba
    assert ac <= ab + bc
    assert abs(len(a) - len(b)) <= ab <= max(len(a), len(b))


@pytest.mark.parametrize("arguments", [{"grid": 0}, {"grid": 225}, {"grid": 0, "screen_size": None}])
def test_edit_distance_names_a_bad_grid(arguments):
    with pytest.raises(ValueError, match=f"grid .* got {arguments['grid']}"):
        edit_distance([EMPTY], [EMPTY], **arguments)


# ---- time-delay similarity


def time_delay_by_hand(a, b, screen_size):
    def points(path):
        return [
            (x * screen_size[0] / max(screen_size), y * screen_size[1] / max(screen_size))
            for x, y in path.to_array()[:, :2].astype(float)
        ]

    first, second = points(a), points(b)
    similarities = []
    for k in range(1, min(len(a), len(b)) + 1):
        nearest = []
        for i in range(len(first) - k + 1):
            sums = [sum(math.dist(first[i + t], second[j + t]) for t in range(k)) for j in range(len(second) - k + 1)]
            nearest.append(min(sums) / k)
        similarities.append(math.exp(-sum(nearest) / len(nearest)))
    return sum(similarities) / len(similarities) if similarities else math.nan


@pytest.mark.parametrize("screen_size", [(224, 224), (320, 240), (240, 320)])
@pytest.mark.parametrize(("count", "longest"), [(60, 9), (6, 30)])
def test_time_delay_similarity_equals_the_definition(count, longest, screen_size):
    a, b = random_pairs(seed=longest, count=count, shortest=0, longest=longest)
    expected = [time_delay_by_hand(*pair, screen_size) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(time_delay_similarity(a, b, screen_size=screen_size), expected, atol=1e-6)


def test_time_delay_similarity_by_hand():
    here, there = Scanpath.from_relative([0.2], [0.2], [0.3]), Scanpath.from_relative([0.5], [0.6], [0.3])
    assert time_delay_similarity([here], [there])[0] == pytest.approx(math.exp(-0.5))
    assert time_delay_similarity([here], [there], screen_size=(50, 100))[0] == pytest.approx(
        math.exp(-math.hypot(0.15, 0.4))
    )


def test_time_delay_similarity_is_of_the_prediction_to_the_reference():
    path = random_path(np.random.default_rng(1), 9)
    part = path[2:6]
    forth, back = time_delay_similarity([part, path], [path, part])
    assert forth == pytest.approx(1)
    assert back < 0.99


def test_time_delay_similarity_of_an_empty_path_is_nan():
    some = pixel_path((1, 1), (100, 100))
    scores = time_delay_similarity([EMPTY, some, EMPTY, some], [EMPTY, EMPTY, some, some])
    np.testing.assert_array_equal(np.isnan(scores), [True, True, True, False])
    assert time_delay_similarity([], []).shape == (0,)


@given(paths(shortest=1), paths(shortest=1))
@settings(max_examples=60, deadline=None)
def test_time_delay_similarity_lies_between_0_and_1(a, b):
    score, own = time_delay_similarity([a, a], [b, a])
    assert 0 < score <= 1 + 1e-12
    assert own == pytest.approx(1)


@pytest.mark.parametrize("metric", [edit_distance, time_delay_similarity])
def test_a_batch_cut_into_parts_scores_the_same(metric, monkeypatch):
    a, b = random_pairs(seed=2, count=60, shortest=0, longest=20)
    whole = metric(a, b)
    monkeypatch.setattr("gaze_vlm.metrics._alignment.TABLE_CELLS", 500)
    monkeypatch.setattr("gaze_vlm.metrics._alignment.DIAGONAL_CELLS", 50)
    np.testing.assert_allclose(metric(a, b), whole, rtol=1e-14)


@pytest.mark.parametrize("metric", [edit_distance, time_delay_similarity])
def test_unequal_numbers_are_refused_with_both_sides(metric):
    with pytest.raises(ValueError, match="predictions: 1, references: 2"):
        metric([EMPTY], [EMPTY, EMPTY])


@pytest.mark.parametrize("metric", [multimatch_mean4, edit_distance, time_delay_similarity])
@pytest.mark.parametrize("screen_size", [(0, 224), (224, -1), (224,), (math.nan, 224)])
def test_a_screen_without_size_is_named(metric, screen_size):
    path = pixel_path((1, 1), (2, 2), (3, 3))
    with pytest.raises(ValueError, match=r"screen_size.*(0, 224|224, -1|\(224,\)|nan, 224)"):
        metric([path], [path], screen_size=screen_size)


# ---- statistics


def test_fixation_statistics_by_hand():
    corner = Scanpath.from_relative([0, 1, 1], [0, 0, 1], [0.1, 0.2, 0.6])
    single = Scanpath.from_relative([0.5], [0.5], [0.4])
    statistics = fixation_statistics([corner, EMPTY, single])
    np.testing.assert_array_equal(statistics["fixations"], [3, 0, 1])
    np.testing.assert_allclose(statistics["total_duration"], [0.9, 0, 0.4], atol=1e-6)
    np.testing.assert_allclose(statistics["mean_duration"], [0.3, np.nan, 0.4], atol=1e-6)
    np.testing.assert_allclose(statistics["scanpath_length"], [2, 0, 0])
    on_screen = fixation_statistics([corner, EMPTY, single], screen_size=(300, 400))
    np.testing.assert_allclose(on_screen["scanpath_length"], [700, 0, 0])
    assert all(values.shape == (0,) for values in fixation_statistics([]).values())


def test_saccade_amplitudes_never_lead_from_one_path_to_the_next():
    first = Scanpath.from_relative([0, 0.3, 0.3], [0, 0.4, 0.4], [0.1] * 3)
    second = Scanpath.from_relative([1, 0], [1, 1], [0.1] * 2)
    np.testing.assert_allclose(saccade_amplitudes([first, EMPTY, second]), [0.5, 0, 1], atol=1e-6)
    pixels = saccade_amplitudes([first, second], screen_size=(100, 200))
    np.testing.assert_allclose(pixels, [math.hypot(30, 80), 0, 100], rtol=1e-6)
    assert saccade_amplitudes([]).shape == saccade_amplitudes([EMPTY, second[:1]]).shape == (0,)


def test_scanpath_lengths_are_sums_of_amplitudes():
    scanpaths, _ = random_pairs(seed=3, count=30, shortest=0, longest=9)
    expected = [saccade_amplitudes([path]).sum() for path in scanpaths]
    np.testing.assert_allclose(fixation_statistics(scanpaths)["scanpath_length"], expected)


@given(
    st.lists(st.integers(-5, 5) | st.floats(-1e6, 1e6), min_size=1, max_size=30),
    st.lists(st.integers(-5, 5) | st.floats(-1e6, 1e6), min_size=1, max_size=30),
)
@settings(max_examples=50, deadline=None)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # in scipy's p-value
def test_distribution_distance_equals_scipy(a, b):
    scipy_stats = pytest.importorskip("scipy.stats")
    expected = scipy_stats.ks_2samp(a, b, method="asymp").statistic
    assert distribution_distance(a, b) == pytest.approx(expected, abs=1e-12)


def test_distribution_distance_at_its_ends():
    values = np.random.default_rng(4).random(50)
    assert distribution_distance(values, np.repeat(values[::-1], 2)) == 0
    assert distribution_distance(values, values + 1) == 1
    assert np.isnan(distribution_distance(values, []))


def test_distribution_distance_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"b\[1\] is NaN"):
        distribution_distance([1.0], [2.0, np.nan])
    with pytest.raises(ValueError, match=r"a must be a flat list of numbers, got shape \(2, 2\)"):
        distribution_distance(np.zeros((2, 2)), [1.0])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=3, max_size=25))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_workload_correlation_equals_scipy_ties_included(totals):
    scipy_stats = pytest.importorskip("scipy.stats")
    predicted, read = zip(*totals, strict=True)
    # fixations of quarter seconds: float32 sums of them are exact, and equal totals stay equal
    sides = [[Scanpath.from_relative(*np.zeros((2, n)), [0.25] * n) for n in side] for side in (predicted, read)]
    expected = scipy_stats.spearmanr(predicted, read).statistic
    assert workload_correlation(*sides) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_workload_counts_seconds_not_fixations():
    brief = Scanpath.from_relative(*np.zeros((2, 5)), [0.1] * 5)
    one, two = (Scanpath.from_relative([0], [0], [seconds]) for seconds in (1, 2))
    assert workload_correlation([brief, one, two], [one[:0], one, two]) == 1
    assert workload_correlation([two, one, brief], [one[:0], one, two]) == -1


def test_workload_correlation_is_undefined_for_two_cases_and_without_variation():
    paths = [random_path(np.random.default_rng(i), 4) for i in range(4)]
    assert np.isnan(workload_correlation(paths[:2], paths[:2]))
    assert np.isnan(workload_correlation([], []))
    assert np.isnan(workload_correlation(paths[:1] * 4, paths))
    assert np.isnan(workload_correlation(paths, paths[:1] * 4))
    assert workload_correlation(paths[:3], paths[:3]) == 1
    with pytest.raises(ValueError, match="predictions: 4, references: 3"):
        workload_correlation(paths, paths[:3])


# ---- readers


def test_every_other_reading_of_a_case_is_compared_and_none_with_itself():
    scanpaths = [random_path(np.random.default_rng(i), 4) for i in range(7)]
    cases = ["b", "a", "b", "alone", "a", "b", "other"]
    number = {id(path): i for i, path in enumerate(scanpaths)}
    seen = []

    def ten_first_plus_second(predictions, references):
        pairs = [(number[id(p)], number[id(r)]) for p, r in zip(predictions, references, strict=True)]
        seen.extend(pairs)
        return np.array([10.0 * first + second for first, second in pairs])

    values, ids = reader_ceiling(scanpaths, cases, ten_first_plus_second)
    assert ids == ["b", "a"]
    assert sorted(seen) == [(0, 2), (0, 5), (1, 4), (2, 0), (2, 5), (4, 1), (5, 0), (5, 2)]
    np.testing.assert_allclose(values, [11 * (0 + 2 + 5) / 3, 11 * (1 + 4) / 2])


@pytest.mark.parametrize("metric", [scanmatch, edit_distance, time_delay_similarity])
def test_reader_ceiling_is_the_mean_over_both_orders(metric):
    a, b = random_pairs(seed=5, count=12, shortest=1, longest=9)
    values, ids = reader_ceiling([*a, *b], [*range(12), *range(12)], metric)
    assert ids == list(range(12))
    np.testing.assert_allclose(values, (metric(a, b) + metric(b, a)) / 2)


def test_reader_ceiling_leaves_undefined_pairs_out():
    rng = np.random.default_rng(6)
    long, other, brief = random_path(rng, 5), random_path(rng, 4), random_path(rng, 2)
    values, ids = reader_ceiling([long, other, brief, brief, long], [1, 1, 1, 2, 2], multimatch_mean4)
    assert ids == [1, 2]
    assert values[0] == pytest.approx((multimatch_mean4([long], [other]) + multimatch_mean4([other], [long]))[0] / 2)
    assert np.isnan(values[1])


def test_reader_ceiling_names_what_is_wrong():
    path = random_path(np.random.default_rng(7), 4)
    with pytest.raises(ValueError, match="no case has two readings: scanpaths: 2, cases: 2"):
        reader_ceiling([path, path], ["a", "b"], scanmatch)
    with pytest.raises(ValueError, match="no case has two readings: scanpaths: 0, cases: 0"):
        reader_ceiling([], [], scanmatch)
    with pytest.raises(ValueError, match="scanpaths: 2, cases: 1"):
        reader_ceiling([path, path], ["a"], scanmatch)
    with pytest.raises(ValueError, match=r"pairs: 2, got shape \(1, 2\)"):
        reader_ceiling([path, path], ["a", "a"], lambda p, r: scanmatch(p, r)[None])
