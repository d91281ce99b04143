"""GazeClassifier: what each switch of its config does, what is read, and what teaches what."""

from types import SimpleNamespace

import pytest
import torch

from gaze_vlm import GazeClassifier, GazeClassifierConfig
from gaze_vlm.models.classifier_losses import attention_loss, info_nce
from gaze_vlm.models.gaze_maps import density_map
from gaze_vlm.models.modeling_gaze_classifier import unit_vectors

LABELS = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
TEXTS = torch.tensor([[6, 7], [8, 0], [9, 10]])
TEXT_MASK = torch.tensor([[1, 1], [1, 0], [1, 1]])
BERT = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def gaze_of(*kinds):
    """One scanpath a film: none, no time at all, one point, many points, or a look off the film."""
    fixations, mask = torch.zeros(len(kinds), 3, 4), torch.zeros(len(kinds), 3, dtype=torch.bool)
    for row, kind in enumerate(kinds):
        count = {"none": 0, "zero": 2, "point": 1, "off": 1, "many": 3}[kind]
        mask[row, :count] = True
        fixations[row, :count, :2] = torch.rand(count, 2, generator=torch.Generator().manual_seed(row))
        fixations[row, :count, 3] = 0.0 if kind == "zero" else 0.5
        if kind == "off":
            fixations[row, 0, :2] = 9.0
    return {"fixations": fixations, "fixation_mask": mask}


GIVEN = {
    "gaze": gaze_of("many", "point"),
    "boxes": {
        "boxes": torch.tensor([[[0.1, 0.2, 0.6, 0.7]], [[0.5, 0.5, 1.0, 0.9]]]),
        "box_labels": torch.tensor([[0], [2]]),
    },
    "transcript": {"transcript": torch.tensor([[6, 7], [8, 9]]), "transcript_mask": torch.tensor([[1, 1], [1, 0]])},
    "text": {"finding_text": TEXTS, "finding_text_mask": TEXT_MASK},
}
READ = {"gaze": "gaze_input", "boxes": "box_input", "transcript": "transcript_input"}
EVERYTHING = {name: value for given in GIVEN.values() for name, value in given.items()}


@pytest.fixture
def make_preset(make_vision_config):
    """`GazeClassifierConfig.contrastive` or `.gaze_token`, small, in eval mode and the same each time."""

    def make(preset: str, **overrides) -> GazeClassifier:
        sizes = {
            "fusion_size": 16,
            "fusion_heads": 2,
            "fusion_dropout": 0.0,
            "projection_dim": 16,
            "initializer_range": 0.2,
        }
        names = {"id2label": {0: "Cardiomegaly", 1: "Effusion", 2: "Nodule"}}
        towers = {"vision_config": make_vision_config("vit"), "text_config": BERT}
        config = getattr(GazeClassifierConfig, preset)(**{**sizes, **names, **towers, **overrides})
        torch.manual_seed(0)
        model = GazeClassifier(config).eval()
        for parameter in (model.pooling.query, *([model.gaze_token.to_query.weight] if model.gaze_token else [])):
            torch.nn.init.normal_(parameter)  # past the start, where attention is uniform
        return model

    return make


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: gradient.clone() for name, gradient in found.items() if gradient.any()}


# ---- what teaches


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


@pytest.mark.parametrize("preset", ["contrastive", "gaze_token"])
def test_a_sample_without_gaze_changes_nothing_in_the_gaze_terms(make_preset, make_films, preset):
    model, films = make_preset(preset, region_loss_weight=0.1), make_films(3)
    two = model(films[:2], **gaze_of("many", "point"))
    assert two.loss_parts.keys() == {"gaze", "region"} and all(part > 0 for part in two.loss_parts.values())
    expected = gradients(model, two.loss)
    for kind in ("none", "zero", "off"):
        three = model(films, **gaze_of("many", "point", kind))
        for name, part in two.loss_parts.items():
            torch.testing.assert_close(three.loss_parts[name], part)
        found = gradients(model, three.loss)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_gaze_teaches_the_maps_of_present_findings(make_gaze_classifier, make_films):
    model = make_gaze_classifier(region_loss_weight=0.0)
    labels = torch.tensor([[0.0, 1, 0], [torch.nan, 1, 0]])
    model(make_films(2), labels=labels, **gaze_of("many", "point")).loss_parts["gaze"].backward()
    taught = model.pooling.query.grad.abs().sum(1) > 0
    assert taught.tolist() == [False, True, False]


