"""What a GazeClassifier learns from: labels, films, boxes and gaze of one view, and what is refused."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("datasets", reason='needs datasets: pip install "gaze2report[train]"')

from gaze_vlm.data.nih_cxr import NIH_LABELS
from gaze_vlm.findings import NO_FINDING, to_canonical
from gaze_vlm.training.classifier_data import ClassifierCollator, ClassifierRows, targets, taught_findings

NAN = float("nan")


def judged(**certainties) -> list[dict]:
    """`judged(Pleural_Effusion=1.0)`."""
    return [
        {"name": name.replace("_", " "), "certainty": certainty, "label": None, "grade": None}
        for name, certainty in certainties.items()
    ]


def nih(released: str) -> list[dict]:
    """Findings of a film of NIH ChestX-ray14, "Mass|Nodule" as released."""
    names = released.split("|")
    return [
        {"name": to_canonical(name), "certainty": float(name in names), "label": name, "grade": None}
        for name in (*NIH_LABELS, NO_FINDING)
    ]


def box(name: str, *edges: float, certainty: float | None = None) -> dict:
    known = {"shape": "box", "phrase": None, "annotator": None}
    return {"name": name, "box": list(edges), "certainty": certainty, **known}


def path(*fixations) -> dict:
    """Fixations of x, y; a second each."""
    x, y = zip(*fixations, strict=True)
    return {"x": x, "y": y, "onset": list(range(len(x))), "duration": [1.0] * len(x)}


@pytest.fixture
def items(make_rows, classifier_processor, make_classifier_config):
    def make(*rows, labels=("Cardiomegaly", "Pleural Effusion", "Lung Lesion"), config=None, **options):
        config = config or make_classifier_config(labels=labels)
        return ClassifierRows(make_rows(*rows), classifier_processor, config, **options)

    return make


# ---- labels


@pytest.mark.parametrize(
    ("findings", "labels", "expected"),
    [
        (None, ["Edema"], [NAN]),
        ([], ["Edema"], [NAN]),
        (judged(Edema=1.0, Pneumothorax=0.0), ["Pneumothorax", "Fracture", "Edema"], [0, NAN, 1]),
        (judged(Edema=0.5), ["Edema"], [1]),
        (judged(Edema=0.49), ["Edema"], [0]),
        (judged(Edema=0.1) + judged(Edema=0.9) + judged(Edema=0.2), ["Edema", "Lung Opacity"], [1, 1]),
        # a kind that is there says what it is a kind of, all the way up; none of all kinds, and no other way
        (judged(Pneumonia=1.0), ["Consolidation", "Lung Opacity", "Edema"], [1, 1, NAN]),
        (judged(Mass=0.0, Nodule=0.0), ["Lung Lesion", "Lung Opacity"], [0, NAN]),
        (judged(Pneumonia=0.0), ["Lung Opacity"], [NAN]),
        (judged(No_Finding=1.0), ["Edema", "Mass", "Support Devices", "No Finding"], [0, 0, NAN, 1]),
        (judged(No_Finding=0.0), ["Edema"], [NAN]),
        # what is absent has no kinds
        (judged(Lung_Opacity=0.0), ["Pneumonia", "Mass", "Cardiomegaly"], [0, 0, NAN]),
        # a label of a release that is no finding of ours says nothing
        (judged(Edema=1.0) + judged(enlarged_hilum=0.0), ["Edema", "Mass"], [1, NAN]),
        (judged(Mass=0.0, Nodule=1.0), ["Lung Lesion", "Lung Opacity"], [1, 1]),
        (judged(Nodule=1.0, Mass=0.0), ["Lung Lesion", "Lung Opacity"], [1, 1]),
        (judged(Lung_Lesion=1.0), ["Mass", "Nodule"], [NAN, NAN]),
        (judged(Emphysema=1.0), ["Lung Opacity", "Emphysema"], [NAN, 1]),
        # what is judged itself is not overruled, nor does it stand between a kind and what is above
        (judged(Lung_Opacity=0.0, Edema=1.0), ["Lung Opacity"], [0]),
        (judged(Consolidation=0.0, Pneumonia=1.0), ["Consolidation", "Lung Opacity"], [0, 1]),
    ],
)
def test_targets_by_hand(findings, labels, expected):
    np.testing.assert_array_equal(targets(findings, labels), expected)


def test_present_from_moves_the_border():
    assert targets(judged(Edema=0.6), ["Edema", "Mass"], present_from=0.75)[0] == 0
    assert targets(judged(Edema=0.1), ["Edema", "Lung Opacity"], present_from=0.1) == [1, 1]


def test_targets_of_nih_labels():
    """15 names are judged on each film; CheXpert's that stand above them are not, and follow from them."""
    labels = ["Cardiomegaly", "Enlarged Cardiomediastinum", "Lung Opacity", "Lung Lesion", "Pleural Other", "Mass"]
    labels += ["Consolidation", "No Finding", "Fracture", "Hernia"]
    for released, expected in {
        "No Finding": [0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        "Cardiomegaly|Hernia": [1, 1, 0, 0, 0, 0, 0, 0, NAN, 1],
        "Mass|Pleural_Thickening": [0, 0, 1, 1, 1, 1, 0, 0, NAN, 0],
        "Infiltration": [0, 0, 1, 0, 0, 0, 0, 0, NAN, 0],
        "Pneumonia": [0, 0, 1, 0, 0, 0, 0, 0, NAN, 0],
    }.items():
        np.testing.assert_array_equal(targets(nih(released), labels), expected, err_msg=released)


def test_taught_are_findings_that_some_row_has_and_some_other_lacks(make_rows, make_row):
    rows = make_rows(
        make_row(0, findings=judged(Mass=1.0, Edema=1.0, Fracture=0.6, Pneumonia=1.0)),
        make_row(1, findings=None),
        make_row(2, findings=judged(Mass=0.0, Edema=1.0, Fracture=0.4, Hernia=0.0)),
        make_row(3, findings=judged(Mass=0.0) + judged(Edema=0.0) + judged(Edema=1.0)),
    )
    assert taught_findings(rows) == ["Fracture", "Mass"], "in no row is edema absent: one entry of three says present"
    assert taught_findings(rows, present_from=0.3) == ["Mass"]


# ---- items


def test_rows_become_items(items, make_row):
    rows = [
        make_row(0, findings=judged(Cardiomegaly=1.0), boxes=[box("Cardiomegaly", 0.25, 0.5, 0.75, 1.0)]),
        make_row(1, findings=judged(Cardiomegaly=0.0, Mass=1.0), scanpath=None, patient_id="p"),
    ]
    one, two = items(*rows, supervision=("gaze", "boxes"))
    assert one["pixel_values"].shape == (3, 32, 32)
    np.testing.assert_array_equal(one["labels"], [1, NAN, NAN])
    np.testing.assert_array_equal(two["labels"], [0, NAN, 1])
    columns = [rows[0]["scanpath"][name] for name in ("x", "y", "onset", "duration")]
    np.testing.assert_allclose(one["fixations"], np.stack(columns, axis=1), atol=1e-6)
    assert one["boxes"] == [([0.25, 0.5, 0.75, 1.0], 0)]
    assert two["fixations"] is None and two["boxes"] == []
    assert items(*rows).patients == ["film-0", "p"]
    np.testing.assert_allclose(items(*rows).prevalence, [0.5, NAN, 1])
    assert items(*rows)[0].keys() == {"pixel_values", "labels"}, "nothing else is asked for"
    assert "boxes" not in items(*rows, supervision=["gaze"])[0]


def test_films_are_what_the_processor_makes_of_them(items, make_row, classifier_processor):
    made = make_row(0)
    expected = classifier_processor(images=made["image"])["pixel_values"][0]
    np.testing.assert_allclose(items(made)[0]["pixel_values"], expected, atol=1e-5)


def test_transcripts_are_there_for_a_model_that_reads_them(items, make_row, make_classifier_config):
    told = [{"text": text, "start": 0.0, "end": 1.0} for text in ("The heart", " is large. ")]
    rows = [make_row(0, transcript=told), make_row(1)]
    reading = items(*rows, config=make_classifier_config("gaze_token"))
    assert [one["transcript"] for one in reading] == ["The heart is large.", ""]
    assert "transcript" not in items(*rows)[0]


@pytest.mark.parametrize(
    ("labels", "given", "expected"),
    [
        (["Mass"], box("Mass", 0, 0, 0.5, 0.5), [([0, 0, 0.5, 0.5], 0)]),
        (["Edema", "Mass", "Lung Lesion"], box("Mass", 0, 0, 0.5, 0.5), [([0, 0, 0.5, 0.5], 1)]),
        (["Edema", "Lung Lesion"], box("Mass", 0, 0, 0.5, 0.5), [([0, 0, 0.5, 0.5], 1)]),
        (["Lung Lesion"], box("Edema", 0, 0, 0.5, 0.5), []),
        (["Edema"], box("cardiac silhouette", 0, 0, 0.5, 0.5), []),
        (["Edema"], box("chest", 0, 0, 0.5, 0.5), []),
        (["Edema"], box("Emphysema", 0, 0, 0.5, 0.5), []),
        (["Edema"], box("Edema", -0.25, 0.5, 0.5, 1.125), [([0, 0.5, 0.5, 1], 0)]),
        (["Edema"], box("Edema", 0, 0, 1, 1, certainty=0.5), [([0, 0, 1, 1], 0)]),
        (["Edema"], box("Edema", 0, 0, 1, 1, certainty=0.25), []),
    ],
)
def test_boxes_are_of_labels_and_cut_to_the_film(labels, given, expected, items, make_row):
    findings = [{"name": name, "certainty": 1.0, "label": None, "grade": None} for name in labels]
    made = items(make_row(0, findings=findings, boxes=[given]), labels=labels, supervision=["boxes"])
    assert made[0]["boxes"] == made.boxes[0] == expected


def test_present_from_is_that_of_labels_and_of_boxes(items, make_row):
    row = make_row(0, findings=judged(Edema=0.4), boxes=[box("Edema", 0, 0, 1, 1, certainty=0.4)])
    for border, label, count in ((0.5, 0, 0), (0.3, 1, 1)):
        one = items(row, labels=["Edema"], supervision=["boxes"], present_from=border)[0]
        assert one["labels"].tolist() == [label] and len(one["boxes"]) == count


# ---- augmentation


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    left=st.integers(18, 60), top=st.integers(18, 60), width=st.integers(16, 22), height=st.integers(16, 22),
    seed=st.integers(0, 10**6), dark=st.booleans(),
)  # fmt: skip
def test_film_box_and_gaze_go_through_one_view(
    left, top, width, height, seed, dark, items, make_row, classifier_processor
):
    """A bright (or dark) box on a film of 100 pixels stays where its box and the fixation in its middle are."""
    classifier_processor.image_processor.size = {"height": 64, "width": 64}
    film = np.full((100, 100), 200 if dark else 60, np.uint8)
    film[top : top + height, left : left + width] = 60 if dark else 200
    edges = np.array([left, top, left + width, top + height]) / 100
    middle = (edges[:2] + edges[2:]) / 2
    row = make_row(
        0, image=Image.fromarray(film), findings=judged(Mass=1.0), boxes=[box("Mass", *edges)], scanpath=path(middle)
    )
    one = items(row, labels=["Mass"], supervision=("gaze", "boxes"), augment=True, seed=seed)[0]
    grey = one["pixel_values"][0].numpy()
    marked = (grey > (grey.min() + grey.max()) / 2) != dark
    y, x = np.nonzero(marked)
    ((found, label),) = one["boxes"]
    seen = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / 64
    np.testing.assert_allclose(seen, found, atol=1.6 / 64)
    np.testing.assert_allclose(one["fixations"][0, :2], np.add(found[:2], found[2:]) / 2, atol=1e-5)
    assert one["fixations"][0, 2:].tolist() == [0, 1] and label == 0


