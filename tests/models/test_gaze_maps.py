import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaze_vlm import Scanpath
from gaze_vlm.models.gaze_maps import cell_index, density_map, normalize_map, patch_gaze

GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 7))
few = settings(max_examples=40, deadline=None)


def scanpaths(low=0.0, high=1.0, max_size=6):
    """Lists of fixations (x, y, onset, duration), positions from `low` to `high`."""
    place = st.floats(low, high, width=32)
    fixation = st.tuples(place, place, st.floats(0, 20, width=32), st.floats(0, 5, width=32))
    return st.lists(fixation, min_size=1, max_size=max_size)


def tensors(*paths, slots=None, dtype=torch.float64):
    """Scanpaths -> padded fixations and mask; the padding is noise, for it must not be seen."""
    slots = slots or max(map(len, paths))
    fixations = torch.rand(len(paths), slots, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(len(paths), slots, dtype=torch.bool)
    for row, path in enumerate(paths):
        fixations[row, : len(path)] = torch.tensor(path, dtype=dtype)
        mask[row, : len(path)] = True
    return fixations, mask


def by_hand(path, grid, sigma, weight="duration"):
    """The sum of Gaussians over each cell with math.erf."""

    def mass(centre, low, high):
        return (math.erf((high - centre) / sigma / 2**0.5) - math.erf((low - centre) / sigma / 2**0.5)) / 2

    rows, columns = grid
    cells = torch.zeros(rows, columns, dtype=torch.float64)
    for x, y, _, duration in path:
        for row in range(rows):
            for column in range(columns):
                share = mass(x, column / columns, (column + 1) / columns) * mass(y, row / rows, (row + 1) / rows)
                cells[row, column] += share * (duration if weight == "duration" else 1)
    return cells


@few
@given(scanpaths(-0.5, 1.5), GRIDS, st.floats(0.01, 0.5), st.sampled_from(["duration", "count"]))
def test_density_map_is_the_sum_of_gaussians(path, grid, sigma, weight):
    maps = density_map(*tensors(path), grid, sigma, weight=weight)
    assert maps.dtype == torch.float64 and maps.shape == (1, *grid)
    torch.testing.assert_close(maps[0], by_hand(path, grid, sigma, weight), atol=1e-6, rtol=0)


@few
@given(scanpaths(0.25, 0.75), GRIDS, st.floats(0.01, 0.04))
def test_mass_is_the_time_looked(path, grid, sigma):
    total = density_map(*tensors(path), grid, sigma).sum().item()
    assert total == pytest.approx(sum(duration for *_, duration in path), abs=1e-6)


@few
@given(scanpaths(-1.0, 2.0), GRIDS, st.floats(0.001, 1.0))
def test_mass_is_never_more_than_the_time_looked(path, grid, sigma):
    maps = density_map(*tensors(path), grid, sigma)
    assert (maps >= 0).all()
    assert maps.sum().item() <= sum(duration for *_, duration in path) + 1e-9


@few
@given(scanpaths(-0.5, 1.5), GRIDS, st.floats(0.01, 0.5))
def test_flipping_the_gaze_flips_the_map(path, grid, sigma):
    fixations, mask = tensors(path)
    maps = density_map(fixations, mask, grid, sigma)
    for axis, dim in ((0, -1), (1, -2)):
        flipped = fixations.clone()
        flipped[..., axis] = 1 - flipped[..., axis]
        torch.testing.assert_close(density_map(flipped, mask, grid, sigma), maps.flip(dim), atol=1e-9, rtol=0)


@few
@given(st.lists(st.tuples(*[st.integers(0, 31)] * 2, st.floats(0, 5)), min_size=1, max_size=6))
def test_a_sharp_gaussian_is_dwell(cells):
    grid = (4, 8)  # whose edges lie between the 32 possible places
    path = [((i + 0.5) / 32, (j + 0.5) / 32, 0.0, duration) for i, j, duration in cells]
    fixations, mask = tensors(path)
    dwell = patch_gaze(fixations, mask, grid).dwell
    torch.testing.assert_close(density_map(fixations, mask, grid, 1e-4), dwell, atol=1e-9, rtol=0)


@few
@given(scanpaths(-0.25, 1.25), GRIDS)
def test_normalized_maps_sum_to_one_or_nothing(path, grid):
    fixations, mask = tensors(path, path)
    mask[1] = False
    maps = density_map(fixations, mask, grid, 0.2, normalize=True)
    mass = density_map(fixations, mask, grid, 0.2).sum((1, 2))
    assert maps[1].eq(0).all()
    assert maps[0].sum().item() == (pytest.approx(1) if mass[0] > 0 else 0)


def test_normalize_map_divides_by_the_sum():
    maps = torch.tensor([[[1.0, 3.0]], [[0.0, 0.0]]])
    assert normalize_map(maps).tolist() == [[[0.25, 0.75]], [[0.0, 0.0]]]


def test_duration_weighs_and_count_does_not():
    fixations, mask = tensors([(0.25, 0.5, 0, 3.0), (0.75, 0.5, 3, 1.0)])
    by_time = density_map(fixations, mask, (1, 2), 0.01)
    by_count = density_map(fixations, mask, (1, 2), 0.01, weight="count")
    torch.testing.assert_close(by_time, torch.tensor([[[3.0, 1.0]]], dtype=torch.float64))
    torch.testing.assert_close(by_count, torch.tensor([[[1.0, 1.0]]], dtype=torch.float64))


def test_sigma_may_differ_for_each_fixation_and_axis():
    first, second = (0.3, 0.4, 0, 1.0), (0.6, 0.7, 1, 2.0)
    fixations, mask = tensors([first, second])
    sigma = torch.tensor([0.05, 0.2])[None, :, None]
    expected = by_hand([first], (5, 6), 0.05) + by_hand([second], (5, 6), 0.2)
    torch.testing.assert_close(density_map(fixations, mask, (5, 6), sigma)[0], expected, atol=1e-6, rtol=0)
    wide = density_map(fixations, mask, (5, 6), torch.tensor([0.3, 0.01]))[0] > 1e-3
    assert wide.any(0).sum() > wide.any(1).sum()  # wide in x, narrow in y


@few
@given(scanpaths(-0.25, 1.25), scanpaths(-0.25, 1.25), GRIDS)
def test_padding_changes_nothing(one, other, grid):
    fixations, mask = tensors(one, other, slots=9)
    fixations[~mask] = torch.tensor([math.nan, math.inf, -1.0, 7.0], dtype=torch.float64)
    sigma = torch.where(mask[..., None], 0.1, 0.0)  # padded as well
    both = density_map(fixations, mask, grid, sigma)
    gaze = patch_gaze(fixations, mask, grid)
    for row, path in enumerate((one, other)):
        alone = tensors(path)
        torch.testing.assert_close(both[row], density_map(*alone, grid, 0.1)[0])
        for together, single in zip(gaze, patch_gaze(*alone, grid), strict=True):
            torch.testing.assert_close(together[row], single[0])


def test_density_map_is_differentiable_in_place_and_time():
    fixations, mask = tensors([(0.3, 0.4, 0, 1.0), (0.6, 0.7, 1, 2.0)], [(0.9, 0.1, 0, 0.5)])
    fixations.requires_grad_()
    for normalize in (False, True):
        assert torch.autograd.gradcheck(
            lambda f, n=normalize: density_map(f, mask, (3, 4), 0.2, normalize=n), fixations
        )
    density_map(fixations, mask, (3, 4), 0.2)[0, 0].sum().backward()
    assert fixations.grad[0, 0, [0, 1, 3]].abs().min() > 0
    assert fixations.grad[1, 1].eq(0).all()  # padding


@few
@given(scanpaths(-0.25, 1.25), GRIDS)
def test_patch_gaze_is_a_loop_over_fixations(path, grid):
    rows, columns = grid
    dwell, visits = np.zeros(grid), np.zeros(grid)
    first = np.full(grid, np.inf)
    for x, y, onset, duration in path:
        if 0 <= x <= 1 and 0 <= y <= 1:
            cell = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
            dwell[cell] += duration
            visits[cell] += 1
            first[cell] = min(first[cell], onset)
    gaze = patch_gaze(*tensors(path), grid)
    for got, expected in ((gaze.dwell, dwell), (gaze.first_visit, first), (gaze.visits, visits)):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got[0], torch.from_numpy(expected))


