"""The Space as programs see it: an app that is served, and clients of it."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason='needs Gradio: pip install "gaze2report[space]"')
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import httpx
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from transformers import TextStreamer

from gaze_vlm import ReadingPipeline, read_film, space, space_reader, space_views
from gaze_vlm.cli_films import read_gaze
from gaze_vlm.evidence import EvidenceBundle

SPACE = Path(__file__).parents[1] / "spaces" / "gaze2report"
FIXATIONS = "x,y,duration\n0.25,0.5,0.2\n0.75,0.5,0.3\n"


@pytest.fixture(scope="module")
def client(address) -> Client:
    return connect(address)


def connect(address: str) -> Client:
    return Client(address, verbose=False, analytics_enabled=False)


@pytest.fixture(scope="module")
def models(taught) -> ReadingPipeline:
    return ReadingPipeline(taught)


@pytest.fixture
def gaze_file(tmp_path):
    path = tmp_path / "gaze.csv"
    path.write_text(FIXATIONS)
    return path


def refused(client: Client, *given, api_name: str) -> str:
    with pytest.raises(AppError) as error:
        client.predict(*given, api_name=api_name)
    return unescape(str(error.value))


# ---- what it does


@pytest.mark.parametrize("suffix", ["png", "jpg", "dcm"])
@pytest.mark.parametrize("kind", space_reader.GAZE)
def test_a_reading_is_that_of_the_pipeline(client, models, film_file, gaze_file, kind, suffix):
    file = film_file(f"film.{suffix}", 3)
    _, progress, viewer, evidence = client.predict(
        handle_file(file), None, kind, handle_file(gaze_file) if kind == "Given" else None, api_name="/read"
    )
    film = read_film(file)
    pipeline = ReadingPipeline(models.source, predict_gaze=kind != "None")
    given = read_gaze(gaze_file, film) if kind == "Given" else None
    (reading,) = pipeline.read([film], [given])
    assert EvidenceBundle.from_json(json.dumps(evidence)) == reading.evidence
    assert evidence["gaze"] == kind.lower()
    assert f"{len(evidence['sentences'])} sentence" in progress
    (page,) = re.findall(r'<iframe [^>]*sandbox="allow-scripts allow-downloads" srcdoc="([^"]*)">', viewer)
    assert unescape(page) == reading.evidence.to_html(film.to_pil("L"))
    assert re.findall(r'download="([^"]*)" href="data:', viewer) == ["evidence.html", "evidence.json"]


def test_findings_come_first_then_the_draft_and_at_last_what_was_checked(client, film_file):
    job = client.submit(handle_file(film_file("film.png", 3)), None, "Predicted", None, api_name="/read")
    job.result()
    steps = [(progress, isinstance(viewer, str) and viewer != "") for _, progress, viewer, _ in job.outputs()]
    assert [viewer for _, viewer in steps] == [False] * (len(steps) - 1) + [True]
    listed = ["class='findings'" in progress for progress, _ in steps]
    assert listed == [False] + [True] * (len(steps) - 2) + [False]
    drafts = [
        re.search(r"not checked yet</span></h3><p class='draft[^>]*>(.*)</p>", progress)[1]
        for progress, _ in steps[1:-1]
    ]
    assert drafts[0] == "" and drafts[-1]
    assert all(later.startswith(earlier) for earlier, later in pairwise(drafts))
    assert f"<p class='draft'>{drafts[-1]}</p></details>" in steps[-1][0]


def test_a_streamer_follows_the_draft_of_one_film(models, film_file):
    films = [read_film(film_file(f"{seed}.png", seed)) for seed in range(2)]
    drafts = []

    class Streamer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            drafts.append(text)

    streamer = Streamer(models.vlm[1].tokenizer, skip_prompt=True, skip_special_tokens=True)
    (followed,) = models.read(films[:1], streamer=streamer)
    assert "".join(drafts)
    (alone,) = models.read(films[:1])
    assert followed.evidence == alone.evidence
    with pytest.raises(ValueError, match="a streamer goes with one film, got 2"):
        models.read(films, streamer=streamer)


def test_an_example_is_read_without_a_file(client):
    *_, evidence = client.predict(None, "Normal", "Predicted", None, api_name="/read")
    assert evidence["image"]["name"] == "normal.jpg"


def test_a_question_is_answered(client, models, film_file):
    file = film_file("film.png", 1)
    (answer,) = models.ask([read_film(file)], "Is there edema?")
    assert answer
    assert client.predict(handle_file(file), None, " Is there\nedema? ", api_name="/ask") == answer


def test_a_phrase_is_found(client, models, film_file, monkeypatch):
    file = film_file("film.png", 1)
    _, told = client.predict(handle_file(file), None, "lung opacity", api_name="/ground")
    (parsed,) = models.ground([read_film(file)], "lung opacity")
    assert told == {"phrase": "lung opacity", "boxes": list(parsed.value or ()), "reason": parsed.reason}
    answer = "<box>100,200,300,400</box><box>500,0,900,1000</box>"
    monkeypatch.setattr("gaze_vlm.pipelines.generate_texts", lambda m, p, messages, images, **_: [answer])
    shown, told = client.predict(handle_file(file), None, "<b>left & right", api_name="/ground")
    assert told["boxes"] == [[0.1, 0.2, 0.3, 0.4], [0.5, 0, 0.9, 1]]
    assert 'alt="The film with 2 boxes for &lt;b&gt;left &amp; right"' in shown
    assert "1: 10 to 30% across, 20 to 40% down; 2: 50 to 90% across, 0 to 100% down" in shown
    assert "<b>left" not in shown


def test_gaze_is_compared(client, models, film_file, gaze_file):
    file = film_file("film.png", 1)
    film = read_film(file)
    shown, reports = client.predict(handle_file(file), None, handle_file(gaze_file), api_name="/compare")
    assert list(reports) == ["Given", "Predicted", "None"]
    assert [one["gaze"] for one in reports.values()] == ["given", "predicted", "none"]
    (given,) = models.read([film], [read_gaze(gaze_file, film)])
    assert reports["Given"]["report"] == given.report
    assert shown.count("<article>") == 3
    assert "2 fixations, 0.5 s" in shown
    _, reports = client.predict(handle_file(file), None, None, api_name="/compare")
    assert list(reports) == ["Predicted", "None"]


def test_sentences_that_not_all_say_are_marked(models, film_file):
    (first,) = models.read([read_film(film_file("a.png", 1))])
    same = space_views.compared({"Predicted": first, "None": first})
    assert "All say the same." in same and "<mark>" not in same
    readings = models.compose([read_film(film_file(f"{seed}.png", seed)) for seed in range(8)], writer="template")
    other = next(one for one in readings if one.report != first.report)
    differ = space_views.compared({"Predicted": first, "None": other})
    texts = [[sentence.text for sentence in one.evidence.sentences] for one in (first, other)]
    alone = set(texts[0]) ^ set(texts[1])
    assert set(map(unescape, re.findall("<mark>(.*?)</mark>", differ))) == alone
    assert "marked" in differ


def test_the_api_has_the_tasks_and_nothing_else(client):
    api = client.view_api(return_format="dict")
    named = {
        name: [each["parameter_name"] for each in one["parameters"]] for name, one in api["named_endpoints"].items()
    }
    assert named == {
        "/read": ["film", "example", "gaze", "gaze_file"],
        "/ask": ["film", "example", "question"],
        "/ground": ["film", "example", "phrase"],
        "/compare": ["film", "example", "gaze_file"],
    }
    assert api["unnamed_endpoints"] == {}


# ---- what it refuses


def test_a_text_that_is_called_png(client, tmp_path):
    file = tmp_path / "Jane_Doe.png"
    file.write_text("no picture")
    for name, rest in (("/read", ("Predicted", None)), ("/ask", ("Why?",)), ("/compare", (None,))):
        sentence = refused(client, handle_file(file), None, *rest, api_name=name)
        assert sentence == "The film cannot be read: not an image file (PNG, JPEG or DICOM expected)."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("x,y,duration\n0.5,0.5,<b>\n", "not a number"),
        ("x,y,duration\n512,300,0.2\n", "0..1 of the image, not pixels"),
        ("x,y,duration\n0.5,0.5,250\n", "seconds, not milliseconds"),
        ("x,y,duration\n", "holds no fixation"),
        ("x,y\n0.5,0.5\n", "duration"),
        ("x,y,duration\n" + " " * space_reader.MAX_GAZE, "The gaze file is too large (at most 5 MB)."),
    ],
)
def test_gaze_that_is_none(client, film_file, tmp_path, content, sentence):
    gaze = tmp_path / "Jane_Doe.csv"
    gaze.write_text(content)
    said = refused(client, handle_file(film_file("f.png")), None, "Given", handle_file(gaze), api_name="/read")
    assert sentence in said and "Jane" not in said


def test_gaze_of_many_fixations(client, film_file, tmp_path):
    gaze = tmp_path / "long.csv"
    gaze.write_text("x,y,duration\n" + "0.5,0.5,0.1\n" * (space_reader.MAX_FIXATIONS + 1))
    said = refused(client, handle_file(film_file("f.png")), None, "Given", handle_file(gaze), api_name="/read")
    assert "The gaze file has 5,001 fixations; 5,000 can be read." in said


def test_what_is_missing(client, film_file, save_dicom, tmp_path):
    film = handle_file(film_file("f.png"))
    assert refused(client, None, None, "Predicted", None, api_name="/read").startswith("Choose a film first")
    assert "Choose the file of the recorded gaze" in refused(client, film, None, "Given", None, api_name="/read")
    assert refused(client, film, None, " \n", api_name="/ask") == "Write a question first."
    assert refused(client, film, None, "", api_name="/ground") == "Write what to find first."
    said = refused(client, film, None, "what " * 400, api_name="/ask")
    assert said.startswith("The text is too long: with the film ")


def test_a_lateral_film(client, film_file):
    import pydicom

    file = film_file("lateral.dcm")
    data = pydicom.dcmread(file)
    data.ViewPosition = "LL"
    data.save_as(file)
    assert "a lateral view (LL)" in refused(client, handle_file(file), None, "None", None, api_name="/read")


def test_a_task_that_was_not_taught(tiny_bundle, film_file):
    reader = space_reader.SpaceReader(tiny_bundle)
    assert "vqa" not in reader.models.vlm[0].config.tasks
    with pytest.raises(space_reader.Refused, match=r"^The model was not taught the task vqa; it knows report\.$"):
        list(reader.ask({"path": str(film_file("f.png"))}, None, "Why?"))


def test_60_mb(client, address, tmp_path):
    file = tmp_path / "large.png"
    with file.open("wb") as out:
        out.truncate(60_000_000)
    with pytest.raises(ValueError, match="exceeds the maximum file size of 52428800 bytes"):
        client.predict(handle_file(file), None, "Predicted", None, api_name="/read")
    with file.open("rb") as content:
        answer = httpx.post(f"{address}gradio_api/upload", files={"files": content}, timeout=60)
    assert answer.status_code == 413
    assert answer.text == "This is too large: 57 MB; a file may have 50 MB."
    slightly = httpx.post(f"{address}gradio_api/upload", files={"files": b"0" * 52_900_000}, timeout=60)
    assert slightly.status_code == 413
    long = httpx.post(f"{address}gradio_api/queue/join", content=b"0" * 1_048_577)
    assert long.status_code == 413
    unknown = httpx.post(f"{address}gradio_api/queue/join", content=iter([b"{}"]))
    assert unknown.status_code == 411


# ---- whose files are whose


def test_no_file_can_be_fetched_and_none_be_read_that_was_not_sent(address, film_file, capfd):
    with film_file("Jane_Doe.png").open("rb") as content:
        (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": content}).json()
    assert Path(path).is_file()
    routes = ["gradio_api/file=", "file=", "gradio_api/file%3D", "gradio_api/file/", "gradio_api/file//", "file/"]
    for route in [*routes, "gradio_api/%66ile/", "gradio_api/proxy=", "gradio_api/stream/"]:
        for target in (path, "/etc/hostname", str(Path(__file__))):
            answer = httpx.get(f"{address}{route}{target}")
            assert answer.status_code in (403, 404), (route, target)
    elsewhere = film_file("elsewhere.png")
    for target, message in ((path, "event: complete"), (str(elsewhere), "event: error")):
        file = {"path": target, "meta": {"_type": "gradio.FileData"}}
        call = httpx.post(f"{address}gradio_api/call/ask", json={"data": [file, None, "Why?"]}).json()
        answer = httpx.get(f"{address}gradio_api/call/ask/{call['event_id']}", timeout=60).text
        assert message in answer and "elsewhere" not in answer
    assert space.AGAIN in answer
    assert "elsewhere" not in "".join(capfd.readouterr())


def test_uploads_are_removed_in_time(taught, film_file, gaze_file, tmp_path, monkeypatch):
    folder = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    monkeypatch.setattr(space, "SWEEP", 1)
    monkeypatch.setattr(space, "KEPT", 3)
    demo = space.build(taught)
    try:
        _, url, _ = space.launch(demo, prevent_thread_lock=True, server_name="127.0.0.1")
        client = connect(url)
        given = handle_file(film_file("film.png")), None, "Given", handle_file(gaze_file)
        client.predict(*given, api_name="/read")
        late = time.monotonic() + 60
        while any(path.is_file() for path in folder.rglob("*")):
            assert time.monotonic() < late, list(folder.rglob("*"))
            time.sleep(0.2)
    finally:
        demo.close(verbose=False)


def test_a_film_that_was_removed_is_asked_for_again(film_file):
    with pytest.raises(space_reader.Refused, match="The film is no longer here: files are removed after 30 minutes"):
        space_reader.opened({"path": str(film_file("a.png")) + "gone"}, None)


# ---- many, and what goes wrong


def test_fifty_clients_at_once(address, film_file):
    files = [handle_file(film_file(f"{number}.png", number % 5)) for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        clients = list(pool.map(lambda _: connect(address), files))
        jobs = list(
            pool.map(
                lambda one, file: one.submit(file, None, "Predicted", None, api_name="/read"),
                clients,
                files,
            )
        )
        ranks = set()
        while not all(job.done() for job in jobs):
            ranks |= {job.status().rank for job in jobs}
            time.sleep(0.05)
    results = [job.result() for job in jobs]
    assert all(result[3]["sentences"] for result in results)
    assert [result[3]["image"]["name"] for result in results] == [f"{number}.png" for number in range(50)]
    assert len(ranks - {None}) > 5  # each was told where it stands


def test_a_fault_is_told_without_its_message(client, film_file, monkeypatch, caplog, capfd):
    def fail(*_):
        raise RuntimeError("Jane Doe's film")

    monkeypatch.setattr(space_views, "found", fail)
    assert refused(client, handle_file(film_file("f.png")), None, "heart", api_name="/ground") == space.SLIP
    assert caplog.messages == ["ground failed: RuntimeError"]
    assert "Jane" not in "".join(capfd.readouterr())


def test_what_takes_too_long_is_given_up():
    import queue

    class Slow:
        def __iter__(self):
            yield "The heart"
            raise queue.Empty

    with pytest.raises(space_reader.Refused, match="takes too long"):
        list(space_reader.glimpses(Slow()))


def test_each_generation_has_a_time_limit(taught):
    assert space_reader.SpaceReader(taught).models.vlm[0].generation_config.max_time == space_reader.SECONDS


# ---- from the command line, and on the Hub


def test_the_command_serves_leaves_nothing_and_logs_no_name(taught, film_file, tmp_path):
    held = tmp_path / "tmp"
    held.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    environment |= {"TMPDIR": str(held), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "gaze_vlm.cli", "space", "--model", str(taught)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            address = re.search(r"The Space is at (http://127\.0\.0\.1:\d+/) until", line)
            assert address, line + process.stdout.read()
            client = connect(address[1])
            names = ["Jane_Doe.png", "John_Doe.dcm"]
            for name in names:
                client.predict(handle_file(film_file(name)), None, "Predicted", None, api_name="/read")
            broken = tmp_path / "Jane_Roe.png"
            broken.write_text("Jane")
            refused(client, handle_file(broken), None, "Jane?", api_name="/ask")
            assert [path.stat().st_mode & 0o077 for path in held.iterdir() if path.name.startswith("gaze-vlm")] == [0]
        finally:
            process.terminate()
            said = process.stdout.read()
        assert process.wait(60) == 0
    assert not re.search("Doe|Roe|Jane|Traceback", said), said
    assert [path for path in held.rglob("*") if path.is_file()] == []


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch, capsys):
    from gaze_vlm.cli import main

    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["gaze-vlm", "space"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == 'gaze-vlm: the Space needs Gradio: pip install "gaze2report[space]"\n'


def test_front_matter_requirements_and_app(monkeypatch):
    from huggingface_hub import RepoCard, SpaceCardData
    from packaging.requirements import Requirement
    from packaging.version import Version

    import gaze_vlm

    card = RepoCard.load(SPACE / "README.md")
    data = SpaceCardData(**card.data.to_dict())
    assert (data.sdk, data.license, data.app_file) == ("gradio", "apache-2.0", "app.py")
    assert Version(data.sdk_version) >= Version("6.31") and data.python_version and data.title
    assert len(data.short_description) <= 60
    assert "no medical device" in card.text
    (line,) = (SPACE / "requirements.txt").read_text().splitlines()
    needed = Requirement(line)
    assert needed.name == "gaze2report" and needed.extras == {"space", "dicom"}
    assert needed.specifier.contains(gaze_vlm.__version__)
    called = []
    monkeypatch.setattr(space, "build", lambda: "demo")
    monkeypatch.setattr(space, "launch", called.append)
    runpy.run_path(str(SPACE / data.app_file), run_name="app")
    assert called == []
    runpy.run_path(str(SPACE / data.app_file), run_name="__main__")
    assert called == ["demo"]


def test_the_folder_goes_to_the_hub_and_what_comes_back_serves(serve_hub, film_file, tmp_path):
    with serve_hub(tmp_path / "hub") as hub:
        environment = os.environ | hub.environment()
        for step in (
            ["upload", "tester/space", str(SPACE), ".", "--repo-type", "space"],
            ["download", "tester/space", "--repo-type", "space", "--local-dir", str(tmp_path / "back")],
        ):
            command = [sys.executable, "-m", "huggingface_hub.cli.hf", *step]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            assert "hf_fake" not in done.stdout + done.stderr
        asked = len(hub.requests)
        assert hub.files("tester/space", "spaces").keys() == {"README.md", "app.py", "requirements.txt"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
        command = [sys.executable, "app.py"]
        with subprocess.Popen(command, cwd=tmp_path / "back", env=environment, stderr=subprocess.PIPE) as process:
            try:
                client = reached(f"http://127.0.0.1:{port}/", process)
                answers = client.predict(handle_file(film_file("film.png")), None, "Predicted", None, api_name="/read")
            finally:
                process.terminate()
        assert "not a medical device" in str(answers)
        assert hub.requests[asked:] == []  # nothing was asked of the Hub, nor of any other host


def reached(address: str, process: subprocess.Popen) -> Client:
    while process.poll() is None:
        try:
            return connect(address)
        except (httpx.HTTPError, ValueError):
            time.sleep(0.5)
    raise AssertionError(process.stderr.read())
