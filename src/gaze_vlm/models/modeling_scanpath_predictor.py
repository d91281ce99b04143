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
"""ScanpathPredictor: where a radiologist would look on a film, for how long, and in which order."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .configuration_scanpath_predictor import ScanpathPredictorConfig
from .modeling_vision_tower import patch_tokens as tower_tokens
from .modeling_vision_tower import tower_width

MIN_DURATION = 0.05  # seconds; shorter fixations are not predicted
# ln of variances; the least is a deviation of 0.018, about what an eye tracker can tell apart on a film. Without it
# the likelihood of what never varies (the centre's duration) grows without bound and drowns everything else.
LOG_VARIANCE_RANGE = (-8.0, 3.0)


@dataclass
class ScanpathPredictorOutput(ModelOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*): with `fixations`: of the scanpath; with `labels`: of the report;
        else None.
    loss_parts (`dict[str, torch.Tensor]`, *optional*): keep, position and duration, of the strategy each sample is
        likeliest to follow; report.
    strategy_logits (`torch.Tensor` of shape `(B, K)`): log-weights of the K ways of reading (`config.num_strategies`).
    keep_logits (`torch.Tensor` of shape `(B, K, S)`): whether slot s holds a fixation; the first that does not ends
        the scanpath.
    mean (`torch.Tensor` of shape `(B, K, S, 3)`): x, y in the image 0..1 and duration in seconds.
    log_variance (`torch.Tensor` of shape `(B, K, S, 3)`): of the same, in squared units; minus infinity
        where a value is given, not predicted.
    consensus (`torch.Tensor` of shape `(B, S, 3)`, *optional*): x, y and duration of the scanpath most like all
        readers'.
    consensus_keep_logits (`torch.Tensor` of shape `(B, S)`, *optional*): its keep/stop.
    """

    loss: torch.FloatTensor | None = None
    loss_parts: dict[str, torch.Tensor] | None = None
    strategy_logits: torch.FloatTensor | None = None
    keep_logits: torch.FloatTensor | None = None
    mean: torch.FloatTensor | None = None
    log_variance: torch.FloatTensor | None = None
    consensus: torch.FloatTensor | None = None
    consensus_keep_logits: torch.FloatTensor | None = None


class ScanpathSamples(NamedTuple):
    """Predicted scanpaths: N a film."""

    fixations: torch.Tensor  # (B, N, S, 4) x, y in the image 0..1, onset and duration in seconds
    fixation_mask: torch.Tensor  # (B, N, S) True where a fixation is real; real ones stand in front


