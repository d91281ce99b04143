"""The three models of a folder or repository, loaded when they are first needed."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor
from transformers.utils import cached_file

from .images import Film

NANO = Path(__file__).parent / "nano"


class ModelError(ValueError):
    """A model that cannot be used; the message names it and says why."""


class LoadedModels:
    """GazeClassifier, ScanpathPredictor and GazeVLM, loaded when they are first needed.

    Args:
        model: a folder or a Hub repository with the folders gaze_classifier, scanpath_predictor and gaze_vlm (all or
            some), or which is itself one such model (a pushed bundle is GazeVLM itself); the embedded nano by default.
            huggingface_hub fetches a repository and its updates, unless HF_HUB_OFFLINE is set.
        device: where to run, the CPU by default. Weights are used in float32.
        batch_size: films that go through a model together.
        predict_gaze: whether gaze that is not given is predicted, where the model can; else there is none.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 8,
        predict_gaze: bool = True,
    ):
        self.source = str(model) if model is not None else str(NANO)
        # of a folder its own name: where it lies is nobody's business
        folder = Path(self.source)
        self.name = "nano" if model is None else folder.resolve().name if folder.exists() else self.source
        self.device, self.batch_size, self.predict_gaze = torch.device(device), batch_size, predict_gaze
        if not folder.exists() and not _looks_like_repository(self.source):
            raise ModelError(f"{self.source}: no such folder, and no name of a Hub repository (owner/name)")

    @cached_property
    def classifier(self):
        """(GazeClassifier, its processor)."""
        return self._load("gaze_classifier")

    @cached_property
    def scanpath_predictor(self):
        """(ScanpathPredictor, its processor)."""
        return self._load("scanpath_predictor")

    @cached_property
    def vlm(self):
        """(GazeVLM, its processor)."""
        return self._load("gaze_vlm")

    def _load(self, part: str):
        folder = Path(self.source)
        if folder.exists():
            folder = folder / part if (folder / part).exists() else folder
            if not (folder / "config.json").exists():
                raise ModelError(f"{self.source}: no config.json, and no folder {part} with one")
        try:
            place = {"pretrained_model_name_or_path": str(folder)}
            if not folder.exists():
                inside = cached_file(
                    self.source, "config.json", subfolder=part, _raise_exceptions_for_missing_entries=False
                )
                place = {"pretrained_model_name_or_path": self.source, "subfolder": part if inside else ""}
            model, info = AutoModel.from_pretrained(**place, dtype=torch.float32, output_loading_info=True)
            if info["missing_keys"]:  # transformers would go on with random weights
                raise ValueError(f"{len(info['missing_keys'])} weights are missing, {min(info['missing_keys'])} first")
            processor = AutoProcessor.from_pretrained(**place)
        except (
            Exception
        ) as error:  # whatever transformers, the Hub's client or a broken file raise: a person gets one line
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{self.source}: {part} cannot be loaded ({reason})") from error
        if model.config.model_type != part:
            raise ModelError(f"{self.source}: a {model.config.model_type}, but a {part} is needed")
        return model.to(self.device).eval(), processor

    def batches(self, items: Sequence) -> Iterator[Sequence]:
        """The items as they go through a model: `batch_size` together."""
        for start in range(0, len(items), self.batch_size):
            yield items[start : start + self.batch_size]

    def _pixels(self, processor, films: Sequence[Film]) -> torch.Tensor:
        images = [film.to_pil() for film in films]
        return processor.image_processor(images, return_tensors="pt")["pixel_values"].to(self.device)


def _looks_like_repository(name: str) -> bool:
    """owner/name, and no mistyped path: not ./name, nor folder/name where that folder is here."""
    is_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None
    return is_name and not Path(name).parent.is_dir()
