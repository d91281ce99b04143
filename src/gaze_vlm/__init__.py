"""Radiologists look before they write: scanpaths, gaze-guided reports and their evidence for chest X-rays.

Importing the package registers `GazeVLM`, `ScanpathPredictor` and `GazeClassifier` with transformers' Auto classes.
Everything else is loaded when it is first used.
"""

import importlib

from . import auto

__version__ = "0.1.0"

_EXPORTS = {
    "EvidenceBundle": "evidence",
    "GazeClassifier": "models.modeling_gaze_classifier",
    "GazeClassifierConfig": "models.configuration_gaze_classifier",
    "GazeClassifierProcessor": "models.processing_gaze_classifier",
    "GazeVLM": "models.modeling_gaze_vlm",
    "GazeVLMConfig": "models.configuration_gaze_vlm",
    "GazeVLMProcessor": "models.processing_gaze_vlm",
    "ReadingPipeline": "pipelines",
    "ReportComposer": "report_composer",
    "Scanpath": "scanpath",
    "ScanpathPredictor": "models.modeling_scanpath_predictor",
    "ScanpathPredictorConfig": "models.configuration_scanpath_predictor",
    "ScanpathPredictorProcessor": "models.processing_scanpath_predictor",
    "read_film": "images",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])


auto.register()
