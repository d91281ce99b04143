"""The average that ends in the model, by hand and over an interruption, with transformers' own Trainer."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from gaze_vlm.training import averaging
from gaze_vlm.training.averaging import AveragedWeights


class ToyConfig(PreTrainedConfig):
    model_type = "toy"


class Toy(PreTrainedModel):
    """Weights, running statistics (floating point and counted) and dropout, which needs the random state."""

    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.post_init()

    def forward(self, x, labels):
        return {"loss": (self.layers(x).squeeze(-1) - labels).square().mean()}


class Watcher(TrainerCallback):
    """The weights after each step, as they are."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: value.detach().clone() for name, value in model.state_dict().items()})


class Killed(Exception):
    pass


class KilledAfterFirstCheckpoint(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise Killed


def rows(count: int = 16) -> list[dict]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(count, 3, generator=generator)
    return [{"x": row, "labels": row.sum()} for row in inputs]


def trainer(folder, *callbacks, epochs: int = 3) -> Trainer:
    set_seed(7)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=7,
    )
    return Trainer(model=Toy(ToyConfig()), args=arguments, train_dataset=rows(), callbacks=list(callbacks))


def test_the_model_ends_as_the_average_computed_by_hand(tmp_path):
    watcher = Watcher()
    run = trainer(tmp_path, watcher, AveragedWeights(decay=0.6))
    run.train()
    assert len(watcher.steps) == 12
    average = dict(watcher.steps[0])
    for step, weights in enumerate(watcher.steps[1:], start=2):
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in weights.items():
            average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
    ended = run.model.state_dict()
    assert ended.keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(ended[name], value, msg=name)
    last = watcher.steps[-1]
    assert not torch.equal(ended["layers.0.weight"], last["layers.0.weight"])
    assert ended["layers.1.num_batches_tracked"] == last["layers.1.num_batches_tracked"] == 12


def test_a_killed_and_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(tmp_path):
    whole = trainer(tmp_path / "whole", AveragedWeights(decay=0.9))
    whole.train()

    killed = trainer(tmp_path / "killed", AveragedWeights(decay=0.9), KilledAfterFirstCheckpoint())
    with pytest.raises(Killed):
        killed.train()
    assert sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*")) == ["checkpoint-4"]

    resumed = trainer(tmp_path / "killed", AveragedWeights(decay=0.9))
    torch.rand(100)  # a new process stands elsewhere in its random numbers; the checkpoint brings them back
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 12
    ended = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(ended[name], value), name


def test_a_checkpoint_without_its_average_is_refused_by_name(tmp_path):
    """Never go on from the plain weights in silence."""
    trainer(tmp_path / "first", epochs=1).train()
    second = trainer(tmp_path / "first", AveragedWeights(decay=0.9))
    with pytest.raises(FileNotFoundError, match=r"checkpoint-4/averaged_weights\.safetensors"):
        second.train(resume_from_checkpoint=True)


def test_without_a_step_the_model_stays(tmp_path):
    model = Toy(ToyConfig())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    AveragedWeights().on_train_end(SimpleNamespace(), SimpleNamespace(), None, model=model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_second_run_of_one_callback_starts_afresh(tmp_path):
    average = AveragedWeights(decay=0.9)
    ended = []
    for name in ("first", "second"):
        run = trainer(tmp_path / name, average, epochs=1)
        run.train()
        ended.append(run.model.state_dict())
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


def test_the_average_comes_from_the_checkpoint_that_is_named(tmp_path):
    first = AveragedWeights(decay=0.9)
    trainer(tmp_path / "first", first, epochs=1).train()
    second = trainer(tmp_path / "second", AveragedWeights(decay=0.9), epochs=1)
    second.args.resume_from_checkpoint = str(tmp_path / "first" / "checkpoint-4")
    second.train(resume_from_checkpoint=second.args.resume_from_checkpoint)
    ended = second.model.state_dict()
    assert all(torch.equal(value, ended[name]) for name, value in first.average.items())


def test_an_interrupted_save_leaves_no_half_average(tmp_path, monkeypatch):
    def die(tensors, path):
        Path(path).write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(averaging, "save_file", die)
    with pytest.raises(Killed):
        trainer(tmp_path, AveragedWeights()).train()
    assert not (tmp_path / "checkpoint-4" / AveragedWeights.FILE).exists()
