"""What goes to the Hub: weights, configuration, processor, the code they need, and a card, in one folder.

Who has the package loads it with `AutoModel.from_pretrained(name)` after `import gaze_vlm`; who has not, with
`trust_remote_code=True`. A repository holds one model, or all three: then GazeVLM is the repository itself and the
others are folders in it, as `--model` reads them.
"""

import glob
import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath, PureWindowsPath

from huggingface_hub.utils import validate_repo_id

from . import __version__, models

CODE = Path(models.__file__).parent
TEMPLATE = Path(__file__).with_name("model_card.md")
# of a folder that was trained into, what belongs to the checkpoint: no optimiser, no state, nothing pickled
CHECKPOINT = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "adapter_config.json",
    "README.md",
)


@dataclass(frozen=True)
class Kind:
    """A model type: the class, the Auto classes that know it, and what the Hub lists it under."""

    name: str
    auto_classes: tuple[str, ...]
    pipeline_tag: str
    what: str


KINDS = {
    "gaze_vlm": Kind(
        "GazeVLM",
        ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"),
        "image-text-to-text",
        "reads a chest X-ray with the gaze that is given, predicted or missing, and writes: tasks {tasks}",
    ),
    "gaze_classifier": Kind(
        "GazeClassifier",
        ("AutoModel",),
        "image-classification",
        "gives the probability of {labels} findings on a chest X-ray, and where it attends for each",
    ),
    "scanpath_predictor": Kind(
        "ScanpathPredictor",
        ("AutoModel",),
        "image-to-text",
        "predicts where a radiologist looks on a chest X-ray: fixations with x, y and duration",
    ),
}


class HubError(ValueError):
    """What cannot go to the Hub; the message names the file and says why."""


@dataclass(frozen=True)
class Result:
    """What was measured on one data set, with its baselines.

    Args:
        dataset, split: what on; the split's patients were not trained on.
        command: the line that printed it.
        table: as `ScoreTable.to_dict` gives it, which is what `--json` of examples/evaluate.py and `gaze-vlm score`
            print: {"protocol", "scores"}; the first system is the checkpoint.
    """

    dataset: str
    split: str
    command: str
    table: Mapping


