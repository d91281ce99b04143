"""Texts for batches of films, gaze and messages."""

from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, TextIteratorStreamer, set_seed

from gaze_vlm import GazeVLM, GazeVLMConfig, GazeVLMProcessor
from gaze_vlm.generation import generate_texts
from gaze_vlm.tasks import report_messages, vqa_messages

MESSAGES = [
    report_messages(indication="Cough and fever for three days."),
    report_messages(views=2),
    [{"role": "user", "content": [{"type": "text", "text": "Is the heart large?"}]}],
]
PATHS = [
    np.array([[0.2, 0.3, 0.0, 0.3], [0.7, 0.6, 0.3, 0.9]]),
    None,
    {"x": [0.9], "y": [0.1], "onset": [0.0], "duration": [0.5]},
]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def model(tiny_bundle):
    """The tiny GazeVLM with weights wide enough for film, gaze and text to change what is said."""
    config = GazeVLMConfig.from_pretrained(tiny_bundle / "gaze_vlm", initializer_range=0.3)
    config.text_config.dropout, config.text_config.init_std = 0.0, 0.3
    set_seed(0)
    model = GazeVLM(config).eval()
    model.generation_config = GenerationConfig.from_pretrained(tiny_bundle / "gaze_vlm")
    predictor = GazeVLM.from_pretrained(tiny_bundle / "gaze_vlm").model.scanpath_predictor
    model.model.scanpath_predictor = predictor
    return model


@pytest.fixture(scope="module")
def processor(tiny_bundle):
    return GazeVLMProcessor.from_pretrained(tiny_bundle / "gaze_vlm")


@pytest.fixture
def films():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(3)]


@pytest.fixture
def shown(films):
    """One film, two, none."""
    return [films[:1], films[1:], []]


def one_by_one(model, processor, shown, **options) -> list[str]:
    paths, texts = iter(PATHS), []
    for messages, its in zip(MESSAGES, shown, strict=True):
        own = {"fixations": [next(paths) for _ in its]} if "gaze" not in options else {}
        texts += generate_texts(model, processor, [messages], [its], **own, **options)
    return texts


def scores(model, processor, films, fixations=None, gaze=None) -> torch.Tensor:
    """Of the first token that is said of a film."""
    seen = []

    class Watch(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(scores[0].clone())
            return scores

    options = {"max_new_tokens": 1, "do_sample": False, "logits_processor": [Watch()]}
    generate_texts(model, processor, MESSAGES[:1], [films[:1]], fixations, gaze, **options)
    return seen[0]


# ---- batches


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_says_what_its_samples_say_one_by_one(model, processor, shown, beams):
    options = GREEDY | {"num_beams": beams}
    texts = generate_texts(model, processor, MESSAGES, shown, PATHS, **options)
    assert texts == one_by_one(model, processor, shown, **options)
    assert len(set(texts)) == 3 and all(texts)


def test_a_batch_says_what_its_samples_say_with_predicted_gaze(model, processor, shown):
    options = GREEDY | {"gaze": "predicted"}
    texts = generate_texts(model, processor, MESSAGES, shown, **options)
    assert texts == one_by_one(model, processor, shown, **options)


def test_samples_may_stand_in_any_order(model, processor, shown):
    texts = generate_texts(model, processor, MESSAGES, shown, PATHS, **GREEDY)
    turned = generate_texts(model, processor, MESSAGES[::-1], shown[::-1], [*PATHS[1:], PATHS[0]], **GREEDY)
    assert turned == texts[::-1]


def test_only_what_is_new_is_returned(model, processor, films):
    (text,) = generate_texts(model, processor, MESSAGES[:1], [films[:1]], **GREEDY)
    prompt = processor.apply_chat_template(MESSAGES[0], add_generation_prompt=True)
    inputs = processor(images=[films[:1]], text=[prompt], add_special_tokens=False, return_tensors="pt")
    tokens = model.generate(**inputs, **GREEDY)[0]
    assert len(tokens) == inputs["input_ids"].shape[1] + 8
    assert text == processor.decode(tokens[-8:], skip_special_tokens=True)


# ---- how it is generated


def test_sampling_repeats_with_its_seed(model, processor, shown):
    options = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 8, "min_new_tokens": 8}
    drawn = []
    for seed in (1, 1, 2):
        set_seed(seed)
        drawn.append(generate_texts(model, processor, MESSAGES, shown, PATHS, **options))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_stopping_criterion_stops(model, processor, films):
    class AfterThree(StoppingCriteria):
        calls = 0

        def __call__(self, input_ids, scores, **kwargs):
            self.calls += 1
            return torch.full((len(input_ids),), self.calls == 3)

    stop = AfterThree()
    whole = generate_texts(model, processor, MESSAGES[:1], [films[:1]], **GREEDY)
    short = generate_texts(model, processor, MESSAGES[:1], [films[:1]], **GREEDY, stopping_criteria=[stop])
    assert stop.calls == 3 and whole[0].startswith(short[0]) and len(short[0]) < len(whole[0])


