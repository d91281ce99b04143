"""gaze-vlm push: a checkpoint goes to the Hub."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .terminal import complain, console, shown, waiting


def push(
    folder: Annotated[Path, typer.Argument(help="A model, an adapter, or the folders of all three models.")],
    name: Annotated[str, typer.Argument(help="Repository, ORG/NAME.")],
    card: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON with what the card is to say (docs, page Hub).", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
) -> None:
    """Upload weights, configuration, processor, code and a card; the Hub's own token and settings hold."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    from .hub import CardFacts, HubError, push_folder

    try:
        facts = None if card is None else CardFacts.from_file(card)
        with waiting("Pushing", False):
            url = push_folder(folder, name, facts, private=private or None)
    except (HubError, HFValidationError) as error:
        complain(str(error))
    except OfflineModeIsEnabled:
        complain(f"{name}: not pushed: HF_HUB_OFFLINE is set")
    except HfHubHTTPError as error:
        complain(f"{name}: not pushed: {' '.join((error.server_message or str(error)).split())}")
    except OSError as error:
        complain(f"{name}: not pushed: {error.strerror or type(error).__name__}")
    else:
        console.print(Text("Pushed to ") + shown(url), soft_wrap=True)
        return
    raise typer.Exit(2)
