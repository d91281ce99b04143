"""evidence.html in a real browser: decisions are taken, signed off and saved to a file that is evidence again."""

from datetime import datetime

import numpy as np
import pytest
from PIL import Image

from gaze_vlm.evidence import EvidenceBundle, link_evidence
from gaze_vlm.findings import REGIONS
from gaze_vlm.scanpath import Scanpath

REPORT = "There is a left pleural effusion. The heart is normal in size. No pneumothorax."
ATTENTION = np.zeros((10, 10))
ATTENTION[7, [1, 2, 3, 8]] = 0.25  # a quarter in the angle


@pytest.fixture
def bundle():
    box = {"name": "left costophrenic angle", "box": list(REGIONS["left costophrenic angle"].box)}
    records = [
        {"name": "Pleural Effusion", "probability": 0.9, "present": True, "regions": [box]},
        {"name": "Cardiomegaly", "probability": 0.8, "present": True, "regions": []},
        {"name": "Pneumothorax", "probability": 0.1, "present": False, "regions": []},
    ]
    return link_evidence(
        REPORT,
        records,
        Scanpath.from_relative([0.8, 0.82, 0.2], [0.75, 0.74, 0.3], [0.4, 0.5, 0.6]),
        image={"name": "film <b>.png", "sha256": "0f" * 32, "width": 300, "height": 200},
        model={"name": "made", "version": "1"},
        gaze="predicted",
        attention={"Pleural Effusion": ATTENTION},
    )


