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

Nodes are patches, and where asked for fixations as well. Each patch is told where it lies, as in Vision GNN (arXiv
2206.00272), here by sines of row and column. Edges go to the nearest patches in feature space (Vision GNN), to the
neighbours on the grid, and along saccades. How the messages that travel along them are put together can be chosen:
Vision GNN's max-relative convolution is code of this file, GATv2 (arXiv 2105.14491), graph Transformer (arXiv
2009.03509) and edge convolution (arXiv 1801.07829) come from torch-geometric.
"""

import importlib
from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_gaze_vlm import GRAPH_EDGES, GazeVLMConfig
from .gaze_maps import cell_index, patch_gaze
from .modeling_scanpath_layers import grid_encoding

KINDS = (*GRAPH_EDGES, "fixated")  # of edges; "fixated" joins a fixation's own node and its patch


class SparseEdges(NamedTuple):
    """Edges between single nodes, E of each film."""

    source: torch.Tensor  # (N, E) node the message comes from
    target: torch.Tensor  # (N, E) node it goes to
    weight: torch.Tensor  # (N, E) factor of the message, 0..1
    kind: torch.Tensor  # (E,) index in KINDS
    mask: torch.Tensor  # (N, E) whether there is such an edge


def nearest_patches(states: torch.Tensor, neighbors: int, dilation: int = 1) -> torch.Tensor:
    """Indices (N, P, k) of the k patches most alike in direction to each patch of (N, P, D), itself left out.

    With a dilation d it is every d-th of the k d nearest, from the nearest on.
    """
    unit = nn.functional.normalize(states.detach().float(), dim=-1)
    likeness = unit @ unit.transpose(1, 2)
    likeness = likeness.masked_fill(torch.eye(states.shape[1], dtype=torch.bool, device=states.device), -torch.inf)
    return likeness.topk(min(neighbors * dilation, states.shape[1] - 1), dim=-1).indices[..., ::dilation]


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


def dwell_weight(fixations: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N, F) 0..1: a fixation's duration over that of its scanpath's longest; 0 where the mask is False."""
    duration = torch.where(mask, fixations[..., 3], 0)
    return duration / duration.amax(dim=1, keepdim=True).clamp(min=torch.finfo(duration.dtype).tiny)


def saccade_edges(fixations: torch.Tensor, mask: torch.Tensor, nodes: torch.Tensor) -> SparseEdges:
    """Edges between the nodes (N, F) of successive fixations, both ways: E = 2 (F - 1).

    What one hears of the other counts as much as the other was dwelt on (`dwell_weight`).
    """
    weight = dwell_weight(fixations, mask)
    exists = mask[:, :-1] & mask[:, 1:]
    return SparseEdges(
        source=torch.cat([nodes[:, :-1], nodes[:, 1:]], dim=1),
        target=torch.cat([nodes[:, 1:], nodes[:, :-1]], dim=1),
        weight=torch.cat([weight[:, :-1], weight[:, 1:]], dim=1),
        kind=torch.full((2 * exists.shape[1],), KINDS.index("saccade"), device=mask.device),
        mask=torch.cat([exists, exists], dim=1),
    )


def fixated_edges(
    fixations: torch.Tensor, mask: torch.Tensor, cells: torch.Tensor, nodes: torch.Tensor
) -> SparseEdges:
    """Edges between each fixation's own node (N, F) and the patch (N, F) it lies on, both ways: E = 2 F.

    The patch hears of the fixation by its dwell, the fixation of the patch in full.
    """
    weight = dwell_weight(fixations, mask)
    return SparseEdges(
        source=torch.cat([nodes, cells], dim=1),
        target=torch.cat([cells, nodes], dim=1),
        weight=torch.cat([weight, torch.ones_like(weight)], dim=1),
        kind=torch.full((2 * mask.shape[1],), KINDS.index("fixated"), device=mask.device),
        mask=torch.cat([mask, mask], dim=1),
    )