def test_a_streamer_yields_the_text_that_is_returned(model, processor, films):
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    returned = []

    def write():
        texts = generate_texts(
            model, processor, MESSAGES[1:2], [films[1:]], PATHS[1:], streamer=streamer, max_new_tokens=60
        )
        returned.extend(texts)

    writer = Thread(target=write)
    writer.start()
    pieces = list(streamer)
    writer.join()
    assert "".join(pieces) == returned[0] and len([piece for piece in pieces if piece]) > 1


# ---- gaze


def test_gaze_changes_the_scores(model, processor, films):
    given = scores(model, processor, films, PATHS[:1])
    predicted, none = (scores(model, processor, films, gaze=gaze) for gaze in ("predicted", "none"))
    for one, other in ((given, predicted), (given, none), (predicted, none)):
        assert (one - other).abs().max() > 1e-3
    assert torch.equal(given, scores(model, processor, films, PATHS[:1], "given"))
    assert torch.equal(none, scores(model, processor, films, [None]))
    assert torch.equal(predicted, scores(model, processor, films))  # what this model's config says


def test_given_gaze_must_be_there(model, processor, films):
    with pytest.raises(ValueError, match='gaze="given" needs fixations'):
        generate_texts(model, processor, MESSAGES[:1], [films[:1]], gaze="given")


# ---- what does not go together


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((2, 1, 0), "sample 0: its messages have 1 images, 2 are given"),  # as many in all, but another's
        ((1, 1, 0), "sample 1: its messages have 2 images, 1 are given"),
        ((1, 0, 0), "sample 1: its messages have 2 images, 0 are given"),
        ((1, 2, 1), "sample 2: its messages have 0 images, 1 are given"),
        ((1, 2), "messages: 3, lists of images: 2"),
    ],
)
def test_images_must_be_those_of_the_messages(model, processor, films, counts, message):
    with pytest.raises(ValueError, match=message):
        generate_texts(model, processor, MESSAGES, [films[:count] for count in counts])


@pytest.mark.parametrize("gaze", [None, "given", "predicted", "none"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_each_image_needs_its_scanpath(model, processor, shown, count, gaze):
    with pytest.raises(ValueError, match=f"images: 3, scanpaths: {count}"):
        generate_texts(model, processor, MESSAGES, shown, [None] * count, gaze)


def test_a_scanpath_without_an_image_is_refused(model, processor):
    with pytest.raises(ValueError, match="images: 0, scanpaths: 1"):
        generate_texts(model, processor, MESSAGES[2:], [[]], PATHS[:1])


def test_questions_of_several_films(model, processor, films):
    texts = generate_texts(model, processor, [vqa_messages("Which is new?", views=3)], [films], PATHS, **GREEDY)
    assert len(texts) == 1 and texts[0]
