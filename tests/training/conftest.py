"""Rows of the schema and a tiny ScanpathPredictor, made by code."""

import numpy as np
import pytest
from PIL import Image


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 16), np.uint8))


def made_row(number: int = 0, fixations: int = 4, **known) -> dict:
    """A reading with an image, a report of three words and findings; `known` are further columns, or None for none."""
    from gaze_vlm.data.schema import row

    rng = np.random.default_rng(number)
    duration = rng.uniform(0.1, 0.6, fixations)
    path = {"x": rng.random(fixations), "y": rng.random(fixations), "onset": duration.cumsum() - duration}
    report = {"findings": "Clear lungs.", "impression": f"Case {number}.", "indication": None, "comparison": None}
    given = {
        "image": picture(number),
        "image_id": f"film-{number}",
        "report": report,
        "findings": [{"name": "Cardiomegaly", "certainty": 1.0, "label": None, "grade": None}],
        "scanpath": {name: [float(v) for v in values] for name, values in (path | {"duration": duration}).items()},
        "reader": "ab"[number % 2],
        "source": "made",
    }
    return row(**(given | known))


@pytest.fixture
def make_rows():
    """A data set of rows: `make_rows(row, row, ...)`, or `make_rows(n)` for n of `make_row`."""
    datasets = pytest.importorskip("datasets", reason='needs datasets: pip install "gaze2report[train]"')
    from gaze_vlm.data.schema import SCHEMA

    def make(*rows):
        if rows and isinstance(rows[0], int):
            rows = [made_row(number) for number in range(rows[0])]
        return datasets.Dataset.from_list(list(rows), features=SCHEMA)

    return make


@pytest.fixture
def make_row():
    return made_row


@pytest.fixture
def processor(tiny_bundle):
    from gaze_vlm import ScanpathPredictorProcessor

    return ScanpathPredictorProcessor.from_pretrained(tiny_bundle / "scanpath_predictor")


@pytest.fixture
def make_config(tiny_bundle):
    """The tiny predictor's configuration, one strategy and no dropout, with changes."""
    from gaze_vlm import ScanpathPredictorConfig

    def make(**changes):
        plain = {
            "dropout": 0.0,
            "decoder_dropout": 0.0,
            "num_strategies": 1,
            "point_estimate": "mean",
            "distribution": "none",
        }
        config = ScanpathPredictorConfig.from_pretrained(tiny_bundle / "scanpath_predictor", **(plain | changes))
        config.qformer_config.hidden_dropout_prob = config.qformer_config.attention_probs_dropout_prob = 0.0
        config.text_config.dropout = 0.0
        return config

    return make


@pytest.fixture
def make_model(make_config):
    from transformers import set_seed

    from gaze_vlm import ScanpathPredictor

    def make(**changes):
        set_seed(0)
        return ScanpathPredictor(make_config(**changes))

    return make


CLASSES = ("Cardiomegaly", "Pleural Effusion", "Lung Lesion")


@pytest.fixture
def classifier_processor(tiny_bundle):
    from gaze_vlm import GazeClassifierProcessor

    processor = GazeClassifierProcessor.from_pretrained(tiny_bundle / "gaze_classifier")
    processor.image_processor.size = {"height": 32, "width": 32}
    return processor


@pytest.fixture
def make_classifier_config(classifier_processor):
    """A tiny GazeClassifier's configuration, without dropout: `version` "plain", "contrastive" or "gaze_token"."""
    from gaze_vlm import GazeClassifierConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    words = {"model_type": "bert", "vocab_size": len(classifier_processor.tokenizer), **sizes}
    words |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    known = {
        "vision_config": {"model_type": "vit", "image_size": 32, "patch_size": 8, **sizes},
        "fusion_dropout": 0.0,
        "fusion_heads": 2,
    }

    def make(version="plain", labels=CLASSES, **changes):
        if version == "plain":
            return GazeClassifierConfig(**{**known, "id2label": dict(enumerate(labels)), **changes})
        make = getattr(GazeClassifierConfig, version)
        return make(**{**known, "text_config": words, "id2label": dict(enumerate(labels)), **changes})

    return make


@pytest.fixture
def make_classifier(make_classifier_config):
    from transformers import set_seed

    from gaze_vlm import GazeClassifier

    def make(version="plain", **changes):
        set_seed(0)
        return GazeClassifier(make_classifier_config(version, **changes))

    return make
