"""examples/train_scanpath.py and scanpath_experiments.py as a person types them, on data and models made by code."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("datasets", reason='training needs datasets: pip install "gaze2report[train]"')
pytest.importorskip("accelerate", reason='training needs accelerate: pip install "gaze2report[train]"')

from transformers import HfArgumentParser, set_seed

from gaze_vlm import ScanpathPredictor, ScanpathPredictorConfig, ScanpathPredictorProcessor
from gaze_vlm.data.schema import SCHEMA, row

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = shlex.split(
    "--use_cpu --report_to none --disable_tqdm true --logging_steps 1 --learning_rate 1e-2 "
    "--encoder_learning_rate 1e-2 --duration_learning_rate 1e-2"
)
TASKS = ("edema", "lung lesion", "cardiomegaly")
PLAIN = {"noise_rank": 0, "regression_loss": "l1"}  # what a model without a distribution can have
TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_encoder_layers": 1,
    "num_decoder_layers": 1, "num_query_tokens": 4, "max_fixations": 6,
    "qformer_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def script(monkeypatch):
    """The module of an example, as when it is run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import scanpath_experiments
    import train_scanpath

    return {"train_scanpath": train_scanpath, "scanpath_experiments": scanpath_experiments}


@pytest.fixture
def train(script):
    return lambda *arguments: script["train_scanpath"].main([*map(str, arguments), *QUICK])


@pytest.fixture
def experiment(script):
    return lambda *arguments: script["scanpath_experiments"].main([*map(str, arguments), *QUICK])


@pytest.fixture
def gazesearch(tmp_path) -> str:
    """8 readings to train on, 4 to choose by and 5 to test on, two of each finding or so; no films."""
    rng = np.random.default_rng(0)
    records = [
        {
            "name": f"{number // 2}-{split}.jpg",
            "task": TASKS[number % 3],
            "X": rng.integers(0, 224, 3 + number % 3).tolist(),
            "Y": rng.integers(0, 224, 3 + number % 3).tolist(),
            "T": rng.uniform(0.1, 0.5, 3 + number % 3).tolist(),
            "split": split,
        }
        for split, count in (("train", 8), ("valid", 4), ("test", 5))
        for number in range(count)
    ]
    (tmp_path / "gazesearch.json").write_text(json.dumps(records))
    return f"gazesearch={tmp_path / 'gazesearch.json'}"


@pytest.fixture
def iu_xray(tmp_path, film_file) -> str:
    """Films with reports of different lengths, in the layout of R2Gen: 8 and 4."""
    parts = {}
    for split, count in (("train", 8), ("val", 4)):
        parts[split] = []
        for number in range(count):
            name = f"CXR{number}{'9' * (split == 'val')}_IM-{number:04d}"
            film_file(f"iu/images/{name}/0.png", seed=number)
            text = " ".join(["the heart is normal in size ."] * (1 + number % 4))
            parts[split].append({"id": name, "report": text, "image_path": [f"{name}/0.png"], "split": split})
    (tmp_path / "iu" / "annotation.json").write_text(json.dumps(parts))
    return f"iu_xray={tmp_path / 'iu'}:r2gen"


@pytest.fixture
def readers(tmp_path) -> str:
    """An export with two readers, a and b, in two splits; b looks low on the film and a high."""
    import datasets

    from gaze_vlm.data.export import RECORD

    rng = np.random.default_rng(1)
    for split, count in (("train", 12), ("validation", 8)):
        rows = []
        for number in range(count):
            reader = "ab"[number % 2]
            path = {"x": rng.random(4), "y": 0.4 * rng.random(4) + 0.6 * (reader == "b"), "duration": rng.random(4)}
            rows.append(
                row(
                    image=Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)),
                    image_id=f"{split}-{number}",
                    patient_id=str(number // 2),
                    prompt="edema",
                    scanpath={k: [float(v) for v in c] for k, c in (path | {"onset": np.arange(4)}).items()},
                    reader=reader,
                    source=f"source {reader}",
                )
            )
        folder = tmp_path / "export" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=SCHEMA).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    (tmp_path / "export" / RECORD).write_text("{}\n")
    return str(tmp_path / "export")