def test_views_mirror_and_crop_and_films_change_their_contrast(items, make_row):
    """So that the test above has something to see."""
    row = make_row(0, findings=judged(Mass=1.0), boxes=[box("Mass", 0.25, 0.25, 0.5, 0.5)])
    drawn = [items(row, labels=["Mass"], supervision=["boxes"], augment=True, seed=seed)[0] for seed in range(20)]
    lefts, widths = zip(*((one["boxes"][0][0][0], one["boxes"][0][0][2] - one["boxes"][0][0][0]) for one in drawn),
                        strict=True)  # fmt: skip
    assert min(lefts) < 0.3 and max(lefts) > 0.45, "some are mirrored"
    assert len({round(width, 6) for width in widths}) == 20 and max(widths) > 0.27, "each is cropped otherwise"
    flat = make_row(0, image=Image.new("L", (16, 16), 128), findings=judged(Mass=1.0))
    greys = {
        float(items(flat, labels=["Mass"], augment=True, seed=seed)[0]["pixel_values"][0].mean()) for seed in range(9)
    }
    assert len(greys) > 5 and max(greys) - min(greys) > 0.1


def test_draws_depend_on_seed_epoch_and_item_only(items, make_row):
    rows = [make_row(number, image=make_row(0)["image"]) for number in range(4)]

    def drawn(order, epoch=0, **options):
        made = items(*rows, augment=True, **options)
        made.set_epoch(epoch)
        return {item: made[item]["pixel_values"].numpy().tobytes() for item in order}

    whole = drawn(range(4))
    assert drawn([3, 1, 1, 0, 2]) == whole
    assert len(set(whole.values())) == 4, "the same film in another place is seen otherwise"
    assert not set(drawn(range(4), epoch=1).values()) & set(whole.values())
    assert not set(drawn(range(4), seed=1).values()) & set(whole.values())
    torch.manual_seed(5)
    assert drawn(range(4)) == whole


