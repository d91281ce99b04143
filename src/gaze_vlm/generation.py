"""Texts of a GazeVLM for films, gaze and messages."""

from collections.abc import Sequence

import torch
from PIL import Image


@torch.no_grad()
def generate_texts(
    model,
    processor,
    messages: Sequence[list[dict]],
    images: Sequence[Sequence[Image.Image]],
    fixations: Sequence | None = None,
    gaze: str | None = None,
    **options,
) -> list[str]:
    """Answers to conversations, as one batch.

    Args:
        model: a GazeVLM, or a PeftModel around one.
        processor: its `GazeVLMProcessor`.
        messages: chat messages of each sample (`gaze_vlm.tasks`), with as many images as `images` has for it.
        images: RGB films of each sample.
        fixations: one scanpath an image (all samples' images in a row): (n, 4) arrays, records, or None.
        gaze: "given", "predicted" or "none"; by default given if there are fixations, else what the model's config
            says.
        options: of transformers' `generate`: `max_new_tokens`, `num_beams`, `do_sample`, `streamer`, ...

    Raises:
        ValueError: if images, placeholders and scanpaths do not go together.
    """
    prompts = [processor.apply_chat_template(one, add_generation_prompt=True) for one in messages]
    shown = [list(one) for one in images]
    if len(prompts) != len(shown):
        raise ValueError(f"messages: {len(prompts)}, lists of images: {len(shown)}; each sample needs one of both")
    for number, (prompt, its) in enumerate(zip(prompts, shown, strict=True)):
        placeholders = prompt.count(processor.image_token)
        if placeholders != len(its):
            raise ValueError(f"sample {number}: its messages have {placeholders} images, {len(its)} are given")
    count = sum(map(len, shown))
    if fixations is not None and len(fixations) != count:
        raise ValueError(f"images: {count}, scanpaths: {len(fixations)}; each image needs one (or None)")
    inputs = processor(
        images=shown if any(shown) else None,
        text=prompts,
        fixations=fixations,
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    ).to(model.device)
    tokens = model.generate(**inputs, gaze=gaze, **options)
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
