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
"""GazeVLM: a film and the gaze on it, through a graph, into tokens of a causal language model."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, ModelOutput
from transformers.utils import can_return_tuple
from transformers.utils.versions import require_version

from .configuration_gaze_vlm import GAZE_SOURCES, GazeVLMConfig
from .hub_mixin import HubMixin
from .modeling_scanpath_predictor import ScanpathPredictor
from .modeling_vision_tower import patch_tokens as tower_tokens
from .modeling_vision_tower import tower_width
from .modeling_visual_gaze_graph import GeometricConvolution, VisualGazeGraph

IMAGE_INPUTS = ("pixel_values", "fixations", "fixation_mask", "patch_tokens")  # one row an image, not one a sample


@dataclass
class GazeVLMModelOutput(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.Tensor` of shape `(N, tokens, text width)`, *optional*): the visual-gaze tokens put
        into the text.
    """

    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class GazeVLMCausalLMOutput(ModelOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*): next-token loss, when `labels` are given.
    logits (`torch.Tensor` of shape `(B, T, vocabulary)`).
    image_hidden_states (`torch.Tensor` of shape `(N, tokens, text width)`, *optional*): the visual-gaze tokens put
        into the text.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    image_hidden_states: torch.FloatTensor | None = None


class GazeVLMPreTrainedModel(HubMixin, PreTrainedModel):
    config: GazeVLMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisualGazeGraphLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info it is a pair
        for module in model.modules():
            if isinstance(module, GazeVLMModel):
                module.freeze()  # loading puts new, trainable parameters everywhere
        return loaded

    def load_adapter(self, *args, **kwargs):
        hint = (
            "5.17 leaves graph and projector of an adapter unread; gaze_vlm.training.adapters.load_adapter reads them"
        )
        require_version("transformers>=5.18", hint)
        return super().load_adapter(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, VisualGazeGraph):
            init.zeros_(module.no_gaze)
        elif isinstance(module, GeometricConvolution):
            for name, parameter in module.named_parameters():
                if name.endswith("bias"):
                    init.zeros_(parameter)
                else:
                    init.xavier_uniform_(parameter) if parameter.ndim > 1 else init.normal_(parameter)


