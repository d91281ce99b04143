from types import SimpleNamespace

import pytest
from torch import nn

from gaze_vlm import GazeClassifierConfig
from gaze_vlm.training.curriculum import GazeWarmup


class Parallel(nn.parallel.DistributedDataParallel):
    """The wrapper without the processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.parametrize("wrap", [lambda model: model, Parallel], ids=["plain", "wrapped"])
def test_the_gaze_losses_are_faded_in(wrap):
    model = nn.Linear(1, 1)
    model.config = GazeClassifierConfig(gaze_warmup_steps=4)
    scales = []
    for step in (0, 1, 4, 9):
        GazeWarmup().on_step_begin(None, SimpleNamespace(global_step=step), None, model=wrap(model))
        scales.append(model.gaze_scale)
    assert scales == [0, 0.25, 1, 1]
