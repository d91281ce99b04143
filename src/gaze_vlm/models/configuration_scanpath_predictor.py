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
"""Configuration of ScanpathPredictor."""

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig


@strict
class ScanpathPredictorConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ScanpathPredictor`] (MedGaze, arXiv 2407.00129; Sci Rep 15:13685).

    Args:
        vision_config (`dict | PreTrainedConfig`, *optional*): the vision tower; ViT by default, `timm_wrapper` for
            timm.
        vision_width (`int`, *optional*): channels of the patch tokens of a model that lends its vision tower; with it
            and without `vision_config` the predictor has no tower and reads `patch_tokens`.
        qformer_config (`dict | PreTrainedConfig`, *optional*): the Q-Former; `encoder_hidden_size` follows
            `hidden_size`.
        text_config (`dict | PreTrainedConfig`, *optional*): the causal language model that reads [queries ; text].
        freeze_language_model (`bool`): the paper's setting.
        hidden_size, intermediate_size, num_attention_heads (`int`): of encoder and decoder.
        num_encoder_layers, num_decoder_layers (`int`): 6 and 6 in the paper.
        num_query_tokens (`int`): Q-Former queries, 32 in the paper.
        max_fixations (`int`): slots of the decoder, 50 in the paper.
        num_strategies (`int`): ways of reading that are held apart: the output is a mixture over whole scanpaths. 1 is
            MedGaze.
        start_at_center (`bool`): fixation 0 is the image's centre, as in MedGaze and GazeSearch.
        regression_loss (`str`): `"l1"` (the paper) or `"nll"` (Gaussian negative log-likelihood).
        keep_loss_weight, position_loss_weight, duration_loss_weight (`float`): 1 in the paper.
        point_estimate (`str`): `"mean"` of the likeliest strategy, or `"consensus"`: a scanpath of its own, trained to
            be as much as possible like every reader's (expected ScanMatch similarity), where a mean would collapse to
            the centre.
        consensus_loss_weight (`float`): weight of its loss.
        dropout (`float`): in encoder and decoder.
    """

    model_type = "scanpath_predictor"
    sub_configs = {"vision_config": AutoConfig, "qformer_config": AutoConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    vision_width: int | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    freeze_language_model: bool = True
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_attention_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    num_query_tokens: int = 32
    max_fixations: int = 50
    num_strategies: int = 1
    start_at_center: bool = True
    regression_loss: str = "l1"
    keep_loss_weight: float = 1.0
    position_loss_weight: float = 1.0
    duration_loss_weight: float = 1.0
    point_estimate: str = "mean"
    consensus_loss_weight: float = 1.0
    dropout: float = 0.1
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if self.vision_config is None and self.vision_width is None:
            self.vision_config = {}
        if self.qformer_config is None:
            self.qformer_config = {}
        if isinstance(self.qformer_config, dict):
            self.qformer_config = {**self.qformer_config, "encoder_hidden_size": self.hidden_size}
        if self.text_config is None:
            self.text_config = {}
        for name, default in (
            ("vision_config", "vit"),
            ("qformer_config", "blip_2_qformer"),
            ("text_config", "llama"),
        ):
            sub = getattr(self, name)
            if isinstance(sub, dict):
                setattr(self, name, CONFIG_MAPPING[sub.get("model_type", default)](**sub))
        super().__post_init__(**kwargs)
        for name, allowed in (("regression_loss", ("l1", "nll")), ("point_estimate", ("mean", "consensus"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in ("max_fixations", "num_strategies", "num_query_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
