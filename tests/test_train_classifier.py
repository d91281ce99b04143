"""examples/train_classifier.py as a person types it, on data and models made by code."""

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
from PIL import Image

pytest.importorskip("datasets", reason='training needs datasets: pip install "gaze2report[train]"')
pytest.importorskip("accelerate", reason='training needs accelerate: pip install "gaze2report[train]"')

from transformers import AutoModel, HfArgumentParser, ViTConfig, ViTImageProcessor, ViTModel, set_seed

from gaze_vlm import GazeClassifier, GazeClassifierProcessor
from gaze_vlm.data.schema import SCHEMA, row

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = shlex.split(
    "--use_cpu --report_to none --disable_tqdm true --logging_steps 1 --learning_rate 1e-2 --warmup_steps 0 "
    "--per_device_train_batch_size 8 --num_train_epochs 1"
)
SMALL = ("--config", "projection_dim=16", "fusion_heads=2")


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
def script(monkeypatch):
    """The module of the example, as when it is run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import classifier_table
    import train_classifier

    monkeypatch.setattr(classifier_table, "RESAMPLES", 60)  # for speed
    return train_classifier


@pytest.fixture
def train(script):
    return lambda *arguments: script.main([*QUICK, *map(str, arguments)])


@pytest.fixture
def refused(train, capfd):
    """What is said in one line before it ends with status 2."""

    def run(*arguments) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            train(*arguments)
        assert ended.value.code == 2
        said = capfd.readouterr().err
        assert "Traceback" not in said
        return said.strip().splitlines()[-1]

    return run


def pixels(number: int) -> np.ndarray:
    """A film that is bright on its left, for even numbers, or on its right."""
    film = np.random.default_rng(number).integers(0, 60, (24, 24), np.uint8)
    film[:, 12 * (number % 2) : 12 * (number % 2) + 12] += 150
    return film


@pytest.fixture
def nih(tmp_path) -> str:
    """24 films to train on and 12 to choose by, in the compact layout; a mass, boxed, or cardiomegaly on each."""
    import csv

    root = tmp_path / "nih"
    (root / "images").mkdir(parents=True)
    header = "image,patient,age,sex,view,labels,rsna_class,rsna_boxes,nih_boxes,split"
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        for number in range(36):
            Image.fromarray(pixels(number)).save(root / "images" / f"{number}.png")
            label, x = (("Mass", 0.0), ("Cardiomegaly", 0.5))[number % 2]
            boxes = json.dumps([{"label": label, "x": x, "y": 0.0, "w": 0.5, "h": 1.0}])
            split = "train" if number < 24 else "validation"
            writer.writerow([f"{number}.png", number // 2, 50, "M", "PA", label, "", "[]", boxes, split])
    return f"nih_cxr={root}"


@pytest.fixture
def readers(tmp_path) -> str:
    """An export with readings: gaze and findings of two readers on each film, 12 films and 6; no boxes."""
    import datasets

    from gaze_vlm.data.export import RECORD

    rng = np.random.default_rng(1)
    folder = tmp_path / "export"
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", 24), ("validation", 12)):
        rows = []
        for number in range(count):
            side = number // 2 % 2
            names = ("x", "y", "onset", "duration")
            columns = (side / 2 + rng.random(4) / 2, rng.random(4), np.arange(4), rng.random(4))
            rows.append(
                row(
                    image=Image.fromarray(pixels(number // 2)),
                    image_id=f"{split}-{number // 2}",
                    patient_id=f"{split}-{number // 2}",
                    findings=[
                        {"name": name, "certainty": float(there), "label": None, "grade": None}
                        for name, there in (("Mass", not side), ("Cardiomegaly", side))
                    ],
                    transcript=[{"text": "The heart is normal in size.", "start": 0.0, "end": 1.0}],
                    scanpath={name: [float(v) for v in values] for name, values in zip(names, columns, strict=True)},
                    reader="ab"[number % 2],
                    source="made",
                )
            )
        name = f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(rows, features=SCHEMA).to_parquet(folder / "data" / name)
    (folder / RECORD).write_text("{}\n")
    return str(folder)


@pytest.fixture
def tower(tmp_path) -> Path:
    """A pretrained vision tower with its image processor, as on the Hub."""
    set_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False).save_pretrained(
        tmp_path / "vit"
    )
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def command(*arguments) -> list[str]:
    return [str(EXAMPLES / "train_classifier.py"), *QUICK, *map(str, arguments)]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return GazeClassifier.from_pretrained(folder).state_dict()


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def same_weights(one: Path, other: Path) -> bool:
    known = weights_of(other)
    return all(torch.equal(value, known[name]) for name, value in weights_of(one).items())


# ---- one model


def test_a_run_leaves_a_model_with_its_thresholds_and_its_metrics(train, nih, tower, tmp_path):
    out = tmp_path / "run"
    train(
        "--data", nih, "--supervision", "boxes", "--preset", "plain", "--vision_tower", tower, *SMALL,
        "--num_train_epochs", 4, "--balance", 0.5, "--output_dir", out,
    )  # fmt: skip
    model = AutoModel.from_pretrained(out)
    assert isinstance(model, GazeClassifier) and model.config.id2label == {0: "Cardiomegaly", 1: "Mass"}
    assert len(model.config.thresholds) == 2 and model.config.temperature != 1
    np.testing.assert_allclose(model.config.positive_weights, [1, 1]), "half of the films have each"
    processor = GazeClassifierProcessor.from_pretrained(out)
    assert processor.image_processor.size == {"height": 32, "width": 32}
    np.testing.assert_allclose(processor.image_processor.image_mean, [0.1, 0.2, 0.3])
    metrics = metrics_of(out)
    assert metrics.keys() == {"train", "calibration", "validation"}
    found = metrics["validation"]
    assert {"validation_auroc", "validation_f1", "validation_attention_iou"} <= found.keys()
    assert metrics["calibration"]["loss_after"] == pytest.approx(found["validation_loss"])
    assert metrics["calibration"]["loss_after"] <= metrics["calibration"]["loss_before"]
    with np.load(out / "predictions-validation.npz") as stored:
        assert stored["logits"].shape == stored["labels"].shape == (12, 2)
        films = [Image.fromarray(pixels(number)) for number in range(24, 36)]
        outputs = model(**processor(images=films, return_tensors="pt"))
        np.testing.assert_allclose(outputs.logits.detach(), stored["logits"], atol=1e-4)
    records = processor.post_process_findings(outputs, model.config)
    assert [one["present"] for one in records[0]] == [
        one["probability"] >= threshold for one, threshold in zip(records[0], model.config.thresholds, strict=True)
    ]
    pickled = {path.name for path in out.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle")}
    assert pickled == {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}, "of the Trainer itself"
    with np.load(out / "predictions-validation.npz", allow_pickle=False) as stored:
        assert {stored[name].dtype.kind for name in stored.files} == {"f"}
    given, trained = (
        ViTModel.from_pretrained(tower, add_pooling_layer=False).state_dict(),
        model.vision_tower.state_dict(),
    )
    moved = [(trained[name] - value).abs().max() for name, value in given.items()]
    assert 0 < max(moved) < 0.2, "the tower is the given one, and trained"


@pytest.mark.parametrize("preset", ["contrastive", "gaze_token"])
@pytest.mark.parametrize("data", ["readers", "nih"])
def test_both_versions_of_the_paper_train(preset, data, train, nih, readers, tower, tmp_path):
    """The readers dictated, at NIH nobody did; which of the two teaches is what --supervision says."""
    source, kind = {"readers": (readers, "gaze"), "nih": (nih, "boxes")}[data]
    options = ("--data", source, "--supervision", kind, "--preset", preset, "--vision_tower", tower, *SMALL)
    train(*options, "--max_steps", 3, "--output_dir", tmp_path / "out")
    config = GazeClassifier.from_pretrained(tmp_path / "out").config
    assert config.text_config.hidden_size == 128 and config.transcript_input == (preset == "gaze_token")
    assert config.projection_dim == 16
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    parts = {name for line in state for name in line if name.startswith("loss_")}
    region = {"loss_region", "loss_text"} if preset == "contrastive" else set()
    assert parts == {"loss_classification", f"loss_{kind}"} | region
    assert metrics_of(tmp_path / "out")["validation"]["validation_loss"] > 0


def test_a_timm_tower_and_a_text_tower_are_taken(train, nih, tmp_path):
    import timm
    from transformers import BertConfig, BertModel, TimmWrapperConfig, TimmWrapperModel

    from gaze_vlm.loading import NANO

    tower, words = tmp_path / "timm", tmp_path / "words"
    set_seed(0)
    known = timm.create_model("test_efficientnet").pretrained_cfg
    made = TimmWrapperModel(TimmWrapperConfig(architecture="test_efficientnet", pretrained_cfg=known))
    made.save_pretrained(tower)
    tokenizer = GazeClassifierProcessor.from_pretrained(NANO / "gaze_classifier").tokenizer
    tokenizer.save_pretrained(words)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))
    text.save_pretrained(words)
    train(
        "--data", nih, "--supervision", "boxes", "--vision_tower", tower, "--text_tower", words, "--image_size", 64,
        "--max_steps", 1, "--learning_rate", 0, "--output_dir", tmp_path / "out",
    )  # fmt: skip
    model = GazeClassifier.from_pretrained(tmp_path / "out")
    assert torch.equal(model.text_tower.embeddings.word_embeddings.weight, text.embeddings.word_embeddings.weight)
    assert model.config.vision_config.architecture == "test_efficientnet"
    name, value = next(iter(made.named_parameters()))
    assert torch.equal(model.vision_tower.state_dict()[name], value)
    assert GazeClassifierProcessor.from_pretrained(tmp_path / "out").image_processor.size["height"] == 64


def test_a_trained_model_is_trained_on(train, nih, tiny_bundle, tmp_path):
    """Its labels, texts and sizes stay; temperature and thresholds are chosen anew."""
    model = GazeClassifier.from_pretrained(tiny_bundle / "gaze_classifier")
    model.config.temperature, model.config.thresholds = 9.0, [0.99] * 8
    model.save_pretrained(tmp_path / "model")
    GazeClassifierProcessor.from_pretrained(tiny_bundle / "gaze_classifier").save_pretrained(tmp_path / "model")
    options = ("--data", nih, "--supervision", "none", "--model", tmp_path / "model", "--output_dir", tmp_path / "out")
    train(*options, "--max_steps", 1, "--learning_rate", 0, "--thresholds", "frequency", "--config", "gaze_sigma=0.1")
    trained = GazeClassifier.from_pretrained(tmp_path / "out")
    assert same_weights(tmp_path / "model", tmp_path / "out")
    assert trained.config.id2label == model.config.id2label and trained.config.gaze_sigma == 0.1
    assert trained.config.temperature != 9 and 0.99 not in trained.config.thresholds
    with np.load(tmp_path / "out" / "predictions-validation.npz") as stored:
        scores = 1 / (1 + np.exp(-stored["logits"].astype(float) / trained.config.temperature))
    called = (scores >= trained.config.thresholds).mean(axis=0)
    assert called[[1, 4]] == pytest.approx(0.5, abs=0.1), "as often as in training: Cardiomegaly and Mass"
    assert called[[2, 6, 7]].max() <= 1 / 12, "none of the films has these: the highest score alone"


def test_balance_is_stored_and_can_be_read_where_all_films_have_a_finding(train, nih, tower, tmp_path):
    manifest = Path(nih.partition("=")[2]) / "manifest.csv"
    few = re.sub(r"^([1-9]|1\d)(\.png.*)Mass,", r"\1\2No Finding,", manifest.read_text(), flags=re.MULTILINE)
    manifest.write_text(re.sub(r"Cardiomegaly,", "Cardiomegaly|Hernia,", few).replace("Finding,", "Finding|Hernia,")
                        .replace("Mass,", "Mass|Hernia,"))  # fmt: skip
    options = ("--data", nih, "--supervision", "none", "--preset", "plain", "--vision_tower", tower, "--max_steps", 1)
    options += ("--findings", "Hernia", "Mass", "Support Devices", "--thresholds", "frequency")
    for power, out in ((1, tmp_path / "one"), (0.5, tmp_path / "half")):
        train(*options, "--balance", power, "--output_dir", out)
        config = AutoModel.from_pretrained(out).config
        hernia, mass, unknown = config.positive_weights
        assert mass == pytest.approx(7**power), "3 films of 24"
        assert 0 < hernia < 0.1 and unknown == 1
        assert config.thresholds[2] == 0.5, "of what nobody judged"


def test_gaze_teaches_where_to_look(train, readers, tower, tmp_path):
    options = ("--data", readers, "--preset", "plain", "--vision_tower", tower, "--num_train_epochs", 12)
    looked = {}
    for kind in ("gaze", "none"):
        train(*options, "--supervision", kind, "--output_dir", tmp_path / kind)
        with np.load(tmp_path / kind / "predictions-validation.npz") as stored:
            attention, labels = stored["attention"], stored["labels"]
        left = attention[:, 1, :, :2].sum((1, 2))  # that of a mass, which is on the left
        looked[kind] = left[labels[:, 1] == 1].mean()
    assert looked["gaze"] > 0.8 and looked["gaze"] > looked["none"] + 0.1


# ---- several, compared


def test_kinds_of_supervision_are_compared_once(train, refused, nih, tower, tmp_path, capfd):
    out = tmp_path / "out"
    options = ("--data", nih, "--supervision", "boxes", "none", "--seeds", 2, "--preset", "plain")
    options += ("--vision_tower", tower, *SMALL, "--output_dir", out)
    train(*options)
    assert capfd.readouterr().out.splitlines()[-1] == str(out / "results.md")
    runs = {f"{kind}/seed-{seed}" for kind in ("boxes", "none") for seed in (42, 43)}
    assert {str(path.parent.relative_to(out)) for path in out.rglob("metrics.json")} == runs
    assert not same_weights(out / "boxes/seed-42", out / "boxes/seed-43")
    text, results = (out / "results.md").read_text(), json.loads((out / "results.json").read_text())
    baselines = ("label frequency", "centre of the film", "even attention (the boxes' area)")
    for name in ("supervised by boxes", "no supervision", *baselines):
        assert name in text
    assert "12 readings of 12 films (validation split), 2 seeds;" in text and "Cardiomegaly, Mass" in text
    assert "chosen on these very films" in text, "there is no test split"
    scores = {(one["system"], one["metric"].split(",")[0].split(" (")[0]): one for one in results["scores"]}
    for kind, name in (("boxes", "supervised by boxes"), ("none", "no supervision")):
        both = [metrics_of(out / kind / f"seed-{seed}")["validation"] for seed in (42, 43)]
        for metric, own in (("AUROC", "auroc"), ("AUPRC", "average_precision"), ("F1", "f1"),
                            ("expected calibration error", "calibration_error"), ("pointing game", "pointing_game"),
                            ("attention IoU", "attention_iou")):  # fmt: skip
            known = np.mean([one[f"validation_{own}"] for one in both])
            interval = scores[name, metric]["interval"]
            assert interval["estimate"] == pytest.approx(known, abs=1e-6), (name, metric)
            assert 0 <= interval["low"] <= interval["high"] <= 1
    assert scores["label frequency", "AUROC"]["interval"]["estimate"] == 0.5
    assert scores["even attention (the boxes' area)", "attention IoU"]["interval"]["estimate"] == pytest.approx(0.5)
    difference = scores["no supervision", "AUROC"]["difference"]
    known = [scores[name, "AUROC"]["interval"]["estimate"] for name in ("supervised by boxes", "no supervision")]
    assert abs(difference["estimate"]) == pytest.approx(abs(known[0] - known[1]))
    # again: nothing is trained, and the table is the same
    stamps = {run: (out / run / "model.safetensors").stat().st_mtime_ns for run in runs}
    (out / "results.md").unlink()
    train(*options)
    assert (out / "results.md").read_text() == text
    assert {run: (out / run / "model.safetensors").stat().st_mtime_ns for run in runs} == stamps
    for other, said in (("--seed", 7), "seed"), (("--mixup", 0.4), "mixup"), (("--balance", 1), "balance"):
        line = refused(*options, *other)
        assert line.endswith(f"{out}: holds an experiment with another {said}; choose another folder")


def test_few_positives_still_end_in_a_table(train, nih, tower, tmp_path):
    """Below 5 positives in the measured split a finding's AUROC is not given."""
    manifest = Path(nih.partition("=")[2]) / "manifest.csv"
    lines = [line for line in manifest.read_text().splitlines() if not re.match("3[0-5]", line)]
    manifest.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    options = (
        "--data",
        nih,
        "--supervision",
        "boxes",
        "none",
        "--seeds",
        2,
        "--preset",
        "plain",
        "--vision_tower",
        tower,
    )
    train(*options, "--max_steps", 1, "--output_dir", out)
    assert metrics_of(out / "none/seed-42")["validation"]["validation_auroc"] is None
    assert "attention IoU" in (out / "results.md").read_text()


