"""What every model keeps: forward, backward, save and load, dtypes, checkpointing, batch = single, Auto classes."""

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel
from transformers.modeling_layers import GradientCheckpointingLayer

from gaze_vlm import GazeClassifierConfig, GazeVLMConfig, ScanpathPredictorConfig

# the same number added to everything under a softmax: its gradient is zero up to rounding
UNSEEN_BIAS = re.compile(r"(k_proj|key|strategy_head)\.bias$")


def tensors(outputs) -> dict[str, torch.Tensor]:
    return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def assert_same_outputs(one, other, batch):
    with torch.no_grad():
        first, second = tensors(one(**batch)), tensors(other(**batch))
    assert first.keys() == second.keys() and len(first) > 1
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value, second[name]), name


def test_every_trainable_parameter_gets_a_gradient(case):
    model = case.build()
    loss = model(**case.batch()).loss
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    trainable = case.trainable(model)
    missing = [name for name, p in trainable.items() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in trainable.values())
    idle = [name for name, p in trainable.items() if not UNSEEN_BIAS.search(name) and not p.grad.abs().sum() > 0]
    assert not idle
    others = {name: p for name, p in model.named_parameters() if name not in trainable}
    assert [name for name, p in others.items() if p.grad is not None and p.grad.abs().sum() > 0] == []


def test_what_is_trainable_moves_and_what_is_frozen_does_not(case):
    model = case.build().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    model(**case.batch()).loss.backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    expected = {name for name in case.trainable(model) if not UNSEEN_BIAS.search(name)}
    assert expected - moved == set()
    assert {name for name in moved - expected if not UNSEEN_BIAS.search(name)} == set()