def test_gaze_of_a_film_without_a_finding_teaches_all_maps(make_gaze_classifier, make_films):
    for labels in (torch.zeros(2, 3), torch.full((2, 3), torch.nan), None):
        model = make_gaze_classifier()
        model(make_films(2), labels=labels, **gaze_of("many", "point")).loss_parts["gaze"].backward()
        assert (model.pooling.query.grad.abs().sum(1) > 0).all()


def test_the_gaze_term_is_the_attention_loss_of_what_was_looked_at(make_preset, make_films):
    model, gaze = make_preset("contrastive"), gaze_of("many", "point")
    outputs = model(make_films(2), labels=torch.tensor([[1.0, 0, 1], [0, 0, 0]]), **gaze)
    looked = torch.stack([outputs.attention[0, [0, 2]].mean(0), outputs.attention[1].mean(0)])
    target = density_map(*gaze.values(), (4, 4), model.config.gaze_sigma, normalize=True)
    for trust in ([1.0, 1.0], [1.0, 0.2]):
        outputs = model(
            make_films(2), labels=torch.tensor([[1.0, 0, 1], [0, 0, 0]]), **gaze, gaze_trust=torch.tensor(trust)
        )
        expected = attention_loss(model.config, looked, target, torch.tensor(trust))
        torch.testing.assert_close(outputs.loss_parts["gaze"], expected)


def test_trust_comes_from_the_recording_where_it_is_not_given(make_preset, make_films):
    model, gaze = make_preset("contrastive", trust_fixations=3), gaze_of("many", "point")
    own = model(make_films(2), **gaze).loss_parts["gaze"]
    given = model(make_films(2), **gaze, gaze_trust=torch.tensor([1.0, 1 / 3])).loss_parts["gaze"]
    torch.testing.assert_close(own, given)
    assert own != model(make_films(2), **gaze, gaze_trust=torch.ones(2)).loss_parts["gaze"]


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


def test_boxes_of_one_finding_are_one_target(make_gaze_classifier, make_films):
    model = make_gaze_classifier()
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]])
    target = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]) / 8
    outputs = model(make_films(1), boxes=boxes, box_labels=torch.tensor([[2, 2, -1]]))
    expected = attention_loss(model.config, outputs.attention[:, 2], target[None], torch.ones(1))
    torch.testing.assert_close(outputs.loss_parts["boxes"], expected)


def test_boxes_that_overlap_count_once(make_gaze_classifier, make_films):
    model, film = make_gaze_classifier(), make_films(1)
    one = model(film, boxes=torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]), box_labels=torch.tensor([[1]]))
    halves = torch.tensor([[[0.0, 0.0, 0.5, 0.75], [0.0, 0.25, 0.5, 1.0]]])
    two = model(film, boxes=halves, box_labels=torch.tensor([[1, 1]]))
    torch.testing.assert_close(two.loss, one.loss)


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


def test_finding_texts_belong_to_the_images_in_which_they_are_present(make_preset, make_films):
    model = make_preset("contrastive")
    labels = torch.tensor([[1.0, 0.6, 0], [torch.nan, 0.4, 1]])
    outputs = model(make_films(2), labels=labels, **GIVEN["text"])
    texts = model.get_text_features(TEXTS, TEXT_MASK)
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(texts[1:2], model.get_text_features(TEXTS[1:2, :1]))  # padding is not read
    positive = torch.tensor([[True, True, False], [False, False, True]])
    known = torch.tensor([[True, True, True], [False, True, True]])
    expected = info_nce(outputs.image_embeds @ texts.T * model.logit_scale.exp(), positive, known)
    torch.testing.assert_close(outputs.loss_parts["text"], expected)
    assert model.logit_scale.item() == pytest.approx(2.6592)


