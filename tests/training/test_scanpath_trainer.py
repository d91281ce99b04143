"""Both stages of ScanpathPredictor's training: what is trained and how fast, what is measured, what is kept."""

import json
import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

pytest.importorskip("datasets", reason='needs datasets: pip install "gaze2report[train]"')

from gaze_vlm import ScanpathPredictor
from gaze_vlm.metrics.scanpath import edit_distance, multimatch_mean4, scanmatch
from gaze_vlm.scanpath import Scanpath
from gaze_vlm.training.parts_trainer import in_turn
from gaze_vlm.training.scanpath_data import ReportRows, ScanpathCollator, ScanpathRows
from gaze_vlm.training.scanpath_trainer import (
    ENCODER,
    ScanpathTrainer,
    ScanpathTrainingArguments,
    freeze_for_stage,
    parameter_groups,
    scanpath_scores,
)

# what nothing depends on: the tower's pooler, and the weight of a strategy where there is one (of several, a shift)
UNUSED = r"strategy_head"
QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
WITHOUT_EVALUATION = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture
def items(make_rows, processor):
    def make(model, stage, count=8, **options):
        if stage == "report":
            return ReportRows(make_rows(count), processor, model.config, **options)
        return ScanpathRows(make_rows(count), processor, model.config, **{"text": {"report": 1}, **options})

    return make


@pytest.fixture
def make_trainer(items, processor, tmp_path):
    def make(model, stage="gaze", train=None, evaluated=None, callbacks=None, **options):
        options = QUIET | ({} if evaluated is not None else WITHOUT_EVALUATION) | options
        return ScanpathTrainer(
            model,
            ScanpathTrainingArguments(**{"output_dir": str(tmp_path / "out"), "stage": stage, **options}),
            processing_class=processor,
            train_dataset=items(model, stage) if train is None else train,
            eval_dataset=evaluated,
            callbacks=callbacks,
        )

    return make


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def moved(before, model):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# ---- what is trained


@pytest.mark.parametrize("stage", ["report", "gaze"])
@pytest.mark.parametrize("frozen", [True, False])
def test_what_a_stage_trains(stage, frozen, make_model):
    model = make_model(freeze_language_model=frozen)
    freeze_for_stage(model, stage)
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    every = {name.split(".")[0] for name, _ in model.named_parameters()} - {"vision_tower", "language_model"}
    expected = {*ENCODER} if stage == "report" else every
    assert trained == expected | (set() if frozen else {"language_model"})
    freeze_for_stage(model, "gaze")
    freeze_for_stage(model, stage)
    again = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert again == trained, "what an earlier stage froze is trained again"


@pytest.mark.parametrize("frozen", [True, False])
def test_every_trained_parameter_is_in_one_group(frozen, make_model):
    for stage in ("report", "gaze"):
        model = make_model(freeze_language_model=frozen)
        freeze_for_stage(model, stage)
        grouped = [parameter for group in parameter_groups(model, stage) for parameter in group["params"]]
        assert len({id(parameter) for parameter in grouped}) == len(grouped)
        assert {id(one) for one in grouped} == {id(one) for one in model.parameters() if one.requires_grad}


def test_the_papers_learning_rates(make_model):
    model = make_model()
    freeze_for_stage(model, "gaze")
    names = {id(parameter): name.split(".")[0] for name, parameter in model.named_parameters()}
    rates = {}
    for group in parameter_groups(model, "gaze"):
        for parameter in group["params"]:
            rates.setdefault(names[id(parameter)], set()).add(group["lr"])
    assert all(len(known) == 1 for known in rates.values())
    rates = {name: known.pop() for name, known in rates.items()}
    assert {name for name, rate in rates.items() if rate == 1e-6} == {*ENCODER, "keep_head"}
    assert {name for name, rate in rates.items() if rate == 2e-6} == {"duration_head"}
    assert {"decoder", "position_head", "slot_queries"} <= {name for name, rate in rates.items() if rate == 1e-4}
    freeze_for_stage(model, "report")
    assert [group["lr"] for group in parameter_groups(model, "report")] == [1e-4]


def test_the_optimiser_is_the_papers(make_model, make_trainer):
    optimizer = make_trainer(make_model()).create_optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "decoder": 1e-4,
        "duration": 2e-6,
        "encoder": 1e-6,
    }
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.98), 1e-9, 1e-4)


