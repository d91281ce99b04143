"""examples/ablate.py as a person types it, on data and models made by code."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("trl", reason='training needs trl: pip install "gaze2report[train]"')

from transformers import AutoConfig
from trl import TrlParser

from gaze_vlm import GazeVLM
from gaze_vlm.data.export import RECORD
from gaze_vlm.data.schema import SCHEMA, row
from gaze_vlm.findings import FINDINGS
from gaze_vlm.labeler import label
from gaze_vlm.metrics.reports import label_f1
from gaze_vlm.training.adapters import merge_adapter

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = shlex.split(
    "--use_cpu --bf16 false --gradient_checkpointing false --report_to none --disable_tqdm true --max_steps 1 "
    "--learning_rate 1e-2 --per_device_train_batch_size 2 --per_device_eval_batch_size 4 --eval_strategy no "
    "--save_strategy no --generation_max_new_tokens 4"
)
TEXTS = ("Heart size is normal. The lungs are clear.", "There is cardiomegaly. There is a pleural effusion.")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import ablate

    monkeypatch.setattr(ablate, "RESAMPLES", 50)
    return ablate


@pytest.fixture
def ablate(module):
    return lambda *arguments: module.main([*QUICK, *map(str, arguments)])


@pytest.fixture
def refused(ablate, capsys):
    """What the example says in one line before it ends with status 2."""

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            ablate(*arguments)
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


DICTATED = [
    {"text": text, "start": start, "end": start + 0.2}
    for text, start in (("normal", 0.5), ("heart", 0.8), (".", 1.4), ("clear", 1.6), ("lungs", 2.0), (".", 2.8))
]


def write_export(folder: Path, splits: dict[str, int], *, gazed: bool = True, **columns) -> Path:
    """Two films a patient; every third film without gaze, the others' on three places, one second each."""
    import datasets

    rng = np.random.default_rng(1)
    (folder / "data").mkdir(parents=True)
    for split, count in splits.items():
        rows = []
        for number in range(count):
            path = {name: [float(v) for v in rng.random(3)] for name in ("x", "y")} | {"duration": [0.9] * 3}
            rows.append(
                row(
                    image=Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)),
                    image_id=f"{folder.name}-{split}-{number}",
                    patient_id=f"{folder.name}-{split}-{number // 2}",
                    report={"findings": TEXTS[number % 2], "impression": None, "indication": None, "comparison": None},
                    scanpath=path | {"onset": [0.0, 1.0, 2.0]} if gazed and number % 3 else None,
                    source="made",
                    **columns,
                )
            )
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(rows, features=SCHEMA).to_parquet(file)
    (folder / RECORD).write_text("{}\n")
    return folder


@pytest.fixture
def export(tmp_path) -> Path:
    return write_export(tmp_path / "paired", {"train": 8, "validation": 4, "test": 6})


@pytest.fixture
def parts(tiny_bundle) -> list:
    return ["--vision", tiny_bundle / "gaze_vlm", "--model_config", "graph_hidden_size=16", "merge_size=2"]


def scores_of(folder: Path, what: str) -> dict[tuple[str, str], dict]:
    document = json.loads((folder / "results.json").read_text())
    return {(one["metric"], one["system"]): one for one in document["tables"][what]["scores"]}


def protocol_of(folder: Path, what: str) -> list[str]:
    return json.loads((folder / "results.json").read_text())["tables"][what]["protocol"]


# ---- what comes out


