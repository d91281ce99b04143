"""Averaged weights for the Trainer."""

import os

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback


class AveragedWeights(TrainerCallback):
    """Exponential moving average of all weights and buffers, put into the model when training ends.

    The average travels with the Trainer's checkpoints, so a resumed run ends where an uninterrupted one does. The
    Trainer does not tell its callbacks which checkpoint it resumed from: it is `args.resume_from_checkpoint` where
    that is a folder, else the one of this step in `args.output_dir`.

    Args:
        decay: share of the old average kept at each step; early steps use less, so that the start is forgotten.
    """

    FILE = "averaged_weights.safetensors"

    def __init__(self, decay: float = 0.99):
        self.decay = decay
        self.average: dict[str, torch.Tensor] | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.average = None
        if state.global_step:
            folder = str(args.resume_from_checkpoint)
            if not os.path.isdir(folder):
                folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
            path = os.path.join(folder, self.FILE)
            if not os.path.isfile(path):
                raise FileNotFoundError(
                    f"{path} is missing: resume from a checkpoint written with AveragedWeights; one outside "
                    "output_dir must be named in TrainingArguments(resume_from_checkpoint=...)"
                )
            self.average = load_file(path, device=str(args.device))

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        weights = model.state_dict()
        if self.average is None:
            self.average = {name: value.detach().clone() for name, value in weights.items()}
            return
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for name, value in weights.items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def on_save(self, args, state, control, **kwargs):
        if not args.should_save:
            return
        path = os.path.join(args.output_dir, f"checkpoint-{state.global_step}", self.FILE)
        save_file(self.average, f"{path}.part")
        os.replace(f"{path}.part", path)  # whole or not there

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.average is not None:
            model.load_state_dict(self.average)
