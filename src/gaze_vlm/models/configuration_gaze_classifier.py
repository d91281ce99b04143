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
    (Eyes on the Image, arXiv 2508.13068). The paper exists in two versions, [`~GazeClassifierConfig.contrastive`] and
    [`~GazeClassifierConfig.gaze_token`]; it leaves backbone, weights and label set open, and the defaults are ours.

    The findings are `id2label`, as everywhere in transformers. A loss of weight 0 is switched off.

    Args:
        vision_config (`dict | PreTrainedConfig`, *optional*): the vision tower; ViT by default, `timm_wrapper` for
            timm.
        text_config (`dict | PreTrainedConfig`, *optional*): encoder of finding texts and transcripts; None: none of
            them is read.
        attention (`str`): `"per_class"`: each finding attends for itself; `"shared"`: one map for all.
        projection_dim (`int`): width of the contrastive space.
        fusion_layers (`int`): transformer layers in which a gaze token, the patches and the transcript meet before
            the pooling; 0: there is no gaze token.
        fusion_size (`int`): their width, to which patches are brought down, and from which what they learn is brought
            back up and added.
        fusion_heads (`int`): their attention heads.
        fusion_dropout (`float`): dropout in them.
        gaze_input, box_input, transcript_input (`bool`): fixations, boxes and transcript are not only learned from
            but also read, where they are given.
        input_dropout (`float`): share of the samples that are trained without such an input, each input for itself,
            so that none is needed later.
        thresholds (`list[float]`, *optional*): probability from which a finding counts as present, one a label; 0.5 by
            default.
        temperature (`float`): probabilities are `sigmoid(logits / temperature)`.
        positive_weights (`list[float]`, *optional*): weight of each finding's positives in the loss; 1 by default.
        gaze_sigma (`float`): Gaussian of a fixation in the attention target, in fractions of the image's sides.
        gaze_loss_weight, box_loss_weight (`float`): attention against gaze and against boxes.
        text_loss_weight, region_loss_weight (`float`): contrastive losses, image with finding texts and image with
            the region that was looked at.
        mse_weight, kl_weight, pearson_weight, center_weight (`float`): terms of the attention loss.
        gaze_schedule (`str`): curriculum of what gaze and boxes teach: `"constant"`; `"grow"`: from nothing to its
            full weight; `"fade"`: from its full weight to nothing.
        gaze_schedule_share (`float`): share of the training that growing takes from its start, or fading to its end.
        trust_on_image (`bool`), trust_fixations (`int`, *optional*), trust_seconds (`float`, *optional*): a recording
            weighs less with fixations off the image, with fewer fixations and with fewer seconds than these.
        logit_scale_init (`float`): start of the contrastive log-temperature, ln(1/0.07) as in CLIP.
    """

    model_type = "gaze_classifier"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    attention: str = "per_class"
    projection_dim: int = 128
    fusion_layers: int = 0
    fusion_size: int = 256
    fusion_heads: int = 8
    fusion_dropout: float = 0.1
    gaze_input: bool = False
    box_input: bool = False
    transcript_input: bool = False
    input_dropout: float = 0.5
    thresholds: list[float] | None = None
    temperature: float = 1.0
    positive_weights: list[float] | None = None
    gaze_sigma: float = 0.06
    gaze_loss_weight: float = 1.0
    box_loss_weight: float = 1.0
    text_loss_weight: float = 0.1
    region_loss_weight: float = 0.1
    mse_weight: float = 1.0
    kl_weight: float = 1.0
    pearson_weight: float = 1.0
    center_weight: float = 1.0
    gaze_schedule: str = "constant"
    gaze_schedule_share: float = 0.3
    trust_on_image: bool = False
    trust_fixations: int | None = None
    trust_seconds: float | None = None
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
        for name, allowed in (("attention", ("per_class", "shared")), ("gaze_schedule", ("constant", "grow", "fade"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in (
            "temperature",
            "gaze_sigma",
            "trust_fixations",
            "trust_seconds",
            "fusion_heads",
            "projection_dim",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("fusion_layers", *(name for name in vars(self) if name.endswith("_weight"))):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("gaze_schedule_share", "input_dropout", "fusion_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("thresholds", "positive_weights"):
            values = getattr(self, name)
            if values is not None and len(values) != self.num_labels:
                raise ValueError(f"{name}: {len(values)}, labels: {self.num_labels}; one a label is needed")
        if self.positive_weights is not None and not min(self.positive_weights) > 0:
            raise ValueError(f"positive_weights must be above 0, got {min(self.positive_weights)}")
        if self.fusion_size % self.fusion_heads:
            raise ValueError(f"fusion_heads: {self.fusion_heads} do not divide fusion_size, {self.fusion_size}")
        if self.transcript_input and (self.text_config is None or not self.fusion_layers):
            raise ValueError("transcript_input needs a text_config, and fusion_layers in which it meets the patches")

    @classmethod
    def contrastive(cls, **overrides) -> "GazeClassifierConfig":
        """Version 1 of the paper: image, finding texts, boxes and fixations; attention loss of four terms and InfoNCE.
        Gaze and boxes are learned from and not read."""
        return cls(**{"text_config": {}, **overrides})

    @classmethod
    def gaze_token(cls, **overrides) -> "GazeClassifierConfig":
        """Version 2 of the paper: a gaze token fused with patches, box mask and transcript; the weight of the gaze
        loss grows over the training and is scaled by how far each recording is to be trusted."""
        second = {
            "text_config": {},
            "fusion_layers": 2,
            "gaze_input": True,
            "box_input": True,
            "transcript_input": True,
            "gaze_schedule": "grow",
            "trust_on_image": True,
            "trust_fixations": 10,
            "trust_seconds": 3.0,
            "text_loss_weight": 0.0,
            "region_loss_weight": 0.0,
        }
        return cls(**{**second, **overrides})

    def gaze_scale(self, progress: float) -> float:
        """Share of the attention losses that counts when a share of the training is over (0..1): the curriculum of
        Eyes on the Image, whose course is not published; linear here."""
        if self.gaze_schedule == "constant":
            return 1.0
        left = 1 - progress if self.gaze_schedule == "fade" else progress
        return min(1.0, left / self.gaze_schedule_share) if self.gaze_schedule_share else 1.0
