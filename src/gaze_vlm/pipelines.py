"""A film is read: findings, scanpath, report and evidence, by the three models together."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers.generation import BaseStreamer

from . import __version__
from .chat_writer import ChatWriter
from .evidence import EvidenceBundle, link_evidence
from .findings import FINDING_REGIONS, FINER_FINDINGS, NO_FINDING
from .generation import generate_texts
from .images import Film
from .labeler import label
from .labeler import sentences as sentence_spans
from .loading import LoadedModels, ModelError
from .models.modeling_scanpath_predictor import ScanpathSamples
from .models.modeling_vision_tower import patch_tokens
from .models.processing_gaze_vlm import pad_fixations
from .models.processing_scanpath_predictor import scanpath_records
from .reading_order import PROTOCOLS, in_reading_order
from .report_composer import REPORTED, ComposedSentence, ReportComposer, Writer, choose_regions, spans, written_for
from .report_composer import text as join
from .report_sentences import canonical
from .scanpath import Scanpath
from .tasks import GAZE_TASKS, Parsed, ground_messages, parse_boxes, report_messages, vqa_messages

PLACED = set(FINDING_REGIONS) - {NO_FINDING}  # a label of anyone else's has no region and stays out of the report
ANSWER, ROOM = 256, 16  # tokens of an answer at most, and tokens that must be left for one


@dataclass(frozen=True)
class Reading:
    """What was read off one film.

    findings: records `{"name", "probability", "present", "regions"}`; scanpath: the gaze that went into the report;
    gaze: "given", "predicted" or "none"; sentences: the report, each with its source; evidence: all of it, linked.
    """

    film: Film
    findings: list[dict]
    scanpath: Scanpath
    gaze: str
    sentences: list[ComposedSentence]
    evidence: EvidenceBundle

    @property
    def report(self) -> str:
        """The report as one text."""
        return self.evidence.report


class ReadingPipeline(LoadedModels):
    """GazeClassifier, ScanpathPredictor and GazeVLM over films; arguments as of `LoadedModels`."""

    # ---- what they do

    def classify(self, films: Sequence[Film], gaze: Sequence[Scanpath | None] | None = None) -> list[list[dict]]:
        """Findings of each film: `{"name", "probability", "present", "regions": [{"name", "box"}]}`.

        A finding is present from its threshold on, unless No Finding is and is likelier; No Finding also when nothing
        else is. `gaze` is a recorded scanpath of each film, None where there is none, for a classifier that reads gaze
        (`config.gaze_input`); its temperature and thresholds were chosen without gaze.
        """
        return [findings for findings, _ in self.attend(films, gaze)]

    @torch.no_grad()
    def attend(
        self, films: Sequence[Film], gaze: Sequence[Scanpath | None] | None = None
    ) -> list[tuple[list[dict], dict[str, np.ndarray]]]:
        """Of each film its findings, as `classify` gives them, and name -> the attention that each of them got.

        Attention is (rows, columns) float32 over the whole film, row 0 on top; a map sums to 1.
        """
        model, processor = self.classifier
        found = []
        for pairs in self.batches(self._paired(films, gaze)):
            batch, given = zip(*pairs, strict=True)
            read = {}
            if model.config.gaze_input:
                fixations, mask = pad_fixations([path.to_array() if path else None for path in given])
                read = {"fixations": fixations.to(self.device), "fixation_mask": mask.to(self.device)}
            outputs = model(self._pixels(processor, batch), **read)
            attention = outputs.attention.float().expand(-1, model.config.num_labels, -1, -1).cpu().numpy()
            for records, maps in zip(processor.post_process_findings(outputs, model.config), attention, strict=True):
                named = {record["name"]: one for record, one in zip(records, maps, strict=True)}
                found.append((_settle(records, named), named))
        return found

    def predict_scanpaths(
        self, films: Sequence[Film], text: str | None = None, num_samples: int = 1, seed: int | None = None
    ) -> list[list[Scanpath]]:
        """For each film `num_samples` scanpaths; without samples and seed the point estimate.

        Args:
            text: what the reader looks for (a finding) or wrote (a report); None: the film alone.
            seed: for reproducible samples.

        Raises:
            ValueError: if the text is longer than the language model can read.
        """
        model, processor = self.scanpath_predictor
        prompt = self._prompt([text.strip()]) if text and text.strip() else {}
        scanpaths = []
        for batch in self.batches(films):
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            rows = {name: one.expand(len(batch), *one.shape[1:]) for name, one in prompt.items()}
            samples = model.predict(
                self._pixels(processor, batch), **rows, num_samples=num_samples, generator=generator
            )
            for film, records in zip(batch, processor.post_process_scanpaths(samples), strict=True):
                scanpaths.append([Scanpath.from_records(record, film.size) for record in records])
        return scanpaths

    def follow_report(self, films: Sequence[Film], report: str) -> Iterator[tuple[Scanpath, list[dict]]]:
        """Gaze aligned with a report: each sentence in turn, with the fixations that are predicted for it alone.

        The model must have been trained on sentences (`sentence` among the texts of examples/train_scanpath.py). The
        fixation at the centre that such a model is given in front stays in front of the first sentence only.

        Returns:
            For each film, as it is ready, the scanpath through the whole report (point estimates), and a record
            `{"text", "start", "end"}` a sentence: when it is looked at, in seconds on the scanpath's clock.

        Raises:
            ValueError: if there is no sentence, or one longer than the language model can read.
        """
        texts = [report[start:end] for start, end in sentence_spans(report)]
        if not texts:
            raise ValueError("the report has no sentence to follow")
        model, processor = self.scanpath_predictor
        prompt = self._prompt(texts)
        for film in films:
            with torch.no_grad():
                tokens = patch_tokens(model.vision_tower, self._pixels(processor, [film]))
            samples = model.predict(patch_tokens=tokens.expand(len(texts), -1, -1, -1), **prompt, sample=False)
            parts, spoken, clock = [], [], 0.0
            for text, [record] in zip(texts, processor.post_process_scanpaths(samples), strict=True):
                x, y, _, duration = Scanpath.from_records(record).to_array().T
                first = int(model.config.start_at_center and bool(parts) and len(x) > 1)
                parts.append((x[first:], y[first:], duration[first:]))
                spoken.append({"text": text, "start": clock, "end": clock + float(duration[first:].sum())})
                clock = spoken[-1]["end"]
            x, y, duration = map(np.concatenate, zip(*parts, strict=True))
            yield Scanpath.from_relative(x, y, duration, image_size=film.size), spoken

    @torch.no_grad()
    def _prompt(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """What `ScanpathPredictor.predict` takes for texts; their states, if they are the same for every film."""
        model, processor = self.scanpath_predictor
        tokens = processor.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        if model.config.language_model_input != "text":
            return tokens
        states, mask = model.get_text_states(**tokens)
        return {"text_states": states, "attention_mask": mask}

    def ask(self, films: Sequence[Film], question: str) -> list[str]:
        """The GazeVLM's answer to a question about each film.

        Raises:
            ModelError: if it was not taught to answer questions.
            ValueError: if the question is longer than the language model can read.
        """
        return self.answers("vqa", films, vqa_messages(question))

    def ground(self, films: Sequence[Film], phrase: str) -> list[Parsed]:
        """Where a phrase is on each film: boxes (x1, y1, x2, y2) in 0..1 from the top left, as `tasks.parse_boxes`
        reads the GazeVLM's answer.

        A GazeVLM that can predict gaze is shown where somebody looks who looks for the phrase, if there is a
        ScanpathPredictor beside it, else what it predicts itself. Errors as of `ask`.
        """
        messages, gaze = ground_messages(phrase), None
        self._room("ground", messages)
        if self._predicts():
            with contextlib.suppress(ModelError):  # a GazeVLM by itself
                gaze = [paths[0] for paths in self.predict_scanpaths(films, phrase)]
        return [parse_boxes(answer) for answer in self.answers("ground", films, messages, gaze)]

    def _room(self, task: str, messages: list[dict]) -> int:
        """Tokens that are left for the answer."""
        model, processor = self.vlm
        if task not in model.config.tasks:
            known = ", ".join(model.config.tasks)
            raise ModelError(f"{self.name}: the model was not taught the task {task}; it knows {known}")
        prompt = processor.expand_image_tokens(processor.apply_chat_template(messages, add_generation_prompt=True))
        asked = len(processor.tokenizer(prompt)["input_ids"])
        context = getattr(model.config.text_config, "max_position_embeddings", asked + ANSWER)
        if asked + ROOM > context:
            raise ValueError(f"the text is too long: with the film {asked} tokens, {context - ROOM} can be read")
        return context - asked

    def _predicts(self) -> bool:
        return self.vlm[0].model.scanpath_predictor is not None and self.predict_gaze

    @torch.no_grad()
    def answers(
        self, task: str, films: Sequence[Film], messages: list[dict], gaze: Sequence[Scanpath] | None = None
    ) -> list[str]:
        """The GazeVLM's answer to the same messages (of `tasks`) about each film.

        Args:
            gaze: a scanpath for each film; None: predicted where the model can, and where gaze is not what is asked.

        Errors as of `ask`.
        """
        model, processor = self.vlm
        room = self._room(task, messages)
        source = "predicted" if self._predicts() and task not in GAZE_TASKS else "none"
        options = {"max_new_tokens": min(ANSWER, room), "do_sample": False}
        texts = []
        for pairs in self.batches(self._paired(films, gaze)):
            images = [[film.to_pil().convert("RGB")] for film, _ in pairs]
            shown = {"gaze": source}
            if gaze is not None:
                shown = {"gaze": "given", "fixations": [path.to_array() for _, path in pairs]}
            texts += generate_texts(model, processor, [messages] * len(pairs), images, **shown, **options)
        return [text.strip() for text in texts]

    def read(
        self,
        films: Sequence[Film],
        gaze: Sequence[Scanpath | None] | None = None,
        protocol: Literal["abcdef"] | None = None,
        streamer: BaseStreamer | None = None,
    ) -> Iterator[Reading]:
        """Readings in the order of the films, as they are ready; the reports are GazeVLM's, made to agree.

        Args:
            gaze: a recorded scanpath for each film, None where there is none; predicted there.
            protocol: "abcdef": sentences stand in the order of inspection, with a line for each stage that none of
                them is about (`reading_order.in_reading_order`); None: as they were written.
            streamer: of transformers, for a single film: gets the tokens of the first draft as they are written,
                before anything is checked.
        """
        if streamer is not None and len(films) != 1:
            raise ValueError(f"a streamer goes with one film, got {len(films)}")
        report = self._reconciled if streamer is None else partial(self._reconciled, streamer=streamer)
        return self._read(films, gaze, report, self.name, protocol)

    def compose(
        self,
        films: Sequence[Film],
        gaze: Sequence[Scanpath | None] | None = None,
        writer: Literal["model", "template"] | Writer = "model",
        protocol: Literal["abcdef"] | None = None,
    ) -> Iterator[Reading]:
        """Readings as `read` gives them, with reports composed finding by finding (`ReportComposer.compose`).

        Args:
            gaze, protocol: as for `read`.
            writer: of the sentences: "model", the GazeVLM, which writes a report about each finding alone, of which
                the first sentence that passes is taken; "template"; or any writer, such as a `ChatWriter`.
        """
        if writer not in ("model", "template") and not callable(writer):
            raise ValueError(f'writer must be "model", "template" or a callable, got {writer!r}')
        name = f"{self.name}, {writer.name}" if isinstance(writer, ChatWriter) else self.name
        return self._read(films, gaze, partial(self._composed, writer=writer), name, protocol)

    def _read(self, films, gaze, report: Callable, name: str, protocol: str | None) -> Iterator[Reading]:
        """`report`: pixels, scanpaths and findings of a batch -> the sentences of each film."""
        if protocol not in (None, *PROTOCOLS):
            raise ValueError(f"protocol must be {' or '.join(map(repr, PROTOCOLS))}, got {protocol!r}")
        for batch in self.batches(self._paired(films, gaze)):
            films, given = zip(*batch, strict=True)
            yield from self._read_batch(list(films), list(given), report, name, protocol)

    def _paired(self, films, gaze) -> list[tuple[Film, Scanpath | None]]:
        gaze = list(gaze) if gaze is not None else [None] * len(films)
        if len(gaze) != len(films):
            raise ValueError(f"films: {len(films)}, scanpaths: {len(gaze)}; each film needs one (or None)")
        return list(zip(films, gaze, strict=True))

    @torch.no_grad()
    def _read_batch(self, films: list[Film], given: list, report, name: str, protocol: str | None) -> list[Reading]:
        findings, attention = zip(*self.attend(films, given), strict=True)
        _, processor = self.vlm
        pixels = self._pixels(processor, films)
        scanpaths, sources = self._gaze(films, pixels, given)
        reported = [[record for record in records if record["name"] in FINDING_REGIONS] for records in findings]
        reports = report(pixels, scanpaths, reported)
        if protocol:
            paths = [path if source == "given" else None for path, source in zip(scanpaths, sources, strict=True)]
            reports = list(map(in_reading_order, reports, reported, paths))
        readings = []
        for film, records, maps, scanpath, source, sentences in zip(
            films, findings, attention, scanpaths, sources, reports, strict=True
        ):
            evidence = link_evidence(
                join(sentences),
                records,
                scanpath,
                spans=spans(sentences),
                sources=[sentence.source for sentence in sentences],
                image={
                    "name": Path(film.path).name,
                    "sha256": film.sha256,
                    "width": film.size[0],
                    "height": film.size[1],
                },
                model={"name": name, "version": __version__},
                gaze=source,
                attention=maps,
            )
            readings.append(Reading(film, records, scanpath, source, sentences, evidence))
        return readings

    def _reconciled(self, pixels, scanpaths, findings: list[list[dict]], **streamed) -> list[list[ComposedSentence]]:
        listed = [{record["name"] for record in records if record["present"]} for records in findings]
        known = [[name for name in REPORTED if name in names and name != NO_FINDING] for names in listed]
        drafts = self._write(pixels, scanpaths, known, lambda row, text: _disagreement(text, known[row]), **streamed)
        return [ReportComposer().reconcile(draft, records) for draft, records in zip(drafts, findings, strict=True)]

    def _composed(self, pixels, scanpaths, findings: list[list[dict]], writer) -> list[list[ComposedSentence]]:
        if writer == "template":
            return [ReportComposer().compose(records) for records in findings]
        if writer != "model":
            return [ReportComposer().compose(records, writer) for records in findings]
        candidates = self._write_alone(pixels, scanpaths, findings)
        return [
            ReportComposer().compose(records, lambda keywords, known=known: known)
            for records, known in zip(findings, candidates, strict=True)
        ]

    def _write_alone(self, pixels, scanpaths, findings: list[list[dict]]) -> list[list[str | None]]:
        """A candidate for each keyword of each film, from reports about its finding alone; None where none passes."""
        asked = [(row, word) for row, records in enumerate(findings) for word in ReportComposer().keywords(records)]
        candidates: list[list[str | None]] = [[] for _ in findings]
        for batch in self.batches(asked):
            rows = [row for row, _ in batch]
            passing = [partial(written_for, keyword, findings=findings[row]) for row, keyword in batch]
            drafts = self._write(
                pixels[rows],
                [scanpaths[row] for row in rows],
                [[canonical(keyword.finding)] for _, keyword in batch],
                lambda number, draft, passing=passing: passing[number](draft) is None,
            )
            for row, first, draft in zip(rows, passing, drafts, strict=True):
                candidates[row].append(first(draft))
        return candidates

    def _gaze(self, films, pixels, given) -> tuple[list[Scanpath], list[str]]:
        """Each film's gaze and where it comes from; a given scanpath without a fixation counts as none."""
        model, _ = self.vlm
        if not self._predicts():
            empty = Scanpath([], [], [], [])
            return [path or empty for path in given], ["given" if path else "none" for path in given]
        fixations, mask = model.predict_gaze(pixels)
        records = scanpath_records(ScanpathSamples(fixations[:, None], mask[:, None]))
        scanpaths, sources = [], []
        for film, path, record in zip(films, given, records, strict=True):
            scanpaths.append(path or Scanpath.from_records(record[0], film.size))
            sources.append("given" if path else "predicted")
        return scanpaths, sources

    def _write(
        self,
        pixels,
        scanpaths: list[Scanpath],
        known: list[list[str]],
        fault: Callable[[int, str], int],
        drafts: int = 4,
        **streamed,
    ) -> list[str]:
        """A draft of each report: the greedy one, or the best of some more where it has a fault.

        `fault`: of a row and its text, 0 where nothing is wrong; `streamed`: the greedy one's `streamer`, or nothing.
        """
        best = self._generate(pixels, scanpaths, known, **streamed)
        for row, (text, names) in enumerate(zip(best, known, strict=True)):
            if not fault(row, text):
                continue
            with _seeded(self.device):  # each film anew: its report does not depend on what else is in the batch
                more = self._generate(pixels[[row] * drafts], [scanpaths[row]] * drafts, [names] * drafts, sample=True)
            best[row] = min([text, *more], key=partial(fault, row))
        return best

    def _generate(self, pixels, scanpaths, known, sample: bool = False, **streamed) -> list[str]:
        model, processor = self.vlm
        prompts = [
            processor.expand_image_tokens(
                processor.apply_chat_template(report_messages(names), add_generation_prompt=True)
            )
            for names in known
        ]
        inputs = processor.tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
        fixations, mask = pad_fixations([path.to_array() for path in scanpaths])
        options = {"do_sample": True, "temperature": 0.7, "top_p": 0.9} if sample else {"do_sample": False}
        tokens = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pixel_values=pixels,
            fixations=fixations.to(self.device),
            fixation_mask=mask.to(self.device),
            **options,
            **streamed,
        )
        return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def grey_film(size: int = 512) -> Film:
    """An even grey film, for when there is only a text."""
    return Film(pixels=np.full((size, size), 128, np.uint8), path="grey film", format="png", sha256="", view=None)


