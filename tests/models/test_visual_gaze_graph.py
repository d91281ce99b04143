import math

import pytest
import torch

from gaze_vlm.models.modeling_visual_gaze_graph import (
    MaxRelativeLayer,
    VisualGazeGraph,
    grid_neighbors,
    nearest_patches,
    saccade_edges,
)

GRID = (3, 4)
PATCHES = 12


def random_tokens(count=2, grid=GRID, width=6, seed=0):
    return torch.randn(count, *grid, width, generator=torch.Generator().manual_seed(seed))


def randomized(module):
    """Every parameter random, also those that start at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module.eval()


@pytest.fixture
def graph():
    return randomized(VisualGazeGraph(6, 8, num_layers=2, neighbors=3))


@pytest.fixture
def layer():
    return randomized(MaxRelativeLayer(8, neighbors=3, dropout=0.0))


@pytest.fixture
def fixated(make_gaze):
    return make_gaze([5, 3], slots=5, seed=3)


def test_grid_neighbors_by_hand():
    around = grid_neighbors(GRID)
    assert around.shape == (PATCHES, 8)
    assert around[5].tolist() == [0, 1, 2, 4, 6, 8, 9, 10]
    assert around[0].tolist() == [0, 0, 0, 0, 1, 0, 4, 5]  # the corner stands in for what lies off the film
    assert around[7].tolist() == [2, 3, 7, 6, 7, 10, 11, 7]
    assert around[11].tolist() == [6, 7, 11, 10, 11, 11, 11, 11]


def test_nearest_patches_are_those_of_a_loop_and_never_oneself():
    states = random_tokens().flatten(1, 2)
    got = nearest_patches(states, 3)
    assert got.shape == (2, PATCHES, 3)
    for row in range(2):
        for patch in range(PATCHES):
            likeness = torch.cosine_similarity(states[row, patch][None], states[row], dim=-1)
            order = [other for other in likeness.argsort(descending=True).tolist() if other != patch]
            assert got[row, patch].tolist() == order[:3]


def test_there_are_no_more_neighbors_than_other_patches():
    got = nearest_patches(torch.ones(1, 4, 5), 9)
    assert [sorted(row) for row in got[0].tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_saccade_edges_by_hand():
    places = [(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (1.5, 0.5), (0.1, 0.9), (0.2, 0.2)]
    fixations = torch.tensor([[[x, y, 0.0, 1.0] for x, y in places]])
    mask = torch.tensor([[True, True, True, True, True, False]])
    edges, exists = saccade_edges(fixations, mask, (2, 2))
    assert edges.shape == (1, 10, 2)
    # the look off the film breaks the chain on both sides, and the padding ends it
    assert edges[0][exists[0]].tolist() == [[0, 1], [1, 3], [1, 0], [3, 1]]


def naive_layer(layer, states, edges, edge_mask):
    """Max-relative graph convolution, patch by patch and neighbour by neighbour."""
    normed = layer.graph_norm(states)
    nearest, around = nearest_patches(normed, layer.neighbors), grid_neighbors(GRID)
    updated = torch.empty_like(states)
    for row in range(len(states)):
        for patch in range(PATCHES):
            others = nearest[row, patch].tolist() + around[patch].tolist()
            pairs = zip(edges[row].tolist(), edge_mask[row].tolist(), strict=True)
            others += [start for (start, end), real in pairs if real and end == patch]
            difference = torch.stack([normed[row, other] - normed[row, patch] for other in others])
            joined = torch.cat([normed[row, patch], difference.max(0).values])
            updated[row, patch] = states[row, patch] + layer.graph_proj(joined)
    return updated + layer.down_proj(torch.nn.functional.gelu(layer.up_proj(layer.feed_norm(updated))))


def test_a_layer_is_the_naive_loop(layer, fixated):
    states = random_tokens(width=8).flatten(1, 2)
    edges, exists = saccade_edges(*fixated, GRID)
    got = layer(states, grid_neighbors(GRID), edges, exists)
    torch.testing.assert_close(got, naive_layer(layer, states, edges, exists), atol=1e-5, rtol=1e-5)


def test_a_saccade_changes_only_the_patches_it_joins(layer):
    states = random_tokens(1, width=8).flatten(1, 2)
    states[0, 0] = torch.tensor([9.0, -9.0] * 4)  # so far from one another that the edge is the longest difference
    states[0, 11] = -states[0, 0]
    without = layer(states, grid_neighbors(GRID))
    edges = torch.tensor([[[0, 11], [11, 0], [5, 2]]])
    joined = layer(states, grid_neighbors(GRID), edges, torch.tensor([[True, True, False]]))
    changed = (joined != without).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [0, 11]
    none = layer(states, grid_neighbors(GRID), edges, torch.tensor([[False, False, False]]))
    assert torch.equal(none, without)


def test_rows_of_a_batch_do_not_meet(graph, fixated):
    tokens, (fixations, mask) = random_tokens(), fixated
    got = graph(tokens, fixations, mask)
    assert got.shape == (2, *GRID, 8)
    order = torch.tensor([1, 0])
    torch.testing.assert_close(graph(tokens[order], fixations[order], mask[order]), got[order])
    torch.testing.assert_close(graph(tokens[:1], fixations[:1], mask[:1]), got[:1])


def test_an_empty_mask_is_no_gaze_exactly(graph, fixated):
    tokens, (fixations, mask) = random_tokens(), fixated
    without = graph(tokens)
    assert torch.equal(graph(tokens, fixations, torch.zeros_like(mask)), without)
    assert torch.equal(graph(tokens, fixations[:, :0], mask[:, :0]), without)
    mixed = graph(tokens, fixations, mask & torch.tensor([[True], [False]]))
    torch.testing.assert_close(mixed[1], without[1])
    assert not torch.allclose(mixed[0], without[0], atol=1e-3)


def test_gaze_changes_the_tokens_and_so_does_its_order(graph, fixated):
    tokens, (fixations, mask) = random_tokens(), fixated
    got = graph(tokens, fixations, mask)
    assert not torch.allclose(got, graph(tokens), atol=1e-3)
    longer = fixations.clone()
    longer[:, 0, 3] += 1
    assert not torch.allclose(got, graph(tokens, longer, mask), atol=1e-4)
    reordered = fixations[:1].clone()
    reordered[:, [1, 3], :] = reordered[:, [3, 1], :]  # same nodes (onsets travel along), other saccades
    assert not torch.allclose(got[:1], graph(tokens[:1], reordered, mask[:1]), atol=1e-4)


def test_padding_of_fixations_changes_nothing(graph, fixated):
    tokens, (fixations, mask) = random_tokens(), fixated
    padded = torch.cat([fixations, torch.full((2, 3, 4), 0.5)], 1)
    longer = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], 1)
    torch.testing.assert_close(graph(tokens, padded, longer), graph(tokens, fixations, mask))
    torch.testing.assert_close(graph(tokens[1:], fixations[1:, :3]), graph(tokens, fixations, mask)[1:])


def test_what_a_patch_is_told_about_its_gaze(graph):
    fixations = torch.tensor([[[0.1, 0.1, 3.0, 1.0], [0.1, 0.1, 0.25, 1.0], [0.9, 0.9, 0.0, 0.5]]])
    seen = []
    graph.gaze_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    graph(random_tokens(1), fixations)
    features = seen[0][0]
    # log(1 + seconds), visited, log(1 + visits), 1 / (1 + seconds until the first visit)
    torch.testing.assert_close(features[0], torch.tensor([math.log(3), 1.0, math.log(3), 1 / 1.25]))
    torch.testing.assert_close(features[11], torch.tensor([math.log(1.5), 1.0, math.log(2), 1.0]))
    assert features[1:11].eq(0).all()


def test_time_counts_from_the_earliest_visit(graph):
    seen = []
    graph.gaze_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fixations = torch.tensor([[[0.1, 0.1, 0.0, 1.0], [0.9, 0.9, 1.0, 1.0]]]).repeat(3, 1, 1)
    fixations[1, :, 2] -= 1  # a tracker that started before the reading
    fixations[2, :, 0] = 2  # looks off the film only
    fixations.requires_grad_()
    graph(random_tokens(3), fixations).sum().backward()
    torch.testing.assert_close(seen[0][1], seen[0][0])
    assert seen[0][0, [0, 11], 3].tolist() == [1, 0.5] and seen[0][2].eq(0).all()
    assert fixations.grad.isfinite().all()
