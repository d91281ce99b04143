import numpy as np
import pytest

from gaze_vlm.metrics.baselines import (
    NORMAL_TEMPLATE,
    CentrePrior,
    FindingMean,
    FindingMedoid,
    NearestNeighbour,
    RandomHuman,
    Uniform,
)
from gaze_vlm.metrics.scanpath import scanmatch, scanmatch_matrix
from gaze_vlm.scanpath import Scanpath

SCANPATH_BASELINES = [CentrePrior, Uniform, RandomHuman, FindingMean, FindingMedoid]
ASKED = ["edema", "fracture", "edema", "never seen"]


@pytest.fixture
def training():
    """Edema is looked for on the left, fractures on the right; paths of 4 to 6 fixations."""
    rng = np.random.default_rng(0)
    findings = ["edema", "fracture"] * 20
    scanpaths = []
    for finding in findings:
        size, side = rng.integers(4, 7), 0.0 if finding == "edema" else 0.6
        scanpaths.append(
            Scanpath.from_relative(side + 0.4 * rng.random(size), rng.random(size), rng.exponential(0.3, size))
        )
    return scanpaths, findings


@pytest.mark.parametrize("baseline", SCANPATH_BASELINES)
def test_one_path_a_finding_on_the_image_and_repeatable(baseline, training):
    fitted = baseline().fit(*training)
    assert isinstance(fitted, baseline)
    paths = fitted.predict(ASKED, np.random.default_rng(1))
    assert len(paths) == len(ASKED)
    assert all(len(path) >= 3 and path.inside.all() for path in paths)
    assert paths == fitted.predict(ASKED, np.random.default_rng(1))
    assert fitted.predict([], np.random.default_rng(1)) == []
    with pytest.raises(ValueError, match="scanpaths: 40, findings: 39"):
        baseline().fit(training[0], training[1][:-1])


@pytest.mark.parametrize("baseline", [RandomHuman, FindingMean, FindingMedoid])
def test_a_finding_keeps_to_its_own_paths(baseline, training):
    edema, fracture, *_ = baseline().fit(*training).predict(ASKED, np.random.default_rng(2))
    assert edema.x.max() <= 0.4 and fracture.x.min() >= 0.6
    with pytest.raises(ValueError, match="at least one"):
        baseline().fit([], [])


def test_centre_prior_scatters_about_the_centre():
    paths = CentrePrior().fit([], []).predict(["edema"] * 2000, np.random.default_rng(3))
    points = np.array([[path.x, path.y] for path in paths])
    assert points.shape == (2000, 2, 7)
    assert (points[..., 0] == 0.5).all()
    assert points[..., 1:].mean() == pytest.approx(0.5, abs=0.005)
    assert points[..., 1:].std() == pytest.approx(30 / 224, abs=0.003)
    assert paths[0].total_duration == pytest.approx(2.1)


def test_random_human_gives_whole_training_paths(training):
    scanpaths, _ = training
    predicted = RandomHuman().fit(*training).predict(["edema"] * 50, np.random.default_rng(4))
    assert all(any(path is known for known in scanpaths[::2]) for path in predicted)
    assert len({id(path) for path in predicted}) > 10


def test_finding_mean_by_hand():
    paths = [
        Scanpath.from_relative([0.0, 0.2], [0.0, 0.4], [0.1, 0.1]),
        Scanpath.from_relative([0.2, 0.4], [0.4, 0.0], [0.3, 0.5]),
        Scanpath.from_relative([0.4, 0.6, 0.9], [0.2, 0.2, 0.9], [0.2, 0.3, 0.9]),
    ]
    mean = FindingMean().fit(paths, ["edema"] * 3).predict(["edema"], np.random.default_rng(0))[0]
    np.testing.assert_allclose(mean.to_array(), [[0.2, 0.2, 0.0, 0.2], [0.4, 0.2, 0.2, 0.3]], atol=1e-6)


def test_the_medoid_is_nearest_to_all_others(training):
    edema = training[0][::2]
    medoid = FindingMedoid().fit(*training).predict(["edema"], np.random.default_rng(0))[0]
    means = scanmatch_matrix(edema, edema).mean(axis=1)
    assert scanmatch([medoid] * 20, edema).mean() == pytest.approx(means.max())
    few = FindingMedoid(at_most=5).fit(*training)
    assert few.predict(["edema"], np.random.default_rng(0))[0] in edema


def test_the_normal_template_names_no_finding_as_present():
    assert NORMAL_TEMPLATE.count(".") == len(NORMAL_TEMPLATE.split(". "))
    assert "no pleural effusion" in NORMAL_TEMPLATE


def test_nearest_neighbour_goes_by_direction_not_length():
    neighbour = NearestNeighbour().fit(np.array([[100.0, 0], [0, 0.01], [-1, -1]]))
    np.testing.assert_array_equal(neighbour.predict(np.array([[0.1, 5], [9, 1], [-3, -2], [0, 0]])), [1, 0, 2, 0])
    assert neighbour.predict(np.zeros((0, 2))).shape == (0,)
    with pytest.raises(ValueError, match="3 wide, in training: 2"):
        neighbour.predict(np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        NearestNeighbour().fit(np.zeros(3))
    with pytest.raises(ValueError, match="at least one"):
        NearestNeighbour().fit(np.zeros((0, 3)))
