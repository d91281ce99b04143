"""What gaze, boxes and texts cost in training: GazeClassifier with all its losses against the same with labels alone.

Both are the first version of Eyes on the Image over one tower at 224 pixels, weights random, 14 findings, a text tower
of BERT-mini's shape. One learns from labels (binary cross-entropy); the other also from fixations (attention loss of
four terms, region against image) and boxes, and from a text a finding. Beside them the second version, which reads
gaze, boxes and a transcript through a gaze token.

python tests/benchmarks/classifier.py [--towers efficientnet_lite0 vit_b_16] [--batch 16] [--markdown]
python tests/benchmarks/classifier.py --device cuda --batch 64

A step is forward, backward and AdamW, all weights trained; CUDA runs under autocast in bfloat16, the CPU in float32.

Each system runs in a process of its own. They take turns, and a ratio is the median over the turns, so that a busy
machine slows all; with one thread the seconds of the processor compare better still. Peak memory is the process's, or
what was allocated on the device, weights and optimiser included.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from statistics import median

SYSTEMS = {"labels": "contrastive", "all losses": "contrastive", "gaze token": "gaze_token"}
SIDE, FINDINGS = 224, 14
FIXATIONS, BOXES, TEXT_TOKENS, TRANSCRIPT_TOKENS = 40, 3, 8, 64
TOWERS = {
    "efficientnet_lite0": {"model_type": "timm_wrapper", "architecture": "tf_efficientnet_lite0"},
    "vit_b_16": {"model_type": "vit", "image_size": SIDE, "patch_size": 16},
}
BERT_MINI = {
    "model_type": "bert",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}


@cache
def build(system: str, tower: str, device: str, threads: int):
    """The model and its optimiser, once a process, ready to train."""
    import torch

    from gaze_vlm import GazeClassifier, GazeClassifierConfig

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    make = getattr(GazeClassifierConfig, SYSTEMS[system])
    names = {finding: f"finding {finding}" for finding in range(FINDINGS)}
    model = GazeClassifier(make(vision_config=TOWERS[tower], text_config=BERT_MINI, id2label=names))
    model = model.to(device).train()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def inputs(system: str, device: str, batch: int) -> dict:
    import torch

    generator = torch.Generator().manual_seed(0)
    given = {
        "pixel_values": torch.randn(batch, 3, SIDE, SIDE, generator=generator),
        "labels": torch.randint(2, (batch, FINDINGS), generator=generator).float(),
    }
    if system != "labels":
        corners = torch.rand(batch, BOXES, 4, generator=generator) / 2
        given |= {
            "fixations": torch.rand(batch, FIXATIONS, 4, generator=generator),
            "fixation_mask": torch.arange(FIXATIONS) < torch.randint(5, FIXATIONS, (batch, 1), generator=generator),
            "boxes": corners + torch.tensor([0, 0, 0.5, 0.5]),
            "box_labels": torch.randint(-1, FINDINGS, (batch, BOXES), generator=generator),
            "finding_text": torch.randint(1000, 30000, (FINDINGS, TEXT_TOKENS), generator=generator),
        }
    if system == "gaze token":
        given["transcript"] = torch.randint(1000, 30000, (batch, TRANSCRIPT_TOKENS), generator=generator)
    return {name: value.to(device) for name, value in given.items()}


def clocks(device: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def train(system: str, tower: str, device: str, threads: int, batch: int, steps: int) -> list[float]:
    """Films a second, by the clock and of the processor."""
    import torch

    model, optimizer = build(system, tower, device, threads)
    given = inputs(system, device, batch)
    started = clocks(device)
    for _ in range(steps):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            outputs = model(**given)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    parts = {"labels": 1, "all losses": 5, "gaze token": 3}
    assert len(outputs.loss_parts) == parts[system], outputs.loss_parts.keys()
    return [batch * steps / (after - before) for before, after in zip(started, clocks(device), strict=True)]


def held(system: str, tower: str, device: str, threads: int) -> list[float]:
    """Millions of parameters, and MiB at the peak so far."""
    import torch

    parameters = sum(each.numel() for each in build(system, tower, device, threads)[0].parameters()) / 1e6
    if device == "cuda":
        return [parameters, torch.cuda.max_memory_allocated() / 2**20]
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [parameters, int(lines["VmHWM"].split()[0]) / 1024]


def in_turns(turns: int, batch: int, steps: int, *where) -> dict[str, list[float]]:
    """What is held and the medians of each system, and of its ratios to the one that learns from labels alone."""
    context = multiprocessing.get_context("spawn")
    pools = {system: ProcessPoolExecutor(1, mp_context=context) for system in SYSTEMS}
    timed = [
        {system: pool.submit(train, system, *where, batch, steps).result() for system, pool in pools.items()}
        for _ in range(1 + turns)
    ]
    of_each = {system: pool.submit(held, system, *where).result() for system, pool in pools.items()}
    for pool in pools.values():
        pool.shutdown()
    peer = "labels"
    rows = {}
    for system in SYSTEMS:
        speeds = [turn[system] for turn in timed[1:]]  # the first one warmed up
        rows[system] = [*of_each[system], *medians(speeds)]
        if system != peer:
            against = [ratios(turn[peer], turn[system]) for turn in timed[1:]]
            rows[f"{system} / {peer}"] = [*ratios(of_each[peer], of_each[system]), *medians(against)]
    return rows


def medians(rows: list[list[float]]) -> list[float]:
    return [median(values) for values in zip(*rows, strict=True)]


def ratios(peer: list[float], ours: list[float]) -> list[float]:
    return [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]


def shown(value: float, width: int) -> str:
    return f"{value:>{width}.{2 if value < 10 else 1}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=list(TOWERS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1, help="in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    names = ["parameters (M)", "peak MiB", "films a second", "a processor s"]
    edge, between = ("|", " | ") if arguments.markdown else ("", "  ")
    print(edge, between.join([f"{'tower':<18}", f"{'learns from':<19}", *names]), edge)
    if arguments.markdown:
        print("|" + " --- |" * (2 + len(names)))
    for tower in arguments.towers:
        where = (tower, arguments.device, arguments.threads)
        for who, values in in_turns(arguments.turns, arguments.batch, arguments.steps, *where).items():
            cells = [shown(value, len(name)) for name, value in zip(names, values, strict=True)]
            print(edge, between.join([f"{tower:<18}", f"{who:<19}", *cells]), edge, flush=True)


if __name__ == "__main__":
    main()
