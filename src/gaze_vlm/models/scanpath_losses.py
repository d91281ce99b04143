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
"""What a ScanpathPredictor learns from: likelihood with shared noise, keep/stop, likeness that can be maximised."""

import torch
from torch import nn

MIN_DURATION = 0.05  # seconds; shorter fixations are not predicted


def scanpath_loss(config, output, fixations: torch.Tensor, mask: torch.Tensor, drawn: bool):
    """Paper's loss (keep/stop over all slots, regression over real ones) under a mixture over strategies.

    Args:
        config, output: of a `ScanpathPredictor`; not under autocast, which would round what is inverted here.
        fixations, mask: (B, F, 4) and (B, F), or (B, R, F, 4) and (B, R, F), as in its `forward`.
        drawn: L1 is that of a drawn scanpath, as in the paper's training, not of the mean.

    Returns:
        The loss, and its parts by name.
    """
    target, mask = _targets(config, fixations, mask)
    weight = mask.any(-1) / mask.any(-1).sum(-1, keepdim=True) / len(mask)  # (B, R)
    keep = keep_loss(output.keep_logits[:, None], mask[:, :, None])
    position, duration = _regression(config, output, target[:, :, None], mask[:, :, None], drawn)
    costs = (
        config.keep_loss_weight * keep
        + config.position_loss_weight * position
        + config.duration_loss_weight * duration
    )
    joint = output.strategy_logits[:, None] - costs
    share = joint.detach().softmax(-1) * weight[..., None]
    parts = {"keep": (share * keep).sum(), "position": (share * position).sum()}
    parts["duration"] = (share * duration).sum()
    loss = -(weight * joint.logsumexp(-1)).sum()
    if output.consensus is not None:
        parts["consensus"] = (weight * _consensus_loss(output, target, mask)).sum()
        loss = loss + config.consensus_loss_weight * parts["consensus"]
    return loss, parts


def _targets(config, fixations: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scanpaths to learn (B, R, S, 3), x, y and duration, and their mask (B, R, S); checked."""
    if fixations.ndim == 3:
        fixations, mask = fixations[:, None], mask[:, None]
    missing = config.max_fixations - fixations.shape[2]
    if missing < 0:
        raise ValueError(
            f"fixations: {fixations.shape[2]}, max_fixations: {config.max_fixations}; cut the scanpaths first"
        )
    empty = ~mask.flatten(1).any(1)
    if empty.any():
        raise ValueError(f"row {int(empty.nonzero()[0])} has no fixation to learn from")
    fixations = torch.where(mask[..., None], fixations, 0)  # NaN in the padding would reach the gradients
    return nn.functional.pad(fixations[..., [0, 1, 3]], (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing))


def _regression(config, output, target, mask, drawn: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Costs (B, R, K) of positions and durations: summed over real slots, per fixation if L1."""
    mean, log_variance = output.mean[:, None], output.log_variance[:, None]
    noise = None if output.noise is None else output.noise[:, None]
    real = mask[..., None].expand(torch.broadcast_shapes(mean.shape, target.shape))
    if config.start_at_center:
        real = real & ~given_values(config, real.device)
    if config.regression_loss == "l1":
        if drawn:
            each = torch.randn_like(mean)
            shared = mean.new_empty(*mean.shape[:-2], 2, config.noise_rank).normal_()
            mean = perturbed(config, mean, log_variance, noise, each, shared)
        error = torch.where(real, (target - mean).abs(), 0).sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1)
        return error[..., :2].sum(-1), error[..., 2]
    error = target - mean
    if config.distribution == "log_normal":
        seconds = target[..., 2:].clamp(min=MIN_DURATION).log() - mean[..., 2:].log()
        error = torch.cat([error[..., :2], seconds], dim=-1)
    return tuple(
        gaussian_nll(
            error[..., columns].flatten(-2),
            log_variance[..., columns].flatten(-2),
            None if noise is None else noise[..., columns, :].flatten(-3, -2),
            real[..., columns].flatten(-2),
        )
        for columns in (slice(0, 2), slice(2, 3))
    )


def _consensus_loss(output, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, R): how unlike each reader's scanpath the one for all readers is, at two scales."""
    path, full = output.consensus[:, None], mask.new_ones(len(mask), 1, mask.shape[-1])
    likeness = sum(scanpath_likeness(path, full, target, mask, reach=reach) for reach in (0.25, 0.5))[:, 0]
    error = torch.where(mask, (path[..., 2] - target[..., 2]).abs(), 0)
    duration = error.sum(-1) / mask.sum(-1).clamp(min=1)
    return 1 - likeness / 2 + duration + keep_loss(output.consensus_keep_logits[:, None], mask)


