"""What changes from step to step while a model trains."""

from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback


class GazeWarmup(TrainerCallback):
    """Fades the gaze losses of a `GazeClassifier` in over the first `config.gaze_warmup_steps` steps."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model = extract_model_from_parallel(model)
        model.gaze_scale = model.config.gaze_scale(state.global_step)
