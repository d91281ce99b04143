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

CHOICES = {
    "language_model_input": ("queries_and_text", "text"),
    "memory_positions": ("sequence", "grid"),
    "distribution": ("normal", "log_normal", "none"),
    "regression_loss": ("l1", "nll"),
    "termination": ("first_stop", "expected_length"),
    "point_estimate": ("sample", "mean", "consensus"),
}


@strict
class ScanpathPredictorConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ScanpathPredictor`] (MedGaze, arXiv 2407.00129; Sci Rep 15:13685).

    Three presets: [`~ScanpathPredictorConfig.medgaze`] (the paper), [`~ScanpathPredictorConfig.medgaze_plus`] (what we
    hold to be better) and [`~ScanpathPredictorConfig.nano`] (what the embedded checkpoint is).

    Args:
        vision_config (`dict | PreTrainedConfig`, *optional*): the vision tower; ViT by default, `timm_wrapper` for
            timm.
        vision_width (`int`, *optional*): channels of the patch tokens of a model that lends its vision tower; with it
            and without `vision_config` the predictor has no tower and reads `patch_tokens`.
        freeze_vision_tower (`bool`): the paper's setting.
        qformer_config (`dict | PreTrainedConfig`, *optional*): the Q-Former; `encoder_hidden_size` follows
            `hidden_size`.
        text_config (`dict | PreTrainedConfig`, *optional*): the causal language model; with no layers
            (`num_hidden_layers=0`) only its token embeddings are left.
        freeze_language_model (`bool`): the paper's setting.
        language_model_input (`str`): `"queries_and_text"`: the language model reads the film's queries and behind them
            the text (the paper); `"text"`: the text alone, so that its states belong to no film, can be kept
            (`get_text_states`) and are not needed at all where there is no text. Film and text then meet in the
            decoder.
        text_max_length (`int`, *optional*): text tokens that are read, 32 in the paper; the rest is cut off.
            By default all of them are, and text beyond the language model's positions is an error.
        hidden_size, intermediate_size, num_attention_heads (`int`): of encoder and decoder.
        num_encoder_layers, num_decoder_layers (`int`): 6 and 6 in the paper.
        num_query_tokens (`int`): Q-Former queries, 32 in the paper.
        memory_positions (`str`): what tells the decoder's memory tokens apart: `"sequence"`, their place in
            [queries ; text], or `"grid"`, sines of rows and columns of a square grid that is laid over as many as
            there can be, `num_query_tokens` and `text_max_length`, as in the paper's code, where 32 and 32 happen to
            be as many as 8 x 8 patches.
        image_memory (`bool`): whether the decoder also sees the encoder's patches, not only what the queries took.
        max_fixations (`int`): slots of the decoder, 50 in the paper.
        num_strategies (`int`): ways of reading that are held apart: the output is a mixture over whole scanpaths. 1 is
            MedGaze.
        start_at_center (`bool`): fixation 0 is the image's centre, as in MedGaze and GazeSearch: its place is given,
            not learned. Where a recorded scanpath begins anywhere, training puts that fixation in front
            (`Scanpath.with_centre`).
        distribution (`str`): of a fixation: `"normal"` in x, y and duration (the paper), `"log_normal"`: of the
            duration its logarithm is, as in readers, or `"none"`: a deterministic model.
        noise_rank (`int`): directions of noise that all fixations of a scanpath share, so that a draw is off as a
            whole, as a reader is; once for positions, once for durations. 0 (the paper): each fixation on its own.
        regression_loss (`str`): `"l1"` of a drawn scanpath (the paper; of the mean outside training) or `"nll"`
            (negative log-likelihood).
        keep_loss_weight, position_loss_weight, duration_loss_weight (`float`): 1 in the paper.
        termination (`str`): where a scanpath that is not drawn ends: `"first_stop"`, before the first fixation that
            is likelier absent (the paper), or `"expected_length"`, after as many as are expected.
        point_estimate (`str`): what `predict` gives when nothing is said: `"sample"`, a draw, as the paper's code
            does; `"mean"` of the likeliest strategy; `"consensus"`: a scanpath of its own, trained to be as much as
            possible like every reader's (expected ScanMatch similarity), where a mean would collapse to the centre.
        consensus_loss_weight (`float`): weight of its loss.
        dropout, decoder_dropout, head_dropout (`float`): in the encoder, in the decoder and on its memory, and before
            the heads; 0.1, 0.2 and 0.4 in the paper.
    """

    model_type = "scanpath_predictor"
    sub_configs = {"vision_config": AutoConfig, "qformer_config": AutoConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    vision_width: int | None = None
    freeze_vision_tower: bool = False
    qformer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    freeze_language_model: bool = True
    language_model_input: str = "queries_and_text"
    text_max_length: int | None = None
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_attention_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    num_query_tokens: int = 32
    memory_positions: str = "sequence"
    image_memory: bool = False
    max_fixations: int = 50
    num_strategies: int = 1
    start_at_center: bool = True
    distribution: str = "normal"
    noise_rank: int = 0
    regression_loss: str = "l1"
    keep_loss_weight: float = 1.0
    position_loss_weight: float = 1.0
    duration_loss_weight: float = 1.0
    termination: str = "first_stop"
    point_estimate: str = "mean"
    consensus_loss_weight: float = 1.0
    dropout: float = 0.1
    decoder_dropout: float = 0.1
    head_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    @classmethod
    def medgaze(cls, **overrides) -> "ScanpathPredictorConfig":
        """The paper's dimensions and choices, as its code has them: ResNet-50 at 256 pixels (8 x 8 patches), OPT-2.7b.

        Ours all the same: layers normalise first (its six post-norm layers need a warm-up that it has not), GELU for
        ReLU, padding of the text is masked, and the Q-Former is transformers'.
        """
        paper = {
            "vision_config": {"model_type": "resnet"},
            "freeze_vision_tower": True,
            "qformer_config": {},
            "text_config": {
                "model_type": "opt",
                "hidden_size": 2560,
                "word_embed_proj_dim": 2560,
                "ffn_dim": 10240,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
            },
            "text_max_length": 32,
            "hidden_size": 1408,
            "intermediate_size": 1408,
            "memory_positions": "grid",
            "point_estimate": "sample",
            "decoder_dropout": 0.2,
            "head_dropout": 0.4,
        }
        return cls(**{**paper, **overrides})

    @classmethod
    def medgaze_plus(cls, **overrides) -> "ScanpathPredictorConfig":
        """MedGaze with all of the text, the patches themselves in the decoder's memory, likelihoods instead of L1,
        several strategies with shared noise, and a point estimate that is trained to be one."""
        better = {
            "text_max_length": None,
            "language_model_input": "text",
            "memory_positions": "sequence",
            "image_memory": True,
            "num_strategies": 16,
            "distribution": "log_normal",
            "noise_rank": 6,
            "regression_loss": "nll",
            "termination": "expected_length",
            "point_estimate": "consensus",
            "consensus_loss_weight": 30.0,  # against a likelihood over three numbers a fixation
            "decoder_dropout": 0.1,
            "head_dropout": 0.0,
        }
        return cls.medgaze(**{**better, **overrides})

    @classmethod
    def nano(cls, **overrides) -> "ScanpathPredictorConfig":
        """[`~ScanpathPredictorConfig.medgaze_plus`], small enough to be embedded: GazeSearch's seven fixations, a
        language model of two layers."""
        small = {
            "vision_config": {"model_type": "timm_wrapper", "architecture": "tf_efficientnet_lite0"},
            "qformer_config": {
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 256,
            },
            "text_config": {
                "model_type": "opt",
                "hidden_size": 128,
                "word_embed_proj_dim": 128,
                "ffn_dim": 512,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 256,
            },
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_encoder_layers": 1,
            "num_decoder_layers": 3,
            "num_query_tokens": 8,
            "max_fixations": 7,
            "decoder_dropout": 0.0,  # with readers of one finding learned together it underfits before it overfits
        }
        return cls.medgaze_plus(**{**small, **overrides})

    def __post_init__(self, **kwargs):
        if self.vision_config is None and self.vision_width is None:
            self.vision_config = {}
        if self.qformer_config is None:
            self.qformer_config = {}
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
        self.qformer_config.encoder_hidden_size = self.hidden_size
        super().__post_init__(**kwargs)
        self._check()

    def _check(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in ("max_fixations", "num_strategies", "num_query_tokens", "text_max_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.memory_positions == "grid" and self.text_max_length is None:
            raise ValueError(
                "memory_positions 'grid' is laid over num_query_tokens and text_max_length; set the latter"
            )
        if self.noise_rank < 0:
            raise ValueError(f"noise_rank must be at least 0, got {self.noise_rank}")
        if self.distribution == "none" and (self.noise_rank or self.regression_loss == "nll"):
            raise ValueError(
                "distribution 'none' has neither noise nor a likelihood; "
                f"got noise_rank {self.noise_rank} and regression_loss {self.regression_loss!r}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