def test_nothing_is_drawn_in_evaluation(items, make_row):
    made = items(make_row(0, boxes=[box("Cardiomegaly", 0.25, 0.25, 0.5, 0.5)]), supervision=("gaze", "boxes"))
    first = made[0]
    made.set_epoch(7)
    assert torch.equal(made[0]["pixel_values"], first["pixel_values"])
    assert np.array_equal(made[0]["fixations"], first["fixations"])
    assert made[0]["boxes"] == [([0.25, 0.25, 0.5, 0.5], 0)]


# ---- what is left out, and what is refused


def test_rows_without_a_film_or_a_judged_label_are_left_out_and_counted(items, make_row, caplog):
    caplog.set_level(logging.INFO, "gaze_vlm")
    rows = [
        make_row(0, image=None),
        make_row(1, findings=None),
        make_row(2, findings=judged(Fracture=1.0)),
        make_row(3, boxes=[box("Cardiomegaly", 0, 0, 1, 1)]),
        make_row(4, scanpath=None),
    ]
    made = items(*rows, supervision=["gaze"])
    assert len(made) == 2 and made.patients == ["film-3", "film-4"]
    for number in (0, 1):
        film = items(rows[3 + number])[0]["pixel_values"]
        assert torch.equal(made[number]["pixel_values"], film), "the film of its own row"
    assert "2 of 5 rows; with gaze: 1, with boxes of a label: 1" in caplog.text
    assert "3 rows left out: no image, or no label is judged" in caplog.text


