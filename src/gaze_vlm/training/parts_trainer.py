"""What the trainers of ScanpathPredictor and GazeClassifier share."""

from collections.abc import Iterable, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import Trainer

from .epochs import DrawAnew, DrawnRows


class PartsTrainer(Trainer):
    """The Trainer for models whose loss has parts, one process a GPU, each with the whole model.

    - Log: the parts, as `loss_NAME`, their means since the last log.
    - Evaluation: every item is seen once, however many processes there are (`in_turn` puts their shares in order).
    - Training data that are `DrawnRows` are drawn anew in each epoch.
    """

    def __init__(self, model, args, **kwargs):
        super().__init__(model, args, **kwargs)
        if args.n_gpu > 1:
            raise ValueError(f"one process sees {args.n_gpu} GPUs; start one a GPU: accelerate launch")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("each process must hold the whole model: no FSDP, no DeepSpeed")
        if isinstance(self.train_dataset, DrawnRows):
            self.add_callback(DrawAnew(self.train_dataset))
        self._summed: dict[str, torch.Tensor] = {}

    # ---- checkpoints: save_pretrained may name weights otherwise than the model does (those of a ViT, say), and what
    # the Trainer itself does, load them by name and let be what does not fit, would lose those without an error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self.model.load_state_dict(type(self.model).from_pretrained(resume_from_checkpoint).state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    # ---- loss

    def sum_parts(self, parts: dict[str, torch.Tensor], share: float | torch.Tensor = 1.0) -> None:
        """Parts of a loss for the next log; `share` is what they weigh of a step."""
        for name, value in {"share": torch.ones(()), **parts}.items():
            self._summed[name] = self._summed.get(name, 0) + value.detach().to(self.args.device) * share

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._summed:
            names = sorted(self._summed)
            summed = torch.stack([self._summed[name].float() for name in names])
            summed = dict(zip(names, self.accelerator.reduce(summed, "sum").tolist(), strict=True))
            share = summed.pop("share")
            logs |= {f"loss_{name}": value / share for name, value in summed.items()}
            self._summed = {}
        super().log(logs, start_time)

    # ---- evaluation

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        return self._loader(self.eval_dataset if eval_dataset is None else eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        return self._loader(test_dataset)

    def _loader(self, dataset: Dataset) -> DataLoader:
        """This process's share of a data set: every item is in one process's, and there once."""
        share = range(self.args.process_index, len(dataset), self.args.world_size)
        return DataLoader(
            Subset(dataset, share),
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            generator=torch.Generator(),  # a loader draws seeds for its workers: not from what training draws from
        )


def in_turn(shares: Iterable[Sequence]) -> list:
    """Items dealt out to processes one by one, in their order again."""
    shares = list(shares)
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]
