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
"""Processor of ScanpathPredictor: images and text in, scanpaths as plain records out."""

from transformers.processing_utils import ProcessorMixin


class ScanpathPredictorProcessor(ProcessorMixin):
    r"""
    Image processor (resized without keeping the aspect ratio, so that positions in 0..1 stay what they are) and the
    tokenizer of the language model, which pads on the right.
    """

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer)

    def post_process_scanpaths(self, samples) -> list[list[dict[str, list[float]]]]:
        """`ScanpathPredictor.predict`'s tensors -> plain records, see `scanpath_records`."""
        return scanpath_records(samples)


def scanpath_records(samples) -> list[list[dict[str, list[float]]]]:
    """Tensors `fixations` (B, N, S, 4) and `fixation_mask` (B, N, S) -> for each film a list of N scanpaths.

    A scanpath is `{"x": [...], "y": [...], "onset": [...], "duration": [...]}`: x, y in the image 0..1, seconds.
    """
    films = []
    for film, film_mask in zip(samples.fixations.float().cpu(), samples.fixation_mask.cpu(), strict=True):
        columns = [fixations[mask].T.tolist() for fixations, mask in zip(film, film_mask, strict=True)]
        films.append([dict(zip(("x", "y", "onset", "duration"), path, strict=True)) for path in columns])
    return films


__all__ = ["ScanpathPredictorProcessor"]
