"""examples/sft.py in stages: as a person types it, on data and models made by code."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("trl", reason='training needs trl: pip install "gaze2report[train]"')

from transformers import AutoConfig, set_seed

from gaze_vlm import GazeVLM, GazeVLMConfig, GazeVLMProcessor
from gaze_vlm.data.schema import SCHEMA, row
from gaze_vlm.tasks import GAZE_TASKS
from gaze_vlm.training.adapters import TRAINED_IN_FULL, load_adapter, merge_adapter

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = shlex.split(
    "--use_cpu --bf16 false --gradient_checkpointing false --report_to none --disable_tqdm true --logging_steps 1 "
    "--learning_rate 1e-2 --per_device_train_batch_size 2 --per_device_eval_batch_size 4 --eval_strategy no "
    "--gaze none --max_steps 2"
)
GAZE, REPORTS = {"name": "gaze", "tasks": dict.fromkeys(GAZE_TASKS, 1)}, {"name": "reports", "tasks": "report:1"}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """One thread, here and in the processes that are started: sums of several are rounded in another order."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import sft

    return sft


@pytest.fixture
def typed(readings, tmp_path):
    """Options of a run in stages, which are written to a file."""

    def options(stages, *further, out: str = "run") -> list[str]:
        file = tmp_path / f"{out}.yaml"
        file.write_text(stages if isinstance(stages, str) else yaml.safe_dump(stages, sort_keys=False))
        known = ["--dataset", readings, "--stages", file, "--output_dir", tmp_path / out]
        return [*QUICK, *map(str, [*known, *further])]

    return options


@pytest.fixture
def refused(module, capsys):
    """What the example says in one line before it ends with status 2."""

    def run(arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            module.main(arguments)
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.fixture
def walked(module, monkeypatch):
    """Stages are walked, not trained: the settings of each that would have been."""
    seen = []

    def run(trainer):
        seen.append(trainer)
        folder = Path(trainer[1].output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text("{}")

    monkeypatch.setattr(module, "prepare", lambda script, training, rows, films: (script, training))
    monkeypatch.setattr(module, "run", run)
    return seen


@pytest.fixture
def readings(tmp_path) -> Path:
    """Films that were dictated on: two sentences each, with four fixations near one another while they are said."""
    import datasets

    from gaze_vlm.data.export import RECORD

    rng = np.random.default_rng(1)
    for split, count in (("train", 8), ("validation", 4)):
        rows = []
        for number in range(count):
            places = rng.uniform(0.2, 0.8, (2, 2)).repeat(4, axis=0) + rng.normal(0, 0.005, (8, 2))
            path = {"x": places[:, 0], "y": places[:, 1], "onset": np.arange(8) * 0.6, "duration": np.full(8, 0.5)}
            words = [("heart", 0.2), (("normal", "large")[number % 2], 1.0), (".", 2.2)]
            words += [("lungs", 2.6), ("clear", 3.4), (".", 4.6)]
            rows.append(
                row(
                    image=Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)),
                    image_id=f"{split}-{number}",
                    patient_id=f"{split}-{number}",
                    report={"findings": "Clear.", "impression": None, "indication": None, "comparison": None},
                    transcript=[{"text": text, "start": start, "end": start + 0.3} for text, start in words],
                    scanpath={name: values.tolist() for name, values in path.items()},
                    source="made",
                )
            )
        folder = tmp_path / "readings" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=SCHEMA).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    (tmp_path / "readings" / RECORD).write_text("{}\n")
    return tmp_path / "readings"


@pytest.fixture
def model(tiny_bundle, tmp_path) -> Path:
    """The tiny GazeVLM without dropout, once trained for questions."""
    config = GazeVLMConfig.from_pretrained(tiny_bundle / "gaze_vlm", initializer_range=0.2, tasks=["vqa"])
    config.text_config.dropout, config.text_config.init_std = 0.0, 0.2
    config.text_config.max_position_embeddings = 512  # four key frames in a sample, and bytes for tokens
    set_seed(0)
    folder = tmp_path / "model"
    GazeVLM(config).save_pretrained(folder)
    GazeVLMProcessor.from_pretrained(tiny_bundle / "gaze_vlm").save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return GazeVLM.from_pretrained(folder).state_dict()


# ---- what comes out


@pytest.fixture
def begun(module, monkeypatch):
    """Folder -> the weights of the model when its training began."""
    weights, prepare = {}, module.prepare

    def kept(script, training, *rest):
        trainer = prepare(script, training, *rest)
        whole = trainer.model.state_dict()
        weights[Path(training.output_dir)] = {name: value.clone() for name, value in whole.items()}
        return trainer

    monkeypatch.setattr(module, "prepare", kept)
    return weights


