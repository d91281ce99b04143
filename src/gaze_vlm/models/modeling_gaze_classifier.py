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
"""GazeClassifier: findings of a chest X-ray, with attention that looks where radiologists look."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .configuration_gaze_classifier import GazeClassifierConfig
from .gaze_maps import density_map, normalize_map
from .modeling_vision_tower import patch_tokens, tower_width


@dataclass
class GazeClassifierOutput(ModelOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*): weighted sum of `loss_parts`, when there is anything to learn
        from.
    loss_parts (`dict[str, torch.Tensor]`, *optional*): unweighted losses by name: classification, gaze, boxes, text,
        region.
    logits (`torch.Tensor` of shape `(B, C)`): one a finding; probabilities are `sigmoid(logits / config.temperature)`.
    attention (`torch.Tensor` of shape `(B, C, rows, columns)`, or `(B, 1, rows, columns)` when shared): sums to 1 over
        the grid.
    image_embeds (`torch.Tensor` of shape `(B, projection_dim)`): unit vectors.
    """

    loss: torch.FloatTensor | None = None
    loss_parts: dict[str, torch.Tensor] | None = None
    logits: torch.FloatTensor | None = None
    attention: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None


class GazeClassifierPreTrainedModel(PreTrainedModel):
    config: GazeClassifierConfig
    base_model_prefix = "classifier"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, AttentionPooling):
            init.zeros_(module.query)  # uniform attention: the classifier starts as average pooling
        elif isinstance(module, GazeClassifier):
            init.constant_(module.logit_scale, self.config.logit_scale_init)


class AttentionPooling(nn.Module):
    """Patch tokens (B, P, C) -> pooled (B, maps, C) under attention (B, maps, P), one map a finding or one for all."""

    def __init__(self, width: int, maps: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(maps, width))
        self.scale = width**-0.5

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.einsum("bpc,mc->bmp", tokens, self.query) * self.scale
        attention = scores.float().softmax(dim=-1)
        return torch.einsum("bmp,bpc->bmc", attention.to(tokens.dtype), tokens), attention


