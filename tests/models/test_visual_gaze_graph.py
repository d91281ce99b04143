import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaze_vlm import GazeVLMConfig
from gaze_vlm.models.configuration_gaze_vlm import GRAPH_CONVOLUTIONS
from gaze_vlm.models.modeling_visual_gaze_graph import (
    KINDS,
    SparseEdges,
    VisualGazeGraph,
    VisualGazeGraphLayer,
    dwell_weight,
    fixated_edges,
    fixation_features,
    grid_neighbors,
    nearest_patches,
    patch_features,
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


def config(**options):
    sizes = {"graph_hidden_size": 8, "num_graph_layers": 2, "graph_neighbors": 3}
    return GazeVLMConfig(**{**sizes, **options})


def make_graph(**options):
    if options.get("graph_convolution", "max_relative") != "max_relative":
        pytest.importorskip("torch_geometric", reason='needs torch-geometric: pip install "gaze2report[train]"')
    return randomized(VisualGazeGraph(6, config(**options)))


@pytest.fixture
def graph():
    return make_graph()


@pytest.fixture
def layer():
    return randomized(VisualGazeGraphLayer(config()))


KINDS_OF_GRAPHS = pytest.mark.parametrize(
    "options",
    [{"graph_convolution": name, "fixation_nodes": nodes} for name in GRAPH_CONVOLUTIONS for nodes in (False, True)],
    ids=lambda options: f"{options['graph_convolution']}{'-nodes' * options['fixation_nodes']}",
)


def edges_of(pairs, weights, exists) -> SparseEdges:
    """Saccade edges of one film from (from, to) pairs."""
    ends = torch.tensor(pairs)
    kind = torch.full((len(pairs),), KINDS.index("saccade"))
    return SparseEdges(ends[None, :, 0], ends[None, :, 1], torch.tensor([weights]), kind, torch.tensor([exists]))


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


def test_dilation_takes_every_so_many_of_the_nearest():
    states = random_tokens().flatten(1, 2)
    assert torch.equal(nearest_patches(states, 3, dilation=2), nearest_patches(states, 6)[..., ::2])
    assert nearest_patches(states, 9, dilation=2).shape[-1] == 6  # of the eleven others


def test_saccade_edges_by_hand():
    fixations = torch.zeros(1, 6, 4)
    fixations[0, :, 3] = torch.tensor([0.2, 0.4, 0.1, 9.0, 0.3, 9.0])
    mask = torch.tensor([[True, True, True, False, True, False]])
    nodes = torch.tensor([[0, 1, 3, 9, 2, 9]])
    edges = saccade_edges(fixations, mask, nodes)
    assert edges.mask.shape == (1, 10) and edges.kind.tolist() == [KINDS.index("saccade")] * 10
    # the look off the film breaks the chain on both sides, and the padding ends it
    ends = torch.stack([edges.source, edges.target], dim=-1)
    assert ends[edges.mask].tolist() == [[0, 1], [1, 3], [1, 0], [3, 1]]
    # the weight is that of the fixation the message comes from, over the longest one
    torch.testing.assert_close(edges.weight[edges.mask], torch.tensor([0.5, 1.0, 1.0, 0.25]))


def test_edges_of_fixations_that_are_nodes_by_hand():
    fixations = torch.zeros(1, 3, 4)
    fixations[0, :, 3] = torch.tensor([0.2, 0.4, 5.0])
    mask = torch.tensor([[True, True, False]])
    edges = fixated_edges(fixations, mask, torch.tensor([[7, 7, 0]]), torch.tensor([[12, 13, 14]]))
    ends = torch.stack([edges.source, edges.target], dim=-1)
    assert ends[edges.mask].tolist() == [[12, 7], [13, 7], [7, 12], [7, 13]]
    torch.testing.assert_close(edges.weight[edges.mask], torch.tensor([0.5, 1.0, 1.0, 1.0]))


def test_dwell_weights_of_nothing_are_zero():
    assert dwell_weight(torch.ones(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)).eq(0).all()
    assert dwell_weight(torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool)).eq(0).all()


def naive_layer(layer, states, edges: SparseEdges):
    """Max-relative graph convolution, patch by patch and neighbour by neighbour."""
    normed = layer.graph_norm(states)
    nearest, around = nearest_patches(normed, layer.neighbors), grid_neighbors(GRID)
    updated = torch.empty_like(states)
    for row in range(len(states)):
        for patch in range(PATCHES):
            film, gaze = [torch.zeros(8)], [torch.zeros(8)]
            for other in nearest[row, patch].tolist() + around[patch].tolist():
                film.append(normed[row, other] - normed[row, patch])
            for source, target, weight, real in zip(
                *(one[row].tolist() for one in (edges.source, edges.target, edges.weight, edges.mask)), strict=True
            ):
                if real and target == patch:
                    gaze.append(weight * (normed[row, source] - normed[row, patch]))
            joined = torch.cat([normed[row, patch], *(torch.stack(one).max(0).values for one in (film, gaze))])
            updated[row, patch] = states[row, patch] + layer.convolution.linear(joined)
    return updated + layer.down_proj(torch.nn.functional.gelu(layer.up_proj(layer.feed_norm(updated))))