def test_a_stage_begins_from_what_the_one_before_left(module, typed, model, begun, tmp_path):
    module.main(typed([GAZE | {"learning_rate": 5e-3, "max_steps": 3}, REPORTS], "--model", model))
    first, out = tmp_path / "run-stages" / "1-gaze", tmp_path / "run"
    assert list(begun) == [first, out]
    for start, folder in ((weights_of(model), first), (weights_of(first), out)):
        assert all(torch.equal(value, begun[folder][name]) for name, value in start.items())
    ends = weights_of(model), weights_of(first), weights_of(out)
    name = "model.multi_modal_projector.linear_1.weight"
    name = (
        name if name in ends[0] else next(one for one in ends[0] if "multi_modal_projector" in one and "weight" in one)
    )
    assert not torch.equal(ends[0][name], ends[1][name]) and not torch.equal(ends[1][name], ends[2][name])
    assert AutoConfig.from_pretrained(first).tasks == ["vqa", *GAZE_TASKS]
    assert AutoConfig.from_pretrained(out).tasks == ["report", "vqa", *GAZE_TASKS]
    rates = [json.loads((folder / "training_args.json").read_text())["learning_rate"] for folder in (first, out)]
    assert rates == [5e-3, 1e-2]
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (first, out)]
    assert [state["global_step"] for state in states] == [3, 2]
    assert [state["log_history"][0]["learning_rate"] for state in states] == rates, "each has its own schedule"


def test_an_adapter_is_merged_for_the_next_stage(module, typed, tiny_bundle, begun, tmp_path):
    new = ["--vision", tiny_bundle / "gaze_vlm", "--model_config", "graph_hidden_size=16", "merge_size=2"]
    module.main(typed([GAZE, REPORTS], *new, "--use_peft", "--lora_r", "2"))
    first, out = tmp_path / "run-stages" / "1-gaze", tmp_path / "run"
    merged, expected = weights_of(first / "merged"), merge_adapter(first).state_dict()
    assert all(torch.equal(value, merged[name]) for name, value in expected.items())
    base = weights_of(tmp_path / "run-stages" / "1-gaze-base")
    assert any("language_model" in name and not torch.equal(value, base[name]) for name, value in merged.items())
    trained = {name: value for name, value in merged.items() if any(part in name for part in TRAINED_IN_FULL)}
    assert any("projector" in name and not torch.equal(value, base[name]) for name, value in trained.items())
    for name, value in trained.items():
        part = next(part for part in TRAINED_IN_FULL if part in name)
        inside = f"base_model.model.{name.replace(part, f'{part}.modules_to_save.default')}"
        assert torch.equal(begun[out][inside], value)
    assert AutoConfig.from_pretrained(tmp_path / "run-stages" / "1-gaze-base").tasks == ["report"]
    assert AutoConfig.from_pretrained(first / "merged").tasks == list(GAZE_TASKS)
    assert AutoConfig.from_pretrained(out).tasks == ["report", *GAZE_TASKS]
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(first / "merged")
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.allclose(load_adapter(out).eval()(ids).logits, merge_adapter(first).eval()(ids).logits, atol=1e-4)
    assert not list(tmp_path.rglob("*.partial"))


