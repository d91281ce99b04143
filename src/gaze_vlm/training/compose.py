"""A GazeVLM out of parts: a vision tower, a causal language model with its tokenizer, a scanpath predictor."""

from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    OPTConfig,
    PreTrainedModel,
    ViTImageProcessor,
)
from transformers.initialization import no_init_weights

from ..models.configuration_gaze_vlm import GazeVLMConfig
from ..models.modeling_gaze_vlm import GazeVLM
from ..models.modeling_scanpath_predictor import ScanpathPredictor
from ..models.modeling_vision_tower import patch_tokens, tower_width
from ..models.processing_gaze_vlm import GazeVLMProcessor

IMAGE_TOKEN = "<image>"
OWN_MODELS = ("gaze_vlm", "gaze_classifier", "scanpath_predictor")

# a language model's template knows texts only: images become their placeholder first
FLATTEN = (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}{%- set content = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set content.text = message['content'] -%}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- set content.text = content.text + ('" + IMAGE_TOKEN + "' if part['type'] == 'image' else part['text']) -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': content.text}] -%}"
    "{%- endfor -%}{%- set messages = flat.messages -%}"
)
# for language models without a template of their own
PLAIN_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ '\nAssistant:' + message['content'] + eos_token }}"
    "{%- else -%}{{ 'Human: ' + message['content'] }}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '\nAssistant:' }}{%- endif -%}"
)


# ---- the parts


def load_tower(place: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The vision tower in a folder or repository: a vision model, that of a vision-language model, or of ours.

    Raises:
        ValueError: if there is none.
    """
    model = AutoModel.from_pretrained(place, dtype=dtype)
    inner = getattr(model.config, "vision_config", None)
    if inner is not None:
        parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
        model = next((part for part in parts if isinstance(part.config, type(inner))), model)
    if model.main_input_name != "pixel_values":
        raise ValueError(f"{place}: a {type(model).__name__}, which is no vision model")
    return model


def film_processor(place: str | None, side: int) -> ViTImageProcessor:
    """Squashes films to `side` x `side` pixels, where positions in 0..1 stay what they are; mean and deviation are
    those of the tower in `place`, else 0.5."""
    mean = std = [0.5] * 3
    if place is not None:
        own = AutoConfig.from_pretrained(place).model_type in OWN_MODELS
        known = (
            AutoProcessor.from_pretrained(place).image_processor if own else AutoImageProcessor.from_pretrained(place)
        )
        values = getattr(known, "data_config", None) or {"mean": known.image_mean, "std": known.image_std}
        mean, std = list(values["mean"]), list(values["std"])
    return ViTImageProcessor(size={"height": side, "width": side}, do_convert_rgb=True, image_mean=mean, image_std=std)


def film_side(place: str, default: int = 224) -> int:
    """Pixels a side of the films that a tower was made for; `default` where its config tells none."""
    config = AutoConfig.from_pretrained(place)
    if config.model_type in OWN_MODELS:
        return AutoProcessor.from_pretrained(place).image_processor.size["height"]
    config = getattr(config, "vision_config", config)
    of_timm = (getattr(config, "pretrained_cfg", None) or {}).get("input_size", [default])
    return getattr(config, "image_size", of_timm[-1])


def load_language_model(place: str, dtype: torch.dtype = torch.float32):
    """(causal language model, tokenizer) of a folder or repository; or of a folder that holds one GGUF file and no
    config.json, whose weights are dequantised."""
    options = {}
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        found = sorted(path.name for path in Path(place).glob("*.gguf"))
        if len(found) != 1:
            raise ValueError(f"{place}: no config.json, and {len(found)} GGUF files instead of one")
        options["gguf_file"] = found[0]
    causal = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **options)
    return causal, AutoTokenizer.from_pretrained(place, **options)


def new_language_model():
    """(a small OPT of random weights, nano's tokenizer), to be trained in full."""
    tokenizer = AutoTokenizer.from_pretrained(str(files("gaze_vlm") / "nano" / "gaze_vlm"))
    return AutoModelForCausalLM.from_config(small_opt(tokenizer)), tokenizer


def small_opt(tokenizer, hidden_size: int = 224, layers: int = 4, heads: int = 7, context: int = 256) -> OPTConfig:
    """A small causal language model with learned positions; by default the one that writes nano's reports."""
    return OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        word_embed_proj_dim=hidden_size,
        ffn_dim=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        dropout=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


# ---- the whole


def compose(
    tower: PreTrainedModel,
    image_processor: ViTImageProcessor,
    causal: PreTrainedModel,
    tokenizer,
    predictor: ScanpathPredictor | None = None,
    predictor_image_processor: ViTImageProcessor | None = None,
    **options,
) -> tuple[GazeVLM, GazeVLMProcessor]:
    """A GazeVLM and its processor. Graph and projector are new; the parts are taken over, not copied.

    The tokenizer gets a placeholder for images if it has none, and the embeddings a row for it where they have none to
    spare. A tokenizer without a chat template gets a plain one ("Human: ... Assistant: ...").

    Args:
        predictor: for predicted gaze. If its tower is the same as `tower`, weight by weight, and its films are too, it
            reads that one's patch tokens; else it keeps its own, and its films are made out of this model's.
        predictor_image_processor: how it wants its films; by default as this model's.
        options: fields of `GazeVLMConfig`.

    Raises:
        ValueError: if the language model is none that takes embeddings and has a plain output layer.
    """
    add_image_token(tokenizer, causal)
    nested, own_weights = {}, {}
    if predictor is not None:
        between = pixels_between(image_processor, predictor_image_processor or image_processor)
        nested, own_weights = nested_predictor(predictor, tower, between)
    config = GazeVLMConfig(
        vision_config=plain(tower.config.to_dict()),
        text_config=plain(causal.config.to_dict()),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        **{**nested, **options},
    )
    with no_init_weights():
        model = GazeVLM(config)
    take_language_model(model, causal)
    model.model.vision_tower = tower
    for part in (model.model.visual_gaze_graph, model.model.multi_modal_projector):
        part.apply(model._init_weights).to(causal.dtype)
    if predictor is not None:
        model.model.scanpath_predictor.load_state_dict(own_weights)
        model.model.scanpath_predictor.to(causal.dtype)
    model.model.freeze()
    model.generation_config = causal.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    ends = causal.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else []  # a chat model's turns may end otherwise than its texts
    model.generation_config.eos_token_id = list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
    processor = GazeVLMProcessor(
        image_processor,
        tokenizer,
        num_image_tokens=count_image_tokens(model, image_processor),
        chat_template=FLATTEN + (tokenizer.get_chat_template() if tokenizer.chat_template else PLAIN_TEMPLATE),
    )
    return model.eval(), processor


def plain(values: dict) -> dict:
    """A configuration's values without the places it was loaded from."""
    kept = {name: value for name, value in values.items() if name not in ("_name_or_path", "quantization_config")}
    return {name: plain(value) if isinstance(value, dict) else value for name, value in kept.items()}


def add_image_token(tokenizer, causal: PreTrainedModel) -> None:
    """A placeholder for images, padding on the left, a token to pad with."""
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, IMAGE_TOKEN]})
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) >= causal.get_input_embeddings().num_embeddings:
        causal.resize_token_embeddings(len(tokenizer))
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token