def test_the_region_is_what_was_looked_at_and_what_is_boxed_where_nobody_looked(make_preset, make_films):
    model = make_preset("contrastive")
    gaze = gaze_of("many", "none")
    outputs = model(make_films(2), **gaze, **GIVEN["boxes"])
    tokens = model.norm(model.vision_tower(make_films(2)).last_hidden_state[:, 1:])
    looked = density_map(*gaze.values(), (4, 4), model.config.gaze_sigma, normalize=True)[0]
    boxed = torch.zeros(4, 4)
    boxed[2, 2:], boxed[3, 2:] = 1.0, 0.6  # down to 0.9
    regions = torch.stack([looked, boxed / boxed.sum()]).flatten(1)
    seen = unit_vectors(model.image_projection(torch.einsum("bp,bpd->bd", regions, tokens)))
    own, every = torch.eye(2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    expected = info_nce(outputs.image_embeds @ seen.T * model.logit_scale.exp(), own, every)
    torch.testing.assert_close(outputs.loss_parts["region"], expected, rtol=1e-4, atol=1e-5)


def test_gaze_scale_weighs_what_gaze_and_boxes_teach(make_preset, make_films):
    weights = {"gaze": 2.0, "box": 3.0, "region": 0.5, "text": 0.25}
    model = make_preset("contrastive", **{f"{name}_loss_weight": weight for name, weight in weights.items()})
    for scale in (0.0, 0.25):
        model.gaze_scale = scale
        outputs = model(make_films(2), labels=LABELS, **EVERYTHING)
        parts = outputs.loss_parts
        taught = 2 * parts["gaze"] + 3 * parts["boxes"] + 0.5 * parts["region"]
        torch.testing.assert_close(outputs.loss, parts["classification"] + 0.25 * parts["text"] + scale * taught)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("grow", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("fade", [1.0, 1.0, 1.0, 0.5, 0.0]),
    ],
)
def test_the_curriculum(schedule, expected):
    config = GazeClassifierConfig(gaze_schedule=schedule, gaze_schedule_share=0.4)
    assert [config.gaze_scale(done) for done in (0.0, 0.2, 0.5, 0.8, 1.0)] == pytest.approx(expected)


# ---- switches


@pytest.mark.parametrize(
    ("weight", "part"),
    [
        ("gaze_loss_weight", "gaze"),
        ("box_loss_weight", "boxes"),
        ("text_loss_weight", "text"),
        ("region_loss_weight", "region"),
    ],
)
@pytest.mark.parametrize("preset", ["contrastive", "gaze_token"])
def test_a_loss_of_weight_0_is_switched_off(make_preset, make_films, preset, weight, part):
    every = {"gaze_loss_weight": 1.0, "box_loss_weight": 1.0, "text_loss_weight": 0.1, "region_loss_weight": 0.1}
    full = make_preset(preset, **every)(make_films(2), labels=LABELS, **EVERYTHING)
    assert full.loss_parts.keys() == {"classification", "gaze", "boxes", "text", "region"}
    model = make_preset(preset, **{**every, weight: 0.0})
    outputs = model(make_films(2), labels=LABELS, **EVERYTHING)
    assert outputs.loss_parts.keys() == full.loss_parts.keys() - {part}
    torch.testing.assert_close(outputs.loss, full.loss - every[weight] * full.loss_parts[part])
    if part == "text" and preset == "contrastive":
        assert not [name for name in gradients(model, outputs.loss) if name.startswith("text_")]


def test_labels_alone_teach_nothing_but_the_classifier(make_preset, make_films):
    model = make_preset("contrastive")
    moved = gradients(model, model(make_films(2), labels=LABELS).loss)
    others = ("text_", "image_projection", "logit_scale")
    assert moved and not [name for name in moved if name.startswith(others)]