def test_what_was_killed_goes_on_and_ends_with_the_same_weights(train, nih, tower, tmp_path):
    """Under `accelerate launch`, with all that is drawn and carried; killed in the second of two models."""
    options = ["--data", nih, "--supervision", "boxes", "none", "--preset", "plain", "--vision_tower", tower]
    options += ["--num_train_epochs", 6, "--mixup", 0.4, *SMALL]
    out = tmp_path / "killed"
    running = subprocess.Popen(
        ["accelerate", "launch", "--cpu", "--num_processes", "1", *command(*options, "--output_dir", out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.time() + 200
        while not list((out / "none" / "seed-42").glob("checkpoint-*/averaged_weights.safetensors")):
            assert running.poll() is None and time.time() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert metrics_of(out / "boxes" / "seed-42") and not (out / "none" / "seed-42" / "metrics.json").exists()
    stamp = (out / "boxes" / "seed-42" / "model.safetensors").stat().st_mtime_ns
    train(*options, "--output_dir", out)
    assert (out / "boxes" / "seed-42" / "model.safetensors").stat().st_mtime_ns == stamp
    train(*options, "--output_dir", tmp_path / "whole")
    for kind in ("boxes", "none"):
        assert same_weights(out / kind / "seed-42", tmp_path / "whole" / kind / "seed-42")
        lines = [json.loads((folder / kind / "seed-42" / "trainer_state.json").read_text())["log_history"]
                 for folder in (out, tmp_path / "whole")]  # fmt: skip
        assert len(lines[0]) == len(lines[1]) and [one.get("loss") for one in lines[0]] == [
            one.get("loss") for one in lines[1]
        ]
    assert "results.md" in {path.name for path in out.iterdir()}


def test_a_single_run_is_resumed_when_it_is_asked_to(train, refused, nih, tower, tmp_path):
    options = ("--data", nih, "--supervision", "none", "--preset", "plain", "--vision_tower", tower, *SMALL)
    options += ("--lr_scheduler_type", "constant")
    train(*options, "--num_train_epochs", 1, "--output_dir", tmp_path / "parts")
    before = weights_of(tmp_path / "parts")
    line = refused(*options, "--config", "gaze_sigma=0.2", "--output_dir", tmp_path / "parts",
                   "--resume_from_checkpoint", "last")  # fmt: skip
    assert line.endswith(
        f"{tmp_path}/parts/checkpoint-3: trained with another gaze_sigma; resume with what it began with"
    )
    train(*options, "--num_train_epochs", 2, "--output_dir", tmp_path / "parts", "--resume_from_checkpoint", "last")
    train(*options, "--num_train_epochs", 2, "--output_dir", tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")
    assert not torch.equal(before["head.weight"], weights_of(tmp_path / "parts")["head.weight"])


# ---- as it is typed


def test_it_runs_as_a_program(nih, tiny_bundle, tmp_path):
    options = ("--data", nih, "--supervision", "boxes", "--model", tiny_bundle / "gaze_classifier", "--max_steps", 1)
    done = subprocess.run(
        [sys.executable, *command(*options, "--output_dir", tmp_path / "out")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "24 of 24 rows; with gaze: 0, with boxes of a label: 24" in done.stderr
    assert AutoModel.from_pretrained(tmp_path / "out").config.thresholds


def test_the_docstring_holds_the_very_commands(script):
    text = re.sub(r"\\\n\s*", "", script.__doc__)
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    accelerate launch ")]
    assert len(commands) == 3
    for line in commands:
        start = line.index("examples/train_classifier.py")
        parser = HfArgumentParser((script.ScriptArguments, script.ClassifierTrainingArguments))
        rest = [argument for argument in line[start + 1 :] if argument != "--bf16"]  # that asks for the machine
        options, training = parser.parse_args_into_dataclasses([*rest, "--use_cpu"])
        assert options.data and script.runs_of(options, training)


def test_help_shows_the_commands_as_they_are_typed(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    assert script.__doc__.strip() in capsys.readouterr().out


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no data given"),
        (["--data", "nih_cxr=/no/where"], "/no/where"),
        (["--data", "{nih}", "--supervision", "eyes"], "--supervision eyes: known are gaze, boxes, both, none"),
        (["--data", "{nih}", "--supervision", "none", "none"], "--supervision: each kind once"),
        (["--data", "{nih}", "--seeds", "0"], "--seeds: at least 1"),
        (["--data", "{nih}", "--supervision", "gaze"], "--supervision gaze: no training row has gaze"),
        (["--data", "{nih}"], "--supervision both: no training row has gaze"),
        (["--data", "{nih}", "--supervision", "none", "gaze"], "--supervision gaze: no training row has gaze"),
        (["--data", "{readers}", "--supervision", "boxes"], "--supervision boxes: no training row has boxes"),
        (["--data", "{nih}", "--findings", "Cancer"], "label 'Cancer' is no finding; allowed: "),
        (["--data", "{nih}", "--findings", "Fracture"], "none of 24 rows has an image and a finding that is judged"),
        (["--data", "{nih}", "--model", "{bundle}/scanpath_predictor"], "a scanpath_predictor, not a gaze_classifier"),
        (["--data", "{nih}", "--model", "/no/model"], "/no/model"),
        (["--data", "{nih}", "--model", "{bundle}/gaze_classifier", "--findings", "Edema"],
         "--findings: --model has No Finding, Cardiomegaly, Pleural Effusion"),
        (["--data", "{nih}", "--model", "{bundle}/gaze_classifier", "--vision_tower", "x"],
         "--vision_tower: what --model says already"),
        (["--data", "{nih}", "--model", "{bundle}/gaze_classifier", "--config", "attention=shared"],
         "its weights do not fit --config attention=shared"),
        (["--data", "{nih}", "--config", "gaze_sgima=1"], "--config gaze_sgima=1: GazeClassifierConfig has no"),
        (["--data", "{nih}", "--config", "gaze_sigma=-1"], "gaze_sigma must be above 0, got -1"),
        (["--data", "{nih}", "--config", "gaze_schedule=later"], "gaze_schedule must be one of constant, grow, fade"),
        (["--data", "{nih}", "--config", "gaze_sigma=wide"], "gaze_sigma"),
        (["--data", "{nih}", "--vision_tower", "/no/tower"], "/no/tower"),
        (["--data", "{nih}", "--mixup", "-1"], "mixup must be at least 0, got -1.0"),
        (["--data", "{held}"], "there is no train split"),
        (["--data", "{nih}", "--resume_from_checkpoint", "{nih_folder}"], "no checkpoint to resume from"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(arguments, said, refused, nih, readers, tower, tiny_bundle, tmp_path):
    if "{held}" in arguments:
        (Path(readers) / "data" / "train-00000-of-00001.parquet").unlink()
    known = {"nih": nih, "readers": readers, "held": readers, "bundle": tiny_bundle}
    arguments = [argument.format(nih_folder=nih.partition("=")[2], **known) for argument in arguments]
    if "--model" not in arguments and "--vision_tower" not in arguments:
        arguments += ["--vision_tower", str(tower), "--preset", "plain"]
    if "--resume_from_checkpoint" in arguments:
        arguments += ["--supervision", "none"]
    assert said in refused(*arguments, "--output_dir", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("model.safetensors")), "nothing has been trained"


def test_a_bad_row_is_named(refused, readers, tower, tmp_path):
    import datasets

    file = Path(readers) / "data" / "validation-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(file), features=SCHEMA).to_list()
    rows[3]["scanpath"]["x"] = [112.0] * 4
    datasets.Dataset.from_list(rows, features=SCHEMA).to_parquet(file)
    line = refused(
        "--data", readers, "--vision_tower", tower, "--supervision", "gaze", "--output_dir", tmp_path / "out"
    )
    assert "row 3 (image validation-1): none of its 4 fixations lies on the film" in line
