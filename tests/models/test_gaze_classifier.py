import math
from types import SimpleNamespace

import pytest
import torch

from gaze_vlm import GazeClassifierConfig
from gaze_vlm.models.classifier_losses import box_map, peak

TERMS = ("mse_weight", "kl_weight", "pearson_weight", "center_weight")
ATTENTION = torch.tensor([[[0.4, 0.3], [0.2, 0.1]]])
GAZE = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
# by hand for these two maps: mean of .75², .25², .25², .75² of the maps over their peaks; sum of p ln(p / q); the maps
# are opposite; the centres of mass are (.45, .40) and (.55, .60)
BY_HAND = {
    "mse_weight": 0.3125,
    "kl_weight": 0.3 * math.log(4) + 0.1 * math.log(1.5),
    "pearson_weight": 2.0,
    "center_weight": math.hypot(0.1, 0.2),
}


@pytest.fixture
def only(make_gaze_classifier):
    """A classifier whose attention loss has one term."""
    return lambda term, **kwargs: make_gaze_classifier(**{name: float(name == term) for name in TERMS}, **kwargs)


@pytest.mark.parametrize("term", TERMS)
def test_each_term_of_the_attention_loss_by_hand(only, term):
    loss = only(term).attention_loss(ATTENTION, GAZE, torch.ones(1))
    assert loss.item() == pytest.approx(BY_HAND[term], abs=1e-5)


def test_terms_are_weighted_and_summed(make_gaze_classifier):
    weights = dict(zip(TERMS, (1.0, 2.0, 3.0, 4.0), strict=True))
    loss = make_gaze_classifier(**weights).attention_loss(ATTENTION, GAZE, torch.ones(1))
    assert loss.item() == pytest.approx(sum(weights[term] * BY_HAND[term] for term in TERMS), abs=1e-5)


@pytest.mark.parametrize("term", TERMS)
def test_each_term_is_zero_at_equality(only, term):
    maps = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    maps = maps / maps.sum((1, 2), keepdim=True)
    assert only(term).attention_loss(maps, maps, torch.ones(3)).item() == pytest.approx(0, abs=5e-6)


def test_kl_does_not_mind_cells_nobody_looked_at(only):
    target = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])
    loss = only("kl_weight").attention_loss(torch.full((1, 2, 2), 0.25), target, torch.ones(1))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_trust_weighs_samples(only):
    model = only("mse_weight")
    attention, target = torch.cat([ATTENTION, GAZE]), torch.cat([GAZE, GAZE])
    for trust, expected in (([1.0, 1.0], 0.5), ([1.0, 0.25], 0.8), ([0.0, 1.0], 0.0), ([0.0, 0.0], 0.0)):
        loss = model.attention_loss(attention, target, torch.tensor(trust))
        assert loss.item() == pytest.approx(expected * BY_HAND["mse_weight"], abs=1e-5), trust


def gaze_of(*kinds):
    """One scanpath a film: none, one point, many points, or a look off the film."""
    fixations, mask = torch.zeros(len(kinds), 3, 4), torch.zeros(len(kinds), 3, dtype=torch.bool)
    for row, kind in enumerate(kinds):
        count = {"none": 0, "zero": 2, "point": 1, "off": 1, "many": 3}[kind]
        mask[row, :count] = True
        fixations[row, :count, :2] = torch.rand(count, 2, generator=torch.Generator().manual_seed(row))
        fixations[row, :count, 3] = 0.0 if kind == "zero" else 0.5
        if kind == "off":
            fixations[row, 0, :2] = 9.0
    return {"fixations": fixations, "fixation_mask": mask}


