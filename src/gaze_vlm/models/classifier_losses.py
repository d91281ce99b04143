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
"""What a GazeClassifier learns from beside its labels: where readers looked, boxes, texts of findings."""

import torch
from torch import nn


def attention_terms(attention: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """The four terms of Eyes on the Image's gaze-attention loss (arXiv 2508.13068, v1), each 0 at equality.

    - "mse": mean square error of the maps over their peaks;
    - "kl": Kullback-Leibler divergence of the attention from the target, in nats;
    - "pearson": 1 - correlation of the cells, 0..2;
    - "center": distance of the centres of mass, in sides of the image.

    The paper says which terms there are and not how maps are scaled: that is our choice. With an even target there is
    nothing to correlate, and that term is 0.

    Args:
        attention, target: (B, rows, columns), each summing to 1. Where the target has no mass (nobody looked, no box)
            all terms are 0, and so are their gradients.

    Returns:
        Term -> (B,).
    """
    known = target.sum((1, 2)) > 0
    columns, rows = (
        (torch.arange(size, device=target.device, dtype=target.dtype) + 0.5) / size for size in target.shape[:0:-1]
    )
    mse = (peak(attention) - peak(target)).square().mean((1, 2))
    kl = (torch.special.xlogy(target, target) - target * attention.clamp(min=1e-8).log()).sum((1, 2))
    centred = [value - value.mean((1, 2), keepdim=True) for value in (attention, target)]
    norms = [value.square().sum((1, 2)) for value in centred]
    # attention starts flat, where the correlation's slope has no bound: a floor keeps it from drowning the rest
    norms[0] = norms[0].clamp(min=1e-2 * norms[1].detach())
    pearson = 1 - (centred[0] * centred[1]).sum((1, 2)) / (norms[0] * norms[1] + 1e-12).sqrt()
    pearson = torch.where(norms[1] > 1e-12, pearson, 0)
    centres = [
        torch.stack([torch.einsum("bhw,w->b", value, columns), torch.einsum("bhw,h->b", value, rows)], -1)
        for value in (attention, target)
    ]
    center = ((centres[0] - centres[1]).square().sum(-1) + 1e-12).sqrt()
    terms = {"mse": mse, "kl": kl, "pearson": pearson, "center": center}
    return {name: torch.where(known, term, 0) for name, term in terms.items()}


def attention_loss(config, attention: torch.Tensor, target: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
    """Mean over the samples whose target has mass: the terms, with the weights that `config` gives them, times trust.

    Args:
        config: a `GazeClassifierConfig`.
        attention, target: as in `attention_terms`.
        trust: (B,) in 0..1, of each sample, such as `recording_trust`.
    """
    with torch.autocast(attention.device.type, enabled=False):  # sums over cells need more digits than 8
        terms = attention_terms(attention.float(), target.float())
        losses = sum(getattr(config, f"{name}_weight") * term for name, term in terms.items())
        known = target.sum((1, 2)) > 0
        return (losses * torch.where(known, trust, 0)).sum() / known.sum().clamp(min=1)


def recording_trust(config, fixations: torch.Tensor, fixation_mask: torch.Tensor) -> torch.Tensor:
    """How far a recording is to be trusted, (B,) in 0..1; 0 without a fixation.

    The product of the share of its fixations that lie on the image (`config.trust_on_image`), of their number over
    `config.trust_fixations` and of the seconds they last over `config.trust_seconds`, the last two at most 1 and only
    where they are set. The paper weighs by trust and does not publish how: this is our choice.
    """
    on_image = fixation_mask & (fixations[..., :2] >= 0).all(-1) & (fixations[..., :2] <= 1).all(-1)
    count, seen = fixation_mask.sum(1), on_image.sum(1).float()
    trust = (count > 0).float()
    if config.trust_on_image:
        trust = trust * seen / count.clamp(min=1)
    if config.trust_fixations is not None:
        trust = trust * (seen / config.trust_fixations).clamp(max=1)
    if config.trust_seconds is not None:
        seconds = torch.where(on_image, fixations[..., 3].float(), 0).sum(1)
        trust = trust * (seconds / config.trust_seconds).clamp(max=1)
    return trust


def info_nce(scores: torch.Tensor, positive: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE with several positives (as in SupCon, arXiv 2004.11362): the mean of both directions.

    A row's loss is the mean of -log softmax over its positives, among its known pairs; rows (columns) without a
    positive teach nothing.

    Args:
        scores: (N, M) likeness of N things with M others, times the temperature's inverse.
        positive: (N, M) bool, which belong together.
        known: (N, M) bool, which are compared at all.
    """
    losses = []
    for matrix, pairs, compared in ((scores, positive, known), (scores.T, positive.T, known.T)):
        pairs = (pairs & compared).to(scores.dtype)
        logs = matrix.masked_fill(~compared, torch.finfo(scores.dtype).min).log_softmax(-1)
        count = pairs.sum(-1)
        rows = -(pairs * logs).sum(-1) / count.clamp(min=1)
        losses.append(rows.sum() / (count > 0).sum().clamp(min=1))
    return torch.stack(losses).mean()


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, positive_weights: list[float] | None
) -> torch.Tensor:
    """Binary cross-entropy over known labels.

    A weight w of the positives moves the optimum of a logit by ln w: ln w is added before, so that logits stay the
    log-odds of the data, and probabilities what they say, however a rare finding is weighed.

    Args:
        logits: (B, C).
        labels: (B, C) 0..1, NaN where unknown.
        positive_weights: one a finding, above 0.
    """
    if labels.shape != logits.shape:
        raise ValueError(f"labels: {tuple(labels.shape)}, logits: {tuple(logits.shape)}; they must agree")
    wrong = labels[(labels < 0) | (labels > 1)]
    if len(wrong):
        raise ValueError(f"labels must be between 0 and 1, or NaN where unknown; got {float(wrong[0]):g}")
    known, logits, weights = ~labels.isnan(), logits.float(), None
    if positive_weights is not None:
        weights = logits.new_tensor(positive_weights)
        logits = logits + weights.log()
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, torch.where(known, labels, 0).float(), pos_weight=weights, reduction="none"
    )
    return (losses * known).sum() / known.sum().clamp(min=1)


def peak(maps: torch.Tensor) -> torch.Tensor:
    """(B, rows, columns) maps divided by their maximum; a map without mass stays zero."""
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-8)


def box_map(boxes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Share of each cell that lies in each box: boxes (..., 4) x1, y1, x2, y2 in 0..1 -> (..., rows, columns)."""

    def cover(low: torch.Tensor, high: torch.Tensor, cells: int) -> torch.Tensor:
        edges = torch.linspace(0, 1, cells + 1, dtype=boxes.dtype, device=boxes.device)
        overlap = torch.minimum(high[..., None], edges[1:]) - torch.maximum(low[..., None], edges[:-1])
        return overlap.clamp(min=0) * cells

    x = cover(boxes[..., 0], boxes[..., 2], grid[1])
    y = cover(boxes[..., 1], boxes[..., 3], grid[0])
    return y[..., :, None] * x[..., None, :]
