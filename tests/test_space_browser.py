"""The Space in a real browser: every control, by mouse and by keyboard, wide and narrow, dark and light.

Screenshots go into the folder that GAZE_VLM_SCREENSHOTS names, if it does.
"""

import json
import os
from pathlib import Path

import pytest

from gaze_vlm import space_reader
from gaze_vlm.evidence import EvidenceBundle

pytest.importorskip("gradio", reason='needs Gradio: pip install "gaze2report[space]"')

BOXES = "<box>100,200,300,400</box><box>500,0,900,1000</box>"


@pytest.fixture
def visit(browser, address):
    """The Space in a new page; afterwards nothing went off this machine, and nothing went wrong in the console."""
    said, asked, pages = [], [], []

    def call(query: str = "", **options):
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.on("console", lambda message: said.append(message.text) if is_fault(message) else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address + query)
        page.wait_for_selector("#read")
        pages.append(page)
        return page

    yield call
    assert said == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert len(asked) > 5
    for page in pages:
        page.close()


def is_fault(message) -> bool:
    """Whether a console message is an error of ours: Gradio's pages ask for what is switched off, or is no more."""
    of_gradio = ("/mcp/schema", "/monitoring/summary", "/upload_progress")
    return (
        message.type == "error"
        and message.text != "Response"
        and not message.location["url"].split("?")[0].endswith(of_gradio)
    )