@pytest.mark.parametrize("attention", ["per_class", "shared"])
@pytest.mark.parametrize("kinds", [("none", "none"), ("zero", "off"), ("point", "point"), ("many", "none")])
def test_loss_and_gradients_are_finite_whatever_the_gaze(make_gaze_classifier, make_films, kinds, attention):
    model = make_gaze_classifier(attention=attention)
    absent = {"boxes": torch.zeros(2, 1, 4), "box_labels": torch.full((2, 1), -1)}
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    outputs = model(make_films(2), labels=labels, **gaze_of(*kinds), **absent)
    assert outputs.loss.isfinite()
    assert outputs.loss_parts["boxes"] == 0
    if "point" not in kinds and "many" not in kinds:
        assert outputs.loss_parts["gaze"] == outputs.loss_parts["region"] == 0
    outputs.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_sample_without_gaze_changes_nothing_in_the_gaze_terms(make_gaze_classifier, make_films):
    model, films = make_gaze_classifier(), make_films(3)
    torch.nn.init.normal_(model.pooling.query)
    with torch.no_grad():
        two = model(films[:2], **gaze_of("many", "point")).loss_parts
        for kind in ("none", "zero", "off"):
            three = model(films, **gaze_of("many", "point", kind)).loss_parts
            assert two.keys() == three.keys() == {"gaze", "region"}
            for name in two:
                torch.testing.assert_close(three[name], two[name])
                assert two[name] > 0


def test_gaze_teaches_the_maps_of_present_findings(make_gaze_classifier, make_films):
    model = make_gaze_classifier(contrastive_loss_weight=0.0)
    labels = torch.tensor([[0.0, 1, 0], [torch.nan, 1, 0]])
    model(make_films(2), labels=labels, **gaze_of("many", "point")).loss_parts["gaze"].backward()
    taught = model.pooling.query.grad.abs().sum(1) > 0
    assert taught.tolist() == [False, True, False]


def test_gaze_teaches_attention_to_look_there(make_gaze_classifier, make_films):
    model = make_gaze_classifier(attention="shared")
    films, gaze = make_films(1), {"fixations": torch.tensor([[[0.9, 0.1, 0.0, 1.0]]])}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model(films, **gaze).loss.backward()
        optimizer.step()
    attention = model(films).attention[0, 0]
    assert attention.shape == (4, 4) and attention.flatten().argmax() == 3


def test_unknown_labels_are_left_out(make_gaze_classifier, make_films):
    model, films = make_gaze_classifier(), make_films(2)
    labels = torch.tensor([[1.0, torch.nan, 0], [torch.nan, 0, 1]])
    outputs = model(films, labels=labels)
    known = ~labels.isnan()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits[known], labels[known])
    torch.testing.assert_close(outputs.loss, expected)
    outputs.logits.retain_grad()
    outputs.loss.backward()
    assert outputs.logits.grad[~known].eq(0).all() and outputs.logits.grad[known].ne(0).all()
    assert model(films, labels=torch.full((2, 3), torch.nan)).loss == 0


def test_labels_of_another_shape_are_named(make_gaze_classifier, make_films):
    with pytest.raises(ValueError, match=r"labels: \(2, 5\), logits: \(2, 3\)"):
        make_gaze_classifier()(make_films(2), labels=torch.zeros(2, 5))


def test_without_anything_to_learn_there_is_no_loss(make_gaze_classifier, make_films):
    outputs = make_gaze_classifier()(make_films(2))
    assert outputs.loss is None and outputs.loss_parts is None
    assert outputs.logits.shape == (2, 3) and outputs.attention.shape == (2, 3, 4, 4)
    torch.testing.assert_close(outputs.attention.sum((-2, -1)), torch.ones(2, 3))
    torch.testing.assert_close(outputs.image_embeds.norm(dim=-1), torch.ones(2))


def test_finding_text_needs_a_text_tower(make_gaze_classifier, make_films):
    with pytest.raises(ValueError, match="text_config"):
        make_gaze_classifier()(make_films(1), finding_text=torch.ones(1, 2, dtype=torch.long))


def test_box_map_by_hand():
    boxes = torch.tensor([[0.25, 0.0, 0.75, 1.0], [0.0, 0.5, 0.5, 0.75], [0.5, 0.5, 0.5, 0.5]])
    expected = [[[0.5, 0.5], [0.5, 0.5]], [[0.0, 0.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert box_map(boxes, (2, 2)).tolist() == expected


def test_boxes_of_one_finding_are_one_target(make_gaze_classifier, make_films):
    model = make_gaze_classifier()
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]])
    target = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]) / 8
    outputs = model(make_films(1), boxes=boxes, box_labels=torch.tensor([[2, 2, -1]]))
    expected = model.attention_loss(outputs.attention[:, 2], target[None], torch.ones(1))
    torch.testing.assert_close(outputs.loss_parts["boxes"], expected)


