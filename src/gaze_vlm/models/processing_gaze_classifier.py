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
"""Processor of GazeClassifier: images in, findings with probability, presence and attended box out."""

import torch
from transformers.processing_utils import ProcessorMixin


class GazeClassifierProcessor(ProcessorMixin):
    r"""
    Image processor (resized without keeping the aspect ratio, so that positions in 0..1 stay what they are) and the
    tokenizer of finding texts.
    """

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer)

    def __call__(self, images=None, text=None, **kwargs):
        """Images -> `pixel_values`; texts -> `finding_text` and `finding_text_mask`."""
        batch = super().__call__(images=images, text=text, **kwargs)
        if "input_ids" in batch:
            batch["finding_text"] = batch.pop("input_ids")
            batch["finding_text_mask"] = batch.pop("attention_mask")
        return batch

    def post_process_findings(self, outputs, config) -> list[list[dict]]:
        """Model outputs -> for each image one record a finding, in the order of `config.id2label`.

        Records are `{"name", "probability", "present", "box"}`: probability 0..1, box `[x1, y1, x2, y2]` in 0..1
        around the cells that hold at least half of the finding's highest attention.
        """
        probabilities = (outputs.logits.float() / config.temperature).sigmoid()
        thresholds = config.thresholds or [0.5] * config.num_labels
        attention = outputs.attention.float().expand(-1, config.num_labels, -1, -1)
        rows, columns = attention.shape[-2:]
        attended = attention >= 0.5 * attention.amax((-2, -1), keepdim=True)
        batch = []
        for row, attended_row in zip(probabilities.tolist(), attended, strict=True):
            records = []
            for label, probability in enumerate(row):
                y, x = torch.nonzero(attended_row[label], as_tuple=True)
                box = [x.min() / columns, y.min() / rows, (x.max() + 1) / columns, (y.max() + 1) / rows]
                records.append(
                    {
                        "name": config.id2label[label],
                        "probability": probability,
                        "present": probability >= thresholds[label],
                        "box": [round(float(value), 4) for value in box],
                    }
                )
            batch.append(records)
        return batch


__all__ = ["GazeClassifierProcessor"]
