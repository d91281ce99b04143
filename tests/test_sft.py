"""examples/sft.py as a person types it, on data and models made by code."""

import json
import os
import re
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

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, OPTConfig, set_seed

from gaze_vlm import GazeVLM, GazeVLMConfig, GazeVLMProcessor
from gaze_vlm.data.schema import SCHEMA, row
from gaze_vlm.tasks import GAZE_TASKS, TASKS
from gaze_vlm.training.adapters import load_adapter, merge_adapter
from gaze_vlm.training.rows import parse_weights

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = shlex.split(
    "--use_cpu --bf16 false --gradient_checkpointing false --report_to none --disable_tqdm true --logging_steps 1 "
    "--learning_rate 1e-2 --per_device_train_batch_size 2 --per_device_eval_batch_size 4"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Here and in the processes that are started: sums of several threads are rounded in another order."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sft(monkeypatch):
    """The example's main, called as in its folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import sft

    return lambda *arguments: sft.main([*QUICK, *map(str, arguments)])


@pytest.fixture
def refused(sft, capsys):
    """What the example says in one line before it ends with status 2."""

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            sft(*arguments)
        assert ended.value.code == 2
        (line,) = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("__main__") or ": " in line
        ][-1:]
        return line

    return run


@pytest.fixture
def export(tmp_path) -> Path:
    """Films with reports, questions and gaze: 12 to train on, 6 to choose by."""
    import datasets

    from gaze_vlm.data.export import RECORD

    rng = np.random.default_rng(1)
    for split, count in (("train", 12), ("validation", 6)):
        rows = []
        for number in range(count):
            path = {name: [float(v) for v in rng.random(3)] for name in ("x", "y", "duration")}
            sections = {"findings": f"The heart is {('normal', 'large')[number % 2]} in size.", "impression": None}
            asked = number % 3 == 0
            rows.append(
                row(
                    image=Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)),
                    image_id=f"{split}-{number}",
                    patient_id=f"{split}-{number // 2}",
                    study_id=f"{split}-{number // 2}",
                    view="PA",
                    report=sections | {"indication": "Cough.", "comparison": None},
                    question="Is the heart large?" if asked else None,
                    answer=("no", "yes")[number % 2] if asked else None,
                    scanpath=path | {"onset": [0.0, 1.0, 2.0]},
                    source="made",
                )
            )
        folder = tmp_path / "export" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=SCHEMA).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    (tmp_path / "export" / RECORD).write_text("{}\n")
    return tmp_path / "export"


@pytest.fixture
def model(tiny_bundle, tmp_path) -> Path:
    """The tiny GazeVLM without dropout."""
    config = GazeVLMConfig.from_pretrained(tiny_bundle / "gaze_vlm", initializer_range=0.2)
    config.text_config.dropout, config.text_config.init_std = 0.0, 0.2
    set_seed(0)
    folder = tmp_path / "model"
    GazeVLM(config).save_pretrained(folder)
    GazeVLMProcessor.from_pretrained(tiny_bundle / "gaze_vlm").save_pretrained(folder)
    return folder


@pytest.fixture
def llm(tiny_bundle, tmp_path) -> Path:
    """A tiny Llama with the tokenizer and template of a chat model."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bundle / "gaze_vlm")
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    special = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, **special, pad_token_id=tokenizer.pad_token_id)
    set_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def losses_of(folder: Path, name: str = "loss") -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return GazeVLM.from_pretrained(folder).state_dict()


def command(*arguments) -> list[str]:
    return [str(EXAMPLES / "sft.py"), *QUICK, *map(str, arguments)]


# ---- what comes out