BOX = "box {} of Mass is no area on the film; x1, y1, x2, y2 are 0..1 of it"
PIXELS = path((112.0, 60.0), (20.0, 200.0))
OFF = "none of its 2 fixations lies on the film (x to 112, y to 200); they are 0..1 of it, as gaze on an image of "


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"findings": judged(Cancer=1.0)}, "finding 'Cancer' is in no vocabulary of gaze_vlm.findings"),
        ({"boxes": [box("heart", 0, 0, 1, 1)]}, "box of 'heart', which is neither a finding nor a region"),
        ({"boxes": [box("Mass", 0.5, 0.25, 0.5, 0.75)]}, BOX.format("0.5, 0.25, 0.5, 0.75")),
        ({"boxes": [box("Mass", 0.75, 0.25, 0.5, 0.75)]}, BOX.format("0.75, 0.25, 0.5, 0.75")),
        ({"boxes": [box("Mass", 1.0, 0, 1.5, 0.75)]}, BOX.format("1, 0, 1.5, 0.75")),
        ({"boxes": [box("Mass", 30, 40, 100, 200)]}, BOX.format("30, 40, 100, 200")),
        ({"boxes": [box("Mass", 0, 0, 100, 200)]}, BOX.format("0, 0, 100, 200")),
        ({"boxes": [box("Mass", NAN, 0, 0.5, 0.5)]}, BOX.format("nan, 0, 0.5, 0.5")),
        ({"scanpath": PIXELS}, OFF + "another size is not"),
        ({"scanpath": path((0.5, 0.5)) | {"duration": [-1.0]}}, "fixation 0: duration is -1 s, below zero"),
        ({"scanpath": path((0.5, NAN))}, "fixation 0: y is nan, not a finite number"),
        ({"scanpath": path((0.5, 0.5)) | {"duration": []}}, "x, y, onset and duration must be of one length"),
    ],
)
@pytest.mark.parametrize("supervision", [(), ("gaze", "boxes")])
def test_what_is_wrong_is_named_with_its_row(known, said, supervision, items, make_row):
    with pytest.raises(ValueError) as refused:
        items(make_row(0), make_row(1, **known), labels=["Mass", "Cardiomegaly"], supervision=supervision)
    assert str(refused.value).startswith(f"row 1 (image film-1): {said}")
    assert "\n" not in str(refused.value)