def test_a_layer_is_the_naive_loop(layer):
    states = random_tokens(width=8).flatten(1, 2)
    generator = torch.Generator().manual_seed(5)
    source, target = torch.randint(PATCHES, (2, 2, 9), generator=generator)
    weight, mask = torch.rand(2, 9, generator=generator), torch.rand(2, 9, generator=generator) > 0.3
    edges = SparseEdges(source, target, weight, torch.full((9,), KINDS.index("saccade")), mask)
    got = layer(states, grid_neighbors(GRID), edges)
    torch.testing.assert_close(got, naive_layer(layer, states, edges), atol=1e-5, rtol=1e-5)
    unweighted = edges._replace(weight=torch.ones_like(weight))
    assert not torch.allclose(got, layer(states, grid_neighbors(GRID), unweighted), atol=1e-3)


def test_a_saccade_changes_only_the_patches_it_joins(layer):
    states = random_tokens(1, width=8).flatten(1, 2)
    without = layer(states, grid_neighbors(GRID))
    pairs = [(0, 11), (11, 0), (5, 2)]
    joined = layer(states, grid_neighbors(GRID), edges_of(pairs, [1.0, 1.0, 1.0], [True, True, False]))
    changed = (joined != without).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [0, 11]
    for nothing in (edges_of(pairs, [1.0] * 3, [False] * 3), edges_of(pairs, [0.0] * 3, [True] * 3)):
        assert torch.equal(layer(states, grid_neighbors(GRID), nothing), without)


@pytest.mark.parametrize("name", ["gatv2", "transformer", "edge"])
def test_a_batch_of_graphs_is_torch_geometric_film_by_film(name, fixated):
    """Against torch-geometric called with edges that are listed one by one."""
    graph = make_graph(graph_convolution=name)
    fixations, mask = fixated
    layer, states = graph.layers[0], random_tokens(width=8).flatten(1, 2)
    _, edges = graph._join_fixations(states, fixations, mask, GRID)
    nearest, around = nearest_patches(states, 3), grid_neighbors(GRID)
    kinds = torch.tensor([KINDS.index("feature")] * 3 + [KINDS.index("grid")] * 8)
    neighbors = torch.cat([nearest, around.expand(2, -1, -1)], dim=-1)
    got = layer.convolution(states, neighbors, kinds, edges)
    for row in range(2):
        listed = []  # from, to, kind, weight
        for patch in range(PATCHES):
            listed += [(other, patch, "feature", 1.0) for other in nearest[row, patch].tolist()]
            listed += [(other, patch, "grid", 1.0) for other in around[patch].tolist()]
        columns = (edges.source, edges.target, edges.weight, edges.mask)
        for source, target, weight, real in zip(*(one[row].tolist() for one in columns), strict=True):
            listed += [(source, target, "saccade", weight)] * real
        index = torch.tensor([one[:2] for one in listed]).T
        known = {}
        if name != "edge":
            known["edge_attr"] = torch.zeros(len(listed), len(KINDS))
            for number, (_, _, kind, weight) in enumerate(listed):
                known["edge_attr"][number, KINDS.index(kind)] = weight
        expected = layer.convolution.convolution(states[row], index, **known)
        torch.testing.assert_close(got[row], expected, atol=1e-5, rtol=1e-5)


