"""Training of GazeClassifier: with gaze, with boxes, with both, with neither."""

import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ..metrics.classification import auroc, average_precision, calibration_error, threshold_scores
from ..metrics.grounding import map_iou, map_peaks, pointing_game
from .averaging import AveragedWeights
from .calibration import choose_thresholds, fit_temperature
from .classifier_data import ClassifierCollator
from .curriculum import GazeCurriculum
from .parts_trainer import PartsTrainer, in_turn

MIN_POSITIVES = 5  # below a handful of positives a finding's AUROC is mostly chance


@dataclass
class ClassifierTrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for fine-tuning a pretrained tower; the paper tells none.

    Args:
        mixup: alpha of the Beta distribution that films of a batch are mixed by, two and two, with their labels (Zhang
            et al., ICLR 2018); the heavier film's gaze and boxes go with the mixture. 0: they are not.
        average_decay: share of the old average kept at each step in an exponential average of the weights, which is
            what is kept in the end (`AveragedWeights`); 0: the last weights are kept.
    """

    learning_rate: float = field(default=3e-4, metadata={"help": "Of all weights."})
    weight_decay: float = field(default=0.02, metadata={"help": "Weight decay of matrices."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=30, metadata={"help": "Steps in which the learning rate grows."})
    num_train_epochs: float = field(default=10, metadata={"help": "Epochs."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Items of a batch on each device."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "The same in evaluation."})
    mixup: float = field(default=0.0, metadata={"help": "Alpha of mixup; 0: films are not mixed."})
    average_decay: float = field(default=0.99, metadata={"help": "Of the weights' average, which is kept; 0: none."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be false: items are no columns."})

    def __post_init__(self):
        if self.mixup < 0:
            raise ValueError(f"mixup must be at least 0, got {self.mixup}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be at least 0 and below 1, got {self.average_decay}")
        if self.average_decay and self.load_best_model_at_end:
            raise ValueError("load_best_model_at_end keeps one checkpoint, average_decay an average: set one of them")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be false: the collator needs all of an item")
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True  # a loss that is switched off leaves weights without gradient
        super().__post_init__()


class Predictions(NamedTuple):
    """What a model says of the items of a data set, in their order.

    Args:
        logits: (n, C) float32.
        labels: (n, C) 1, 0 or NaN where unknown.
        attention: (n, C or 1, rows, columns) float32.
    """

    logits: np.ndarray
    labels: np.ndarray
    attention: np.ndarray


class ClassifierTrainer(PartsTrainer):
    """The Trainer for a `GazeClassifier`.

    - Loss: that of the model; losses are means over the samples of a batch that have something to learn from.
    - Training: the curriculum of `config.gaze_schedule`, and an average of the weights.
    - Evaluation: `loss` (binary cross-entropy alone), and `classifier_scores`. `predict` gives `Predictions`.

    Args:
        model: a `GazeClassifier`.
        args: `ClassifierTrainingArguments`.
        train_dataset, eval_dataset: `ClassifierRows`.
        processing_class: a `GazeClassifierProcessor`.
    """

    def __init__(self, model, args: ClassifierTrainingArguments, *, processing_class, **kwargs):
        kwargs.setdefault("data_collator", ClassifierCollator(processing_class, model.config))
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        self.model_accepts_loss_kwargs = False  # `labels` are no tokens, by whose number the Trainer would divide
        self.add_callback(GazeCurriculum())
        if args.average_decay:
            self.add_callback(AveragedWeights(args.average_decay))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**(mixed(inputs, self.args.mixup) if self.args.mixup and model.training else inputs))
        self.sum_parts(outputs.loss_parts)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        model, own = self.model.eval(), []
        for batch in dataloader:
            seen = {name: batch[name] for name in ("pixel_values",)}
            with self.accelerator.autocast():
                outputs = model(**self._prepare_inputs(seen))
            values = (outputs.logits, batch["labels"], outputs.attention)
            own += zip(*(value.float().cpu().numpy() for value in values), strict=True)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        rows = in_turn(gather_object([own]))
        predictions = Predictions(*map(np.stack, zip(*rows, strict=True)))
        dataset = dataloader.dataset.dataset
        scores = classifier_scores(predictions, dataset.boxes, model.config)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        return EvalLoopOutput(predictions, predictions.labels, metrics, len(dataset))


def mixed(batch: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """A batch in which each film is laid over another one, and weighs more than half; so do its labels.

    A label is unknown where either is. Only `pixel_values` and `labels` change.
    """
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    weight = max(weight, 1 - weight)
    other = torch.randperm(len(batch["labels"])).to(batch["labels"].device)
    names = ("pixel_values", "labels")
    return batch | {name: weight * batch[name] + (1 - weight) * batch[name][other] for name in names}


def classifier_scores(predictions: Predictions, boxes, config) -> dict[str, float]:
    """The numbers of an evaluation; NaN where none is defined.

    `loss` (cross-entropy of known labels in nats), `auroc` and `average_precision` (means over the findings with at
    least 5 positives and a negative), `f1` (mean over the same, at `config.thresholds`), `calibration_error` (the
    same, 15 bins); over the findings of films with boxes `pointing_game` and `attention_iou` (`metrics.grounding`).

    Args:
        boxes: of each item, (box, number of its label) each.
        config: of the model.
    """
    scores = finding_scores(predictions, config)
    attended = boxed_cases(predictions.attention, boxes)
    if attended:
        maps, reference = np.stack([case[0] for case in attended]), [case[1] for case in attended]
        scores["pointing_game"] = float(pointing_game(map_peaks(maps), reference).mean())
        scores["attention_iou"] = float(map_iou(maps, reference).mean())
    return scores


def finding_scores(predictions: Predictions, config) -> dict[str, float]:
    logits, labels = predictions.logits.astype(np.float64), predictions.labels
    known = ~np.isnan(labels)
    probabilities = 1 / (1 + np.exp(-logits / config.temperature))
    thresholds = config.thresholds or [0.5] * logits.shape[1]
    losses = np.logaddexp(0, logits / config.temperature) - np.where(known, labels, 0) * logits / config.temperature
    found: dict[str, list[float]] = {name: [] for name in ("auroc", "average_precision", "f1", "calibration_error")}
    for number in range(logits.shape[1]):
        there = known[:, number]
        truth, score = labels[there, number, None] == 1, probabilities[there, number, None]
        if truth.sum() < MIN_POSITIVES or truth.all():
            continue
        found["auroc"].append(auroc(truth, score)[0])
        found["average_precision"].append(average_precision(truth, score)[0])
        found["f1"].append(threshold_scores(truth, score, thresholds[number]).f1[0])
        found["calibration_error"].append(calibration_error(truth, score)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN where none is defined
        return {"loss": float(losses[known].mean()), **{name: float(np.mean(one)) for name, one in found.items()}}


def boxed_cases(attention: np.ndarray, boxes) -> list[tuple[np.ndarray, list[list[float]], int]]:
    """Each finding of each film that has boxes: its attention (rows, columns), its boxes, the film's number."""
    cases = []
    for number, known in enumerate(boxes):
        for label in sorted({label for _, label in known}):
            of_finding = attention[number, label if attention.shape[1] > 1 else 0]
            cases.append((of_finding, [box for box, its in known if its == label], number))
    return cases


def calibrate(
    config, predictions: Predictions, rule: str = "f1", frequency: np.ndarray | None = None
) -> dict[str, float]:
    """Put temperature and thresholds into a model's config, from what it says of validation cases.

    Args:
        rule, frequency: see `choose_thresholds`.

    Returns:
        `calibration_error` and `loss` before and after, on these very cases.
    """
    config.temperature, config.thresholds = 1.0, None
    before = finding_scores(predictions, config)
    config.temperature = fit_temperature(predictions.logits, predictions.labels)
    probabilities = 1 / (1 + np.exp(-predictions.logits.astype(np.float64) / config.temperature))
    config.thresholds = choose_thresholds(probabilities, predictions.labels, rule, frequency)
    after = finding_scores(predictions, config)
    return {
        f"{name}_{when}": scores[name]
        for name in ("calibration_error", "loss")
        for when, scores in (("before", before), ("after", after))
    }
