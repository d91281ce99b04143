"""Training data that are drawn anew in each epoch."""

from transformers import TrainerCallback


class DrawAnew(TrainerCallback):
    """Tells the training data which epoch it is, by their `set_epoch`.

    accelerate's loaders do so only for some samplers, and not when several processes share the batches.
    """

    def __init__(self, data):
        self.data = data

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.data.set_epoch(int(state.epoch or 0))
