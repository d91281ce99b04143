"""Training of GazeClassifier: what is learned, mixed, accumulated, resumed; what is measured."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

pytest.importorskip("datasets", reason='needs datasets: pip install "gaze2report[train]"')

from gaze_vlm import GazeClassifier, GazeClassifierProcessor
from gaze_vlm.training import classifier_trainer
from gaze_vlm.training.classifier_data import ClassifierCollator, ClassifierRows
from gaze_vlm.training.classifier_trainer import (
    ClassifierTrainer,
    ClassifierTrainingArguments,
    Predictions,
    boxed_cases,
    classifier_scores,
    mixed,
)

QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
PLAIN = {"optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "average_decay": 0.0}
SIDES = {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1)}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Here and in the processes that are started: sums of several threads are rounded in another order."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def films(make_rows, make_row):
    """Films that are bright on one side: with a mass there, which is boxed and looked at, or with cardiomegaly."""

    def make(count: int):
        rows = []
        for number in range(count):
            side, rng = ("left", "right")[number % 2], np.random.default_rng(number)
            x1, y1, x2, y2 = SIDES[side]
            pixels = rng.integers(0, 60, (16, 16), np.uint8)
            pixels[:, int(16 * x1) : int(16 * x2)] += 150
            present = {"Mass": side == "left", "Cardiomegaly": side == "right", "Edema": number % 3 == 0}
            gaze = {"x": x1 + 0.5 * rng.random(3), "y": rng.random(3), "onset": [0, 1, 2], "duration": [0.5] * 3}
            rows.append(
                make_row(
                    number,
                    image=Image.fromarray(pixels),
                    findings=[
                        {"name": name, "certainty": float(there), "label": None, "grade": None}
                        for name, there in present.items()
                    ],
                    boxes=[
                        {"name": "Mass", "box": [x1, y1, x2, y2], "certainty": None, "shape": "box", "phrase": None,
                         "annotator": None}
                    ] if side == "left" else None,
                    scanpath={name: [float(v) for v in values] for name, values in gaze.items()},
                    transcript=[{"text": "The heart is normal.", "start": 0.0, "end": 1.0}] if number % 4 else None,
                )
            )  # fmt: skip
        return make_rows(*rows)

    return make


@pytest.fixture
def make_model(make_classifier):
    return lambda version="plain", **changes: make_classifier(
        version, labels=("Mass", "Cardiomegaly", "Edema"), **changes
    )


@pytest.fixture
def items(films, classifier_processor):
    def make(model, count=8, **options):
        return ClassifierRows(films(count), classifier_processor, model.config, **options)

    return make


@pytest.fixture
def make_trainer(items, classifier_processor, tmp_path):
    def make(model, train=None, evaluated=None, callbacks=None, **options):
        options = {"output_dir": str(tmp_path / "out"), **QUIET, **options}
        return ClassifierTrainer(
            model,
            ClassifierTrainingArguments(**options),
            processing_class=classifier_processor,
            train_dataset=items(model) if train is None else train,
            eval_dataset=evaluated,
            callbacks=callbacks,
        )

    return make


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def losses(trainer, name="loss"):
    return [line[name] for line in trainer.state.log_history if name in line]


# ---- arguments


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mixup": -0.1}, "mixup must be at least 0, got -0.1"),
        ({"average_decay": 1.0}, "average_decay must be at least 0 and below 1, got 1.0"),
        ({"average_decay": -0.5}, "average_decay must be at least 0 and below 1, got -0.5"),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, "load_best_model_at_end keeps one checkpoint"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be false"),
    ],
)
def test_wrong_arguments_are_refused(options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        ClassifierTrainingArguments(output_dir=str(tmp_path), **(QUIET | {"save_strategy": "epoch"} | options))


def test_the_best_model_may_be_kept_instead_of_an_average(make_model, make_trainer, items):
    model = make_model()
    options = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "average_decay": 0.0,
    }
    trainer = make_trainer(model, evaluated=items(model), num_train_epochs=3, learning_rate=1.0, **PLAIN | options)
    trainer.train()
    known = losses(trainer, "eval_loss")
    assert known[-1] > min(known), "too fast: the last epoch is not the best"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(known), rel=1e-5)


# ---- what is learned


@pytest.mark.parametrize("version", ["plain", "contrastive", "gaze_token"])
def test_the_loss_falls_and_its_parts_are_logged(version, make_model, make_trainer, items):
    model = make_model(version, gaze_schedule="constant")
    trainer = make_trainer(
        model,
        train=items(model, supervision=("gaze", "boxes")),
        max_steps=12,
        learning_rate=5e-3,
        warmup_steps=0,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.9 * losses(trainer)[0]
    parts = {"classification": 1.0, "gaze": 1.0, "boxes": 1.0}
    parts |= {"plain": {"region": 0.1}, "contrastive": {"region": 0.1, "text": 0.1}, "gaze_token": {}}[version]
    logged = {name for line in trainer.state.log_history for name in line if name.startswith("loss_")}
    assert logged == {f"loss_{name}" for name in parts}
    summed = sum(weight * np.array(losses(trainer, f"loss_{name}")) for name, weight in parts.items())
    np.testing.assert_allclose(summed, losses(trainer), rtol=1e-4)
    assert len(set(losses(trainer, "loss_gaze"))) == 12, "of these steps, not of all so far"


def test_labels_are_learned_and_boxes_move_attention_to_where_they_are(make_model, make_trainer, items):
    found = []
    for supervision in ((), ("boxes",)):
        model = make_model()
        train = items(model, supervision=supervision)
        trainer = make_trainer(model, train=train, max_steps=25, learning_rate=1e-2, warmup_steps=0, average_decay=0.0)
        trainer.train()
        assert losses(trainer, "loss_classification")[-1] < 0.8 * losses(trainer, "loss_classification")[0]
        found.append(trainer.evaluate(train)["eval_attention_iou"])
    assert found[1] > 0.8 and found[1] > found[0] + 0.1


def test_accumulated_batches_train_like_one(make_model, make_trainer, items):
    """Where every label is known a mean of the batches' means is that of all."""
    ends = []
    for size, accumulated in ((8, 1), (2, 4)):
        model = make_model(gaze_loss_weight=0.0, box_loss_weight=0.0, region_loss_weight=0.0)
        trainer = make_trainer(
            model,
            train=items(model, count=24),
            num_train_epochs=2,
            learning_rate=0.1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            **PLAIN,
        )
        before = weights(model)
        trainer.train()
        assert trainer.state.global_step == 6
        ends.append((losses(trainer), weights(model)))
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=1e-5)
    for name, value in ends[0][1].items():
        torch.testing.assert_close(ends[1][1][name], value, atol=1e-5, rtol=1e-5, msg=name)
    assert (ends[0][1]["head.weight"] - before["head.weight"]).abs().max() > 1e-3, "it has moved"


