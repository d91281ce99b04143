"""A task in which only gaze says which of two marks the report speaks of."""

import numpy as np
import pytest
from PIL import Image
from transformers import set_seed

pytest.importorskip("trl", reason='training needs trl: pip install "gaze2report[train]"')

from gaze_vlm import GazeVLM, GazeVLMConfig, GazeVLMProcessor
from gaze_vlm.generation import generate_texts
from gaze_vlm.training.sft_data import SftRows
from gaze_vlm.training.sft_trainer import GazeSFTConfig, GazeSFTTrainer

KINDS = {"nodule": 255, "effusion": 0}
SIDE = 64


def reading(number: int, make_row) -> dict:
    """A grey film with a bright and a dark mark, one on each side; who reads it looks at one and reports that one."""
    rng = np.random.default_rng(number)
    names = list(KINDS)
    rng.shuffle(names)
    film = rng.integers(100, 156, (SIDE, SIDE), np.uint8)
    for name, left in zip(names, (0, SIDE // 2), strict=True):
        x, y = left + rng.integers(0, SIDE // 4), rng.integers(0, 3 * SIDE // 4)
        film[y : y + 16, x : x + 16] = KINDS[name]
        if name == names[0]:
            first = (x + 8) / SIDE, (y + 8) / SIDE
        else:
            second = (x + 8) / SIDE, (y + 8) / SIDE
    looked = int(rng.integers(2))
    x, y = (first, second)[looked]
    path = {"x": [x] * 2, "y": [y] * 2, "onset": [0.0, 0.5], "duration": [0.5, 0.5]}
    report = {"findings": f"There is {names[looked]}.", "impression": None, "indication": None, "comparison": None}
    return make_row(number, image=Image.fromarray(film), patient_id=f"p{number}", scanpath=path, report=report)


@pytest.fixture(scope="module")
def model_and_processor(tiny_bundle):
    from transformers import AutoProcessor

    processor: GazeVLMProcessor = AutoProcessor.from_pretrained(tiny_bundle / "gaze_vlm")
    config = GazeVLMConfig.from_pretrained(tiny_bundle / "gaze_vlm")
    processor.num_image_tokens = 16
    set_seed(0)
    return GazeVLM(
        GazeVLMConfig(
            vision_config=config.vision_config.to_dict(),
            text_config=config.text_config.to_dict() | {"dropout": 0.0, "num_hidden_layers": 2, "init_std": 0.1},
            image_token_id=config.image_token_id,
            graph_hidden_size=32,
            initializer_range=0.1,
        )
    ), processor


def test_gaze_says_which_of_two_marks_is_meant(model_and_processor, make_rows, make_row, tmp_path):
    model, processor = model_and_processor
    rows = make_rows(*(reading(number, make_row) for number in range(600)))
    train = SftRows(rows, tasks={"report": 1}, gaze={"given": 3, "none": 1})
    settings = GazeSFTConfig(
        output_dir=str(tmp_path),
        max_steps=400,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        warmup_steps=20,
        gradient_checkpointing=False,
        freeze_vision_tower=False,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )
    GazeSFTTrainer(model, settings, train_rows=train, processing_class=processor).train()
    others = make_rows(*(reading(number, make_row) for number in range(10_000, 10_100)))
    shares = {}
    for gaze in ("given", "none", "shuffled"):
        drawn = SftRows(others, tasks={"report": 1}, gaze={gaze: 1}, training=False)
        samples = [drawn.draw(place) for place in range(len(drawn))]
        texts = generate_texts(
            model.eval(),
            processor,
            [sample["prompt"] for sample in samples],
            [sample["images"] for sample in samples],
            [path for sample in samples for path in sample["fixations"]],
            max_new_tokens=12,
            do_sample=False,
        )
        expected = [sample["completion"][0]["content"][0]["text"] for sample in samples]
        shares[gaze] = np.mean([text.strip() == one for text, one in zip(texts, expected, strict=True)])
    assert shares["given"] >= 0.95
    assert 0.3 <= shares["none"] <= 0.7
    assert 0.3 <= shares["shuffled"] <= 0.7
