import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("trl", reason='training needs trl: pip install "gaze2report[train]"')

from transformers import AutoProcessor, EvalPrediction, set_seed

from gaze_vlm import GazeVLM, GazeVLMConfig
from gaze_vlm.training.adapters import load_adapter, lora_config
from gaze_vlm.training.sft_data import GazeVLMCollator, SftRows
from gaze_vlm.training.sft_trainer import GazeSFTConfig, GazeSFTTrainer, prompts_of, text_metrics


@pytest.fixture
def make_model(tiny_bundle):
    """The tiny GazeVLM without dropout, with large enough weights for every path to matter."""

    def make(**changes):
        config = GazeVLMConfig.from_pretrained(tiny_bundle / "gaze_vlm", initializer_range=0.2, **changes)
        config.text_config.dropout, config.text_config.init_std = 0.0, 0.2
        set_seed(0)
        return GazeVLM(config)

    return make


@pytest.fixture
def vlm_processor(tiny_bundle):
    return AutoProcessor.from_pretrained(tiny_bundle / "gaze_vlm")


@pytest.fixture
def trainer(make_model, vlm_processor, make_rows, tmp_path):
    """`trainer(rows=8, gaze=..., model=..., **settings)`."""

    def make(rows=8, *, gaze=None, model=None, evaluate=True, trainer_options=None, **settings):
        quick = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": False,
            "use_cpu": True,
            "bf16": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
            "max_steps": 2,
        }
        data = make_rows(rows)
        known = {"tasks": {"report": 1}, "gaze": gaze or {"given": 1}}
        return GazeSFTTrainer(
            model or make_model(),
            GazeSFTConfig(**(quick | settings)),
            train_rows=SftRows(data, **known),
            eval_rows=SftRows(data, **known, training=False) if evaluate else None,
            processing_class=vlm_processor,
            **(trainer_options or {}),
        )

    return make


def test_fixations_reach_the_graph_as_they_were_recorded(trainer):
    one = trainer()
    seen = []
    graph = one.model.model.visual_gaze_graph
    graph.register_forward_pre_hook(lambda _, args: seen.append(args[1:]))
    one.train()
    recorded = {path.tobytes() for row in one.train_dataset for path in row["fixations"]}
    reached = set()
    for fixations, mask in seen:
        assert fixations.shape[0] == 4 and mask.any(1).all()
        reached |= {row[kept].numpy().tobytes() for row, kept in zip(fixations, mask, strict=True)}
    assert len(seen) == 2 and reached == recorded and len(recorded) == 8


def test_the_loss_is_the_models_own_and_depends_on_gaze(trainer):
    one, none = trainer(), trainer(gaze={"none": 1})
    batch = next(iter(one.get_eval_dataloader()))
    with torch.no_grad():
        own = one.model.eval()(**batch).loss
    torch.testing.assert_close(one.evaluate()["eval_loss"], own.item(), atol=1e-4, rtol=1e-4)
    assert abs(one.evaluate()["eval_loss"] - none.evaluate()["eval_loss"]) > 1e-4


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_trained_moves_and_nothing_else(trainer, make_model, lora):
    model = make_model()
    options = {"peft_config": lora_config(model, r=2)} if lora else {}
    one = trainer(model=model, gaze={"given": 1, "none": 1}, trainer_options=options)
    before = {name: value.detach().clone() for name, value in one.model.named_parameters()}
    one.train()
    moved = {name for name, value in one.model.named_parameters() if not torch.equal(value, before[name])}

    def is_trained(name):
        if "original_module" in name:
            return False
        if "visual_gaze_graph" in name or "multi_modal_projector" in name:
            return True
        return "lora_" in name if lora else not ("vision_tower" in name or "scanpath_predictor" in name)

    still = {name for name in before if is_trained(name)} - moved
    assert moved <= {name for name in before if is_trained(name)}
    assert not {name for name in still if not name.endswith("k_proj.bias")}
    assert not any(one.model.base_model.modules and "scanpath_predictor" in name for name in moved)


