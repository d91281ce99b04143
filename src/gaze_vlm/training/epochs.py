"""Training data that are drawn anew in each epoch."""

import random

import torch
from transformers import TrainerCallback


class DrawnRows:
    """Data whose draws depend on `seed`, the epoch and a key such as the item's number, and on nothing else: neither
    on the process nor on the order in which items are asked for."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # a DataLoader's workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self._epoch.fill_(epoch)

    def rng(self, *key) -> random.Random:
        return random.Random(" ".join(map(str, (self.seed, int(self._epoch), *key))))


class DrawAnew(TrainerCallback):
    """Tells the training data which epoch it is, by their `set_epoch`.

    accelerate's loaders do so only for some samplers, and not when several processes share the batches.
    """

    def __init__(self, data):
        self.data = data

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.data.set_epoch(int(state.epoch or 0))
