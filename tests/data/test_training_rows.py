"""What is learned from can be made of the releases as they were published."""

import pytest

pytest.importorskip("accelerate", reason='training needs accelerate: pip install "gaze2report[train]"')

from types import SimpleNamespace

from transformers import ViTImageProcessor

from gaze_vlm.training.classifier_data import ClassifierRows

GAZED = ("reflacx", "egd_cxr", "mimic_eye")
JUDGED = (*GAZED, "nih_cxr, published", "nih_cxr, compact", "mimic_cxr", "iu_xray, images")


def test_a_classifier_learns_from_every_release_with_findings(releases, load_release, tmp_path):
    processor = SimpleNamespace(image_processor=ViTImageProcessor(size={"height": 32, "width": 32}))
    labels = ["Edema", "Cardiomegaly", "Pleural Effusion", "Lung Opacity", "Atelectasis", "Mass", "Infiltration"]
    config = SimpleNamespace(id2label=dict(enumerate(labels)), num_labels=len(labels), transcript_input=True)
    for release in releases:
        if release.title not in JUDGED:
            continue
        splits = load_release(release.name, release.root, release.config, **release.options)
        items = [
            ClassifierRows(rows, processor, config, supervision=("gaze", "boxes"), augment=True)
            for rows in splits.values()
            if any(rows["findings"])
        ]
        assert items and all(one[0]["pixel_values"].shape == (3, 32, 32) for one in items), release.title
        assert any(path is not None for one in items for path in one.scanpaths) == (release.title in GAZED)