@KINDS_OF_GRAPHS
def test_every_kind_of_graph_keeps_films_apart_and_reads_gaze(options, fixated):
    graph, tokens, (fixations, mask) = make_graph(**options), random_tokens(), fixated
    got = graph(tokens, fixations, mask)
    assert got.shape == (2, *GRID, 8) and got.isfinite().all()
    for row in range(2):
        its = slice(row, row + 1)
        alone = graph(tokens[its], fixations[its], mask[its])
        torch.testing.assert_close(alone, got[its], atol=1e-5, rtol=1e-5)
    assert (got - graph(tokens)).abs().max() > 1e-3
    padded = torch.cat([fixations, torch.full((2, 3, 4), 0.5)], 1)
    longer = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], 1)
    torch.testing.assert_close(graph(tokens, padded, longer), got, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(graph(tokens, fixations, torch.zeros_like(mask)), graph(tokens), atol=1e-5, rtol=1e-5)


@KINDS_OF_GRAPHS
def test_every_kind_of_graph_learns(options, fixated):
    graph, (fixations, mask) = make_graph(**options), fixated
    mixed = mask & torch.tensor([[True], [False]])
    graph(random_tokens(), fixations, mixed).square().sum().backward()
    idle = [name for name, parameter in graph.named_parameters() if parameter.grad is None]
    # a shift of every key is the same shift of every attention score
    still = [n for n, p in graph.named_parameters() if p.grad is not None and not p.grad.abs().sum() > 0]
    assert not idle and [name for name in still if not name.endswith("lin_key.bias")] == []


def test_edges_can_be_left_out_one_by_one(fixated):
    tokens, (fixations, mask) = random_tokens(), fixated
    everything = make_graph()(tokens, fixations, mask)
    for kind in ("feature", "grid", "saccade"):
        rest = [other for other in ("feature", "grid", "saccade") if other != kind]
        assert (make_graph(graph_edges=rest)(tokens, fixations, mask) - everything).abs().max() > 1e-3, kind
    nothing = make_graph(graph_edges=[])
    got = nothing(tokens, fixations, mask)
    changed = tokens.clone()
    changed[:, 0, 0, 0] += 1
    moved = (nothing(changed, fixations, mask) != got).any(-1)
    assert moved[:, 0, 0].all() and moved.sum() == 2  # without edges patches know nothing of one another


def test_a_patch_is_told_where_it_lies():
    even = torch.ones(1, *GRID, random_tokens().shape[-1])
    got = make_graph(graph_edges=[])(even).flatten(0, 2)
    apart = torch.cdist(got, got) + torch.eye(len(got))
    assert apart.min() > 1e-3


def test_a_missing_torch_geometric_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(ImportError, match=r'graph_convolution="gatv2" needs torch-geometric: pip install'):
        VisualGazeGraph(6, config(graph_convolution="gatv2"))


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


def test_what_a_patch_is_told_about_its_gaze():
    fixations = torch.tensor([[[0.1, 0.1, 3.0, 1.0], [0.1, 0.1, 0.25, 1.0], [0.9, 0.9, 0.0, 0.5]]])
    features = patch_features(fixations, torch.ones(1, 3, dtype=torch.bool), GRID)[0]
    # log(1 + seconds), visited, log(1 + visits), 1 / (1 + seconds until the first visit, and since the last)
    torch.testing.assert_close(features[0], torch.tensor([math.log(3), 1.0, math.log(3), 1 / 1.25, 1.0]))
    torch.testing.assert_close(features[11], torch.tensor([math.log(1.5), 1.0, math.log(2), 1.0, 1 / 4.5]))
    assert features[1:11].eq(0).all()


def test_what_a_fixation_tells_about_itself():
    fixations = torch.tensor([[[9.0, 9.0, 9.0, 9.0], [0.2, 0.3, 1.0, 0.5], [0.4, 0.6, 2.0, 1.0]]])
    features = fixation_features(fixations, torch.tensor([[False, True, True]]))[0]
    assert features[0].eq(0).all()
    torch.testing.assert_close(features[1], torch.tensor([0.2, 0.3, math.log(1.5), math.log(2), 1.0]))
    torch.testing.assert_close(features[2], torch.tensor([0.4, 0.6, math.log(2), math.log(3), 0.5]))


@settings(max_examples=50, deadline=None)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 2**16), nodes=st.booleans())
def test_the_clock_of_a_recording_does_not_matter(shift, seed, nodes):
    graph = make_graph(fixation_nodes=nodes)
    generator = torch.Generator().manual_seed(seed)
    fixations, tokens = torch.rand(1, 5, 4, generator=generator), random_tokens(1)
    fixations[..., 2] = fixations[..., 2].sort(dim=1).values
    later = fixations.clone()
    later[..., 2] += shift
    torch.testing.assert_close(graph(tokens, later), graph(tokens, fixations), atol=2e-4, rtol=2e-4)


def test_time_counts_from_the_earliest_visit(graph):
    fixations = torch.tensor([[[0.1, 0.1, 0.0, 1.0], [0.9, 0.9, 1.0, 1.0]]]).repeat(3, 1, 1)
    fixations[1, :, 2] -= 1  # a tracker that started before the reading
    fixations[2, :, 0] = 2  # looks off the film only
    fixations.requires_grad_()
    seen = patch_features(fixations, torch.ones(3, 2, dtype=torch.bool), GRID)
    graph(random_tokens(3), fixations).sum().backward()
    torch.testing.assert_close(seen[1], seen[0])
    assert seen[0, [0, 11], 3].tolist() == [1, 0.5] and seen[2].eq(0).all()
    assert seen[0, [0, 11], 4].tolist() == [0.5, 1]
    assert fixations.grad.isfinite().all()