class GazeClassifier(GazeClassifierPreTrainedModel):
    r"""
    Vision tower, attention pooling whose map gaze or boxes supervise, a linear score for each finding in
    `config.id2label`.

    No gaze is needed at inference.
    """

    def __init__(self, config: GazeClassifierConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        width = tower_width(self.vision_tower)
        self.norm = nn.LayerNorm(width)
        self.pooling = AttentionPooling(width, config.num_labels if config.attention == "per_class" else 1)
        self.head = nn.Linear(width, config.num_labels)
        self.image_projection = nn.Linear(width, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.text_tower, self.text_projection = None, None
        if config.text_config is not None:
            self.text_tower = AutoModel.from_config(config.text_config)
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.gaze_scale = 1.0
        self.post_init()

    def get_text_features(self, finding_text: torch.Tensor, finding_text_mask: torch.Tensor | None = None):
        """Token ids (T, L) of finding texts -> unit vectors (T, projection_dim).

        The mean over real tokens is projected.
        """
        if self.text_tower is None:
            raise ValueError("this GazeClassifier has no text tower: set text_config to use finding_text")
        if finding_text_mask is None:
            finding_text_mask = torch.ones_like(finding_text)
        states = self.text_tower(input_ids=finding_text, attention_mask=finding_text_mask).last_hidden_state
        mask = finding_text_mask[..., None].to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        return unit_vectors(self.text_projection(mean))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        fixations: torch.Tensor | None = None,
        fixation_mask: torch.Tensor | None = None,
        gaze_trust: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        box_labels: torch.Tensor | None = None,
        finding_text: torch.Tensor | None = None,
        finding_text_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> GazeClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): from the processor.
            labels (`torch.Tensor` of shape `(B, C)`, *optional*): 1 present, 0 absent, NaN unknown (left out of the
                loss).
            fixations (`torch.Tensor` of shape `(B, F, 4)`, *optional*): x, y in the image 0..1, onset and duration in
                seconds. They teach where to attend; a sample whose mask is all False teaches nothing here.
            fixation_mask (`torch.Tensor` of shape `(B, F)`, *optional*): which fixations are real; all by default.
            gaze_trust (`torch.Tensor` of shape `(B,)`, *optional*): weight 0..1 of each sample's gaze.
            boxes (`torch.Tensor` of shape `(B, K, 4)`, *optional*): x1, y1, x2, y2 in the image 0..1.
            box_labels (`torch.Tensor` of shape `(B, K)`, *optional*): finding of each box, -1 for padding.
            finding_text, finding_text_mask (`torch.Tensor` of shape `(B, L)`, *optional*): one text a sample, for the
                contrastive loss. Samples with equal `labels` count as each other's positives.
        """
        features = patch_tokens(self.vision_tower, pixel_values)
        grid = tuple(features.shape[1:3])
        tokens = self.norm(features.flatten(1, 2))
        pooled, attention = self.pooling(tokens)
        logits = (pooled * self.head.weight).sum(-1) + self.head.bias
        image_embeds = unit_vectors(self.image_projection(pooled.mean(1)))
        maps = attention.unflatten(-1, grid)

        parts, weights = {}, {}
        if labels is not None:
            parts["classification"], weights["classification"] = self._classification_loss(logits, labels), 1.0
        if fixations is not None:
            if fixation_mask is None:
                fixation_mask = torch.ones(fixations.shape[:2], dtype=torch.bool, device=fixations.device)
            target = density_map(fixations.float(), fixation_mask, grid, self.config.gaze_sigma, normalize=True)
            trust = torch.ones_like(target[:, 0, 0]) if gaze_trust is None else gaze_trust
            parts["gaze"] = self.attention_loss(self._looked_at(maps, labels), target, trust)
            weights["gaze"] = self.config.gaze_loss_weight * self.gaze_scale
            gazed = torch.einsum("bp,bpc->bc", target.flatten(1).to(tokens.dtype), tokens)
            gazed = unit_vectors(self.image_projection(gazed))
            has_gaze = target.sum((1, 2)) > 0
            parts["region"] = self._contrastive_loss(image_embeds[has_gaze], gazed[has_gaze], None)
            weights["region"] = self.config.contrastive_loss_weight * self.gaze_scale
        if boxes is not None:
            parts["boxes"], weights["boxes"] = self._box_loss(maps, boxes, box_labels), self.config.box_loss_weight
        if finding_text is not None:
            text_embeds = self.get_text_features(finding_text, finding_text_mask)
            parts["text"] = self._contrastive_loss(image_embeds, text_embeds, labels)
            weights["text"] = self.config.contrastive_loss_weight
        loss = sum(weights[name] * part for name, part in parts.items()) if parts else None
        return GazeClassifierOutput(
            loss=loss, loss_parts=parts or None, logits=logits, attention=maps, image_embeds=image_embeds
        )

    def _classification_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.shape != logits.shape:
            raise ValueError(f"labels: {tuple(labels.shape)}, logits: {tuple(logits.shape)}; they must agree")
        known = ~labels.isnan()
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits.float(), torch.where(known, labels, 0).float(), reduction="none"
        )
        return (losses * known).sum() / known.sum().clamp(min=1)

    def _looked_at(self, maps: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Attention (B, rows, columns) of a sample: mean over its present findings, over all when none is known."""
        if maps.shape[1] == 1 or labels is None:
            return maps.mean(1)
        present = (labels == 1).to(maps.dtype)
        weights = torch.where(present.sum(1, keepdim=True) > 0, present, 1)
        return torch.einsum("bc,bchw->bhw", weights / weights.sum(1, keepdim=True), maps)

    def attention_loss(self, attention: torch.Tensor, target: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
        """MSE + KL + (1 - Pearson) + distance of centres of mass, weighted by the config (Eyes on the Image, v1).

        Args:
            attention, target: (B, rows, columns), each sums to 1; a target without mass is left out.
            trust: (B,) weight of each sample.
        """
        columns, rows = (
            (torch.arange(size, device=target.device, dtype=target.dtype) + 0.5) / size for size in target.shape[:0:-1]
        )
        weight = trust * (target.sum((1, 2)) > 0)
        mse = (peak(attention) - peak(target)).square().mean((1, 2))
        kl = (torch.special.xlogy(target, target) - target * attention.clamp(min=1e-8).log()).sum((1, 2))
        centred = [value - value.mean((1, 2), keepdim=True) for value in (attention, target)]
        norms = [value.square().sum((1, 2)) for value in centred]
        # attention starts flat, where the correlation's slope has no bound: a floor keeps it from drowning the rest
        norms[0] = norms[0].clamp(min=1e-2 * norms[1].detach())
        pearson = (centred[0] * centred[1]).sum((1, 2)) / (norms[0] * norms[1] + 1e-12).sqrt()
        centres = [
            torch.stack([torch.einsum("bhw,w->b", value, columns), torch.einsum("bhw,h->b", value, rows)], -1)
            for value in (attention, target)
        ]
        distance = ((centres[0] - centres[1]).square().sum(-1) + 1e-12).sqrt()
        config = self.config
        losses = (
            config.mse_weight * mse
            + config.kl_weight * kl
            + config.pearson_weight * (1 - pearson)
            + config.center_weight * distance
        )
        return (torch.where(weight > 0, losses, 0) * weight).sum() / weight.sum().clamp(min=1e-6)

    def _box_loss(self, maps: torch.Tensor, boxes: torch.Tensor, box_labels: torch.Tensor | None) -> torch.Tensor:
        """Attention of each boxed finding against the even distribution over its boxes."""
        if box_labels is None:
            raise ValueError("boxes need box_labels: the finding of each box, -1 for padding")
        inside = box_map(boxes.float(), tuple(maps.shape[-2:]))
        target = maps.new_zeros(maps.shape[0], self.config.num_labels, *maps.shape[-2:])
        real = box_labels >= 0
        rows = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(box_labels)
        target = target.index_put((rows[real], box_labels[real]), inside[real].to(target.dtype), accumulate=True)
        target = normalize_map(target.flatten(0, 1))
        attention = maps.expand(-1, self.config.num_labels, -1, -1).flatten(0, 1)
        return self.attention_loss(attention, target, torch.ones_like(target[:, 0, 0]))

    def _contrastive_loss(self, left: torch.Tensor, right: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Symmetric InfoNCE over the batch; with `labels`, rows with equal labels are positives of each other."""
        scores = left @ right.T * self.logit_scale.exp().clamp(max=100)
        positive = torch.eye(len(left), device=left.device)
        if labels is not None:
            known = labels.nan_to_num(-1)
            positive = (known[:, None] == known[None]).all(-1).to(scores.dtype)
        losses = [
            -(positive * matrix.log_softmax(-1)).sum(-1) / positive.sum(-1)
            for matrix in (scores, scores.transpose(0, 1))
        ]
        return torch.stack(losses).mean() if len(left) else scores.sum()


def unit_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (..., D) at length 1, in float32: in float16 the squares of small values vanish, and 0 / 0 is NaN."""
    return nn.functional.normalize(vectors.float(), dim=-1)


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


__all__ = ["GazeClassifier", "GazeClassifierOutput", "GazeClassifierPreTrainedModel"]
