"""The Space: the front door in a browser, around the evidence page. `build` makes it, `launch` serves it."""

import atexit
import html
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from importlib import resources
from pathlib import Path
from typing import Any

from . import space_views as views
from .space_reader import EXAMPLES, GAZE, GIVEN, KEPT, PREDICTED, Refused, SpaceReader, Step, opened

MIB = 1024**2
MAX_MB = 50  # of an upload, in MiB
MAX_MESSAGE = MIB  # bytes of any other request
SWEEP = 60  # seconds from one look for old uploads to the next
WAITING = 100  # tasks that may wait for their turn
AGAIN = "The file is not here, or no longer: choose it again."
SLIP = "This could not be done, for a fault of the Space. Nothing of your film or text was logged."

logger = logging.getLogger(__name__)


def build(model: str | Path | None = None):
    """The Space as a `gradio.Blocks`, its models loaded and warm.

    Args:
        model: a folder or a Hub repository, as of `ReadingPipeline`; the embedded nano by default.

    Raises:
        ImportError: without Gradio (extra "space").
        ModelError: if the models cannot be loaded.
    """
    gr = _gradio()
    reader = SpaceReader(model)
    blocks = _blocks(gr)
    with blocks(title="Gaze to report", analytics_enabled=False, fill_width=True, delete_cache=(SWEEP, KEPT)) as demo:
        gr.HTML(views.header(reader.models.name))
        inputs = _inputs(gr)
        with gr.Tabs(elem_id="tasks"):
            with gr.Tab("Reading"):
                _reading(gr, reader, **inputs)
            with gr.Tab("Ask"):
                _ask(gr, reader, inputs)
            with gr.Tab("Find"):
                _find(gr, reader, inputs)
            with gr.Tab("Compare"):
                _compare(gr, reader, inputs)
    return demo.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)


def _inputs(gr) -> dict[str, Any]:
    """Film, example, gaze and its file, and the button: what a person brings."""
    with gr.Row(elem_id="inputs"):
        film = gr.File(label=f"Film: PNG, JPEG or DICOM, up to {MAX_MB} MB", elem_id="film", height=150)
        example = gr.Radio(list(EXAMPLES), label="or an example", elem_id="example")
        with gr.Column(min_width=240):
            gaze = gr.Radio(list(GAZE), value=PREDICTED, label="Gaze", elem_id="gaze")
            gaze_file = gr.File(label="Recorded gaze: CSV or JSON", elem_id="gaze-file", height=110, visible=False)
            start = gr.Button("Read the film", variant="primary", elem_id="read")
    gaze.change(lambda kind: gr.update(visible=kind == GIVEN), gaze, gaze_file, **_PRIVATE)
    return {"film": film, "example": example, "gaze": gaze, "gaze_file": gaze_file, "start": start}


def _reading(gr, reader: SpaceReader, film, example, gaze, gaze_file, start) -> None:
    """A film is read when it is chosen, or by the button; then its place comes into sight."""
    with gr.Row(elem_id="progress"):
        places = {"film": gr.HTML(elem_id="glance"), "progress": gr.HTML(views.empty(), elem_id="steps")}
    places |= {"viewer": gr.HTML(elem_id="viewer"), "evidence": gr.JSON(visible=False, label="Evidence")}
    read, given = _task(gr, reader.read, places, "progress"), [film, example, gaze, gaze_file]
    readings = [start.click(read, given, **_options(places, "progress", api_name="read"))]
    for chosen, other in ((film.upload, example), (example.input, film)):
        cleared = chosen(lambda: None, None, other, **_PRIVATE)
        readings.append(cleared.then(read, given, **_options(places, "progress", api_visibility="private")))
    for reading in readings:
        reading.success(js=_GO_THERE)
        reading.failure(js=_GO_THERE)


def _ask(gr, reader: SpaceReader, inputs: Mapping[str, Any]) -> None:
    with gr.Row(elem_classes="asking"):
        text = gr.Textbox(label="Question", placeholder="Is there pleural effusion?", elem_id="question", scale=5)
        button = gr.Button("Ask", elem_id="ask", scale=1)
    places = {"answer": gr.Textbox(label="Answer of the language model, not checked", elem_id="answer")}
    _on_text(_task(gr, reader.ask, places, "answer"), inputs, text, button, places, "answer", "ask")


