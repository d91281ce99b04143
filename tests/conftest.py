"""Tiny random models in the layout of a checkpoint folder, and films, all made by code."""

import copy
import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# tests run in as many processes as there are cores (pyproject.toml), so each of them, and what it starts, takes one
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_LABELS = [
    "No Finding",
    "Cardiomegaly",
    "Pleural Effusion",
    "Lung Opacity",
    "Mass",
    "Lung Lesion",
    "Emphysema",
    "Hernia",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_LENGTH = 128


def save_tiny_bundle(folder: Path) -> Path:
    """gaze_classifier, scanpath_predictor and gaze_vlm with random weights and their processors, under 2 MB in all."""
    import torch
    from transformers import GenerationConfig, ViTImageProcessor, set_seed

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

    set_seed(0)
    left = tiny_tokenizer()
    right = copy.deepcopy(left)
    right.padding_side = "right"
    images = ViTImageProcessor(size={"height": 64, "width": 64}, do_convert_rgb=True, image_mean=[0.5] * 3)
    vision = {
        "model_type": "vit",
        "image_size": 64,
        "patch_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    text = {
        "model_type": "opt",
        "vocab_size": len(left),
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": left.pad_token_id,
        "bos_token_id": left.eos_token_id,
        "eos_token_id": left.eos_token_id,
    }
    gaze = {
        "qformer_config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        "text_config": text,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_query_tokens": 4,
        "max_fixations": 6,
        "num_strategies": 2,
        "point_estimate": "consensus",
    }
    names = dict(enumerate(TINY_LABELS))
    classifier = GazeClassifier(
        GazeClassifierConfig(
            vision_config=vision, id2label=names, label2id={name: number for number, name in names.items()}
        )
    )
    predictor = ScanpathPredictor(ScanpathPredictorConfig(vision_config=vision, **gaze))
    vlm = GazeVLM(
        GazeVLMConfig(
            vision_config=vision,
            text_config=text,
            scanpath_config={**gaze, "vision_width": 32},
            gaze="predicted",
            image_token_id=left.convert_tokens_to_ids("<image>"),
            merge_size=2,
            graph_hidden_size=16,
            num_graph_layers=1,
        )
    )
    with torch.no_grad():
        # films of different looks get different findings, attention and scanpaths of several fixations
        classifier.head.weight.normal_(std=0.5)
        classifier.pooling.query.normal_(std=2)
        films = [Image.fromarray(film_pixels(seed)) for seed in range(24)]
        logits = classifier.eval()(images(films, return_tensors="pt")["pixel_values"]).logits
        # each finding is present on half of these films; No Finding, which excludes the others, on a quarter, for sure
        for number, share in enumerate([0.75] + [0.5] * (len(TINY_LABELS) - 1)):
            classifier.head.bias[number] = -logits[:, number].quantile(share, interpolation="midpoint")
        classifier.head.weight[0] *= 100
        classifier.head.bias[0] *= 100
        for one in (predictor, vlm.model.scanpath_predictor):
            one.keep_head.bias.fill_(2.0)
            one.position_head.weight.normal_(std=0.5)
    vlm.generation_config = GenerationConfig(
        max_new_tokens=12, pad_token_id=left.pad_token_id, eos_token_id=left.eos_token_id, do_sample=False
    )
    chat = GazeVLMProcessor(images, left, num_image_tokens=4, chat_template=CHAT_TEMPLATE)
    for name, model, processor in (
        ("gaze_classifier", classifier, GazeClassifierProcessor(images, right)),
        ("scanpath_predictor", predictor, ScanpathPredictorProcessor(images, right)),
        ("gaze_vlm", vlm, chat),
    ):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def tiny_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<image>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    sentences = ["The heart is normal in size.", "Write the report of this chest X-ray. Findings: none."]
    bpe.train_from_iterator([*sentences * 3, *(name.lower() for name in TINY_LABELS)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<|end|>",
        extra_special_tokens=["<image>", "<|user|>", "<|assistant|>"],
        padding_side="left",
        model_max_length=MAX_LENGTH,
    )


def film_pixels(seed: int, width: int = 96, height: int = 112) -> np.ndarray:
    """(height, width) uint8: random blobs, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Path:
    """The folder of `save_tiny_bundle`; not to be written to."""
    return save_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def taught(tiny_bundle, tmp_path_factory) -> Path:
    """The tiny models, their GazeVLM said to know all tasks; not to be written to."""
    folder = tmp_path_factory.mktemp("taught") / "tiny"
    shutil.copytree(tiny_bundle, folder)
    config = folder / "gaze_vlm" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tasks": ["report", "vqa", "ground"]}))
    return folder


@pytest.fixture(scope="module")
def address(taught, tmp_path_factory):
    """Where the Space with tiny models is."""
    from gaze_vlm import space

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        demo = space.build(taught)
        _, url, _ = space.launch(demo, prevent_thread_lock=True, server_name="127.0.0.1")
        yield url
        demo.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright; of one module, for it leaves its event loop running until it is closed."""
    reason = 'needs playwright: pip install "gaze2report[dev]"'
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def film_file(tmp_path):
    """Writes a film: `film_file("a.png", seed=1)`. PNG, JPEG or DICOM by its suffix."""

    def write(name: str, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = film_pixels(seed)
        if path.suffix == ".dcm":
            write_dicom(path, pixels)
        else:
            Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture(scope="session")
def save_dicom():
    """The function that writes a DICOM file."""
    return write_dicom


def write_dicom(path: Path, pixels: np.ndarray | None, modality: str = "DX") -> None:
    """An uncompressed DICOM file; `pixels` None: a data set without a picture."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Modality = modality
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
        data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="session")
def serve_hub():
    """`with serve_hub(folder) as hub:` is a `FakeHub` (tests/fakehub.py) without repositories."""
    spec = importlib.util.spec_from_file_location("fakehub", Path(__file__).with_name("fakehub.py"))
    fakehub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fakehub)
    return fakehub.FakeHub


@pytest.fixture
def fake_hub(tmp_path, serve_hub):
    with serve_hub(tmp_path / "hub") as hub:
        yield hub