class Attention(nn.Module):
    """Multi-head attention of queries (B, S, D) over context (B, T, D).

    The mask (B, T) is True where the context is real.
    """

    def __init__(self, config: ScanpathPredictorConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.dropout
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, states: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        query, key, value = (
            projection(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, source in ((self.q_proj, states), (self.k_proj, context), (self.v_proj, context))
        )
        attended = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.o_proj(attended.transpose(1, 2).flatten(-2))


class ScanpathLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer; with `cross` it also attends to a memory."""

    def __init__(self, config: ScanpathPredictorConfig, cross: bool):
        super().__init__()
        self.self_attention = Attention(config)
        self.self_norm = nn.LayerNorm(config.hidden_size)
        self.cross_attention = Attention(config) if cross else None
        self.cross_norm = nn.LayerNorm(config.hidden_size) if cross else None
        self.feed_norm = nn.LayerNorm(config.hidden_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states, memory=None, memory_mask=None):
        normed = self.self_norm(states)
        states = states + self.dropout(self.self_attention(normed, normed))
        if self.cross_attention is not None:
            states = states + self.dropout(self.cross_attention(self.cross_norm(states), memory, memory_mask))
        fed = self.down_proj(nn.functional.gelu(self.up_proj(self.feed_norm(states))))
        return states + self.dropout(fed)


class ScanpathPredictorPreTrainedModel(PreTrainedModel):
    config: ScanpathPredictorConfig
    base_model_prefix = "scanpath_predictor"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["ScanpathLayer"]
    _supports_sdpa = True  # and nothing else: `Attention` always calls it

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ScanpathPredictor):
            init.normal_(module.query_tokens, std=self.config.initializer_range)
            init.normal_(module.slot_queries, std=1.0)
            init.normal_(module.strategy_queries, std=1.0)
            # fixations start spread over the film: slots that begin at one place follow one gradient and stay there
            init.normal_(module.mean_head.weight, std=self.config.hidden_size**-0.5)


class ScanpathPredictor(ScanpathPredictorPreTrainedModel):
    r"""
    Vision tower, encoder, Q-Former, frozen causal language model over [queries ; text], and a decoder that fills all
    slots of a scanpath at once. Image and text may each say little: a grey film, or no text at all.
    """

    def __init__(self, config: ScanpathPredictorConfig):
        super().__init__(config)
        # inside a GazeVLM the dtype that from_pretrained is asked for reaches this config, but not those below it
        for name in config.sub_configs:
            if getattr(config, name) is not None:
                getattr(config, name).dtype = config.dtype
        self.vision_tower = None if config.vision_config is None else AutoModel.from_config(config.vision_config)
        width = config.vision_width if self.vision_tower is None else tower_width(self.vision_tower)
        qformer_width, text_width = config.qformer_config.hidden_size, config.text_config.hidden_size
        self.vision_norm = nn.LayerNorm(width)
        self.vision_projection = nn.Linear(width, config.hidden_size)
        self.encoder = nn.ModuleList(ScanpathLayer(config, cross=False) for _ in range(config.num_encoder_layers))
        self.encoder_norm = nn.LayerNorm(config.hidden_size)
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, qformer_width))
        self.qformer = AutoModel.from_config(config.qformer_config)
        self.text_projection = nn.Linear(qformer_width, text_width)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.memory_projection = nn.Linear(text_width, config.hidden_size)
        self.memory_norm = nn.LayerNorm(config.hidden_size)
        self.slot_queries = nn.Parameter(torch.empty(config.max_fixations, config.hidden_size))
        self.has_consensus = config.point_estimate == "consensus"
        self.strategy_queries = nn.Parameter(
            torch.empty(config.num_strategies + self.has_consensus, config.hidden_size)
        )
        self.decoder = nn.ModuleList(ScanpathLayer(config, cross=True) for _ in range(config.num_decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.hidden_size)
        self.strategy_head = nn.Linear(config.hidden_size, 1)
        self.keep_head = nn.Linear(config.hidden_size, 1)
        self.mean_head = nn.Linear(config.hidden_size, 3)
        self.variance_head = nn.Linear(config.hidden_size, 3)
        self.post_init()
        self.freeze()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info it is a pair
        model.freeze()  # loading puts new, trainable parameters everywhere
        return loaded

    def freeze(self):
        """Freeze what the config says is frozen."""
        if self.config.freeze_language_model:
            self.language_model.requires_grad_(False)

    def train(self, mode: bool = True):
        """A frozen language model stays in eval mode: no dropout, and no gradient checkpointing inside it."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.language_model.parameters()):
            self.language_model.eval()
        return self

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def get_memory(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        patch_tokens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Film and text as the language model sees them: hidden states (B, Q + L, text width) and mask (B, Q + L)."""
        if patch_tokens is None:
            if self.vision_tower is None or pixel_values is None:
                needed = "patch_tokens: it has no vision tower" if self.vision_tower is None else "pixel_values"
                raise ValueError(f"this ScanpathPredictor needs {needed}")
            patch_tokens = tower_tokens(self.vision_tower, pixel_values)
        states = self.vision_projection(self.vision_norm(patch_tokens.to(self.dtype)))
        states = (states + grid_encoding(states)).flatten(1, 2)
        for layer in self.encoder:
            states = layer(states)
        queries = self.query_tokens.expand(len(states), -1, -1)
        queries = self.qformer(query_embeds=queries, encoder_hidden_states=self.encoder_norm(states)).last_hidden_state
        embeds = self.text_projection(queries)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        if input_ids is not None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            embeds = torch.cat([embeds, self.get_input_embeddings()(input_ids).to(embeds.dtype)], dim=1)
            mask = torch.cat([mask, attention_mask], dim=1)
        memory = self.language_model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        return memory.last_hidden_state, mask.bool()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        fixations: torch.Tensor | None = None,
        fixation_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        patch_tokens: torch.Tensor | None = None,
        **kwargs,
    ) -> ScanpathPredictorOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): from the processor.
            input_ids, attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): text, padded on the right.
            fixations (`torch.Tensor` of shape `(B, F, 4)`, *optional*): the scanpath to learn: x, y in the image 0..1,
                onset and duration in seconds; real fixations in front, at most `config.max_fixations`.
            fixation_mask (`torch.Tensor` of shape `(B, F)`, *optional*): which fixations are real; all by default.
            labels (`torch.Tensor` of shape `(B, L)`, *optional*): report tokens to learn from the queries (stage 1 of
                MedGaze), -100 where nothing is to be learned; aligned with `input_ids`.
            patch_tokens (`torch.Tensor` of shape `(B, rows, columns, C)`, *optional*): a tower's output, instead of
                `pixel_values`.
        """
        memory, memory_mask = self.get_memory(pixel_values, input_ids, attention_mask, patch_tokens)
        losses, parts = [], {}
        if labels is not None:
            logits = self.language_model.get_output_embeddings()(memory[:, -labels.shape[1] - 1 : -1])
            parts["report"] = nn.functional.cross_entropy(logits.float().transpose(1, 2), labels)
            losses.append(parts["report"])

        output = self._decode(self.memory_norm(self.memory_projection(memory)), memory_mask)
        if fixations is not None:
            if fixation_mask is None:
                fixation_mask = torch.ones(fixations.shape[:2], dtype=torch.bool, device=fixations.device)
            loss, scanpath_parts = self._scanpath_loss(output, fixations.float(), fixation_mask.bool())
            losses.append(loss)
            parts |= scanpath_parts
        output.loss = sum(losses) if losses else None
        output.loss_parts = parts or None
        return output

    def _decode(self, memory: torch.Tensor, memory_mask: torch.Tensor) -> ScanpathPredictorOutput:
        """Each strategy (and after them the consensus) fills its slots; one more slot in front weighs the strategy."""
        queries = self.strategy_queries[:, None]
        states = torch.cat([queries, queries + self.slot_queries], dim=1).repeat(len(memory), 1, 1)
        memory = memory.repeat_interleave(len(queries), dim=0)
        memory_mask = memory_mask.repeat_interleave(len(queries), dim=0)
        for layer in self.decoder:
            states = layer(states, memory, memory_mask)
        states = self.decoder_norm(states).unflatten(0, (-1, len(queries)))
        front, states = states[:, :, 0], states[:, :, 1:]
        keep = self.keep_head(states).squeeze(-1).float()
        mean = self.mean_head(states).float()
        mean = torch.cat([mean[..., :2].sigmoid(), MIN_DURATION + nn.functional.softplus(mean[..., 2:] - 1)], dim=-1)
        log_variance = (self.variance_head(states).float() - 3).clamp(*LOG_VARIANCE_RANGE)
        if self.config.start_at_center:
            given = torch.zeros(mean.shape[-2:], dtype=torch.bool, device=mean.device)
            given[0, :2] = True
            mean, log_variance = mean.masked_fill(given, 0.5), log_variance.masked_fill(given, -torch.inf)
        strategies = self.config.num_strategies
        output = ScanpathPredictorOutput(
            strategy_logits=self.strategy_head(front[:, :strategies]).squeeze(-1).float().log_softmax(-1),
            keep_logits=keep[:, :strategies],
            mean=mean[:, :strategies],
            log_variance=log_variance[:, :strategies],
        )
        if self.has_consensus:
            output.consensus, output.consensus_keep_logits = mean[:, -1], keep[:, -1]
        return output

    def _scanpath_loss(self, output, fixations: torch.Tensor, mask: torch.Tensor):
        """Paper's loss (keep/stop over all slots, regression over real ones) under a mixture over strategies."""
        config, slots = self.config, self.config.max_fixations
        if fixations.shape[1] > slots:
            raise ValueError(f"fixations: {fixations.shape[1]}, max_fixations: {slots}; cut the scanpaths first")
        if not mask.any(1).all():
            raise ValueError(f"row {int((~mask.any(1)).nonzero()[0])} has no fixation to learn from")
        missing = slots - fixations.shape[1]
        fixations = torch.where(mask[..., None], fixations, 0)  # NaN in the padding would reach the gradients
        target = nn.functional.pad(fixations[..., [0, 1, 3]], (0, 0, 0, missing))
        mask = nn.functional.pad(mask, (0, missing))
        keep = self._keep_loss(output.keep_logits, mask[:, None])
        error = target[:, None] - output.mean
        if config.regression_loss == "l1":
            each = error.abs() / mask.sum(-1)[:, None, None, None]
        else:
            log_variance = output.log_variance.clamp(min=LOG_VARIANCE_RANGE[0])
            each = 0.5 * (error.square() * (-log_variance).exp() + log_variance)
        real = mask[:, None, :, None].expand_as(each).clone()
        if config.start_at_center:
            real[:, :, 0, :2] = False  # given, not predicted
        each = torch.where(real, each, 0).sum(2)
        position, duration = each[..., :2].sum(-1), each[..., 2]
        costs = (
            config.keep_loss_weight * keep
            + config.position_loss_weight * position
            + config.duration_loss_weight * duration
        )
        joint = output.strategy_logits - costs
        share = joint.detach().softmax(-1)
        named = (("keep", keep), ("position", position), ("duration", duration))
        parts = {name: (share * value).sum(-1).mean() for name, value in named}
        loss = -joint.logsumexp(-1).mean()
        if self.has_consensus:
            parts["consensus"] = self._consensus_loss(output, target, mask)
            loss = loss + config.consensus_loss_weight * parts["consensus"]
        return loss, parts

    def _keep_loss(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Cross entropy of keep/stop, mean over all slots, padding included as in the paper."""
        target = mask.to(logits.dtype).expand_as(logits)
        return nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)

    def _consensus_loss(self, output, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One scanpath for all readers: the expected likeness to theirs is what is maximised, at two scales."""
        path, full = output.consensus[:, None], torch.ones_like(mask)[:, None]
        likeness = sum(
            scanpath_likeness(path, full, target[:, None], mask[:, None], reach=reach) for reach in (0.25, 0.5)
        )
        duration = torch.where(mask, (output.consensus[..., 2] - target[..., 2]).abs(), 0).sum(-1) / mask.sum(-1)
        keep = self._keep_loss(output.consensus_keep_logits, mask)
        return (1 - likeness.flatten() / 2 + duration + keep).mean()

    @torch.no_grad()
    def predict(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        patch_tokens: torch.Tensor | None = None,
        num_samples: int = 1,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> ScanpathSamples:
        """Scanpaths for a batch of films.

        Args:
            pixel_values, input_ids, attention_mask, patch_tokens: as in `forward`.
            num_samples: N scanpaths a film.
            sample: True: drawn; False: the point estimate of `config.point_estimate`; by default drawn when
                `num_samples` is above 1 or a generator is given.
            generator: for reproducible draws. All films of a batch share the noise, so that a film's scanpaths do not
                depend on what else is in the batch.

        Returns:
            `ScanpathSamples`. A fixation starts when the last one ends; every scanpath has at least one fixation.
        """
        if sample is None:
            sample = num_samples > 1 or generator is not None
        if num_samples > 1 and not sample:
            raise ValueError(
                "several scanpaths a film are only there when they are drawn: num_samples > 1 needs sample=True"
            )
        output = self(pixel_values, input_ids, attention_mask, patch_tokens=patch_tokens)
        if sample:
            drawn, keep = self._draw(output, num_samples, generator)
        elif self.has_consensus:
            drawn, keep = output.consensus[:, None], (output.consensus_keep_logits > 0)[:, None]
        else:
            best = output.strategy_logits.argmax(-1)
            rows = torch.arange(len(best), device=best.device)
            drawn, keep = output.mean[rows, best][:, None], (output.keep_logits[rows, best] > 0)[:, None]
        mask = until_stop(keep)
        duration = torch.where(mask, drawn[..., 2], 0)
        onset = duration.cumsum(-1) - duration
        return ScanpathSamples(torch.stack([drawn[..., 0], drawn[..., 1], onset, duration], -1), mask)

    def _draw(self, output: ScanpathPredictorOutput, count: int, generator: torch.Generator | None):
        """`count` scanpaths (B, N, S, 3) and their keep decisions (B, N, S), by reparameterisation."""
        slots, device = self.config.max_fixations, output.mean.device
        source = generator.device if generator is not None else device
        choice = torch.rand(count, generator=generator, device=source).to(device)
        keep_noise = torch.rand(count, slots, generator=generator, device=source).to(device)
        noise = torch.randn(count, slots, 3, generator=generator, device=source).to(device)
        weights = output.strategy_logits.softmax(-1).cumsum(-1)
        chosen = (choice[None, :, None] > weights[:, None, :-1]).sum(-1)
        rows = torch.arange(len(chosen), device=device)[:, None]
        mean, deviation = output.mean[rows, chosen], (0.5 * output.log_variance[rows, chosen]).exp()
        drawn = mean + deviation * noise
        drawn = torch.cat([drawn[..., :2].clamp(0, 1), drawn[..., 2:].clamp(min=MIN_DURATION)], dim=-1)
        return drawn, output.keep_logits[rows, chosen].sigmoid() > keep_noise


def until_stop(keep: torch.Tensor) -> torch.Tensor:
    """Keep decisions (..., S) -> mask of the fixations before the first stop; the first fixation is always there."""
    kept = keep.long()
    kept[..., 0] = 1
    return kept.cumprod(-1).bool()


def grid_encoding(states: torch.Tensor) -> torch.Tensor:
    """Sines of row and column for a grid of states (B, rows, columns, D), positions 0..1: (rows, columns, D)."""
    rows, columns, width = states.shape[1:]
    frequency = 2 * math.pi * 2 ** torch.linspace(-1, 5, width // 4, device=states.device)

    def waves(size: int) -> torch.Tensor:
        angle = (torch.arange(size, device=states.device)[:, None] + 0.5) / size * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    y = waves(rows)[:, None].expand(-1, columns, -1)
    x = waves(columns)[None].expand(rows, -1, -1)
    encoding = torch.cat([y, x], dim=-1)
    return nn.functional.pad(encoding, (0, width - encoding.shape[-1])).to(states.dtype)


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


__all__ = ["ScanpathPredictor", "ScanpathPredictorOutput", "ScanpathPredictorPreTrainedModel", "ScanpathSamples"]