class GazeVLMProjector(nn.Module):
    """Visual-gaze tokens of a square of patches -> one embedding of the language model."""

    def __init__(self, config: GazeVLMConfig):
        super().__init__()
        self.merge_size = config.merge_size
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.graph_hidden_size * config.merge_size**2, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(N, rows, columns, D) -> (N, rows * columns / merge_size², text width)."""
        merge = self.merge_size
        rows, columns = states.shape[1:3]
        if rows % merge or columns % merge:
            raise ValueError(f"patch grid {rows} x {columns} cannot be merged in squares of {merge}")
        squares = states.unflatten(1, (-1, merge)).unflatten(3, (-1, merge)).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.linear_2(nn.functional.gelu(self.linear_1(squares)))


class GazeVLMModel(GazeVLMPreTrainedModel):
    r"""
    The backbone: vision tower, visual-gaze graph, projector, language model without its head.
    """

    def __init__(self, config: GazeVLMConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.visual_gaze_graph = VisualGazeGraph(tower_width(self.vision_tower), config)
        self.multi_modal_projector = GazeVLMProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.scanpath_predictor = None
        if config.scanpath_config is not None:
            self.scanpath_predictor = ScanpathPredictor(config.scanpath_config)
        self.post_init()
        self.freeze()

    def freeze(self):
        """The nested predictor only predicts: no gradient ever reaches it."""
        if self.scanpath_predictor is not None:
            self.scanpath_predictor.requires_grad_(False)

    def train(self, mode: bool = True):
        """What does not learn stays in eval mode: the nested predictor always, the tower when it is frozen."""
        super().train(mode)
        if self.scanpath_predictor is not None:
            self.scanpath_predictor.eval()
        if not any(parameter.requires_grad for parameter in self.vision_tower.parameters()):
            self.vision_tower.eval()
        return self

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    @torch.no_grad()
    def predict_gaze(self, pixel_values=None, patch_tokens=None) -> tuple[torch.Tensor, torch.Tensor]:
        """The nested predictor's point estimate: fixations (N, S, 4) and fixation_mask (N, S)."""
        if self.scanpath_predictor is None:
            raise ValueError('gaze="predicted" needs a scanpath predictor: this checkpoint has none')
        if self.scanpath_predictor.vision_tower is None:
            if patch_tokens is None:
                patch_tokens = tower_tokens(self.vision_tower, pixel_values)
            predicted = self.scanpath_predictor.predict(patch_tokens=patch_tokens)
        else:
            predicted = self.scanpath_predictor.predict(self._pixels_of_predictor(pixel_values))
        return predicted.fixations[:, 0], predicted.fixation_mask[:, 0]

    def _pixels_of_predictor(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Films (N, 3, H, W) as the nested predictor's own tower wants them."""
        if self.config.scanpath_pixel_scale is not None:
            scale, shift = (
                torch.tensor(values, dtype=pixel_values.dtype, device=pixel_values.device)[:, None, None]
                for values in (self.config.scanpath_pixel_scale, self.config.scanpath_pixel_shift)
            )
            pixel_values = pixel_values * scale + shift
        side = self.config.scanpath_image_size
        if side is not None and pixel_values.shape[-2:] != (side, side):
            pixel_values = nn.functional.interpolate(
                pixel_values, (side, side), mode="bilinear", antialias=True, align_corners=False
            )
        return pixel_values

    def get_image_features(
        self, pixel_values=None, fixations=None, fixation_mask=None, gaze=None, patch_tokens=None
    ) -> torch.Tensor:
        """Visual-gaze tokens (N, tokens, text width) of N images; arguments as in `forward`."""
        if gaze is None:
            gaze = self.config.gaze if fixations is None else "given"
        if gaze not in GAZE_SOURCES:
            raise ValueError(f"gaze must be one of {', '.join(GAZE_SOURCES)}; got {gaze!r}")
        if patch_tokens is None:
            patch_tokens = tower_tokens(self.vision_tower, pixel_values)
        if gaze == "none":
            fixations = fixation_mask = None
        elif gaze == "predicted":
            fixations, fixation_mask = self.predict_gaze(pixel_values, patch_tokens)
        elif fixations is None:
            raise ValueError('gaze="given" needs fixations')
        elif len(fixations) != len(patch_tokens):
            raise ValueError(
                f"images: {len(patch_tokens)}, scanpaths: {len(fixations)}; each image needs one (or an empty one)"
            )
        return self.multi_modal_projector(self.visual_gaze_graph(patch_tokens, fixations, fixation_mask))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        fixations: torch.Tensor | None = None,
        fixation_mask: torch.Tensor | None = None,
        gaze: str | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        patch_tokens: torch.Tensor | None = None,
        **kwargs,
    ) -> GazeVLMModelOutput:
        r"""
        Args as in [`GazeVLM.forward`].
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        features = None
        if pixel_values is not None or patch_tokens is not None:
            if input_ids is None:
                raise ValueError("images need input_ids: their placeholders say where they go")
            features = self.get_image_features(pixel_values, fixations, fixation_mask, gaze, patch_tokens)
            features = features.to(inputs_embeds.device, inputs_embeds.dtype)
            placeholder = input_ids == self.config.image_token_id
            if placeholder.sum() != features.shape[0] * features.shape[1]:
                raise ValueError(
                    f"image placeholders: {int(placeholder.sum())}, "
                    f"visual-gaze tokens: {features.shape[0] * features.shape[1]} "
                    f"({features.shape[0]} images of {features.shape[1]}); the processor must have "
                    f"num_image_tokens={features.shape[1]}, and no image may be cut off its prompt"
                )
            inputs_embeds = inputs_embeds.masked_scatter(placeholder[..., None], features)
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return GazeVLMModelOutput(
            last_hidden_state=output.last_hidden_state,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_hidden_states=features,
        )


class GazeVLM(GazeVLMPreTrainedModel, GenerationMixin):
    r"""
    Film, gaze and instruction in, text out: reports, and with GazeX's tasks answers, boxes and trajectories.
    """

    def __init__(self, config: GazeVLMConfig):
        super().__init__(config)
        self.model = GazeVLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            # where the embedding stands depends on the language model
            embedding = self.get_input_embeddings().weight
            name = next(name for name, parameter in self.named_parameters() if parameter is embedding)
            self._tied_weights_keys = {"lm_head.weight": name}
        self.loss_type = "ForCausalLM"  # transformers reads it off names like XForCausalLM
        self.post_init()

    def get_image_features(self, *args, **kwargs) -> torch.Tensor:
        """See [`GazeVLMModel.get_image_features`]."""
        return self.model.get_image_features(*args, **kwargs)

    def predict_gaze(self, pixel_values=None, patch_tokens=None) -> tuple[torch.Tensor, torch.Tensor]:
        """See [`GazeVLMModel.predict_gaze`]."""
        return self.model.predict_gaze(pixel_values, patch_tokens)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        fixations: torch.Tensor | None = None,
        fixation_mask: torch.Tensor | None = None,
        gaze: str | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        patch_tokens: torch.Tensor | None = None,
        **kwargs,
    ) -> GazeVLMCausalLMOutput:
        r"""
        Args:
            input_ids (`torch.Tensor` of shape `(B, T)`): with `config.image_token_id` once for each visual-gaze token.
            pixel_values (`torch.Tensor` of shape `(N, 3, H, W)`): all images of the batch, in the order of their
                placeholders.
            fixations (`torch.Tensor` of shape `(N, F, 4)`, *optional*): x, y in the image 0..1, onset and duration in
                seconds.
            fixation_mask (`torch.Tensor` of shape `(N, F)`, *optional*): which fixations are real; an image whose mask
                is all False counts as one without gaze.
            gaze (`str`, *optional*): `"given"`, `"predicted"` or `"none"`; by default given if there are fixations,
                else `config.gaze`.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*).
            labels (`torch.Tensor` of shape `(B, T)`, *optional*): token ids, -100 where nothing is to be learned.
            logits_to_keep (`int` or `torch.Tensor`): logits only for the last positions, or for these; 0 for all.
            patch_tokens (`torch.Tensor` of shape `(N, rows, columns, C)`, *optional*): the vision tower's output,
                instead of `pixel_values`.
        """
        output = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            fixations=fixations,
            fixation_mask=fixation_mask,
            gaze=gaze,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            patch_tokens=patch_tokens,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return GazeVLMCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_hidden_states=output.image_hidden_states,
        )

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Beams of a sample get all its images in their order; one by one, as texts are, they would be mixed up."""
        images = {name: model_kwargs.pop(name) for name in IMAGE_INPUTS if model_kwargs.get(name) is not None}
        if images and expand_size > 1:
            placeholders = (input_ids == self.config.image_token_id).sum(1)
            count = len(next(iter(images.values())))
            counts = (placeholders * count // placeholders.sum().clamp(min=1)).tolist()
            if sum(counts) == count:  # otherwise forward says what does not fit
                for name, value in images.items():
                    images[name] = torch.cat([part for its in value.split(counts) for part in [its] * expand_size])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | images

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        pixel_values=None,
        fixations=None,
        fixation_mask=None,
        gaze=None,
        patch_tokens=None,
        is_first_iteration=False,
        **kwargs,
    ):
        """Images and gaze go in with the prompt; from then on they stand in the cache."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs.update(
                pixel_values=pixel_values,
                fixations=fixations,
                fixation_mask=fixation_mask,
                gaze=gaze,
                patch_tokens=patch_tokens,
            )
        return inputs


__all__ = ["GazeVLM", "GazeVLMCausalLMOutput", "GazeVLMModel", "GazeVLMModelOutput", "GazeVLMPreTrainedModel"]
