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
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .classifier_losses import attention_loss, box_map, classification_loss, info_nce, recording_trust
from .configuration_gaze_classifier import GazeClassifierConfig
from .gaze_maps import density_map, normalize_map
from .hub_mixin import HubMixin
from .modeling_vision_tower import patch_tokens as tower_tokens
from .modeling_vision_tower import tower_width


@dataclass
class GazeClassifierOutput(ModelOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*): weighted sum of `loss_parts`, when there is anything to learn
        from.
    loss_parts (`dict[str, torch.Tensor]`, *optional*): unweighted losses by name, those that are switched on and have
        something to learn from: classification, gaze, boxes, text, region.
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


class GazeClassifierPreTrainedModel(HubMixin, PreTrainedModel):
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
        elif isinstance(module, GazeToken):
            init.normal_(module.token, std=self.config.initializer_range)
            init.zeros_(module.to_query.weight)
        elif isinstance(module, GazeClassifier):
            init.constant_(module.logit_scale, self.config.logit_scale_init)


class AttentionPooling(nn.Module):
    """Patch tokens (B, P, D) -> pooled (B, maps, D) under attention (B, maps, P), one map a finding or one for all.

    The queries are learned; `offset` (B, 1, D) moves them for each image.
    """

    def __init__(self, width: int, maps: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(maps, width))
        self.scale = width**-0.5

    def forward(self, tokens: torch.Tensor, offset: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        query = self.query[None] if offset is None else self.query + offset
        scores = torch.einsum("bpd,bmd->bmp", tokens, query.expand(len(tokens), -1, -1)) * self.scale
        attention = scores.float().softmax(dim=-1)
        return torch.einsum("bmp,bpd->bmd", attention.to(tokens.dtype), tokens), attention


class FusionLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer over (B, S, D); the mask (B, S) is True where a token is real."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.feed_norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, 4 * width)
        self.down_proj = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        normed = self.attention_norm(states)
        attended, _ = self.attention(normed, normed, normed, key_padding_mask=~mask, need_weights=False)
        states = states + self.dropout(attended)
        fed = self.down_proj(nn.functional.gelu(self.up_proj(self.feed_norm(states))))
        return states + self.dropout(fed)


class GazeToken(nn.Module):
    """A learned token that meets the patches, and a transcript where there is one, and then says where to look."""

    def __init__(self, width: int, config: GazeClassifierConfig):
        super().__init__()
        size = config.fusion_size
        self.token = nn.Parameter(torch.empty(1, 1, size))
        self.down_proj = nn.Linear(width, size)
        self.layers = nn.ModuleList(
            FusionLayer(size, config.fusion_heads, config.fusion_dropout) for _ in range(config.fusion_layers)
        )
        self.norm = nn.LayerNorm(size)
        self.up_proj = nn.Linear(size, width)
        self.to_query = nn.Linear(size, width, bias=False)

    def forward(self, tokens: torch.Tensor, transcript: torch.Tensor, has_transcript: torch.Tensor):
        """Patches (B, P, D), transcripts (B, fusion_size), which there are (B,) -> patches, query offset (B, 1, D)."""
        states = torch.cat([self.token.expand(len(tokens), -1, -1), transcript[:, None], self.down_proj(tokens)], 1)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        mask[:, 1] = has_transcript
        for layer in self.layers:
            states = layer(states, mask)
        states = self.norm(states)
        return tokens + self.up_proj(states[:, 2:]), self.to_query(states[:, :1])


class GazeClassifier(GazeClassifierPreTrainedModel):
    r"""
    Vision tower, attention pooling whose map gaze or boxes supervise, a linear score for each finding in
    `config.id2label`.

    Gaze, boxes and text teach. At inference none of them is needed; what `config` says is read may be given.
    """

    def __init__(self, config: GazeClassifierConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        width = tower_width(self.vision_tower)
        self.norm = nn.LayerNorm(width)
        self.gaze_embedding = nn.Linear(1, width) if config.gaze_input else None
        self.box_embedding = nn.Linear(1, width) if config.box_input else None
        self.gaze_token = GazeToken(width, config) if config.fusion_layers else None
        self.pooling = AttentionPooling(width, config.num_labels if config.attention == "per_class" else 1)
        self.head = nn.Linear(width, config.num_labels)
        self.image_projection = nn.Linear(width, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.text_tower, self.text_projection, self.transcript_projection = None, None, None
        if config.text_config is not None:
            self.text_tower = AutoModel.from_config(config.text_config)
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        if config.transcript_input:
            self.transcript_projection = nn.Linear(config.text_config.hidden_size, config.fusion_size)
        self.gaze_scale = 1.0
        self.post_init()

    def get_text_features(self, finding_text: torch.Tensor, finding_text_mask: torch.Tensor | None = None):
        """Token ids (T, L) of finding texts -> unit vectors (T, projection_dim).

        The mean over real tokens is projected.
        """
        return unit_vectors(self.text_projection(self._text_states(finding_text, finding_text_mask)))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        fixations: torch.Tensor | None = None,
        fixation_mask: torch.Tensor | None = None,
        gaze_trust: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        box_labels: torch.Tensor | None = None,
        finding_text: torch.Tensor | None = None,
        finding_text_mask: torch.Tensor | None = None,
        transcript: torch.Tensor | None = None,
        transcript_mask: torch.Tensor | None = None,
        patch_tokens: torch.Tensor | None = None,
        **kwargs,
    ) -> GazeClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): from the processor.
            labels (`torch.Tensor` of shape `(B, C)`, *optional*): 1 present, 0 absent, between them how certain it is
                (above 0.5 it counts as present for attention and texts), NaN unknown (left out of the loss).
            fixations (`torch.Tensor` of shape `(B, F, 4)`, *optional*): x, y in the image 0..1, onset and duration in
                seconds. They teach where to attend; a sample whose mask is all False teaches nothing here.
            fixation_mask (`torch.Tensor` of shape `(B, F)`, *optional*): which fixations are real; all by default.
            gaze_trust (`torch.Tensor` of shape `(B,)`, *optional*): weight 0..1 of each sample's gaze; by default
                what `config` says of the recording.
            boxes (`torch.Tensor` of shape `(B, K, 4)`, *optional*): x1, y1, x2, y2 in the image 0..1. They teach the
                attention of their findings, and which region belongs to the image where there is no gaze.
            box_labels (`torch.Tensor` of shape `(B, K)`, *optional*): finding of each box, -1 for padding.
            finding_text, finding_text_mask (`torch.Tensor` of shape `(C, L)`, *optional*): one text a finding, for
                the contrastive loss; the positives of an image are the texts of what is present.
            transcript, transcript_mask (`torch.Tensor` of shape `(B, L)`, *optional*): what the reader dictated, for
                `config.transcript_input`; a sample whose mask is all 0 has none.
            patch_tokens (`torch.Tensor` of shape `(B, rows, columns, D)`, *optional*): of the vision tower, instead
                of `pixel_values`.
        """
        if (pixel_values is None) == (patch_tokens is None):
            raise ValueError("pixel_values or patch_tokens are needed, and not both")
        features = tower_tokens(self.vision_tower, pixel_values) if patch_tokens is None else patch_tokens
        grid = tuple(features.shape[1:3])
        tokens = self.norm(features.flatten(1, 2))
        gazed, boxed = self._maps_of(tokens, grid, fixations, fixation_mask, boxes, box_labels)
        tokens, offset = self._read(tokens, gazed, boxed, transcript, transcript_mask)
        pooled, attention = self.pooling(tokens, offset)
        logits = (pooled * self.head.weight).sum(-1) + self.head.bias
        image_embeds = unit_vectors(self.image_projection(pooled.mean(1)))
        maps = attention.unflatten(-1, grid)

        config, parts, weights = self.config, {}, {}
        if labels is not None:
            weights["classification"] = 1.0
            parts["classification"] = classification_loss(logits, labels, config.positive_weights)
        if fixations is not None and config.gaze_loss_weight:
            if gaze_trust is None:
                gaze_trust = recording_trust(config, fixations, self._mask_of(fixations, fixation_mask))
            weights["gaze"] = config.gaze_loss_weight * self.gaze_scale
            parts["gaze"] = attention_loss(config, self._looked_at(maps, labels), gazed, gaze_trust)
        if boxes is not None and config.box_loss_weight:
            weights["boxes"] = config.box_loss_weight * self.gaze_scale
            target, every = normalize_map(boxed.flatten(0, 1)), boxed.new_ones(boxed.shape[:2]).flatten()
            parts["boxes"] = attention_loss(config, maps.expand_as(boxed).flatten(0, 1), target, every)
        if (fixations is not None or boxes is not None) and config.region_loss_weight:
            weights["region"] = config.region_loss_weight * self.gaze_scale
            parts["region"] = self._region_loss(tokens, image_embeds, gazed, boxed)
        if finding_text is not None and config.text_loss_weight:
            weights["text"] = config.text_loss_weight
            text_embeds = self.get_text_features(finding_text, finding_text_mask)
            parts["text"] = self._text_loss(image_embeds, text_embeds, labels)
        loss = sum(weights[name] * part for name, part in parts.items()) if parts else None
        return GazeClassifierOutput(
            loss=loss, loss_parts=parts or None, logits=logits, attention=maps, image_embeds=image_embeds
        )

    # ---- what is given

    def _mask_of(self, fixations: torch.Tensor, fixation_mask: torch.Tensor | None) -> torch.Tensor:
        if fixation_mask is None:
            return torch.ones(fixations.shape[:2], dtype=torch.bool, device=fixations.device)
        return fixation_mask.bool()

    def _maps_of(self, tokens, grid, fixations, fixation_mask, boxes, box_labels) -> tuple[torch.Tensor, torch.Tensor]:
        """Gaze (B, rows, columns), which sums to 1, and boxes (B, C, rows, columns), the share of each cell that they
        cover; zero where there is nothing."""
        gazed = torch.zeros(len(tokens), *grid, device=tokens.device)
        boxed = torch.zeros(len(tokens), self.config.num_labels, *grid, device=tokens.device)
        with torch.autocast(tokens.device.type, enabled=False):
            if fixations is not None:
                self._check_batch(tokens, fixations=fixations)
                mask = self._mask_of(fixations, fixation_mask)
                gazed = density_map(fixations.float(), mask, grid, self.config.gaze_sigma, normalize=True)
            if boxes is not None:
                if box_labels is None:
                    raise ValueError("boxes need box_labels: the finding of each box, -1 for padding")
                self._check_batch(tokens, boxes=boxes)
                if box_labels.shape != boxes.shape[:2]:
                    raise ValueError(f"box_labels: {tuple(box_labels.shape)}, boxes: {tuple(boxes.shape)}; one a box")
                if box_labels.max() >= boxed.shape[1]:
                    raise ValueError(f"box_labels: {int(box_labels.max())}, findings: {boxed.shape[1]}, from 0 on")
                real = box_labels >= 0
                rows = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(box_labels)
                covered = box_map(boxes[real].float(), grid)
                boxed = boxed.index_put((rows[real], box_labels[real]), covered, accumulate=True).clamp(max=1)
        return gazed, boxed

    def _check_batch(self, tokens: torch.Tensor, **given: torch.Tensor) -> None:
        for name, value in given.items():
            if len(value) != len(tokens):
                raise ValueError(f"{name}: of {len(value)} images, images: {len(tokens)}")

    def _read(self, tokens, gazed, boxed, transcript, transcript_mask) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Patch tokens that know what else is given and read, and the offset of the pooling's queries."""
        for embedding, maps in (
            (self.gaze_embedding, (gazed * gazed[0].numel()).log1p()),
            (self.box_embedding, boxed.amax(1)),
        ):
            if embedding is not None:
                there = self._kept(maps.sum((1, 2)) > 0)
                embedded = embedding(maps.flatten(1)[..., None].to(tokens.dtype))
                tokens = tokens + torch.where(there[:, None, None], embedded, 0)
        if self.gaze_token is None:
            return tokens, None
        words = tokens.new_zeros(len(tokens), self.config.fusion_size)
        there = torch.zeros_like(words[:, 0], dtype=torch.bool)
        if transcript is not None and self.transcript_projection is not None:
            self._check_batch(tokens, transcript=transcript)
            words = self.transcript_projection(self._text_states(transcript, transcript_mask))
            there = torch.ones_like(there) if transcript_mask is None else transcript_mask.bool().any(1)
        return self.gaze_token(tokens, words, self._kept(there))

    def _kept(self, there: torch.Tensor) -> torch.Tensor:
        """Of the samples (B,) that have an input, those that are to read it."""
        if not self.training:
            return there
        return there & (torch.rand(len(there), device=there.device) >= self.config.input_dropout)

    def _text_states(self, text: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(T, L) -> (T, text width): the mean over real tokens."""
        if self.text_tower is None:
            raise ValueError("this GazeClassifier has no text tower: set text_config to use texts")
        if mask is None:
            mask = torch.ones_like(text)
        states = self.text_tower(input_ids=text, attention_mask=mask).last_hidden_state
        mask = mask[..., None].to(states.dtype)
        return torch.where(mask > 0, states, 0).sum(1) / mask.sum(1).clamp(min=1)

    # ---- what is learned

    def _looked_at(self, maps: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Attention (B, rows, columns) of a sample: mean over its present findings, over all when none is known."""
        if maps.shape[1] == 1 or labels is None:
            return maps.mean(1)
        present = (labels > 0.5).to(maps.dtype)
        weights = torch.where(present.sum(1, keepdim=True) > 0, present, 1)
        return torch.einsum("bc,bchw->bhw", weights / weights.sum(1, keepdim=True), maps)

    def _region_loss(self, tokens, image_embeds, gazed, boxed) -> torch.Tensor:
        """Each image with the region that was looked at, or boxed, in it, against those of the others."""
        boxed = normalize_map(boxed.amax(1))
        region = torch.where(gazed.sum((1, 2), keepdim=True) > 0, gazed, boxed)
        there = region.sum((1, 2)) > 0
        seen = torch.einsum("bp,bpd->bd", region.flatten(1).to(tokens.dtype), tokens)
        scores = self._scores(image_embeds, unit_vectors(self.image_projection(seen)))
        own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        return info_nce(scores, own, there[:, None] & there)

    def _text_loss(self, image_embeds, text_embeds, labels) -> torch.Tensor:
        """Each image with the texts of what is present, among those of what is known to be present or absent."""
        if labels is None:
            raise ValueError("finding_text needs labels: they say which texts belong to an image")
        if len(text_embeds) != self.config.num_labels:
            raise ValueError(f"finding_text: {len(text_embeds)}, findings: {self.config.num_labels}; one a finding")
        return info_nce(self._scores(image_embeds, text_embeds), labels > 0.5, ~labels.isnan())

    def _scores(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        with torch.autocast(left.device.type, enabled=False):  # times 100, rounding to 8 bits is a coarse temperature
            return left @ right.T * self.logit_scale.float().exp().clamp(max=100)


def unit_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (..., D) at length 1, in float32: in float16 the squares of small values vanish, and 0 / 0 is NaN."""
    return nn.functional.normalize(vectors.float(), dim=-1)


__all__ = ["GazeClassifier", "GazeClassifierOutput", "GazeClassifierPreTrainedModel"]