def test_each_epoch_draws_anew(make_model, make_trainer, items):
    seen = []

    class Listening(TrainerCallback):
        def on_step_begin(self, args, state, control, train_dataloader=None, **kwargs):
            seen.append(train_dataloader.dataset[0]["pixel_values"])

    model = make_model()
    train = items(model, augment=True)
    make_trainer(model, train=train, num_train_epochs=3, callbacks=[Listening()]).train()
    assert len(seen) == 3
    for epoch, film in enumerate(seen):
        train.set_epoch(epoch)
        assert torch.equal(film, train[0]["pixel_values"])
    assert not torch.equal(seen[0], seen[1])


# ---- mixup


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_films_and_labels_are_mixed_alike_and_the_own_film_weighs_more(alpha):
    """Film n is 1 in its own place and 0 elsewhere, so that what is in a mixture can be read off."""
    torch.manual_seed(0)
    known = torch.eye(5)
    for _ in range(20):
        batch = {
            "pixel_values": known,
            "labels": 2 * known,
            "boxes": torch.rand(5, 1, 4),
            "fixations": torch.rand(5, 3, 4),
        }
        out = mixed(batch, alpha)
        torch.testing.assert_close(out["labels"], 2 * out["pixel_values"])
        torch.testing.assert_close(out["pixel_values"].sum(1), torch.ones(5))
        assert (out["pixel_values"].diagonal() >= 0.5).all()
        assert out["boxes"] is batch["boxes"] and out["fixations"] is batch["fixations"]
        assert torch.equal(batch["pixel_values"], torch.eye(5)), "the batch itself is not changed"
    assert any((mixed(batch, alpha)["pixel_values"].diagonal() < 1).any() for _ in range(9)), "others are laid over"