@pytest.mark.parametrize("stage", ["report", "gaze"])
@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_trained_moves_and_nothing_else(stage, frozen, make_model, make_trainer):
    model = make_model(freeze_language_model=frozen)
    before = weights(model)
    rates = dict.fromkeys(("learning_rate", "encoder_learning_rate", "duration_learning_rate"), 1e-2)
    make_trainer(model, stage, max_steps=2, **rates).train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tied = {name for name in before if name.endswith("lm_head.weight")} & moved(before, model)
    assert {name for name in trained if not re.search(UNUSED, name)} <= moved(before, model)
    assert moved(before, model) <= trained | tied


def test_a_frozen_tower_keeps_its_batch_statistics(make_model, make_trainer):
    pytest.importorskip("timm")
    from transformers import TimmWrapperConfig

    model = make_model(vision_config=TimmWrapperConfig(architecture="test_efficientnet"))
    assert any(name.endswith("running_mean") for name in model.state_dict())
    before, modes = weights(model), set()
    for name, module in model.vision_tower.named_modules():
        module.register_forward_hook(lambda one, *_, name=name: modes.add((name, one.training)))
    make_trainer(model, max_steps=2).train()
    assert not any(name.startswith("vision_tower") for name in moved(before, model))
    assert modes and not any(training for _, training in modes), "no dropout either"


def test_a_stage_that_is_none_is_refused(make_model):
    with pytest.raises(ValueError, match="stage must be one of report, gaze"):
        freeze_for_stage(make_model(), "both")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stage": "two"}, "stage must be one of"),
        ({"stage": "report", "metric_for_best_model": "scanmatch"}, "must be one of loss in stage report"),
        ({"metric_for_best_model": "accuracy"}, "got 'accuracy'"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
    ],
)
def test_wrong_arguments_are_refused(options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        ScanpathTrainingArguments(output_dir=str(tmp_path), **QUIET, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("scanmatch", True)),
        ({"stage": "report"}, ("loss", False)),
        ({"metric_for_best_model": "edit_distance"}, ("edit_distance", False)),
        ({"metric_for_best_model": "eval_multimatch"}, ("eval_multimatch", True)),
        ({"metric_for_best_model": "loss_position"}, ("loss_position", False)),
    ],
)
def test_which_model_is_best(options, expected, tmp_path):
    arguments = ScanpathTrainingArguments(output_dir=str(tmp_path), **QUIET, **options)
    assert (arguments.metric_for_best_model, arguments.greater_is_better) == expected


# ---- loss


def losses(trainer, name="loss"):
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.parametrize("stage", ["report", "gaze"])
def test_the_loss_falls(stage, make_model, make_trainer):
    rates = dict.fromkeys(("learning_rate", "encoder_learning_rate", "duration_learning_rate"), 3e-3)
    trainer = make_trainer(make_model(freeze_language_model=False), stage, max_steps=15, **rates)
    trainer.train()
    assert losses(trainer)[-1] < 0.9 * losses(trainer)[0]


