"""What changes from step to step while a model trains."""

from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback


class GazeCurriculum(TrainerCallback):
    """Weighs what gaze and boxes teach a `GazeClassifier` as its `config.gaze_schedule` says, at every step."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model = extract_model_from_parallel(model)
        model.gaze_scale = model.config.gaze_scale(state.global_step / state.max_steps)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        extract_model_from_parallel(model).gaze_scale = 1.0
