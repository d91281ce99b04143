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
"""Processor of GazeVLM: images, text and gaze in; text and scanpaths out."""

import numpy as np
import torch
from transformers.processing_utils import ProcessorMixin


class GazeVLMProcessor(ProcessorMixin):
    r"""
    Image processor (resized without keeping the aspect ratio, so that positions in 0..1 stay what they are), tokenizer
    with an image placeholder, and padding of fixations.

    Args:
        num_image_tokens (`int`): visual-gaze tokens an image, each one placeholder in the text.
        image_token (`str`): the placeholder, a special token of the tokenizer.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens=49,
        image_token="<image>",
        chat_template=None,
        **kwargs,
    ):
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs, image_idx, **kwargs) -> str:
        return self.image_token * self.num_image_tokens

    def __call__(self, images=None, text=None, fixations=None, **kwargs):
        """As every processor of transformers, and:

        Args:
            fixations (`list`, *optional*): one scanpath an image, in the order of the images: an (n, 4) array of x, y
                in the image 0..1, onset and duration in seconds; a record `{"x", "y", "onset", "duration"}`; or None
                for an image without gaze. They come out as `fixations` (N, F, 4) and `fixation_mask` (N, F).
        """
        batch = super().__call__(images=images, text=text, **kwargs)
        if fixations is not None:
            batch["fixations"], batch["fixation_mask"] = pad_fixations(fixations)
        return batch

    def expand_image_tokens(self, text: str) -> str:
        """Each placeholder as often as an image has tokens, as `__call__` does to a text that comes with images."""
        return text.replace(self.image_token, self.image_token * self.num_image_tokens)

    @property
    def model_input_names(self):
        return [*super().model_input_names, "fixations", "fixation_mask"]


def pad_fixations(scanpaths) -> tuple[torch.Tensor, torch.Tensor]:
    """Scanpaths of different lengths (arrays, records or None) -> fixations (N, F, 4) and fixation_mask (N, F)."""
    arrays = []
    for number, scanpath in enumerate(scanpaths):
        if scanpath is None:
            scanpath = np.zeros((0, 4))
        elif isinstance(scanpath, dict):
            scanpath = np.stack([np.asarray(scanpath[name]) for name in ("x", "y", "onset", "duration")], axis=-1)
        array = np.asarray(scanpath, dtype=np.float32)
        if array.ndim != 2 or array.shape[1] != 4:
            raise ValueError(f"scanpath {number} must be (n, 4): x, y, onset, duration; got {array.shape}")
        arrays.append(torch.from_numpy(array))
    fixations = torch.zeros(len(arrays), max([1, *map(len, arrays)]), 4)
    mask = torch.zeros(fixations.shape[:2], dtype=torch.bool)
    for row, array in enumerate(arrays):
        fixations[row, : len(array)] = array
        mask[row, : len(array)] = True
    return fixations, mask


__all__ = ["GazeVLMProcessor", "pad_fixations"]
