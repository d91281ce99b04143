# Copyright 2026 The gaze_vlm authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Fixation tensors to maps on any grid: batched, on any device, differentiable where that means something.

The frame everywhere: `fixations` (B, F, 4) with columns x, y in the image 0..1 from the top left, onset and duration
in seconds; `fixation_mask` (B, F) True where a fixation is real. A grid is (rows, columns) of equal cells over the
image.
"""

import math
from typing import NamedTuple

import torch

REACH = 12.8  # sigma, where a tail leaves float32's normal numbers


class PatchGaze(NamedTuple):
    """What gaze says about each cell of a grid. A cell nobody looked at: dwell 0, visits 0, first inf, last -inf."""

    dwell: torch.Tensor  # (B, rows, columns) seconds
    first_visit: torch.Tensor  # (B, rows, columns) seconds from the start of the reading
    visits: torch.Tensor  # (B, rows, columns) number of fixations
    last_visit: torch.Tensor  # (B, rows, columns) seconds, when the last fixation on it ended


def _check(fixations: torch.Tensor, fixation_mask: torch.Tensor) -> torch.Tensor:
    if fixations.ndim != 3 or fixations.shape[-1] != 4:
        raise ValueError(
            f"fixations must be (batch, fixations, 4): x, y, onset, duration; got {tuple(fixations.shape)}"
        )
    if fixation_mask.shape != fixations.shape[:2]:
        raise ValueError(f"fixation_mask {tuple(fixation_mask.shape)} does not fit fixations {tuple(fixations.shape)}")
    return fixation_mask.bool()


def density_map(
    fixations: torch.Tensor,
    fixation_mask: torch.Tensor,
    grid: tuple[int, int],
    sigma: float | torch.Tensor,
    *,
    weight: str = "duration",
    normalize: bool = False,
) -> torch.Tensor:
    """One Gaussian a fixation, summed: each cell holds the exact mass of the Gaussians over its area.

    The Gaussian is separable and its integral over a cell is a difference of error functions in x times one in y, so
    the whole batch is a single einsum, exact for any sigma on any grid. With sigma towards 0 the map becomes
    `patch_gaze`'s dwell; on a fine grid a cell's value over its area becomes the density itself.

    Args:
        fixations: (B, F, 4); points off the image are allowed, only their mass on the image counts.
        fixation_mask: (B, F).
        grid: (rows, columns).
        sigma: standard deviation in fractions of the image's width and height: a number for both, or a tensor that
            broadcasts to (B, F, 2) with one sigma for x and one for y (the visual angle of each fixation, say).
        weight: "duration" (seconds) or "count" (1 a fixation).
        normalize: True: every map with mass sums to 1. A map without mass stays zero.

    Returns:
        (B, rows, columns) in the dtype of `fixations`; without `normalize` it sums to the weight on the image.
    """
    mask = _check(fixations, fixation_mask)
    if weight not in ("duration", "count"):
        raise ValueError(f'weight must be "duration" or "count", got {weight!r}')
    sigma = torch.as_tensor(sigma, dtype=fixations.dtype, device=fixations.device).expand(*fixations.shape[:2], 2)
    if not (sigma > 0)[mask].all():
        raise ValueError("sigma must be above zero")
    # 0 times NaN is NaN: what stands in the padding is taken out before anything is computed from it
    fixations, sigma = torch.where(mask[..., None], fixations, 0), torch.where(mask[..., None], sigma, 1)
    mass_x = cell_mass(fixations[..., 0], sigma[..., 0], grid[1])
    mass_y = cell_mass(fixations[..., 1], sigma[..., 1], grid[0])
    weights = fixations[..., 3] if weight == "duration" else mask.to(fixations.dtype)
    maps = torch.einsum("bf,bfh,bfw->bhw", weights, mass_y, mass_x)
    return normalize_map(maps) if normalize else maps


def normalize_map(maps: torch.Tensor) -> torch.Tensor:
    """(B, rows, columns) maps divided by their sum; a map without mass stays zero."""
    total = maps.sum(dim=(-2, -1), keepdim=True)
    return torch.where(total > 0, maps / torch.where(total > 0, total, 1), 0)


def patch_gaze(fixations: torch.Tensor, fixation_mask: torch.Tensor, grid: tuple[int, int]) -> PatchGaze:
    """What gaze says about each cell, as in `PatchGaze`; fixations off the image count nowhere."""
    mask = _check(fixations, fixation_mask)
    cells, inside = cell_index(fixations, grid)
    keep = mask & inside
    batch, count = fixations.shape[0], grid[0] * grid[1]
    onset, duration = fixations[..., 2], fixations[..., 3]
    flat = cells.clamp(0, count - 1)
    dwell = fixations.new_zeros(batch, count).scatter_add(1, flat, torch.where(keep, duration, 0))
    visits = fixations.new_zeros(batch, count).scatter_add(1, flat, keep.to(fixations.dtype))
    first = fixations.new_full((batch, count), torch.inf).scatter_reduce(
        1, flat, torch.where(keep, onset, torch.inf), "amin"
    )
    last = fixations.new_full((batch, count), -torch.inf).scatter_reduce(
        1, flat, torch.where(keep, onset + duration, -torch.inf), "amax"
    )
    return PatchGaze(*(value.view(batch, *grid) for value in (dwell, first, visits, last)))


def cell_index(fixations: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row-major index (B, F) of the cell each fixation falls in, and whether (B, F) it lies on the image at all."""
    x, y = fixations[..., 0], fixations[..., 1]
    inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    column = (x * grid[1]).long().clamp(0, grid[1] - 1)
    row = (y * grid[0]).long().clamp(0, grid[0] - 1)
    return row * grid[1] + column, inside


def cell_mass(centre: torch.Tensor, sigma: torch.Tensor | float, cells: int) -> torch.Tensor:
    """Mass of N(centre, sigma) over each of `cells` equal cells of [0, 1]: (B, F) -> (B, F, cells).

    Each tail is measured from its own end, and is good to some digits as far as float32 goes; as a difference of the
    distribution function it would be rounding from 5 sigma on.
    """
    if isinstance(sigma, torch.Tensor):
        sigma = sigma[..., None]
    edges = torch.linspace(0, 1, cells + 1, dtype=centre.dtype, device=centre.device)
    edges = ((edges - centre[..., None]) / sigma).clamp(-REACH, REACH)
    side = torch.where(edges < 0, -1.0, 1.0).to(edges.dtype)
    mass = (-0.5 * side * torch.special.erfc(edges * side * math.sqrt(0.5))).diff(dim=-1)
    return mass + (mass < 0)  # where the centre lies: 1 less both tails
