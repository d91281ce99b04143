from types import SimpleNamespace

import pytest
from torch import nn

from gaze_vlm import GazeClassifierConfig
from gaze_vlm.training.curriculum import GazeCurriculum


class Parallel(nn.parallel.DistributedDataParallel):
    """The wrapper without the processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.parametrize("wrap", [lambda model: model, Parallel], ids=["plain", "wrapped"])
@pytest.mark.parametrize(
    ("schedule", "share", "expected"),
    [
        ("constant", 0.5, [1, 1, 1, 1]),
        ("grow", 0.5, [0, 0.5, 1, 1]),
        ("fade", 0.5, [1, 1, 1, 0.25]),
        ("grow", 1.0, [0, 0.25, 0.5, 0.875]),
    ],
)
def test_what_gaze_and_boxes_teach_follows_the_schedule_and_is_whole_again_in_the_end(schedule, share, expected, wrap):
    model = nn.Linear(1, 1)
    model.config = GazeClassifierConfig(gaze_schedule=schedule, gaze_schedule_share=share)
    scales = []
    for step in (0, 2, 4, 7):
        state = SimpleNamespace(global_step=step, max_steps=8)
        GazeCurriculum().on_step_begin(None, state, None, model=wrap(model))
        scales.append(model.gaze_scale)
    assert scales == pytest.approx(expected)
    GazeCurriculum().on_train_end(None, state, None, model=wrap(model))
    assert model.gaze_scale == 1
