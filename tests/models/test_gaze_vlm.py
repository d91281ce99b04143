import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModel

from gaze_vlm import GazeVLM, GazeVLMConfig
from gaze_vlm.models.modeling_vision_tower import patch_tokens
from gaze_vlm.models.processing_gaze_vlm import pad_fixations

FOUR_TOKENS = {"min_new_tokens": 4, "max_new_tokens": 4, "do_sample": False}


@pytest.fixture
def two(make_films, make_prompts, make_gaze):
    """Two samples of one film each; prompts of different lengths."""
    fixations, mask = make_gaze([4, 2], slots=4)
    prompts = make_prompts(([6, 7], 1), ([8, 9, 10, 11, 12], 1))
    return {**prompts, "pixel_values": make_films(2), "fixations": fixations, "fixation_mask": mask}


@pytest.fixture
def without_gaze(two):
    return {name: value for name, value in two.items() if not name.startswith("fixation")}


def logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


# ---- where gaze comes from


@pytest.mark.parametrize("text", ["opt", "llama"])
@pytest.mark.parametrize("tower", [{}, {"vision_width": 32}], ids=["own tower", "host's tower"])
def test_gaze_given_predicted_and_none(make_gaze_vlm, two, without_gaze, text, tower):
    model = make_gaze_vlm(text, scanpath=tower)
    assert (model.model.scanpath_predictor.vision_tower is None) == ("vision_width" in tower)
    given, none = logits(model, **two), logits(model, **without_gaze)
    predicted = logits(model, **without_gaze, gaze="predicted")
    for one, other in ((given, none), (given, predicted), (none, predicted)):
        assert (one[:, -1] - other[:, -1]).abs().max() > 1e-3
    assert torch.equal(logits(model, **two, gaze="given"), given)
    assert torch.equal(logits(model, **two, gaze="none"), none)
    assert torch.equal(logits(model, **two, gaze="predicted"), predicted)  # what is given does not count
    fixations, mask = model.predict_gaze(two["pixel_values"])
    assert fixations.shape == (2, 6, 4) and mask[:, 0].all()
    assert torch.equal(logits(model, **without_gaze, fixations=fixations, fixation_mask=mask), predicted)


def test_the_config_says_where_gaze_comes_from_when_none_is_passed(make_gaze_vlm, two, without_gaze):
    model = make_gaze_vlm(scanpath={}, gaze="predicted")
    predicted = logits(model, **without_gaze, gaze="predicted")
    assert torch.equal(logits(model, **without_gaze), predicted)
    assert not torch.equal(logits(model, **two), predicted)
    with pytest.raises(ValueError, match='gaze="given" needs fixations'):
        make_gaze_vlm(gaze="given")(**without_gaze)


def test_an_empty_scanpath_is_no_gaze(make_gaze_vlm, two, without_gaze):
    model = make_gaze_vlm()
    two["fixation_mask"][1] = False
    got, none = logits(model, **two), logits(model, **without_gaze)
    torch.testing.assert_close(got[1], none[1])
    assert not torch.allclose(got[0], none[0], atol=1e-3)


def test_the_nested_predictor_travels_with_the_checkpoint(make_gaze_vlm, without_gaze, tmp_path):
    model = make_gaze_vlm("opt", scanpath={"vision_width": 32, "num_strategies": 2}, gaze="predicted")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.scanpath_config.num_strategies == 2
    assert torch.equal(logits(loaded, **without_gaze), logits(model, **without_gaze))
    assert not any(p.requires_grad for p in loaded.model.scanpath_predictor.language_model.parameters())


# ---- errors


def test_placeholders_and_tokens_must_agree(make_gaze_vlm, two):
    two["pixel_values"] = two["pixel_values"][:1]
    with pytest.raises(ValueError, match=r"image placeholders: 8, visual-gaze tokens: 4 \(1 images of 4\)"):
        make_gaze_vlm()(**{name: two[name] for name in ("input_ids", "attention_mask", "pixel_values")})


def test_every_film_needs_a_scanpath(make_gaze_vlm, two):
    two["fixations"], two["fixation_mask"] = two["fixations"][:1], two["fixation_mask"][:1]
    with pytest.raises(ValueError, match="images: 2, scanpaths: 1"):
        make_gaze_vlm()(**two)


def test_gaze_must_be_there_to_be_used(make_gaze_vlm, without_gaze):
    model = make_gaze_vlm()
    for gaze, message in (("given", "needs fixations"), ("predicted", "scanpath predictor"), ("guess", "'guess'")):
        with pytest.raises(ValueError, match=message):
            model(**without_gaze, gaze=gaze)


