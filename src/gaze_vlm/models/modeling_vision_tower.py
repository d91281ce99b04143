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
"""One view of every vision tower: patch tokens in reading order, and the grid they lie on.

transformers' encoders give a sequence with class or register tokens in front, its Swin one of a smaller grid;
convolutional ones give a feature map with its channels in front, timm's Swin one with its channels behind.
"""

from math import ceil, log2

import torch
from torch import nn


def tower_width(vision_tower: nn.Module) -> int:
    """Channels of a tower's patch tokens."""
    if vision_tower.config.model_type == "timm_wrapper":
        return vision_tower.timm_model.num_features
    return getattr(vision_tower.config, "hidden_size", None) or vision_tower.config.hidden_sizes[-1]


def patch_tokens(vision_tower: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W), normalised by the tower's image processor -> patch tokens (N, rows, columns, C).

    Rows and columns are the tower's grid from the top left; class and register tokens are dropped.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
        raise ValueError(f"pixel_values must be (images, 3, height, width), got {tuple(pixel_values.shape)}")
    # the same values in an order in which convolutions on a CPU are a third faster
    pixel_values = pixel_values.to(vision_tower.dtype, memory_format=torch.channels_last)
    features = vision_tower(pixel_values).last_hidden_state
    if features.ndim == 4:
        width = tower_width(vision_tower)
        if features.shape[1] == width:
            return features.permute(0, 2, 3, 1)
        if features.shape[3] == width:
            return features
        raise ValueError(f"feature map {tuple(features.shape)} has no channel axis of the tower's width, {width}")
    patch_size = getattr(vision_tower.config, "patch_size", None) or vision_tower.timm_model.patch_embed.patch_size
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    height, width = pixel_values.shape[-2:]
    rows, columns = height // patch_height, width // patch_width
    tokens = features.shape[1]
    if tokens < rows * columns:
        rows, columns = _merged_grid(tokens, height / patch_height, width / patch_width)
    return features[:, tokens - rows * columns :].unflatten(1, (rows, columns))


def _merged_grid(tokens: int, rows: float, columns: float) -> tuple[int, int]:
    """The grid of a tower that halves its patches' rows and columns from stage to stage, filling up what is odd."""
    for stage in range(1, 2 + ceil(log2(max(rows, columns, 1)))):
        grid = ceil(rows / 2**stage), ceil(columns / 2**stage)
        if grid[0] * grid[1] == tokens:
            return grid
    raise ValueError(f"the tower's {tokens} tokens do not fit {rows:g} x {columns:g} patches, however often halved")
