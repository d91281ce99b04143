"""A task of few films that labels alone do not teach, and labels with gaze do.

A film holds four marks in noise. In half of the films one of them is the lesion, an x; all others are its look-alikes,
a +. Readers look at the lesion, and in a film without one at a mark that might have been one, so that where they look
says nothing that the film does not. At the test nobody looks.
"""

import pytest
import torch
from transformers import TimmWrapperConfig

from gaze_vlm import GazeClassifier, GazeClassifierConfig
from gaze_vlm.metrics.classification import auroc

pytest.importorskip("timm", reason="the tower needs timm")

SIDE, CELLS, MARK = 48, 6, 5  # pixels, cells along a side (one mark a cell), pixels of a mark
LESION = torch.eye(MARK).maximum(torch.eye(MARK).flip(1))
LOOK_ALIKE = torch.zeros(MARK, MARK).index_fill(0, torch.tensor(2), 1).index_fill(1, torch.tensor(2), 1)
TRAIN_FILMS, TEST_FILMS, SEEDS = 64, 400, 3
STEPS, BATCH = 120, 16


def readings(count: int, seed: int) -> dict[str, torch.Tensor]:
    """Films, their labels, and four fixations scattered by half a cell around the mark that was looked at."""
    generator = torch.Generator().manual_seed(seed)
    films = 0.5 * torch.randn(count, SIDE, SIDE, generator=generator)
    present = torch.arange(count) % 2 == 0
    fixations = torch.zeros(count, 4, 4)
    fixations[..., :2] = torch.randn(count, 4, 2, generator=generator) * 0.5 / CELLS
    fixations[..., 3] = 0.3
    size = SIDE // CELLS
    for film, has_lesion, path in zip(films, present, fixations, strict=True):
        cells = torch.randperm(CELLS**2, generator=generator)[:4]
        shifts = torch.randint(size - MARK + 1, (4, 2), generator=generator)
        corners = size * torch.stack([cells // CELLS, cells % CELLS], 1) + shifts
        for number, (y, x) in enumerate(corners.tolist()):
            mark = LESION if has_lesion and number == 0 else LOOK_ALIKE
            film[y : y + MARK, x : x + MARK] += 2 * mark
        path[:, :2] += (corners[0].flip(0) + MARK / 2) / SIDE
    return {
        "pixel_values": films[:, None].repeat(1, 3, 1, 1),
        "labels": present[:, None].float(),
        "fixations": fixations,
    }


def train(readings: dict[str, torch.Tensor], seed: int) -> GazeClassifier:
    torch.manual_seed(seed)
    tower = TimmWrapperConfig(architecture="test_resnet", model_args={"output_stride": SIDE // CELLS})
    model = GazeClassifier(GazeClassifierConfig(vision_config=tower, id2label={0: "Nodule"}, gaze_sigma=0.08)).train()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=STEPS)
    order = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        drawn = torch.randperm(TRAIN_FILMS, generator=order)[:BATCH]
        optimizer.zero_grad()
        model(**{name: value[drawn] for name, value in readings.items()}).loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def score(model: GazeClassifier, readings: dict[str, torch.Tensor]) -> float:
    """AUROC from films alone."""
    return float(auroc(readings["labels"].numpy(), model(readings["pixel_values"]).logits.numpy())[0])


@pytest.fixture(scope="module")
def scores() -> dict[str, torch.Tensor]:
    """AUROC on the test's films and on those of the training, (seeds, 2), by what the readings tell of gaze."""
    found = {"none": [], "right": [], "of another film": []}
    for seed in range(SEEDS):
        seen, unseen = readings(TRAIN_FILMS, seed), readings(TEST_FILMS, 1000 + seed)
        fixations = seen.pop("fixations")
        other = torch.randperm(TRAIN_FILMS, generator=torch.Generator().manual_seed(seed))
        gaze = {"none": {}, "right": {"fixations": fixations}, "of another film": {"fixations": fixations[other]}}
        for kind, given in gaze.items():
            model = train({**seen, **given}, seed)
            found[kind].append([score(model, unseen), score(model, seen)])
    return {kind: torch.tensor(values) for kind, values in found.items()}


def test_gaze_lifts_what_few_films_teach(scores):
    assert (scores["right"][:, 0] - scores["none"][:, 0]).mean() >= 0.1
    assert (scores["right"][:, 0] > scores["none"][:, 0]).all()


def test_gaze_of_another_film_does_not(scores):
    assert (scores["of another film"][:, 0] - scores["none"][:, 0]).mean() < 0.05


def test_labels_alone_are_learned_by_heart(scores):
    """The model without gaze lacks no training: what it lacks is to know where to look."""
    assert scores["none"][:, 1].min() >= 0.95