def given_values(config, device) -> torch.Tensor:
    """(S, 3) True where a value is given, not predicted: the place of the first fixation."""
    given = torch.zeros(config.max_fixations, 3, dtype=torch.bool, device=device)
    given[0, :2] = True
    return given


def perturbed(config, mean, log_variance, noise, each, shared) -> torch.Tensor:
    """Means (..., S, 3) moved by standard normal numbers: `each` (..., S, 3) and `shared` (..., 2, r)."""
    moved = (0.5 * log_variance).exp() * each
    if noise is not None:
        moved = moved + (noise * shared[..., None, [0, 0, 1], :]).sum(-1)
    if config.distribution == "log_normal":
        return torch.cat([mean[..., :2] + moved[..., :2], mean[..., 2:] * moved[..., 2:].exp()], dim=-1)
    return mean + moved


def keep_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross entropy of keep/stop (..., S), mean over all slots, padding included as in MedGaze: (...)."""
    logits, target = torch.broadcast_tensors(logits, mask.to(logits.dtype))
    return nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)


def gaussian_nll(error: torch.Tensor, log_variance: torch.Tensor, noise: torch.Tensor | None, real: torch.Tensor):
    """Negative log-likelihood of `error` under a Gaussian with covariance `diag(exp(log_variance)) + noise noise^T`.

    Without its constant. What is not real has no part in it: the likelihood is that of the marginal of the real ones.

    Args:
        error, log_variance: (..., D); real: (..., D) bool.
        noise: (..., D, r) directions that all D share, or None.

    Returns:
        (...) in nats.
    """
    log_variance = torch.where(real, log_variance, 0)
    error = torch.where(real, error, 0)
    inverse = (-log_variance).exp()
    nll = log_variance.sum(-1) + (error.square() * inverse).sum(-1)
    if noise is not None:  # Woodbury's identity and the determinant lemma: all that is inverted is r x r
        noise = torch.where(real[..., None], noise, 0)
        scaled = noise * inverse[..., None]
        inner = torch.eye(noise.shape[-1], device=noise.device) + noise.mT @ scaled
        factor = torch.linalg.cholesky(inner)
        projected = torch.linalg.solve_triangular(factor, scaled.mT @ error[..., None], upper=False)
        nll = nll + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - projected.square().sum((-2, -1))
    return 0.5 * nll


def scanpath_likeness(
    candidates: torch.Tensor,
    candidate_mask: torch.Tensor,
    others: torch.Tensor,
    other_mask: torch.Tensor,
    reach: float = 0.25,
) -> torch.Tensor:
    """ScanMatch's similarity without the binning: global alignment in which a pair scores by how near it lies.

    A pair of fixations scores 1 at the same place, 0 at distance `reach` and less beyond; gaps cost nothing; the sum
    is divided by the longer scanpath's length. ScanMatch's usual threshold, 3.5 bins of 14, is a reach of a quarter of
    the image's side. Differentiable, so that it can be maximised.

    Args:
        candidates, candidate_mask: (B, N, S, 2 or more) x, y in 0..1 and (B, N, S).
        others, other_mask: (B, M, S, ...) and (B, M, S).

    Returns:
        (B, N, M) in 0..1, higher is more alike.
    """
    distance = (candidates[:, :, None, :, None, :2] - others[:, None, :, None, :, :2]).square().sum(-1)
    distance = (distance + 1e-12).sqrt()
    pairs = candidate_mask[:, :, None, :, None] & other_mask[:, None, :, None, :]
    score = torch.where(pairs, 1 - distance / reach, -1.0)
    rows, columns = score.shape[-2:]
    above = [score.new_zeros(score.shape[:3]) for _ in range(columns + 1)]
    for i in range(rows):
        line = [above[0]]
        for j in range(columns):
            matched = above[j] + score[..., i, j]
            line.append(torch.maximum(torch.maximum(above[j + 1], line[j]), matched))
        above = line
    longest = torch.maximum(candidate_mask.sum(-1)[:, :, None], other_mask.sum(-1)[:, None])
    return above[-1] / longest.clamp(min=1)
