"""Training of ScanpathPredictor in MedGaze's two stages: film to report, then film and text to scanpath."""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ..metrics.scanpath import edit_distance, multimatch_mean4, scanmatch
from ..models.modeling_scanpath_predictor import ScanpathPredictor, ScanpathSamples
from ..models.processing_scanpath_predictor import scanpath_records
from ..scanpath import Scanpath
from .parts_trainer import PartsTrainer, in_turn
from .scanpath_data import ScanpathCollator

STAGES = ("report", "gaze")
# what stands between the film and the language model; the paper's encoder
ENCODER = (
    "vision_norm",
    "vision_projection",
    "encoder",
    "encoder_norm",
    "query_tokens",
    "qformer",
    "text_projection",
)
METRICS = {"report": ("loss",), "gaze": ("loss", "scanmatch", "edit_distance", "multimatch")}


@dataclass
class ScanpathTrainingArguments(TrainingArguments):
    """`TrainingArguments` with MedGaze's optimisation as defaults: AdamW with three learning rates, no schedule, no
    clipping, batches of 32. The paper trains stage "gaze" for 1000 epochs; for stage "report" it tells nothing.

    Args:
        stage: "report" or "gaze".
        learning_rate: of the decoder and what belongs to it; in stage "report" of all that is trained.
        encoder_learning_rate: stage "gaze": of what comes before the decoder, and of the keep head.
        duration_learning_rate: stage "gaze": of the duration head.
    """

    stage: str = field(default="gaze", metadata={"help": "Stage to train.", "choices": STAGES})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Of the decoder; in stage report of all that is trained."}
    )
    encoder_learning_rate: float = field(
        default=1e-6, metadata={"help": "Stage gaze: of what comes before the decoder, and of the keep head."}
    )
    duration_learning_rate: float = field(default=2e-6, metadata={"help": "Stage gaze: of the duration head."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Second beta of AdamW."})
    adam_epsilon: float = field(default=1e-9, metadata={"help": "Epsilon of AdamW."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay of every trained parameter."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the learning rates."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Norm gradients are clipped to; 0: they are not."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Items of a batch on each device."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "The same in evaluation."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best one among them."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best model, not the last."})
    metric_for_best_model: str | None = field(
        default=None,
        metadata={"help": "loss; in stage gaze also scanmatch (default), edit_distance or multimatch."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be false: items are no columns."})

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {self.stage!r}")
        if self.metric_for_best_model is None:
            self.metric_for_best_model = "loss" if self.stage == "report" else "scanmatch"
        metric = self.metric_for_best_model.removeprefix("eval_")
        if not (metric in METRICS[self.stage] or metric.startswith("loss_")):
            raise ValueError(
                f"metric_for_best_model must be one of {', '.join(METRICS[self.stage])} in stage {self.stage}, or a "
                f"part of the loss such as loss_{'report' if self.stage == 'report' else 'position'}; got {metric!r}"
            )
        if self.greater_is_better is None:
            self.greater_is_better = metric in ("scanmatch", "multimatch")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be false: the collator needs all of an item")
        super().__post_init__()


def freeze_for_stage(model: ScanpathPredictor, stage: str) -> None:
    """Leave trainable what a stage trains.

    Stage "report": what stands between the film and the language model. Stage "gaze": that and the decoder with its
    heads. The vision tower is frozen in both, as in the paper, whose image features are computed beforehand. The
    language model is frozen where the configuration says so; where not, its output layer is trained in stage "report"
    only, for nothing else needs it.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}")
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        trained = stage == "gaze" or part in ENCODER
        if part in ("vision_tower", "language_model"):
            trained = part == "language_model" and not model.config.freeze_language_model
        parameter.requires_grad_(trained)
    head, embeddings = model.language_model.get_output_embeddings(), model.get_input_embeddings()
    if stage == "gaze" and head.weight is not embeddings.weight:
        head.requires_grad_(False)


def parameter_groups(
    model: ScanpathPredictor,
    stage: str,
    *,
    learning_rate: float = 1e-4,
    encoder_learning_rate: float = 1e-6,
    duration_learning_rate: float = 2e-6,
) -> list[dict]:
    """The trainable parameters with the paper's learning rates, each in one group.

    MedGaze's three optimisers are "tail" (decoder with the projection of its memory, slot queries, positions), "belly"
    (durations) and "head" (encoder, keep/stop). In stage "report", for which no rate is published, there is one group.

    Returns:
        `[{"name", "params", "lr"}, ...]`, the group of `learning_rate` first.
    """
    rates = {"decoder": learning_rate, "duration": duration_learning_rate, "encoder": encoder_learning_rate}
    if stage == "report":
        rates = {"encoder": learning_rate}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if parameter.requires_grad:
            slow = stage == "report" or part in {*ENCODER, "language_model", "keep_head"}
            groups["encoder" if slow else "duration" if part == "duration_head" else "decoder"].append(parameter)
    return [{"name": name, "params": members, "lr": rates[name]} for name, members in groups.items() if members]


class ScanpathTrainer(PartsTrainer):
    """The Trainer for both stages of a `ScanpathPredictor`; which one, `args.stage` says.

    - Loss: that of the model. Scanpath losses are means over samples. The report loss is one over tokens, and taken
      over those of all processes and accumulated batches, so that two processes train like one with batches of twice
      the size. That holds where the global batch divides the number of items; otherwise accelerate fills the last
      batch of an epoch up with items of its beginning.
    - Log: the loss's parts, as `loss_keep`, `loss_position` and so on.
    - Evaluation: loss and parts over all items, each counted once however many processes there are. In stage "gaze"
      also `scanmatch` (14 x 14 bins, threshold 3.5, no duration) and `multimatch` (mean of 4, over the pairs of which
      both paths have at least 3 fixations; `multimatch_defined` is their share), higher is better, and
      `edit_distance` (5 x 5 grid), lower is better, of the model's point estimates against the readers' scanpaths.
      Where a point estimate is a draw, an item's depends on the seed and the item's number alone.
    - `predict`: `predictions` and `label_ids` are lists of `Scanpath`, in the order of the items.

    Several processes: one a GPU, each with the whole model (`accelerate launch`, `torchrun`).

    Args:
        model: its parts are frozen as the stage demands.
        args: `ScanpathTrainingArguments`.
        train_dataset, eval_dataset: `ScanpathRows`, `ReportRows` or `MatchedReportRows`.
        processing_class: a `ScanpathPredictorProcessor`.
    """

    def __init__(self, model: ScanpathPredictor, args: ScanpathTrainingArguments, *, processing_class, **kwargs):
        freeze_for_stage(model, args.stage)
        kwargs.setdefault("data_collator", ScanpathCollator(processing_class.tokenizer.pad_token_id))
        super().__init__(model, args, processing_class=processing_class, **kwargs)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args = self.args
            kind, options = self.get_optimizer_cls_and_kwargs(args, self.model)
            groups = parameter_groups(
                self.model,
                args.stage,
                learning_rate=args.learning_rate,
                encoder_learning_rate=args.encoder_learning_rate,
                duration_learning_rate=args.duration_learning_rate,
            )
            self.optimizer = kind(groups, weight_decay=args.weight_decay, **options)
        return self.optimizer

    # ---- loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss, share = outputs.loss, 1 / self.current_gradient_accumulation_steps
        if num_items_in_batch is not None:  # tokens of all processes and accumulated batches
            share = (inputs["labels"] != -100).sum() / num_items_in_batch
            if self.args.average_tokens_across_devices:
                share = share * self.accelerator.num_processes
            loss = loss * share
        self.sum_parts(outputs.loss_parts, share)
        return (loss, outputs) if return_outputs else loss

    # ---- evaluation

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        model = self.model.eval()
        sums: dict[str, float] = {}
        paths: list[tuple[Scanpath, Scanpath]] = []
        numbers = iter(dataloader.dataset.indices)
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                outputs = model(**batch)
            weight = int((batch["labels"] != -100).sum()) if "labels" in batch else len(batch["input_ids"])
            parts = {f"loss_{name}": value for name, value in outputs.loss_parts.items()}
            for name, value in {"weight": 1.0, "loss": outputs.loss, **parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * weight
            if "fixations" in batch:
                given = ScanpathSamples(batch["fixations"][:, None], batch["fixation_mask"][:, None])
                predicted = self._predicted(batch, list(islice(numbers, len(batch["fixations"]))))
                paths += zip(predicted, scanpaths_of(given), strict=True)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        shares = gather_object([(sums, paths)])
        total = {name: sum(known.get(name, 0.0) for known, _ in shares) for name in sums or shares[0][0]}
        weight = total.pop("weight")
        metrics = {name: value / weight for name, value in total.items()}
        pairs = in_turn([known for _, known in shares])
        predictions, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if pairs:
            metrics |= scanpath_scores(predictions, references)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions, references, metrics, len(dataloader.dataset.dataset))

    def _predicted(self, batch: dict[str, torch.Tensor], numbers: Sequence[int]) -> list[Scanpath]:
        seen = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
        sample = self.model.config.point_estimate == "sample"
        seeds = [random.Random(f"{self.args.seed} {number}").getrandbits(63) for number in numbers]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds] if sample else None
        with self.accelerator.autocast():
            return scanpaths_of(self.model.predict(**seen, generator=generators))


def scanpaths_of(samples: ScanpathSamples) -> list[Scanpath]:
    """The first scanpath of each film."""
    return [Scanpath.from_records(paths[0]) for paths in scanpath_records(samples)]


def scanpath_scores(predictions: Sequence[Scanpath], references: Sequence[Scanpath]) -> dict[str, float]:
    """Means of `scanmatch`, `edit_distance` and `multimatch`, see `ScanpathTrainer`."""
    matched = multimatch_mean4(predictions, references)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN where none is defined
        multimatch = float(np.nanmean(matched))
    return {
        "scanmatch": float(scanmatch(predictions, references).mean()),
        "edit_distance": float(edit_distance(predictions, references).mean()),
        "multimatch": multimatch,
        "multimatch_defined": float((~np.isnan(matched)).mean()),
    }