def _find(gr, reader: SpaceReader, inputs: Mapping[str, Any]) -> None:
    with gr.Row(elem_classes="asking"):
        text = gr.Textbox(label="What to find", placeholder="pleural effusion", elem_id="phrase", scale=5)
        button = gr.Button("Find on the film", elem_id="ground", scale=1)
    places = {"found": gr.HTML(elem_id="found"), "boxes": gr.JSON(visible=False, label="Boxes")}
    _on_text(_task(gr, reader.ground, places, "found"), inputs, text, button, places, "found", "ground")


def _on_text(handler, inputs: Mapping[str, Any], text, button, places, main: str, name: str) -> None:
    """The button and the Enter key do the same."""
    given = [inputs["film"], inputs["example"], text]
    button.click(handler, given, **_options(places, main, api_name=name))
    text.submit(handler, given, **_options(places, main, api_visibility="private"))


def _compare(gr, reader: SpaceReader, inputs: Mapping[str, Any]) -> None:
    with gr.Row(elem_classes="asking"):
        gr.HTML("<p>The report with predicted gaze and with none; with recorded gaze too, if it is given.</p>")
        button = gr.Button("Compare", elem_id="compare", scale=0, min_width=240)
    places = {"compared": gr.HTML(elem_id="compared"), "reports": gr.JSON(visible=False, label="Reports")}
    given = [inputs["film"], inputs["example"], inputs["gaze_file"]]
    handler = _task(gr, reader.compare, places, "compared")
    button.click(handler, given, **_options(places, "compared", api_name="compare"))


def launch(demo, port: int | None = None, **options: Any):
    """Serve it, on this machine alone unless GRADIO_SERVER_NAME says more; what `Blocks.launch` returns.

    Args:
        port: by default the first free one from 7860 on.
        options: of `Blocks.launch`.
    """
    from starlette.middleware import Middleware

    return demo.launch(
        server_port=port,
        share=False,
        quiet=True,
        show_error=False,  # what is said to a person is said by `_task`; anything else may hold a file's name
        max_file_size=MAX_MB * MIB,
        state_session_capacity=100,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=["api", "settings"],
        app_kwargs={"middleware": [Middleware(Gate)]},
        theme=_theme(),
        css=_css(),
        **options,
    )


