"""LoRA adapters of a GazeVLM: what was trained as one small folder, on top of its base, or merged into it.

The folder is peft's own: LoRA weights of the language model, graph and projector in full, and the processor.
"""

from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..models.configuration_gaze_vlm import GazeVLMConfig
from ..models.modeling_gaze_vlm import GazeVLM

TRAINED_IN_FULL = ("visual_gaze_graph", "multi_modal_projector")
BASE_FILE = "base_samples.safetensors"
_SAMPLED = 8  # values of each tensor


class AdapterError(ValueError):
    """An adapter that does not belong to the base; the message names both and says how to mend it."""


def lora_config(
    model: GazeVLM,
    *,
    r: int = 16,
    alpha: int = 16,
    dropout: float = 0.1,
    target_modules: list[str] | None = None,
    train_vision_tower: bool = False,
) -> LoraConfig:
    """LoRA on the language model only; graph and projector are trained in full. Ranks are R2GenGPT's, for Gaze2Report
    tells none.

    Args:
        target_modules: last parts of the names of the language model's layers, such as `q_proj`; all its linear
            layers by default. (Bare names would hit vision tower and scanpath predictor too.)
        train_vision_tower: in full, as graph and projector (the scanpath predictor's own never is).

    Raises:
        ValueError: naming a layer that the language model lacks.
    """
    linear = {
        name.rpartition(".")[2]
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    }
    for name in target_modules or ():
        if name not in linear:
            raise ValueError(f"target_modules: the language model has no layer {name!r}; {', '.join(sorted(linear))}")
    names = "|".join(sorted(target_modules or linear))
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"model\.language_model\..*\.({names})",
        modules_to_save=[*TRAINED_IN_FULL, *(["model.vision_tower"] if train_vision_tower else [])],
        task_type="CAUSAL_LM",
    )


def save_base_samples(model: PeftModel, folder: str | Path) -> None:
    """What `load_adapter` knows the base by, into an adapter's folder."""
    save_file(base_samples(model.get_base_model()), Path(folder) / BASE_FILE)


def base_samples(model: GazeVLM) -> dict[str, torch.Tensor]:
    """The first values of each weight that an adapter leaves as it is."""
    sampled = {}
    for name, value in model.named_parameters():
        name = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        trained = "lora_" in name or "modules_to_save" in name or any(part in name for part in TRAINED_IN_FULL)
        if not trained and value.is_floating_point():
            sampled[name] = value.detach().flatten()[:_SAMPLED].float().cpu().clone()
    return sampled


def load_adapter(folder: str | Path, base: GazeVLM | None = None, **options) -> PeftModel:
    """The adapter in a folder on top of its base, whose `config.tasks` are then the adapter's.

    Args:
        base: by default what the adapter's config names, loaded with `options` (of `from_pretrained`).

    Raises:
        AdapterError: if the folder holds no adapter, the base is not there, or is another than the adapter's own.
    """
    folder = Path(folder)
    for file in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / file).is_file():
            raise AdapterError(f"{folder}: no {file}, so no adapter")
    name = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if base is None:
        if name is None:
            raise AdapterError(f"{folder}: its config names no base; pass the base")
        try:
            base = GazeVLM.from_pretrained(name, **options)
        except (OSError, ValueError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AdapterError(f"{folder}: its base {name!r} cannot be loaded ({reason}); pass the base") from error
    if (folder / BASE_FILE).is_file():
        _check_base(folder, name, base)
    try:
        model = PeftModel.from_pretrained(base, folder)
    except (RuntimeError, KeyError) as error:
        if isinstance(error, RuntimeError) and "size mismatch" not in str(error):
            raise
        raise _foreign(folder, name, "graph or projector has another shape") from error
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:  # peft leaves out what does not match
        if set(file.keys()) != get_peft_model_state_dict(model, save_embedding_layers=False).keys():
            raise _foreign(folder, name, "it has more layers, or fewer")
    if (folder / "config.json").is_file():
        base.config.tasks = GazeVLMConfig.from_pretrained(folder).tasks
    return model


def merge_adapter(folder: str | Path, base: GazeVLM | None = None, **options) -> GazeVLM:
    """One checkpoint out of base and adapter; arguments and errors as in `load_adapter`."""
    return load_adapter(folder, base, **options).merge_and_unload()


def _foreign(folder: Path, name: str, why: str) -> AdapterError:
    return AdapterError(f"{folder}: an adapter for another base: {why}; it belongs to {name!r}, load that one")


def _check_base(folder: Path, name: str, base: GazeVLM) -> None:
    known, its = load_file(folder / BASE_FILE), base_samples(base)
    for weight, values in known.items():
        other = its.get(weight)
        if other is None and weight in dict(base.named_parameters()):
            continue  # quantised
        alike = other is not None and other.shape == values.shape
        # the base may be loaded in half precision
        if not alike or not torch.allclose(other, values, rtol=1e-2, atol=1e-4):
            difference = "differs" if alike else "is missing or has another shape"
            raise _foreign(folder, name, f"{weight} {difference}")