def test_the_second_version_is_the_first_with_its_switches(make_preset):
    first, second = (make_preset(name).config for name in ("contrastive", "gaze_token"))
    changed = {name for name, value in second.to_dict().items() if value != first.to_dict()[name]}
    assert changed == {
        *("fusion_layers", "gaze_input", "box_input", "transcript_input", "gaze_schedule"),
        *("trust_on_image", "trust_fixations", "trust_seconds", "text_loss_weight", "region_loss_weight"),
    }
    assert make_preset("gaze_token", gaze_input=False).config.gaze_input is False


def test_without_fusion_layers_there_is_no_gaze_token(make_preset, make_films):
    off = {"fusion_layers": 0, "gaze_input": False, "box_input": False, "transcript_input": False}
    plain, first = make_preset("gaze_token", **off), make_preset("contrastive")
    assert plain.gaze_token is None
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in first.named_parameters()}
    torch.testing.assert_close(plain(make_films(2)).logits, first(make_films(2)).logits, rtol=0, atol=0)
    parts = [name for name, _ in make_preset("gaze_token").named_children()]
    assert {"gaze_token", "gaze_embedding", "box_embedding", "transcript_projection"} <= {*parts}
    layers = make_preset("gaze_token", fusion_layers=3).gaze_token.layers
    assert len(layers) == 3


def test_the_gaze_token_moves_the_attention_of_each_image(make_preset, make_films):
    model = make_preset("gaze_token", fusion_layers=1)
    before = model(make_films(2)).attention
    torch.nn.init.zeros_(model.gaze_token.to_query.weight)
    assert not torch.allclose(model(make_films(2)).attention, before, atol=1e-4)


# ---- what is read


@pytest.mark.parametrize("kind", READ)
def test_an_input_is_read_where_it_is_switched_on_and_only_there(make_preset, make_films, kind):
    with torch.no_grad():
        reads = make_preset("gaze_token")
        assert not torch.allclose(reads(make_films(2), **GIVEN[kind]).logits, reads(make_films(2)).logits, atol=1e-3)
        blind = make_preset("gaze_token", **{READ[kind]: False})
        for name in ("logits", "attention", "image_embeds"):
            assert torch.equal(blind(make_films(2), **GIVEN[kind])[name], blind(make_films(2))[name])


@pytest.mark.parametrize("kind", READ)
def test_what_one_sample_has_not_does_not_touch_its_row(make_preset, make_films, kind):
    model, films = make_preset("gaze_token"), make_films(2)
    given = {name: value.clone() for name, value in GIVEN[kind].items()}
    if kind == "boxes":
        given["box_labels"][1] = -1
    else:
        given["fixation_mask" if kind == "gaze" else "transcript_mask"][1] = 0
    with torch.no_grad():
        without, mixed, full = model(films), model(films, **given), model(films, **GIVEN[kind])
    for name in ("logits", "attention", "image_embeds"):
        torch.testing.assert_close(mixed[name][1], without[name][1])
        torch.testing.assert_close(mixed[name][0], full[name][0])
        assert not torch.allclose(mixed[name][0], without[name][0], atol=1e-4)


def test_what_stands_in_the_padding_is_not_read(make_preset, make_films):
    model, given = make_preset("gaze_token"), {name: value.clone() for name, value in EVERYTHING.items()}
    given["boxes"] = torch.cat([given["boxes"], torch.full((2, 1, 4), torch.nan)], 1)
    given["box_labels"] = torch.cat([given["box_labels"], torch.full((2, 1), -1)], 1)
    given["fixations"] = given["fixations"].masked_fill(~given["fixation_mask"][..., None], torch.nan)
    given["transcript"] = given["transcript"].masked_fill(given["transcript_mask"] == 0, 13)
    expected = model(make_films(2), labels=LABELS, **EVERYTHING)
    found = model(make_films(2), labels=LABELS, **given)
    for name in ("loss", "logits", "attention"):
        torch.testing.assert_close(found[name], expected[name])
    found.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_without_masks_all_is_real(make_preset, make_films):
    model, names = make_preset("gaze_token", text_loss_weight=0.1), ("fixations", "transcript", "finding_text")
    bare = {name: EVERYTHING[name] for name in names}
    masks = {"fixation_mask": bare["fixations"][..., 0], "finding_text_mask": TEXTS, "transcript_mask": TEXTS[:2]}
    every = {name: torch.ones_like(mask) for name, mask in masks.items()}
    outputs = [model(make_films(2), labels=LABELS, **bare, **given) for given in ({}, every)]
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)