def test_a_label_is_unknown_where_either_is():
    torch.manual_seed(0)
    labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0], [1.0, 1.0]])
    batch = {"pixel_values": torch.eye(3), "labels": labels}
    seen = set()
    for _ in range(20):
        out = mixed(batch, 1.0)
        unknown = out["labels"][:, 1].isnan()
        assert torch.equal(unknown, out["pixel_values"][:, 0] > 0), "those with something of the first film"
        assert not out["labels"][:, 0].isnan().any()
        seen.add(tuple(unknown.tolist()))
    assert (True, False, False) in seen and len(seen) > 1


@pytest.mark.parametrize(("alpha", "times"), [(0.0, 0), (0.4, 4)])
def test_films_are_mixed_in_training_alone_and_only_if_asked(
    alpha, times, make_model, make_trainer, items, monkeypatch
):
    calls = []
    monkeypatch.setattr(
        classifier_trainer, "mixed", lambda batch, given: (calls.append(given), mixed(batch, given))[1]
    )
    model = make_model()
    options = {"mixup": alpha, "per_device_train_batch_size": 4, "max_steps": 2, "gradient_accumulation_steps": 2}
    trainer = make_trainer(model, evaluated=items(model), **options)
    trainer.train()
    assert calls == [alpha] * times
    found = trainer.evaluate()
    assert len(calls) == times
    with torch.no_grad():
        batch = ClassifierCollator(trainer.processing_class, model.config)([*items(model)])
        assert found["eval_loss"] == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-5)


# ---- curriculum


