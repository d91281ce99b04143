"""Supervised fine-tuning of a GazeVLM: TRL's SFTTrainer, to which gaze is brought."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import EvalPrediction
from trl import SFTConfig, SFTTrainer

from ..findings import FINDINGS
from ..hub import forget_folder, public_name
from ..labeler import label
from ..metrics.reports import label_f1
from ..metrics.vqa import exact_match
from ..models.modeling_gaze_vlm import GazeVLM
from .adapters import BASE_FILE, TRAINED_IN_FULL, base_samples
from .epochs import DrawAnew
from .sft_data import GazeVLMCollator, SftRows

PRIVATE = ("output_dir", "hub_token", "resume_from_checkpoint", "logging_dir")  # of the machine it ran on
CARD = """---
library_name: {library}
pipeline_tag: image-text-to-text
tags: [chest-x-ray, gaze, radiology-report, gaze_vlm, sft]
{base}---
# {name}

A `GazeVLM` (Gaze2Report: film and gaze, through a graph, into a language model), fine-tuned with TRL's SFTTrainer and
gaze_vlm. **It is no medical device and must not be used for care.**

Last evaluation, step {step}:

{table}

Settings are in `training_args.json`.
"""


@dataclass
class GazeSFTConfig(SFTConfig):
    """TRL's SFTConfig, with what differs for films and gaze.

    Args:
        freeze_vision_tower: whether the vision tower stays as it is.
        predict_with_generate: whether evaluation writes texts, which `compute_metrics` then gets as token ids.
        generation_max_new_tokens: longest of them.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (R2GenGPT's)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a sample is cut to; what cuts off an image is an error."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be false: gaze is such a column."})
    hub_strategy: str = field(default="end", metadata={"help": "When to push, where pushing is asked for."})
    freeze_vision_tower: bool = field(default=True, metadata={"help": "Leave the vision tower as it is."})
    predict_with_generate: bool = field(default=False, metadata={"help": "Write texts in evaluation and score them."})
    generation_max_new_tokens: int = field(default=128, metadata={"help": "Longest text written in evaluation."})

    def __post_init__(self):
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be false: gaze is a column that TRL does not know")
        if self.packing:
            raise ValueError("packing must be false: samples with films cannot be packed")
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and not self.fp16
        super().__post_init__()


class GazeSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer for a GazeVLM: fixations reach the model, and evaluation may write texts.

    All of SFTTrainer works: `peft_config`, gradient accumulation and checkpointing, resuming, several processes,
    pushing to the Hub. Two processes train like one with batches of twice the size, as the loss is one over tokens;
    that of evaluation is, as the Trainer has it, a mean over batches, and moves a little with their size.

    Args:
        model: a GazeVLM.
        args: `GazeSFTConfig`.
        train_rows: `SftRows`.
        eval_rows: `SftRows`, or several by name.
        processing_class: its `GazeVLMProcessor`.
    """

    def __init__(
        self,
        model: GazeVLM,
        args: GazeSFTConfig,
        *,
        train_rows: SftRows,
        eval_rows: SftRows | Mapping[str, SftRows] | None = None,
        processing_class,
        **kwargs,
    ):
        model.model.vision_tower.requires_grad_(not args.freeze_vision_tower)
        if args.predict_with_generate and args.distributed_state.distributed_type in ("FSDP", "DEEPSPEED"):
            raise ValueError("predict_with_generate: no text can be written while the weights are shared out")
        if not (args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3):  # which wants one dtype
            for name in TRAINED_IN_FULL:  # AdamW's steps are too small for half precision
                getattr(model.model, name).float()
            if not args.freeze_vision_tower:
                model.model.vision_tower.float()
        self._base_samples = base_samples(model)  # while each process holds all of it
        self.eval_rows = eval_rows
        eval_dataset = eval_rows.dataset() if isinstance(eval_rows, SftRows) else None
        if isinstance(eval_rows, Mapping):
            eval_dataset = {name: rows.dataset() for name, rows in eval_rows.items()}
        super().__init__(
            model,
            args,
            train_dataset=train_rows.dataset(),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=GazeVLMCollator(processing_class, max_length=args.max_length, completion_only_loss=True),
            **kwargs,
        )
        self.add_callback(DrawAnew(train_rows))

    # ---- evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """With `predict_with_generate` the loss, the written tokens (B, new) and the labels (B, T), -100 where the
        prompt or nothing stands."""
        if prediction_loss_only or not self.args.predict_with_generate:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        loss, _, _ = super().prediction_step(model, inputs, True)
        inputs = self._prepare_inputs(inputs)
        prompts = prompts_of(inputs, self._tokenizer.pad_token_id)
        with torch.no_grad(), self.compute_loss_context_manager():
            written = self.accelerator.unwrap_model(model).generate(
                **prompts,
                max_new_tokens=self.args.generation_max_new_tokens,
                min_new_tokens=1,
                do_sample=False,
                use_cache=True,
            )
        return loss, written[:, prompts["input_ids"].shape[1] :], inputs["labels"]

    # ---- checkpoints: save_pretrained may name weights otherwise than the model does (those of a ViT, say), and what
    # the Trainer itself does, load them by name and let be what does not fit, would lose those without an error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self._is_whole():
            self.model.load_state_dict(GazeVLM.from_pretrained(resume_from_checkpoint).state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._is_whole():
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _is_whole(self) -> bool:
        """Whether each process holds the whole model, and no adapter."""
        return not (isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # transformers calls this on every process
            return
        folder = Path(output_dir or self.args.output_dir)
        if isinstance(self.model, PeftModel):
            save_file(self._base_samples, folder / BASE_FILE)
            if self.args.push_to_hub:
                forget_folder(folder / "adapter_config.json")
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing reads
        settings = {name: value for name, value in self.args.to_dict().items() if name not in PRIVATE}
        (folder / "training_args.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """What it is, what it is not, and what was measured."""
        if not self.is_world_process_zero():
            return
        evaluations = [entry for entry in self.state.log_history if any(name.startswith("eval_") for name in entry)]
        last = evaluations[-1] if evaluations else {}
        rows = [f"| {name} | {value:.4g} |" for name, value in sorted(last.items()) if name.startswith("eval_")]
        base = ""
        if isinstance(self.model, PeftModel):
            name = self.model.peft_config["default"].base_model_name_or_path or ""
            base = f"base_model: {public_name(name)}\n"
        card = CARD.format(
            library="peft" if base else "transformers",
            base=base,
            name=model_name or Path(self.args.output_dir).name,
            step=last.get("step", self.state.global_step),
            table="\n".join(["| metric | value |", "| --- | --- |", *rows]) if rows else "none",
        )
        Path(self.args.output_dir, "README.md").write_text(card)


def prompts_of(batch: dict[str, torch.Tensor], pad: int) -> dict[str, torch.Tensor]:
    """A batch of the collator without its answers, padded on the left."""
    first = (batch["labels"] != -100).int().argmax(1).tolist()
    texts = [ids[:end].flip(0) for ids, end in zip(batch["input_ids"], first, strict=True)]
    ids = pad_sequence(texts, batch_first=True, padding_value=pad).flip(1)
    lengths = torch.tensor(first, device=ids.device)[:, None]
    mask = torch.arange(ids.shape[1], 0, -1, device=ids.device)[None] <= lengths
    images = {name: batch[name] for name in ("pixel_values", "fixations", "fixation_mask") if name in batch}
    return {"input_ids": ids, "attention_mask": mask.long(), **images}


def text_metrics(processor) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` for written texts.

    `macro_f1`, `micro_f1` of CheXpert's 14 findings that the labeler reads in them, against those in the references
    (what is only possible counts as absent), and `exact_match`: the share of texts equal to theirs, as answers to
    questions are compared. All 0..1, higher is better.
    """
    pad = processor.tokenizer.pad_token_id

    def decode(ids: np.ndarray) -> list[str]:
        texts = processor.batch_decode(np.where(ids < 0, pad, ids), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        written, expected = decode(prediction.predictions), decode(prediction.label_ids)
        found = ([label(text).positive() for text in texts] for texts in (written, expected))
        scores = label_f1(*found, FINDINGS)
        return {
            "macro_f1": scores.macro_f1,
            "micro_f1": scores.micro_f1,
            "exact_match": float(exact_match(written, expected).mean()),
        }

    return compute