def test_gaze_from_everywhere_is_measured_on_one_model(ablate, module, export, tiny_bundle, tmp_path, monkeypatch):
    out = tmp_path / "run"
    options = ["--vary", "gaze", "--dataset", export, "--model", tiny_bundle / "gaze_vlm", "--output_dir", out]
    ablate(*options)
    assert {path.name for path in out.iterdir()} == {"model", "settings.json", "results.md", "results.json"}
    known = {
        source: json.loads((out / "model" / f"predictions-{source}.json").read_text()) for source in module.SOURCES
    }
    ids = [f"paired-test-{number}" for number in range(6)]
    assert all([case["image_id"] for case in theirs] == ids for theirs in known.values())
    assert [case["gaze"] for case in known["given"]] == ["none", "given", "given"] * 2
    assert {case["gaze"] for case in known["predicted"]} == {"predicted"}
    assert known["given"][0]["nll"] == known["none"][0]["nll"] and known["given"][1]["nll"] != known["none"][1]["nll"]
    assert known["shuffled"][1]["nll"] != known["given"][1]["nll"]

    scores, truth = scores_of(out, "gaze"), [label(TEXTS[number % 2]).positive() for number in range(6)]
    nll = scores["negative log-likelihood a token", "reader's gaze"]
    assert nll["n"] == 6 and nll["difference"] is None
    assert nll["interval"]["estimate"] == pytest.approx(np.mean([case["nll"] for case in known["given"]]))
    other = scores["negative log-likelihood a token", "no gaze"]["difference"]
    assert other["estimate"] == pytest.approx(
        np.mean([a["nll"] - b["nll"] for a, b in zip(known["given"], known["none"], strict=True)])
    )
    template = label_f1([label(module.NORMAL_TEMPLATE).positive()] * 6, truth, FINDINGS)
    assert scores["label F1, micro, 14 findings", "normal template"]["interval"]["estimate"] == pytest.approx(
        template.micro_f1
    )
    assert ("label F1, micro, 14 findings", "nearest training case's report") in scores
    assert ("negative log-likelihood a token", "normal template") not in scores

    protocol = protocol_of(out, "gaze")
    assert protocol[0] == "paired: films and reports are paired"
    assert any("reader's gaze 4, predicted gaze 6, no gaze 0, another's gaze 4" in line for line in protocol)
    assert any("of 3 groups" in line or "3 groups" in line for line in protocol)
    for file in ("results.md", "results.json"):
        assert not any(sentence in (out / file).read_text() for text in TEXTS for sentence in text.split(". "))

    # a second call trains and measures nothing; one that was stopped measures what is missing
    first = (out / "results.md").read_text()
    monkeypatch.setattr(module, "prepare", lambda *_: pytest.fail("trained again"))
    lost = out / "model" / "predictions-none.json"
    lost.unlink()
    ablate(*options)
    assert (out / "results.md").read_text() == first and json.loads(lost.read_text()) == known["none"]
    monkeypatch.setattr(module, "trained", lambda *_: pytest.fail("measured again"))
    ablate(*options)
    assert (out / "results.md").read_text() == first


def test_edges_and_ranks_share_the_model_of_the_options(ablate, module, export, parts, tmp_path):
    out = tmp_path / "run"
    ablate(
        "--vary", "edges", "lora_r", "--ranks", "2", "3", "--lora_r", "2", "--use_peft", "--dataset", export, *parts,
        "--gaze", "given", "--max_eval_samples", "4", "--output_dir", out,
    )  # fmt: skip
    folders = {path.name for path in out.iterdir() if path.is_dir() and not path.name.endswith("-base")}
    assert folders == {
        "model", "without-saccades", "without-feature-edges", "without-the-grid", "no-edges", "fixations-as-nodes",
        "r-3",
    }  # fmt: skip
    edges = {name: json.loads((out / f"{name}-base" / "config.json").read_text())["graph_edges"] for name in folders}
    assert edges["no-edges"] == [] and edges["without-the-grid"] == ["feature", "saccade"]
    assert edges["without-saccades"] == ["feature", "grid"] and edges["without-feature-edges"] == ["grid", "saccade"]
    assert len(edges["model"]) == len(edges["r-3"]) == len(edges["fixations-as-nodes"]) == 3
    assert json.loads((out / "fixations-as-nodes-base" / "config.json").read_text())["fixation_nodes"] is True
    model, _ = module.trained(module.Variant("", module.AblationArguments()), out / "model")
    merged, base = merge_adapter(out / "model"), GazeVLM.from_pretrained(out / "model-base")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(model(ids).logits, merged.eval()(ids).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model(ids).logits, base.eval()(ids).logits, atol=1e-3)
    ranks = {name: json.loads((out / name / "adapter_config.json").read_text())["r"] for name in ("model", "r-3")}
    assert ranks == {"model": 2, "r-3": 3}
    systems = {system for metric, system in scores_of(out, "edges") if metric.startswith("negative")}
    assert systems == {
        "all edges", "without saccades", "without feature edges", "without the grid", "no edges", "fixations as nodes",
    }  # fmt: skip
    scores = scores_of(out, "lora_r")
    assert {system for metric, system in scores if metric.startswith("negative")} == {"r = 2", "r = 3"}
    assert all(one["n"] == 4 for one in scores.values())
    assert "LoRA's alpha is 16 at every rank" in protocol_of(out, "lora_r")
    text = (out / "results.md").read_text()
    assert text.index("## edges") < text.index("## lora_r")