@pytest.mark.parametrize("schedule", ["grow", "fade", "constant"])
def test_the_curriculum_spans_the_steps_there_are_and_ends_with_training(schedule, make_model, make_trainer, items):
    scales = []

    class Listening(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            scales.append(model.gaze_scale)

    model = make_model(gaze_schedule=schedule, gaze_schedule_share=0.5)
    trainer = make_trainer(
        model,
        train=items(model, count=12, supervision=["gaze"]),
        num_train_epochs=4,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        callbacks=[Listening()],
        learning_rate=1e-3,
    )
    trainer.train()
    expected = {
        "grow": [0, 0.25, 0.5, 0.75, 1, 1, 1, 1],
        "fade": [1, 1, 1, 1, 1, 0.75, 0.5, 0.25],
        "constant": [1] * 8,
    }
    np.testing.assert_allclose(scales, expected[schedule])
    parts = [np.array(losses(trainer, f"loss_{name}")) for name in ("classification", "gaze", "region")]
    weighed = parts[0] + np.array(scales) * (parts[1] + 0.1 * parts[2])
    np.testing.assert_allclose(weighed, losses(trainer), rtol=1e-4)
    assert model.gaze_scale == 1


# ---- evaluation


@pytest.fixture
def spread(make_model):
    """A model whose logits differ from film to film."""
    model = make_model("gaze_token").eval()
    with torch.no_grad():
        model.head.weight.normal_(std=2.0)
        model.pooling.query.normal_(std=2.0)
    return model


@pytest.mark.parametrize("size", [1, 3, 32])
def test_every_item_is_seen_once_and_in_order(size, spread, make_trainer, items):
    held = items(spread, count=7, supervision=("gaze", "boxes"))
    found = make_trainer(spread, per_device_eval_batch_size=size).predict(held).predictions
    with torch.no_grad():
        outputs = spread(torch.stack([held[number]["pixel_values"] for number in range(7)]))
    np.testing.assert_allclose(found.logits, outputs.logits, atol=1e-4)
    assert np.ptp(found.logits, axis=0).min() > 0.01, "films are told apart"
    np.testing.assert_allclose(found.attention, outputs.attention, atol=1e-5)
    np.testing.assert_array_equal(found.labels, held.targets)


def test_scores_are_sklearns(spread, make_trainer, items):
    metrics = pytest.importorskip("sklearn.metrics", reason='needs scikit-learn: pip install "gaze2report[eval]"')
    held = items(spread, count=40)
    for number in range(0, 40, 5):
        held.targets[number][1] = float("nan")
    held.targets = [[first, second, float(number < 4)] for number, (first, second, _) in enumerate(held.targets)]
    spread.config.temperature, spread.config.thresholds = 2.0, [0.3, 0.6, 0.5]
    out = make_trainer(spread).predict(held)
    logits, labels, _ = out.predictions
    probabilities = 1 / (1 + np.exp(-logits.astype(float) / 2))
    columns = [(labels[:, i], probabilities[:, i], cut) for i, cut in ((0, 0.3), (1, 0.6))]  # 4 positives: too few
    columns = [(y[~np.isnan(y)], p[~np.isnan(y)], cut) for y, p, cut in columns]
    expected = {
        "auroc": np.mean([metrics.roc_auc_score(y, p) for y, p, _ in columns]),
        "average_precision": np.mean([metrics.average_precision_score(y, p) for y, p, _ in columns]),
        "f1": np.mean([metrics.f1_score(y, p >= cut) for y, p, cut in columns]),
        "loss": metrics.log_loss(labels[~np.isnan(labels)], probabilities[~np.isnan(labels)]),
    }
    for name, value in expected.items():
        assert out.metrics[f"test_{name}"] == pytest.approx(value, abs=1e-6), name
    bins = [np.minimum((p * 15).astype(int), 14) for _, p, _ in columns]
    errors = [
        sum(abs(y[b == i].sum() - p[b == i].sum()) for i in range(15)) / len(y)
        for (y, p, _), b in zip(columns, bins, strict=True)
    ]
    assert out.metrics["test_calibration_error"] == pytest.approx(np.mean(errors), abs=1e-6)


def test_attention_is_scored_where_there_are_boxes(make_model):
    config = make_model().config
    attention = np.zeros((3, 3, 2, 2), np.float32)
    attention[0, 0, 0, 0] = attention[0, 1, 1, 1] = attention[2, 0, 1, 0] = 1
    left, right = [0, 0, 0.5, 1], [0.5, 0, 1, 1]
    boxes = [[(left, 0), (left, 1)], [], [([0, 0.5, 0.5, 1], 0), (right, 0)]]
    known = Predictions(np.zeros((3, 3), np.float32), np.full((3, 3), np.nan), attention)
    cases = boxed_cases(attention, boxes)
    assert [case[1:] for case in cases] == [([left], 0), ([left], 0), ([[0, 0.5, 0.5, 1], right], 2)]
    scores = classifier_scores(known, boxes, config)
    assert scores["pointing_game"] == pytest.approx(2 / 3)
    assert scores["attention_iou"] == pytest.approx((0.5 + 0 + 1 / 3) / 3)
    shared = Predictions(known.logits, known.labels, attention[:, :1])
    assert classifier_scores(shared, boxes, config)["pointing_game"] == 1
    assert "pointing_game" not in classifier_scores(known, [[], [], []], config)
    assert all(np.isnan(scores[name]) for name in ("loss", "auroc", "average_precision", "f1", "calibration_error"))


LAUNCHED = """
import sys
from pathlib import Path
import datasets, numpy as np, torch
from gaze_vlm import GazeClassifier, GazeClassifierProcessor
from gaze_vlm.data.schema import SCHEMA
from gaze_vlm.training.classifier_data import ClassifierRows
from gaze_vlm.training.classifier_trainer import ClassifierTrainer, ClassifierTrainingArguments

def run(folder, out, size):
    torch.set_num_threads(1)
    folder = Path(folder)
    model = GazeClassifier.from_pretrained(folder)
    processor = GazeClassifierProcessor.from_pretrained(folder)
    file, cache = str(folder / "rows.parquet"), str(folder / "cache")
    rows = datasets.Dataset.from_parquet(file, features=SCHEMA, cache_dir=cache)
    train = ClassifierRows(rows, processor, model.config, augment=True)
    held = ClassifierRows(rows.select(range(7)), processor, model.config)
    training = ClassifierTrainingArguments(
        output_dir=out, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
        optim="sgd", learning_rate=0.1, num_train_epochs=2, warmup_steps=0, per_device_train_batch_size=size,
        per_device_eval_batch_size=3, average_decay=0.5,
    )
    trainer = ClassifierTrainer(model, training, processing_class=processor, train_dataset=train)
    before = trainer.predict(held)
    trainer.train()
    after = trainer.predict(held)
    if trainer.is_world_process_zero():
        loss = [line["loss_classification"] for line in trainer.state.log_history if "loss_classification" in line]
        np.savez(out + ".npz", before=before.predictions.logits, after=after.predictions.logits, loss=loss,
                 labels=after.predictions.labels, score=after.metrics["test_loss"])

if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], 4)
"""


def test_two_processes_measure_and_train_like_one(spread, films, classifier_processor, tmp_path, monkeypatch):
    """7 films do not come out even. Training: batches of 2 x 4 and of 8."""
    for name in ("gaze", "box", "region"):
        setattr(spread.config, f"{name}_loss_weight", 0.0)
    spread.config.input_dropout = 0.0
    spread.save_pretrained(tmp_path / "model")
    classifier_processor.save_pretrained(tmp_path / "model")
    films(16).to_parquet(tmp_path / "model" / "rows.parquet")
    (tmp_path / "launched.py").write_text(LAUNCHED)
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         tmp_path / "launched.py", tmp_path / "model", tmp_path / "two"],
        capture_output=True, text=True, timeout=120, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    monkeypatch.syspath_prepend(str(tmp_path))
    import launched

    launched.run(tmp_path / "model", str(tmp_path / "one"), 8)
    two, one = (np.load(tmp_path / f"{name}.npz") for name in ("two", "one"))
    assert one["before"].shape == (7, 3) and len(one["loss"]) == 4
    for name in one.files:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert np.abs(one["after"] - one["before"]).max() > 1e-2, "something was learned"