def test_gaze_that_is_partly_off_the_film_is_kept(items, make_row):
    made = items(make_row(0, scanpath=path((1.5, 0.5), (0.5, 0.5), (-3, 0))), supervision=["gaze"])
    assert made[0]["fixations"][:, 0].tolist() == [1.5, 0.5, -3]


def test_wrong_arguments_are_refused(items, make_row):
    with pytest.raises(ValueError, match="label 'LABEL_1' is no finding; allowed: Enlarged"):
        items(make_row(0), labels=["Edema", "LABEL_1"])
    with pytest.raises(ValueError, match="supervision 'both'; allowed: gaze, boxes"):
        items(make_row(0), supervision=["both"])
    with pytest.raises(ValueError, match="none of 2 rows has an image and a finding that is judged"):
        items(make_row(0, image=None), make_row(1, findings=None))


# ---- batches


def item(boxes=(), fixations=None, **more) -> dict:
    given = {"pixel_values": torch.zeros(3, 32, 32), "labels": torch.tensor([1.0, 0.0, NAN])}
    return {**given, "boxes": list(boxes), "fixations": fixations, **more}


@pytest.fixture
def collator(classifier_processor, make_classifier_config):
    return lambda version="plain", **changes: ClassifierCollator(
        classifier_processor, make_classifier_config(version, **changes)
    )


def test_boxes_and_fixations_are_padded(collator):
    gaze = np.arange(8, dtype=np.float32).reshape(2, 4)
    boxes = [([0.1, 0.2, 0.3, 0.4], 2), ([0.0, 0.0, 1.0, 1.0], 0)]
    batch = collator()([item(boxes, gaze), item(), item(boxes[:1], gaze[:1])])
    assert batch["box_labels"].tolist() == [[2, 0], [-1, -1], [2, -1]]
    assert batch["box_labels"].dtype == torch.int64 and batch["boxes"].dtype == torch.float32
    np.testing.assert_allclose(batch["boxes"][0], [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]])
    np.testing.assert_allclose(batch["boxes"][2, 0], [0.1, 0.2, 0.3, 0.4])
    assert not batch["boxes"][1].any()
    assert batch["fixation_mask"].tolist() == [[True, True], [False, False], [True, False]]
    np.testing.assert_array_equal(batch["fixations"][0], gaze)
    assert batch["labels"].shape == (3, 3) and batch["pixel_values"].shape == (3, 3, 32, 32)


