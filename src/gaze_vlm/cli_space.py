"""The command gaze-vlm space: the Space on one's own machine."""

import signal
import sys
from typing import Annotated

import typer

from .cli_films import Model
from .terminal import complain, console, waiting


def space(
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="By default the first free one from 7860 on.", show_default=False),
    ] = None,
    model: Model = None,
) -> None:
    """The Space in a browser, on this machine alone: films, gaze, reports, evidence, questions."""
    import transformers

    from .loading import ModelError
    from .space import build, launch

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with waiting("Loading the models", False):
            demo = build(model)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # an end like any other: uploads are removed
        _, address, _ = launch(demo, port, prevent_thread_lock=True)
    except (ImportError, OSError, ModelError) as error:
        complain(str(error))
        raise typer.Exit(2) from None
    console.print(f"The Space is at {address} until you press Ctrl+C.", highlight=False)
    demo.block_thread()