@dataclass(frozen=True)
class CardFacts:
    """What a card says that the checkpoint itself does not hold. What is not given is said to be unknown.

    Args:
        license: the Hub's identifier, as "apache-2.0"; data sets may bind the weights to stricter terms.
        datasets: names of the training data, with their versions.
        base_model: names of the checkpoints it began from.
        gaze: how the gaze of the training data was obtained: recorded (of whom, on which films), predicted, synthetic.
        credits: whom the data is owed to.
        command: the training command.
        results: what was measured.
    """

    license: str = "other"
    datasets: Sequence[str] = ()
    base_model: Sequence[str] = ()
    gaze: str = ""
    credits: str = ""
    command: str = ""
    results: Sequence[Result] = ()

    def __post_init__(self) -> None:
        for name in ("datasets", "base_model"):
            if isinstance(getattr(self, name), str):  # as the Hub's own cards may have it
                object.__setattr__(self, name, (getattr(self, name),))
        for name in ("license", "gaze", "credits", "command"):
            if not isinstance(getattr(self, name), str):
                raise HubError(f"{name} must be a text, got {getattr(self, name)!r:.80}")

    @classmethod
    def from_file(cls, path: str | Path) -> "CardFacts":
        """From YAML or JSON with the names above; a result's `table` may be the name of a JSON file beside it.

        Raises:
            HubError: naming the file and what is wrong in it.
        """
        import yaml

        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            results = [_result(path.parent, one) for one in values.pop("results", None) or ()]
            unknown = values.keys() - {field.name for field in fields(cls)}
            if unknown:
                raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
            return cls(**values, results=results)
        except OSError as error:
            raise HubError(f"{error.filename or path}: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError, KeyError, ValueError) as error:
            raise HubError(f"{path}: no facts for a card ({' '.join(str(error).split())})") from error


def _result(folder: Path, values: Mapping) -> Result:
    table = values["table"]
    if isinstance(table, str):
        table = json.loads((folder / table).read_text(encoding="utf-8"))
    if not table["scores"]:
        raise ValueError(f"{values['dataset']}: the table has no scores")
    return Result(values["dataset"], values["split"], values["command"], table)


def save_for_hub(
    model, processor, folder: str | Path, card: CardFacts | None = None, repo_id: str | None = None
) -> Path:
    """Write what `push_to_hub` uploads: a folder that loads by its path with and without this package.

    Args:
        model: one of the three models.
        processor: its processor.
        card: facts for the card; None: those that the model holds.
        repo_id: the repository that the card names; by default called as the folder is.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    add_code(folder)
    _write_card(folder, repo_id or folder.name, card or CardFacts())
    return folder


def push_to_hub(
    model,
    repo_id: str,
    processor=None,
    card: CardFacts | None = None,
    *,
    private: bool | None = None,
    token: str | None = None,
    **options,
) -> str:
    """Upload a model with all that belongs to it; the commit's address.

    Args:
        processor: by default the one beside the checkpoint that the model was loaded from.
        card: as for `save_for_hub`.
        private, token: as everywhere in huggingface_hub.
        options: of `HfApi.upload_folder`: revision, create_pr, commit_message, commit_description, ...

    Raises:
        HubError: if there is no processor.
    """
    processor = processor if processor is not None else _processor_of(model)
    with tempfile.TemporaryDirectory() as folder:
        saved = save_for_hub(model, processor, folder, card, repo_id)
        return _upload(saved, repo_id, private, token, options)


def push_folder(
    source: str | Path,
    repo_id: str,
    card: CardFacts | None = None,
    *,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a checkpoint as it lies in a folder: a model, an adapter, or all three models; the commit's address.

    A README.md that lies there is the card, unless `card` is given.

    Raises:
        HubError: if there is no checkpoint, or one of another model.
        HFValidationError: if there can be no repository of that name.
    """
    validate_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        gathered = gather(source, folder, repo_id, card)
        return _upload(gathered, repo_id, private, token, {})


def gather(source: str | Path, folder: str | Path, repo_id: str, card: CardFacts | None = None) -> Path:
    """What `push_folder` uploads, in a new folder."""
    source, folder = Path(source), Path(folder)
    parts = {kind: source / kind for kind in KINDS if (source / kind / "config.json").is_file()}
    if not parts and not any((source / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise HubError(f"{source}: no checkpoint: no config.json, no adapter_config.json, and no folder with one")
    for place in parts.values() or [source]:
        if (place / "config.json").is_file():
            _kind_of(place / "config.json")
    for kind, place in parts.items():
        _copy(place, folder if kind == "gaze_vlm" else folder / kind)
    if parts:
        _copy(source, folder, ("README.md",))
    else:
        _copy(source, folder)
    add_code(folder)
    if (folder / "adapter_config.json").is_file():
        forget_folder(folder / "adapter_config.json")
    if card is not None or not (folder / "README.md").is_file():
        _write_card(folder, repo_id, card or CardFacts())
    return folder


def public_name(model: str) -> str:
    """A model's name on the Hub, or that of its folder, whether it lies on this machine or another; never a path."""
    if model and Path(model).exists():
        return Path(model).resolve().name
    return model if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model) else PureWindowsPath(model).name


def forget_folder(adapter_config: str | Path) -> None:
    """An adapter's base that is a folder goes by its name, in the card beside it too: where it lies is nobody's
    business."""
    adapter_config = Path(adapter_config)
    settings = json.loads(adapter_config.read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path")
    if base and (name := public_name(base)) != base:
        card = adapter_config.with_name("README.md")
        _put(adapter_config, settings | {"base_model_name_or_path": name})
        if card.is_file() and ("/" in base or "\\" in base):
            place = rf"(?<![\w./-]){re.escape(base.rstrip('/' + chr(92)))}(?![\w-])"
            text = re.sub(place, lambda _: name, card.read_text(encoding="utf-8"))
            card.write_text(text, encoding="utf-8")


def add_code(folder: str | Path) -> None:
    """Put the code beside a checkpoint, or beside the folders of several (`KINDS`), and into each config.json where it
    lies. Other folders are left alone."""
    folder = Path(folder)
    for file in _configs(folder):
        kind, config = _kind_of(file)
        name = KINDS[kind].name
        classes = dict.fromkeys(KINDS[kind].auto_classes, f"modeling_{kind}.{name}")
        config["auto_map"] = {"AutoConfig": f"configuration_{kind}.{name}Config", **classes}
        _put(file, config)
        processor = file.with_name("processor_config.json")
        if processor.is_file():
            known = json.loads(processor.read_text(encoding="utf-8"))
            _put(processor, known | {"auto_map": {"AutoProcessor": f"processing_{kind}.{name}Processor"}})
        for code in _code_of(kind):
            shutil.copy(code, folder / code.name)


def _configs(folder: Path) -> list[Path]:
    """Each config.json of a checkpoint, or of several in their folders."""
    places = (folder, *(folder / kind for kind in KINDS))
    return [place / "config.json" for place in places if (place / "config.json").is_file()]


def _kind_of(file: Path) -> tuple[str, dict]:
    """The model type of a config.json, and the config."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise HubError(f"{file}: no configuration of a model ({error})") from error
    if kind not in KINDS:
        raise HubError(f"{file}: its model type is {kind}; it must be one of {', '.join(KINDS)}")
    return kind, config


def _code_of(kind: str) -> set[Path]:
    """The files of a model type and all that they import of their siblings."""
    found: set[Path] = set()
    waiting = [CODE / f"{role}_{kind}.py" for role in ("configuration", "modeling", "processing")]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            imported = re.findall(r"^\s*from \.(\w+) import", file.read_text(encoding="utf-8"), re.MULTILINE)
            waiting += [CODE / f"{name}.py" for name in imported]
    return found


def _copy(source: Path, folder: Path, patterns: Sequence[str] = CHECKPOINT) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def _put(file: Path, values: dict) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _processor_of(model):
    from transformers import AutoProcessor

    name = model.name_or_path or type(model).__name__
    try:
        if model.name_or_path:
            return AutoProcessor.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as error:
        raise HubError(f"{name}: no processor beside the model: pass processor=...") from error
    raise HubError(f"{name}: made, not loaded, so there is no processor beside it: pass processor=...")


def _upload(folder: Path, repo_id: str, private, token, options: dict) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="gaze_vlm", library_version=__version__)
    api.create_repo(repo_id, private=private, exist_ok=True)
    revision = options.get("revision")
    if revision and not revision.startswith("refs/pr") and not options.get("create_pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    known = api.list_repo_files(repo_id, revision=revision)
    options = {"delete_patterns": [glob.escape(name) for name in _stale(known, folder)]} | options
    return str(api.upload_folder(folder_path=folder, repo_id=repo_id, **options))


def _stale(known: Sequence[str], folder: Path) -> list[str]:
    """Weights of before, beside those in the folder, that would be loaded in their place: other shards, or one
    file."""

    def kind(name: str) -> tuple[str, str]:  # where it lies, and whether of a model or an adapter
        path = PurePosixPath(name)
        return str(path.parent), re.split("[-.]", path.name)[0]

    new = {file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors*")}
    kinds = set(map(kind, new))
    weights = (name for name in known if name.endswith((".safetensors", ".safetensors.index.json")))
    return [name for name in weights if name not in new and kind(name) in kinds]


# ---- the card


def _write_card(folder: Path, repo_id: str, facts: CardFacts) -> None:
    if not (files := _configs(folder)):
        raise HubError(
            f"{repo_id}: an adapter without config.json: its card cannot be written; put a README.md beside it"
        )
    config = json.loads(files[0].read_text(encoding="utf-8"))
    (folder / "README.md").write_text(render_card(config, repo_id, facts), encoding="utf-8")


def render_card(config: Mapping, repo_id: str, facts: CardFacts) -> str:
    """The card of a checkpoint; `config` is its config.json."""
    from huggingface_hub import ModelCard, ModelCardData

    kind = KINDS[config["model_type"]]
    what = kind.what.format(
        tasks=", ".join(config.get("tasks") or ["report"]), labels=len(config.get("id2label") or ())
    )
    data = ModelCardData(
        library_name="transformers",
        license=facts.license,
        pipeline_tag=kind.pipeline_tag,
        tags=["gaze_vlm", "chest-x-ray", "eye-tracking", "gaze", "medical"],
        datasets=list(facts.datasets) or None,
        base_model=list(facts.base_model) or None,
        model_name=repo_id.split("/")[-1],
        eval_results=[entry for result in facts.results for entry in model_index(result, kind.pipeline_tag)] or None,
    )
    values = {"repo_id": repo_id, "kind": kind, "what": what, "facts": facts, "version": __version__}
    values["results"] = [(result, _markdown(result.table["scores"])) for result in facts.results]
    return str(ModelCard.from_template(data, template_path=str(TEMPLATE), **values))


def model_index(result: Result, task: str) -> list:
    """The checkpoint's own figures as the Hub lists them (`EvalResult`s); baselines stand in the card's tables."""
    from huggingface_hub import EvalResult

    first = result.table["scores"][0]["system"]
    return [
        EvalResult(
            task_type=task,
            dataset_type=_slug(result.dataset),
            dataset_name=result.dataset,
            dataset_split=result.split,
            metric_type=_slug(score["metric"]),
            metric_name=score["metric"],
            metric_value=round(score["interval"]["estimate"], 4),
        )
        for score in result.table["scores"]
        if score["system"] == first and _is_number(score["interval"]["estimate"])
    ]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _markdown(scores: Sequence[Mapping]) -> str:
    lines = ["| metric | | system | n | estimate | 95 % interval |", "|---|---|---|---|---|---|"]
    for score in scores:
        arrow = {True: "↑", False: "↓", None: ""}[score["higher_is_better"]]
        estimate, low, high = (_number(score["interval"][name]) for name in ("estimate", "low", "high"))
        cells = [score["metric"], arrow, score["system"], str(score["n"]), estimate, f"[{low}, {high}]"]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{value:.3f}" if _is_number(value) else "undefined"