@pytest.fixture
def model(tiny_bundle, tmp_path) -> Path:
    """A tiny model without dropout, with a language model that a report can be learned with."""
    source = tiny_bundle / "scanpath_predictor"
    config = ScanpathPredictorConfig.from_pretrained(source)
    config.update({"dropout": 0.0, "decoder_dropout": 0.0, "num_strategies": 1, "point_estimate": "mean"})
    config.update({"distribution": "none"})
    config.freeze_language_model = False
    config.text_config.dropout = 0.0
    config.qformer_config.hidden_dropout_prob = config.qformer_config.attention_probs_dropout_prob = 0.0
    set_seed(0)
    ScanpathPredictor(config).save_pretrained(tmp_path / "model")
    ScanpathPredictorProcessor.from_pretrained(source).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def parts(tmp_path) -> dict[str, Path]:
    """A pretrained vision tower with its image processor, and a language model with its tokenizer, as on the Hub."""
    from transformers import OPTConfig, OPTForCausalLM, ViTConfig, ViTImageProcessor, ViTModel

    set_seed(3)
    tower, language = tmp_path / "tower", tmp_path / "language"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(image_size=32, patch_size=16, intermediate_size=64, **sizes)).save_pretrained(tower)
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tower)
    tokenizer = ScanpathPredictorProcessor.from_pretrained(
        Path(sys.modules["gaze_vlm"].__file__).parent / "nano" / "scanpath_predictor"
    ).tokenizer
    tokenizer.save_pretrained(language)
    special = {"pad_token_id": 0, "bos_token_id": 4, "eos_token_id": 4}
    sizes |= {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
    OPTForCausalLM(OPTConfig(vocab_size=len(tokenizer), **special, **sizes)).save_pretrained(language)
    return {"vision_tower": tower, "language_model": language}


def history(folder: Path, name: str) -> list[float]:
    lines = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [line[name] for line in lines if name in line]


# ---- both stages


def test_both_stages_one_after_the_other(train, model, iu_xray, gazesearch, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train("--stage", "report", "--model", model, "--data", iu_xray, "--num_train_epochs", 6, "--output_dir", one)
    assert history(one, "loss")[-1] < 0.9 * history(one, "loss")[0]
    assert len(history(one, "eval_loss")) == 6, "each epoch"
    rest = ("--data", gazesearch, "--text", "finding:1,none:0.2", "--num_train_epochs", 6, "--output_dir", two)
    train("--stage", "gaze", "--model", one, *rest)
    assert history(two, "loss")[-1] < history(two, "loss")[0]
    metrics = json.loads((two / "metrics.json").read_text())
    assert metrics.keys() == {"train", "validation", "test"}
    assert metrics["validation"]["validation_scanmatch"] == pytest.approx(max(history(two, "eval_scanmatch"))), "best"
    saved = ScanpathPredictor.from_pretrained(two)
    given = ScanpathPredictor.from_pretrained(model)
    same = {name: value.equal(given.state_dict()[name]) for name, value in saved.state_dict().items()}
    assert not same["query_tokens"] and not same["slot_queries"]
    assert all(equal for name, equal in same.items() if name.startswith("vision_tower"))
    ScanpathPredictorProcessor.from_pretrained(two)


def test_matched_films_and_reports(train, model, tmp_path, caplog, film_file):
    nih, reports = tmp_path / "nih", tmp_path / "iu" / "annotation.json"
    (nih / "images").mkdir(parents=True)
    lines = ["image,patient,age,sex,view,labels,rsna_class,rsna_boxes,nih_boxes,split"]
    for number in range(6):
        film_file(f"nih/images/{number}.png", seed=number)
        lines.append(f"{number}.png,{number},50,M,PA,{'Cardiomegaly' if number % 2 else 'No Finding'},,[],[],"
                     f"{'validation' if number > 3 else 'train'}")  # fmt: skip
    (nih / "manifest.csv").write_text("\n".join(lines) + "\n")
    parts = {"train": "There is cardiomegaly in this film.", "val": "The heart is markedly enlarged, cardiomegaly."}
    film_file("iu/images/x.png")
    listed = {split: [{"id": f"CXR{i}_IM", "report": text, "image_path": ["x.png"], "split": split}]
              for i, (split, text) in enumerate(parts.items())}  # fmt: skip
    reports.write_text(json.dumps(listed))
    train(
        "--stage", "report", "--model", model, "--films", f"nih_cxr={nih}", "--data", f"iu_xray={reports}:r2gen",
        "--num_train_epochs", 1, "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert "1 of 1 reports beside 4 films, matched by finding; NOT paired" in caplog.text


def test_a_run_goes_on_from_its_last_checkpoint(train, model, gazesearch, tmp_path, capfd):
    common = ("--stage", "gaze", "--model", model, "--data", gazesearch, "--text", "finding:1,none:1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*common, "--num_train_epochs", 4, "--output_dir", whole)
    train(*common, "--num_train_epochs", 2, "--output_dir", parts)
    (parts / "checkpoint-99").mkdir()  # of a run that was killed while it wrote
    with pytest.raises(SystemExit):
        changed = ("--config", "dropout=0.5", "--resume_from_checkpoint", "last")
        train(*common, *changed, "--num_train_epochs", 4, "--output_dir", parts)
    assert (
        capfd.readouterr()
        .err.strip()
        .endswith(f"{parts}/checkpoint-2: trained with another dropout; resume with what it began with")
    )
    train(*common, "--num_train_epochs", 4, "--output_dir", parts, "--resume_from_checkpoint", "last")
    np.testing.assert_allclose(history(parts, "loss"), history(whole, "loss"), rtol=1e-5)
    np.testing.assert_allclose(history(parts, "eval_scanmatch"), history(whole, "eval_scanmatch"), rtol=1e-5)


@pytest.mark.parametrize(
    ("processes", "files", "last"),
    [
        (1, {1: ["rng_state.pth"], 2: ["rng_state.pth"], 10: ["rng_state.pth"]}, 10),
        (1, {1: ["rng_state.pth"], 10: []}, 1),
        (1, {3: ["rng_state_0.pth", "rng_state_1.pth"]}, 3),
        (2, {1: ["rng_state_0.pth", "rng_state_1.pth"], 2: ["rng_state_0.pth"]}, 1),
        (2, {3: ["rng_state.pth"]}, 3),
        (2, {3: ["rng_state_1.pth"]}, None),
    ],
)
def test_a_checkpoint_is_whole_when_every_process_has_written_it(
    processes, files, last, script, tmp_path, monkeypatch
):
    module = script["train_scanpath"]
    monkeypatch.setattr(module, "PartialState", lambda: SimpleNamespace(num_processes=processes))
    (tmp_path / "checkpoint-best").mkdir()
    for step, names in files.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ["trainer_state.json", *names]:
            (tmp_path / f"checkpoint-{step}" / name).touch()
    assert module.last_checkpoint(tmp_path) == (last and str(tmp_path / f"checkpoint-{last}"))


def test_a_model_saved_in_half_precision_is_trained_in_full(train, model, gazesearch, tmp_path):
    ScanpathPredictor.from_pretrained(model).half().save_pretrained(model)
    assert ScanpathPredictor.from_pretrained(model).dtype == torch.float16
    train("--model", model, "--data", gazesearch, "--text", "finding:1", "--num_train_epochs", 2, "--output_dir",
          tmp_path / "out")  # fmt: skip
    trained = ScanpathPredictor.from_pretrained(tmp_path / "out").state_dict()
    assert {value.dtype for value in trained.values() if value.is_floating_point()} == {torch.float32}
    assert all(value.isfinite().all() for value in trained.values())


LAUNCHED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from train_scanpath import main
for arguments in json.loads(sys.argv[2]):
    main(arguments)
"""


def test_two_processes_train_like_one(train, model, iu_xray, gazesearch, tmp_path):
    """The same global batch; reports of unequal lengths, so that the two have unequal numbers of tokens.

    Losses agree to 1e-4, relative: sums of float32 in another order, through three epochs of steps.
    """
    runs = []
    for stage, data in (("report", iu_xray), ("gaze", gazesearch)):
        options = ["--stage", stage, "--model", model, "--data", data, "--num_train_epochs", 3]
        options += ["--text", "finding:1,none:1", "--per_device_eval_batch_size", 3]
        runs.append((stage, [str(option) for option in options]))
    launched = [
        [*options, "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / f"{stage}-2"), *QUICK]
        for stage, options in runs
    ]
    (tmp_path / "launched.py").write_text(LAUNCHED)
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         tmp_path / "launched.py", EXAMPLES, json.dumps(launched)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for stage, options in runs:
        alone, two = tmp_path / f"{stage}-1", tmp_path / f"{stage}-2"
        train(*options, "--per_device_train_batch_size", 4, "--output_dir", alone)
        names = ["loss", "eval_loss", *(["eval_scanmatch", "loss_keep"] if stage == "gaze" else ["loss_report"])]
        for name in names:
            assert len(history(alone, name)) in (3, 6)
            np.testing.assert_allclose(history(two, name), history(alone, name), rtol=1e-4, err_msg=f"{stage} {name}")
        scores = [json.loads((folder / "metrics.json").read_text())["validation"] for folder in (alone, two)]
        assert scores[0]["validation_loss"] == pytest.approx(scores[1]["validation_loss"], rel=1e-4)


# ---- new models


def test_pretrained_parts_are_taken(script, parts, tmp_path):
    from transformers import OPTForCausalLM, ViTModel

    module = script["train_scanpath"]
    arguments = module.ScriptArguments(
        preset="nano", **{name: str(path) for name, path in parts.items()}, config=tiny_options(), image_size=32
    )
    model, processor = module.load_model(arguments)
    for part, source in ((model.vision_tower, ViTModel), (model.language_model, OPTForCausalLM)):
        given = source.from_pretrained(parts["vision_tower" if source is ViTModel else "language_model"]).state_dict()
        assert part.state_dict().keys() == given.keys()
        assert all(value.equal(given[name]) for name, value in part.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.language_model.parameters())
    assert model.config.hidden_size == 32 and model.config.distribution == "none"
    images = processor.image_processor
    assert (images.size["height"], images.size["width"]) == (32, 32)
    assert [*images.image_mean, *images.image_std] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    model.save_pretrained(tmp_path / "saved")
    again = ScanpathPredictor.from_pretrained(tmp_path / "saved").state_dict()
    assert all(value.equal(again[name]) for name, value in model.state_dict().items())


def test_pretrained_parts_in_half_precision_are_trained_in_full(script, parts):
    from transformers import OPTForCausalLM, ViTModel

    for part, kind in (("vision_tower", ViTModel), ("language_model", OPTForCausalLM)):
        kind.from_pretrained(parts[part]).half().save_pretrained(parts[part])
    module = script["train_scanpath"]
    given = {name: str(path) for name, path in parts.items()}
    model, _ = module.load_model(module.ScriptArguments(preset="nano", **given, config=tiny_options(), image_size=32))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_new_models_run_goes_on(train, parts, gazesearch, tmp_path):
    """What its configuration says is what its checkpoint's says."""
    given = [argument for name, path in parts.items() for argument in (f"--{name}", path)]
    common = ("--preset", "nano", *given, "--config", *tiny_options(), "--data", gazesearch, "--text", "finding:1")
    for epochs in (1, 2):
        train(*common, "--num_train_epochs", epochs, "--output_dir", tmp_path, "--resume_from_checkpoint", "last")
    assert len(history(tmp_path, "eval_loss")) == 2


def test_a_film_size_that_the_tower_does_not_take_is_refused_at_once(script, parts):
    module = script["train_scanpath"]
    given = {name: str(path) for name, path in parts.items()}
    with pytest.raises(ValueError, match="48"):
        module.load_model(module.ScriptArguments(preset="nano", **given, config=tiny_options(), image_size=48))


def tiny_options(**more) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in (TINY | PLAIN | more).items()] + ["distribution=none"]


def test_without_a_language_model_its_embeddings_stay(script, parts):
    module = script["train_scanpath"]
    given = {name: str(path) for name, path in parts.items()}
    model, _ = module.load_model(
        module.ScriptArguments(preset="nano", **given, no_language_model=True, config=tiny_options())
    )
    whole, _ = module.load_model(module.ScriptArguments(preset="nano", **given, config=tiny_options()))
    assert model.config.text_config.num_hidden_layers == 0
    assert len(whole.language_model.state_dict()) > len(model.language_model.state_dict())
    assert model.get_input_embeddings().weight.equal(whole.get_input_embeddings().weight)


def test_a_new_language_model_speaks_nanos_tokens_and_is_trained(script, parts):
    module = script["train_scanpath"]
    model, processor = module.load_model(
        module.ScriptArguments(preset="nano", vision_tower=str(parts["vision_tower"]), config=tiny_options())
    )
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)
    assert all(parameter.requires_grad for parameter in model.language_model.parameters())
    assert processor.tokenizer.padding_side == "right"


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "gaze"], "no data given"),
        (["--stage", "both", "--data", "{gazesearch}"], "stage"),
        (["--data", "gazesearch=/no/where"], "/no/where"),
        (["--data", "{gazesearch}", "--text", "reports:1"], "reports"),
        (["--data", "{gazesearch}", "--text", "report:1"], "row 0 (image 0-train) offers none of the texts"),
        (["--data", "{gazesearch}", "--readers", "x"], "no row is of reader 'x'"),
        (["--data", "{readers}", "--test_readers", "a"], "there is no test split"),
        (["--data", "{gazesearch}", "--films", "{gazesearch}"], "--films"),
        (["--data", "{gazesearch}", "--config", "distibution=none"], "distibution"),
        (["--data", "{gazesearch}", "--config", "distribution=gamma"], "distribution"),
        (["--data", "{gazesearch}", "--config", "max_fixations=9"], "its weights do not fit --config max_fixations=9"),
        (["--data", "{gazesearch}", "--resume_from_checkpoint", "{model}"], "no checkpoint to resume from"),
        (["--data", "{gazesearch}", "--metric_for_best_model", "accuracy"], "accuracy"),
        (["--data", "{gazesearch}", "--image_size", "9"], "--image_size: what --model says already"),
        (["--stage", "report", "--data", "{gazesearch}"], "no row can be used"),
        (["--data", "{gazesearch}", "--data", "{gazesearch}:image-disjoint"], "patients (images, where no patient"),
        (
            ["--stage", "report", "--data", "{gazesearch}", "--films", "{gazesearch}:image-disjoint"],
            "films must be of other patients than reports",
        ),
        (["--data", "{gazesearch}", "--model", "/no/model"], "/no/model"),
        (["--data", "{gazesearch}", "--model", "{bundle}/gaze_classifier"], "not a scanpath_predictor"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments, said, train, model, gazesearch, readers, tiny_bundle, tmp_path, capfd
):
    known = {"gazesearch": gazesearch, "readers": readers, "model": model, "bundle": tiny_bundle}
    arguments = [argument.format(**known) for argument in arguments]
    if "--model" not in arguments:
        arguments += ["--model", str(model)]
    if "--text" not in arguments:
        arguments += ["--text", "finding:1"]
    with pytest.raises(SystemExit) as stopped:
        train(*arguments, "--output_dir", tmp_path / "out")
    assert stopped.value.code == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert said in last
    assert "Traceback" not in last


