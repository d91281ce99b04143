import itertools
from functools import cache

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from gaze_vlm import Scanpath
from gaze_vlm.models.modeling_scanpath_predictor import MIN_DURATION, scanpath_likeness, until_stop
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.models.processing_scanpath_predictor import scanpath_records

TEXT = {
    "input_ids": torch.tensor([[6, 7, 8], [9, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- what is predicted


def test_draws_are_reproducible(make_scanpath_predictor, make_films):
    model, films = make_scanpath_predictor(num_strategies=2), make_films(2)
    first, again, other = (model.predict(films, num_samples=4, generator=seeded(s)) for s in (7, 7, 8))
    assert torch.equal(first.fixations, again.fixations) and torch.equal(first.fixation_mask, again.fixation_mask)
    assert not torch.equal(first.fixations, other.fixations)
    assert first.fixations.shape == (2, 4, 6, 4) and first.fixation_mask.shape == (2, 4, 6)
    assert len({path.numpy().tobytes() for path in first.fixations[0]}) == 4


def test_draws_do_not_depend_on_what_else_is_in_the_batch(make_scanpath_predictor, make_films):
    model, films = make_scanpath_predictor(num_strategies=3), make_films(3)
    together = model.predict(films, num_samples=4, generator=seeded())
    for i in range(3):
        alone = model.predict(films[i : i + 1], num_samples=4, generator=seeded())
        assert torch.equal(alone.fixation_mask[0], together.fixation_mask[i])
        torch.testing.assert_close(alone.fixations[0], together.fixations[i], atol=1e-4, rtol=1e-4)


def test_the_first_fixation_is_the_centre(make_scanpath_predictor, make_films):
    films = make_films(2)
    model = make_scanpath_predictor()
    assert model.predict(films).fixations[:, :, 0, :2].eq(0.5).all()
    assert model.predict(films, num_samples=8, generator=seeded()).fixations[:, :, 0, :2].eq(0.5).all()
    anywhere = make_scanpath_predictor(start_at_center=False).predict(films, num_samples=8, generator=seeded())
    assert (anywhere.fixations[:, :, 0, :2] - 0.5).abs().max() > 0.05


@pytest.mark.parametrize("samples", [1, 16])
def test_masks_are_prefixes_and_onsets_are_summed_durations(make_scanpath_predictor, make_films, samples):
    fixations, mask = make_scanpath_predictor().predict(make_films(3), num_samples=samples, generator=seeded())
    assert mask[..., 0].all()
    assert torch.equal(mask, mask.cummin(-1).values)
    lengths = mask.sum(-1)
    assert samples == 1 or lengths.unique().numel() > 2
    x, y, onset, duration = fixations.unbind(-1)
    assert duration[~mask].eq(0).all() and (duration[mask] >= MIN_DURATION).all()
    torch.testing.assert_close(onset[..., 1:], duration.cumsum(-1)[..., :-1])
    assert onset[..., 0].eq(0).all()
    assert (x >= 0).all() and (x <= 1).all() and (y >= 0).all() and (y <= 1).all()


def test_until_stop_by_hand():
    keep = torch.tensor([[True, True, False, True], [False, True, True, True], [True, True, True, True]])
    assert until_stop(keep).tolist() == [[True, True, False, False], [True] * 4, [True] * 4]


def test_several_scanpaths_must_be_drawn(make_scanpath_predictor, make_films):
    with pytest.raises(ValueError, match="sample=True"):
        make_scanpath_predictor().predict(make_films(1), num_samples=2, sample=False)


def test_the_point_estimate_is_the_likeliest_strategys_mean(make_scanpath_predictor, make_films):
    model, films = make_scanpath_predictor(num_strategies=3), make_films(4)
    with torch.no_grad():
        outputs = model(films)
    fixations, mask = model.predict(films)
    for i, best in enumerate(outputs.strategy_logits.argmax(-1).tolist()):
        assert torch.equal(mask[i, 0], until_stop(outputs.keep_logits[i, best] > 0))
        assert torch.equal(fixations[i, 0, :, :2], outputs.mean[i, best, :, :2])


def test_the_consensus_is_a_scanpath_of_its_own(make_scanpath_predictor, make_films):
    model = make_scanpath_predictor(num_strategies=2, point_estimate="consensus")
    films = make_films(3)
    with torch.no_grad():
        outputs = model(films)
    assert outputs.mean.shape == (3, 2, 6, 3) and outputs.consensus.shape == (3, 6, 3)
    assert not any(torch.allclose(outputs.consensus, outputs.mean[:, k], atol=1e-3) for k in range(2))
    fixations, mask = model.predict(films)
    assert torch.equal(mask[:, 0], until_stop(outputs.consensus_keep_logits > 0))
    assert torch.equal(fixations[:, 0, :, :2], outputs.consensus[..., :2])
    without = make_scanpath_predictor(num_strategies=2)(films)
    assert without.consensus is None and without.consensus_keep_logits is None


def test_the_consensus_loss_is_unlikeness_duration_and_keep(make_scanpath_predictor, make_films, make_gaze):
    weight = 2.0
    model = make_scanpath_predictor(num_strategies=2, point_estimate="consensus", consensus_loss_weight=weight)
    fixations, mask = make_gaze([4, 6], slots=6)
    with torch.no_grad():
        outputs = model(make_films(2), fixations=fixations, fixation_mask=mask)
    costs = []
    for i, n in enumerate([4, 6]):
        reader, path = fixations[i, :n].tolist(), outputs.consensus[i].tolist()
        likeness = sum(best_alignment(path, reader, reach) for reach in (0.25, 0.5)) / 2
        duration = sum(abs(path[s][2] - reader[s][3]) for s in range(n)) / n
        stays = mask[i].float()
        keep = binary_cross_entropy_with_logits(outputs.consensus_keep_logits[i], stays).item()
        costs.append(1 - likeness + duration + keep)
    assert outputs.loss_parts["consensus"].item() == pytest.approx(sum(costs) / 2, abs=1e-4)
    mixture = (-costs_by_hand(outputs, fixations, mask)).exp() * outputs.strategy_logits.exp()
    expected = -mixture.sum(-1).log().mean() + weight * outputs.loss_parts["consensus"]
    torch.testing.assert_close(outputs.loss, expected, atol=1e-4, rtol=1e-5)


def test_text_is_read_and_may_be_absent(make_scanpath_predictor, make_films):
    model, films = make_scanpath_predictor(), make_films(1)
    with torch.no_grad():
        without, one, other = (
            model(films, ids).mean for ids in (None, torch.tensor([[6, 7]]), torch.tensor([[8, 9]]))
        )
    assert not torch.allclose(without, one, atol=1e-3) and not torch.allclose(one, other, atol=1e-3)


def test_patch_tokens_stand_for_pixel_values(make_scanpath_predictor, make_films):
    model, films = make_scanpath_predictor(), make_films(2)
    tokens = patch_tokens(model.vision_tower, films)
    assert torch.equal(model(patch_tokens=tokens).mean, model(films).mean)
    without_tower = make_scanpath_predictor(vision_width=32)
    assert without_tower.vision_tower is None
    assert without_tower.predict(patch_tokens=tokens).fixations.shape == (2, 1, 6, 4)
    with pytest.raises(ValueError, match="no vision tower"):
        without_tower(films)
    with pytest.raises(ValueError, match="pixel_values"):
        model()


def test_records_are_scanpaths(make_scanpath_predictor, scanpath_processor, make_films):
    samples = make_scanpath_predictor().predict(make_films(2), num_samples=3, generator=seeded())
    films = scanpath_processor.post_process_scanpaths(samples)
    assert films == scanpath_records(samples)
    assert [len(paths) for paths in films] == [3, 3]
    for i, n in itertools.product(range(2), range(3)):
        record, mask = films[i][n], samples.fixation_mask[i, n]
        assert list(record) == ["x", "y", "onset", "duration"]
        array = Scanpath.from_records(record).to_array()
        torch.testing.assert_close(torch.from_numpy(array), samples.fixations[i, n][mask])


# ---- what is learned


def costs_by_hand(outputs, fixations, mask, regression="l1", center=True):
    """Cost of each strategy for each sample, slot by slot."""
    batch, strategies, slots = outputs.keep_logits.shape
    costs = torch.zeros(batch, strategies)
    for i, k in itertools.product(range(batch), range(strategies)):
        n = int(mask[i].sum())
        stays = torch.tensor([float(s < n) for s in range(slots)])
        costs[i, k] = binary_cross_entropy_with_logits(outputs.keep_logits[i, k], stays)
        for s in range(n):
            for column, target in ((0, 0), (1, 1), (2, 3)):
                if center and s == 0 and column < 2:
                    continue
                error = (fixations[i, s, target] - outputs.mean[i, k, s, column]).abs()
                if regression == "l1":
                    costs[i, k] += error / n
                else:
                    log_variance = outputs.log_variance[i, k, s, column]
                    costs[i, k] += 0.5 * (error**2 / log_variance.exp() + log_variance)
    return costs


@pytest.mark.parametrize("center", [True, False])
def test_one_strategy_and_l1_is_the_papers_loss(make_scanpath_predictor, make_films, make_gaze, center):
    model = make_scanpath_predictor(start_at_center=center)
    fixations, mask = make_gaze([4, 2, 1], slots=4)
    with torch.no_grad():
        outputs = model(make_films(3), fixations=fixations, fixation_mask=mask)
    expected = costs_by_hand(outputs, fixations, mask, center=center).mean()
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(sum(outputs.loss_parts.values()), expected)


@pytest.mark.parametrize("regression", ["l1", "nll"])
def test_strategies_are_a_mixture(make_scanpath_predictor, make_films, make_gaze, regression):
    model = make_scanpath_predictor(num_strategies=3, regression_loss=regression)
    fixations, mask = make_gaze([4, 2, 6], slots=6)
    with torch.no_grad():
        outputs = model(make_films(3), fixations=fixations, fixation_mask=mask)
    likelihood = (-costs_by_hand(outputs, fixations, mask, regression)).exp()
    expected = -(outputs.strategy_logits.softmax(-1) * likelihood).sum(-1).log().mean()
    torch.testing.assert_close(outputs.loss, expected, atol=1e-4, rtol=1e-5)


def test_loss_weights_are_those_of_the_config(make_scanpath_predictor, make_films, make_gaze):
    fixations, mask = make_gaze([4, 2], slots=4)
    weights = {"keep": 2.0, "position": 0.5, "duration": 3.0}
    model = make_scanpath_predictor(**{f"{name}_loss_weight": weight for name, weight in weights.items()})
    with torch.no_grad():
        outputs = model(make_films(2), fixations=fixations, fixation_mask=mask)
    expected = sum(weight * outputs.loss_parts[name] for name, weight in weights.items())
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize("kind", [{}, {"regression_loss": "nll", "point_estimate": "consensus"}])
def test_padding_of_fixations_changes_nothing(make_scanpath_predictor, make_films, make_gaze, kind):
    model, films = make_scanpath_predictor(**kind), make_films(2)
    fixations, mask = make_gaze([3, 3], slots=6)
    fixations[~mask] = torch.nan
    padded = model(films, fixations=fixations, fixation_mask=mask).loss
    torch.testing.assert_close(padded, model(films, fixations=fixations[:, :3]).loss)
    padded.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_too_many_fixations_and_none_are_named(make_scanpath_predictor, make_films, make_gaze):
    model = make_scanpath_predictor()
    fixations, mask = make_gaze([7, 7], slots=7)
    with pytest.raises(ValueError, match="fixations: 7, max_fixations: 6"):
        model(make_films(2), fixations=fixations, fixation_mask=mask)
    fixations, mask = make_gaze([2, 0], slots=2)
    with pytest.raises(ValueError, match="row 1 has no fixation"):
        model(make_films(2), fixations=fixations, fixation_mask=mask)


@pytest.mark.parametrize("text", ["opt", "llama"])
def test_the_report_is_learned_from_the_queries(make_scanpath_predictor, make_films, text):
    model, films = make_scanpath_predictor(text), make_films(2)
    labels = TEXT["input_ids"].masked_fill(TEXT["attention_mask"] == 0, -100)
    with torch.no_grad():
        outputs = model(films, **TEXT, labels=labels)
        memory, _ = model.get_memory(films, **TEXT)
        logits = model.language_model.get_output_embeddings()(memory)
    queries = model.config.num_query_tokens
    losses = [cross_entropy(logits[i, queries - 1 + t], labels[i, t]) for i, t in ((0, 0), (0, 1), (0, 2), (1, 0))]
    torch.testing.assert_close(outputs.loss, torch.stack(losses).mean())
    assert outputs.loss_parts.keys() == {"report"}


def test_eight_scanpaths_are_learned_by_heart(make_scanpath_predictor, make_films, make_gaze):
    model = make_scanpath_predictor(initializer_range=0.02).train()
    fixations, mask = make_gaze([6, 1, 4, 2, 6, 3, 1, 5], slots=6)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(make_films(8), fixations=fixations, fixation_mask=mask).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# ---- likeness


def best_alignment(one, other, reach=0.25) -> float:
    """The best of all alignments that keep both orders, found by trying them all."""

    @cache
    def best(i, j):
        if i == len(one) or j == len(other):
            return 0.0
        distance = ((one[i][0] - other[j][0]) ** 2 + (one[i][1] - other[j][1]) ** 2) ** 0.5
        return max(best(i + 1, j), best(i, j + 1), best(i + 1, j + 1) + 1 - distance / reach)

    return best(0, 0) / max(len(one), len(other), 1)


def test_likeness_is_the_best_alignment():
    places = 0.5 * torch.rand(2, 7, 5, 2, generator=seeded())
    mask = torch.arange(5) < torch.randint(1, 6, (2, 7, 1), generator=seeded(1))
    got = scanpath_likeness(places[:, :3], mask[:, :3], places[:, 3:], mask[:, 3:])
    assert got.shape == (2, 3, 4)
    paths = [
        [place[real].tolist() for place, real in zip(*row, strict=True)] for row in zip(places, mask, strict=True)
    ]
    for b, n, m in itertools.product(range(2), range(3), range(4)):
        assert got[b, n, m].item() == pytest.approx(best_alignment(paths[b][n], paths[b][3 + m]), abs=1e-5)
    assert 0 < got.min() < got.max() < 1


def test_a_scanpath_is_most_like_itself():
    places = torch.rand(1, 4, 6, 2, generator=seeded())
    mask = torch.arange(6) < torch.tensor([1, 3, 5, 6])[None, :, None]
    likeness = scanpath_likeness(places, mask, places, mask)[0]
    torch.testing.assert_close(likeness.diagonal(), torch.ones(4))
    torch.testing.assert_close(likeness, likeness.T)
    far = scanpath_likeness(torch.zeros(1, 1, 2, 2), mask[:, :1, :2], torch.ones(1, 1, 2, 2), mask[:, :1, :2])
    assert far.item() == 0


def test_a_frozen_language_model_stays_in_eval_mode(make_scanpath_predictor):
    model = make_scanpath_predictor().train()
    assert model.training and model.qformer.training and not model.language_model.training
    assert make_scanpath_predictor(freeze_language_model=False).train().language_model.training