def test_trained_on_nothing_given_is_trained_without(make_preset, make_films):
    """Absence is the mask: a model that gets empty readings learns what one that gets none learns."""
    empty = {
        **gaze_of("none", "none"),
        "boxes": torch.zeros(2, 1, 4),
        "box_labels": torch.full((2, 1), -1),
        "transcript": torch.zeros(2, 2, dtype=torch.long),
        "transcript_mask": torch.zeros(2, 2, dtype=torch.long),
    }
    models = []
    for given in ({}, empty):
        model = make_preset("gaze_token", region_loss_weight=0.1).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(make_films(2), labels=LABELS, **given).loss.backward()
            optimizer.step()
        models.append(model)
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("kind", READ)
def test_input_dropout_of_1_hides_what_still_teaches(make_preset, make_films, kind):
    model = make_preset("gaze_token", input_dropout=1.0).train()
    outputs, without = model(make_films(2), labels=LABELS, **GIVEN[kind]), model(make_films(2), labels=LABELS)
    for name in ("logits", "attention", "image_embeds"):
        torch.testing.assert_close(outputs[name], without[name])
    taught = outputs.loss_parts.keys() - without.loss_parts.keys()
    assert taught == ({kind} if kind in ("gaze", "boxes") else set())
    assert all(outputs.loss_parts[name] > 0 for name in taught)
    assert not torch.allclose(model.eval()(make_films(2), **GIVEN[kind]).logits, without.logits, atol=1e-3)


def test_input_dropout_hides_that_share_of_the_samples(make_preset, make_films):
    model = make_preset("gaze_token", input_dropout=0.25).train()
    films = make_films(1).expand(200, -1, -1, -1)
    gaze = {name: value[:1].expand(200, *value.shape[1:]) for name, value in GIVEN["gaze"].items()}
    with torch.no_grad():
        hidden = (model(films, **gaze).logits - model(films).logits).abs().amax(1) < 1e-4
    assert 0.15 < hidden.float().mean() < 0.35