@pytest.mark.parametrize("name", ["train_scanpath", "scanpath_experiments"])
def test_help_shows_the_commands_as_they_are_typed(name, script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script[name].main(["--help"])
    assert stopped.value.code == 0
    assert script[name].__doc__.strip() in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train_scanpath", "scanpath_experiments"])
def test_the_docstring_holds_the_very_commands(name, script):
    module = script[name]
    text = re.sub(r"\\\n\s*", "", module.__doc__)
    commands = [shlex.split(line) for line in text.splitlines() if re.match(r"    (accelerate launch|python) ", line)]
    assert len(commands) >= 3
    for command in commands:
        start = command.index(f"examples/{name}.py")
        kind = module.ScriptArguments if name == "train_scanpath" else module.ExperimentArguments
        parser = HfArgumentParser((kind, module.ScanpathTrainingArguments))
        if name == "scanpath_experiments":
            parser.add_argument("what")
        rest = [argument for argument in command[start + 1 :] if argument != "--bf16"]  # that asks for the machine
        options, *_ = parser.parse_args_into_dataclasses([*rest, "--use_cpu"])
        assert options.data


@pytest.mark.parametrize("name", ["single_gpu", "multi_gpu"])
def test_accelerate_knows_its_settings(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(EXAMPLES / "accelerate" / f"{name}.yaml"))
    assert config.mixed_precision == "bf16"
    assert config.num_processes == (1 if name == "single_gpu" else 2)


# ---- experiments


def test_readers_against_one_another(experiment, model, readers, tmp_path, capfd):
    from gaze_vlm.metrics.scanpath import scanmatch
    from gaze_vlm.scanpath import Scanpath

    out = tmp_path / "out"
    options = ("readers", "--model", model, "--data", readers, "--text", "finding:1", "--num_train_epochs", 2)
    experiment(*options, "--output_dir", out)
    results = json.loads((out / "results.json").read_text())
    scores = {(s["trained_on"], s["tested_on"]): s for s in results["scores"] if s["metric"].startswith("ScanMatch")}
    assert scores.keys() == {(one, other) for one in ("a", "b", "all") for other in ("a", "b", "all")}
    for (trained, tested), score in scores.items():
        known = json.loads((out / trained / "predictions.json").read_text())
        members = [record for record in known["test"] if tested in ("all", record["reader"])]
        paths = ([Scanpath.from_records(one[side]) for one in members] for side in ("predicted", "recorded"))
        assert score["n"] == len(members) == (8 if tested == "all" else 4)
        assert score["interval"]["estimate"] == pytest.approx(scanmatch(*paths).mean())
        assert {record["reader"] for record in known["training"]} == ({"a", "b"} if trained == "all" else {trained})
    assert "by which the best epoch was chosen" in (out / "results.md").read_text(), "there is no test split"
    capfd.readouterr()
    first = (out / "results.md").read_text()
    (out / "results.md").unlink()
    (out / "b" / "predictions.json").unlink()
    stamp = (out / "a" / "predictions.json").stat().st_mtime_ns
    experiment(*options, "--output_dir", out)
    assert (out / "a" / "predictions.json").stat().st_mtime_ns == stamp, "done before"
    assert (out / "results.md").read_text() == first
    with pytest.raises(SystemExit):
        experiment(*options, "--output_dir", out, "--seed", 9)
    assert "another seed" in capfd.readouterr().err


def test_sources_can_stand_for_readers(experiment, model, readers, tmp_path):
    options = ("--model", model, "--data", readers, "--text", "finding:1", "--num_train_epochs", 1)
    experiment("readers", "--by", "source", *options, "--output_dir", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {score["trained_on"] for score in results["scores"]} == {"source a", "source b", "all"}


def test_gaussian_against_deterministic(experiment, script, model, gazesearch, tmp_path):
    out = tmp_path / "out"
    options = ("--model", model, "--data", gazesearch, "--text", "finding:1", "--num_train_epochs", 1)
    experiment("deterministic", *options, "--output_dir", out)
    found = {name: ScanpathPredictor.from_pretrained(out / name).config for name in ("Gaussian", "deterministic")}
    assert {name: (config.distribution, config.point_estimate) for name, config in found.items()} == {
        "Gaussian": ("normal", "sample"),
        "deterministic": ("none", "mean"),
    }
    systems = {score["system"] for score in json.loads((out / "results.json").read_text())["scores"]}
    assert {"Gaussian", "deterministic", "uniform, 5 fixations"} <= systems
    text = (out / "results.md").read_text()
    assert "MedGaze" in text and "string edit distance" in text
    assert "one draw (Gaussian), the mean of the likeliest strategy (deterministic)" in text
    assert "put in front (references: 5, training scanpaths: 8)" in text, "its made-up time is not scored"
    known = json.loads((out / "Gaussian" / "predictions.json").read_text())
    raw = [
        record for record in json.loads(Path(gazesearch.partition("=")[2]).read_text()) if record["split"] == "test"
    ]
    case = script["scanpath_experiments"].case_of(known["test"][0], "recorded", centred=True)
    np.testing.assert_allclose(case.value.x, np.array(raw[0]["X"]) / 224, atol=1e-6)
    assert case.value.onset[0] == 0 and case.centred


def test_sentences_are_compared_with_the_same_sentence(experiment, script, model, readers, tmp_path, monkeypatch):
    """A reader's items are sentences, of a number and a text; what was learned from is what belongs to each."""
    import datasets

    folder, words = Path(readers) / "data", ["heart", "big", ".", "lungs", "clear", "."]
    told = [{"text": word, "start": 0.6 * i, "end": 0.6 * (i + 1)} for i, word in enumerate(words)]
    for file in folder.glob("*.parquet"):
        rows = datasets.Dataset.from_parquet(str(file), features=SCHEMA).to_list()
        datasets.Dataset.from_list([one | {"transcript": told} for one in rows], features=SCHEMA).to_parquet(file)
    known = {}
    monkeypatch.setattr(script["scanpath_experiments"], "compared", lambda given: (known.update(given), ([], {}))[1])
    options = ("--model", model, "--data", readers, "--text", "sentence:1", "--num_train_epochs", 1)
    experiment("deterministic", *options, "--output_dir", tmp_path / "out")
    case_of = script["scanpath_experiments"].case_of
    records = known["Gaussian"]["test"]
    assert len(records) == 16, "two sentences a row"
    assert {case_of(record, "recorded").id.partition(" / edema / ")[2] for record in records} == {
        "sentence 0: heart big.",
        "sentence 1: lungs clear.",
    }
    lengths = [len(record["recorded"]["x"]) for record in known["Gaussian"]["training"]]
    assert len(lengths) == 24 and max(lengths) < 1 + 4, "the fixations of a sentence, not all of the row's"


def test_settings_stay_as_they_were_written(script, tmp_path):
    module = script["scanpath_experiments"]
    training = module.ScanpathTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    settings = module.settings_of("readers", module.ExperimentArguments(data=["x"]), training)
    assert {"optim", "adam_beta1", "data_seed", "eval_steps", "world_size", "one_split"} <= settings.keys()
    for _ in range(2):
        module.claim(tmp_path / "out", settings, training)
        stamp = (tmp_path / "out" / "settings.json").stat().st_mtime_ns
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["settings.json"]
    module.claim(tmp_path / "out", settings, training)
    assert (tmp_path / "out" / "settings.json").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="another world_size"):
        module.claim(tmp_path / "out", settings | {"world_size": 4}, training)


def test_with_and_without_a_language_model(experiment, script, parts, gazesearch, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    # the table, which takes its time, is that of the other experiment
    monkeypatch.setattr(script["scanpath_experiments"], "compared", lambda known: (seen.extend(known), ([], {}))[1])
    given = [argument for name, path in parts.items() for argument in (f"--{name}", path)]
    options = ("--preset", "nano", *given, "--config", *tiny_options(dropout=0.0), "--data", gazesearch)
    experiment("language-model", *options, "--text", "finding:1", "--num_train_epochs", 1, "--output_dir", out)
    layers = {
        folder.name: ScanpathPredictorConfig.from_pretrained(folder).text_config.num_hidden_layers
        for folder in out.iterdir()
        if folder.is_dir()
    }
    assert layers == {"with-language-model": 1, "token-embeddings-alone": 0}
    assert seen == ["with language model", "token embeddings alone"]


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        ("readers", [], "two are needed"),
        ("language-model", [], "no --model"),
        ("deterministic", ["--stage", "report"], "experiments train stage gaze"),
        ("first-stage", ["--eval_strategy", "no", "--load_best_model_at_end", "false"], "--eval_strategy no"),
        ("readers", ["--data", "{nothing}"], "there is no train split"),
        ("deterministic", ["--data", "{train_only}"], "neither a test nor a validation split"),
    ],
)
def test_experiments_that_make_no_sense_are_refused(
    what, options, said, experiment, model, gazesearch, readers, tmp_path, capfd
):
    import shutil

    for name, left_out in (("nothing", "train"), ("train_only", "validation")):
        shutil.copytree(readers, tmp_path / name)
        (tmp_path / name / "data" / f"{left_out}-00000-of-00001.parquet").unlink()
    options = [one.format(nothing=tmp_path / "nothing", train_only=tmp_path / "train_only") for one in options]
    data = [] if "--data" in options else ["--data", gazesearch]
    options = ("--model", model, *data, "--output_dir", tmp_path / "out", *options)
    with pytest.raises(SystemExit) as stopped:
        experiment(what, *options)
    assert stopped.value.code == 2
    assert said in capfd.readouterr().err