@few
@given(scanpaths(-0.25, 1.25), GRIDS)
def test_dwell_agrees_with_scanpath(path, grid):
    path = sorted(path, key=lambda fixation: fixation[2])
    fixations, mask = tensors(path, dtype=torch.float32)
    expected = Scanpath.from_array(fixations[0].numpy()).dwell(grid)
    np.testing.assert_allclose(patch_gaze(fixations, mask, grid).dwell[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_cell_index_by_hand():
    places = [(0.0, 0.0), (0.99, 0.0), (1.0, 1.0), (0.5, 0.5), (1.01, 0.5), (0.5, -0.01)]
    fixations, _ = tensors([(x, y, 0, 1) for x, y in places])
    cells, inside = cell_index(fixations, (2, 4))
    assert cells[0, :4].tolist() == [0, 3, 7, 6]
    assert inside[0].tolist() == [True, True, True, True, False, False]


def test_no_fixations_at_all_is_an_empty_map():
    fixations, mask = torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool)
    assert density_map(fixations, mask, (2, 3), 0.1).eq(0).all()
    gaze = patch_gaze(fixations, mask, (2, 3))
    assert gaze.dwell.eq(0).all() and gaze.visits.eq(0).all() and gaze.first_visit.eq(math.inf).all()


@pytest.mark.parametrize(
    "function", [lambda f, m: density_map(f, m, (2, 2), 0.1), lambda f, m: patch_gaze(f, m, (2, 2))]
)
def test_errors_name_the_shapes(function):
    with pytest.raises(ValueError, match=r"x, y, onset, duration; got \(2, 5, 3\)"):
        function(torch.zeros(2, 5, 3), torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"\(5, 4\)"):
        function(torch.zeros(5, 4), torch.ones(5))
    with pytest.raises(ValueError, match=r"fixation_mask \(2, 4\).*\(2, 5, 4\)"):
        function(torch.zeros(2, 5, 4), torch.ones(2, 4))


def test_bad_weight_and_sigma_are_named():
    fixations, mask = torch.zeros(1, 1, 4), torch.ones(1, 1)
    with pytest.raises(ValueError, match="'time'"):
        density_map(fixations, mask, (2, 2), 0.1, weight="time")
    with pytest.raises(ValueError, match="sigma"):
        density_map(fixations, mask, (2, 2), 0.0)
