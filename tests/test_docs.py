"""The documentation: every block of README.md, CONTRIBUTING.md and docs/ is run or checked, links lead somewhere, the
site builds, the notebook runs.

The tag of a block says what is done with it; a page's blocks share a folder of their own and one namespace:

- `python` is executed;
- `bash` holds `gaze-vlm` commands, which are run with the embedded nano;
- `console` holds commands that need data, a network or a browser: scripts exist and know the options, extras exist;
- `text` is the very output of the `python` or `bash` block before it;
- `yaml` and `json` are files, which are parsed.
"""

import contextlib
import functools
import glob
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
import yaml

import gaze_vlm
from gaze_vlm.cli import app, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "gaze2report.ipynb"
FENCE = re.compile(r"^( *)(`{3,}|~{3,})([^\n]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")  # DIR, FILE, ORG/NAME: what the reader fills in
UNRUN = ("push", "space")  # commands that go to the network, or do not end by themselves


class Block(NamedTuple):
    """A fenced block; `place` is its page and line."""

    place: str
    tag: str
    text: str


def blocks_of(text: str, name: str) -> list[Block]:
    return [
        Block(f"{name}, line {text.count(chr(10), 0, found.start()) + 1}", found[3].strip(), found[4])
        for found in FENCE.finditer(text)
    ]


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command; a line may hold several, joined by &&, and a command go on over lines."""
    commands = []
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            commands.append(words[:end])
            words = words[end + 1 :]
    assert commands, f"{block.place}: no command"
    return commands


# ---- what runs


def run_python(block: Block, namespace: dict) -> str:
    written = io.StringIO()
    code = compile("\n" * int(block.place.rpartition(" ")[2]) + block.text, block.place, "exec")
    with contextlib.redirect_stdout(written):
        try:
            exec(code, namespace)
        except ImportError as error:
            if "gaze2report[" not in str(error):
                raise
            pytest.skip(f"{block.place}: {error}")
    return written.getvalue()


def run_bash(block: Block, monkeypatch, capsys) -> str:
    return "".join(run_gaze_vlm(words, block.place, monkeypatch, capsys) for words in commands_of(block))


def run_gaze_vlm(words: list[str], place: str, monkeypatch, capsys) -> str:
    """What `gaze-vlm ... [> FILE]` prints; patterns such as *.png stand for the files there."""
    assert words[0] == "gaze-vlm", f"{place}: a bash block holds gaze-vlm commands, not {words[0]}"
    words, target = (words[:-2], words[-1]) if ">" in words else (words, None)
    words = [one for word in words for one in (sorted(glob.glob(word)) if "*" in word else None) or [word]]
    monkeypatch.setattr(sys, "argv", words)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert not left.value.code, f"{place}: {shlex.join(words)}: {err.strip()}"
    if target is None:
        return out
    Path(target).write_text(out, encoding="utf-8")
    return ""


# ---- what is checked


def check_command(words: list[str], place: str) -> bool:
    """Whether a command is known to be right without being run; False where it can be run."""
    if words[0] == "gaze-vlm":
        return check_gaze_vlm(words, place)
    if words[0] == "pip":
        check_pip(words, place)
    elif words[0] in ("accelerate", "python", "torchrun"):
        check_script(words, place)
    elif words[0] in ("pytest", "ruff", "mkdocs"):
        extras = project()["optional-dependencies"]
        names = {re.split(r"[^\w-]", one)[0] for one in [*extras["dev"], *extras["docs"]]}
        assert words[0] in names or f"{words[0]}-material" in names, f"{place}: {words[0]} is in no extra"
        missing = [word for word in words[1:] if "/" in word and not (ROOT / word).exists()]
        assert not missing, f"{place}: no {missing}"
    elif words[:2] == ["hf", "upload"]:
        command = [sys.executable, "-m", "huggingface_hub.cli.hf", "upload", "--help"]
        known = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert [word for word in words if word.startswith("-") and word not in known] == [], place
        assert (ROOT / words[3]).is_dir(), f"{place}: no {words[3]}"
    else:
        pytest.fail(f"{place}: nothing is known of the command {words[0]}")
    return True


def check_gaze_vlm(words: list[str], place: str) -> bool:
    command, left = typer.main.get_command(app), words[1:]
    while hasattr(command, "commands"):
        assert left and left[0] in command.commands, f"{place}: gaze-vlm has no {' '.join(left[:1])}"
        command, left = command.commands[left[0]], left[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    check_options(left, known, place)
    return bool(PLACEHOLDER.search(" ".join(left))) or words[1] in UNRUN


def check_pip(words: list[str], place: str) -> None:
    assert words[1] == "install", f"{place}: {shlex.join(words)}"
    (what,) = [word for word in words[2:] if not word.startswith("-")]
    name, _, extras = what.rstrip("]").partition("[")
    assert name in (".", "gaze2report"), f"{place}: {name} is not this package"
    unknown = set(filter(None, extras.split(","))) - project()["optional-dependencies"].keys()
    assert not unknown, f"{place}: no extra {unknown}"


def check_script(words: list[str], place: str) -> None:
    at = next((i for i, word in enumerate(words) if word.startswith("examples/") and word.endswith(".py")), None)
    assert at is not None, f"{place}: no script of examples/ in {shlex.join(words)}"
    assert (ROOT / words[at]).is_file(), f"{place}: no {words[at]}"
    files = [word for word in words if word.startswith("examples/")]
    missing = [file for file in files if not (ROOT / file).exists()]
    assert not missing, f"{place}: no {missing}"
    if words[0] == "accelerate":
        assert words[1] == "launch", f"{place}: {shlex.join(words[:2])}"
        check_options(words[2:at], {"--config_file", "--cpu", "--num_processes"}, place)
    options, kinds = help_of(Path(words[at]).stem)
    check_options(words[at + 1 :], options, place)
    if kinds:
        assert words[at + 1] in kinds, f"{place}: {words[at]} knows {kinds}, not {words[at + 1]}"


def check_options(words: list[str], known: set[str], place: str) -> None:
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    assert not unknown, f"{place}: unknown {', '.join(unknown)}"


@functools.cache
def help_of(script: str) -> tuple[set[str], tuple[str, ...]]:
    """Options of a script of examples/ as its own --help has them, and what its first word may be, if it needs one."""
    for needed in ("trl", "accelerate", "datasets", "peft"):
        pytest.importorskip(needed, reason='the scripts need it: pip install "gaze2report[train]"')
    before, written = set(sys.modules), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(written):
        patch.syspath_prepend(str(EXAMPLES))
        patch.setattr(sys, "argv", [f"{script}.py", "--help"])
        for name in namesakes():
            patch.delitem(sys.modules, name)
        module = importlib.import_module(script)
        with pytest.raises(SystemExit):
            module.main()
        for name in set(sys.modules) - before:
            if is_example(name):
                del sys.modules[name]
    kinds = re.search(r"^positional arguments:\s+\{([^}]*)\}", written.getvalue(), re.MULTILINE)
    options = set(re.findall(r"(?<!\S)--[A-Za-z_]\w*", written.getvalue()))
    return options, tuple(kinds[1].split(",")) if kinds else ()


def is_example(name: str) -> bool:
    return Path(getattr(sys.modules[name], "__file__", None) or "/").parent == EXAMPLES


def namesakes() -> list[str]:
    """Modules of the package evaluate, whose name a script has too, and what holds on to one of them."""
    names = [name for name in sys.modules if name.partition(".")[0] == "evaluate"]
    return names + [name for name in ("gaze_vlm.metrics.evaluation",) if name in sys.modules]


@pytest.fixture(autouse=True)
def as_installed(tmp_path_factory, monkeypatch):
    """Blocks see the packages that are installed, not the scripts of examples/, and caches of their own."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if Path(place) != EXAMPLES])
    for name in namesakes():
        monkeypatch.delitem(sys.modules, name)
    caches = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("HF_METRICS_CACHE", str(caches))
    if importlib.util.find_spec("datasets"):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", caches)