def test_the_first_stage_is_kept_or_given_up(experiment, model, gazesearch, tmp_path, monkeypatch, script):
    out, starts = tmp_path / "out", []
    monkeypatch.setattr(script["scanpath_experiments"], "compared", lambda known: ([], {}))
    run = script["scanpath_experiments"].run
    monkeypatch.setattr(
        script["scanpath_experiments"],
        "run",
        lambda trainer, items: (
            starts.append({n: v.clone() for n, v in trainer.model.state_dict().items()}),
            run(trainer, items),
        )[1],
    )
    options = ("--model", model, "--data", gazesearch, "--text", "finding:1", "--num_train_epochs", 2)
    experiment("first-stage", *options, "--output_dir", out)
    trained = ScanpathPredictor.from_pretrained(model)
    given = trained.state_dict()
    kept, fresh = starts
    assert all(torch.equal(value, given[name]) for name, value in kept.items())
    assert not torch.equal(fresh["query_tokens"], given["query_tokens"])
    frozen = ("vision_tower", "language_model")[: 1 + trained.config.freeze_language_model]
    assert {name for name in given if name.startswith(frozen) and not torch.equal(fresh[name], given[name])} == set()
    assert (out / "curves.svg").read_text().count("<polyline") == 4
    text = (out / "results.md").read_text()
    assert "| loss on validation after epoch | after stage 1 | without stage 1 |" in text and "\n| 2 | " in text
    with pytest.raises(SystemExit):
        experiment("first-stage", "--data", gazesearch, "--output_dir", tmp_path / "other")