# ---- what is kept


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("stop", [2, 3])  # at the end of an epoch, and within one
def test_a_resumed_run_ends_like_one_that_was_not_stopped(stop, make_model, make_trainer, items, tmp_path):
    """To the bit, with all that is drawn: views, mixtures, dropout of layers and of inputs."""
    ends = []
    for name, callbacks in (("whole", []), ("parts", [StopAt(stop)])):
        version = {"version": "gaze_token", "gaze_schedule_share": 1.0, "fusion_dropout": 0.1}
        model = make_model(**version)
        options = {
            "train": items(model, supervision=("gaze", "boxes"), augment=True),
            "num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2,
            "mixup": 0.4, "average_decay": 0.9, "output_dir": str(tmp_path / name),
        }  # fmt: skip
        trainer = make_trainer(model, callbacks=callbacks, **options)
        trainer.train()
        if name == "parts":
            assert trainer.state.global_step == stop
            model = make_model(**version)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()  # all of it must come from the checkpoint
            trainer = make_trainer(model, **options)
            trainer.train(resume_from_checkpoint=str(tmp_path / name / f"checkpoint-{stop}"))
        assert trainer.state.global_step == 6
        assert len(set(losses(trainer))) == 6
        ends.append((losses(trainer), weights(model)))
    assert ends[0][0] == ends[1][0]
    assert [name for name, value in ends[0][1].items() if not torch.equal(value, ends[1][1][name])] == []


def test_the_average_is_what_is_kept(make_model, make_trainer, items):
    last = {}

    class Listening(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            last[state.global_step] = weights(model)["head.weight"]

    model = make_model()
    trainer = make_trainer(
        model, max_steps=3, learning_rate=1e-2, warmup_steps=0, average_decay=0.2, callbacks=[Listening()]
    )
    trainer.train()
    average = last[1]
    for step in (2, 3):
        average = average.lerp(last[step], 1 - min(0.2, (1 + step) / (10 + step)))
    torch.testing.assert_close(model.head.weight.detach(), average)
    assert not torch.allclose(average, last[3])


def test_what_a_run_leaves_can_be_read(make_model, make_trainer, tmp_path):
    model = make_model("contrastive")
    trainer = make_trainer(model, max_steps=1)
    trainer.train()
    trainer.save_model()
    read = weights(GazeClassifier.from_pretrained(tmp_path / "out"))
    assert all(torch.equal(value, read[name]) for name, value in weights(model).items())
    assert GazeClassifierProcessor.from_pretrained(tmp_path / "out").image_processor.size["height"] == 32
    assert Path(tmp_path / "out" / "model.safetensors").is_file()
