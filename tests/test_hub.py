"""A checkpoint's way to the Hub and back by its name, each step in a process of its own; and what stands in for it."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

KINDS = {"gaze_vlm": "tester/gaze2report", "gaze_classifier": "tester/eyes", "scanpath_predictor": "tester/medgaze"}
PUSH = """
import json, sys
from transformers import AutoModel
import gaze_vlm

folder, names = sys.argv[1], json.loads(sys.argv[2])
for kind, name in names.items():
    AutoModel.from_pretrained(f"{folder}/{kind}").push_to_hub(name)
"""
# what is loaded by its name, and how: "package", or "code" where the package is not there
LOAD = """
import json, sys
names, film, output, way = json.loads(sys.argv[1]), *sys.argv[2:]
if way == "code":
    sys.modules["gaze_vlm"] = None
else:
    import gaze_vlm
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, pipeline

trust = {"trust_remote_code": True} if way == "code" else {}
found = {}
for kind, name in names.items():
    model, processor = AutoModel.from_pretrained(name, **trust).eval(), AutoProcessor.from_pretrained(name, **trust)
    text = "<image>Findings:" if kind == "gaze_vlm" else "findings"
    inputs = processor(images=Image.open(film), text=text, return_tensors="pt")
    with torch.no_grad():
        if kind == "gaze_classifier":
            outputs = model(inputs["pixel_values"]).logits
        elif kind == "scanpath_predictor":
            outputs = model.predict(**inputs).fixations
        else:
            outputs = model(**inputs).logits
            for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText):
                other = auto_class.from_pretrained(name, **trust).eval()
                assert torch.equal(other(**inputs).logits, outputs), auto_class
            said = pipeline("image-text-to-text", model=name, **trust)(film, text=text, max_new_tokens=3)
            assert said[0]["generated_text"].startswith("<image>"), said
    found[kind] = (type(model).__name__, outputs)
