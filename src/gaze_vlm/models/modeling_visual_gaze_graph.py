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
"""How gaze becomes tokens: patches of a film and the fixations on it, joined in a graph.

Nodes are patches. Three kinds of edges: to the nearest patches in feature space (Vision GNN, arXiv 2206.00272), to the
neighbours on the grid, and along saccades between fixated patches. Each layer is Vision GNN's max-relative
convolution.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .gaze_maps import cell_index, patch_gaze


def nearest_patches(states: torch.Tensor, neighbors: int) -> torch.Tensor:
    """Indices (N, P, k) of the k patches most alike in direction to each patch of (N, P, D), itself left out."""
    unit = nn.functional.normalize(states.detach().float(), dim=-1)
    likeness = unit @ unit.transpose(1, 2)
    likeness = likeness.masked_fill(torch.eye(states.shape[1], dtype=torch.bool, device=states.device), -torch.inf)
    return likeness.topk(min(neighbors, states.shape[1] - 1), dim=-1).indices


def grid_neighbors(grid: tuple[int, int], device=None) -> torch.Tensor:
    """Indices (P, 8) of the patches around each patch; at the border the patch itself stands in."""
    rows, columns = grid
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    around = []
    for down, right in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        y, x = row + down, column + right
        on_grid = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        around.append(torch.where(on_grid, y * columns + x, row * columns + column).flatten())
    return torch.stack(around, dim=-1).to(device)


def saccade_edges(
    fixations: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Edges between the patches of successive fixations, both ways.

    Returns (N, 2 (F - 1), 2) from, to; and (N, 2 (F - 1)) which of them are real.
    """
    cells, inside = cell_index(fixations, grid)
    real = mask.bool() & inside
    pairs = torch.stack([cells[:, :-1], cells[:, 1:]], dim=-1)
    exists = real[:, :-1] & real[:, 1:]
    return torch.cat([pairs, pairs.flip(-1)], dim=1), torch.cat([exists, exists], dim=1)


class MaxRelativeLayer(GradientCheckpointingLayer):
    """Max-relative graph convolution and feed-forward, each with norm and residual."""

    def __init__(self, width: int, neighbors: int, dropout: float):
        super().__init__()
        self.neighbors = neighbors
        self.graph_norm = nn.LayerNorm(width)
        self.graph_proj = nn.Linear(2 * width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, 2 * width)
        self.down_proj = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states, grid_index, edges=None, edge_mask=None):
        """States (N, P, D); grid_index (P, 8); edges (N, E, 2) with edge_mask (N, E) when there are saccades."""
        normed = self.graph_norm(states)
        index = torch.cat([nearest_patches(normed, self.neighbors), grid_index.expand(len(states), -1, -1)], dim=-1)
        rows = torch.arange(len(states), device=states.device)[:, None, None]
        # the maximum of differences is the difference to the maximum
        relative = normed[rows, index].amax(dim=2) - normed
        if edges is not None:
            rows = rows[:, 0]
            difference = normed[rows, edges[..., 0]] - normed[rows, edges[..., 1]]
            difference = difference.masked_fill(~edge_mask[..., None], -torch.inf)
            target = edges[..., 1:].expand_as(difference)
            relative = relative.scatter_reduce(1, target, difference, "amax")
        states = states + self.dropout(self.graph_proj(torch.cat([normed, relative], dim=-1)))
        fed = self.down_proj(nn.functional.gelu(self.up_proj(self.feed_norm(states))))
        return states + self.dropout(fed)


class VisualGazeGraph(nn.Module):
    """Patch tokens and gaze -> joint visual-gaze tokens, one a patch."""

    NODE_FEATURES = 4

    def __init__(self, input_width: int, width: int, num_layers: int, neighbors: int, dropout: float = 0.0):
        super().__init__()
        self.input_norm = nn.LayerNorm(input_width)
        self.input_proj = nn.Linear(input_width, width)
        self.gaze_proj = nn.Linear(self.NODE_FEATURES, width)
        self.no_gaze = nn.Parameter(torch.empty(width))
        self.layers = nn.ModuleList(MaxRelativeLayer(width, neighbors, dropout) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(width)

    def forward(
        self,
        patch_tokens: torch.Tensor,
        fixations: torch.Tensor | None = None,
        fixation_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Patch tokens (N, rows, columns, C), fixations (N, F, 4) and fixation_mask (N, F) -> (N, rows, columns, D).

        An image without gaze (no fixations at all, or a mask that is all False) gets a learned mark on every patch
        instead of zeros: that nobody's gaze is known is not the same as that nobody looked.
        """
        grid = tuple(patch_tokens.shape[1:3])
        states = self.input_proj(self.input_norm(patch_tokens.flatten(1, 2).to(self.no_gaze.dtype)))
        edges = edge_mask = None
        if fixations is None:
            states = states + self.no_gaze
        else:
            if fixation_mask is None:
                fixation_mask = torch.ones(fixations.shape[:2], dtype=torch.bool, device=fixations.device)
            has_gaze = fixation_mask.bool().any(1)[:, None, None]
            gaze = self.gaze_proj(self._node_features(fixations.float(), fixation_mask, grid).to(states.dtype))
            states = states + torch.where(has_gaze, gaze, self.no_gaze)
            edges, edge_mask = saccade_edges(fixations, fixation_mask, grid)
        grid_index = grid_neighbors(grid, states.device)
        for layer in self.layers:
            states = layer(states, grid_index, edges, edge_mask)
        return self.output_norm(states).unflatten(1, grid)

    def _node_features(self, fixations: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(N, P, 4): log dwell, whether visited, log visits, how early (1 if first, falling to 0; 0 if never).

        Time counts from the film's earliest visit: where it starts differs between data sets.
        """
        gaze = patch_gaze(fixations, mask, grid)
        visited = gaze.visits > 0
        since = torch.where(visited, gaze.first_visit - gaze.first_visit.amin(dim=(-2, -1), keepdim=True), 0)
        features = (gaze.dwell.log1p(), visited.float(), gaze.visits.log1p(), visited / (1 + since))
        return torch.stack(features, dim=-1).flatten(1, 2)
