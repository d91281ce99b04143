import itertools
import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from gaze_vlm import Scanpath, ScanpathPredictor, ScanpathPredictorConfig
from gaze_vlm.models.modeling_scanpath_layers import grid_encoding, sequence_encoding
from gaze_vlm.models.modeling_scanpath_predictor import until_stop
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.models.processing_gaze_vlm import pad_fixations
from gaze_vlm.models.processing_scanpath_predictor import scanpath_records
from gaze_vlm.models.scanpath_losses import MIN_DURATION, gaussian_nll, scanpath_likeness

FIXTURES = Path(__file__).parents[1] / "fixtures"
TEXT = {
    "input_ids": torch.tensor([[6, 7, 8], [9, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def language_states(model, films, input_ids, attention_mask):
    """The language model's states over [queries ; text], read past the model's own methods."""
    _, queries = model._read_film(films, None)
    embeds = torch.cat([queries, model.get_input_embeddings()(input_ids)], dim=1)
    mask = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), attention_mask], dim=1)
    return model.language_model.base_model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state


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


def test_each_film_can_have_a_generator_of_its_own(make_scanpath_predictor, make_films):
    model, films = make_scanpath_predictor(num_strategies=3, noise_rank=2), make_films(3)
    together = model.predict(films, num_samples=4, generator=[seeded(s) for s in (5, 6, 7)])
    for i in range(3):
        alone = model.predict(films[i : i + 1], num_samples=4, generator=seeded(5 + i))
        assert torch.equal(alone.fixation_mask[0], together.fixation_mask[i])
        torch.testing.assert_close(alone.fixations[0], together.fixations[i], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="generators: 2, films: 3"):
        model.predict(films, generator=[seeded(), seeded()])


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


@pytest.mark.parametrize(
    "kind", [{}, {"regression_loss": "nll", "noise_rank": 2, "point_estimate": "consensus", "num_strategies": 2}]
)
def test_readers_of_one_film_are_learned_together(make_scanpath_predictor, make_films, make_gaze, kind):
    model, films = make_scanpath_predictor(**kind), make_films(2)
    fixations, mask = make_gaze([3, 6, 2, 5], slots=6)
    alone = [
        model(films[i : i + 1], fixations=fixations[r : r + 1], fixation_mask=mask[r : r + 1])
        for i, r in ((0, 0), (0, 1), (0, 2), (1, 3))
    ]
    readers, present = torch.full((2, 3, 6, 4), torch.nan), torch.zeros(2, 3, 6, dtype=torch.bool)
    readers[0], present[0] = fixations[:3], mask[:3]
    readers[1, 1], present[1, 1] = fixations[3], mask[3]
    together = model(films, fixations=readers, fixation_mask=present)
    weights = (1 / 6, 1 / 6, 1 / 6, 1 / 2)
    expected = sum(w * one.loss for w, one in zip(weights, alone, strict=True))
    torch.testing.assert_close(together.loss, expected)
    for name, value in together.loss_parts.items():
        parts = sum(w * one.loss_parts[name] for w, one in zip(weights, alone, strict=True))
        torch.testing.assert_close(value, parts)
    together.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_without_a_mask_all_fixations_of_all_readers_are_real(make_scanpath_predictor, make_films, make_gaze):
    model, films = make_scanpath_predictor(), make_films(2)
    fixations = make_gaze([4] * 6, slots=4)[0].unflatten(0, (2, 3))
    plain = model(films, fixations=fixations).loss
    assert torch.equal(plain, model(films, fixations=fixations, fixation_mask=torch.ones(2, 3, 4)).loss)


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
        logits = model.language_model.get_output_embeddings()(language_states(model, films, **TEXT))
    queries = model.config.num_query_tokens
    losses = [cross_entropy(logits[i, queries - 1 + t], labels[i, t]) for i, t in ((0, 0), (0, 1), (0, 2), (1, 0))]
    torch.testing.assert_close(outputs.loss, torch.stack(losses).mean())
    assert outputs.loss_parts.keys() == {"report"}


def test_the_likelihood_is_that_of_a_gaussian_with_shared_noise():
    torch.manual_seed(0)
    error, log_variance = torch.randn(4, 10), torch.randn(4, 10)
    noise, real = torch.randn(4, 10, 3), torch.rand(4, 10) > 0.4
    for row in range(4):
        kept = real[row]
        covariance = noise[row, kept] @ noise[row, kept].T + log_variance[row, kept].exp().diag()
        exact = torch.distributions.MultivariateNormal(torch.zeros(int(kept.sum())), covariance)
        expected = -exact.log_prob(error[row, kept]) - 0.5 * kept.sum() * math.log(2 * math.pi)
        torch.testing.assert_close(gaussian_nll(error, log_variance, noise, real)[row], expected, atol=1e-4, rtol=1e-4)
        alone = 0.5 * (error[row, kept] ** 2 / log_variance[row, kept].exp() + log_variance[row, kept]).sum()
        torch.testing.assert_close(gaussian_nll(error, log_variance, None, real)[row], alone)


def test_l1_of_a_draw_teaches_the_variance_and_outside_training_the_mean_is_meant(
    make_scanpath_predictor, make_films, make_gaze
):
    model = make_scanpath_predictor(noise_rank=2)
    films = make_films(3)
    fixations, mask = make_gaze([4, 2, 1], slots=4)
    model.train()
    torch.manual_seed(0)
    first, again = (model(films, fixations=fixations, fixation_mask=mask).loss for _ in range(2))
    assert not torch.equal(first, again)
    first.backward()
    assert model.position_head.weight.grad[2:].abs().max() > 0 and model.noise_head.weight.grad.abs().max() > 0
    model.eval()
    losses = [model(films, fixations=fixations, fixation_mask=mask).loss for _ in range(2)]
    assert torch.equal(*losses)


def test_the_start_has_no_noise_and_a_rank_changes_draws_as_a_whole(make_scanpath_predictor, make_films):
    model = make_scanpath_predictor(noise_rank=1, distribution="log_normal", regression_loss="nll", max_fixations=4)
    with torch.no_grad():
        model.position_head.weight[2:], model.position_head.bias[2:] = 0, -9.0
        model.noise_head.weight.zero_()
        model.noise_head.bias.copy_(torch.tensor([0.3, -0.3, 1.0]))  # x and y move against one another
        films = make_films(1)
        mean = model(films).mean[0, 0]
        fixations = model.predict(films, num_samples=400, generator=seeded()).fixations[0]
    assert fixations[:, 0, :2].eq(0.5).all()
    moved = (fixations[:, 1:, :2] - mean[1:, :2]).flatten(1)
    inside = (fixations[:, 1:, :2] > 0.01).flatten(1).all(1) & (fixations[:, 1:, :2] < 0.99).flatten(1).all(1)
    shared = torch.corrcoef(moved[inside].T)
    signs = torch.tensor([1.0, -1.0]).repeat(3)
    assert (shared * signs[:, None] * signs > 0.8).all()


def test_log_normal_durations_have_the_mean_as_median(make_scanpath_predictor, make_films):
    model = make_scanpath_predictor(distribution="log_normal", regression_loss="nll")
    with torch.no_grad():
        model.keep_head.bias.fill_(50.0)
        model.duration_head.weight.mul_(0.1)  # far from the least duration
        outputs = model(make_films(1))
    drawn = model.predict(make_films(1), num_samples=4000, generator=seeded()).fixations[0, ..., 3]
    torch.testing.assert_close(drawn.median(0).values, outputs.mean[0, 0, :, 2], rtol=0.06, atol=0)
    spread = (drawn.log().std(0) - (0.5 * outputs.log_variance[0, 0, :, 2]).exp()).abs()
    unclamped = drawn.min(0).values > MIN_DURATION
    assert unclamped.any() and (spread[unclamped] < 0.03).all()


def test_without_a_distribution_only_strategy_and_end_are_drawn(make_scanpath_predictor, make_films):
    model = make_scanpath_predictor(distribution="none")
    fixations, mask = model.predict(make_films(2), num_samples=9, generator=seeded())
    mean = model(make_films(2)).mean[:, :1].detach().expand_as(fixations[..., [0, 1, 3]])
    torch.testing.assert_close(fixations[..., [0, 1, 3]][mask], mean[mask])
    assert mask.sum(-1).unique().numel() > 1


def test_as_many_fixations_are_drawn_as_their_probabilities_say(make_scanpath_predictor, make_films):
    model = make_scanpath_predictor(termination="expected_length")
    films = make_films(1)
    with torch.no_grad():
        model.keep_head.weight.zero_()
        model.keep_head.bias.fill_(0.4)
    longer = torch.sigmoid(torch.tensor(0.4))  # in each slot: all 6 or only the first, which is always there
    drawn = model.predict(films, num_samples=5000, generator=seeded()).fixation_mask[0].sum(-1)
    assert set(drawn.tolist()) == {1, 6}
    assert (drawn == 6).float().mean().item() == pytest.approx(longer.item(), abs=0.02)
    assert model.predict(films).fixation_mask.sum() == round(6 * longer.item())
    model.config.termination = "first_stop"
    assert model.predict(films).fixation_mask.sum() == 6


def test_a_published_model_samples_without_being_asked(make_scanpath_predictor, make_films):
    model = make_scanpath_predictor(point_estimate="sample")
    torch.manual_seed(0)
    first, second = (model.predict(make_films(1)).fixations for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(*(model.predict(make_films(1), sample=False).fixations for _ in range(2)))


# ---- text


def test_text_states_stand_for_the_text_they_are_of(make_scanpath_predictor, make_films):
    model, films = make_scanpath_predictor(language_model_input="text"), make_films(2)
    read = model.predict(films, **TEXT)
    states, mask = model.get_text_states(**TEXT)
    kept = model.predict(films, text_states=states, attention_mask=mask)
    assert torch.equal(read.fixations, kept.fixations)
    one = model.predict(films, input_ids=TEXT["input_ids"][:1].expand(2, -1))
    states, mask = model.get_text_states(TEXT["input_ids"][:1])
    torch.testing.assert_close(model.predict(films, text_states=states).fixations, one.fixations)
    with pytest.raises(ValueError, match="queries_and_text"):
        make_scanpath_predictor().get_text_states(**TEXT)
    with pytest.raises(ValueError, match='need language_model_input "text"'):
        make_scanpath_predictor()(films, text_states=states)


def test_a_row_without_text_reads_as_if_there_were_none(make_scanpath_predictor, make_films):
    model, films = make_scanpath_predictor(language_model_input="text"), make_films(2)
    ids, mask = TEXT["input_ids"], torch.tensor([[1, 1, 1], [0, 0, 0]])
    mixed = model(films, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(mixed.mean[1:], model(films[1:]).mean)
    torch.testing.assert_close(mixed.mean[:1], model(films[:1], input_ids=ids[:1]).mean)


def test_the_language_model_is_not_run_without_text(make_scanpath_predictor, make_films):
    model = make_scanpath_predictor(language_model_input="text")
    calls = []
    model.language_model.base_model.register_forward_hook(lambda *_: calls.append(1))
    model.predict(make_films(1))
    assert not calls
    model.predict(make_films(1), input_ids=TEXT["input_ids"][:1])
    assert calls == [1]


@pytest.mark.parametrize("reads", ["queries_and_text", "text"])
def test_long_text_is_cut_where_the_config_says(make_scanpath_predictor, make_films, reads):
    model = make_scanpath_predictor(text_max_length=2, language_model_input=reads)
    films, ids = make_films(2), TEXT["input_ids"]
    torch.testing.assert_close(model(films, ids, labels=ids).loss, model(films, ids[:, :2], labels=ids[:, :2]).loss)
    torch.testing.assert_close(model(films, ids).mean, model(films, ids[:, :2]).mean)


@pytest.mark.parametrize(("reads", "room"), [("queries_and_text", 125), ("text", 128)])
def test_text_beyond_the_language_model_is_named_by_row(make_scanpath_predictor, make_films, reads, room):
    model = make_scanpath_predictor("opt", language_model_input=reads)
    ids = torch.full((2, 131), 7)
    mask = torch.ones_like(ids)
    mask[0, room:] = 0
    with pytest.raises(ValueError, match=f"row 1: 131 text tokens; the language model has room for {room}"):
        model(make_films(2), ids, mask)
    assert model(make_films(1), ids[:1], mask[:1]).mean.isfinite().all()  # only padding reaches beyond


def test_labels_need_their_text(make_scanpath_predictor, make_films):
    with pytest.raises(ValueError, match="labels need the input_ids"):
        make_scanpath_predictor()(make_films(1), labels=TEXT["input_ids"][:1])


# ---- what the decoder sees


def test_the_decoder_may_see_the_patches(make_scanpath_predictor, make_films):
    films = make_films(2)
    queries, mask = make_scanpath_predictor().get_memory(films, **TEXT)
    assert queries.shape == (2, 6, 32) and mask.tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    memory, mask = make_scanpath_predictor(image_memory=True).get_memory(films, **TEXT)
    assert memory.shape == (2, 6 + 16, 32) and mask[:, 6:].all()


def test_memory_positions_are_of_a_sequence_or_of_the_papers_grid():
    like = torch.zeros(())
    grid = grid_encoding(3, 3, 32, like).flatten(0, 1)
    assert grid.shape == (9, 32)
    torch.testing.assert_close(grid[0, 16:], grid[3, 16:])  # one column
    torch.testing.assert_close(grid[0, :16], grid[1, :16])  # one row
    sequence = sequence_encoding(200, 32, like)
    assert torch.pdist(sequence).min() > 0.1 and sequence.abs().max() <= 1


@pytest.mark.parametrize("longest", [3, 9, None])
def test_the_grid_is_the_same_however_long_other_texts_of_a_batch_are(make_scanpath_predictor, make_films, longest):
    """MedGaze's 8 x 8 for 32 queries and 32 text tokens; here 3 and 13 make 4 x 4."""
    model, films = make_scanpath_predictor(memory_positions="grid", text_max_length=13), make_films(2)
    ids = longest and torch.full((2, longest), 7)
    mask = longest and torch.arange(longest) < torch.tensor([[2], [longest]])
    short = None if ids is None else ids[:1, :2]
    memory = model.get_memory(films, ids, mask)[0]
    torch.testing.assert_close(memory[0, : 5 if longest else 3], model.get_memory(films[:1], short)[0][0])
    model.config.memory_positions = "sequence"
    sequence = sequence_encoding(memory.shape[1], 32, memory)
    grid = grid_encoding(4, 4, 32, memory).flatten(0, 1)[: memory.shape[1]]
    torch.testing.assert_close(memory - model.get_memory(films, ids, mask)[0], (grid - sequence).expand_as(memory))


@pytest.mark.parametrize("positions", ["sequence", "grid"])
def test_memory_positions_are_used(make_scanpath_predictor, make_films, positions):
    model, films = make_scanpath_predictor(memory_positions=positions, text_max_length=6), make_films(1)
    with_them = model(films, TEXT["input_ids"][:1]).mean
    model.config.memory_positions = {"sequence": "grid", "grid": "sequence"}[positions]
    assert not torch.allclose(with_them, model(films, TEXT["input_ids"][:1]).mean, atol=1e-4)


# ---- presets and what a config may not say


@pytest.mark.parametrize("preset", ["medgaze", "medgaze_plus", "nano"])
def test_presets_are_models(preset):
    config = getattr(ScanpathPredictorConfig, preset)()
    with torch.device("meta"):
        model = ScanpathPredictor(config)
    assert not any(p.requires_grad for p in model.language_model.parameters())
    again = ScanpathPredictorConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_the_papers_dimensions():
    config = ScanpathPredictorConfig.medgaze()
    with torch.device("meta"):
        model = ScanpathPredictor(config)
    assert model.vision_projection.in_features == 2048 and model.vision_projection.out_features == 1408
    assert model.text_projection.in_features == 768 and model.text_projection.out_features == 2560
    assert len(model.encoder) == len(model.decoder) == 6 and len(model.slot_queries) == 1 + 50
    assert 2.6e9 < sum(p.numel() for p in model.language_model.parameters()) < 2.8e9
    assert model.query_tokens.shape == (1, 32, 768) and config.text_max_length == 32


def test_presets_take_overrides():
    config = ScanpathPredictorConfig.nano(vision_config=None, vision_width=64, num_strategies=3)
    assert config.vision_config is None and config.num_strategies == 3 and config.image_memory


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"distribution": "cauchy"}, "distribution must be one of normal, log_normal, none; got 'cauchy'"),
        ({"termination": "never"}, "termination must be one of"),
        ({"point_estimate": "median"}, "point_estimate must be one of sample, mean, consensus"),
        ({"language_model_input": "image"}, "language_model_input must be one of"),
        ({"memory_positions": "none"}, "memory_positions must be one of"),
        ({"memory_positions": "grid"}, "laid over num_query_tokens and text_max_length; set the latter"),
        ({"noise_rank": -1}, "noise_rank must be at least 0"),
        ({"distribution": "none", "noise_rank": 2}, "neither noise nor a likelihood"),
        ({"distribution": "none", "regression_loss": "nll"}, "neither noise nor a likelihood"),
        ({"text_max_length": 0}, "text_max_length must be at least 1"),
    ],
)
def test_a_config_checks_itself(wrong, says):
    with pytest.raises(ValueError, match=says):
        ScanpathPredictorConfig(**wrong)


