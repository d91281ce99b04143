"""The losses of GazeClassifier, each against its definition and its own finite differences."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from gaze_vlm import GazeClassifierConfig
from gaze_vlm.models.classifier_losses import (
    attention_loss,
    attention_terms,
    box_map,
    classification_loss,
    info_nce,
    peak,
    recording_trust,
)
from gaze_vlm.models.gaze_maps import density_map

TERMS = ("mse", "kl", "pearson", "center")
ATTENTION = torch.tensor([[[0.4, 0.3], [0.2, 0.1]]])
GAZE = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
# by hand for these two maps: mean of .75², .25², .25², .75² of the maps over their peaks; sum of p ln(p / q); the maps
# are opposite; the centres of mass are (.45, .40) and (.55, .60)
BY_HAND = {
    "mse": 0.3125,
    "kl": 0.3 * math.log(4) + 0.1 * math.log(1.5),
    "pearson": 2.0,
    "center": math.hypot(0.1, 0.2),
}
quick = settings(max_examples=25, deadline=None)


def config_of(**kwargs) -> GazeClassifierConfig:
    return GazeClassifierConfig(id2label={0: "Cardiomegaly", 1: "Effusion", 2: "Nodule"}, **kwargs)


@st.composite
def maps(draw, count: int = 1) -> list[torch.Tensor]:
    """`count` batches of maps (B, rows, columns) of one shape, each summing to 1, in float64."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(2, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    drawn = torch.rand(count, *shape, dtype=torch.double, generator=generator) + 0.05
    return list(drawn / drawn.sum((-2, -1), keepdim=True))


def spread(values: torch.Tensor) -> torch.Tensor:
    return (values - values.mean((1, 2), keepdim=True)).square().sum((1, 2))


# ---- the four terms


def test_each_term_by_hand():
    terms = attention_terms(ATTENTION, GAZE)
    assert tuple(terms) == TERMS
    for name, term in terms.items():
        assert term.shape == (1,)
        assert term.item() == pytest.approx(BY_HAND[name], abs=1e-5), name


@quick
@given(maps(2))
def test_each_term_by_a_loop_over_cells(both):
    attention, target = both
    terms = attention_terms(attention, target)
    for row, (a, g) in enumerate(zip(attention.tolist(), target.tolist(), strict=True)):
        rows, columns = len(a), len(a[0])
        cells = [
            (a[y][x], g[y][x], (x + 0.5) / columns, (y + 0.5) / rows) for y in range(rows) for x in range(columns)
        ]
        a_peak, g_peak = max(cell[0] for cell in cells), max(cell[1] for cell in cells)
        centres = [[sum(cell[of] * cell[axis] for cell in cells) for axis in (2, 3)] for of in (0, 1)]
        expected = {
            "mse": sum((p / a_peak - q / g_peak) ** 2 for p, q, *_ in cells) / len(cells),
            "kl": sum(q * math.log(q / p) for p, q, *_ in cells),
            "center": math.dist(*centres),
        }
        squares = spread(attention)[row], spread(target)[row]
        if squares[0] > 0.011 * squares[1] and squares[0] * squares[1] > 1e-6:  # neither is flat
            expected["pearson"] = 1 - float(torch.corrcoef(torch.tensor([cell[:2] for cell in cells]).T)[0, 1])
        for name, value in expected.items():
            assert terms[name][row].item() == pytest.approx(value, abs=2e-5), name


@quick
@given(maps())
def test_each_term_is_zero_at_equality_and_above_it_elsewhere(drawn):
    (target,) = drawn
    assume(bool((spread(target) > 1e-3).all()))  # what is flat has no correlation
    for name, term in attention_terms(target, target).items():
        assert term.abs().max().item() == pytest.approx(0, abs=5e-6), name
    other = attention_terms(target.flip((1, 2)), target)
    assert all((term >= -1e-9).all() for term in other.values())
    assert (other["pearson"] <= 2 + 1e-9).all() and (other["center"] <= math.sqrt(2)).all()


