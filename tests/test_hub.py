"""A checkpoint's way to the Hub and back by its name, each step in a process of its own; and what stands in for it."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

NAME = "tester/tiny"
PUSH = """
import sys
from transformers import AutoModel, AutoProcessor
import gaze_vlm

folder, name = sys.argv[1:]
AutoModel.from_pretrained(folder).push_to_hub(name)
AutoProcessor.from_pretrained(folder).push_to_hub(name)
"""
LOAD = """
import sys
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
import gaze_vlm

name, film, output = sys.argv[1:]
model, processor = AutoModel.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
inputs = processor(images=Image.open(film), text="<image>Findings:", return_tensors="pt")
with torch.no_grad():
    torch.save((type(model).__name__, dict(inputs), model(**inputs).logits), output)
"""
NEEDED = {  # of all that is pushed, what model and processor are loaded from
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def run(code: str, *arguments, **environment: str) -> None:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_goes_to_the_hub_and_back_and_is_kept_for_offline_use(fake_hub, tiny_bundle, film_file, tmp_path):
    from gaze_vlm import GazeVLM, GazeVLMProcessor

    film, folder = film_file("film.png", seed=3), tiny_bundle / "gaze_vlm"
    model, processor = GazeVLM.from_pretrained(folder).eval(), GazeVLMProcessor.from_pretrained(folder)
    inputs = processor(images=Image.open(film), text="<image>Findings:", return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits

    run(PUSH, folder, NAME, **fake_hub.environment())
    pushed = len(fake_hub.requests)
    assert set(fake_hub.files(NAME)) == NEEDED | {"README.md"}

    run(LOAD, NAME, film, tmp_path / "online", **fake_hub.environment())
    loading = fake_hub.requests[pushed:]
    downloads = [path for path in loading if path.startswith("GET") and "/resolve/" in path]
    assert sorted(Path(path).name for path in downloads) == sorted(NEEDED)  # each of them once
    assert [path for path in loading if f"/{NAME}/" not in f"{path}/"] == []
    others = {path.split("/lfs/")[0] for path in fake_hub.requests[:pushed] if f"/{NAME}" not in path}
    assert others == {"POST /api/repos/create", "POST /api/validate-yaml", "PUT "}

    before = len(fake_hub.requests)
    run(LOAD, NAME, film, tmp_path / "offline", **fake_hub.environment() | {"HF_HUB_OFFLINE": "1"})
    assert fake_hub.requests[before:] == []

    for way in ("online", "offline"):
        name, its_inputs, logits = torch.load(tmp_path / way)
        assert name == "GazeVLM"
        assert its_inputs.keys() == inputs.keys()
        assert all(torch.equal(its_inputs[key], inputs[key]) for key in inputs)
        assert torch.equal(logits, expected)


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