def test_inputs_that_do_not_go_together(make_gaze_vlm, two):
    model = make_gaze_vlm()
    embeds = model.get_input_embeddings()(two["input_ids"])
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(two["input_ids"], inputs_embeds=embeds)
    with pytest.raises(ValueError, match="placeholders say where"):
        model(inputs_embeds=embeds, pixel_values=two["pixel_values"])


def test_a_grid_that_cannot_be_merged_is_named(make_gaze_vlm, two):
    with pytest.raises(ValueError, match="4 x 4 cannot be merged in squares of 3"):
        make_gaze_vlm(merge_size=3)(**two)


# ---- from patches to text


def test_patch_tokens_stand_for_pixel_values(make_gaze_vlm, two):
    model = make_gaze_vlm(scanpath={"vision_width": 32})
    expected = {gaze: logits(model, **two, gaze=gaze) for gaze in ("given", "predicted", "none")}
    tokens = patch_tokens(model.model.vision_tower, two.pop("pixel_values"))
    for gaze, value in expected.items():
        assert torch.equal(logits(model, **two, patch_tokens=tokens, gaze=gaze), value), gaze


def test_visual_gaze_tokens_go_where_the_placeholders_are(make_gaze_vlm, two):
    model = make_gaze_vlm()
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        features = model(**two).image_hidden_states
        assert torch.equal(
            features, model.get_image_features(*[two[n] for n in ("pixel_values", "fixations", "fixation_mask")])
        )
    placeholder = two["input_ids"] == model.config.image_token_id
    assert features.shape == (2, 4, 32)
    assert torch.equal(seen[0][placeholder], features.flatten(0, 1))
    words = model.get_input_embeddings()(two["input_ids"])
    assert torch.equal(seen[0][~placeholder], words[~placeholder])


def test_merged_tokens_are_squares_in_reading_order(make_gaze_vlm):
    projector = make_gaze_vlm().model.multi_modal_projector
    states = torch.randn(1, 4, 6, 32, generator=torch.Generator().manual_seed(0))
    seen = []
    projector.linear_1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert projector(states).shape == (1, 6, 32)
    for token, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2, 4)):
        square = states[0, row : row + 2, column : column + 2].flatten()
        assert torch.equal(seen[0][0, token], square)


def test_several_films_a_sample_keep_their_order(make_gaze_vlm, make_films, make_prompts):
    model, films = make_gaze_vlm(), make_films(2)
    prompts = make_prompts(([6, 7], 2))
    one, other = (logits(model, **prompts, pixel_values=value) for value in (films, films.flip(0)))
    assert (one[0, -1] - other[0, -1]).abs().max() > 1e-3
    tokens = model.get_image_features(films).flatten(0, 1)
    again = model(**prompts, pixel_values=films).image_hidden_states.flatten(0, 1)
    assert torch.equal(tokens, again)


def test_the_loss_is_next_token_cross_entropy(make_gaze_vlm, two):
    model = make_gaze_vlm()
    labels = two["input_ids"].masked_fill(two["input_ids"] <= 1, -100)
    with torch.no_grad():
        outputs = model(**two, labels=labels)
        summed = model(**two, labels=labels, num_items_in_batch=torch.tensor(5)).loss
    picked = [(i, t) for i in range(2) for t in range(1, labels.shape[1]) if labels[i, t] != -100]
    losses = [-outputs.logits[i, t - 1].log_softmax(-1)[labels[i, t]] for i, t in picked]
    torch.testing.assert_close(outputs.loss, torch.stack(losses).mean())
    torch.testing.assert_close(summed, torch.stack(losses).sum() / 5)


def test_logits_to_keep(make_gaze_vlm, two):
    model = make_gaze_vlm()
    everything = logits(model, **two)
    torch.testing.assert_close(logits(model, **two, logits_to_keep=2), everything[:, -2:])
    torch.testing.assert_close(logits(model, **two, logits_to_keep=torch.tensor([3, 5])), everything[:, [3, 5]])


# ---- generation


@pytest.mark.parametrize("text", ["opt", "llama"])
def test_greedy_text_is_the_argmax_step_by_step_with_and_without_cache(make_gaze_vlm, two, text):
    model = make_gaze_vlm(text)
    written = model.generate(**two, **FOUR_TOKENS)
    assert torch.equal(model.generate(**two, **FOUR_TOKENS, use_cache=False), written)
    inputs = dict(two)
    for _ in range(4):
        allowed = logits(model, **inputs)[:, -1]
        allowed[:, model.config.text_config.eos_token_id] = -torch.inf  # min_new_tokens forbids the end
        inputs["input_ids"] = torch.cat([inputs["input_ids"], allowed.argmax(-1, keepdim=True)], 1)
        inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    assert torch.equal(inputs["input_ids"], written)


