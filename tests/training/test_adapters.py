"""Adapters of a GazeVLM: saved, loaded onto the base, merged into it, and refused by another."""

import json
import re
import shutil

import pytest
import torch
import transformers
from packaging.version import Version

pytest.importorskip("peft", reason='adapters need peft: pip install "gaze2report[train]"')

from peft import PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModel, AutoModelForImageTextToText, LlamaConfig, set_seed

from gaze_vlm import GazeVLM, GazeVLMConfig
from gaze_vlm.training.adapters import AdapterError, load_adapter, lora_config, merge_adapter, save_base_samples

LLAMA_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
OPT_LINEAR = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
FULL = ("visual_gaze_graph", "multi_modal_projector")
USER, ASSISTANT, IMAGE = 2, 3, 1  # of `tiny_tokenizer`


def new_model(tiny_bundle, text="opt", seed=0, own_tower=False, **changes) -> GazeVLM:
    """Like the tiny GazeVLM, with wide weights; `own_tower`: of the predictor inside."""
    values = GazeVLMConfig.from_pretrained(tiny_bundle / "gaze_vlm").to_dict()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    if text == "llama":
        tokens = {name: values["text_config"][name] for name in ("vocab_size", "pad_token_id", "eos_token_id")}
        values["text_config"] = LlamaConfig(**sizes, **tokens, initializer_range=0.2).to_dict()
    else:
        values["text_config"] |= {"dropout": 0.0, "init_std": 0.2}
    if own_tower:
        values["scanpath_config"]["vision_config"] = values["vision_config"]
    values |= {"initializer_range": 0.2, "tie_word_embeddings": text == "opt"} | changes
    set_seed(seed)
    return GazeVLM(GazeVLMConfig(**values)).eval()


def adapt(base: GazeVLM, folder, **options) -> PeftModel:
    """A saved adapter with all that is trainable moved, as after training."""
    model = get_peft_model(base, lora_config(base, r=2, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_base_samples(model, folder)
    return model.eval()


@pytest.fixture(scope="module", params=["opt", "llama"])
def saved(request, tiny_bundle, tmp_path_factory):
    """(folder of the base, folder of the adapter, the adapted model in memory); not to be written to."""
    folder = tmp_path_factory.mktemp(request.param)
    new_model(tiny_bundle, request.param).save_pretrained(folder / "base")
    return folder / "base", folder / "adapter", adapt(GazeVLM.from_pretrained(folder / "base"), folder / "adapter")


@pytest.fixture
def own(saved, tmp_path):
    """(base, adapter) as `saved`, to be written to; the adapter names this base."""
    base, adapter, _ = saved
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(adapter, tmp_path / "adapter")
    rename_base(tmp_path / "adapter", str(tmp_path / "base"))
    return tmp_path / "base", tmp_path / "adapter"


def rename_base(adapter, name) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))