def test_two_processes_walk_the_same_stages(typed, model, tmp_path):
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two += [str(EXAMPLES / "sft.py"), *typed([GAZE, REPORTS], "--model", model, "--use_peft", "--save_strategy", "no")]
    done = subprocess.run(two, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert AutoConfig.from_pretrained(tmp_path / "run").tasks == ["report", "vqa", *GAZE_TASKS]
    assert (tmp_path / "run-stages" / "1-gaze" / "merged" / "config.json").is_file()
    assert done.stderr.count("--- stage gaze") == 1


# ---- stop and go on


def test_stages_that_were_killed_go_on_and_end_with_the_same_weights(module, typed, model, tmp_path):
    from train_scanpath import last_checkpoint

    def written(folder: Path | str) -> int:
        return Path(folder, "model.safetensors").stat().st_mtime_ns

    further = ["--model", model, "--save_steps", 4]
    stages = [GAZE, REPORTS | {"max_steps": 40}]
    out, first = tmp_path / "killed", tmp_path / "killed-stages" / "1-gaze"
    arguments = typed(stages, *further, out="killed")
    running = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "sft.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.time() + 200
        while not (out / "checkpoint-8" / "trainer_state.json").is_file():
            assert running.poll() is None and time.time() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert (first / "metrics.json").is_file() and not (out / "metrics.json").exists()
    stopped = last_checkpoint(out)
    before = [written(first), written(stopped)]
    module.main([*arguments, "--resume_from_checkpoint", "last"])
    assert [written(first), written(stopped)] == before, "what was done was trained again"
    module.main(typed(stages, *further, out="whole"))
    resumed, whole = weights_of(out), weights_of(tmp_path / "whole")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["global_step"] == 40 and len([one for one in state["log_history"] if "loss" in one]) == 40


def test_what_is_finished_is_not_trained_again(module, typed, walked, tmp_path):
    stages = [GAZE, REPORTS, REPORTS | {"name": "more"}]
    module.main(typed(stages, "--push_to_hub"))
    folders = [tmp_path / "run-stages" / "1-gaze", tmp_path / "run-stages" / "2-reports", tmp_path / "run"]
    assert [Path(training.output_dir) for _, training in walked] == folders
    assert [training.push_to_hub for _, training in walked] == [False, False, True]
    assert [script.model for script, _ in walked] == [None, *map(str, folders[:2])]
    module.main(typed(stages, "--push_to_hub"))
    assert len(walked) == 3
    (folders[1] / "metrics.json").unlink()
    (folders[2] / "metrics.json").unlink()
    module.main(typed([GAZE, REPORTS | {"learning_rate": 0.5}, REPORTS | {"name": "last"}]))
    assert [Path(training.output_dir).name for _, training in walked[3:]] == ["2-reports", "run"]
    assert walked[3][1].learning_rate == 0.5, "what was not finished may change"


@pytest.mark.parametrize(
    ("stages", "further", "message"),
    [
        (
            [GAZE | {"learning_rate": 1e-3}, REPORTS],
            [],
            "1-gaze: stage 1-gaze was trained with another learning_rate; ",
        ),
        ([GAZE | {"tasks": "keyframe"}, REPORTS], [], "stage 1-gaze was trained with another tasks; "),
        ([GAZE, REPORTS], ["--seed", 7], "stage 1-gaze was trained with another seed; "),
        ([GAZE | {"name": "eyes"}, REPORTS], [], "run-stages: holds the stage 1-gaze, which is no stage now; "),
        ([REPORTS, GAZE], [], "which is no stage now; "),
        ([GAZE], [], "run-stages: holds the stage 2-reports, which is no stage now; "),
        ([GAZE, REPORTS, REPORTS | {"name": "more"}], [], "run: holds what these stages did not train; "),
    ],
)
def test_what_is_finished_stays_as_it_is(module, typed, walked, refused, stages, further, message):
    module.main(typed([GAZE, REPORTS]))
    line = refused(typed(stages, *further))
    assert message in line and line.endswith("choose another --output_dir")
    assert len(walked) == 2


def test_what_other_runs_left_is_not_taken_for_a_stage(module, typed, walked, refused, tmp_path):
    module.main(typed([GAZE, REPORTS]))
    (tmp_path / "run-stages" / "1-gaze" / "metrics.json").unlink()
    assert "stage 2-reports is finished or begun, but one before it is not" in refused(typed([GAZE, REPORTS]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.json").write_text("{}")
    assert "other: holds what these stages did not train" in refused(typed([GAZE, REPORTS], out="other"))
    assert len(walked) == 2


def checkpoint_in(folder: Path) -> Path:
    checkpoint = folder / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    for name in ("trainer_state.json", "rng_state.pth"):
        (checkpoint / name).touch()
    return checkpoint


def test_a_checkpoint_of_before_does_not_take_the_place_of_what_was_just_learned(
    module, typed, walked, refused, tmp_path
):
    checkpoint_in(tmp_path / "run")
    again = ("--resume_from_checkpoint", "last")
    assert "run: holds a checkpoint that these stages did not make" in refused(typed([GAZE, REPORTS], *again))
    assert walked == []
    module.main(typed([GAZE, REPORTS], out="other"))
    checkpoint_in(tmp_path / "other")
    (tmp_path / "other" / "metrics.json").unlink()
    (tmp_path / "other-stages" / "1-gaze" / "metrics.json").unlink()
    line = refused(typed([GAZE, REPORTS], *again, out="other"))
    assert "stage 2-reports is finished or begun, but one before it is not" in line
    assert len(walked) == 2


def test_what_was_begun_goes_on_as_it_began_or_begins_anew(module, typed, walked, refused, tmp_path):
    module.main(typed([REPORTS]))
    (tmp_path / "run" / "metrics.json").unlink()
    checkpoint = checkpoint_in(tmp_path / "run")
    changed = [REPORTS | {"learning_rate": 0.5}]
    line = refused(typed(changed, "--resume_from_checkpoint", "last"))
    assert "run: stage 1-reports was trained with another learning_rate" in line
    module.main(typed([REPORTS], "--resume_from_checkpoint", "last"))
    assert walked[1][1].resume_from_checkpoint == str(checkpoint)
    (tmp_path / "run" / "metrics.json").unlink()
    module.main(typed(changed))
    assert walked[2][1].learning_rate == 0.5 and walked[2][1].resume_from_checkpoint is None


def test_a_stage_that_was_only_begun_may_go(module, typed, walked, tmp_path):
    module.main(typed([GAZE, REPORTS]))
    (tmp_path / "run" / "metrics.json").unlink()
    for _ in range(2):
        module.main(typed([GAZE]))
    assert [Path(training.output_dir).name for _, training in walked] == ["1-gaze", "run", "run"]


# ---- what is refused


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("tasks: report", "run.yaml: no list of stages"),
        ("[]", "run.yaml: no list of stages"),
        ("- name: [", "run.yaml: while parsing"),
        ([GAZE, "report"], "run.yaml: stage 2: name: a text of letters, digits, _ . and -, got None"),
        ([{"name": "../x"}], "run.yaml: stage 1: name: a text of letters, digits, _ . and -, got '../x'"),
        ([GAZE, REPORTS, GAZE], "run.yaml: stage 3: name: 'gaze' is the name of another stage"),
        ([GAZE | {"depth": 3}], "run.yaml: stage 'gaze': depth: there is no such option"),
        ([GAZE | {"model": "x"}], "run.yaml: stage 'gaze': model: is the same for all stages"),
        ([GAZE, REPORTS | {"output_dir": "x"}], "run.yaml: stage 'reports': output_dir: is the same for all stages"),
        ([GAZE | {"tasks": {"sing": 1}}], "run.yaml: stage 'gaze': tasks: 'sing:1' is no task with its weight"),
        ([GAZE | {"tasks": {"order": None}}], "run.yaml: stage 'gaze': tasks: 'order:None': the weight is no number"),
        ([GAZE | {"tasks": {}}], "run.yaml: stage 'gaze': tasks: '' is no task"),
        ([GAZE | {"tasks": ["order", "report"]}], "run.yaml: stage 'gaze': tasks: one value is wanted, got ["),
        ([GAZE | {"learning_rate": "fast"}], "run.yaml: stage 'gaze': learning_rate: invalid float value: 'fast'"),
        ([GAZE | {"learning_rate": None}], "run.yaml: stage 'gaze': learning_rate: invalid float value: 'null'"),
        ([GAZE | {"views": "film"}], "run.yaml: stage 'gaze': views: invalid choice: 'film'"),
        ([GAZE | {"packing": True}], "run.yaml: stage 'gaze': packing must be false"),
        ([GAZE, REPORTS | {"tasks": "ground"}], "no row can be used for the task ground"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(typed, refused, model, tmp_path, stages, message):
    line = refused(typed(stages, "--model", model))
    assert message in line
    assert not (tmp_path / "run").exists() and not (tmp_path / "run-stages").exists()


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--load_in_4bit", "--use_peft"], "--load_in_4bit: a stage's adapter is not merged into weights in 4 bit"),
        (["--resume_from_checkpoint", "somewhere"], "--resume_from_checkpoint: with --stages it is last, or nothing"),
        (["--stages", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_options_that_do_not_go_with_stages(typed, refused, model, further, message):
    assert message in refused(typed([GAZE, REPORTS], "--model", model, *further))


def test_values_go_before_the_command_line_and_mean_what_they_mean_there(module, typed, walked, tmp_path):
    own = {
        "learning_rate": "1e-3",
        "num_train_epochs": 2,
        "max_steps": -1,
        "context": None,
        "lr_scheduler_type": "linear",
    }
    own |= {"lora_target_modules": ["fc1", "fc2"], "gradient_checkpointing": True, "lr_scheduler_kwargs": {"power": 2}}
    (tmp_path / "config.yaml").write_text(
        "{tasks: {report: 1, order: 0.5}, lora_target_modules: [fc1], weight_decay: 0.5}"
    )
    empty = {"name": "reports", "lora_target_modules": [], "gaze": {"none": 1}}
    module.main(typed([GAZE | own, empty], "--config", tmp_path / "config.yaml"))
    (script, training), (later, rest) = walked
    assert script.tasks == "keyframe:1,trajectory:1,order:1" and script.context is None
    assert script.lora_target_modules == ["fc1", "fc2"] and training.lr_scheduler_kwargs == {"power": 2}
    assert (training.learning_rate, training.num_train_epochs, training.max_steps) == (1e-3, 2, -1)
    assert training.gradient_checkpointing and training.lr_scheduler_type == "linear" and training.weight_decay == 0.5
    assert later.tasks == "report:1,order:0.5" and later.lora_target_modules == [] and later.gaze == "none:1"
    assert (rest.learning_rate, rest.max_steps, rest.weight_decay) == (1e-2, 2, 0.5)
    assert not rest.gradient_checkpointing