@pytest.fixture
def picture(tmp_path):
    """Keeps a screenshot by its name."""
    folder = Path(os.environ.get("GAZE_VLM_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def keep(page, name: str) -> None:
        page.screenshot(path=folder / f"{name}.png")

    return keep


@pytest.fixture
def film(film_file):
    return film_file("film.png", 3)


def frame_of(page):
    """The evidence page in its frame, when it is there."""
    page.wait_for_selector("#viewer iframe")
    frame = page.frame_locator("#viewer iframe")
    frame.locator("#caption").wait_for()
    return frame


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_a_film_is_dropped_read_played_and_judged(visit, film, tmp_path, picture):
    page = visit()
    picture(page, "empty")
    page.set_input_files("#film input[type=file]", film)
    frame = frame_of(page)
    assert "with predicted gaze" in page.inner_text("#steps [role=status]")
    page.click("#steps summary")
    assert page.inner_text("#steps .draft")
    assert frame.locator("#name").inner_text() == "film.png"
    frame.get_by_role("button", name="Next fixation").click()
    assert frame.locator("#caption").inner_text().startswith("Fixation 1 of")
    frame.get_by_label("Speed").select_option("4")
    frame.get_by_role("button", name="Play the scanpath").click()
    frame.get_by_label("Heat map").check()
    assert frame.locator("#heat").is_visible()
    picture(page, "reading")
    frame.locator(".sentence").first.hover()
    assert frame.locator(".sentence.on").count() == 1
    frame.get_by_role("button", name="Reject sentence 1").click()
    with page.expect_download() as download:
        frame.get_by_role("button", name="Save draft").click()
    download.value.save_as(tmp_path / "draft.json")
    draft = EvidenceBundle.from_json((tmp_path / "draft.json").read_text())
    assert draft.sentences[0].review["status"] == "rejected"


def test_the_evidence_is_downloaded(visit, browser, film, tmp_path):
    page = visit()
    page.set_input_files("#film input[type=file]", film)
    frame_of(page)
    for name in ("evidence.json", "evidence.html"):
        with page.expect_download() as download:
            page.click(f".save[download='{name}']")
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
    bundle = EvidenceBundle.from_json((tmp_path / "evidence.json").read_text())
    alone = browser.new_page()
    alone.goto((tmp_path / "evidence.html").as_uri())
    assert alone.locator(".sentence").count() == len(bundle.sentences) > 0
    alone.close()


def test_examples_gaze_and_the_button(visit, tmp_path, picture):
    page = visit()
    page.get_by_label("Normal").check()
    assert frame_of(page).locator("#name").inner_text() == "normal.jpg"
    page.get_by_label("None", exact=True).check()
    page.click("#read")
    page.wait_for_selector("text=with no gaze")
    assert frame_of(page).locator("#gaze").inner_text() == "none"
    assert page.is_hidden("#gaze-file")
    page.get_by_label("Given").check()
    page.click("#read")
    page.wait_for_selector("#steps [role=alert]")
    assert "Choose the file of the recorded gaze" in page.inner_text("#steps")
    gaze = tmp_path / "gaze.json"
    gaze.write_text(json.dumps({"x": [0.2, 0.7, 0.7], "y": [0.5, 0.5, 0.6], "duration": [0.2, 0.3, 0.4]}))
    page.set_input_files("#gaze-file input[type=file]", gaze)
    page.wait_for_selector("#gaze-file >> text=gaze")
    page.click("#read")
    page.wait_for_selector("text=with your gaze")
    assert frame_of(page).locator(".fixation").count() == 3
    tab(page, "Compare")
    page.click("#compare")
    page.wait_for_selector("#compared [role=status]")
    assert page.locator("#compared h3").all_text_contents() == ["Gaze: given", "Gaze: predicted", "Gaze: none"]
    assert page.locator("#compared img").evaluate_all("all => all.every((one) => one.alt.startsWith('The film with'))")
    picture(page, "compare")


def test_a_film_takes_the_place_of_an_example_and_back(visit, film):
    page = visit()
    page.get_by_label("Normal").check()
    frame_of(page)
    page.set_input_files("#film input[type=file]", film)
    page.wait_for_function("document.querySelector('#viewer iframe')?.srcdoc.includes('film.png')")
    assert page.locator("#example input:checked").count() == 0
    page.get_by_label("Large heart, effusion").check()
    page.wait_for_function("document.querySelector('#viewer iframe')?.srcdoc.includes('cardiomegaly_effusion.jpg')")
    assert "film.png" not in page.inner_text("#film")


def test_ask_and_find(visit, monkeypatch, picture):
    monkeypatch.setattr("gaze_vlm.pipelines.generate_texts", lambda m, p, messages, images, **_: [BOXES])
    page = visit()
    page.get_by_label("Normal").check()
    frame_of(page)
    tab(page, "Ask")
    page.click("#ask")
    page.wait_for_function("document.querySelector('#answer textarea').value == 'Write a question first.'")
    page.fill("#question textarea", "Is there edema?")
    page.press("#question textarea", "Enter")
    page.wait_for_function(f"document.querySelector('#answer textarea').value == '{BOXES}'")
    picture(page, "ask")
    tab(page, "Find")
    page.fill("#phrase textarea", "lung opacity")
    page.click("#ground")
    page.wait_for_selector("#found img[alt='The film with 2 boxes for lung opacity']")
    assert "10 to 30% across" in page.inner_text("#found figcaption")
    picture(page, "find")
    page.fill("#phrase textarea", "${1 + 1} {{value}} <img src=x onerror=document.title='run'>")
    page.press("#phrase textarea", "Enter")
    page.wait_for_selector("#found strong:text-is(\"${1 + 1} {{value}} <img src=x onerror=document.title='run'>\")")
    assert page.title() == "Gaze to report"


def test_what_is_no_film_is_told_and_the_next_one_is_read(visit, film, tmp_path, picture):
    page = visit()
    text, large = tmp_path / "text.png", tmp_path / "large.png"
    text.write_text("no picture")
    with large.open("wb") as file:
        file.truncate(60_000_000)
    tab(page, "Ask")
    page.set_input_files("#film input[type=file]", text)
    page.wait_for_selector("#steps [role=alert]")  # in sight, whatever tab was
    assert "not an image file (PNG, JPEG or DICOM expected)" in page.inner_text("#steps")
    picture(page, "refused")
    page.click("#film [aria-label='Clear'], #film [aria-label='Remove this file'], #film button[title='Clear']")
    page.set_input_files("#film input[type=file]", large)
    page.wait_for_selector("text=/exceed the maximum allowed size of 50(.0)? Mb/i")
    page.set_input_files("#film input[type=file]", film)
    frame_of(page)


def test_by_keyboard_alone(visit):
    page = visit()
    page.get_by_label("Normal").focus()
    page.keyboard.press("Space")
    frame_of(page)
    page.get_by_role("tab", name="Reading").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#question")
    page.focus("#film button")
    reached = []
    for _ in range(16):
        reached.append(page.evaluate("document.activeElement.closest('#inputs [id], #tasks [id]:not([role])')?.id"))
        page.keyboard.press("Tab")
    order = [name for name in dict.fromkeys(reached) if name in ("film", "example", "gaze", "read", "question", "ask")]
    assert order == ["film", "example", "gaze", "read", "question", "ask"]
    page.get_by_label("None", exact=True).focus()
    page.keyboard.press("Space")
    page.focus("#read")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=with no gaze")
    page.focus(".save[download='evidence.json']")
    with page.expect_download():
        page.keyboard.press("Enter")


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [390, 1400])
def test_wide_and_narrow_dark_and_light(visit, picture, width, scheme):
    height = 844 if width == 390 else 1000
    page = visit(viewport={"width": width, "height": height}, color_scheme=scheme)
    picture(page, f"{width}-{scheme}-empty")
    page.get_by_label("Large heart, effusion").check()
    frame = frame_of(page)
    page.wait_for_timeout(700)  # it scrolls there
    assert page.evaluate("document.querySelector('#tasks').getBoundingClientRect().top") < height / 2
    picture(page, f"{width}-{scheme}-reading")
    ground = {"dark": "rgb(11, 14, 19)", "light": "rgb(243, 244, 247)"}[scheme]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    assert frame.locator("body").evaluate("(body) => getComputedStyle(body).backgroundColor") == ground
    for name in ("Reading", "Ask", "Find", "Compare"):
        tab(page, name)
        if name == "Compare":
            page.click("#compare")
            page.wait_for_selector("#compared [role=status]")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    picture(page, f"{width}-{scheme}-compare")
    assert frame.locator("html").evaluate("(html) => html.scrollWidth <= html.clientWidth")


def test_the_chosen_theme_is_the_frames_too(visit):
    from playwright.sync_api import expect

    page = visit("?__theme=light", color_scheme="dark")
    page.get_by_label("Normal").check()
    frame = frame_of(page)
    for body in (page.locator("body"), frame.locator("body")):
        expect(body).to_have_css("background-color", "rgb(243, 244, 247)")


def test_pictures_frames_and_controls_have_names(visit, film):
    page = visit()
    page.set_input_files("#film input[type=file]", film)
    frame_of(page)
    nameless = """() => [...document.querySelectorAll("img, iframe, button, input, textarea")].filter((one) => {
        const shown = one.offsetParent !== null && !one.closest("footer");
        return shown && !(one.alt || one.title || one.ariaLabel || one.innerText?.trim() || one.labels?.length);
    }).map((one) => one.outerHTML.slice(0, 200))"""
    assert page.evaluate(nameless) == []


def test_the_pages_about_it_stay_here_too(visit):
    page = visit()
    for name in ("Use via API", "Settings"):
        page.get_by_role("button", name=name).click()
        page.wait_for_timeout(500)
        page.keyboard.press("Escape")
        page.goto(page.url.split("?")[0])
        page.wait_for_selector("#read")


def test_examples_are_those_of_the_reader(visit):
    page = visit()
    assert page.locator("#example label").all_inner_texts() == list(space_reader.EXAMPLES)
    assert page.locator("#gaze label").all_inner_texts() == list(space_reader.GAZE)