class Gate:
    """ASGI middleware: no file is served out of the uploads, to nobody, and a request has a size that is allowed."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        answer = self.app
        if scope["type"] == "http" and (refusal := self.refusal(scope)):
            from starlette.responses import PlainTextResponse

            answer = PlainTextResponse(refusal[1], status_code=refusal[0])
        await answer(scope, receive, send)

    @staticmethod
    def refusal(scope) -> tuple[int, str] | None:
        """Status and sentence, where a request is refused."""
        if re.search(r"/(?:file|proxy|stream)(?:[=/]|$)", scope["path"], re.IGNORECASE):
            return 403, "This Space serves no files."
        if scope["method"] != "POST":
            return None
        length = dict(scope["headers"]).get(b"content-length", b"")
        most = (MAX_MB + 1) * MIB if scope["path"].endswith("/upload") else MAX_MESSAGE
        if not length.isdigit():
            return 411, "A request must say how long it is."
        if int(length) > most:
            return 413, f"This is too large: {int(length) / MIB:,.0f} MB; a file may have {MAX_MB} MB."
        return None


_GO_THERE = """() => {
    const frame = document.querySelector("#viewer iframe"), dark = document.body.classList.contains("dark");
    if (frame && dark !== matchMedia("(prefers-color-scheme: dark)").matches) {
        const themed = frame.cloneNode();  // a frame that is still loading its page would not take another
        themed.srcdoc = frame.srcdoc.replace('content="dark light"', `content="${dark ? "dark" : "light"}"`);
        frame.replaceWith(themed);
    }
    document.querySelector("#tasks button[role=tab]").click();
    document.getElementById("tasks").scrollIntoView({behavior: "smooth"});
}"""
_PRIVATE = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def _options(places: Mapping[str, Any], main: str, **options: Any) -> dict[str, Any]:
    """Of an event that runs a task: one at a time over all of them, since they share the models."""
    return {
        "outputs": list(places.values()),
        "show_progress": "minimal",
        "show_progress_on": places[main],
        "concurrency_id": "models",
        "preprocess": False,  # a file stays a record: Gradio would make an empty copy of it, and leave it
        **options,
    }


def _task(gr, steps: Callable[..., Iterator[Step]], places: Mapping[str, Any], main: str) -> Callable:
    """The handler of a task of the reader: its steps in their places; a refusal is said in the `main` one, too."""

    @wraps(steps)  # names and docstring are the API's
    def handler(*given):
        try:
            for step in steps(*given):
                yield {places[name]: value for name, value in step.items()}
            return
        except Refused as error:
            sentence = str(error)
        except Exception as error:  # its message may hold what a person wrote or sent
            logger.error("%s failed: %s", steps.__name__, type(error).__name__)
            sentence = SLIP
        cleared = {place: "" for name, place in places.items() if name == "film"}
        yield {places[main]: sentence if main == "answer" else views.refused(sentence), **cleared}
        raise gr.Error(html.escape(sentence, quote=False), visible=False, print_exception=False)

    return handler


def _blocks(gr) -> type:
    """`gradio.Blocks` that tells who names a file which was not sent so, and not the log: with its name."""

    class Blocks(gr.Blocks):
        async def preprocess_data(self, *given, **named):
            try:
                return await super().preprocess_data(*given, **named)
            except Exception as error:
                logger.warning("a request was refused: %s", type(error).__name__)
                raise gr.Error(AGAIN, print_exception=False) from None

    return Blocks


def _gradio():
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError('the Space needs Gradio: pip install "gaze2report[space]"') from error
    if "GRADIO_TEMP_DIR" not in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = folder = tempfile.mkdtemp(prefix="gaze-vlm-space-")  # of this user alone
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return gradio


def _theme():
    """The evidence page's colours, light and dark, and the fonts of the reader's own machine."""
    gr = _gradio()
    ground, panel, line = ("#f3f4f7", "#0b0e13"), ("#ffffff", "#12171f"), ("#dde2ea", "#232b37")
    text, soft, amber, chosen = (
        ("#18202c", "#e8edf4"),
        ("#5b687b", "#94a1b5"),
        ("#a85b00", "#ffbe5c"),
        ("#fff6e6", "#1b2432"),
    )
    colours = {
        ground: "body_background_fill background_fill_secondary input_background_fill "
        "button_secondary_background_fill_hover",
        panel: "background_fill_primary block_background_fill block_label_background_fill "
        "button_secondary_background_fill checkbox_label_background_fill",
        line: "border_color_primary block_border_color input_border_color button_secondary_border_color "
        "checkbox_label_border_color",
        text: "body_text_color button_secondary_text_color",
        soft: "block_title_text_color block_label_text_color body_text_color_subdued input_placeholder_color",
        amber: "button_primary_background_fill checkbox_background_color_selected link_text_color loader_color",
        chosen: "checkbox_label_background_fill_selected color_accent_soft",
        ("#8a4a00", "#ffd08a"): "button_primary_background_fill_hover",
        ("#ffffff", "#0b0e13"): "button_primary_text_color",
    }
    settings = {"color_accent": amber[0]}  # space.css has its dark one
    for (light, dark), names in colours.items():
        for name in names.split():
            settings |= {name: light, f"{name}_dark": dark}
    theme = gr.themes.Base(font=["sans-serif"], font_mono=["monospace"], radius_size="lg", primary_hue="amber")
    return theme.set(**settings)


def _css() -> str:
    """space.css, and the examples as small pictures beside their names."""
    rules = [(resources.files("gaze_vlm") / "space.css").read_text(encoding="utf-8")]
    for number, name in enumerate(EXAMPLES, start=1):
        picture = views.thumbnail(opened(None, name))
        rules.append(f'#example label:nth-of-type({number})::before {{ background-image: url("{picture}"); }}')
    return "\n".join(rules)
