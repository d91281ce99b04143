"""Tiny models, tokenizer and processors, built by code: random weights, nothing is fetched."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    Blip2QFormerConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    TimmWrapperConfig,
    ViTConfig,
    ViTImageProcessor,
)

from gaze_vlm import (
    GazeClassifier,
    GazeClassifierConfig,
    GazeClassifierProcessor,
    GazeVLM,
    GazeVLMConfig,
    GazeVLMProcessor,
    ScanpathPredictor,
    ScanpathPredictorConfig,
    ScanpathPredictorProcessor,
)

SIDE = 64  # pixels of a tiny film
SPECIAL = ["<pad>", "<image>", "<|user|>", "<|assistant|>", "<|end|>", "<unk>"]
WORDS = "the heart lungs are is clear normal large small no effusion pneumothorax nodule left right write report"
VOCABULARY = [*SPECIAL, *WORDS.split()]
PAD, IMAGE, USER, ASSISTANT, END = range(5)
WEIGHTS = 0.2  # wide enough for what goes in to be seen in what comes out
IMAGE_TOKENS = 4  # a film of 4 x 4 patches, merged in squares of 2

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def vit_config(**kwargs):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ViTConfig(image_size=SIDE, patch_size=16, initializer_range=WEIGHTS, **{**sizes, **kwargs})


def timm_config(architecture="test_efficientnet"):
    pytest.importorskip("timm", reason="the timm tower needs timm")
    return TimmWrapperConfig(architecture=architecture)


def text_config(kind: str):
    special = {"pad_token_id": PAD, "bos_token_id": END, "eos_token_id": END}
    sizes = {"vocab_size": len(VOCABULARY), "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    if kind == "opt":
        width = {"ffn_dim": 64, "word_embed_proj_dim": 32}
        return OPTConfig(**sizes, **special, **width, max_position_embeddings=128, dropout=0.0, init_std=WEIGHTS)
    width = {"intermediate_size": 64, "tie_word_embeddings": True}
    return LlamaConfig(**sizes, **special, **width, max_position_embeddings=128, initializer_range=WEIGHTS)


def scanpath_config(text="llama", **kwargs):
    qformer = Blip2QFormerConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        encoder_hidden_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_query_tokens": 3}
    depth = {"num_encoder_layers": 1, "num_decoder_layers": 2, "max_fixations": 6, "dropout": 0.0}
    depth |= {"decoder_dropout": 0.0}
    depth["initializer_range"] = WEIGHTS
    if "vision_width" not in kwargs:
        kwargs.setdefault("vision_config", vit_config())
    return ScanpathPredictorConfig(
        qformer_config=qformer, text_config=text_config(text), **{**sizes, **depth, **kwargs}
    )


def vlm_config(text="llama", **kwargs):
    kwargs.setdefault("vision_config", vit_config())
    sizes = {"merge_size": 2, "graph_hidden_size": 32, "num_graph_layers": 2, "graph_neighbors": 3}
    sizes["initializer_range"] = WEIGHTS
    return GazeVLMConfig(text_config=text_config(text), image_token_id=IMAGE, **{**sizes, **kwargs})


def geometric_config(name, **kwargs):
    pytest.importorskip("torch_geometric", reason="this graph needs torch-geometric")
    return vlm_config("llama", graph_convolution=name, **kwargs)


def classifier_config(**kwargs):
    kwargs.setdefault("vision_config", vit_config())
    kwargs.setdefault("id2label", {0: "Cardiomegaly", 1: "Effusion", 2: "Nodule"})
    return GazeClassifierConfig(projection_dim=16, gaze_sigma=0.1, **kwargs)


def gaze_token_config(**kwargs):
    """Every part of it in use."""
    paper = GazeClassifierConfig.gaze_token(text_config=bert_config(), vision_config=vit_config()).to_dict()
    names = ("text_config", "fusion_layers", "gaze_input", "box_input", "transcript_input", "gaze_schedule")
    trust = ("trust_on_image", "trust_fixations", "trust_seconds")
    chosen = {name: paper[name] for name in (*names, *trust)}
    return classifier_config(**chosen, fusion_size=16, fusion_heads=2, fusion_dropout=0.0, input_dropout=0.0, **kwargs)


def bert_config():
    return BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def seeded(model_class, config):
    torch.manual_seed(0)
    return model_class(config).eval()


@pytest.fixture
def make_scanpath_predictor() -> Callable[..., ScanpathPredictor]:
    return lambda *args, **kwargs: seeded(ScanpathPredictor, scanpath_config(*args, **kwargs))


@pytest.fixture
def make_gaze_vlm() -> Callable[..., GazeVLM]:
    """`scanpath` (a dict of ScanpathPredictorConfig's fields) puts a predictor inside."""

    def make(text="llama", scanpath: dict | None = None, **kwargs):
        if scanpath is not None:
            kwargs["scanpath_config"] = scanpath_config(text, **scanpath)
        return seeded(GazeVLM, vlm_config(text, **kwargs))

    return make


@pytest.fixture
def make_gaze_classifier() -> Callable[..., GazeClassifier]:
    return lambda **kwargs: seeded(GazeClassifier, classifier_config(**kwargs))


@pytest.fixture
def make_vision_config() -> Callable[..., object]:
    return lambda kind, *args, **kwargs: {"vit": vit_config, "timm": timm_config}[kind](*args, **kwargs)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<|end|>", padding_side="left"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[IMAGE:END]})
    return fast


@pytest.fixture
def image_processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": SIDE, "width": SIDE}, do_convert_rgb=True)


@pytest.fixture
def vlm_processor(image_processor, tokenizer) -> GazeVLMProcessor:
    return GazeVLMProcessor(image_processor, tokenizer, num_image_tokens=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


@pytest.fixture
def scanpath_processor(image_processor, tokenizer) -> ScanpathPredictorProcessor:
    tokenizer.padding_side = "right"
    return ScanpathPredictorProcessor(image_processor, tokenizer)


@pytest.fixture
def classifier_processor(image_processor, tokenizer) -> GazeClassifierProcessor:
    tokenizer.padding_side = "right"
    return GazeClassifierProcessor(image_processor, tokenizer)


def films(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def gaze(lengths: list[int], slots: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixations (B, slots, 4) and mask; onsets follow durations, padding is zero."""
    generator = torch.Generator().manual_seed(seed)
    fixations = torch.rand(len(lengths), slots, 4, generator=generator)
    fixations[..., 3] = 0.1 + 0.5 * fixations[..., 3]
    fixations[..., 2] = fixations[..., 3].cumsum(1) - fixations[..., 3]
    mask = torch.arange(slots) < torch.tensor(lengths)[:, None]
    return fixations * mask[..., None], mask


@pytest.fixture
def make_films():
    return films


@pytest.fixture
def make_gaze():
    return gaze


def prompt(words: list[int], images: int) -> list[int]:
    return [USER, *[IMAGE] * (IMAGE_TOKENS * images), *words, ASSISTANT]


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(tokens)) + tokens for tokens in prompts])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


@pytest.fixture
def make_prompts():
    """(words, number of images) for each sample -> left-padded input_ids and attention_mask."""
    return lambda *samples: left_padded([prompt(words, images) for words, images in samples])


@dataclass
class Case:
    """One model under the contract.

    `batch()` are inputs that use every loss; `alone(i)` are those of sample i without padding and loss, and `outputs`
    picks what must not depend on the batch. `no_gradient` names parameters that by design get none.
    """

    config: Callable[[], object]
    model_class: type
    batch: Callable[[], dict]
    alone: Callable[[int], dict]
    outputs: Callable[[object, dict, int], torch.Tensor]
    no_gradient: str = "$^"
    samples: int = 3

    def build(self):
        return seeded(self.model_class, self.config())

    def trainable(self, model) -> dict[str, torch.nn.Parameter]:
        named = model.named_parameters()
        return {name: p for name, p in named if p.requires_grad and not re.search(self.no_gradient, name)}


TEXTS = [[6, 7, 8, 9, 10, 11], [12, 13, 14], [15]]


def scanpath_batch() -> dict:
    ids = torch.full((3, 6), PAD)
    for row, words in enumerate(TEXTS):
        ids[row, : len(words)] = torch.tensor(words)
    fixations, mask = gaze([5, 3, 1], slots=5)
    return {
        "pixel_values": films(3),
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "fixations": fixations,
        "fixation_mask": mask,
        "labels": ids.masked_fill(ids == PAD, -100),
    }


def scanpath_alone(i: int) -> dict:
    return {"pixel_values": films(3)[i : i + 1], "input_ids": torch.tensor([TEXTS[i]])}


def scanpath_outputs(outputs, inputs, i: int) -> torch.Tensor:
    names = ("strategy_logits", "keep_logits", "mean", "log_variance", "consensus", "consensus_keep_logits")
    return torch.cat([outputs[name][i].flatten() for name in names if name in outputs])


VLM_SAMPLES = [([6, 7], 1), ([8, 9, 10, 11], 2), ([12], 0)]  # words, images; the second image has no gaze


def vlm_batch() -> dict:
    inputs = left_padded([prompt(*sample) for sample in VLM_SAMPLES])
    ids = inputs["input_ids"]
    fixations, mask = gaze([4, 0, 2], slots=4)
    labels = ids.masked_fill((ids == PAD) | (ids == IMAGE), -100)
    return {**inputs, "pixel_values": films(3), "fixations": fixations, "fixation_mask": mask, "labels": labels}


def vlm_alone(i: int) -> dict:
    inputs = {"input_ids": torch.tensor([prompt(*VLM_SAMPLES[i])])}
    first = sum(images for _, images in VLM_SAMPLES[:i])
    its = slice(first, first + VLM_SAMPLES[i][1])
    if VLM_SAMPLES[i][1]:
        fixations, mask = gaze([4, 0, 2], slots=4)
        inputs |= {"pixel_values": films(3)[its], "fixations": fixations[its], "fixation_mask": mask[its]}
    return inputs


def vlm_outputs(outputs, inputs, i: int) -> torch.Tensor:
    real = inputs["attention_mask"][i].bool() if "attention_mask" in inputs else slice(None)
    return outputs.logits[i, real]


def classifier_batch() -> dict:
    fixations, mask = gaze([4, 0, 2], slots=4)
    finding_text = torch.tensor([[6, 7, 8], [9, PAD, PAD], [10, 11, PAD]])
    return {
        "pixel_values": films(3),
        "labels": torch.tensor([[1.0, 0, 0], [0, torch.nan, 1], [0, 1, 1]]),
        "fixations": fixations,
        "fixation_mask": mask,
        "gaze_trust": torch.tensor([1.0, 1.0, 0.5]),
        "boxes": torch.tensor([[[0.1, 0.2, 0.6, 0.7]], [[0.0, 0.0, 0.0, 0.0]], [[0.5, 0.5, 1.0, 0.9]]]),
        "box_labels": torch.tensor([[0], [-1], [2]]),
        "finding_text": finding_text,
        "finding_text_mask": (finding_text != PAD).long(),
        "transcript": finding_text,
        "transcript_mask": torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 0]]),
    }


def classifier_alone(i: int) -> dict:
    names = ("pixel_values", "fixations", "fixation_mask", "boxes", "box_labels", "transcript", "transcript_mask")
    one = {name: value[i : i + 1] for name, value in classifier_batch().items() if name in names}
    count = int(one["fixation_mask"].sum())
    for name in ("fixations", "fixation_mask"):
        one[name] = one[name][:, :count]
    return one


def classifier_outputs(outputs, inputs, i: int) -> torch.Tensor:
    names = ("logits", "attention", "image_embeds")
    return torch.cat([getattr(outputs, name)[i].flatten() for name in names])


def scanpath_case(config, no_gradient):
    return Case(config, ScanpathPredictor, scanpath_batch, scanpath_alone, scanpath_outputs, no_gradient)


def vlm_case(config, no_gradient):
    return Case(config, GazeVLM, vlm_batch, vlm_alone, vlm_outputs, no_gradient)


def classifier_case(config, no_gradient):
    return Case(config, GazeClassifier, classifier_batch, classifier_alone, classifier_outputs, no_gradient)


VIT_POOLER = r"vision_tower\.pooler"
CASES = {
    # the paper's L1 loss leaves the variance alone
    "scanpath_predictor-opt": scanpath_case(
        lambda: scanpath_config("opt", num_strategies=2), VIT_POOLER + "|variance_"
    ),
    "scanpath_predictor-llama-nll": scanpath_case(
        lambda: scanpath_config("llama", num_strategies=2, regression_loss="nll"), VIT_POOLER
    ),
    "scanpath_predictor-timm": scanpath_case(
        lambda: scanpath_config(
            "llama", num_strategies=2, point_estimate="consensus", regression_loss="nll", vision_config=timm_config()
        ),
        "$^",
    ),
    "gaze_vlm-opt": vlm_case(lambda: vlm_config("opt"), VIT_POOLER),
    "gaze_vlm-llama": vlm_case(lambda: vlm_config("llama"), VIT_POOLER),
    "gaze_vlm-gatv2": vlm_case(lambda: geometric_config("gatv2"), VIT_POOLER),
    "gaze_vlm-transformer-nodes": vlm_case(lambda: geometric_config("transformer", fixation_nodes=True), VIT_POOLER),
    "gaze_vlm-timm": vlm_case(lambda: vlm_config("llama", vision_config=timm_config("test_vit")), "$^"),
    "gaze_classifier-vit": classifier_case(
        lambda: classifier_config(text_config=bert_config()), VIT_POOLER + r"|text_tower\.pooler"
    ),
    "gaze_classifier-timm": classifier_case(
        lambda: classifier_config(text_config=bert_config(), vision_config=timm_config()), r"text_tower\.pooler"
    ),
    "gaze_classifier-token": classifier_case(
        lambda: gaze_token_config(attention="shared"), VIT_POOLER + r"|text_tower\.pooler"
    ),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(params=[name for name in CASES if name.endswith("-opt") or name.startswith("gaze_classifier")])
def learned_positions_case(request) -> Case:
    return CASES[request.param]