torch.save(found, output)
"""
WEIGHTS = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
CODE = {
    "gaze_vlm": {
        "configuration_gaze_vlm.py",
        "configuration_scanpath_predictor.py",
        "gaze_maps.py",
        "hub_mixin.py",
        "modeling_gaze_vlm.py",
        "modeling_scanpath_layers.py",
        "modeling_scanpath_predictor.py",
        "modeling_vision_tower.py",
        "modeling_visual_gaze_graph.py",
        "processing_gaze_vlm.py",
        "scanpath_losses.py",
    },
    "gaze_classifier": {
        "classifier_losses.py",
        "configuration_gaze_classifier.py",
        "gaze_maps.py",
        "hub_mixin.py",
        "modeling_gaze_classifier.py",
        "modeling_vision_tower.py",
        "processing_gaze_classifier.py",
    },
    "scanpath_predictor": {
        "configuration_scanpath_predictor.py",
        "hub_mixin.py",
        "modeling_scanpath_layers.py",
        "modeling_scanpath_predictor.py",
        "modeling_vision_tower.py",
        "processing_scanpath_predictor.py",
        "scanpath_losses.py",
    },
}
NAME = "tester/tiny"


def run(code: str, *arguments, **environment: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def hub(tmp_path_factory, serve_hub, tiny_bundle):
    """A stand-in for the Hub with the three tiny models, each pushed from a process of its own making."""
    with serve_hub(tmp_path_factory.mktemp("served")) as hub:
        hub.printed = run(PUSH, tiny_bundle, json.dumps(KINDS), **hub.environment())
        yield hub


@pytest.fixture(scope="module")
def expected(tiny_bundle, tmp_path_factory):
    """A film, and class and outputs of each model on it, as loaded from its folder."""
    folder = tmp_path_factory.mktemp("expected")
    pixels = np.random.default_rng(3).integers(0, 256, (96, 80), np.uint8)
    Image.fromarray(pixels).save(folder / "film.png")
    places = json.dumps({kind: str(tiny_bundle / kind) for kind in KINDS})
    run(LOAD, places, folder / "film.png", folder / "outputs", "package")
    return folder / "film.png", torch.load(folder / "outputs")


def same(path: Path, expected: dict) -> bool:
    found = torch.load(path)
    return found.keys() == expected.keys() and all(
        found[kind][0] == expected[kind][0] and torch.equal(found[kind][1], expected[kind][1]) for kind in expected
    )


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_belongs_to_a_checkpoint_is_pushed(hub, kind, tiny_bundle):
    files = hub.files(KINDS[kind])
    more = {"generation_config.json", "chat_template.jinja"} if kind == "gaze_vlm" else set()
    assert files.keys() == WEIGHTS | CODE[kind] | more | {"README.md"}
    assert not [name for name, content in files.items() if str(tiny_bundle).encode() in content]
    assert not [name for name, content in files.items() if b"hf_fake" in content]
    assert "hf_fake" not in hub.printed
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert "not a medical device" in card.text
    assert f'AutoModel.from_pretrained("{KINDS[kind]}")' in card.text


@pytest.mark.parametrize("way", ["package", "code"])
def test_a_fresh_process_loads_them_by_name_and_again_offline(hub, expected, tmp_path, way):
    film, outputs = expected
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "home" / "hub")}
    before = len(hub.requests)
    run(LOAD, json.dumps(KINDS), film, tmp_path / "online", way, **hub.environment() | home)
    assert same(tmp_path / "online", outputs)
    names = tuple(f"/{name}/" for name in KINDS.values())
    assert [path for path in hub.requests[before:] if not any(name in f"{path}/" for name in names)] == []

    before = len(hub.requests)
    offline = hub.environment() | home | {"HF_HUB_OFFLINE": "1"}
    run(LOAD, json.dumps(KINDS), film, tmp_path / "offline", way, **offline)
    assert same(tmp_path / "offline", outputs)
    assert hub.requests[before:] == []


def test_a_bundle_is_pushed_by_the_command_and_read_by_its_name(serve_hub, tiny_bundle, tmp_path):
    facts = {
        "license": "cc-by-4.0",
        "datasets": ["made-up films 1.0"],
        "gaze": "Nobody's: random weights.",
        "command": "python make.py",
        "results": [{"dataset": "Made-up", "split": "test", "command": "evaluate", "table": "scores.json"}],
    }
    score = {"metric": "mIoU", "higher_is_better": True, "system": "tiny", "n": 7, "undefined": 0, "difference": None}
    scores = [score | {"interval": {"estimate": 0.25, "low": 0.125, "high": 0.5}}]
    scores += [scores[0] | {"system": "whole image", "interval": {"estimate": 0.5, "low": None, "high": None}}]
    (tmp_path / "scores.json").write_text(json.dumps({"protocol": ["Seven films."], "scores": scores}))
    (tmp_path / "card.yaml").write_text(json.dumps(facts))
    pixels = np.random.default_rng(3).integers(0, 256, (96, 80), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    main = "import sys; from gaze_vlm.cli import main; sys.argv = ['gaze-vlm', *sys.argv[1:]]; main()"
    with serve_hub(tmp_path / "hub") as hub:
        environment = hub.environment()
        stale = hub.folder / "models" / NAME / "model-00001-of-00002.safetensors"
        stale.parent.mkdir(parents=True)
        stale.write_bytes(b"weights of before")
        printed = run(main, "push", tiny_bundle, NAME, "--card", tmp_path / "card.yaml", **environment)
        assert NAME in printed
        assert "hf_fake" not in printed
        files = hub.files(NAME)
        assert stale.name not in files
        assert {"config.json", "gaze_classifier/config.json", "scanpath_predictor/model.safetensors"} <= files.keys()
        assert json.loads(files["config.json"])["model_type"] == "gaze_vlm"
        assert {name for name in files if name.endswith(".py")} == set.union(*CODE.values())
        card = ModelCard(files["README.md"].decode())
        [result] = card.data.eval_results
        assert (result.dataset_name, result.metric_name, result.metric_value) == ("Made-up", "mIoU", 0.25)
        assert (card.data.license, card.data.datasets) == ("cc-by-4.0", ["made-up films 1.0"])
        for fact in (
            "Nobody's: random weights.",
            "python make.py",
            "| mIoU | ↑ | whole image | 7 | 0.500 |",
            "Seven films.",
        ):
            assert fact in card.text

        by_name, by_folder = (
            json.loads(run(main, "report", tmp_path / "film.png", "--model", model, "--json", **environment))
            for model in (NAME, tiny_bundle)
        )
        assert [one.pop("model") for one in by_name] == [NAME]
        assert [{**one, "model": NAME} for one in by_name] == [{**one, "model": NAME} for one in by_folder]


@pytest.fixture
def facts():
    from gaze_vlm.hub import CardFacts

    return CardFacts(license="apache-2.0", datasets="reflacx", base_model="org/model")


def test_a_card_that_was_given_is_written_or_refused(tiny_bundle, facts, tmp_path):
    from gaze_vlm.hub import HubError, gather

    pair = tmp_path / "pair"
    for kind in ("gaze_classifier", "scanpath_predictor"):
        shutil.copytree(tiny_bundle / kind, pair / kind)
    card = ModelCard.load(gather(pair, tmp_path / "gathered", NAME, facts) / "README.md")
    assert (card.data.license, card.data.datasets, card.data.base_model) == ("apache-2.0", ["reflacx"], ["org/model"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/alice/runs/base"}')
    for given in (facts, None):
        with pytest.raises(HubError, match="put a README"):
            gather(adapter, tmp_path / "adapted", NAME, given)
    (adapter / "README.md").write_text("Of /home/alice/runs/base.")
    gathered = gather(adapter, tmp_path / "with-card", NAME)
    assert json.loads((gathered / "adapter_config.json").read_text()) == {"base_model_name_or_path": "base"}
    assert (gathered / "README.md").read_text() == "Of base."


@pytest.mark.parametrize("base", ["C:\\runs\\base", "./base", "/data/alice/base", "base"])
def test_a_base_goes_by_its_name_wherever_it_lies(tmp_path, base):
    from gaze_vlm.hub import forget_folder

    file = tmp_path / "adapter_config.json"
    for written, left in ((base, "base"), ("org/base", "org/base"), (None, None)):
        file.write_text(json.dumps({"base_model_name_or_path": written}))
        forget_folder(file)
        assert json.loads(file.read_text()) == {"base_model_name_or_path": left}


def test_a_card_keeps_its_words_and_loses_every_path(tmp_path, monkeypatch):
    from gaze_vlm.hub import forget_folder

    monkeypatch.chdir(tmp_path)
    file, card = tmp_path / "adapter_config.json", tmp_path / "README.md"
    for base, written, left in (
        (".", "license: apache-2.0. See https://x.org", "license: apache-2.0. See https://x.org"),
        ("/home/x/vlm/", "of /home/x/vlm, /home/x/vlm/checkpoint-3", "of vlm, vlm/checkpoint-3"),
        ("/home/x/vlm", "not /home/x/vlm2", "not /home/x/vlm2"),
    ):
        file.write_text(json.dumps({"base_model_name_or_path": base}))
        card.write_text(written)
        forget_folder(file)
        assert card.read_text() == left
        assert json.loads(file.read_text())["base_model_name_or_path"] == (tmp_path.name if base == "." else "vlm")


def test_only_weights_that_would_be_loaded_in_place_of_these_are_removed(tmp_path):
    from gaze_vlm.hub import _stale

    (tmp_path / "model.safetensors").touch()
    (tmp_path / "gaze_classifier").mkdir()
    (tmp_path / "gaze_classifier" / "model-00001-of-00002.safetensors").touch()
    known = ["config.json", "model.safetensors", "model-00001-of-00003.safetensors", "model.safetensors.index.json"]
    known += ["adapter_model.safetensors", "scanpath_predictor/model.safetensors", "gaze_classifier/model.safetensors"]
    assert _stale(known, tmp_path) == [*known[2:4], known[-1]]


def test_other_folders_beside_a_checkpoint_are_left_alone(tiny_bundle, tmp_path):
    from gaze_vlm.hub import add_code

    shutil.copytree(tiny_bundle / "gaze_classifier", tmp_path / "out")
    other = tmp_path / "out" / "base" / "config.json"
    other.parent.mkdir()
    other.write_text('{"model_type": "bert"}')
    add_code(tmp_path / "out")
    assert other.read_text() == '{"model_type": "bert"}'
    assert "auto_map" in json.loads((tmp_path / "out" / "config.json").read_text())


def test_what_was_not_measured_is_no_figure():
    from gaze_vlm.hub import Result, model_index

    scores = [
        {"metric": "F1", "system": "tiny", "interval": {"estimate": value, "low": None, "high": None}}
        for value in (0.5, None, float("nan"))
    ]
    found = model_index(Result("Made-up", "test", "evaluate", {"scores": scores}), "image-classification")
    assert [one.metric_value for one in found] == [0.5]


def test_facts_that_are_no_text_are_refused():
    from gaze_vlm.hub import CardFacts, HubError

    with pytest.raises(HubError, match=r"gaze must be a text, got \['recorded'\]"):
        CardFacts(gaze=["recorded"])


def test_an_adapter_does_not_tell_where_its_base_lies(tiny_bundle, tmp_path):
    pytest.importorskip("peft", reason='adapters need peft: pip install "gaze2report[train]"')
    from peft import get_peft_model

    from gaze_vlm import GazeVLM
    from gaze_vlm.hub import gather
    from gaze_vlm.training.adapters import lora_config

    base = tiny_bundle / "gaze_vlm"
    model = GazeVLM.from_pretrained(base)
    get_peft_model(model, lora_config(model, r=2)).save_pretrained(tmp_path / "adapter")
    assert str(base) in (tmp_path / "adapter" / "README.md").read_text()  # PEFT's card
    gathered = gather(tmp_path / "adapter", tmp_path / "gathered", NAME)
    assert {file.name for file in gathered.iterdir()} >= {"adapter_model.safetensors", "README.md"}
    assert not [file.name for file in gathered.iterdir() if str(base).encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("made", "arguments", "complaint"),
    [
        ({}, ("nothing", NAME), "nothing: no checkpoint"),
        ({"config.json": '{"model_type": "bert"}'}, (".", NAME), "its model type is bert; it must be one of gaze_vlm"),
        ({"config.json": "["}, (".", NAME), "config.json: no configuration of a model"),
        ({"config.json": "{}"}, (".", "a/b/c"), "a/b/c"),
        ({"config.json": "{}", "card.yaml": "licence: x"}, (".", NAME, "--card", "card.yaml"), "unknown: licence"),
        ({"config.json": "{}", "card.yaml": "- x"}, (".", NAME, "--card", "card.yaml"), "card.yaml: no facts"),
        ({"config.json": "{}"}, (".", NAME, "--card", "none.yaml"), "none.yaml: No such file"),
    ],
)
def test_what_cannot_be_pushed_is_refused_in_one_line(made, arguments, complaint, tmp_path, monkeypatch, capsys):
    from gaze_vlm.cli import main

    for name, text in made.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gaze-vlm", "push", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert complaint in error
    assert error.count("\n") == 1


def test_a_model_without_a_processor_says_so(tiny_bundle):
    from gaze_vlm import GazeClassifier, GazeClassifierConfig
    from gaze_vlm.hub import HubError

    config = GazeClassifierConfig.from_pretrained(tiny_bundle / "gaze_classifier")
    for name in ("", str(tiny_bundle)):
        config.name_or_path = name
        with pytest.raises(HubError, match="pass processor="):
            GazeClassifier(config).push_to_hub(NAME)


def test_options_of_an_upload_are_passed_on_and_its_branch_is_made(tiny_bundle, monkeypatch):
    from huggingface_hub import HfApi

    from gaze_vlm import GazeClassifier

    asked = []
    for name in ("create_repo", "create_branch", "upload_folder"):
        monkeypatch.setattr(HfApi, name, lambda self, *args, _name=name, **options: asked.append((_name, options)))
    monkeypatch.setattr(HfApi, "list_repo_files", lambda *args, **options: [])
    model = GazeClassifier.from_pretrained(tiny_bundle / "gaze_classifier")
    model.push_to_hub(NAME, private=True, revision="next", commit_description="Why.")
    assert [name for name, _ in asked] == ["create_repo", "create_branch", "upload_folder"]
    for other in ({"revision": "refs/pr/3"}, {"revision": "main", "create_pr": True}):
        model.push_to_hub(NAME, **other)
    assert [name for name, _ in asked].count("create_branch") == 1
    assert asked[0][1]["private"] and asked[1][1]["branch"] == "next"
    assert (asked[2][1]["revision"], asked[2][1]["commit_description"]) == ("next", "Why.")


def ask(hub, path: str, content: bytes | None = None, method: str | None = None):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"https": hub.url}))
    url = path if path.startswith("https:") else hub.url + path
    with opener.open(urllib.request.Request(url, content, method=method), timeout=10) as answer:
        return answer.read()


def commit(hub, number: int) -> str:
    """Adds a file; the hash of the commit."""
    file = {"path": f"{number}.txt", "content": base64.b64encode(b"%d" % number).decode()}
    lines = {"key": "header", "value": {"summary": "one more"}}, {"key": "file", "value": file}
    answer = ask(hub, f"/api/models/{NAME}/commit/main", "\n".join(map(json.dumps, lines)).encode())
    return json.loads(answer)["commitOid"]


def test_the_stand_in_keeps_every_one_of_many_commits_at_a_time(fake_hub):
    (fake_hub.folder / "models" / NAME).mkdir(parents=True)
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(lambda number: commit(fake_hub, number), range(32)))
    assert len(set(hashes)) == 32  # one after the other: each saw the contents as it left them
    assert fake_hub.files(NAME) == {f"{number}.txt": b"%d" % number for number in range(32)}
    assert fake_hub.requests == [f"POST /api/models/{NAME}/commit/main"] * 32


def test_the_stand_in_refuses_what_it_does_not_have(fake_hub):
    (fake_hub.folder / "models" / NAME).mkdir(parents=True)
    for path, code in (
        ("/api/models/tester/other", "RepoNotFound"),
        (f"/api/datasets/{NAME}", "RepoNotFound"),
        (f"/api/models/{NAME}/revision/v1", "RevisionNotFound"),
        (f"/{NAME}/resolve/main/config.json", "EntryNotFound"),
        ("/api/models", "NotServed"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(fake_hub, path)
        assert (refused.value.code, refused.value.headers["X-Error-Code"]) == (404, code)
    wrong = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(fake_hub, f"/lfs/{wrong}", b"contents", "PUT")


def test_the_stand_in_sees_what_is_asked_of_other_hosts(fake_hub):
    with pytest.raises(OSError, match="404"):
        ask(fake_hub, "https://huggingface.co/api/models")
    assert fake_hub.requests == ["CONNECT huggingface.co:443"]
