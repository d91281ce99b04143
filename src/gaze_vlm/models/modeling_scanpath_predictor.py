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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .configuration_scanpath_predictor import ScanpathPredictorConfig
from .hub_mixin import HubMixin
from .modeling_scanpath_layers import ScanpathLayer, grid_encoding, sequence_encoding
from .modeling_vision_tower import patch_tokens as tower_tokens
from .modeling_vision_tower import tower_width
from .scanpath_losses import MIN_DURATION, given_values, perturbed, scanpath_loss

# ln of variances; the least is a deviation of 0.018, about what an eye tracker can tell apart on a film. Without it
# the likelihood of what never varies (the centre's duration) grows without bound and drowns everything else.
LOG_VARIANCE_RANGE = (-8.0, 3.0)
TYPICAL = 0.3  # seconds: the duration that an untrained model starts from
START_DEVIATION = math.log(0.2)  # of the same model, in sides of the image and seconds


@dataclass
class ScanpathPredictorOutput(ModelOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*): with `fixations`: of the scanpath; with `labels`: of the report;
        else None.
    loss_parts (`dict[str, torch.Tensor]`, *optional*): keep, position and duration, of the strategy each sample is
        likeliest to follow; consensus; report.
    strategy_logits (`torch.Tensor` of shape `(B, K)`): log-weights of the K ways of reading (`config.num_strategies`).
    keep_logits (`torch.Tensor` of shape `(B, K, S)`): whether slot s holds a fixation: its sigmoid is the probability
        that the scanpath is longer than s.
    mean (`torch.Tensor` of shape `(B, K, S, 3)`): x, y in the image 0..1 and duration in seconds (its median where
        durations are log-normal).
    log_variance (`torch.Tensor` of shape `(B, K, S, 3)`): of the same, in squared units (of the logarithm of the
        duration where that is normal); minus infinity where a value is given, not predicted, or has no distribution.
    noise (`torch.Tensor` of shape `(B, K, S, 3, r)`, *optional*): directions that all slots of a scanpath share
        (`config.noise_rank`): a draw adds them times one standard normal number each for positions, another for
        durations.
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
    noise: torch.FloatTensor | None = None
    consensus: torch.FloatTensor | None = None
    consensus_keep_logits: torch.FloatTensor | None = None


class ScanpathSamples(NamedTuple):
    """Predicted scanpaths: N a film."""

    fixations: torch.Tensor  # (B, N, S, 4) x, y in the image 0..1, onset and duration in seconds
    fixation_mask: torch.Tensor  # (B, N, S) True where a fixation is real; real ones stand in front


class ScanpathPredictorPreTrainedModel(HubMixin, PreTrainedModel):
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
            # fixations start spread over the film: slots that begin at one place follow one gradient and stay there
            spread = {"std": self.config.hidden_size**-0.5}
            init.normal_(module.position_head.weight, **spread)
            init.normal_(module.position_head.bias, std=0.5)
            if module.has_consensus:
                init.normal_(module.consensus_query, std=1.0)
                init.normal_(module.consensus_head.weight, **spread)


