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
"""Layers of ScanpathPredictor: attention, transformer layer, and what tells places apart."""

import math

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_scanpath_predictor import ScanpathPredictorConfig


class Attention(nn.Module):
    """Multi-head attention of queries (B, S, D) over context (B, T, D).

    The mask (B, T) is True where the context is real.
    """

    def __init__(self, config: ScanpathPredictorConfig, decodes: bool):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.decoder_dropout if decodes else config.dropout
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
    """Pre-norm transformer layer.

    With `cross`, as in the decoder, it also attends to a memory (B, T, D); several scanpaths in a row (B * K, S, D)
    then look at the same one.
    """

    def __init__(self, config: ScanpathPredictorConfig, cross: bool):
        super().__init__()
        self.self_attention = Attention(config, cross)
        self.self_norm = nn.LayerNorm(config.hidden_size)
        self.cross_attention = Attention(config, cross) if cross else None
        self.cross_norm = nn.LayerNorm(config.hidden_size) if cross else None
        self.feed_norm = nn.LayerNorm(config.hidden_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.decoder_dropout if cross else config.dropout)

    def forward(self, states, memory=None, memory_mask=None):
        normed = self.self_norm(states)
        states = states + self.dropout(self.self_attention(normed, normed))
        if self.cross_attention is not None:
            normed = self.cross_norm(states).reshape(len(memory), -1, states.shape[-1])
            attended = self.cross_attention(normed, memory, memory_mask)
            states = states + self.dropout(attended.reshape(states.shape))
        fed = self.down_proj(nn.functional.gelu(self.up_proj(self.feed_norm(states))))
        return states + self.dropout(fed)


def waves(places: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines (n, 2 * (width // 2)) of places (n,) from 0 to 1, from half a period up to 32."""
    frequency = 2 * math.pi * 2 ** torch.linspace(-1, 5, width // 2, device=places.device)
    angle = places[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def grid_encoding(rows: int, columns: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Sines of row and column of a grid (rows, columns, width), places 0..1; device and dtype are those of `like`."""
    y, x = ((torch.arange(size, device=like.device) + 0.5) / size for size in (rows, columns))
    y = waves(y, width // 2)[:, None].expand(-1, columns, -1)
    x = waves(x, width // 2)[None].expand(rows, -1, -1)
    encoding = torch.cat([y, x], dim=-1)
    return nn.functional.pad(encoding, (0, width - encoding.shape[-1])).to(like.dtype)


def sequence_encoding(length: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Sines of the place in a sequence (length, width), periods from 4 to 40,000 places, as in the transformer."""
    period = 4 * 10 ** torch.linspace(0, 4, width // 2, device=like.device)
    angle = 2 * math.pi * torch.arange(length, device=like.device)[:, None] / period
    encoding = torch.cat([angle.sin(), angle.cos()], dim=-1)
    return nn.functional.pad(encoding, (0, width - encoding.shape[-1])).to(like.dtype)
