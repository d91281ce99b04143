"""transformers' pipelines of this package: `pipeline("scanpath-prediction", ...)` and `pipeline("gaze-report", ...)`.

They are registered as soon as transformers' pipelines are imported (`gaze_vlm.auto`). `pipeline("image-text-to-text",
...)` works with a GazeVLM as with every model of its kind.
"""

from collections.abc import Mapping
from os import PathLike

import torch
from PIL import Image
from transformers import Pipeline

from .images import Film, read_film
from .models.processing_gaze_vlm import pad_fixations
from .models.processing_scanpath_predictor import scanpath_records
from .scanpath import Scanpath
from .tasks import report_messages


class FilmPipeline(Pipeline):
    """What both have in common: films come as paths (PNG, JPEG, DICOM), PIL images or `Film`s.

    One film, a list, a generator or a data set; an item may also be a mapping `{"image": film, ...}` with arguments of
    its own. The pipeline's own `batch_size` and `device` hold.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_feature_extractor = False
    own: tuple[str, ...] = ()  # arguments that an item may have for itself

    def preprocess(self, item, **_) -> dict:
        own = {}
        if isinstance(item, Mapping):
            unknown = item.keys() - {"image", *self.own}
            if unknown or "image" not in item:
                known = ", ".join(("image", *self.own))
                raise ValueError(
                    f"an item must have an image, and of {known} at most; got {', '.join(map(str, item))}"
                )
            own = {name: value for name, value in item.items() if name != "image"}
            item = item["image"]
        image = picture(item)
        pixels = self.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "own": own}

    def chosen(self, inputs: dict, options: dict) -> list[dict]:
        """The arguments of each film of a batch: its own over those of the call."""
        own = inputs["own"] if isinstance(inputs["own"], list) else [inputs["own"]]
        return [{name: options.get(name) for name in self.own} | one for one in own]

    def postprocess(self, outputs: dict, **_) -> dict:
        """Of a batch of one transformers leaves the lists that hold it."""
        return {name: value[0] if isinstance(value, list) else value for name, value in outputs.items()}


class ScanpathPredictionPipeline(FilmPipeline):
    """Where a radiologist would look, by a `ScanpathPredictor`.

    Arguments of a call:
        text (`str`, *optional*, also of an item): what the reader looks for (a finding) or wrote (a report).
        num_samples (`int`): scanpaths a film; 1 without a seed is the point estimate.
        seed (`int`, *optional*): for reproducible samples, whatever batch a film is in.

    Returns:
        `{"scanpaths": [{"x", "y", "onset", "duration"}, ...]}` a film, lists of one length each: x, y in the image
        0..1 from the top left, seconds.
    """

    own = ("text",)

    def _sanitize_parameters(self, text=None, num_samples=1, seed=None):
        return {}, {"text": text, "num_samples": num_samples, "seed": seed}, {}

    def _forward(self, inputs: dict, num_samples: int, seed: int | None, **options) -> dict:
        texts = [(one["text"] or "").strip() for one in self.chosen(inputs, options)]
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        scanpaths: list = [None] * len(texts)
        for with_text in (True, False):  # no text is not the same as an empty one
            rows = [row for row, text in enumerate(texts) if bool(text) == with_text]
            if not rows:
                continue
            prompt = {}
            if with_text:
                prompt = self.tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt").to(
                    self.device
                )
                prompt = {name: prompt[name] for name in ("input_ids", "attention_mask")}
            if generator is not None:
                generator.manual_seed(seed)
            pixels = inputs["pixel_values"][rows]
            samples = self.model.predict(pixels, **prompt, num_samples=num_samples, generator=generator)
            for row, records in zip(rows, scanpath_records(samples), strict=True):
                scanpaths[row] = records
        return {"scanpaths": scanpaths}

    def postprocess(self, outputs: dict, **_) -> dict:
        scanpaths = outputs["scanpaths"]
        return {"scanpaths": scanpaths[0] if isinstance(scanpaths[0], list) else scanpaths}


class GazeReportPipeline(FilmPipeline):
    """The report that a `GazeVLM` drafts; unlike `ReadingPipeline` it is not checked against a classifier.

    Arguments of a call, also of an item:
        gaze (`Scanpath`, record or (n, 4) array, *optional*): a recorded scanpath; without one it is predicted if the
            checkpoint can, else there is none.
        findings (`list[str]`, *optional*): what is known to be there.

    and of a call alone, whatever `generate` takes (`max_new_tokens`, `num_beams`, `do_sample`, ...).

    Returns:
        `{"generated_text": the report, "scanpath": the gaze that went into it as a record or None, "gaze": "given",
        "predicted" or "none"}` a film.
    """

    own = ("gaze", "findings")

    def _sanitize_parameters(self, gaze=None, findings=None, **generate):
        return {}, {"gaze": gaze, "findings": findings, "generate": {"do_sample": False} | generate}, {}

    def _forward(self, inputs: dict, generate: dict, **options) -> dict:
        chosen, pixels = self.chosen(inputs, options), inputs["pixel_values"]
        records = [_record(one["gaze"]) for one in chosen]
        sources = ["none" if record is None else "given" for record in records]
        missing = [row for row, record in enumerate(records) if record is None]
        if missing and self.model.config.gaze == "predicted":
            fixations, mask = self.model.predict_gaze(pixels[missing])
            for row, path, kept in zip(missing, fixations.float().cpu(), mask.cpu(), strict=True):
                columns = path[kept].T.tolist()
                records[row] = dict(zip(("x", "y", "onset", "duration"), columns, strict=True))
                sources[row] = "predicted"
        prompts = [
            self.processor.expand_image_tokens(
                self.processor.apply_chat_template(report_messages(one["findings"]), add_generation_prompt=True)
            )
            for one in chosen
        ]
        ids = self.tokenizer(
            prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        ).to(self.device)
        fixations, mask = (one.to(self.device) for one in pad_fixations(records))
        tokens = self.model.generate(
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            pixel_values=pixels,
            fixations=fixations,
            fixation_mask=mask,
            **generate,
        )
        texts = self.processor.batch_decode(tokens[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        return {"generated_text": [text.strip() for text in texts], "scanpath": records, "gaze": sources}


def picture(item) -> Image.Image:
    """A film in RGB, read from a path where it is one.

    Raises:
        ImageError: if the file cannot be read as a radiograph.
        TypeError: if it is neither a path, a PIL image nor a Film.
    """
    if isinstance(item, str | PathLike):
        item = read_film(item)
    if isinstance(item, Film):
        return item.to_pil()
    if isinstance(item, Image.Image):
        return item.convert("RGB")
    raise TypeError(f"a film must be a path, a PIL image or a Film, got {type(item).__name__}")


def _record(gaze) -> dict | None:
    """A scanpath as a record; one without fixations counts as none."""
    if gaze is None or isinstance(gaze, Scanpath):
        record = None if gaze is None else gaze.to_records()
    elif isinstance(gaze, Mapping):
        record = Scanpath.from_records(dict(gaze)).to_records()
    else:
        record = Scanpath.from_array(gaze).to_records()
    return record if record and record["x"] else None
