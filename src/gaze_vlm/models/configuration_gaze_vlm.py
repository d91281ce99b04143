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
"""Configuration of GazeVLM."""

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_scanpath_predictor import ScanpathPredictorConfig

GAZE_SOURCES = ("given", "predicted", "none")
GRAPH_CONVOLUTIONS = ("max_relative", "gatv2", "transformer", "edge")
GRAPH_EDGES = ("feature", "grid", "saccade")


@strict
class GazeVLMConfig(PreTrainedConfig):
    r"""
    Configuration of a [`GazeVLM`] (Gaze2Report, arXiv 2604.08600; tasks of GazeX, arXiv 2604.14316). The papers leave
    vision size, graph depth and language model open; where Vision GNN gives a number (9 neighbours) it is taken.

    Args:
        vision_config (`dict | PreTrainedConfig`, *optional*): the vision tower; ViT by default, `timm_wrapper` for
            timm.
        text_config (`dict | PreTrainedConfig`, *optional*): the causal language model; Llama by default.
        scanpath_config (`dict | PreTrainedConfig`, *optional*): a `ScanpathPredictor` inside, for `gaze="predicted"`.
            Without a `vision_config` of its own it reads the patch tokens of this model's tower.
        scanpath_image_size (`int`, *optional*): a predictor with a tower of its own may want other films than this
            model: of so many pixels a side,
        scanpath_pixel_scale, scanpath_pixel_shift (`list[float]`, *optional*): and `pixel * scale + shift` channel by
            channel.
        gaze (`str`): where gaze comes from when none is passed: `"predicted"` or `"none"`. `"given"`: it must be
            passed.
        tasks (`list[str]`): what the checkpoint was trained for, names of `gaze_vlm.tasks`.
        image_token_id (`int`): the placeholder that stands once for each visual-gaze token.
        merge_size (`int`): side of the square of patches that become one token.
        graph_hidden_size, num_graph_layers (`int`): of the visual-gaze graph.
        graph_neighbors (`int`): nearest patches in feature space that each patch is joined to.
        graph_dilation (`int`): 1 joins it to the nearest ones, d to every d-th of `d * graph_neighbors`.
        graph_convolution (`str`): `"max_relative"` (Vision GNN), or `"gatv2"`, `"transformer"`, `"edge"` of
            torch-geometric.
        graph_edges (`list[str]`): kinds of edges: `"feature"` (nearest patches), `"grid"` (neighbours), `"saccade"`.
        fixation_nodes (`bool`): fixations are nodes of their own, joined to the patch they lie on; saccades then join
            these nodes instead of patches.
        tie_word_embeddings (`bool`, *optional*): whether the language model's head is its embedding; by default as
            `text_config` says.
    """

    model_type = "gaze_vlm"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "scanpath_config": ScanpathPredictorConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    scanpath_config: dict | PreTrainedConfig | None = None
    scanpath_image_size: int | None = None
    scanpath_pixel_scale: list[float] | None = None
    scanpath_pixel_shift: list[float] | None = None
    gaze: str = "none"
    tasks: list[str] | None = None
    image_token_id: int = 0
    merge_size: int = 1
    graph_hidden_size: int = 256
    num_graph_layers: int = 2
    graph_neighbors: int = 9
    graph_dilation: int = 1
    graph_convolution: str = "max_relative"
    graph_edges: list[str] | None = None
    fixation_nodes: bool = False
    dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        for name, default in (("vision_config", "vit"), ("text_config", "llama")):
            sub = getattr(self, name) or {}
            if isinstance(sub, dict):
                setattr(self, name, CONFIG_MAPPING[sub.get("model_type", default)](**sub))
        if isinstance(self.scanpath_config, dict):
            self.scanpath_config = ScanpathPredictorConfig(**self.scanpath_config)
        self.tasks = self.tasks or ["report"]
        self.graph_edges = list(GRAPH_EDGES) if self.graph_edges is None else self.graph_edges
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)
        if self.gaze not in GAZE_SOURCES:
            raise ValueError(f"gaze must be one of {', '.join(GAZE_SOURCES)}; got {self.gaze!r}")
        if self.gaze == "predicted" and self.scanpath_config is None:
            raise ValueError('gaze="predicted" needs a scanpath_config')
        for name in ("merge_size", "graph_neighbors", "graph_dilation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.graph_convolution not in GRAPH_CONVOLUTIONS:
            known = ", ".join(GRAPH_CONVOLUTIONS)
            raise ValueError(f"graph_convolution must be one of {known}; got {self.graph_convolution!r}")
        if not set(self.graph_edges) <= set(GRAPH_EDGES):
            raise ValueError(f"graph_edges must be among {', '.join(GRAPH_EDGES)}; got {self.graph_edges}")
        if self.graph_convolution in ("gatv2", "transformer") and self.graph_hidden_size % 4:
            raise ValueError(
                f"graph_hidden_size must be a multiple of the 4 heads of {self.graph_convolution}, got "
                f"{self.graph_hidden_size}"
            )