@pytest.mark.parametrize("name", TERMS)
@settings(max_examples=15, deadline=None)
@given(drawn=maps(2))
def test_gradients_are_those_of_finite_differences(name, drawn):
    scores, target = drawn[0].log(), drawn[1]
    assume(bool((spread(drawn[0]) > 0.02 * spread(target)).all()))  # below, the correlation is floored
    flat = drawn[0].flatten(1).topk(2).values
    assume(bool((flat[:, 0] - flat[:, 1] > 1e-4).all()))  # a peak that is shared has no derivative

    def term(scores: torch.Tensor) -> torch.Tensor:
        return attention_terms(scores.flatten(1).softmax(-1).view_as(scores), target)[name]

    assert torch.autograd.gradcheck(term, scores.requires_grad_())


def test_a_floor_keeps_the_slope_of_the_correlation_of_a_nearly_flat_map_bounded():
    target = torch.tensor([[[0.7, 0.1], [0.1, 0.1]]], dtype=torch.double)
    slopes = {}
    for size in (1e-6, 1e-4, 0.5):
        scores = (size * torch.tensor([[[0.0, 1.0], [0.0, 0.0]]], dtype=torch.double)).requires_grad_()
        attention = scores.flatten(1).softmax(-1).view_as(scores)
        attention_terms(attention, target)["pearson"].sum().backward()
        slopes[size] = scores.grad.norm().item()
        floored = bool(spread(attention) < 0.01 * spread(target))
        assert floored == (size < 0.1)
    # under the floor it is 1 - <a, g> / (0.1 |g|²): a line of slope 10 / |g|, which softmax divides by its 4 cells
    expected = 10 / spread(target).sqrt().item() / 4
    assert slopes[1e-6] == pytest.approx(expected, rel=1e-3) == slopes[1e-4]
    flat = torch.full_like(target, 0.25)
    assert attention_terms(flat, target)["pearson"].item() == pytest.approx(1)


def test_kl_does_not_mind_cells_nobody_looked_at():
    target = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])
    kl = attention_terms(torch.full((1, 2, 2), 0.25), target)["kl"]
    assert kl.item() == pytest.approx(math.log(2), abs=1e-6)


def looked_at(*points: tuple[float, float]) -> torch.Tensor:
    """A target (1, 4, 4) as the model makes it."""
    fixations = torch.tensor([[[x, y, 0.0, 0.5] for x, y in points]]).view(1, len(points), 4)
    return density_map(fixations, torch.ones(1, len(points), dtype=torch.bool), (4, 4), 0.06, normalize=True)


TARGETS = {
    "nobody": torch.zeros(1, 4, 4),
    "one point": looked_at((0.3, 0.6)),
    "a corner": looked_at((0.0, 1.0)),
    "many points": looked_at((0.1, 0.2), (0.8, 0.9), (0.5, 0.5)),
    "just off the image": looked_at((1.2, 0.5)),
    "far off the image": looked_at((9.0, 9.0)),
    "one cell": torch.zeros(1, 4, 4).index_fill_(1, torch.tensor([1]), 0.25),
    "everywhere": torch.full((1, 4, 4), 1 / 16),
    "a grid of one cell": torch.ones(1, 1, 1),
}