def test_gaze_tasks_are_left_out_of_the_stages_that_have_them(ablate, module, parts, tmp_path, monkeypatch, capsys):
    export = write_export(tmp_path / "read", {"train": 8, "test": 6}, transcript=DICTATED)
    stages = [{"name": "gaze", "tasks": {"keyframe": 1, "trajectory": 0.5, "order": 1}}]
    stages += [{"name": "downstream", "tasks": "report:1,order:1", "generation_max_new_tokens": 3}]
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(stages))
    out = tmp_path / "run"
    options = ["--vary", "tasks", "--dataset", export, *parts, "--gaze", "none", "--stages", tmp_path / "stages.yaml"]
    options += ["--output_dir", out]
    ablate(*options)
    learned = {
        "model": ["report", "keyframe", "trajectory", "order"],
        "without-keyframe": ["report", "trajectory", "order"],
        "without-trajectory": ["report", "keyframe", "order"],
        "without-order": ["report", "keyframe", "trajectory"],
        "without-gaze-tasks": ["report"],
    }
    assert {name: AutoConfig.from_pretrained(out / name).tasks for name in learned} == learned
    assert not (out / "without-gaze-tasks-stages" / "1-gaze").exists(), "a stage without tasks is left out"
    settings = json.loads((out / "without-order-stages" / "settings.json").read_text())
    assert settings["1-gaze"]["tasks"] == "keyframe:1.0,trajectory:0.5"
    assert settings["2-downstream"]["tasks"] == "report:1.0"

    names = ["all gaze tasks", *(name.replace("-", " ") for name in learned if name != "model")]
    scores = scores_of(out, "tasks")
    nll = [scores["negative log-likelihood a token", name] for name in names]
    assert all(one["n"] == 6 and len({*one["interval"].values()}) == 3 for one in nll)
    assert nll[0]["difference"] is None
    cases = {
        name: json.loads((out / name / "predictions-none.json").read_text()) for name in ("model", "without-order")
    }
    gaps = [one["nll"] - other["nll"] for one, other in zip(*cases.values(), strict=True)]
    difference = scores["negative log-likelihood a token", "without order"]["difference"]
    assert difference["estimate"] == pytest.approx(np.mean(gaps)) != 0
    assert difference["low"] < difference["estimate"] < difference["high"]
    assert ("label F1, micro, 14 findings", "normal template") in scores
    assert any("a stage without tasks is left out" in line for line in protocol_of(out, "tasks"))
    printed = capsys.readouterr().out
    assert printed.count("| without trajectory |") == 3 and "95 % interval" in printed
    assert printed.splitlines()[-1] == str(out / "results.md")

    monkeypatch.setattr(module, "train_stages", lambda *_, **__: pytest.fail("trained again"))
    ablate(*options)
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(stages[::-1]))
    with pytest.raises(SystemExit):
        ablate(*options)


def test_gaze_tasks_are_left_out_of_one_mixture(module, tmp_path):
    script = module.AblationArguments(tasks="report:2,keyframe:1,trajectory:0.5,order:1", gaze="none")
    variants = {one.name: one.script.tasks for one in module.variants_of("tasks", script, {})}
    assert variants == {
        "all gaze tasks": script.tasks,
        "without keyframe": "report:2.0,trajectory:0.5,order:1.0",
        "without trajectory": "report:2.0,keyframe:1.0,order:1.0",
        "without order": "report:2.0,keyframe:1.0,trajectory:0.5",
        "without gaze tasks": "report:2.0",
    }


def test_training_that_was_stopped_goes_on_from_its_last_checkpoint(
    ablate, module, export, parts, tmp_path, monkeypatch
):
    out, prepare, resumed = tmp_path / "run", module.prepare, []
    monkeypatch.setattr(module, "table", lambda *_: module.ScoreTable(()))
    options = ["--vary", "gaze", "--dataset", export, *parts, "--gaze", "given:1,none:1", "--output_dir", out]
    options += ["--max_steps", "3", "--save_strategy", "steps", "--save_steps", "1"]

    def recorded(script, training, *rest):
        resumed.append(training.resume_from_checkpoint)
        return prepare(script, training, *rest)

    monkeypatch.setattr(module, "prepare", recorded)
    ablate(*options)
    whole = GazeVLM.from_pretrained(out / "model").state_dict()
    for name in ("metrics.json", "model.safetensors"):
        (out / "model" / name).unlink()
    shutil.rmtree(out / "model" / "checkpoint-3")
    ablate(*options)
    assert resumed == [None, str(out / "model" / "checkpoint-2")]
    again = GazeVLM.from_pretrained(out / "model").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_matched_films_say_that_gaze_cannot_matter(export, parts, tiny_bundle, tmp_path):
    """As typed in a shell, for it is another process."""
    names = [{"name": name, "certainty": 1.0, "annotator": None} for name in ("Cardiomegaly",)]
    films = write_export(tmp_path / "films", {"train": 4, "validation": 4}, gazed=False, findings=names)
    out = tmp_path / "run"
    command = ["--vary", "gaze", "--dataset", export, "--films", films, *parts, "--gaze", "predicted:1,none:1"]
    command += ["--scanpath", tiny_bundle / "scanpath_predictor", "--output_dir", out]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "ablate.py"), *QUICK, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str(out / "results.md")
    protocol = protocol_of(out, "gaze")
    assert "NOT paired" in protocol[0] and protocol[0].endswith("gaze cannot be expected to matter")
    assert "reader's gaze: left out, no film comes with fixations" in protocol
    assert any("of the validation split" in line for line in protocol), "films have no test split"
    assert {system for _, system in scores_of(out, "gaze")} == {
        "predicted gaze", "no gaze", "another's gaze", "normal template", "nearest training case's report",
    }  # fmt: skip