def test_a_model_out_of_parts_is_trained_by_lora_and_merged(sft, export, llm, tiny_bundle, tmp_path):
    out = tmp_path / "run"
    sft(
        "--dataset", export, "--llm", llm, "--vision", tiny_bundle / "gaze_classifier",
        "--scanpath", tiny_bundle / "scanpath_predictor", "--model_config", "graph_hidden_size=16", "merge_size=2",
        "--use_peft", "--lora_r", "2", "--tasks", "report:1,vqa:2", "--max_steps", "4", "--eval_strategy", "steps",
        "--eval_steps", "2", "--save_steps", "2", "--save_total_limit", "1", "--predict_with_generate",
        "--generation_max_new_tokens", "4", "--output_dir", out,
    )  # fmt: skip
    assert (
        len(losses_of(out)) == 4
        and {"eval_loss", "eval_macro_f1"} <= json.loads((out / "metrics.json").read_text())["validation"].keys()
    )
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-4"]
    assert (tmp_path / "run-base" / "model.safetensors").is_file() and not (out / "model.safetensors").exists()
    assert "no medical device" in (out / "README.md").read_text()
    base, adapted, merged = GazeVLM.from_pretrained(tmp_path / "run-base"), load_adapter(out), merge_adapter(out)
    trained = [name for name, one in merged.named_parameters() if not torch.equal(one, base.get_parameter(name))]
    assert any("language_model.layers" in name for name in trained) and any("visual_gaze_graph" in n for n in trained)
    assert not any("vision_tower" in name or "scanpath_predictor" in name for name in trained)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(adapted.eval()(ids).logits, merged.eval()(ids).logits, atol=1e-4, rtol=1e-4)


def test_without_a_language_model_a_small_one_is_trained_in_full(sft, export, tiny_bundle, tmp_path):
    out = tmp_path / "run"
    sft(
        "--dataset", export, "--vision", tiny_bundle / "gaze_vlm", "--gaze", "given", "--max_steps", "2",
        "--eval_strategy", "no", "--save_strategy", "no", "--output_dir", out,
    )  # fmt: skip
    trained = GazeVLM.from_pretrained(out)
    assert isinstance(trained.config.text_config, OPTConfig) and trained.model.scanpath_predictor is None
    before = weights_of(tmp_path / "run-base")
    same = {name for name, value in trained.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in before if "vision_tower" in name} <= same
    assert "model.language_model.decoder.layers.0.fc1.weight" not in same


def test_a_checkpoint_says_what_it_was_trained_for(sft, refused, export, model, tiny_bundle, tmp_path):
    options = ["--dataset", export, "--gaze", "given", "--max_steps", 1, "--eval_strategy", "no", "--tasks", "vqa:2"]
    sft(*options, "--output_dir", tmp_path / "new", "--vision", tiny_bundle / "gaze_vlm")
    assert AutoConfig.from_pretrained(tmp_path / "new").tasks == ["vqa"]
    sft(*options, "--output_dir", tmp_path / "further", "--model", model)
    assert AutoConfig.from_pretrained(model).tasks == ["report"]
    assert AutoConfig.from_pretrained(tmp_path / "further").tasks == ["report", "vqa"]
    sft(*options, "--output_dir", tmp_path / "adapter", "--model", model, "--use_peft")
    assert AutoConfig.from_pretrained(tmp_path / "adapter").tasks == ["report", "vqa"]
    line = refused(*options, "--output_dir", tmp_path / "o", "--model", tmp_path / "adapter")
    assert "adapter: an adapter; merge it into its base first" in line