def test_nothing_but_the_image_is_needed(make_gaze_classifier, make_preset, make_films):
    for model in (make_gaze_classifier(), make_preset("contrastive"), make_preset("gaze_token")):
        outputs = model(make_films(2))
        assert outputs.loss is None and outputs.loss_parts is None
        assert outputs.logits.shape == (2, 3) and outputs.attention.shape == (2, 3, 4, 4)
        torch.testing.assert_close(outputs.attention.sum((-2, -1)), torch.ones(2, 3))
        torch.testing.assert_close(outputs.image_embeds.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize("preset", ["contrastive", "gaze_token"])
def test_patch_tokens_stand_for_pixels(make_preset, make_films, preset):
    model = make_preset(preset)
    with torch.no_grad():
        tokens = model.vision_tower(make_films(2)).last_hidden_state[:, 1:].unflatten(1, (4, 4))
        seen, given = (
            model(**of, labels=LABELS, **EVERYTHING)
            for of in ({"pixel_values": make_films(2)}, {"patch_tokens": tokens})
        )
    for name in ("loss", "logits", "attention", "image_embeds"):
        torch.testing.assert_close(given[name], seen[name])


# ---- what is refused


def test_pixels_or_tokens_and_not_both(make_gaze_classifier, make_films):
    for given in ({}, {"pixel_values": make_films(1), "patch_tokens": torch.zeros(1, 4, 4, 32)}):
        with pytest.raises(ValueError, match="pixel_values or patch_tokens are needed, and not both"):
            make_gaze_classifier()(**given)


def test_texts_need_a_text_tower(make_gaze_classifier, make_films):
    with pytest.raises(ValueError, match="text_config"):
        make_gaze_classifier()(make_films(1), labels=LABELS[:1], finding_text=TEXTS)
    with pytest.raises(ValueError, match="transcript_input needs a text_config"):
        GazeClassifierConfig(transcript_input=True, fusion_layers=1)
    with pytest.raises(ValueError, match="transcript_input needs a text_config, and fusion_layers"):
        GazeClassifierConfig.contrastive(transcript_input=True)


def test_finding_texts_are_one_a_finding_and_need_labels(make_preset, make_films):
    model = make_preset("contrastive")
    with pytest.raises(ValueError, match="finding_text: 2, findings: 3"):
        model(make_films(2), labels=LABELS, finding_text=TEXTS[:2])
    with pytest.raises(ValueError, match="labels"):
        model(make_films(2), finding_text=TEXTS)


def test_boxes_need_labels(make_gaze_classifier, make_films):
    with pytest.raises(ValueError, match="boxes need box_labels"):
        make_gaze_classifier()(make_films(1), boxes=torch.zeros(1, 1, 4))


def test_what_is_of_other_images_or_findings_is_named(make_preset, make_films):
    model, films = make_preset("gaze_token"), make_films(2)
    label = torch.zeros(2, 1, dtype=torch.long)
    for given, message in (
        ({"fixations": torch.zeros(1, 3, 4)}, "fixations: of 1 images, images: 2"),
        ({"boxes": torch.zeros(1, 1, 4), "box_labels": label[:1]}, "boxes: of 1 images, images: 2"),
        ({"boxes": torch.zeros(2, 2, 4), "box_labels": label}, r"box_labels: \(2, 1\), boxes: \(2, 2, 4\); one a box"),
        ({"boxes": torch.zeros(2, 1, 4), "box_labels": label + 3}, "box_labels: 3, findings: 3"),
        ({"transcript": torch.ones(3, 2, dtype=torch.long)}, "transcript: of 3 images, images: 2"),
        ({"labels": torch.tensor([[1.0, 0, -100]] * 2)}, "labels must be between 0 and 1, or NaN.* got -100"),
    ):
        with pytest.raises(ValueError, match=message):
            model(films, **given)


def test_fusion_heads_divide_the_width(make_preset):
    with pytest.raises(ValueError, match="fusion_heads: 5 do not divide fusion_size, 16"):
        make_preset("gaze_token", fusion_heads=5, fusion_size=16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention": "everywhere"}, "attention must be one of per_class, shared; got 'everywhere'"),
        ({"gaze_schedule": "step"}, "gaze_schedule must be one of constant, grow, fade; got 'step'"),
        ({"temperature": -1.0}, "temperature must be above 0, got -1.0"),
        ({"gaze_sigma": 0.0}, "gaze_sigma must be above 0, got 0.0"),
        ({"trust_fixations": 0}, "trust_fixations must be above 0, got 0"),
        ({"trust_seconds": -2.0}, "trust_seconds must be above 0, got -2.0"),
        ({"gaze_schedule_share": 1.5}, "gaze_schedule_share must be between 0 and 1, got 1.5"),
        ({"fusion_dropout": 2.0}, "fusion_dropout must be between 0 and 1, got 2.0"),
        ({"fusion_heads": 0}, "fusion_heads must be above 0, got 0"),
        ({"fusion_layers": -1}, "fusion_layers must be at least 0, got -1"),
        ({"kl_weight": float("nan")}, "kl_weight must be at least 0, got nan"),
        ({"input_dropout": 1.5}, "input_dropout must be between 0 and 1, got 1.5"),
        ({"input_dropout": -0.1}, "input_dropout must be between 0 and 1, got -0.1"),
        ({"thresholds": [0.5]}, "thresholds: 1, labels: 2"),
        ({"positive_weights": [1.0, 2.0, 3.0]}, "positive_weights: 3, labels: 2"),
        ({"positive_weights": [1.0, 0.0]}, "positive_weights must be above 0, got 0.0"),
    ],
)
def test_a_config_names_field_value_and_what_is_allowed(given, message):
    with pytest.raises(ValueError, match=message):
        GazeClassifierConfig(**given)


# ---- what comes out


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
