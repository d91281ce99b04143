"""Temperature against a grid and the one that made the labels, thresholds by hand, both through a saved model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaze_vlm.training.calibration import choose_thresholds, fit_temperature

NAN = float("nan")


def simulated(temperature: float, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (count, 2) and labels drawn with `sigmoid(logits / temperature)`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (count, 2))
    return logits.astype(np.float32), (rng.random((count, 2)) < 1 / (1 + np.exp(-logits / temperature))).astype(float)


def nll(temperature: float, logits: np.ndarray, labels: np.ndarray) -> float:
    known = ~np.isnan(labels)
    scores = logits[known].astype(np.float64) / temperature
    return float((np.logaddexp(0, scores) - labels[known] * scores).mean())


# ---- temperature


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    assert fit_temperature(*simulated(temperature, 100_000)) == pytest.approx(temperature, rel=0.03)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(0.05, 20), st.floats(0, 0.5))
def test_no_temperature_of_a_grid_is_likelier_and_neither_is_one(seed, count, temperature, missing):
    logits, labels = simulated(temperature, count, seed)
    labels[np.random.default_rng(seed).random(labels.shape) < missing] = np.nan
    labels[0, 0] = 1.0
    found = nll(fit_temperature(logits, labels), logits, labels)
    assert found <= nll(1.0, logits, labels) + 1e-9
    assert found <= min(nll(one, logits, labels) for one in np.geomspace(0.05, 20, 200)) + 1e-9


def test_temperatures_that_have_no_end_are_clamped():
    logits = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    labels = (logits > 0).astype(float)
    assert fit_temperature(logits, labels) == pytest.approx(0.05), "separated: the harder the likelier"
    assert fit_temperature(logits, 1 - labels) == pytest.approx(20), "turned around: none is likely"
    assert 0.05 <= fit_temperature(np.zeros((4, 1)), labels) <= 20, "logits that say nothing"


def test_unknown_labels_have_no_say():
    logits, labels = simulated(2.0, 200)
    padded = np.concatenate([logits, np.full((50, 2), 30.0)]), np.concatenate([labels, np.full((50, 2), np.nan)])
    assert fit_temperature(*padded) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)
    with pytest.raises(ValueError, match="no label is known"):
        fit_temperature(logits, np.full_like(logits, np.nan))


# ---- thresholds


def test_thresholds_of_best_f1_by_hand():
    probabilities = np.array([[0.9, 0.1, 0.2, 0.3], [0.8, 0.6, 0.4, 0.2], [0.3, 0.7, 0.6, 0.5], [0.2, 0.5, 0.8, 0.4]])
    labels = np.array([[1, 0, 0, NAN], [1, 1, 0, NAN], [0, NAN, 0, NAN], [0, 1, 0, NAN]])
    first, second, *others = choose_thresholds(probabilities, labels)
    assert 0.3 < first <= 0.8, "between the positives and the rest"
    assert 0.1 < second <= 0.5, "0.7 is of a case whose label is unknown"
    assert others == [0.5, 0.5], "no positive, and nothing known"


def test_thresholds_of_a_frequency_by_hand():
    scores = np.arange(11)[:, None] / 10 * np.ones(5)
    frequency = np.array([0.3, 0.0, 1.0, 0.5, NAN])
    thresholds = choose_thresholds(scores, np.full(scores.shape, NAN), "frequency", frequency)
    np.testing.assert_allclose(thresholds, [0.7, 1.0, 0.0, 0.5, 0.5])
    called = np.random.default_rng(0).random((1000, 1))
    (threshold,) = choose_thresholds(called, np.zeros((1000, 1)), "frequency", np.array([0.12]))
    assert (called >= threshold).mean() == pytest.approx(0.12, abs=1e-3)


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(ValueError, match="rule must be one of f1, frequency; got 'youden'"):
        choose_thresholds(np.ones((1, 1)), np.ones((1, 1)), "youden")


# ---- into a model


@pytest.mark.parametrize("rule", ["f1", "frequency"])
def test_what_is_chosen_is_saved_with_the_model_and_used(rule, make_classifier, classifier_processor, tmp_path):
    pytest.importorskip("datasets", reason='needs datasets: pip install "gaze2report[train]"')
    from gaze_vlm import GazeClassifier
    from gaze_vlm.training.classifier_trainer import Predictions, calibrate

    model = make_classifier()
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 8, (60, 3)).astype(np.float32)
    labels = (rng.random((60, 3)) < 1 / (1 + np.exp(-logits / 4))).astype(float)
    frequency = np.array([0.25, 0.5, 0.75])
    model.config.temperature, model.config.thresholds = 9.0, [0.9, 0.9, 0.9]  # of an earlier training
    told = calibrate(model.config, Predictions(logits, labels, np.ones((60, 1, 2, 2))), rule, frequency)
    assert told["loss_before"] == pytest.approx(nll(1.0, logits, labels)), "of the bare logits"
    temperature = fit_temperature(logits, labels)
    assert told["loss_after"] == pytest.approx(nll(temperature, logits, labels))
    assert told["loss_after"] < told["loss_before"]
    assert told["calibration_error_after"] < told["calibration_error_before"]
    model.save_pretrained(tmp_path)
    config = GazeClassifier.from_pretrained(tmp_path).config
    assert config.temperature == temperature
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64) / temperature))
    assert config.thresholds == choose_thresholds(probabilities, labels, rule, frequency)
    outputs = SimpleNamespace(logits=torch.from_numpy(logits), attention=torch.ones(60, 3, 2, 2) / 4)
    records = classifier_processor.post_process_findings(outputs, config)
    said = np.array([[one["probability"] for one in film] for film in records])
    np.testing.assert_allclose(said, probabilities, atol=1e-6)
    called = np.array([[one["present"] for one in film] for film in records])
    clear = np.abs(probabilities - config.thresholds) > 1e-6  # float32 may fall on either side of its own value
    assert (called == (probabilities >= config.thresholds))[clear].all() and 0 < called.mean() < 1
    if rule == "frequency":
        np.testing.assert_allclose(called.mean(0), frequency, atol=0.02)