@pytest.fixture(scope="module")
def inputs():
    """Two samples, left-padded, with one film and two; the third film has no gaze."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([
        [0, 0, 0, USER, IMAGE, IMAGE, IMAGE, IMAGE, 50, 60, 70, ASSISTANT],
        [USER, *[IMAGE] * 8, 80, 90, ASSISTANT],
    ])  # fmt: skip
    fixations, mask = torch.rand(3, 3, 4, generator=generator), torch.ones(3, 3, dtype=torch.bool)
    mask[2] = False
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": torch.randn(3, 3, 64, 64, generator=generator),
        "fixations": fixations,
        "fixation_mask": mask,
    }


@torch.no_grad()
def outputs(model, inputs) -> tuple[torch.Tensor, list]:
    """(logits where the prompt is, greedy tokens)."""
    logits = model(**inputs).logits[inputs["attention_mask"].bool()].float()
    return logits, model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False).tolist()


def assert_same(model, other, inputs) -> None:
    (one, tokens), (two, its) = outputs(model, inputs), outputs(other, inputs)
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    assert tokens == its


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---- what is trained


@pytest.mark.parametrize(("text", "linear"), [("opt", OPT_LINEAR), ("llama", LLAMA_LINEAR)])
def test_lora_is_on_the_language_model_only(tiny_bundle, text, linear):
    base = new_model(tiny_bundle, text, own_tower=True)
    layers = {f"{name}." for name, _ in base.named_modules() if name.startswith("model.language_model.")}
    model = get_peft_model(base, lora_config(base))
    adapted = {re.split("lora_[AB]", name)[0] for name in trainable(model) if "lora_" in name}
    own = {name.removeprefix("base_model.model.") for name in adapted}
    assert own <= layers and {name.split(".")[-2] for name in own} == linear
    depth = len({name.split(".layers.")[1].split(".")[0] for name in own})
    assert depth == base.config.text_config.num_hidden_layers and len(own) == depth * len(linear)
    assert not any("lora_" in name for name, _ in model.named_parameters() if "language_model" not in name)


def test_graph_and_projector_are_trained_in_full_and_nothing_else(tiny_bundle):
    base = new_model(tiny_bundle, own_tower=True)
    whole = {name for name, _ in base.named_parameters() if any(part in name for part in FULL)}
    model = get_peft_model(base, lora_config(base))
    assert model.peft_config["default"].modules_to_save == list(FULL)
    full = {name for name in trainable(model) if "lora_" not in name}
    assert {name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for name in full} == whole


def test_the_vision_tower_but_not_the_predictors_may_be_trained(tiny_bundle, tmp_path):
    base = new_model(tiny_bundle, own_tower=True)
    base.save_pretrained(tmp_path / "base")
    tower = {name for name, _ in base.named_parameters() if name.startswith("model.vision_tower.")}
    model = adapt(GazeVLM.from_pretrained(tmp_path / "base"), tmp_path / "a", train_vision_tower=True)
    trained = {name.removeprefix("base_model.model.") for name in trainable(model)}
    assert {name.replace(".modules_to_save.default", "") for name in trained if "vision_tower" in name} == tower
    pixels = {"input_ids": torch.tensor([[USER, *[IMAGE] * 4, 50]]), "pixel_values": torch.randn(1, 3, 64, 64)}
    merged = merge_adapter(tmp_path / "a")
    with torch.no_grad():
        logits = model(**pixels, gaze="none").logits
        torch.testing.assert_close(merged(**pixels, gaze="none").logits, logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(base(**pixels, gaze="none").logits, logits, atol=1e-2)
    one, other = (one.state_dict() for one in (merged.model.scanpath_predictor, base.model.scanpath_predictor))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_few_layers_may_be_chosen(tiny_bundle):
    base = new_model(tiny_bundle, "llama")
    model = get_peft_model(base, lora_config(base, target_modules=["q_proj", "v_proj"]))
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in trainable(model) if "lora_" in name}
    assert adapted == {"q_proj", "v_proj"}


def test_a_layer_that_is_not_there_is_named(tiny_bundle):
    with pytest.raises(ValueError, match="no layer 'c_attn'; fc1, fc2, k_proj, out_proj, q_proj, v_proj"):
        lora_config(new_model(tiny_bundle), target_modules=["q_proj", "c_attn"])


# ---- what is saved


def test_the_folder_holds_only_what_was_trained(saved):
    base, folder, model = saved
    assert not [file for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = {name.removeprefix("base_model.model.") for name in file.keys()}  # noqa: SIM118 (no mapping)
        numbers = sum(file.get_tensor(f"base_model.model.{name}").numel() for name in names)
    assert all("lora_" in name or name.split(".")[1] in FULL for name in names)
    assert {name.split(".")[1] for name in names} == {"language_model", *FULL}
    assert numbers == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert size < (base / "model.safetensors").stat().st_size / 4


def test_the_base_is_known_by_frozen_weights_only(saved):
    base, folder, _ = saved
    with safe_open(folder / "base_samples.safetensors", "pt") as file:
        samples = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    weights = dict(GazeVLM.from_pretrained(base).named_parameters())
    assert samples.keys() == {name for name in weights if not any(part in name for part in FULL)}
    assert all(torch.equal(values, weights[name].flatten()[:8]) for name, values in samples.items())


# ---- what comes back


def test_it_comes_back_on_its_base_and_by_its_bases_name(saved, inputs):
    base, folder, model = saved
    assert_same(model, load_adapter(folder, GazeVLM.from_pretrained(base)), inputs)
    assert_same(model, load_adapter(str(folder)), inputs)
    plain, _ = outputs(GazeVLM.from_pretrained(base), inputs)
    assert (plain - outputs(model, inputs)[0]).abs().max() > 0.1  # the adapter does something


def test_merged_it_is_a_checkpoint_like_any_other(saved, inputs, tmp_path):
    _, folder, model = saved
    merged = merge_adapter(folder)
    merged.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(merged) is GazeVLM and not any("lora_" in name for name in loaded.state_dict())
    assert_same(model, loaded, inputs)


def test_gaze_reaches_the_merged_model(saved, inputs, tmp_path):
    merged = merge_adapter(saved[1])
    blind = {name: value for name, value in inputs.items() if not name.startswith("fixation")} | {"gaze": "none"}
    assert (outputs(merged, blind)[0] - outputs(merged, inputs)[0]).abs().max() > 1e-2


def test_transformers_loads_it_by_itself(saved, inputs):
    _, folder, model = saved
    if Version(transformers.__version__) < Version("5.18"):
        with pytest.raises(ImportError, match=r"transformers>=5\.18 is required.*\n.*projector of an adapter unread"):
            AutoModelForImageTextToText.from_pretrained(folder)
        return
    assert_same(model, AutoModelForImageTextToText.from_pretrained(folder), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_base_may_be_loaded_in_half_precision(saved, inputs, tmp_path, dtype):
    _, folder, model = saved
    # as a whole: rounding may give a patch another nearest one, which moves few logits, but those further
    half, whole = outputs(load_adapter(folder, dtype=dtype), inputs)[0], outputs(model, inputs)[0]
    assert (half - whole).norm() < 0.05 * whole.norm()
    merge_adapter(folder, dtype=dtype).save_pretrained(tmp_path)
    merged = GazeVLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in merged.parameters()} == {dtype}
    assert (outputs(merged, inputs)[0] - whole).norm() < 0.05 * whole.norm()


# ---- what is refused


one_base = pytest.mark.parametrize("saved", ["opt"], indirect=True)


def refusal(*arguments) -> str:
    with pytest.raises(AdapterError) as error:
        load_adapter(*arguments)
    (line,) = str(error.value).splitlines()
    return line


@one_base
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 1}, "differs"),
        ({"vision_config": {"image_size": 32}}, "position_embeddings differs"),
        ({"vision_config": {"num_hidden_layers": 0}}, "missing"),
        ({"text_config": {"num_hidden_layers": 0}}, "missing"),
        ({"text_config": {"num_hidden_layers": 3}}, "more layers"),
        ({"num_graph_layers": 3}, "graph or projector has another shape"),
        ({"num_graph_layers": 0}, "or fewer"),
        ({"scanpath_config": None, "gaze": "none"}, "missing"),
    ],
    ids=[
        "other weights",
        "smaller films",
        "shallower tower",
        "shallower",
        "deeper",
        "deeper graph",
        "shallower graph",
        "without predictor",
    ],
)
def test_another_base_is_refused(saved, tiny_bundle, changes, reason):
    base, folder, _ = saved
    config = GazeVLMConfig.from_pretrained(base).to_dict()
    for name, value in changes.items():
        if name != "seed":
            config[name] = config[name] | value if isinstance(value, dict) else value
    other = GazeVLM(GazeVLMConfig(**config))
    if "seed" not in changes:  # as many weights alike as can be
        known, own = GazeVLM.from_pretrained(base).state_dict(), other.state_dict()
        alike = {name: value for name, value in known.items() if name in own and own[name].shape == value.shape}
        other.load_state_dict(alike, strict=False)
    line = refusal(folder, other)
    assert str(folder) in line and str(base) in line and reason in line


@one_base
def test_another_graph_is_refused(saved):
    base, folder, _ = saved
    other = GazeVLM(GazeVLMConfig.from_pretrained(base, graph_hidden_size=8))
    known, own = GazeVLM.from_pretrained(base).state_dict(), other.state_dict()
    alike = {name: value for name, value in known.items() if own[name].shape == value.shape}
    other.load_state_dict(alike, strict=False)
    line = refusal(folder, other)
    assert str(folder) in line and str(base) in line and "graph or projector has another shape" in line


@one_base
def test_a_base_trained_on_is_refused(saved):
    base, folder, _ = saved
    other = GazeVLM.from_pretrained(base)
    with torch.no_grad():
        weight = next(p for name, p in other.model.language_model.named_parameters() if name.endswith("q_proj.weight"))
        weight.mul_(1.05)
    assert "q_proj.weight differs" in refusal(folder, other)


@one_base
@pytest.mark.parametrize("damage", ["gone", "empty", "cut off"])
def test_a_base_that_cannot_be_read_is_named(own, damage):
    base, folder = own
    weights = base / "model.safetensors"
    if damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        shutil.rmtree(base)
        if damage == "empty":
            base.mkdir()
    line = refusal(folder)
    assert str(folder) in line and str(base) in line and line.endswith("pass the base")


@one_base
def test_a_base_that_moved_may_be_passed(own, saved, inputs, tmp_path):
    base, folder = own
    base.rename(tmp_path / "moved")
    assert_same(saved[2], load_adapter(folder, GazeVLM.from_pretrained(tmp_path / "moved")), inputs)


@one_base
def test_the_name_may_lead_to_another_base(own, saved):
    base, folder = own
    with torch.no_grad():
        other = GazeVLM.from_pretrained(base)
        for parameter in other.parameters():
            parameter.add_(0.1)
    other.save_pretrained(base)
    assert str(base) in refusal(folder)


@one_base
def test_an_adapter_that_names_no_base_asks_for_it(own):
    base, folder = own
    rename_base(folder, None)
    assert refusal(folder) == f"{folder}: its config names no base; pass the base"
    load_adapter(folder, GazeVLM.from_pretrained(base))


@one_base
def test_a_folder_without_an_adapter_is_named(saved, tmp_path):
    for folder in (saved[0], tmp_path, tmp_path / "nowhere"):
        assert refusal(folder) == f"{folder}: no adapter_config.json, so no adapter"
    shutil.copy(saved[1] / "adapter_config.json", tmp_path)
    assert refusal(tmp_path) == f"{tmp_path}: no adapter_model.safetensors, so no adapter"


@one_base
def test_an_adapter_of_others_has_no_samples_to_check(own, inputs):
    base, folder = own
    (folder / "base_samples.safetensors").unlink()
    load_adapter(folder, GazeVLM.from_pretrained(base))


@one_base
def test_weights_that_are_quantised_are_not_compared(own):
    base, folder = own
    other = GazeVLM.from_pretrained(base)
    layer = next(layer for name, layer in other.named_modules() if re.search(r"model\.language_model.*q_proj$", name))
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.uint8), requires_grad=False)
    with torch.no_grad():
        other.model.vision_tower.layernorm.weight.add_(1)
    assert "model.vision_tower.layernorm.weight differs" in refusal(folder, other)
    with torch.no_grad():
        other.model.vision_tower.layernorm.weight.sub_(1)
    load_adapter(folder, other)