def test_losses_of_cases_are_those_of_each_alone(module, tiny_bundle):
    torch.manual_seed(0)
    model = GazeVLM.from_pretrained(tiny_bundle / "gaze_vlm").eval()
    ids, labels = torch.randint(5, 300, (3, 9)), torch.full((3, 9), -100)
    mask = torch.ones_like(ids)
    for number, (start, end) in enumerate([(3, 9), (5, 7), (1, 8)]):
        labels[number, start:end] = ids[number, start:end]
        mask[number, end:] = 0
    losses = module.answer_losses(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
    alone = [
        model(input_ids=one[None], attention_mask=its[None], labels=own[None]).loss.item()
        for one, its, own in zip(ids, mask, labels, strict=True)
    ]
    np.testing.assert_allclose(losses, alone, rtol=1e-5)


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--vary: gaze, edges, lora_r, tasks, or some of them; got none"),
        (["--vary", "depth"], "got depth"),
        (["--vary", "lora_r"], "add --use_peft"),
        (["--vary", "lora_r", "--use_peft", "--ranks", "4"], "at least two different ones"),
        (["graph_edges=[]", "--vary", "edges"], "with edges of its own"),
        (["--vary", "edges", "--eval_gaze", "predicted"], "--eval_gaze predicted: there is no scanpath predictor"),
        (["--vary", "gaze", "--push_to_hub"], "variants are not pushed"),
        (["--vary", "gaze", "--films", "nowhere"], "nowhere: neither NAME=DIR nor a folder"),
        (["--vary", "tasks"], "--vary tasks: keyframe is not in --tasks, so it cannot be left out"),
        (["--vary", "tasks", "--tasks", "report,keyframe,order"], "trajectory is not in --tasks, so it"),
        (["--vary", "tasks", "--tasks", "keyframe,trajectory,order"], "there is nothing but gaze tasks to train on"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(refused, export, parts, tmp_path, options, message):
    out = tmp_path / "o"
    line = refused("--dataset", export, "--gaze", "given", "--output_dir", out, *parts, *options)
    assert re.search(re.escape(message), line), line
    assert not out.exists()


def test_edges_of_a_finished_model_cannot_be_varied(refused, export, tiny_bundle, tmp_path):
    model = ["--model", tiny_bundle / "gaze_vlm", "--gaze", "given", "--output_dir", tmp_path / "o"]
    assert "--model: --vary edges trains new models" in refused("--vary", "edges", "--dataset", export, *model)


def test_a_folder_of_other_settings_is_refused(refused, module, export, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train", lambda *_: None)
    monkeypatch.setattr(module, "table", lambda *_: module.ScoreTable(()))
    options = ["--dataset", export, *parts, "--gaze", "given", "--output_dir", tmp_path / "o", "--vary", "gaze"]
    module.main([*QUICK, *map(str, options)])
    line = refused(*options, "--seed", "7", "--sections", "impression", "findings")
    assert line.endswith("holds an experiment with another sections, seed; choose another folder")
    module.main([*QUICK, *map(str, options), "edges"])


def test_the_docstring_holds_the_very_commands(module, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    text = re.sub(r"\\\n\s*", "", module.__doc__)
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    accelerate launch ")]
    assert len(commands) == 4
    for command in commands:
        rest = command[command.index("examples/ablate.py") + 1 :]
        parser = TrlParser((module.AblationArguments, module.GazeSFTConfig))
        script, _ = parser.parse_args_and_config([*rest, "--use_cpu", "--bf16", "false"])
        assert script.dataset and set(script.vary) <= set(module.VARIED)
        assert "lora_r" not in script.vary or script.use_peft
        assert ("tasks" in script.vary) == (script.stages is not None)