class MaxRelativeConvolution(nn.Module):
    """Vision GNN's: the node, and the largest of its differences to what it is joined to (0 to itself), channel by
    channel. Edges of the film and edges of gaze have a maximum each, or the few saccades would be drowned; along the
    latter a difference counts by the edge's weight."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(3 * width, width)

    def forward(self, states, neighbors, kinds, edges: SparseEdges | None):
        rows = torch.arange(len(states), device=states.device)[:, None]
        film, gaze = torch.zeros_like(states), torch.zeros_like(states)
        if neighbors.shape[2]:
            patches = states[:, : neighbors.shape[1]]
            # the maximum of differences is the difference to the maximum
            furthest = patches[rows[..., None], neighbors].amax(dim=2) - patches
            film[:, : neighbors.shape[1]] = furthest.clamp(min=0)
        if edges is not None:
            difference = (states[rows, edges.source] - states[rows, edges.target]) * edges.weight[..., None]
            difference = torch.where(edges.mask[..., None], difference, 0).to(gaze.dtype)
            gaze = gaze.scatter_reduce(1, edges.target[..., None].expand_as(difference), difference, "amax")
        return self.linear(torch.cat([states, film, gaze], dim=-1))


class GeometricConvolution(nn.Module):
    """A convolution of torch-geometric over the graphs of a batch as one graph without edges between films.

    GATv2 and Transformer read of each edge its kind, as strong as its weight; edge convolution reads neither.
    """

    HEADS = 4

    def __init__(self, name: str, width: int):
        super().__init__()
        try:
            geometric = importlib.import_module("torch_geometric.nn")
        except ImportError:
            raise ImportError(
                f'graph_convolution="{name}" needs torch-geometric: pip install "gaze2report[train]"'
            ) from None
        sizes = {"in_channels": width, "out_channels": width // self.HEADS, "heads": self.HEADS}
        self.takes_edge_features = name != "edge"
        if name == "gatv2":
            self.convolution = geometric.GATv2Conv(**sizes, edge_dim=len(KINDS))
        elif name == "transformer":
            self.convolution = geometric.TransformerConv(**sizes, edge_dim=len(KINDS))
        else:
            self.convolution = geometric.EdgeConv(nn.Linear(2 * width, width), aggr="max")

    def forward(self, states, neighbors, kinds, edges: SparseEdges | None):
        films, nodes, _ = states.shape
        first = torch.arange(films, device=states.device)[:, None, None] * nodes
        target = torch.arange(neighbors.shape[1], device=states.device)[None, :, None].expand_as(neighbors)
        index = torch.stack([(neighbors + first).flatten(), (target + first).flatten()])
        features = nn.functional.one_hot(kinds, len(KINDS)).to(states.dtype)
        features = features.expand(*neighbors.shape, -1).flatten(0, 2)
        if edges is not None:
            ends = torch.stack([edges.source + first[..., 0], edges.target + first[..., 0]])
            kind = nn.functional.one_hot(edges.kind, len(KINDS)) * edges.weight[..., None]
            index = torch.cat([index, ends[:, edges.mask]], dim=1)
            features = torch.cat([features, kind[edges.mask].to(states.dtype)])
        known = {"edge_attr": features} if self.takes_edge_features else {}
        return self.convolution(states.flatten(0, 1), index, **known).view_as(states)


class VisualGazeGraphLayer(GradientCheckpointingLayer):
    """Graph convolution and feed-forward, each with norm and residual; each layer finds the nearest patches anew."""

    def __init__(self, config: GazeVLMConfig):
        super().__init__()
        width = config.graph_hidden_size
        self.neighbors = config.graph_neighbors if "feature" in config.graph_edges else 0
        self.dilation = config.graph_dilation
        self.graph_norm = nn.LayerNorm(width)
        if config.graph_convolution == "max_relative":
            self.convolution = MaxRelativeConvolution(width)
        else:
            self.convolution = GeometricConvolution(config.graph_convolution, width)
        self.feed_norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, 2 * width)
        self.down_proj = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states, grid_index, edges: SparseEdges | None = None):
        """States (N, V, D), patches first; grid_index (P, 8), or (P, 0) without grid edges."""
        normed = self.graph_norm(states)
        patches = len(grid_index)
        nearest = nearest_patches(normed[:, :patches], self.neighbors, self.dilation)
        neighbors = torch.cat([nearest, grid_index.expand(len(states), -1, -1)], dim=-1)
        kinds = torch.full((neighbors.shape[-1],), KINDS.index("grid"), device=states.device)
        kinds[: nearest.shape[-1]] = KINDS.index("feature")
        states = states + self.dropout(self.convolution(normed, neighbors, kinds, edges))
        fed = self.down_proj(nn.functional.gelu(self.up_proj(self.feed_norm(states))))
        return states + self.dropout(fed)


class VisualGazeGraph(nn.Module):
    """Patch tokens and gaze -> joint visual-gaze tokens, one a patch."""

    NODE_FEATURES = 5
    FIXATION_FEATURES = 5

    def __init__(self, input_width: int, config: GazeVLMConfig):
        super().__init__()
        width = config.graph_hidden_size
        self.edges = config.graph_edges
        self.input_norm = nn.LayerNorm(input_width)
        self.input_proj = nn.Linear(input_width, width)
        self.gaze_proj = nn.Linear(self.NODE_FEATURES, width)
        self.fixation_proj = nn.Linear(self.FIXATION_FEATURES, width) if config.fixation_nodes else None
        self.no_gaze = nn.Parameter(torch.empty(width))
        self.layers = nn.ModuleList(VisualGazeGraphLayer(config) for _ in range(config.num_graph_layers))
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
        states = states + grid_encoding(*grid, states.shape[-1], states).flatten(0, 1)
        patches, edges = states.shape[1], None
        if fixations is None or not fixations.shape[1]:
            states = states + self.no_gaze
        else:
            if fixation_mask is None:
                fixation_mask = torch.ones(fixations.shape[:2], dtype=torch.bool, device=fixations.device)
            fixations, fixation_mask = fixations.float(), fixation_mask.bool()
            has_gaze = fixation_mask.any(1)[:, None, None]
            gaze = self.gaze_proj(patch_features(fixations, fixation_mask, grid).to(states.dtype))
            states = states + torch.where(has_gaze, gaze, self.no_gaze)
            states, edges = self._join_fixations(states, fixations, fixation_mask, grid)
        grid_index = grid_neighbors(grid, states.device)
        if "grid" not in self.edges:
            grid_index = grid_index[:, :0]
        for layer in self.layers:
            states = layer(states, grid_index, edges)
        return self.output_norm(states[:, :patches]).unflatten(1, grid)

    def _join_fixations(self, states, fixations, mask, grid) -> tuple[torch.Tensor, SparseEdges | None]:
        """The nodes, with fixations behind the patches where they are nodes, and the edges that gaze makes."""
        cells, inside = cell_index(fixations, grid)
        mask = mask & inside
        nodes, edges = cells, []
        if self.fixation_proj is not None:
            nodes = torch.arange(fixations.shape[1], device=cells.device).expand_as(cells) + states.shape[1]
            own = self.fixation_proj(fixation_features(fixations, mask).to(states.dtype))
            states = torch.cat([states, own], dim=1)
            edges.append(fixated_edges(fixations, mask, cells, nodes))
        if "saccade" in self.edges:
            edges.append(saccade_edges(fixations, mask, nodes))
        if not edges:
            return states, None
        joined = (torch.cat(parts, dim=-1) for parts in zip(*edges, strict=True))
        return states, SparseEdges(*joined)


def patch_features(fixations: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(N, P, 5): log dwell, whether visited, log visits, how early first and how late last (1 at the scanpath's
    beginning and end, falling towards 0; 0 if never visited).

    Time counts from the film's earliest visit: where it starts differs between data sets.
    """
    gaze = patch_gaze(fixations, mask, grid)
    visited = gaze.visits > 0
    since = torch.where(visited, gaze.first_visit - gaze.first_visit.amin(dim=(-2, -1), keepdim=True), 0)
    until = torch.where(visited, gaze.last_visit.amax(dim=(-2, -1), keepdim=True) - gaze.last_visit, 0)
    features = (gaze.dwell.log1p(), visited, gaze.visits.log1p(), visited / (1 + since), visited / (1 + until))
    return torch.stack([feature.to(fixations.dtype) for feature in features], dim=-1).flatten(1, 2)


def fixation_features(fixations: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N, F, 5): x, y, log duration, log number in the scanpath, how early (as in `patch_features`); 0 in the
    padding."""
    number = mask.long().cumsum(1).to(fixations.dtype)
    onset = torch.where(mask, fixations[..., 2], torch.inf)
    since = torch.where(mask, onset - onset.amin(dim=1, keepdim=True), 0)
    x, y, _, duration = fixations.unbind(-1)
    features = torch.stack([x, y, duration.clamp(min=0).log1p(), number.log1p(), 1 / (1 + since)], dim=-1)
    return torch.where(mask[..., None], features, 0)