def test_wrong_channels_are_named(make_scanpath_predictor, make_films):
    with pytest.raises(ValueError, match=r"pixel_values must be \(images, 3, height, width\), got \(2, 1, 64, 64\)"):
        make_scanpath_predictor()(make_films(2)[:, :1])


def test_a_frozen_tower_keeps_its_running_statistics(
    make_scanpath_predictor, make_vision_config, make_films, make_gaze
):
    model = make_scanpath_predictor(vision_config=make_vision_config("timm"), freeze_vision_tower=True).train()
    before = {name: value.clone() for name, value in model.vision_tower.state_dict().items()}
    fixations, mask = make_gaze([4, 2], slots=4)
    model(make_films(2), fixations=fixations, fixation_mask=mask).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.vision_tower.state_dict().items())
    assert not any(p.requires_grad for p in model.vision_tower.parameters())


@pytest.mark.parametrize("image_memory", [True, False])
def test_32_scanpaths_of_radiologists_are_learned_by_heart(make_scanpath_predictor, image_memory):
    records = json.loads((FIXTURES / "gazesearch_32.json").read_text())["scanpaths"]
    paths = [Scanpath.from_relative(one["x"], one["y"], one["duration"]).with_centre() for one in records]
    fixations, mask = pad_fixations([torch.from_numpy(path.to_array()) for path in paths])
    films = torch.randn(32, 2, 2, 32, generator=seeded())
    model = make_scanpath_predictor(
        vision_width=32, hidden_size=64, max_fixations=7, distribution="none", image_memory=image_memory
    ).train()
    steps = 300
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model(patch_tokens=films, fixations=fixations, fixation_mask=mask).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    predicted, kept = model.eval().predict(patch_tokens=films)
    assert torch.equal(kept[:, 0], mask)
    error = (predicted[:, 0, :, :2] - fixations[..., :2]).norm(dim=-1)[mask]
    assert error.mean() < 0.01, f"mean distance {error.mean():.4f} of the image's side"


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