def take_language_model(model: GazeVLM, causal: PreTrainedModel) -> None:
    """The language model's body and output layer, in place."""
    body, head = causal.eval().base_model, causal.get_output_embeddings()
    alike = type(body) is type(model.model.language_model) and head.weight.shape == model.lm_head.weight.shape
    if not alike or not has_plain_output(causal):
        raise ValueError(
            f"{type(causal).__name__}: only language models with a body and a plain output layer (no bias, no other "
            "width, no scale or cap of logits) serve"
        )
    model.model.language_model = body
    model.lm_head.weight = head.weight


@torch.no_grad()
def has_plain_output(causal: PreTrainedModel) -> bool:
    """Whether logits are the output layer's weights times the body's states, and nothing else."""
    head, ids = causal.get_output_embeddings(), torch.arange(4, device=causal.device)[None]
    logits = head(causal.base_model(ids).last_hidden_state)
    same = torch.allclose(causal(ids).logits.float(), logits.float(), rtol=1e-5, atol=1e-6)
    return same and getattr(head, "bias", None) is None


def nested_predictor(predictor: ScanpathPredictor, tower: PreTrainedModel, between: dict) -> tuple[dict, dict]:
    """Fields of `GazeVLMConfig`, and the weights of what goes inside; `between` is of `pixels_between`."""
    config, weights = plain(predictor.config.to_dict()), predictor.state_dict()
    if not between and predictor.vision_tower is not None and same_weights(predictor.vision_tower, tower):
        config |= {"vision_config": None, "vision_width": tower_width(tower)}
        weights = {name: value for name, value in weights.items() if not name.startswith("vision_tower.")}
    return {"scanpath_config": config, "gaze": "predicted", **between}, weights


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether all weights are equal, up to half precision's rounding."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        value.shape == second[name].shape and torch.allclose(value.float(), second[name].float(), rtol=1e-2, atol=1e-6)
        for name, value in first.items()
    )


def pixels_between(one: ViTImageProcessor, other: ViTImageProcessor) -> dict:
    """How films as one processor makes them become films as another would; empty where they are the same."""
    side, scale = other.size["height"], [a / b for a, b in zip(one.image_std, other.image_std, strict=True)]
    means = zip(one.image_mean, other.image_mean, other.image_std, strict=True)
    shift = [(mean - its) / std for mean, its, std in means]
    if side == one.size["height"] and set(scale) == {1.0} and set(shift) == {0.0}:
        return {}
    return {"scanpath_image_size": side, "scanpath_pixel_scale": scale, "scanpath_pixel_shift": shift}


@torch.no_grad()
def count_image_tokens(model: GazeVLM, image_processor) -> int:
    """Visual-gaze tokens of a film.

    Raises:
        ValueError: if the tower takes no films of this size, or the merge size does not fit.
    """
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    pixels = image_processor(grey, return_tensors="pt")["pixel_values"].to(model.model.vision_tower.dtype)
    try:
        rows, columns = patch_tokens(model.model.vision_tower.eval(), pixels).shape[1:3]
    except (AssertionError, RuntimeError, ValueError) as error:  # as each tower says it
        side = pixels.shape[-1]
        raise ValueError(f"the vision tower takes no films of {side} pixels ({error}); give an image_size") from error
    merge = model.config.merge_size
    if rows % merge or columns % merge:
        raise ValueError(f"merge_size: a grid of {rows} x {columns} patches cannot be merged in squares of {merge}")
    return (rows // merge) * (columns // merge)