@pytest.mark.parametrize("text", ["opt", "llama"])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_text_does_not_depend_on_the_batch(make_gaze_vlm, make_films, make_prompts, make_gaze, text, how):
    """Left-padded prompts with one film, two films and none."""
    model = make_gaze_vlm(text)
    samples = [([6, 7], 1), ([8, 9, 10, 11], 2), ([12], 0)]
    films, (fixations, mask) = make_films(3), make_gaze([4, 2, 3], slots=4)
    images = {"pixel_values": films, "fixations": fixations, "fixation_mask": mask}
    together = model.generate(**make_prompts(*samples), **images, **FOUR_TOKENS, **how)
    returned = how.get("num_return_sequences", 1)
    assert len(together) == 3 * returned
    first = 0
    for i, (words, count) in enumerate(samples):
        its = {name: value[first : first + count] for name, value in images.items()} if count else {}
        alone = model.generate(**make_prompts((words, count)), **its, **FOUR_TOKENS, **how)
        assert torch.equal(together[i * returned : (i + 1) * returned, -4:], alone[:, -4:]), i
        first += count


def test_beams_of_a_sample_see_its_films_in_order(make_gaze_vlm, make_films, make_prompts, make_gaze):
    model, films, (fixations, mask) = make_gaze_vlm(), make_films(3), make_gaze([4, 2, 3], slots=4)
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    prompts = make_prompts(([6], 1), ([8, 9], 2), ([7], 0))
    inputs = {"pixel_values": films, "fixations": fixations, "fixation_mask": mask}
    model.generate(**prompts, **inputs, **FOUR_TOKENS, num_beams=3)
    order = torch.tensor([0, 0, 0, 1, 2, 1, 2, 1, 2])
    for name, value in inputs.items():
        assert torch.equal(seen[0][name], value[order]), name
        assert seen[1].get(name) is None  # from the second step on they stand in the cache
    with pytest.raises(ValueError, match="image placeholders"):
        model.generate(**prompts, pixel_values=films[:2], **FOUR_TOKENS, num_beams=3)


def test_gaze_reaches_what_is_written(make_gaze_vlm, two, without_gaze):
    model = make_gaze_vlm(scanpath={})
    scores = {
        gaze: model.generate(
            **(two if gaze == "given" else without_gaze),
            gaze=gaze,
            output_scores=True,
            return_dict_in_generate=True,
            **FOUR_TOKENS,
        )
        .scores[-1]
        .nan_to_num(neginf=0)
        for gaze in ("given", "predicted", "none")
    }
    assert (scores["given"] - scores["none"]).abs().max() > 1e-3
    assert (scores["predicted"] - scores["none"]).abs().max() > 1e-3


# ---- weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", ["opt", "llama"])
def test_tied_embeddings_stay_tied(make_gaze_vlm, text, dtype, tmp_path):
    model = make_gaze_vlm(text, scanpath={}).to(dtype)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    for loaded in (model, AutoModel.from_pretrained(tmp_path)):
        embedding = loaded.get_input_embeddings().weight
        assert loaded.get_output_embeddings().weight is embedding
        nested = loaded.model.scanpath_predictor.language_model
        assert nested.get_output_embeddings().weight is nested.get_input_embeddings().weight
        assert nested.get_input_embeddings().weight is not embedding
        assert torch.equal(embedding, model.get_input_embeddings().weight)
    assert sum(name.endswith(("lm_head.weight", "embed_tokens.weight")) for name in names) == 2


@pytest.mark.parametrize("text", ["opt", "llama"])
def test_untied_embeddings_stay_untied(make_gaze_vlm, text, tmp_path):
    model = make_gaze_vlm(text, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is not loaded.get_input_embeddings().weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.get_input_embeddings().weight)