def test_a_frozen_language_model_stays_as_it_was_and_a_free_one_learns(make_scanpath_predictor, make_films, make_gaze):
    fixations, mask = make_gaze([3, 2], slots=4)
    for frozen in (True, False):
        model = make_scanpath_predictor("opt", freeze_language_model=frozen)
        before = {name: p.detach().clone() for name, p in model.language_model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ids = torch.tensor([[6, 7], [8, 9]])
        model(make_films(2), ids, fixations=fixations, fixation_mask=mask, labels=ids).loss.backward()
        optimizer.step()
        same = [torch.equal(p, before[name]) for name, p in model.language_model.named_parameters()]
        assert (
            all(same)
            if frozen
            else not any(equal for equal, name in zip(same, before, strict=True) if not UNSEEN_BIAS.search(name))
        )


def test_saved_and_loaded_through_automodel_gives_the_same_to_the_bit(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert_same_outputs(model, loaded, case.batch())


def test_cast_to_bfloat16_saved_and_loaded_is_the_same_to_the_bit(learned_positions_case, tmp_path):
    case = learned_positions_case  # `.to(bfloat16)` rounds the rotary frequencies of Llama, which loading keeps whole
    model = case.build().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert_same_outputs(model, loaded, case.batch())


def test_what_is_frozen_stays_frozen_when_loaded(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    expected = {name: p.requires_grad for name, p in model.named_parameters()}
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for one in (loaded, AutoModel.from_pretrained(tmp_path)):
        assert {name: p.requires_grad for name, p in one.named_parameters()} == expected


def test_loaded_in_bfloat16_saved_and_loaded_again_is_the_same(case, tmp_path):
    case.build().save_pretrained(tmp_path / "float32")
    half = AutoModel.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path / "bfloat16")
    assert_same_outputs(half, AutoModel.from_pretrained(tmp_path / "bfloat16"), case.batch())


def test_half_precision_is_near_float32(case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    batch = case.batch()
    with torch.no_grad():
        full, rounded = model(**batch), half(**batch)
    assert rounded.loss.isfinite()
    torch.testing.assert_close(rounded.loss.float(), full.loss, rtol=0.05, atol=0.05)


def test_weights_are_safetensors_and_nothing_else(case, tmp_path):
    case.build().save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert (
        {"config.json", "model.safetensors"}
        <= files
        <= {
            "config.json",
            "model.safetensors",
            "generation_config.json",
        }
    )


def test_gradient_checkpointing_computes_the_same_twice_over(case):
    batch, results, calls = case.batch(), [], []
    for checkpointing in (False, True):
        model = case.build().train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        count = []
        # a frozen language model is in eval mode, where transformers checkpoints nothing
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for layer in (layer for layer in layers if layer.training):
            # inside the layer: 5.17 checkpoints a layer's call, 5.23 its forward
            inner = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
            inner.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        loss = model(**batch).loss
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        calls.append(len(count))
    assert calls[1] == 2 * calls[0] > 0  # forward, and again in backward
    (loss, gradients), (loss_again, gradients_again) = results
    torch.testing.assert_close(loss_again, loss)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_a_sample_is_the_same_alone_and_in_a_padded_batch(case):
    model = case.build()
    batch = case.batch()
    with torch.no_grad():
        together = model(**batch)
        for i in range(case.samples):
            alone = case.alone(i)
            got, expected = case.outputs(together, batch, i), case.outputs(model(**alone), alone, 0)
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_config_survives_json(case, tmp_path):
    config = case.config()
    config.save_pretrained(tmp_path)
    loaded = type(config).from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    for name in config.sub_configs:
        assert type(getattr(loaded, name)) is type(getattr(config, name)), name
    assert json.loads(config.to_json_string(use_diff=False))["model_type"] == config.model_type


@pytest.mark.parametrize(
    ("config_class", "field", "value"),
    [
        (ScanpathPredictorConfig, "regression_loss", "l2"),
        (ScanpathPredictorConfig, "point_estimate", "median"),
        (ScanpathPredictorConfig, "max_fixations", 0),
        (ScanpathPredictorConfig, "num_strategies", 0),
        (ScanpathPredictorConfig, "num_query_tokens", -1),
        (ScanpathPredictorConfig, "num_attention_heads", 7),
        (ScanpathPredictorConfig, "num_query_tokens", "many"),
        (GazeVLMConfig, "gaze", "guessed"),
        (GazeVLMConfig, "gaze", "predicted"),
        (GazeVLMConfig, "merge_size", 0),
        (GazeVLMConfig, "graph_neighbors", "nine"),
        (GazeClassifierConfig, "attention", "everywhere"),
        (GazeClassifierConfig, "temperature", 0.0),
        (GazeClassifierConfig, "thresholds", [0.5, 0.5, 0.5]),
        (GazeClassifierConfig, "projection_dim", "wide"),
    ],
)
def test_a_bad_config_value_is_named(config_class, field, value):
    shown = str(len(value)) if isinstance(value, list) else str(value)
    with pytest.raises(Exception, match=f"(?s){field}.*{shown}"):
        config_class(**{field: value})


AUTO = """
import sys
{imports}
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
for name, autos in (
    ("ScanpathPredictor", (AutoModel,)),
    ("GazeClassifier", (AutoModel,)),
    ("GazeVLM", (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM)),
):
    folder = sys.argv[1] + "/" + name
    assert type(AutoConfig.from_pretrained(folder)).__name__ == name + "Config"
    for auto in autos:
        model = auto.from_pretrained(folder)
        assert type(model).__name__ == name and type(model).__module__.startswith("gaze_vlm."), type(model)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == name + "Processor", type(processor)
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == 1
print("loaded")
"""


def run_python(code: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "imports",
    [
        "import gaze_vlm",
        "from transformers import AutoModel, AutoProcessor\nimport gaze_vlm",
        "from gaze_vlm import GazeVLM, GazeVLMProcessor",
    ],
    ids=["gaze_vlm first", "transformers first", "a model first"],
)
def test_auto_classes_in_a_fresh_process(
    imports,
    tmp_path,
    make_scanpath_predictor,
    make_gaze_vlm,
    make_gaze_classifier,
    scanpath_processor,
    vlm_processor,
    classifier_processor,
):
    for model, processor in (
        (make_scanpath_predictor(), scanpath_processor),
        (make_gaze_vlm(), vlm_processor),
        (make_gaze_classifier(), classifier_processor),
    ):
        model.save_pretrained(tmp_path / type(model).__name__)
        processor.save_pretrained(tmp_path / type(model).__name__)
    assert "loaded" in run_python(AUTO.format(imports=imports), str(tmp_path))


def test_importing_the_package_is_light():
    heavy = ("timm", "torch_geometric", "trl", "datasets", "gradio", "transformers.models.auto.modeling_auto")
    code = f"import gaze_vlm, sys; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


THREADS = """
import sys, threading
{before}
errors, together = [], threading.Barrier(2)
def use(code):
    together.wait()
    try:
        exec(code, {{}})
    except BaseException as error:
        errors.append(repr(error))
uses = ("from transformers import AutoModel", "from transformers import AutoConfig, AutoProcessor")
threads = [threading.Thread(target=use, args=(code,)) for code in uses]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
from transformers import AutoConfig, AutoModel
AutoModel._model_mapping[type(AutoConfig.for_model("gaze_classifier"))]
print(errors, sorted(gaze_vlm.auto._registered))
"""
REGISTERED = "['configuration', 'modeling', 'processing']"


def test_with_threads_about_everything_is_registered_at_once():
    """transformers' own lazy imports fail in two threads, so there is nothing left for them to import."""
    before = """
stop = threading.Event()
other = threading.Thread(target=stop.wait)
other.start()
import gaze_vlm
stop.set()
"""
    for _ in range(3):
        assert run_python(THREADS.format(before=before)).strip() == f"[] {REGISTERED}"


def test_each_auto_module_registers_its_own_kind():
    code = """
import gaze_vlm, transformers
for name in ("AutoConfig", "AutoModel", "AutoProcessor"):
    getattr(transformers, name)
    print(sorted(gaze_vlm.auto._registered))
"""
    kinds = ["configuration", "modeling", "processing"]
    assert run_python(code).splitlines() == [str(kinds[:count]) for count in (1, 2, 3)]


def test_an_auto_module_can_be_copied_and_reloaded():
    code = """
import copy, importlib, gaze_vlm
from transformers.models.auto import configuration_auto
spec = configuration_auto.__spec__
assert copy.deepcopy(spec).name == copy.copy(spec.loader).name == spec.name
configuration_auto = importlib.reload(configuration_auto)
print(type(configuration_auto.AutoConfig.for_model("gaze_vlm")).__name__)
"""
    assert run_python(code).strip() == "GazeVLMConfig"


def test_a_failed_registration_is_made_up_for():
    code = """
import gaze_vlm
register = gaze_vlm.auto._REGISTRATIONS["configuration"]
gaze_vlm.auto._REGISTRATIONS["configuration"] = register[0], lambda: 1 / 0
try:
    from transformers.models.auto import configuration_auto
except ZeroDivisionError:
    gaze_vlm.auto._REGISTRATIONS["configuration"] = register
from transformers import AutoConfig
print(type(AutoConfig.for_model("gaze_vlm")).__name__)
"""
    assert run_python(code).strip() == "GazeVLMConfig"


def test_only_sdpa_is_claimed_where_attention_is_our_own(make_scanpath_predictor, make_gaze_classifier):
    for model in (make_scanpath_predictor(), make_gaze_classifier()):
        assert model._supports_sdpa
        assert not model._supports_flash_attn and not model._supports_attention_backend