@pytest.mark.parametrize("start", [0.0, 1.0, 50.0], ids=["flat", "soft", "one-hot"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_and_gradients_are_finite(kind, start, dtype):
    target = TARGETS[kind]
    scores = start * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    scores = scores.to(dtype).requires_grad_()
    attention = scores.float().flatten(1).softmax(-1).view_as(target)  # as AttentionPooling does
    terms = attention_terms(attention, target)
    assert all(term.isfinite().all() for term in terms.values())
    sum(terms.values()).sum().backward()
    assert scores.grad.isfinite().all()
    if not target.sum():
        assert all(term.item() == 0 for term in terms.values()) and scores.grad.eq(0).all()


# ---- their weighted mean


@pytest.mark.parametrize("name", TERMS)
def test_a_term_of_weight_one_stands_alone(name):
    config = config_of(**{f"{term}_weight": float(term == name) for term in TERMS})
    assert attention_loss(config, ATTENTION, GAZE, torch.ones(1)).item() == pytest.approx(BY_HAND[name], abs=1e-5)


def test_terms_are_weighted_and_summed():
    weights = dict(zip(TERMS, (1.0, 2.0, 3.0, 4.0), strict=True))
    config = config_of(**{f"{name}_weight": weight for name, weight in weights.items()})
    loss = attention_loss(config, ATTENTION, GAZE, torch.ones(1))
    assert loss.item() == pytest.approx(sum(weights[name] * BY_HAND[name] for name in TERMS), abs=1e-5)


def test_trust_weighs_samples():
    """Also where all of a batch is trusted as little."""
    config = config_of(kl_weight=0.0, pearson_weight=0.0, center_weight=0.0)
    attention, target = torch.cat([ATTENTION, GAZE]), torch.cat([GAZE, GAZE])
    for trust, expected in (([1.0, 1.0], 0.5), ([0.5, 0.5], 0.25), ([0.25, 1.0], 0.125), ([0.0, 1.0], 0.0)):
        loss = attention_loss(config, attention, target, torch.tensor(trust))
        assert loss.item() == pytest.approx(expected * BY_HAND["mse"], abs=1e-5), trust


@quick
@given(maps(2), st.floats(0, 1))
def test_a_sample_without_a_target_changes_neither_loss_nor_gradient(both, trust):
    attention, target = both
    results = []
    for empty in (0, 2):
        scores = torch.cat([attention, attention[:1].expand(empty, -1, -1)]).log().requires_grad_()
        targets = torch.cat([target, torch.zeros_like(target[:1]).expand(empty, -1, -1)])
        softened = scores.flatten(1).softmax(-1).view_as(scores)
        weight = torch.tensor([1.0] * len(attention) + [trust] * empty)
        loss = attention_loss(config_of(), softened, targets, weight)
        loss.backward()
        results.append((loss.item(), scores.grad))
    (loss, gradient), (loss_again, gradient_again) = results
    assert loss_again == pytest.approx(loss)
    torch.testing.assert_close(gradient_again[: len(attention)], gradient)
    assert gradient_again[len(attention) :].eq(0).all()


# ---- trust


def recording(*points: tuple[float, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixations (1, F, 4) at x, y of so many seconds, after one of padding, and their mask."""
    rows = [[torch.nan] * 4, *([x, y, 0.0, seconds] for x, y, seconds in points)]
    mask = torch.tensor([[False, *[True] * len(points)]])
    return torch.tensor([rows]), mask


ON, OFF = (0.5, 0.5, 0.4), (1.5, 0.5, 0.4)
TRUST = {"trust_on_image": True, "trust_fixations": 4, "trust_seconds": 2.0}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ((), 1.0),
        (("trust_on_image",), 2 / 3),
        (("trust_fixations",), 2 / 4),
        (("trust_seconds",), 0.8 / 2),
        (tuple(TRUST), 2 / 3 * 2 / 4 * 0.8 / 2),
    ],
)
def test_trust_by_hand(chosen, expected):
    config = config_of(**{name: TRUST[name] for name in chosen})
    assert recording_trust(config, *recording(ON, ON, OFF)).tolist() == pytest.approx([expected])
    assert recording_trust(config, *recording()).tolist() == [0.0]
    enough = recording_trust(config, *recording(*[ON] * 9))
    assert enough.tolist() == pytest.approx([1.0])


def test_gaze_off_the_image_is_not_trusted_where_that_is_asked():
    gaze = recording(OFF, (-0.01, 0.5, 1.0), (0.5, 1.01, 1.0))
    assert recording_trust(config_of(), *gaze).item() == 1.0
    for name, value in TRUST.items():
        assert recording_trust(config_of(**{name: value}), *gaze).item() == 0.0, name
    edges = recording((0.0, 0.0, 1.0), (1.0, 1.0, 1.0))
    assert recording_trust(config_of(trust_on_image=True), *edges).item() == 1.0


points = st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5), st.floats(0, 1)), max_size=8)


@quick
@given(points, st.sets(st.sampled_from(sorted(TRUST))))
def test_trust_lies_between_0_and_1_and_grows_with_what_is_on_the_image(drawn, chosen):
    config = config_of(**{name: TRUST[name] for name in chosen})
    trust = recording_trust(config, *recording(*drawn)).item()
    assert 0 <= trust <= 1
    assert recording_trust(config, *recording(*drawn, ON)).item() >= trust - 1e-6
    longer = [(x, y, seconds + 0.5) for x, y, seconds in drawn]
    assert recording_trust(config, *recording(*longer)).item() >= trust - 1e-6
    if drawn:
        assert recording_trust(config, *recording(*drawn, OFF)).item() <= trust + 1e-6


# ---- boxes


def test_box_map_by_hand():
    boxes = torch.tensor([[0.25, 0.0, 0.75, 1.0], [0.0, 0.5, 0.5, 0.75], [0.5, 0.5, 0.5, 0.5]])
    expected = [[[0.5, 0.5], [0.5, 0.5]], [[0.0, 0.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert box_map(boxes, (2, 2)).tolist() == expected


def test_rows_are_y_and_columns_are_x():
    assert box_map(torch.tensor([0.5, 0.0, 1.0, 0.5]), (2, 4)).tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


fractions = st.floats(0, 1)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[fractions] * 4), st.floats(0, 0.5), st.integers(1, 9), st.integers(1, 9))
def test_the_mass_of_a_box_is_its_area_and_a_larger_one_covers_more(values, more, rows, columns):
    x1, x2, y1, y2 = *sorted(values[:2]), *sorted(values[2:])
    covered = box_map(torch.tensor([x1, y1, x2, y2], dtype=torch.double), (rows, columns))
    assert ((covered >= 0) & (covered <= 1 + 1e-9)).all()
    assert covered.mean().item() == pytest.approx((x2 - x1) * (y2 - y1), abs=1e-9)
    larger = torch.tensor([x1 - more, y1 - more, x2 + more, y2 + more], dtype=torch.double)  # part of it off the image
    assert (box_map(larger, (rows, columns)) >= covered - 1e-9).all()
    assert (box_map(larger, (rows, columns)) <= 1 + 1e-9).all()


def test_peak_is_one_or_nothing():
    assert peak(torch.tensor([[[0.2, 0.4]], [[0.0, 0.0]]])).tolist() == [[[0.5, 1.0]], [[0.0, 0.0]]]


# ---- InfoNCE


def slow_info_nce(scores: list[list[float]], positive: list[list[bool]], known: list[list[bool]]) -> float:
    """Over pairs: -ln of a positive's share of its row, mean over a row's positives, rows, and both directions."""

    def one_way(scores, positive, known) -> float:
        rows = []
        for values, pairs, compared in zip(scores, positive, known, strict=True):
            total = sum(math.exp(value) for value, counts in zip(values, compared, strict=True) if counts)
            both = [pair and counts for pair, counts in zip(pairs, compared, strict=True)]
            shares = [math.exp(value) / total for value, pair in zip(values, both, strict=True) if pair]
            if shares:
                rows.append(-sum(map(math.log, shares)) / len(shares))
        return sum(rows) / max(len(rows), 1)

    turned = ([*map(list, zip(*matrix, strict=True))] for matrix in (scores, positive, known))
    return (one_way(scores, positive, known) + one_way(*turned)) / 2


@st.composite
def pairs(draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = 3 * torch.randn(shape, dtype=torch.double, generator=generator)
    masks = torch.rand(2, *shape, generator=generator) < draw(st.floats(0.1, 0.9))
    return scores, masks[0], masks[1]


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_info_nce_is_the_slow_loop_and_the_same_from_both_sides(drawn):
    loss = info_nce(*drawn)
    assert loss.item() == pytest.approx(slow_info_nce(*(matrix.tolist() for matrix in drawn)), abs=1e-9)
    assert info_nce(*(matrix.T for matrix in drawn)).item() == pytest.approx(loss.item(), abs=1e-12)
    assert torch.autograd.gradcheck(lambda scores: info_nce(scores, *drawn[1:]), drawn[0].requires_grad_())


def test_info_nce_by_hand():
    own, every = torch.eye(2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    assert info_nce(torch.zeros(2, 2), own, every).item() == pytest.approx(math.log(2))
    assert info_nce(torch.zeros(2, 2), own, own).item() == pytest.approx(0)  # nothing to be taken for
    assert info_nce(100 * torch.eye(2), own, every).item() == pytest.approx(0)
    assert info_nce(torch.zeros(2, 2), every, every).item() == pytest.approx(math.log(2))


def test_info_nce_teaches_nothing_where_nothing_belongs_together():
    nothing, every = torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    for positive, known in ((nothing, every), (every, nothing), (nothing, nothing)):
        scores = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = info_nce(scores, positive, known)
        loss.backward()
        assert loss.item() == 0 and scores.grad.eq(0).all()


def test_unknown_pairs_get_no_gradient():
    scores = torch.zeros(2, 2, requires_grad=True)
    known = torch.tensor([[True, True], [False, True]])
    info_nce(scores, torch.eye(2, dtype=torch.bool), known).backward()
    assert scores.grad.ne(0).tolist() == [[True, True], [False, True]]


# ---- labels


@quick
@given(st.integers(0, 2**31), st.booleans())
def test_cross_entropy_is_torchs_over_known_labels(seed, weighted):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = 3 * torch.randn(4, 3, generator=generator), torch.rand(4, 3, generator=generator)
    known = torch.rand(4, 3, generator=generator) < 0.7
    known[0, 0] = True
    weights = [0.5, 1.0, 8.0] if weighted else None
    loss = classification_loss(logits, torch.where(known, labels, torch.nan), weights)
    moved = logits + torch.tensor(weights or [1.0]).log()
    every = binary_cross_entropy_with_logits(
        moved, labels, pos_weight=torch.tensor(weights) if weighted else None, reduction="none"
    )
    torch.testing.assert_close(loss, every[known].mean())


def test_unknown_labels_teach_nothing():
    labels = torch.tensor([[1.0, torch.nan], [torch.nan, 0.0]])
    for weights in (None, [2.0, 3.0]):
        logits = torch.tensor([[0.3, -0.2], [5.0, 0.1]], requires_grad=True)
        classification_loss(logits, labels, weights).backward()
        assert logits.grad.ne(0).tolist() == [[True, False], [False, True]]
        logits.grad = None
        loss = classification_loss(logits, torch.full((2, 2), torch.nan), weights)
        loss.backward()
        assert loss.item() == 0 and logits.grad.eq(0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 19), st.floats(0.05, 20))
def test_a_constant_is_best_at_the_log_odds_of_the_data_however_positives_weigh(positives, weight):
    labels = (torch.arange(20) < positives).double()[:, None]
    best = math.log(positives / (20 - positives))
    logit = torch.tensor(best, dtype=torch.float32, requires_grad=True)
    loss = classification_loss(logit.expand(20, 1), labels, [weight])
    (slope,) = torch.autograd.grad(loss, logit)
    assert slope.item() == pytest.approx(0, abs=1e-5 * max(1, weight))
    for step in (-0.3, 0.3):
        assert classification_loss((logit + step).expand(20, 1), labels, [weight]) > loss


def test_labels_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"labels: \(2, 5\), logits: \(2, 3\)"):
        classification_loss(torch.zeros(2, 3), torch.zeros(2, 5), None)
