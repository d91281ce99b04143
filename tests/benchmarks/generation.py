"""What gaze costs: GazeVLM that predicts gaze on each film, against transformers' LLaVA, which knows no gaze.

Both have the same vision tower (CLIP ViT-B/16 at 224 pixels), the same language model and 196 image tokens a film;
weights are random. GazeVLM also predicts a scanpath from the tower's patch tokens (the nano predictor without a tower)
and runs the visual-gaze graph. Two language models: SmolLM2-135M's shape, and on CUDA Llama-2-7B's.

python tests/benchmarks/generation.py [--size 135m] [--batches 1 8] [--tokens 64] [--markdown]
python tests/benchmarks/generation.py --size 7b --device cuda
python tests/benchmarks/generation.py --size 7b --device cuda --train

The first token's seconds hold all that is done once: vision, gaze, graph, prompt. Tokens a second are those of the
whole greedy `generate`, the first included. `--train` measures a LoRA step instead: batch 1, 1024 tokens, gradient
checkpointing, graph and projector trained in full. CUDA runs in bfloat16, the CPU in float32.

Each system runs in a process of its own, a new one for each batch size. The two take turns, and a ratio is the median
over the turns, so that a busy machine slows both; with one thread the seconds of the processor compare better still.
Peak memory is the process's, or what was allocated on the device, weights included.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from statistics import median

SYSTEMS = ("LLaVA", "GazeVLM")
IMAGE_TOKEN, IMAGE_TOKENS, IMAGE_SIDE = 4, 196, 224
PROMPT_TOKENS, TRAIN_TOKENS = 40, 1024
VISION = {
    "model_type": "clip_vision_model",
    "image_size": IMAGE_SIDE,
    "patch_size": 16,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
LANGUAGE = {
    "135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "7b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}


def config_of(system: str, size: str):
    from transformers import LlavaConfig

    from gaze_vlm import GazeVLMConfig, ScanpathPredictorConfig

    shared = {
        "vision_config": VISION,
        "text_config": LANGUAGE[size],
        "tie_word_embeddings": LANGUAGE[size]["tie_word_embeddings"],
    }
    if system == "LLaVA":
        return LlavaConfig(**shared, image_token_id=IMAGE_TOKEN, vision_feature_layer=-1)
    predictor = ScanpathPredictorConfig.nano(vision_config=None, vision_width=VISION["hidden_size"])
    return GazeVLMConfig(**shared, image_token_id=IMAGE_TOKEN, scanpath_config=predictor, gaze="predicted")


@cache
def build(system: str, size: str, device: str, threads: int):
    """The model, once a process, ready to generate."""
    import torch
    from transformers import GenerationConfig, LlavaForConditionalGeneration

    from gaze_vlm import GazeVLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model_class = LlavaForConditionalGeneration if system == "LLaVA" else GazeVLM
    with torch.device(device):
        model = model_class._from_config(config_of(system, size), dtype=precision(device))
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # no end: all tokens are generated
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return model.eval()


@cache
def build_lora(system: str, size: str, device: str, threads: int):
    """The model with LoRA and its optimiser, once a process, ready to train."""
    import torch
    from peft import LoraConfig, get_peft_model

    in_full = {"LLaVA": ["multi_modal_projector"], "GazeVLM": ["visual_gaze_graph", "multi_modal_projector"]}
    model = build(system, size, device, threads)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # the nested predictor has a language model too: a regex that lets anything stand in front would adapt it as well
    targets = r"model\.language_model\..*\.(q|k|v|o)_proj"
    model = get_peft_model(model, LoraConfig(r=16, target_modules=targets, modules_to_save=in_full[system])).train()
    return model, torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), lr=1e-4)


def precision(device: str):
    import torch

    return torch.bfloat16 if device == "cuda" else torch.float32


def inputs(size: str, device: str, batch: int, text_tokens: int) -> dict:
    """Films that differ, and one prompt for all: [image tokens ; text]."""
    import torch

    generator = torch.Generator().manual_seed(0)
    films = torch.randn(batch, 3, IMAGE_SIDE, IMAGE_SIDE, generator=generator)
    text = torch.randint(5, LANGUAGE[size]["vocab_size"], (text_tokens,), generator=generator)
    ids = torch.cat([torch.full((IMAGE_TOKENS,), IMAGE_TOKEN), text]).expand(batch, -1)
    return {
        "pixel_values": films.to(device, precision(device)),
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids, device=device),
    }


def clocks(device: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float], device: str) -> list[float]:
    return [after - before for before, after in zip(started, clocks(device), strict=True)]


def generate(batch: int, new_tokens: int, system: str, size: str, device: str, threads: int) -> list[float]:
    """Seconds to the first token, and tokens a second; both by the clock and of the processor."""
    model = build(system, size, device, threads)
    given = inputs(size, device, batch, PROMPT_TOKENS)
    seconds = []
    for count in (1, new_tokens):
        started = clocks(device)
        output = model.generate(**given, min_new_tokens=count, max_new_tokens=count)
        seconds.append(since(started, device))
        assert output.shape == (batch, IMAGE_TOKENS + PROMPT_TOKENS + count)
    first, whole = seconds
    return [*first, *(batch * new_tokens / each for each in whole)]


def train(system: str, size: str, device: str, threads: int) -> list[float]:
    """Seconds of one step, by the clock and of the processor."""
    model, optimizer = build_lora(system, size, device, threads)
    given = inputs(size, device, 1, TRAIN_TOKENS - IMAGE_TOKENS)
    labels = given["input_ids"].masked_fill(given["input_ids"] == IMAGE_TOKEN, -100)
    started = clocks(device)
    model(**given, labels=labels, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return since(started, device)


def held(system: str, size: str, device: str, threads: int) -> list[float]:
    """Millions of parameters, and MiB at the peak so far."""
    import torch

    parameters = sum(each.numel() for each in build(system, size, device, threads).parameters()) / 1e6
    if device == "cuda":
        return [parameters, torch.cuda.max_memory_allocated() / 2**20]
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [parameters, int(lines["VmHWM"].split()[0]) / 1024]


def in_turns(call: tuple, repetitions: int, *where) -> list[list[float]]:
    """What is held and the medians of a call (function, arguments ...): of LLaVA, of GazeVLM, and of their ratios."""
    context = multiprocessing.get_context("spawn")
    pools = {system: ProcessPoolExecutor(1, mp_context=context) for system in SYSTEMS}
    turns = [
        [pool.submit(*call, system, *where).result() for system, pool in pools.items()] for _ in range(1 + repetitions)
    ]
    of_each = [pool.submit(held, system, *where).result() for system, pool in pools.items()]
    for pool in pools.values():
        pool.shutdown()
    turns = [[peer, ours, ratios(peer, ours)] for peer, ours in turns[1:]]  # the first one warmed up
    medians = [[median(values) for values in zip(*rows, strict=True)] for rows in zip(*turns, strict=True)]
    return [[*fixed, *timed] for fixed, timed in zip([*of_each, ratios(*of_each)], medians, strict=True)]


def ratios(peer: list[float], ours: list[float]) -> list[float]:
    return [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]


def shown(value: float, width: int) -> str:
    return f"{value:>{width}.{2 if value < 10 else 1}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=LANGUAGE, default="135m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--train", action="store_true", help="measure a LoRA step, not generation")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    if arguments.size == "7b" and arguments.device == "cpu":
        parser.error("--size 7b needs --device cuda")
    names = ["parameters (M)", "peak MiB"]
    if arguments.train:
        names += ["seconds a step", "processor s"]
        calls = {1: (train,)}
    else:
        names += ["first token s", "processor s", "tokens a second", "a processor s"]
        calls = {batch: (generate, batch, arguments.tokens) for batch in arguments.batches}
    edge, between = ("|", " | ") if arguments.markdown else ("", "  ")
    print(edge, between.join(["batch", f"{'system':<15}", *names]), edge)
    if arguments.markdown:
        print("|" + " --- |" * (2 + len(names)))
    for batch, call in calls.items():
        rows = in_turns(call, arguments.repetitions, arguments.size, arguments.device, arguments.threads)
        for who, values in zip((*SYSTEMS, "GazeVLM / LLaVA"), rows, strict=True):
            cells = [shown(value, len(name)) for name, value in zip(names, values, strict=True)]
            print(edge, between.join([f"{batch:>5}", f"{who:<15}", *cells]), edge, flush=True)


if __name__ == "__main__":
    main()
