"""A GazeVLM out of parts that lie in folders: every part is what it was, and the whole comes back as it went."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    OPTConfig,
    PhiConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    set_seed,
)

from gaze_vlm import GazeVLM, GazeVLMProcessor, ScanpathPredictor, ScanpathPredictorConfig
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.tasks import report_messages, vqa_messages
from gaze_vlm.training.compose import (
    compose,
    film_processor,
    film_side,
    load_language_model,
    load_tower,
    new_language_model,
)

SIDE = 64
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**SIZES, "image_size": SIDE, "patch_size": 16, "initializer_range": 0.2}
GRAPH = {"graph_hidden_size": 16, "num_graph_layers": 1, "merge_size": 2}
PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OTHER_PIXELS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


# ---- parts in folders


def language_config(kind: str, vocabulary: int, tokens: dict):
    wide = {"initializer_range": 0.2}
    if kind in ("opt", "narrow"):
        sizes = {"ffn_dim": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        width = {
            "word_embed_proj_dim": 32 if kind == "opt" else 16,
            "max_position_embeddings": 128,
            "dropout": 0.1,
            "init_std": 0.2,
        }
        return OPTConfig(vocab_size=vocabulary, **sizes, **width, **tokens)
    if kind == "gpt2":
        return GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=1, n_head=4, **wide, **tokens)
    common = {"vocab_size": vocabulary, **SIZES, **tokens}
    if kind == "phi":
        return PhiConfig(**common)
    if kind == "granite":
        return GraniteConfig(**common, logits_scaling=8.0)
    if kind == "gemma":
        return Gemma2Config(**common, **wide, num_key_value_heads=2, head_dim=8)
    return LlamaConfig(**common, **wide, tie_word_embeddings=kind == "tied")


@pytest.fixture(scope="module")
def save_language_model(tiny_tokenizer_of):
    """Writes a language model with its tokenizer; `spare` rows of the vocabulary have no token."""

    def save(folder, kind="llama", spare=0, template=None, image_token=False, ends=None, seed=0) -> str:
        tokenizer = tiny_tokenizer_of(image_token)
        tokenizer.chat_template = template
        end = tokenizer.eos_token_id
        tokens = {"pad_token_id": None, "bos_token_id": end, "eos_token_id": end}
        set_seed(seed)
        config = language_config(kind, len(tokenizer) + spare, tokens)
        model = AutoModelForCausalLM.from_config(config)
        if ends is not None:
            model.generation_config.eos_token_id = ends
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="module")
def tiny_tokenizer_of():
    """A byte-level tokenizer that pads on the right and has no token to pad with; with or without `<image>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def make(image_token: bool):
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        special = ["<|im_start|>", "<|im_end|>", *(["<image>"] if image_token else [])]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
        bpe.train_from_iterator(["Write the report of this chest X-ray."], trainer)
        others = [token for token in special if token != "<|im_end|>"]
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe, eos_token="<|im_end|>", extra_special_tokens=others, padding_side="right"
        )

    return make


@pytest.fixture(scope="module")
def save_tower():
    """Writes a vision model with its image processor."""

    def save(folder, kind="vit", seed=0, pixels=None, **changes) -> str:
        set_seed(seed)
        sizes = VISION | changes
        if kind == "vit":
            ViTModel(ViTConfig(**sizes)).save_pretrained(folder)
        elif kind == "clip vision":
            CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(folder)
        elif kind == "clip":
            text = CLIPTextConfig(vocab_size=30, **SIZES).to_dict()
            CLIPModel(CLIPConfig(vision_config=CLIPVisionConfig(**sizes).to_dict(), text_config=text)).save_pretrained(
                folder
            )
        else:
            text = LlamaConfig(vocab_size=30, **SIZES).to_dict()
            vision = CLIPVisionConfig(**sizes).to_dict()
            LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
        side = sizes["image_size"]
        if kind == "vit":
            images = ViTImageProcessor(size={"height": side, "width": side}, **(pixels or PIXELS))
        else:
            images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side, **(pixels or OTHER_PIXELS))
        images.save_pretrained(folder)
        return str(folder)

    return save


def composed(tower: str, llm: str, predictor=None, images=None, dtype=torch.float32, side=SIDE, **options):
    causal, tokenizer = load_language_model(llm, dtype)
    vision = load_tower(tower, dtype)
    return compose(vision, film_processor(tower, side), causal, tokenizer, predictor, images, **(GRAPH | options))


@pytest.fixture
def folders(save_tower, save_language_model, tmp_path):
    """(tower, language model) of ViT and Llama."""
    return save_tower(tmp_path / "tower"), save_language_model(tmp_path / "llm")


def film(seed=0) -> Image.Image:
    """Coloured blobs, which may be resized without losing much."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((256, 320), Image.Resampling.BICUBIC)


@torch.no_grad()
def logits_of(model, **inputs) -> torch.Tensor:
    return model.eval()(**inputs).logits


def reading(processor) -> dict:
    """A prompt with a film and gaze."""
    prompt = processor.apply_chat_template(report_messages(), add_generation_prompt=True)
    path = np.array([[0.2, 0.3, 0.0, 0.3], [0.7, 0.6, 0.3, 0.4]])
    return dict(processor(images=[film()], text=[prompt], fixations=[path], return_tensors="pt"))


IDS = torch.tensor([[5, 60, 70, 80, 90], [9, 8, 7, 6, 5]])


# ---- the parts are what they were


@pytest.mark.parametrize("kind", ["llama", "tied", "opt", "gpt2"])
@pytest.mark.parametrize(
    ("spare", "dtype"), [(0, torch.float32), (8, torch.bfloat16)], ids=["full vocabulary", "rows to spare"]
)
def test_the_language_model_is_what_it_was(save_language_model, save_tower, tmp_path, kind, spare, dtype):
    llm, tower = save_language_model(tmp_path / "llm", kind, spare), save_tower(tmp_path / "tower")
    original = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype)
    model, processor = composed(tower, llm, dtype=dtype)
    rows = original.config.vocab_size
    assert model.config.text_config.vocab_size == (rows if spare else rows + 1)
    assert torch.equal(logits_of(model, input_ids=IDS)[..., :rows], logits_of(original, input_ids=IDS))
    assert model.config.image_token_id == processor.image_token_id == rows - spare
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == (kind != "llama") == model.config.tie_word_embeddings
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("kind", ["vit", "clip vision", "clip", "llava"])
def test_the_tower_is_what_it_was(save_tower, save_language_model, tmp_path, kind):
    place = save_tower(tmp_path / "tower", kind)
    whole = {"llava": LlavaForConditionalGeneration}.get(kind, AutoModel).from_pretrained(place)
    own = {"clip": lambda: whole.vision_model, "llava": lambda: whole.model.vision_tower}.get(kind, lambda: whole)()
    model, processor = composed(place, save_language_model(tmp_path / "llm"))
    got, expected = model.model.vision_tower.state_dict(), own.state_dict()
    assert type(model.model.vision_tower) is type(own) and got.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in got.items())
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        tokens = patch_tokens(model.model.vision_tower, pixels)
        assert torch.equal(tokens.flatten(1, 2), own(pixels).last_hidden_state[:, 1:])
    assert processor.num_image_tokens == 4 and tokens.shape[1:3] == (4, 4)
    assert list(processor.image_processor.image_mean) == (PIXELS if kind == "vit" else OTHER_PIXELS)["image_mean"]
    assert film_side(place) == SIDE


@pytest.mark.parametrize("name", ["gaze_classifier", "scanpath_predictor", "gaze_vlm"])
def test_towers_of_our_own_models(tiny_bundle, name):
    whole = AutoModel.from_pretrained(tiny_bundle / name)
    own = whole.model.vision_tower if name == "gaze_vlm" else whole.vision_tower
    tower = load_tower(str(tiny_bundle / name), torch.bfloat16)
    assert isinstance(tower, ViTModel) and tower.dtype == torch.bfloat16
    assert all(torch.equal(value.bfloat16(), tower.state_dict()[key]) for key, value in own.state_dict().items())
    images = film_processor(str(tiny_bundle / name), 32)
    assert images.size["height"] == images.size["width"] == 32 and list(images.image_mean) == [0.5] * 3
    assert film_side(str(tiny_bundle / name)) == SIDE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_graph_and_projector_are_new_and_reproducible(folders, dtype):
    def new(seed):
        set_seed(seed)
        model = composed(*folders, dtype=dtype)[0].model
        return {
            f"{part}.{name}": parameter
            for part in ("visual_gaze_graph", "multi_modal_projector")
            for name, parameter in getattr(model, part).named_parameters()
        }

    one, again, other = new(1), new(1), new(2)
    for name, parameter in one.items():
        assert parameter.dtype == dtype and parameter.isfinite().all() and parameter.requires_grad
        assert torch.equal(parameter, again[name])
        if name.endswith("weight") and "norm" not in name:
            assert 0.005 < parameter.float().std() < 0.1 and not torch.equal(parameter, other[name])
        elif name.endswith("norm.weight"):
            assert (parameter == 1).all()


@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama", torch.float32), ("tied", torch.bfloat16), ("opt", torch.float32)]
)
def test_the_whole_comes_back(save_tower, save_language_model, tmp_path, kind, dtype):
    tower, llm = save_tower(tmp_path / "tower", "clip"), save_language_model(tmp_path / "llm", kind, template=CHATML)
    model, processor = composed(tower, llm, dtype=dtype)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    assert str(tmp_path) not in (tmp_path / "whole" / "config.json").read_text()
    loaded, its = AutoModel.from_pretrained(tmp_path / "whole"), GazeVLMProcessor.from_pretrained(tmp_path / "whole")
    assert type(loaded) is GazeVLM and loaded.dtype == dtype
    inputs, again = reading(processor), reading(its)
    assert inputs.keys() == again.keys() and all(torch.equal(inputs[name], again[name]) for name in inputs)
    assert torch.equal(logits_of(model, **inputs), logits_of(loaded, **inputs))
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    tokens = [one.generate(**inputs, max_new_tokens=4, do_sample=False) for one in (model, loaded)]
    assert torch.equal(*tokens)
    plain = {name: value for name, value in inputs.items() if not name.startswith("fixation")}
    assert not torch.equal(logits_of(loaded, **inputs), logits_of(loaded, **plain))


def test_a_small_language_model_is_made():
    set_seed(0)
    causal, tokenizer = new_language_model()
    assert causal.config.vocab_size == len(tokenizer) and causal.generation_config.eos_token_id
    model, processor = compose(
        ViTModel(ViTConfig(**VISION)), film_processor(None, SIDE), causal, tokenizer, graph_hidden_size=16
    )
    assert logits_of(model, **reading(processor)).isfinite().all() and processor.num_image_tokens == 16
    assert model.config.text_config.vocab_size == len(tokenizer)  # nano's has an <image> already


# ---- the tokenizer


@pytest.mark.parametrize(
    ("image_token", "spare", "more_rows"), [(False, 0, 1), (False, 1, 0), (False, 5, 0), (True, 0, 0), (True, 5, 0)]
)
def test_embeddings_get_a_row_only_when_there_is_none(
    save_language_model, save_tower, tmp_path, image_token, spare, more_rows
):
    llm = save_language_model(tmp_path / "llm", spare=spare, image_token=image_token)
    before, known = AutoModelForCausalLM.from_pretrained(llm), AutoTokenizer.from_pretrained(llm)
    model, processor = composed(save_tower(tmp_path / "tower"), llm)
    after = processor.tokenizer
    assert len(after) == len(known) + (not image_token)
    rows = before.config.vocab_size + more_rows
    assert len(model.get_input_embeddings().weight) == len(model.lm_head.weight) == rows
    assert model.config.text_config.vocab_size == rows > processor.image_token_id
    ids = after("a<image>b", add_special_tokens=False)["input_ids"]
    assert ids.count(processor.image_token_id) == 1 and len(ids) == 3
    assert set(known.all_special_tokens) <= set(after.all_special_tokens) and "<image>" in after.all_special_tokens


def test_it_pads_on_the_left_with_some_token(folders, save_language_model, tmp_path):
    model, processor = composed(*folders)
    tokenizer = processor.tokenizer
    assert tokenizer.padding_side == "left" and tokenizer.pad_token == "<|im_end|>"  # it had none
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    causal, tokenizer = load_language_model(save_language_model(tmp_path / "other"))
    tokenizer.pad_token = "<|im_start|>"
    _, processor = compose(load_tower(folders[0]), film_processor(folders[0], SIDE), causal, tokenizer, **GRAPH)
    assert processor.tokenizer.pad_token == "<|im_start|>"


@pytest.mark.parametrize(
    ("ends", "expected"), [(None, {"<|im_end|>"}), ([1, 40], {"<|im_end|>", 40}), ([40, 41], {"<|im_end|>", 40, 41})]
)
def test_what_ends_a_turn_still_ends_it(save_language_model, save_tower, tmp_path, ends, expected):
    model, processor = composed(save_tower(tmp_path / "t"), save_language_model(tmp_path / "llm", ends=ends))
    end = processor.tokenizer.eos_token_id
    assert set(model.generation_config.eos_token_id) == {end if one == "<|im_end|>" else one for one in expected}


# ---- chat templates

CONVERSATION = [
    {"role": "system", "content": [{"type": "text", "text": "You read films."}]},
    *report_messages(["Mass"], views=2),
    {"role": "assistant", "content": [{"type": "text", "text": "There is a mass."}]},
]


def as_text(part: dict | str) -> str:
    return part if isinstance(part, str) else part.get("text", "<image>")


def flat(messages) -> list[dict]:
    """The same with plain strings."""
    return [message | {"content": "".join(as_text(part) for part in message["content"])} for message in messages]


@pytest.fixture(params=["own template", "named templates", "no template"])
def templated(request, save_language_model, save_tower, tmp_path) -> GazeVLMProcessor:
    template = {
        "own template": CHATML,
        "named templates": {"default": CHATML, "tool_use": "{{ 1 / 0 }}"},
        "no template": None,
    }[request.param]
    llm = save_language_model(tmp_path / "llm", template=template)
    return composed(save_tower(tmp_path / "tower"), llm)[1]


def test_parts_and_strings_say_the_same(templated):
    text = templated.apply_chat_template(CONVERSATION)
    assert text == templated.apply_chat_template(flat(CONVERSATION)) and text.count("<image>") == 2
    mixed = [flat(CONVERSATION)[0], *CONVERSATION[1:]]
    assert templated.apply_chat_template(mixed) == text


def test_a_prompt_begins_its_conversation_and_the_answer_ends(templated):
    for messages in (CONVERSATION, CONVERSATION[1:], vqa_messages("Is it new?", "Yes."), flat(CONVERSATION)):
        prompt = templated.apply_chat_template(messages[:-1], add_generation_prompt=True)
        whole = templated.apply_chat_template(messages)
        answer = whole.removeprefix(prompt)
        said = flat(messages)[-1]["content"]
        assert whole.startswith(prompt) and answer.strip() == f"{said}<|im_end|>"
        ids = [templated.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole)]
        assert ids[1][: len(ids[0])] == ids[0] and ids[1][-1] == templated.tokenizer.eos_token_id


def test_the_language_models_own_words_are_kept(save_language_model, save_tower, tmp_path):
    llm = save_language_model(tmp_path / "llm", template=CHATML)
    own = AutoTokenizer.from_pretrained(llm).apply_chat_template(flat(CONVERSATION), tokenize=False)
    processor = composed(save_tower(tmp_path / "tower"), llm)[1]
    assert processor.apply_chat_template(CONVERSATION) == own
    assert own.startswith("<|im_start|>system\nYou read films.<|im_end|><|im_start|>user\n<image><image>Write")


def test_the_plain_template(folders):
    processor = composed(*folders)[1]
    messages = vqa_messages("Is it new?", "Yes.")
    assert processor.apply_chat_template(messages[:1], add_generation_prompt=True) == (
        "Human: <image>Is it new?\nAssistant:"
    )
    assert processor.apply_chat_template(messages) == "Human: <image>Is it new?\nAssistant:Yes.<|im_end|>"
    processor.tokenizer.bos_token = "<|im_start|>"
    assert processor.apply_chat_template(messages).startswith("<|im_start|>Human: <image>Is it")


# ---- the predictor inside


@pytest.fixture
def predictor(tiny_bundle):
    """One with a ViT of its own, whose gaze depends on the film."""
    values = ScanpathPredictorConfig.from_pretrained(tiny_bundle / "scanpath_predictor").to_dict()

    def make(tower: str, seed=3) -> ScanpathPredictor:
        vision = load_tower(tower)
        set_seed(seed)
        changes = {"vision_config": vision.config.to_dict(), "initializer_range": 0.2, "image_memory": True}
        model = ScanpathPredictor(ScanpathPredictorConfig(**values | changes)).eval()
        model.vision_tower.load_state_dict(vision.state_dict())
        with torch.no_grad():
            model.consensus_head.bias[3] = 9.0  # all fixations there are
        return model

    return make


def gaze(model, pixels) -> torch.Tensor:
    """(N, S, 4), zero where there is no fixation."""
    if isinstance(model, ScanpathPredictor):
        predicted = model.predict(pixels)
        fixations, mask = predicted.fixations[:, 0], predicted.fixation_mask[:, 0]
    else:
        fixations, mask = model.predict_gaze(pixels)
    return fixations * mask[..., None]


def seen(images, count=6) -> torch.Tensor:
    return images([film(seed) for seed in range(count)], return_tensors="pt")["pixel_values"]


def square(side: int, pixels: dict) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": side, "width": side}, do_convert_rgb=True, **pixels)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_the_same_tower_is_shared(folders, predictor, tmp_path, stored):
    alone = predictor(folders[0])
    alone.to(stored).save_pretrained(tmp_path / "predictor")
    alone = ScanpathPredictor.from_pretrained(tmp_path / "predictor", dtype=torch.float32)
    model, processor = composed(*folders, alone, square(SIDE, PIXELS))
    inside = model.model.scanpath_predictor
    assert inside.vision_tower is None and model.config.gaze == "predicted"
    assert model.config.scanpath_image_size is None and model.config.scanpath_pixel_scale is None
    pixels = seen(processor.image_processor)
    exact = {"atol": 1e-6, "rtol": 0} if stored == torch.float32 else {"atol": 2e-2, "rtol": 0}
    torch.testing.assert_close(gaze(model, pixels), gaze(alone, pixels), **exact)
    assert gaze(alone, pixels).std(0).max() > 0.01  # it depends on the film
    assert not any(parameter.requires_grad for parameter in inside.parameters())
    model.save_pretrained(tmp_path / "whole")
    assert str(tmp_path) not in (tmp_path / "whole" / "config.json").read_text()
    loaded = GazeVLM.from_pretrained(tmp_path / "whole")
    assert torch.equal(gaze(loaded, pixels), gaze(model, pixels))
    assert loaded.dtype == torch.float32 == loaded.model.scanpath_predictor.dtype


@pytest.mark.parametrize("kept", ["another tower", "another architecture", "other films"])
def test_another_tower_stays_the_predictors_own(folders, save_tower, predictor, tmp_path, kept):
    """Mean and deviation differ, the size does not: its films are exactly those of its own processor."""
    its = {
        "another tower": lambda: save_tower(tmp_path / "other", seed=7),
        "another architecture": lambda: save_tower(tmp_path / "other", patch_size=8),
        "other films": lambda: folders[0],
    }[kept]()
    alone, images = predictor(its), square(SIDE, OTHER_PIXELS)
    expected = gaze(alone, seen(images))
    model, processor = composed(*folders, alone, images)
    assert model.model.scanpath_predictor.vision_tower is not None
    pixels = seen(processor.image_processor)
    torch.testing.assert_close(model.model._pixels_of_predictor(pixels), seen(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(gaze(model, pixels), expected, atol=1e-4, rtol=0)
    assert (gaze(alone, pixels) - expected).abs().max() > 1e-2  # with this model's mean it would look elsewhere
    model.save_pretrained(tmp_path / "whole")
    assert torch.equal(gaze(GazeVLM.from_pretrained(tmp_path / "whole"), pixels), gaze(model, pixels))


@pytest.mark.parametrize("side", [32, 96])
def test_its_films_may_have_another_size(folders, save_tower, predictor, tmp_path, side):
    alone = predictor(save_tower(tmp_path / "other", seed=7, image_size=side))
    images = square(side, OTHER_PIXELS)
    model, processor = composed(*folders, alone, images)
    its, ours = seen(images), seen(processor.image_processor)
    resized = model.model._pixels_of_predictor(ours)
    assert resized.shape == its.shape
    assert (resized - its).abs().mean() < 0.05
    expected, got = gaze(alone, its), gaze(model, ours)
    model.config.scanpath_pixel_shift = [0.0] * 3
    unshifted = gaze(model, ours)
    error, otherwise = ((one - expected).abs().mean() for one in (got, unshifted))
    assert error < 0.01 and otherwise > 3 * error


def test_half_precision_reaches_the_predictor(folders, save_tower, predictor, tmp_path):
    alone = predictor(save_tower(tmp_path / "other", seed=7))
    model, processor = composed(*folders, alone, square(SIDE, OTHER_PIXELS), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert gaze(model, seen(processor.image_processor)).isfinite().all()
    assert logits_of(model, **reading(processor)).isfinite().all()


# ---- what does not serve


def test_a_merge_size_that_does_not_fit(folders):
    with pytest.raises(ValueError, match="merge_size: a grid of 4 x 4 patches cannot be merged in squares of 3"):
        composed(*folders, merge_size=3)


@pytest.mark.parametrize("kind", ["phi", "granite", "gemma", "narrow"])
def test_a_language_model_with_another_output_layer(save_language_model, save_tower, tmp_path, kind):
    with pytest.raises(ValueError, match=r"ForCausalLM: only language models with a body and a plain output layer"):
        composed(save_tower(tmp_path / "tower"), save_language_model(tmp_path / "llm", kind))


def test_a_folder_without_a_vision_model(folders):
    with pytest.raises(ValueError, match=r"llm: a LlamaModel, which is no vision model"):
        load_tower(folders[1])


def test_options_are_fields_of_the_configuration(folders):
    model, _ = composed(*folders, graph_convolution="max_relative", tasks=["report", "vqa"])
    assert model.config.tasks == ["report", "vqa"] and model.config.graph_hidden_size == 16
    with pytest.raises(ValueError, match="graph_convolution must be one of"):
        composed(*folders, graph_convolution="none such")