def test_the_examples_configs_say_only_what_there_is(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import sft
    from trl import TrlParser

    monkeypatch.chdir(EXAMPLES.parent)
    listed = [file for file in (EXAMPLES / "configs").glob("*.yaml") if "stages" in file.name]
    for file in (file for file in (EXAMPLES / "configs").glob("*.yaml") if file not in listed):
        parser = TrlParser((sft.ScriptArguments, sft.GazeSFTConfig))
        script, training = parser.parse_args_and_config(["--config", str(file), "--bf16", "false", "--use_cpu"])
        known = yaml.safe_load(file.read_text())
        assert training.output_dir == known["output_dir"] and script.gaze == known["gaze"]
        for name in ("vision", "scanpath"):
            place = getattr(script, name)
            assert place is None or not place.startswith("src") or (EXAMPLES.parent / place / "config.json").is_file()
        assert script.stages is None or Path(script.stages) in [one.relative_to(EXAMPLES.parent) for one in listed]


def test_the_stages_of_gazex_without_a_task_are_its_stages_but_for_that_task(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import sft
    from sft_stages import read_stages, without

    arguments = ["--config", str(EXAMPLES / "configs" / "gazex.yaml"), "--bf16", "false", "--use_cpu"]
    script, _, options = sft.parse((sft.ScriptArguments, sft.GazeSFTConfig), "", arguments)

    def of(name: str) -> list:
        script.stages = str(EXAMPLES / "configs" / f"gazex_stages{name}.yaml")
        return read_stages(script, options)

    assert [stage.name for stage in of("")] == ["gaze", "downstream"]
    tasks = [{part.split(":")[0] for part in stage.script.tasks.split(",")} for stage in of("")]
    assert tasks == [set(GAZE_TASKS), set(TASKS) - set(GAZE_TASKS)]
    for task in GAZE_TASKS:
        left = [
            [stage.name, stage.options, parse_weights(stage.script.tasks, TASKS, "")]
            for stage in of(f"_without_{task}")
        ]
        assert left == [
            [stage.name, stage.options, parse_weights(stage.script.tasks, TASKS, "")]
            for stage in without(of(""), [task])
        ]


# ---- several processes, kill and resume, the Hub


def test_two_processes_train_like_one(sft, export, model, tmp_path):
    options = ["--dataset", export, "--model", model, "--gaze", "given:1,none:1", "--max_steps", 4]
    options += ["--eval_strategy", "steps", "--eval_steps", 4, "--save_strategy", "no"]
    options += ["--per_device_eval_batch_size", 1]  # the loss of evaluation is a mean over batches
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two += command(*options, "--output_dir", tmp_path / "two")
    done = subprocess.run(two, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    sft(*options, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", "4")
    one, other = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert len(one) == 4
    np.testing.assert_allclose(other, one, rtol=1e-4)
    np.testing.assert_allclose(*(losses_of(tmp_path / name, "eval_loss") for name in ("one", "two")), rtol=1e-4)


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_weights(sft, export, model, tmp_path):
    options = ["--dataset", export, "--model", model, "--gaze", "given:1,none:1", "--max_steps", 40, "--save_steps", 4]
    options += ["--eval_strategy", "steps", "--eval_steps", 8, "--save_total_limit", 2]
    out = tmp_path / "killed"
    running = subprocess.Popen(
        ["accelerate", "launch", "--cpu", "--num_processes", "1", *command(*options, "--output_dir", out)],
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
    assert not (out / "checkpoint-40").exists()
    sft(*options, "--output_dir", out, "--resume_from_checkpoint", "last")
    sft(*options, "--output_dir", tmp_path / "whole")
    resumed, whole = weights_of(out), weights_of(tmp_path / "whole")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert losses_of(out) == losses_of(tmp_path / "whole")


def test_an_adapter_is_pushed_to_the_hub_and_comes_back(export, model, tmp_path, fake_hub):
    options = ["--dataset", export, "--model", model, "--gaze", "given", "--max_steps", 2, "--use_peft", "--lora_r", 2]
    options += [
        "--eval_strategy",
        "no",
        "--push_to_hub",
        "--hub_model_id",
        "org/tiny",
        "--output_dir",
        tmp_path / "run",
    ]
    done = subprocess.run(
        [sys.executable, *command(*options)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | fake_hub.environment(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files = fake_hub.files("org/tiny")
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= files.keys()
    assert b"no medical device" in files["README.md"]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "model"
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    back = tmp_path / "back"
    back.mkdir()
    for name, content in files.items():
        if "/" not in name:
            (back / name).write_bytes(content)
    ids = torch.tensor([[5, 6, 7]])
    one, other = (load_adapter(folder, GazeVLM.from_pretrained(model)).eval() for folder in (back, tmp_path / "run"))
    assert torch.equal(one(ids).logits, other(ids).logits)


def test_nothing_is_pushed_unasked(sft, export, model, tmp_path, fake_hub):
    sft("--dataset", export, "--model", model, "--gaze", "given", "--max_steps", 1, "--eval_strategy", "no",
        "--output_dir", tmp_path / "run")  # fmt: skip
    assert fake_hub.requests == []


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--films", "nowhere"], "nowhere: neither NAME=DIR nor a folder that gaze-vlm data wrote"),
        (["--tasks", "sing"], "'sing' is no task with its weight; known: report, vqa"),
        (["--gaze", "guessed:1"], "'guessed:1' is no source of gaze"),
        (["--context", "age"], "'age' is no context"),
        (["--model_config", "depth=3"], "GazeVLMConfig has no 'depth'|what --model says already"),
        (["--llm", "x"], "--llm: what --model says already"),
        (["--load_in_4bit"], "add --use_peft"),
        (["--max_length", "3"], "max_length=3 cuts its 1 images"),
        (["--films", "nih_cxr=nowhere"], "nowhere"),
        (["--use_peft", "--lora_target_modules", "q_prog"], "no layer 'q_prog'"),
        (["--resume_from_checkpoint", "nowhere"], "nowhere"),
        (["--packing"], "packing must be false"),
        (["--dataset", "more"], "--dataset is given twice; several values stand behind one --dataset"),
        (["--config", str(EXAMPLES / "sft.py")], "--config: "),
    ],
)
def test_what_cannot_be_is_said_in_one_line(refused, export, model, tmp_path, options, message):
    line = refused("--dataset", export, "--model", model, "--gaze", "given", "--output_dir", tmp_path / "o", *options)
    assert re.search(message, line), line


def test_a_new_model_needs_a_tower(refused, export, tmp_path):
    assert "--vision" in refused("--dataset", export, "--gaze", "given", "--output_dir", tmp_path / "o")


def test_predicted_gaze_needs_a_predictor(refused, export, tiny_bundle, tmp_path):
    line = refused(
        "--dataset",
        export,
        "--vision",
        tiny_bundle / "gaze_vlm",
        "--gaze",
        "predicted",
        "--output_dir",
        tmp_path / "o",
    )
    assert "no scanpath predictor; give --scanpath" in line


def test_four_bit_is_for_the_language_model_alone(sft, model):
    import sft_model
    from sft import ScriptArguments
    from transformers.quantizers.quantizers_utils import should_convert_module

    skipped = sft_model.four_bit(ScriptArguments(use_peft=True)).llm_int8_skip_modules
    linear = [
        name for name, part in GazeVLM.from_pretrained(model).named_modules() if isinstance(part, torch.nn.Linear)
    ]
    converted = {name for name in linear if should_convert_module(name, skipped)}
    assert converted == {name for name in linear if name.startswith("model.language_model.")} != set()


def test_another_model_is_not_taken_for_the_one_asked_for(sft, refused, export, llm, tiny_bundle, tmp_path):
    options = ["--dataset", export, "--vision", tiny_bundle / "gaze_vlm", "--gaze", "given", "--max_steps", "1"]
    options += ["--eval_strategy", "no", "--output_dir", tmp_path / "run", "--llm", llm]
    sft(*options, "--model_config", "graph_hidden_size=16")
    sft(*options, "--model_config", "graph_hidden_size=16")
    assert not list(tmp_path.glob("*.partial"))
    line = refused(*options, "--model_config", "graph_hidden_size=8")
    assert "run-base: made of another model_config" in line
    checkpoint = tmp_path / "run" / "checkpoint-1"
    assert checkpoint.is_dir()
    line = refused(
        *options, "--model_config", "graph_hidden_size=16", "--use_peft", "--resume_from_checkpoint", "last"
    )
    assert "trained without --use_peft" in line
    options[options.index(tmp_path / "run")] = tmp_path / "other"
    line = refused(*options, "--model_config", "graph_hidden_size=8", "--resume_from_checkpoint", checkpoint)
    assert "trained with another graph_hidden_size" in line


def test_graph_and_projector_train_in_float32_beside_half_precision(sft, export, model, tmp_path):
    from safetensors.torch import load_file

    out = tmp_path / "run"
    options = ["--dataset", export, "--model", model, "--gaze", "given", "--dtype", "bfloat16", "--use_peft"]
    sft(*options, "--max_steps", 1, "--eval_strategy", "no", "--output_dir", out)
    assert {value.dtype for value in load_file(out / "adapter_model.safetensors").values()} == {torch.float32}
