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
"""How the models go to the Hub."""

import importlib


class HubMixin:
    """`push_to_hub` with everything that belongs to a checkpoint: processor, code and card."""

    def push_to_hub(self, repo_id: str, processor=None, card=None, **options) -> str:
        """What `gaze_vlm.hub.push_to_hub` does; that package must be installed."""
        hub = importlib.import_module("gaze_vlm.hub")
        return hub.push_to_hub(self, repo_id, processor=processor, card=card, **options)


__all__ = ["HubMixin"]