class ScanpathPredictor(ScanpathPredictorPreTrainedModel):
    r"""
    Vision tower, encoder, Q-Former, a frozen causal language model, and a decoder that fills all slots of a scanpath
    at once. Image and text may each say little: a grey film, or no text at all.
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
        self.memory_dropout = nn.Dropout(config.decoder_dropout)
        # one slot in front weighs the strategies; the consensus is a second scanpath of slots
        self.slot_queries = nn.Parameter(torch.empty(1 + config.max_fixations, config.hidden_size))
        self.has_consensus = config.point_estimate == "consensus"
        self.consensus_query = nn.Parameter(torch.empty(1, config.hidden_size)) if self.has_consensus else None
        self.decoder = nn.ModuleList(ScanpathLayer(config, cross=True) for _ in range(config.num_decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.hidden_size)
        self.head_dropout = nn.Dropout(config.head_dropout)
        strategies = config.num_strategies
        self.strategy_head = nn.Linear(config.hidden_size, strategies)
        self.keep_head = nn.Linear(config.hidden_size, strategies)
        # means, then log-variances, which are there without a distribution too: weights fit whatever it is
        self.position_head = nn.Linear(config.hidden_size, strategies * 4)
        self.duration_head = nn.Linear(config.hidden_size, strategies * 2)
        self.noise_head = None
        if config.noise_rank:
            self.noise_head = nn.Linear(config.hidden_size, strategies * 3 * config.noise_rank)
        self.consensus_head = nn.Linear(config.hidden_size, 4) if self.has_consensus else None  # x, y, duration, keep
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
        if self.config.freeze_vision_tower and self.vision_tower is not None:
            self.vision_tower.requires_grad_(False)

    def train(self, mode: bool = True):
        """What is frozen stays in eval mode: no dropout, no running statistics, no gradient checkpointing inside."""
        super().train(mode)
        for part in (self.language_model, self.vision_tower):
            if part is not None and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    # ---- what the decoder sees

    def _read_film(self, pixel_values, patch_tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder states (B, patches, D), and what the queries took from them (B, Q, text width)."""
        if patch_tokens is None:
            if self.vision_tower is None or pixel_values is None:
                needed = "patch_tokens: it has no vision tower" if self.vision_tower is None else "pixel_values"
                raise ValueError(f"this ScanpathPredictor needs {needed}")
            patch_tokens = tower_tokens(self.vision_tower, pixel_values)
        states = self.vision_projection(self.vision_norm(patch_tokens.to(self.dtype)))
        states = (states + grid_encoding(*states.shape[1:], like=states)).flatten(1, 2)
        for layer in self.encoder:
            states = layer(states)
        states = self.encoder_norm(states)
        queries = self.query_tokens.expand(len(states), -1, -1)
        queries = self.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        return states, self.text_projection(queries)

    def _cut(self, text: torch.Tensor, mask: torch.Tensor, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Text (B, L) and mask cut to `config.text_max_length`, or held against what there is room for."""
        most = self.config.text_max_length
        if most is None and (positions := getattr(self.config.text_config, "max_position_embeddings", None)):
            most = positions - queries
            if text.shape[1] > most and (mask.sum(1) > most).any():
                row = int(mask.sum(1).argmax())
                raise ValueError(
                    f"row {row}: {int(mask[row].sum())} text tokens; the language model has room for {most} "
                    f"(text_max_length cuts them off)"
                )
        return text[:, :most], mask[:, :most]

    def _language_states(self, embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.language_model.base_model(
            inputs_embeds=embeds, attention_mask=mask, use_cache=False
        ).last_hidden_state

    def get_text_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The language model's states of texts (B, L, text width) and their mask (B, L), to be kept and used again.

        Only where `config.language_model_input` is `"text"`: there they belong to no film, and `forward` and `predict`
        take them in place of `input_ids`, one row for all films or one for each.
        """
        if self.config.language_model_input != "text":
            raise ValueError(
                'text states belong to a film unless language_model_input is "text"; '
                f"it is {self.config.language_model_input!r}"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        input_ids, attention_mask = self._cut(input_ids, attention_mask, queries=0)
        seen = attention_mask.clone()
        seen[:, 0] = 1  # a row without text: what it gives is masked by the caller, but must be finite
        return self._language_states(self.get_input_embeddings()(input_ids), seen), attention_mask

    def get_memory(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        patch_tokens: torch.Tensor | None = None,
        text_states: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder attends to, arguments as in `forward`: (B, T, D), and its mask (B, T), True where real.

        Queries first, then the text, then the patches if `config.image_memory`.
        """
        film, queries = self._read_film(pixel_values, patch_tokens)
        memory, mask = self._meet(queries, input_ids, attention_mask, text_states)
        return self._as_memory(film, memory, mask)

    def _meet(self, queries, input_ids, attention_mask, text_states) -> tuple[torch.Tensor, torch.Tensor]:
        """[queries ; text] (B, Q + L, text width) after the language model, and the mask (B, Q + L)."""
        mask = torch.ones(queries.shape[:2], dtype=torch.long, device=queries.device)
        if input_ids is not None and attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.config.language_model_input == "text":
            if input_ids is not None:
                text_states, attention_mask = self.get_text_states(input_ids, attention_mask)
            if text_states is None:
                return queries, mask
            if attention_mask is None:
                attention_mask = torch.ones(text_states.shape[:2], dtype=torch.long, device=mask.device)
            text_states = text_states.to(queries.dtype).expand(len(queries), -1, -1)
            mask = torch.cat([mask, attention_mask.expand(len(queries), -1)], dim=1)
            return torch.cat([queries, text_states], dim=1), mask
        if text_states is not None:
            raise ValueError('text_states need language_model_input "text"')
        return self._read_together(queries, mask, input_ids, attention_mask)

    def _read_together(self, queries, mask, input_ids, attention_mask) -> tuple[torch.Tensor, torch.Tensor]:
        """The language model over [queries ; text], as in the paper."""
        if input_ids is not None:
            input_ids, attention_mask = self._cut(input_ids, attention_mask, queries.shape[1])
            queries = torch.cat([queries, self.get_input_embeddings()(input_ids).to(queries.dtype)], dim=1)
            mask = torch.cat([mask, attention_mask], dim=1)
        return self._language_states(queries, mask), mask

    def _as_memory(self, film, memory, mask) -> tuple[torch.Tensor, torch.Tensor]:
        memory = self.memory_norm(self.memory_projection(memory))
        length, width = memory.shape[1:]
        if self.config.memory_positions == "grid":  # the same one however long a batch's texts are
            side = math.ceil(math.sqrt(self.config.num_query_tokens + self.config.text_max_length))
            positions = grid_encoding(side, side, width, like=memory).flatten(0, 1)[:length]
        else:
            positions = sequence_encoding(length, width, like=memory)
        memory, mask = memory + positions, mask.bool()
        if self.config.image_memory:
            memory = torch.cat([memory, film], dim=1)
            mask = torch.cat([mask, mask.new_ones(film.shape[:2])], dim=1)
        return self.memory_dropout(memory), mask

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
        text_states: torch.Tensor | None = None,
        **kwargs,
    ) -> ScanpathPredictorOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): from the processor.
            input_ids, attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): text, padded on the right.
            fixations (`torch.Tensor` of shape `(B, F, 4)` or `(B, R, F, 4)`, *optional*): the scanpath to learn, or
                those of R readers: x, y in the image 0..1, onset and duration in seconds; real fixations in front, at
                most `config.max_fixations`.
            fixation_mask (`torch.Tensor` of shape `(B, F)` or `(B, R, F)`, *optional*): which fixations are real; all
                by default. A reader without any is padding; each row needs one with some, and counts the same however
                many it has.
            labels (`torch.Tensor` of shape `(B, L)`, *optional*): report tokens to learn from the queries (stage 1 of
                MedGaze), -100 where nothing is to be learned; aligned with `input_ids`.
            patch_tokens (`torch.Tensor` of shape `(B, rows, columns, C)`, *optional*): a tower's output, instead of
                `pixel_values`.
            text_states (`torch.Tensor` of shape `(B, L, text width)` or `(1, L, text width)`, *optional*): from
                `get_text_states`, instead of `input_ids`.
        """
        film, queries = self._read_film(pixel_values, patch_tokens)
        losses, parts = [], {}
        together = None
        if labels is not None:
            if input_ids is None:
                raise ValueError("labels need the input_ids they are aligned with")
            ones = torch.ones(queries.shape[:2], dtype=torch.long, device=queries.device)
            attention = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            together = self._read_together(queries, ones, input_ids, attention)
            states = together[0][:, queries.shape[1] - 1 : -1]
            logits = self.language_model.get_output_embeddings()(states)
            parts["report"] = nn.functional.cross_entropy(logits.float().transpose(1, 2), labels[:, : logits.shape[1]])
            losses.append(parts["report"])
        if together is None or self.config.language_model_input == "text":
            together = self._meet(queries, input_ids, attention_mask, text_states)

        output = self._decode(*self._as_memory(film, *together))
        if fixations is not None:
            if fixation_mask is None:
                fixation_mask = torch.ones(fixations.shape[:-1], dtype=torch.bool, device=fixations.device)
            with torch.autocast(fixations.device.type, enabled=False):  # heads answer in float32 under autocast too
                loss, scanpath_parts = scanpath_loss(
                    self.config, output, fixations.float(), fixation_mask.bool(), drawn=self.training
                )
            losses.append(loss)
            parts |= scanpath_parts
        output.loss = sum(losses) if losses else None
        output.loss_parts = parts or None
        return output

    # ---- scanpaths

    def _decode(self, memory: torch.Tensor, memory_mask: torch.Tensor) -> ScanpathPredictorOutput:
        """All slots are filled at once: those of the strategies and, beside them, those of the consensus."""
        queries = self.slot_queries[None]
        if self.has_consensus:
            queries = torch.cat([queries, queries + self.consensus_query])
        states = queries.repeat(len(memory), 1, 1)
        for layer in self.decoder:
            states = layer(states, memory, memory_mask)
        states = self.head_dropout(self.decoder_norm(states)).unflatten(0, (-1, len(queries)))
        front, slots = states[:, 0, 0], states[:, 0, 1:]
        position, duration = (
            head(slots).float().unflatten(-1, (self.config.num_strategies, -1)).transpose(1, 2)
            for head in (self.position_head, self.duration_head)
        )
        output = ScanpathPredictorOutput(
            strategy_logits=self.strategy_head(front).float().log_softmax(-1),
            keep_logits=self.keep_head(slots).float().transpose(1, 2),
            mean=self._in_units(position[..., :2], duration[..., :1]),
            log_variance=torch.full((*position.shape[:-1], 3), -torch.inf, device=position.device),
        )
        if self.config.distribution != "none":
            log_variance = torch.cat([position[..., 2:], duration[..., 1:]], dim=-1) + 2 * START_DEVIATION
            output.log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
        if self.noise_head is not None:
            noise = self.noise_head(slots).float().unflatten(-1, (self.config.num_strategies, 3, -1))
            output.noise = math.exp(START_DEVIATION) * noise.transpose(1, 2)
        if self.config.start_at_center:
            given = given_values(self.config, position.device)
            output.log_variance = output.log_variance.masked_fill(given, -torch.inf)
            if output.noise is not None:
                output.noise = output.noise.masked_fill(given[..., None], 0)
        if self.has_consensus:
            consensus = self.consensus_head(states[:, 1, 1:]).float()
            output.consensus = self._in_units(consensus[..., :2], consensus[..., 2:3])
            output.consensus_keep_logits = consensus[..., 3]
        return output

    def _in_units(self, position: torch.Tensor, duration: torch.Tensor) -> torch.Tensor:
        """What heads say of places (..., S, 2) and durations (..., S, 1) -> x, y in 0..1 and seconds (..., S, 3)."""
        if self.config.distribution == "log_normal":
            seconds = TYPICAL * duration.clamp(-6, 6).exp()
        else:
            seconds = nn.functional.softplus(duration + math.log(math.expm1(TYPICAL - MIN_DURATION))) + MIN_DURATION
        mean = torch.cat([position.sigmoid(), seconds], dim=-1)
        return mean.masked_fill(given_values(self.config, mean.device), 0.5) if self.config.start_at_center else mean

    @torch.no_grad()
    def predict(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        patch_tokens: torch.Tensor | None = None,
        text_states: torch.Tensor | None = None,
        num_samples: int = 1,
        sample: bool | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> ScanpathSamples:
        """Scanpaths for a batch of films.

        Args:
            pixel_values, input_ids, attention_mask, patch_tokens, text_states: as in `forward`.
            num_samples: N scanpaths a film.
            sample: True: drawn; False: the point estimate (of the likeliest strategy the mean, unless there is a
                consensus); by default drawn when `num_samples` is above 1, a generator is given, or
                `config.point_estimate` says so.
            generator: for reproducible draws. All films of a batch share the noise of a single one, so that a film's
                scanpaths do not depend on what else is in the batch; of several, each film has its own.

        Returns:
            `ScanpathSamples`. A fixation starts when the last one ends; every scanpath has at least one fixation.
        """
        if sample is None:
            sample = num_samples > 1 or generator is not None or self.config.point_estimate == "sample"
        if num_samples > 1 and not sample:
            raise ValueError(
                "several scanpaths a film are only there when they are drawn: num_samples > 1 needs sample=True"
            )
        output = self(pixel_values, input_ids, attention_mask, patch_tokens=patch_tokens, text_states=text_states)
        if sample:
            drawn, mask = self._draw(output, num_samples, generator)
        elif self.has_consensus:
            drawn, mask = output.consensus[:, None], self._ended(output.consensus_keep_logits[:, None])
        else:
            best = output.strategy_logits.argmax(-1)
            rows = torch.arange(len(best), device=best.device)
            drawn, mask = output.mean[rows, best][:, None], self._ended(output.keep_logits[rows, best][:, None])
        duration = torch.where(mask, drawn[..., 2], 0)
        onset = duration.cumsum(-1) - duration
        return ScanpathSamples(torch.stack([drawn[..., 0], drawn[..., 1], onset, duration], -1), mask)

    def _ended(self, keep_logits: torch.Tensor) -> torch.Tensor:
        """Mask (..., S) of the fixations before the end that `config.termination` says."""
        if self.config.termination == "first_stop":
            return until_stop(keep_logits > 0)
        expected = keep_logits.sigmoid().sum(-1, keepdim=True).round().clamp(min=1)
        return torch.arange(keep_logits.shape[-1], device=keep_logits.device) < expected

    def _noise(self, count: int, generator: torch.Generator | None, device) -> tuple[torch.Tensor, ...]:
        """Numbers that N scanpaths are drawn with: two in 0..1 (2, N), and normal ones (N, S, 3) and (N, 2, r)."""
        source = {"generator": generator, "device": device if generator is None else generator.device}
        return (
            torch.rand(2, count, **source).to(device),
            torch.randn(count, self.config.max_fixations, 3, **source).to(device),
            torch.randn(count, 2, self.config.noise_rank, **source).to(device),
        )

    def _draw(self, output: ScanpathPredictorOutput, count: int, generator):
        """`count` scanpaths (B, N, S, 3) and their masks (B, N, S), by reparameterisation."""
        device = output.mean.device
        generators = generator if isinstance(generator, Sequence) else [generator]
        if len(generators) not in (1, len(output.mean)):
            raise ValueError(f"generators: {len(generators)}, films: {len(output.mean)}; one for all, or one for each")
        noise = zip(*(self._noise(count, one, device) for one in generators), strict=True)
        uniform, each, shared = (torch.stack(part) for part in noise)  # (B or 1, ...)
        choice, length = uniform.unbind(1)
        weights = output.strategy_logits.softmax(-1).cumsum(-1)
        chosen = (choice[..., None] > weights[:, None, :-1]).sum(-1)
        rows = torch.arange(len(chosen), device=device)[:, None]
        noise = None if output.noise is None else output.noise[rows, chosen]
        drawn = perturbed(
            self.config, output.mean[rows, chosen], output.log_variance[rows, chosen], noise, each, shared
        )
        drawn = torch.cat([drawn[..., :2].clamp(0, 1), drawn[..., 2:].clamp(min=MIN_DURATION)], dim=-1)
        # a slot's probability is that of all slots up to it: one number decides where the scanpath ends
        return drawn, until_stop(output.keep_logits[rows, chosen].sigmoid() > length[..., None])


def until_stop(keep: torch.Tensor) -> torch.Tensor:
    """Keep decisions (..., S) -> mask of the fixations before the first stop; the first fixation is always there."""
    kept = keep.long()
    kept[..., 0] = 1
    return kept.cumprod(-1).bool()


__all__ = ["ScanpathPredictor", "ScanpathPredictorOutput", "ScanpathPredictorPreTrainedModel", "ScanpathSamples"]
