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
"""Configuration of GazeClassifier."""

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig


@strict
class GazeClassifierConfig(PreTrainedConfig):
    r"""
    Configuration of a [`GazeClassifier`]: a finding classifier whose attention is supervised by gaze or boxes
    (Eyes on the Image, arXiv 2508.13068). The paper leaves backbone, weights and label set open; the defaults here are
    ours.

    The findings are `id2label`, as everywhere in transformers.

    Args:
        vision_config (`dict | PreTrainedConfig`, *optional*): the vision tower; ViT by default, `timm_wrapper` for
            timm.
        text_config (`dict | PreTrainedConfig`, *optional*): encoder of finding texts for the contrastive loss; None:
            no such loss.
        attention (`str`): `"per_class"`: each finding attends for itself; `"shared"`: one map for all.
        projection_dim (`int`): width of the contrastive space.
        thresholds (`list[float]`, *optional*): probability from which a finding counts as present, one a label; 0.5 by
            default.
        temperature (`float`): probabilities are `sigmoid(logits / temperature)`.
        gaze_sigma (`float`): Gaussian of a fixation in the attention target, in fractions of the image's sides.
        gaze_loss_weight, box_loss_weight, contrastive_loss_weight (`float`): weights beside the classification loss.
        mse_weight, kl_weight, pearson_weight, center_weight (`float`): terms of the attention loss.
        gaze_warmup_steps (`int`): training steps over which the gaze loss grows from 0 to its full weight.
        logit_scale_init (`float`): start of the contrastive log-temperature, ln(1/0.07) as in CLIP.
    """

    model_type = "gaze_classifier"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    attention: str = "per_class"
    projection_dim: int = 128
    thresholds: list[float] | None = None
    temperature: float = 1.0
    gaze_sigma: float = 0.06
    gaze_loss_weight: float = 1.0
    box_loss_weight: float = 1.0
    contrastive_loss_weight: float = 0.1
    mse_weight: float = 1.0
    kl_weight: float = 1.0
    pearson_weight: float = 1.0
    center_weight: float = 1.0
    gaze_warmup_steps: int = 0
    logit_scale_init: float = 2.6592
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = {}
        for name, default in (("vision_config", "vit"), ("text_config", "bert")):
            sub = getattr(self, name)
            if isinstance(sub, dict):
                setattr(self, name, CONFIG_MAPPING[sub.get("model_type", default)](**sub))
        super().__post_init__(**kwargs)
        if self.attention not in ("per_class", "shared"):
            raise ValueError(f'attention must be "per_class" or "shared", got {self.attention!r}')
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.thresholds is not None and len(self.thresholds) != self.num_labels:
            raise ValueError(f"thresholds: {len(self.thresholds)}, labels: {self.num_labels}; one a label is needed")

    def gaze_scale(self, step: int) -> float:
        """Share of the gaze loss that counts at a training step: the curriculum of Eyes on the Image, linear here."""
        return min(1.0, step / self.gaze_warmup_steps) if self.gaze_warmup_steps else 1.0