def test_a_batch_without_any_has_room_for_one(collator):
    batch = collator()([item(), item()])
    assert batch["boxes"].shape == (2, 1, 4) and batch["box_labels"].tolist() == [[-1], [-1]]
    assert batch["fixations"].shape == (2, 1, 4) and not batch["fixation_mask"].any()


def test_what_is_not_asked_for_is_not_in_the_batch(collator):
    bare = {"pixel_values": torch.zeros(3, 32, 32), "labels": torch.zeros(3)}
    assert collator()([bare]).keys() == {"pixel_values", "labels"}


def test_finding_texts_are_there_for_a_model_that_learns_from_them(collator, classifier_processor):
    batch = collator("contrastive")([item()])
    assert batch["finding_text"].shape == batch["finding_text_mask"].shape
    said = [
        classifier_processor.tokenizer.decode(text[mask.bool()])
        for text, mask in zip(batch["finding_text"], batch["finding_text_mask"], strict=True)
    ]
    assert said == ["cardiomegaly", "pleural effusion", "lung lesion"]
    for version, changes in (("plain", {}), ("gaze_token", {}), ("contrastive", {"text_loss_weight": 0.0})):
        assert "finding_text" not in collator(version, **changes)([item()])


def test_an_empty_transcript_is_absent(collator, classifier_processor):
    batch = collator("gaze_token")([item(transcript=text) for text in ("Clear lungs.", "", "The heart. " * 90)])
    mask = batch["transcript_mask"]
    assert mask.shape == batch["transcript"].shape == (3, 128), "cut"
    assert mask.bool().any(1).tolist() == [True, False, True]
    assert classifier_processor.tokenizer.decode(batch["transcript"][0][mask[0].bool()]) == "Clear lungs."
    assert "transcript" not in collator("gaze_token")([item(transcript=""), item(transcript="")])


def test_an_empty_transcript_is_absent_for_a_tokenizer_that_makes_tokens_of_nothing(make_classifier_config):
    from types import SimpleNamespace

    def framed(texts, **options):
        ids = torch.full((len(texts), 4), 2)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    batch = ClassifierCollator(SimpleNamespace(tokenizer=framed), make_classifier_config("gaze_token"))(
        [item(transcript="a"), item(transcript="")]
    )
    assert batch["transcript_mask"].tolist() == [[1] * 4, [0] * 4]


@pytest.mark.parametrize("version", ["plain", "contrastive", "gaze_token"])
@pytest.mark.parametrize("told", ["all", "one", "none"])
def test_models_take_the_batches(version, told, items, make_row, make_classifier, classifier_processor):
    model = make_classifier(version).train()
    words = [{"text": "The heart is normal.", "start": 0.0, "end": 1.0}]
    rows = [
        make_row(0, boxes=[box("Cardiomegaly", 0, 0, 0.5, 0.5)], transcript=None if told == "none" else words),
        make_row(1, scanpath=None, findings=judged(Cardiomegaly=0.0), transcript=words if told == "all" else None),
        make_row(2, boxes=[box("Mass", 0, 0, 1, 1)] * 2, transcript=words if told == "all" else None),
    ]
    made = items(*rows, config=model.config, supervision=("gaze", "boxes"), augment=True)
    outputs = model(**ClassifierCollator(classifier_processor, model.config)([made[n] for n in range(3)]))
    assert outputs.loss.isfinite() and outputs.logits.shape == (3, 3) and outputs.attention.shape == (3, 3, 4, 4)
    expected = {"classification", "gaze", "boxes"} | ({"text", "region"} if version == "contrastive" else set())
    expected |= {"region"} if version == "plain" else set()
    assert outputs.loss_parts.keys() == expected
    assert outputs.loss_parts["gaze"] > 0 and outputs.loss_parts["boxes"] > 0