def test_parts_of_the_loss_are_logged(make_model, make_trainer):
    trainer = make_trainer(make_model(), max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trainer.train()
    parts = np.sum([losses(trainer, f"loss_{name}") for name in ("keep", "position", "duration")], axis=0)
    np.testing.assert_allclose(parts, losses(trainer), rtol=1e-4)
    assert len(set(losses(trainer, "loss_keep"))) == 3, "of these steps, not of all so far"


@pytest.mark.parametrize("stage", ["report", "gaze"])
def test_accumulated_batches_train_like_one(stage, make_model, make_trainer, items, make_rows, make_row, processor):
    """Reports of different lengths: a mean of the batches' means would be another number."""
    runs = []
    sections = {"impression": None, "indication": None, "comparison": None}
    rows = make_rows(*(
        make_row(n, report={"findings": "The heart is normal in size. " * (1 + 3 * (n % 3)), **sections})
        for n in range(8)
    ))  # fmt: skip
    for size, accumulated in ((8, 1), (2, 4)):
        model = make_model()
        kind = ReportRows if stage == "report" else ScanpathRows
        options = {} if stage == "report" else {"text": {"report": 1}}
        trainer = make_trainer(
            model,
            stage,
            train=kind(rows, processor, model.config, **options),
            max_steps=3,
            learning_rate=1e-3,
            encoder_learning_rate=1e-3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
        )
        trainer.train()
        runs.append((losses(trainer), losses(trainer, "loss_report" if stage == "report" else "loss_keep")))
    np.testing.assert_allclose(runs[0], runs[1], rtol=2e-4)


def test_each_epoch_draws_anew_and_a_resumed_one_the_same(make_model, make_trainer, items):
    epochs = []

    class Listening(TrainerCallback):
        def on_step_begin(self, args, state, control, train_dataloader=None, **kwargs):
            data = train_dataloader.dataset
            epochs.append((state.global_step, [data.draw(number).text for number in range(len(data))]))

    model = make_model()
    train = items(model, "gaze", text={"report": 1, "none": 1})
    make_trainer(model, train=train, num_train_epochs=3, callbacks=[Listening()]).train()
    assert [step for step, _ in epochs] == [0, 1, 2]
    expected = []
    for epoch in range(3):
        train.set_epoch(epoch)
        expected.append([train.draw(number).text for number in range(len(train))])
    assert [texts for _, texts in epochs] == expected
    assert len({tuple(texts) for texts in expected}) > 1


# ---- evaluation


def test_evaluation_is_that_of_all_items_at_once(make_model, make_trainer, items):
    model = make_model().eval()
    held = items(model, "gaze", count=7)
    found = make_trainer(model, evaluated=held, per_device_eval_batch_size=3).evaluate()
    batch = ScanpathCollator(0)([held[number] for number in range(7)])
    with torch.no_grad():
        outputs = model(**batch)
        samples = model.predict(batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
    assert found["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    for name, value in outputs.loss_parts.items():
        assert found[f"eval_loss_{name}"] == pytest.approx(value.item(), rel=1e-5)
    predicted = [
        Scanpath.from_array(path[0][mask[0]].numpy())
        for path, mask in zip(samples.fixations, samples.fixation_mask, strict=True)
    ]
    recorded = [held.draw(number).scanpath for number in range(7)]
    assert found["eval_scanmatch"] == pytest.approx(scanmatch(predicted, recorded).mean())
    assert found["eval_edit_distance"] == pytest.approx(edit_distance(predicted, recorded).mean())
    matched = multimatch_mean4(predicted, recorded)
    assert found["eval_multimatch_defined"] == pytest.approx((~np.isnan(matched)).mean())


def test_predict_gives_scanpaths_in_order(make_model, make_trainer, items):
    model = make_model()
    held = items(model, "gaze", count=5)
    output = make_trainer(model, per_device_eval_batch_size=2).predict(held)
    assert output.label_ids == [held.draw(number).scanpath for number in range(5)]
    assert len(output.predictions) == 5
    assert all(isinstance(path, Scanpath) and len(path) for path in output.predictions)
    assert output.metrics["test_scanmatch"] == pytest.approx(scanmatch(output.predictions, output.label_ids).mean())


def test_drawn_point_estimates_are_the_same_whenever_and_however_they_are_asked_for(
    make_model, make_trainer, make_rows, make_row, processor
):
    model = make_model(point_estimate="sample", distribution="normal")
    with torch.no_grad():
        model.keep_head.bias.fill_(9.0)  # paths of several fixations
    held = ScanpathRows(make_rows(*[make_row(0)] * 5), processor, model.config, text={"report": 1})
    trainer = make_trainer(model, per_device_eval_batch_size=2)
    before = torch.get_rng_state()
    paths = trainer.predict(held).predictions
    assert torch.equal(torch.get_rng_state(), before), "training goes on as if nothing had been drawn"
    assert trainer.predict(held).predictions == paths
    assert len({path.duration.tobytes() for path in paths}) == 5, "films of a batch have draws of their own"
    others = make_trainer(model, per_device_eval_batch_size=3).predict(held).predictions
    for path, other in zip(paths, others, strict=True):
        np.testing.assert_allclose(path.to_array(), other.to_array(), atol=1e-4)
    assert make_trainer(model, seed=5).predict(held).predictions != paths
    whole = trainer.evaluate(held)
    assert trainer.evaluate(held)["eval_scanmatch"] == whole["eval_scanmatch"]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_processes_share_the_items_out_and_put_them_in_order_again(
    count, make_model, make_trainer, items, monkeypatch
):
    trainer = make_trainer(make_model())
    monkeypatch.setattr(ScanpathTrainingArguments, "world_size", property(lambda self: 3))
    shares = []
    for process in range(3):
        monkeypatch.setattr(ScanpathTrainingArguments, "process_index", property(lambda self, p=process: p))
        shares.append(list(trainer.get_test_dataloader(list(range(count))).dataset))
    assert sorted(chain(*shares)) == list(range(count)), "each once"
    assert in_turn(shares) == list(range(count))


def test_a_multimatch_of_nothing_is_nan():
    short = Scanpath([0.5], [0.5], [0.2], [0.0])
    scores = scanpath_scores([short], [short])
    assert (scores["scanmatch"], scores["edit_distance"], scores["multimatch_defined"]) == (1, 0, 0)
    assert np.isnan(scores["multimatch"])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_report_loss_is_a_mean_over_tokens(size, make_model, make_trainer, make_rows, make_row, processor):
    model = make_model().eval()
    rows = make_rows(*(make_row(n, report={"findings": "The heart is normal. " * (1 + n), "impression": None,
                                           "indication": None, "comparison": None}) for n in range(5)))  # fmt: skip
    held = ReportRows(rows, processor, model.config)
    found = make_trainer(model, "report", evaluated=held, per_device_eval_batch_size=size).evaluate()
    total, tokens = 0.0, 0
    for number in range(5):
        batch = ScanpathCollator(0)([held[number]])
        with torch.no_grad():
            total += model(**batch).loss.item() * batch["labels"].numel()
        tokens += batch["labels"].numel()
    assert found["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)


# ---- what is kept


class Spoil(TrainerCallback):
    """Makes the model worse from the third epoch on."""

    @torch.no_grad()
    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        if state.epoch >= 3:
            model.keep_head.bias -= 20


def test_the_best_model_is_kept(make_model, make_trainer, items):
    model = make_model()
    trainer = make_trainer(
        model,
        evaluated=items(model, "gaze"),
        callbacks=[Spoil()],
        num_train_epochs=4,
        save_total_limit=1,
        metric_for_best_model="loss",
        learning_rate=1e-3,
    )
    trainer.train()
    known = losses(trainer, "eval_loss")
    assert known[1] < known[0] < known[2] < known[3], "the second epoch's is the best"
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(known[1], rel=1e-5)
    trainer.save_model()
    assert not moved(weights(model), ScanpathPredictor.from_pretrained(trainer.args.output_dir))


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("stop", [2, 3])  # at the end of an epoch, and within one
@pytest.mark.parametrize("stage", ["report", "gaze"])
def test_a_resumed_run_ends_like_one_that_was_not_stopped(stop, stage, make_model, make_trainer, items, tmp_path):
    ends = []
    for name, callbacks in (("whole", []), ("parts", [StopAt(stop)])):
        model = make_model(dropout=0.1)
        options = {"text": {"report": 1, "none": 1}} if stage == "gaze" else {}
        options = {"train": items(model, stage, **options), "num_train_epochs": 3, "per_device_train_batch_size": 4}
        options |= {"output_dir": str(tmp_path / name), "learning_rate": 1e-2, "encoder_learning_rate": 1e-2}
        trainer = make_trainer(model, stage, callbacks=callbacks, **options)
        trainer.train()
        if name == "parts":
            assert trainer.state.global_step == stop
            model = make_model(dropout=0.1)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()  # all of it must come from the checkpoint
            trainer = make_trainer(model, stage, **options)
            trainer.train(resume_from_checkpoint=str(tmp_path / name / f"checkpoint-{stop}"))
        assert trainer.state.global_step == 6
        ends.append(weights(model))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, msg=name)


@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}])
def test_options_of_the_trainer_work(options, make_model, make_trainer, items):
    model = make_model()
    trainer = make_trainer(model, evaluated=items(model, "gaze", count=3), num_train_epochs=2, **options)
    plain = make_trainer(make_model(), num_train_epochs=2)
    trainer.train(), plain.train()
    np.testing.assert_allclose(losses(trainer), losses(plain), rtol=0.02 if "bf16" in options else 1e-5)
    assert np.isfinite(trainer.evaluate()["eval_scanmatch"])


def test_what_a_run_leaves_can_be_read(make_model, make_trainer, processor):
    trainer = make_trainer(make_model(), max_steps=1)
    trainer.train()
    trainer.save_model()
    out = Path(trainer.args.output_dir)
    assert type(processor).from_pretrained(out).tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert json.loads((out / "config.json").read_text())["model_type"] == "scanpath_predictor"