@functools.cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# ---- tests


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_does_what_it_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace, printed = {"__name__": "__main__"}, None
    for block in blocks_of(page.read_text(encoding="utf-8"), page.name):
        if block.tag == "python":
            printed = run_python(block, namespace)
        elif block.tag == "bash":
            for words in commands_of(block):
                assert not check_command(words, block.place), f"{block.place}: {shlex.join(words)} is for a console"
            printed = run_bash(block, monkeypatch, capsys)
        elif block.tag == "console":
            printed = None
            for words in commands_of(block):
                if not check_command(words, block.place):
                    run_gaze_vlm(words, block.place, monkeypatch, capsys)
        elif block.tag == "text":
            assert printed is not None, f"{block.place}: no block before it prints this"
            assert printed.strip() == block.text.strip(), f"{block.place}: this is printed:\n{printed}"
            printed = None
        elif block.tag in ("json", "yaml"):
            {"json": json.loads, "yaml": yaml.safe_load}[block.tag](block.text)
        else:
            pytest.fail(f"{block.place}: nothing is known of the tag {block.tag!r}")


def test_a_wrong_block_fails(tmp_path, monkeypatch, capsys):
    wrong = {
        "python": ["raise ValueError('x')"],
        "bash": ["gaze-vlm report no.png", "gaze-vlm repot A.png", "rm A.png"],
        "console": [
            "gaze-vlm data reflacx --root DIR --no_such 1",
            "python examples/evaluate.py --no_such DIR",
            "python examples/no_such.py",
            "pip install '.[no_such]'",
            "curl DIR",
        ],
        "text": ["nobody printed this"],
        "json": ["{a: 1}"],
        "yaml": ["a: ]"],
        "toml": ["a = 1"],
        "": ["gaze-vlm demo"],
    }
    page = tmp_path / "page.md"
    for tag, texts in wrong.items():
        for text in texts:
            page.write_text(f"```{tag}\n{text}\n```\n", encoding="utf-8")
            with pytest.raises((AssertionError, ValueError, yaml.YAMLError, pytest.fail.Exception)):
                test_every_block_does_what_it_says(page, tmp_path, monkeypatch, capsys)


