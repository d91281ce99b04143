"""ScanpathPredictor computes the same compiled, in half precision, with other attention kernels and on a GPU."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaze_vlm import ScanpathPredictor
from gaze_vlm.models.scanpath_losses import scanpath_loss

KINDS = {
    "paper": {},
    "plus": {
        "language_model_input": "text",
        "image_memory": True,
        "num_strategies": 3,
        "distribution": "log_normal",
        "noise_rank": 2,
        "regression_loss": "nll",
        "termination": "expected_length",
        "point_estimate": "consensus",
    },
}
TEXT = {
    "input_ids": torch.tensor([[6, 7, 8], [9, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
}


@pytest.fixture(params=KINDS)
def model(request, make_scanpath_predictor) -> ScanpathPredictor:
    return make_scanpath_predictor(**KINDS[request.param])


@pytest.fixture
def batch(make_films, make_gaze) -> dict:
    fixations, mask = make_gaze([4, 2], slots=6)
    return {"pixel_values": make_films(2), **TEXT, "fixations": fixations, "fixation_mask": mask}


def assert_alike(one, other, tolerance: float):
    for name in ("loss", "mean", "keep_logits", "strategy_logits", "consensus"):
        expected, got = getattr(one, name), getattr(other, name)
        if expected is not None:
            torch.testing.assert_close(got.cpu(), expected, atol=tolerance, rtol=tolerance)


def test_compiled_it_is_the_same_to_1e_5(model, batch):
    expected = model(**batch)
    expected.loss.backward()
    gradient = model.memory_projection.weight.grad.clone()
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager")(**batch)
    compiled.loss.backward()
    assert_alike(expected, compiled, 1e-5)
    torch.testing.assert_close(model.memory_projection.weight.grad, gradient, atol=1e-5, rtol=1e-3)


def test_compiled_it_needs_no_break_to_predict(model, batch):
    seen = {name: batch[name] for name in ("pixel_values", *TEXT)}
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(whole(**seen).mean, model(**seen).mean, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_fixations_are_where_they_were_to_two_percent(model, batch):
    expected = model(**batch)
    half = model.to(torch.bfloat16)(**{**batch, "pixel_values": batch["pixel_values"].bfloat16()})
    assert half.mean.dtype == torch.float32  # heads answer in full precision
    torch.testing.assert_close(half.mean, expected.mean, atol=0.02, rtol=0.05)
    assert half.loss.isfinite()


def test_autocast_agrees_too(model, batch):
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(**batch)
    torch.testing.assert_close(half.mean, expected.mean, atol=0.02, rtol=0.05)
    half.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_loss_is_in_float32_under_autocast(make_scanpath_predictor, batch):
    """Noise that all fixations share, much of it beside little of each one's own: rounded to 8 bits, what the
    likelihood inverts is not positive definite."""
    model = make_scanpath_predictor(**KINDS["plus"])
    with torch.no_grad():
        model.position_head.bias.fill_(-20.0)  # the least variance
        model.noise_head.weight.mul_(0.01)
        model.noise_head.bias.fill_(3.0)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(**batch)
    loss, parts = scanpath_loss(model.config, half, batch["fixations"], batch["fixation_mask"], drawn=False)
    torch.testing.assert_close(half.loss, loss, rtol=1e-6, atol=0)
    assert half.loss.dtype == torch.float32 and all(value.dtype == torch.float32 for value in parts.values())
    half.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_attention_is_softmax_of_scaled_products(make_scanpath_predictor):
    attention = make_scanpath_predictor().decoder[0].cross_attention
    torch.manual_seed(0)
    states, context = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    heads = [
        part.unflatten(-1, (4, 8)).transpose(1, 2)
        for part in (attention.q_proj(states), attention.k_proj(context), attention.v_proj(context))
    ]
    scores = heads[0] @ heads[1].mT / math.sqrt(8)
    weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    expected = attention.o_proj((weights @ heads[2]).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(attention(states, context, mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_every_kernel_of_sdpa_agrees_to_1e_5(model, batch, kernel):
    expected = model(**batch)
    with sdpa_kernel([kernel, SDPBackend.MATH]):  # the second where the first does not take a mask
        other = model(**batch)
    assert_alike(expected, other, 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_the_same_to_1e_3(model, batch):
    expected = model(**batch)
    other = model.cuda()(**{name: value.cuda() for name, value in batch.items()})
    assert_alike(expected, other, 1e-3)