def test_boxes_need_labels(make_gaze_classifier, make_films):
    with pytest.raises(ValueError, match="box_labels"):
        make_gaze_classifier()(make_films(1), boxes=torch.zeros(1, 1, 4))


def test_samples_with_equal_labels_are_positives_of_each_other(make_gaze_classifier):
    model = make_gaze_classifier()
    torch.nn.init.zeros_(model.logit_scale)
    left, right = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    labels = torch.tensor([[1.0, torch.nan], [1.0, torch.nan], [1.0, 0.0]])  # unknown is not absent
    scores = left @ right.T
    expected = -sum((scores.log_softmax(dim)[:2, :2].sum() / 2 + scores.log_softmax(dim)[2, 2]) / 3 for dim in (0, 1))
    torch.testing.assert_close(model._contrastive_loss(left, right, labels), expected / 2)
    # crossed positives are not rewarded when every sample is its own class
    assert model._contrastive_loss(left, right, None) > expected / 2


def test_the_curriculum_grows_to_one():
    config = GazeClassifierConfig(gaze_warmup_steps=10)
    assert [config.gaze_scale(step) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert GazeClassifierConfig().gaze_scale(0) == 1.0


def test_gaze_scale_weighs_what_gaze_teaches(make_gaze_classifier, make_films):
    model = make_gaze_classifier(gaze_loss_weight=2.0, contrastive_loss_weight=0.5)
    inputs = {"labels": torch.tensor([[1.0, 0, 0], [0, 0, 1]]), **gaze_of("many", "point")}
    for scale in (0.0, 0.25):
        model.gaze_scale = scale
        outputs = model(make_films(2), **inputs)
        parts = outputs.loss_parts
        expected = parts["classification"] + scale * (2 * parts["gaze"] + 0.5 * parts["region"])
        torch.testing.assert_close(outputs.loss, expected)


def test_findings_are_records_with_thresholds_and_boxes(classifier_processor, make_gaze_classifier):
    config = make_gaze_classifier(thresholds=[0.9, 0.2, 0.5], temperature=2.0).config
    attention = torch.zeros(1, 3, 4, 5)
    attention[0, 0, 1, 2] = 1.0
    attention[0, 1, 0, 0], attention[0, 1, 2, 4], attention[0, 1, 3, 3] = 0.4, 0.35, 0.19
    attention[0, 2] = 0.05
    outputs = SimpleNamespace(logits=torch.tensor([[2.0, -2.0, 0.0]]), attention=attention)
    records = classifier_processor.post_process_findings(outputs, config)[0]
    assert [record["name"] for record in records] == ["Cardiomegaly", "Effusion", "Nodule"]
    assert [record["probability"] for record in records] == pytest.approx([0.731059, 0.268941, 0.5], abs=1e-5)
    assert [record["present"] for record in records] == [False, True, True]
    assert [record["box"] for record in records] == [[0.4, 0.25, 0.6, 0.5], [0, 0, 1, 0.75], [0, 0, 1, 1]]
    shared = SimpleNamespace(logits=outputs.logits, attention=attention[:, :1])
    assert all(
        r["box"] == [0.4, 0.25, 0.6, 0.5] for r in classifier_processor.post_process_findings(shared, config)[0]
    )


def test_processor_names_finding_texts(classifier_processor):
    no, effusion, nodule = classifier_processor.tokenizer.convert_tokens_to_ids(["no", "effusion", "nodule"])
    batch = classifier_processor(text=["no effusion", "nodule"], padding=True, return_tensors="pt")
    assert batch["finding_text"].tolist() == [[no, effusion], [nodule, 0]]
    assert batch["finding_text_mask"].tolist() == [[1, 1], [1, 0]]


def test_peak_is_one_or_nothing():
    assert peak(torch.tensor([[[0.2, 0.4]], [[0.0, 0.0]]])).tolist() == [[[0.5, 1.0]], [[0.0, 0.0]]]