def test_accumulated_batches_train_like_one_large_one(trainer):
    large = trainer(max_steps=1, per_device_train_batch_size=4)
    small = trainer(max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    large.train()
    small.train()
    assert small.state.log_history[0]["loss"] == pytest.approx(large.state.log_history[0]["loss"], rel=1e-5)
    for (name, one), other in zip(large.model.named_parameters(), small.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_evaluation_writes_texts_and_scores_them(trainer, vlm_processor):
    one = trainer(
        predict_with_generate=True,
        generation_max_new_tokens=6,
        per_device_eval_batch_size=3,
        trainer_options={"compute_metrics": text_metrics(vlm_processor)},
    )
    metrics = one.evaluate()
    assert {"eval_macro_f1", "eval_micro_f1", "eval_exact_match", "eval_loss"} <= metrics.keys()
    written = one.predict(one.eval_dataset).predictions
    collator = GazeVLMCollator(vlm_processor, completion_only_loss=True)
    for place, row in enumerate(one.eval_dataset):
        batch = collator([row])
        prompt = prompts_of(batch, 0)
        alone = one.model.generate(**prompt, max_new_tokens=6, min_new_tokens=1, do_sample=False)
        expected = alone[0, prompt["input_ids"].shape[1] :].tolist()
        got = [token for token in written[place].tolist() if token > 0]
        assert got == [token for token in expected if token > 0]


def test_a_perfect_writer_scores_one(vlm_processor):
    texts = ["There is a large right pleural effusion.", "The lungs are clear."]
    ids = vlm_processor.tokenizer([text + "<|end|>" for text in texts], padding=True, return_tensors="np")["input_ids"]
    labels = np.where(ids == vlm_processor.tokenizer.pad_token_id, -100, ids)
    scores = text_metrics(vlm_processor)(EvalPrediction(predictions=ids, label_ids=labels))
    assert scores == {"macro_f1": 1.0, "micro_f1": 1.0, "exact_match": 1.0}
    wrong = text_metrics(vlm_processor)(EvalPrediction(predictions=ids[::-1], label_ids=labels))
    assert wrong["macro_f1"] == 0 and wrong["exact_match"] == 0


def test_prompts_are_the_batch_without_answers_padded_on_the_left(trainer, vlm_processor, make_rows, make_row):
    long = {
        "findings": "Clear.",
        "impression": None,
        "indication": "A very long story of a cough.",
        "comparison": None,
    }
    rows = SftRows(
        make_rows(make_row(0, report=long), make_row(1)),
        tasks={"report": 1},
        gaze={"given": 1},
        context={"indication": 1},
    )
    batch = GazeVLMCollator(vlm_processor, completion_only_loss=True)([rows.draw(0), rows.draw(1)])
    prompts = prompts_of(batch, vlm_processor.tokenizer.pad_token_id)
    for number in range(2):
        ids = prompts["input_ids"][number][prompts["attention_mask"][number].bool()]
        messages = rows.draw(number)["prompt"]
        text = vlm_processor.expand_image_tokens(
            vlm_processor.apply_chat_template(messages, add_generation_prompt=True)
        )
        assert ids.tolist() == vlm_processor.tokenizer(text)["input_ids"]
    assert prompts["attention_mask"][1, 0] == 0 and prompts["attention_mask"][:, -1].tolist() == [1, 1]


@pytest.mark.parametrize("lora", [False, True])
def test_a_stopped_run_that_goes_on_ends_with_the_same_weights(trainer, make_model, tmp_path, lora):
    def run(folder, **settings):
        model = make_model(dropout=0.1)  # random numbers are resumed too
        options = {"peft_config": lora_config(model, r=2)} if lora else {}
        one = trainer(
            model=model,
            gaze={"given": 1, "none": 1},
            output_dir=str(tmp_path / folder),
            max_steps=6,
            save_strategy="steps",
            save_steps=3,
            eval_strategy="steps",
            eval_steps=2,
            trainer_options=options,
        )
        one.train(**settings)
        return one.model.state_dict()

    whole = run("whole")
    resumed = run("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_best_checkpoint_is_loaded_whole(trainer, tmp_path):
    one = trainer(
        max_steps=4,
        learning_rate=0.5,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        save_total_limit=2,
        freeze_vision_tower=False,
    )
    one.train()
    losses = [entry["eval_loss"] for entry in one.state.log_history if "eval_loss" in entry]
    best = f"checkpoint-{int(np.argmin(losses)) + 1}"
    assert one.state.best_model_checkpoint.endswith(best)
    saved = GazeVLM.from_pretrained(one.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in one.model.state_dict().items())
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert len(kept) == 2 and best in kept


def test_what_is_saved_is_a_small_adapter_that_loads_on_its_base(trainer, make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "base")
    model = GazeVLM.from_pretrained(tmp_path / "base")
    one = trainer(model=model, trainer_options={"peft_config": lora_config(model, r=2)})
    one.train()
    one.save_model()
    one.create_model_card()
    folder = tmp_path / "run"
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert all("lora_" in name or "visual_gaze_graph" in name or "multi_modal_projector" in name for name in names)
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))
    settings = json.loads((folder / "training_args.json").read_text())
    assert settings["learning_rate"] == 1e-2 and "output_dir" not in settings
    card = (folder / "README.md").read_text()
    assert "no medical device" in card and str(tmp_path) not in card
    batch = next(iter(one.get_eval_dataloader()))
    with torch.no_grad():
        expected = one.model.eval()(**batch).logits
        got = load_adapter(folder).eval()(**batch).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("remove_unused_columns", True), ("packing", True)])
def test_settings_that_would_lose_gaze_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must be false"):
        GazeSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: value})


def test_gradient_checkpointing_trains_the_same(trainer):
    plain, saving = trainer(), trainer(gradient_checkpointing=True)
    plain.train()
    saving.train()
    assert saving.model.is_gradient_checkpointing
    for (name, one), other in zip(plain.model.named_parameters(), saving.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_bfloat16_trains_near_float32(trainer):
    full, half = trainer(max_steps=4), trainer(max_steps=4, bf16=True)
    full.train()
    half.train()
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (full, half)]
    assert {value.dtype for value in half.model.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