def test_head_and_embedding_are_tied_as_the_language_model_says(tmp_path):
    text = {"model_type": "llama", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for tied in (False, True):
        config = GazeVLMConfig(vision_config=vision, text_config={**text, "tie_word_embeddings": tied})
        model = GazeVLM(config)
        model.save_pretrained(tmp_path / str(tied))
        loaded = AutoModel.from_pretrained(tmp_path / str(tied))
        for one in (model, loaded):
            assert one.config.tie_word_embeddings is tied
            assert (one.lm_head.weight is one.get_input_embeddings().weight) is tied
            assert bool(one._tied_weights_keys) is tied
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
        assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_what_does_not_learn_stays_in_eval_mode(make_gaze_vlm, make_vision_config, two):
    model = make_gaze_vlm(
        scanpath={"vision_width": 256, "dropout": 0.5}, vision_config=make_vision_config("timm"), merge_size=1
    )
    tower = model.model.vision_tower
    before = model.predict_gaze(two["pixel_values"])
    assert model.train().training and tower.training  # one that learns
    tower.requires_grad_(False)
    model.train()
    buffers = {name: value.clone() for name, value in tower.named_buffers()}
    assert any("running_mean" in name for name in buffers)
    model(**two, labels=two["input_ids"], gaze="predicted")
    assert all(torch.equal(value, buffers[name]) for name, value in tower.named_buffers())
    assert all(map(torch.equal, model.predict_gaze(two["pixel_values"]), before))


# ---- processor


def film(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (80, 50), dtype=np.uint8))


RECORD = {"x": [0.1, 0.2], "y": [0.3, 0.4], "onset": [0.0, 1.0], "duration": [1.0, 0.5]}
ROWS = [[0.1, 0.3, 0.0, 1.0], [0.2, 0.4, 1.0, 0.5]]


def test_scanpaths_are_padded():
    fixations, mask = pad_fixations([RECORD, None, np.array(ROWS)[:1], torch.tensor(ROWS), np.zeros((0, 4))])
    assert fixations.shape == (5, 2, 4) and fixations.dtype == torch.float32
    assert mask.tolist() == [[True, True], [False, False], [True, False], [True, True], [False, False]]
    torch.testing.assert_close(fixations[0], torch.tensor(ROWS))
    torch.testing.assert_close(fixations[3], torch.tensor(ROWS))
    torch.testing.assert_close(fixations[2], torch.tensor([ROWS[0], [0.0] * 4]))
    fixations, mask = pad_fixations([None])
    assert fixations.shape == (1, 1, 4) and not mask.any()
    with pytest.raises(ValueError, match=r"scanpath 1 must be .* got \(2, 3\)"):
        pad_fixations([None, np.zeros((2, 3))])


def test_processor_feeds_the_model(vlm_processor, make_gaze_vlm):
    texts = ["<|user|> <image> write report <|assistant|>", "<|user|> <image> <image> normal <|assistant|>"]
    images = [[film(0)], [film(1), film(2)]]
    batch = vlm_processor(
        images=images, text=texts, fixations=[RECORD, None, np.array(ROWS)], padding=True, return_tensors="pt"
    )
    assert (batch["input_ids"] == vlm_processor.image_token_id).sum(1).tolist() == [4, 8]
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["pixel_values"].shape == (3, 3, 64, 64)
    assert batch["fixations"].shape == (3, 2, 4) and batch["fixation_mask"].any(1).tolist() == [True, False, True]
    assert set(batch) <= set(vlm_processor.model_input_names)
    assert logits(make_gaze_vlm(), **batch).isfinite().all()


def test_chat_template_takes_gaze_along(vlm_processor, make_gaze_vlm):
    def messages(seed, words):
        content = [{"type": "image", "image": film(seed)}, {"type": "text", "text": words}]
        return [{"role": "user", "content": content}]

    batch = vlm_processor.apply_chat_template(
        [messages(0, " write report "), messages(1, " is heart clear ")],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "fixations": [RECORD, None]},
    )
    ids = vlm_processor.tokenizer.convert_tokens_to_ids
    expected = ["<|user|>", *["<image>"] * 4, "write", "report", "<|end|>", "<|assistant|>"]
    assert batch["input_ids"][0].tolist()[-len(expected) :] == ids(expected)
    assert batch["fixation_mask"].tolist() == [[True, True], [False, False]]
    assert make_gaze_vlm().generate(**batch, **FOUR_TOKENS).shape == (2, batch["input_ids"].shape[1] + 4)


def test_processor_survives_saving(vlm_processor, tmp_path):
    vlm_processor.save_pretrained(tmp_path)
    loaded = type(vlm_processor).from_pretrained(tmp_path)
    assert loaded.num_image_tokens == 4 and loaded.image_token_id == vlm_processor.image_token_id == 1
    assert loaded.chat_template == vlm_processor.chat_template
    inputs = {"images": [film(0)], "text": ["<|user|> <image> normal"], "fixations": [RECORD], "return_tensors": "pt"}
    one, other = vlm_processor(**inputs), loaded(**inputs)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
