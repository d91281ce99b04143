"""Images a second of ScanpathPredictor, the share of its parts, and what it saves that text is not read for each film.

The peer is the paper's way: the language model reads [queries ; text] anew for every film. Beside it the same weights
with `language_model_input="text"`: the text read once for all films (kept states), and no text at all, where no
language model runs. Two models: nano as it is embedded, and MedGaze's layout with ResNet-50 at 256 pixels and a
language model as large as OPT-125m, random weights. On CUDA too, where there is one.

python tests/benchmarks/scanpath.py [--threads 1] [--batches 1 8 64]

Seconds are the best of three calls of `predict` (the point estimate) after one that does not count. Memory is the peak
of the process, or of the device, over what it held with the model loaded; each batch size is a process of its own.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

TEXT_TOKENS = 32
PARTS = {
    "tower": "vision_tower",
    "encoder": "encoder.0",
    "Q-Former": "qformer",
    "language model": "language_model.model",
    "decoder": "decoder.0",
}
OPT_125M = {
    "model_type": "opt",
    "hidden_size": 768,
    "word_embed_proj_dim": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def build(name: str, reads: str, device: str):
    """A model that reads text the given way; the weights are the same for both ways."""
    import torch

    from gaze_vlm import ScanpathPredictor, ScanpathPredictorConfig
    from gaze_vlm.loading import NANO

    if name == "nano":
        config = ScanpathPredictorConfig.from_pretrained(NANO / "scanpath_predictor")
        config.language_model_input = reads
        model = ScanpathPredictor.from_pretrained(NANO / "scanpath_predictor", config=config, dtype=torch.float32)
        return model.to(device).eval(), 320
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8}
    config = ScanpathPredictorConfig.medgaze_plus(**sizes, text_config=OPT_125M, language_model_input=reads)
    return ScanpathPredictor(config).to(device).eval(), 256


def inputs(model, side: int, batch: int, text: str) -> dict:
    """What `predict` is given: text "read" with each film, "kept" (read once), or "none"."""
    import torch

    torch.manual_seed(0)
    given = {"pixel_values": torch.randn(batch, 3, side, side, device=model.device)}
    ids = torch.randint(5, model.config.text_config.vocab_size, (1, TEXT_TOKENS), device=model.device)
    if text == "read":
        given["input_ids"] = ids.expand(batch, -1)
    if text == "kept":
        with torch.no_grad():
            given["text_states"], given["attention_mask"] = model.get_text_states(ids)
    return given


@contextmanager
def clocks(model, seconds: dict[str, float]):
    """Adds up the seconds that each part takes."""
    import torch

    def now() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def watch(name, module):
        started = []
        yield module.register_forward_pre_hook(lambda *_: started.append(now()))
        yield module.register_forward_hook(
            lambda *_: seconds.__setitem__(name, seconds.get(name, 0) + now() - started.pop())
        )

    hooks = []
    for name, path in PARTS.items():
        part = path.removesuffix(".0")
        modules = list(model.get_submodule(part)) if path != part else [model.get_submodule(part)]
        hooks += [hook for module in modules for hook in watch(name, module)]
    yield
    for hook in hooks:
        hook.remove()


def measure(name: str, reads: str, text: str, batch: int, device: str, threads: int) -> dict:
    import torch

    torch.set_num_threads(threads)
    model, side = build(name, reads, device)
    given = inputs(model, side, batch, text)
    cuda = device == "cuda"
    before = torch.cuda.memory_allocated() / 2**20 if cuda else resident("VmRSS")
    model.predict(**given, sample=False)
    best, shares = float("inf"), {}
    for _ in range(3):
        seconds = {}
        with clocks(model, seconds):
            started = time.perf_counter()
            model.predict(**given, sample=False)
            if cuda:
                torch.cuda.synchronize()
            whole = time.perf_counter() - started
        if whole < best:
            best, shares = whole, {part: value / whole for part, value in seconds.items()}
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident("VmHWM")
    return {"images a second": batch / best, "MiB": peak - before, "shares": shares}


def resident(field: str) -> float:
    """MiB of memory this process holds now (VmRSS) or held at most (VmHWM), as Linux counts it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def in_own_process(*arguments) -> dict:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


WAYS = (
    ("queries_and_text", "read", "text read with each film (the paper)"),
    ("text", "kept", "text read once for all"),
    ("text", "none", "no text"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--models", nargs="+", choices=("nano", "opt-125m"), default=["nano", "opt-125m"])
    arguments = parser.parse_args()
    import torch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    print("| device | model | batch | text | images a second | ratio | peak MiB", *PARTS, sep=" | ", end=" |\n")
    print("|" + " --- |" * (7 + len(PARTS)))
    for device in devices:
        for name in arguments.models:
            for batch in arguments.batches:
                peer = None
                for reads, text, what in WAYS:
                    result = in_own_process(name, reads, text, batch, device, arguments.threads)
                    speed = result["images a second"]
                    peer = peer or speed
                    shares = " | ".join(f"{result['shares'].get(part, 0):.0%}" for part in PARTS)
                    print(
                        f"| {device} | {name} | {batch} | {what} | {speed:.1f} | {speed / peer:.2f} | "
                        f"{result['MiB']:.0f} | {shares} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