@pytest.fixture
def open_page(browser, tmp_path):
    """The page of a bundle; afterwards nothing was asked of a network, and nothing went wrong in the console."""
    said, asked, pages = [], [], []

    def call(bundle, **options):
        film = Image.fromarray(np.repeat(np.arange(200, dtype=np.uint8)[:, None], 300, axis=1))
        file = tmp_path / "evidence.html"
        file.write_text(bundle.to_html(film), encoding="utf-8")
        page = browser.new_page(**options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield call
    assert said == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    for page in pages:
        page.close()


def saved(page, button: str, tmp_path) -> EvidenceBundle:
    with page.expect_download() as download:
        page.click(button)
    signed = button == "#sign" or "Signed off" in page.inner_text("#progress")
    assert download.value.suggested_filename == f"evidence-{'signed' if signed else 'draft'}.json"
    file = tmp_path / "saved.json"
    download.value.save_as(file)
    return EvidenceBundle.from_json(file.read_text(encoding="utf-8"))


def test_what_is_decided_and_signed_is_in_the_saved_file(bundle, open_page, tmp_path):
    page = open_page(bundle)
    assert page.is_disabled("#sign")
    page.click("[aria-label='Accept sentence 1']")
    page.click("[aria-label='Edit sentence 2']")
    page.fill("[aria-label='Sentence 2 as edited']", "The heart is enlarged: <1/2 & so on.")
    assert "sentence 3" in page.inner_text("#progress")
    page.click("[aria-label='Reject sentence 3']")
    assert "Who signs" in page.inner_text("#progress")
    page.fill("#reviewer", "R. Reader")
    signed = saved(page, "#sign", tmp_path)
    expected = bundle.review(0, "accepted", reviewer="R. Reader")
    expected = expected.review(1, "edited", "The heart is enlarged: <1/2 & so on.", "R. Reader")
    expected = expected.review(2, "rejected", reviewer="R. Reader")
    signed_at = signed.sign_off["signed_at"]
    assert datetime.fromisoformat(signed_at).tzinfo is not None
    assert signed == expected.sign("R. Reader", signed_at)
    assert signed.reviewed_report == "There is a left pleural effusion. The heart is enlarged: <1/2 & so on."
    assert "Signed off by R. Reader" in page.inner_text("#progress")
    page.click("[aria-label='Accept sentence 3']")
    assert "Signed off" not in page.inner_text("#progress")


def test_a_draft_may_be_open_and_a_decision_taken_back(bundle, open_page, tmp_path):
    page = open_page(bundle)
    page.click("[aria-label='Reject sentence 1']")
    page.click("[aria-label='Reject sentence 1']")
    page.click("[aria-label='Edit sentence 2']")
    page.fill("[aria-label='Sentence 2 as edited']", "  ")
    page.click("[aria-label='Accept sentence 3']")
    draft = saved(page, "#draft", tmp_path)
    assert draft == bundle.review(2, "accepted")


def test_earlier_decisions_are_shown_and_kept(bundle, open_page, tmp_path):
    before = bundle.review(0, "edited", "A trace of fluid.", "A").review(1, "accepted", reviewer="A")
    before = before.review(2, "accepted", reviewer="A").sign("A", "2026-01-02T03:04:05+00:00")
    page = open_page(before)
    assert "A trace of fluid." in page.inner_text("#sentences")
    assert "Signed off by A" in page.inner_text("#progress")
    assert saved(page, "#draft", tmp_path) == before


def test_words_that_are_no_longer_said_rest_on_nothing(bundle, open_page):
    page = open_page(bundle)
    page.hover("#sentences li:nth-child(1) .sentence")
    assert page.locator(".region.on").count() > 0
    assert page.locator(".region.held").count() == 1
    assert page.locator("#sentences li:nth-child(2) .flag").is_visible()
    for number, decide in ((1, "Edit"), (2, "Reject")):
        page.click(f"[aria-label='{decide} sentence {number}']")
        row = f"#sentences li:nth-child({number})"
        assert not page.locator(f"{row} .badge").first.is_visible()
        assert page.locator(f"{row} .flag:visible").count() == 0
        page.hover(f"{row} .sentence")
        assert page.locator(".region.on, .fixation.on").count() == 0
        assert page.inner_text("#caption") == "no region · not fixated"
    assert page.locator("#flags li:visible").count() == sum(flag["sentence"] in (None, 2) for flag in bundle.flags)
    assert page.locator(".region.held").count() == 0
    page.hover("#coverage li:has-text('left costophrenic angle') button")
    assert "on" not in page.locator(".sentence").first.get_attribute("class").split()
    page.click("[aria-label='Reject sentence 2']")
    assert page.locator("#sentences li:nth-child(2) .flag").is_visible()


@pytest.mark.parametrize("name", ["A = B", "A\\B", " ^ "])
def test_who_signs_has_a_name_that_dicom_can_hold(bundle, open_page, name):
    page = open_page(bundle)
    for number in (1, 2, 3):
        page.click(f"[aria-label='Accept sentence {number}']")
    page.fill("#reviewer", name)
    assert page.is_disabled("#sign")
    assert "without = and" in page.inner_text("#progress")
    page.fill("#reviewer", "R" * 80)
    assert len(page.input_value("#reviewer")) <= 80 and page.get_attribute("#reviewer", "maxlength") == "63"


def test_who_signed_before_is_not_proposed_as_who_signs_now(bundle, open_page):
    before = bundle
    for number in range(3):
        before = before.review(number, "accepted", reviewer="A")
    page = open_page(before.sign("A"))
    assert page.input_value("#reviewer") == ""
    page.click("[aria-label='Reject sentence 3']")
    assert page.is_disabled("#sign")


def test_a_decision_of_before_stays_whose_it_was(bundle, open_page, tmp_path):
    before = bundle.review(0, "accepted").review(1, "rejected", reviewer="A")
    page = open_page(before)
    page.click("[aria-label='Accept sentence 3']")
    page.fill("#reviewer", "B")
    signed = saved(page, "#sign", tmp_path)
    assert [sentence.review["reviewer"] for sentence in signed.sentences] == [None, "A", "B"]


def test_key_frames_coverage_and_flags_are_on_the_page(bundle, open_page):
    page = open_page(bundle)
    assert page.locator("#frames li").count() == len(bundle.key_frames) == 2
    assert page.locator("#coverage li").count() == 17
    assert page.locator("#coverage .missed").count() == len(bundle.coverage["not_looked_at"])
    flags = [flag["message"] for flag in bundle.flags if flag["sentence"] is not None]
    assert page.locator(".flag").all_inner_texts() == flags
    assert any("Cardiomegaly (0.80)" in flag for flag in flags)
    assert page.locator("#flags li").count() == len(bundle.flags) > len(flags)
    page.hover("#frames li:first-child button")
    assert page.inner_text("#caption").startswith("left costophrenic angle · 2 fixations")
    assert page.locator(".fixation.on").count() == 2
    supported = sum(0 in sentence.key_frames for sentence in bundle.sentences)
    assert page.locator(".sentence.on").count() == supported > 0


def test_flags_and_regions_light_what_they_are_about(bundle, open_page):
    page = open_page(bundle)
    (denied,) = [flag for flag in bundle.flags if flag["kind"] == "contradicted"]
    page.hover(f"#flags li:has-text('{denied['message']}') button")
    assert page.locator(".sentence").nth(1).get_attribute("class").split().count("on") == 1
    page.hover("#flags li:has-text('left upper lung zone') button")
    assert page.inner_text("#caption") == "left upper lung zone · not fixated"
    page.hover("#coverage li:has-text('left costophrenic angle') button")
    assert page.locator(".region.on").count() == 1
    assert page.locator(".fixation.on").count() == 2
    page.hover("[data-name='Pleural Effusion']")
    assert page.inner_text("#caption").endswith("25% of the classifier's attention")


def test_leaving_with_unsaved_decisions_asks_first(bundle, open_page, tmp_path):
    page = open_page(bundle)
    leave = """() => {
        const event = new Event("beforeunload", {cancelable: true});
        window.dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    assert not page.evaluate(leave)
    page.click("[aria-label='Accept sentence 1']")
    assert page.evaluate(leave)
    saved(page, "#draft", tmp_path)
    assert not page.evaluate(leave)


def test_a_fixation_on_a_border_lies_in_the_region_on_the_page_too(open_page):
    bundle = link_evidence(
        "Trachea midline.",
        [],
        Scanpath.from_relative([0.45], [0.1], [0.5]),
        image={"name": "film.png", "sha256": "0f" * 32, "width": 300, "height": 200},
        model={"name": "made", "version": "1"},
        gaze="given",
    )
    page = open_page(bundle)
    page.hover("#coverage li:has-text('trachea') button")
    assert page.inner_text("#caption") == "trachea · 1 fixation, 0.50 s"


def test_without_gaze_and_without_flags_nothing_is_shown_of_them(open_page):
    image = {"name": "film.png", "sha256": "0f" * 32, "width": 300, "height": 200}
    page = open_page(
        link_evidence("Cardiomegaly.", [], None, image=image, model={"name": "made", "version": "1"}, gaze="none")
    )
    for panel in ("#flags-panel", "#frames-panel", "#coverage-panel"):
        assert page.is_hidden(panel)
    assert page.is_visible("#review")


def test_without_scripts_the_report_is_there_and_no_control_is_dead(bundle, open_page):
    page = open_page(bundle, java_script_enabled=False)
    assert REPORT in page.inner_text("main")
    for control in ("#review", "#flags-panel", "#frames-panel", "#coverage-panel"):
        assert page.is_hidden(control)


@pytest.mark.parametrize("width", [320, 390, 1400])
def test_nothing_sticks_out_at_any_width(bundle, open_page, width):
    page = open_page(bundle.review(0, "edited", "Fluid. " * 40, "R. Reader"), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_by_keyboard(bundle, open_page):
    page = open_page(bundle)
    page.focus("[aria-label='Accept sentence 1']")
    page.keyboard.press("Enter")
    assert page.get_attribute("[aria-label='Accept sentence 1']", "aria-pressed") == "true"
    page.focus("[aria-label='Edit sentence 2']")
    page.keyboard.press("Space")
    page.keyboard.press("Control+A")
    page.keyboard.type("Typed.")
    assert "Typed." in page.inner_text("#sentences li:nth-child(2) .said")


def test_fixation_by_fixation_and_back_by_mouse_and_keyboard(bundle, open_page):
    page = open_page(bundle)
    shown = page.locator(".fixation:not([hidden])")

    def seen() -> tuple[int, str]:
        return shown.count(), page.inner_text("#caption").split(" · ")[0]

    whole = seen()
    assert whole[0] == 3
    for number in (1, 2, 3):
        page.click("[aria-label='Next fixation']")
        assert seen() == (number, f"Fixation {number} of 3")
    page.click("[aria-label='Next fixation']")
    assert seen() == whole
    page.focus("[aria-label='Previous fixation']")
    for number in (3, 2, 1):
        page.keyboard.press("Enter")
        assert seen() == (number, f"Fixation {number} of 3")
    page.keyboard.press("Enter")
    assert seen() == whole


def test_a_step_stops_the_player(bundle, open_page):
    page = open_page(bundle)
    page.select_option("#speed", "0.5")
    page.click("#play")
    page.click("#next")
    assert page.get_attribute("#play", "aria-label") == "Play the scanpath"
    clock = page.inner_text("#clock")
    page.wait_for_timeout(100)
    assert page.inner_text("#clock") == clock


def test_speed_is_what_time_is_multiplied_with(bundle, open_page):
    page = open_page(bundle)
    page.evaluate(
        """() => {
            window.frames_ = [];
            window.requestAnimationFrame = (tick) => window.frames_.push(tick);
            performance.now = () => 1000;
        }"""
    )
    for speed in ("0.5", "1", "2", "4"):
        page.select_option("#speed", speed)
        page.click("#play")
        page.evaluate("() => window.frames_.pop()(1100)")
        assert page.inner_text("#clock").startswith(f"{0.1 * float(speed):.2f} / ")
        page.click("#play")
        page.fill("#scrub", "0")
    assert page.locator("#speed option").all_inner_texts() == ["0.5×", "1×", "2×", "4×"]