def test_the_commands_of_the_examples_are_known():
    commands = [
        (words, block.place)
        for block in blocks_of((EXAMPLES / "README.md").read_text(encoding="utf-8"), "examples/README.md")
        if not block.tag
        for words in commands_of(block)
        if any(word.startswith("examples/") for word in words)
    ]
    assert len(commands) > 5
    for words, place in commands:
        check_script(words, place)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https://|#", target):
            continue
        file = (page.parent / target.partition("#")[0]).resolve()
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        assert page.parent == ROOT or file.is_relative_to(page.parent), f"{page.name}: {target} is not on the site"


def test_the_site_builds_and_asks_for_nothing_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason='pages are built by mkdocs: pip install "gaze2report[docs]"')
    pytest.importorskip("mkdocstrings", reason='pages are built by mkdocstrings: pip install "gaze2report[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "site").glob("*.html")}
    assert {page.stem for page in PAGES if page.parent.name == "docs"} <= pages.keys()
    for name, page in pages.items():
        fetched = re.findall(
            r"<(?:script|link|img|iframe|video|source)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^>]*>", page
        )
        assert not fetched, f"{name}: {fetched}"
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style
    missing = [name for name in gaze_vlm.__all__ if not re.search(rf'id="gaze_vlm\.[\w.]*\b{name}"', pages["api"])]
    assert not missing, f"docs/api.md lacks {missing}"


def test_the_version_is_the_same_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == gaze_vlm.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == gaze_vlm.__version__
    assert project()["version"] == gaze_vlm.__version__


def test_the_citation_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["message"] and citation["title"]
    assert citation["license"] == project()["license"]
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    for paper in citation["references"]:
        assert paper["type"] and paper["title"] and paper["year"]
        assert all(author["family-names"] for author in paper["authors"])
        assert ("doi" in paper) != ("url" in paper)


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason='the notebook needs it: pip install "gaze2report[dev]"')
    nbclient = pytest.importorskip("nbclient", reason='the notebook needs it: pip install "gaze2report[dev]"')
    pytest.importorskip("ipykernel", reason='the notebook needs it: pip install "gaze2report[dev]"')
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "it is kept without outputs"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert all(cell.execution_count for cell in cells)
    assert "image/png" in json.dumps([cell.outputs for cell in cells])