@contextlib.contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Random numbers of this device from seed 0 on; afterwards every generator is as before."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed all GPUs, used or not
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(0)
        yield


def _settle(records: list[dict], attention: dict[str, np.ndarray]) -> list[dict]:
    """Findings that agree with one another, each with the regions that its attention chooses.

    A mass is a lung lesion. Where No Finding reaches its threshold and nothing is likelier there is nothing else; and
    where nothing reaches its threshold there is No Finding.
    """
    present = {record["name"] for record in records if record["present"]}
    likeliest = max(records, key=lambda record: record["probability"])["name"]
    if NO_FINDING in present and likeliest != NO_FINDING:
        present.remove(NO_FINDING)
    present |= {FINER_FINDINGS[name] for name in present if FINER_FINDINGS.get(name)}
    if NO_FINDING in present or not present:
        present = {NO_FINDING}
    return [
        {
            "name": record["name"],
            "probability": round(record["probability"], 4),
            "present": record["name"] in present,
            "regions": choose_regions(record["name"], attention[record["name"]]) if record["name"] in PLACED else [],
        }
        for record in records
    ]


def _disagreement(report: str, known: list[str]) -> int:
    """How many findings a report adds or leaves out."""
    return len((label(report).positive() & set(REPORTED)) ^ (set(known) or {NO_FINDING}))
