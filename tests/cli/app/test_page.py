"""The page in a real browser, used as a person would: each tab, two widths, dark and light, mouse and keyboard."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import needs_chromium
from gradio_page import Server, Visit, browsing, serving, visit
from loopback_hub import WRITE as TOKEN
from loopback_hub import LoopbackHub

pytestmark = [pytest.mark.slow, needs_chromium, pytest.mark.xdist_group("page")]
WIDTHS = {"desktop": 1280, "phone": 390}
FRAME = 1 / 8  # seconds
STEPS = "num_inference_steps=6"  # half of the default: the waiting is for clips
# Playing clips are a frame apart at times, so both show their first one.
CLIPS_ALIKE = """async videos => {
  const first = video => new Promise(done => {
    video.pause(); video.addEventListener("seeked", done, {once: true}); video.currentTime = 0;
  });
  await Promise.all(videos.map(first));  // a clip that begins anew had a seek of its own on its way
  await Promise.all(videos.map(first));
  await new Promise(done => setTimeout(done, 100));  // the frame is shown a moment later
  const colour = video => {
    const canvas = document.createElement("canvas"); canvas.width = canvas.height = 32;
    const context = canvas.getContext("2d"); context.drawImage(video, 0, 0, 32, 32);
    const sum = [0, 0, 0]; const data = context.getImageData(0, 0, 32, 32).data;
    for (let i = 0; i < data.length; i += 4) for (let c = 0; c < 3; c++) sum[c] += data[i + c];
    return sum;
  };
  const colours = videos.map(colour);
  videos.forEach(video => video.play());
  return colours;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "app", "shapeworld", "--no-browser", "--port", "PORT", "--call", STEPS) as running:
        yield running
    assert running.asked() == set(), "the page's process asked another machine"
    assert not list(folder.glob("unlearn-app-*")), running.log.read_text("utf-8", "replace")[-6000:]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as opened:
        yield opened


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Any]:
    """Opens the page; afterwards no script has failed, and nobody but this machine was asked."""
    visits: list[Visit] = []

    def open_it(width: int = 1280, dark: bool = False) -> Visit:
        visits.append(visit(browser, server.address, width, dark))
        return visits[-1]

    yield open_it
    for seen in visits:
        assert seen.errors == []
        assert seen.hosts() == {"127.0.0.1"} and len(seen.asked) > 10
        seen.page.context.close()


def build(seen: Visit) -> None:
    seen.press("Build")
    seen.sees("Look at it in the tab Compare")


def compare(seen: Visit) -> list[list[int]]:
    """Press Compare; return the sums of red, green and blue of the original and of the edited clip."""
    seen.page.evaluate("document.querySelectorAll('.ua-pair').forEach(e => e.remove())")
    seen.press("Compare")
    films = seen.page.locator(".ua-pair figure:not(.ua-over) video")
    films.nth(1).wait_for()
    seen.page.wait_for_function("[...document.querySelectorAll('.ua-pair video')].every(v => v.readyState > 2)")
    return films.evaluate_all(CLIPS_ALIKE)


def is_red(colours: list[int]) -> bool:
    return colours[0] > 2 * max(colours[1:])


def is_blue(colours: list[int]) -> bool:
    return colours[2] > 2 * max(colours[:2])


def choose(seen: Visit, concept: str) -> None:
    seen.page.get_by_label("What to forget").click()
    seen.page.get_by_role("option", name=concept, exact=True).click()


def test_a_person_forgets_compares_measures_and_shares(open_page: Any) -> None:
    seen: Visit = open_page()
    build(seen)
    assert seen.sees("12 layers, rank 1").is_visible() and seen.sees("No warning.").is_visible()
    seen.tab("Compare")
    start = time.perf_counter()
    original, edited = compare(seen)
    assert is_red(original) and not is_red(edited)
    print(f"a compare took {time.perf_counter() - start:.1f} s in the browser")
    for _ in range(4):
        times = seen.page.locator(".ua-pair video").evaluate_all("videos => videos.map(video => video.currentTime)")
        assert max(times) - min(times) <= FRAME or max(times) > 1  # at the end of the loop one is ahead of the others
        time.sleep(0.1)
    seen.page.locator(".ua-wipe").fill("80")
    assert seen.page.locator(".ua-over").evaluate("box => box.style.getPropertyValue('--ua-wipe')") == "80%"
    seen.page.get_by_role("button", name="Pause").first.click()
    seen.sees("Play")
    assert seen.page.locator(".ua-pair video").evaluate_all("videos => videos.every(video => video.paused)")

    seen.tab("Measure")
    seen.page.get_by_label("Prompts of each kind").click()
    seen.page.get_by_role("option", name="1", exact=True).click()
    seen.press("Measure")
    seen.sees(re.compile("of about 16 clips"))
    seen.sees(re.compile("The controls failed, as they must"))
    assert seen.page.locator(".ua-rates tbody tr").count() == 4
    assert "0.21 to 1.00, 1 of 1" in seen.page.locator(".ua-rates").inner_text()
    seen.page.get_by_role("img", name="").first.wait_for()
    seen.page.get_by_text("The report, with all plots").click()
    assert seen.page.frame_locator(".ua-report").get_by_text("Every arm").inner_text() == "Every arm"

    seen.tab("Share")
    seen.press("Show the card and the files")
    seen.sees("What it removes, and what it does not")
    seen.sees("pytorch_lora_weights")
    assert seen.page.locator("a[href*='reproduce.json']").count() == 2  # of the adapter and of the report
    seen.press("Export for it")
    seen.sees("pipe.load_lora_weights")
    assert seen.overflow() <= 0


def test_a_phone_in_the_dark_shows_every_tab(open_page: Any) -> None:
    seen: Visit = open_page(WIDTHS["phone"], dark=True)
    paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", paper)[:3])) < 80, paper
    build(seen)
    for name in ("Forget", "Compare", "Measure", "Share"):
        seen.tab(name)
        assert seen.overflow() <= 0, name
    seen.tab("Compare")
    original, edited = compare(seen)
    assert is_red(original) and not is_red(edited)
    assert seen.overflow() <= 0


def test_the_keyboard_alone_is_enough(open_page: Any) -> None:
    seen: Visit = open_page()
    keys = seen.page.keyboard

    def reach(name: str) -> None:
        for _ in range(40):
            keys.press("Tab")
            focused = seen.page.evaluate(
                "(e => (e.getAttribute('aria-label') || e.innerText || '').trim())(document.activeElement)"
            )
            if focused == name:
                return
        raise AssertionError(f"Tab does not reach {name!r}")

    def open_tab(name: str) -> None:
        for _ in range(80):
            keys.press("Shift+Tab")
            element = "document.activeElement"
            if seen.page.evaluate(
                f"{element}.getAttribute('role') === 'tab' && {element}.innerText.trim() === '{name}'"
            ):
                keys.press("Enter")
                return
        raise AssertionError(f"Shift and Tab do not reach the tab {name!r}")

    reach("Build")
    keys.press("Enter")
    seen.sees("Look at it in the tab Compare")
    open_tab("Compare")
    reach("Compare")
    keys.press("Enter")
    seen.page.locator(".ua-pair video").first.wait_for()
    reach("How much is original")
    keys.press("ArrowRight")
    assert seen.page.locator(".ua-over").evaluate("box => box.style.getPropertyValue('--ua-wipe')") == "51%"
    reach("Pause")
    keys.press("Space")
    seen.sees("Play")
    open_tab("Share")
    reach("Show the card and the files")
    keys.press("Enter")
    seen.sees("What it removes, and what it does not")


def test_several_adapters_have_a_switch_and_a_dial_each(open_page: Any) -> None:
    seen: Visit = open_page()
    build(seen)
    choose(seen, "shapeworld-blue")
    seen.press("Build")
    seen.page.locator(".ua-facts").get_by_text("shapeworld-blue").wait_for()
    seen.tab("Compare")
    switches = {name: seen.page.get_by_label(f"shapeworld-{name}", exact=True) for name in ("red", "blue")}
    dials = {name: seen.page.get_by_label(f"number input for Strength of shapeworld-{name}") for name in switches}
    prompts = {name: f"a {name} circle moves left on a black background" for name in switches}
    shown = {"red": is_red, "blue": is_blue}
    first = {}

    def files() -> list[str]:
        return seen.page.locator(".ua-pair figure:not(.ua-over) video").evaluate_all("films => films.map(f => f.src)")

    for name in switches:
        seen.page.get_by_label("Prompt", exact=True).fill(prompts[name])
        original, edited = compare(seen)  # both act
        assert shown[name](original) and not shown[name](edited)
        first[name] = files()[0]
    switches["blue"].uncheck()
    _, edited = compare(seen)
    assert is_blue(edited)  # the other one is another's
    assert files()[0] == first["blue"], "the same prompt and seed give the same clip"
    assert seen.page.locator(".ua-pair figcaption").last.inner_text().startswith("edited: shapeworld-red at")
    dials["red"].fill("0")
    dials["red"].blur()  # a dial that was moved compares by itself
    seen.sees("edited: shapeworld-red at 0")
    assert files() == [first["blue"]] * 2
    switches["blue"].check()
    dials["red"].fill("1")
    seen.page.get_by_text("Grid of strengths and prompts").click()
    seen.page.get_by_label("Prompts, one on each line").fill("\n".join(prompts.values()))
    seen.press("Make the grid")
    cells = seen.page.locator(".ua-grid video")
    cells.nth(9).wait_for()
    seen.page.wait_for_function("[...document.querySelectorAll('.ua-grid video')].every(v => v.readyState > 2)")
    colours = cells.evaluate_all(CLIPS_ALIKE)
    assert is_red(colours[0]) and is_blue(colours[5]) and not is_red(colours[4]) and not is_blue(colours[9])
    seen.page.set_viewport_size({"width": WIDTHS["phone"], "height": 900})
    assert seen.overflow() <= 0


def test_a_tab_compares_while_another_measures_and_stops_without_a_trace(open_page: Any, folder: Path) -> None:
    one, other = open_page(), open_page()
    build(one)
    one.tab("Measure")
    one.press("Measure")
    one.sees(re.compile("[1-9] of about"))
    assert list(folder.glob("unlearn-app-*/measurement"))
    other.tab("Compare")
    original, edited = compare(other)
    assert original == edited and is_red(original)  # the other page has no adapter
    assert other.page.get_by_label("shapeworld-red").filter(visible=True).count() == 0
    other.tab("Forget")
    other.press("Build")
    other.sees("Another tab is measuring; yours is next")
    other.press("Stop")
    other.sees("Stopped. Nothing of it is left.", 20)
    assert one.page.get_by_text(re.compile("of about")).is_visible()  # all the time
    one.press("Stop")
    one.sees("Stopped. Nothing of it is left.", 20)
    assert not list(folder.glob("unlearn-app-*/measurement"))
    one.tab("Compare")
    original, edited = compare(one)
    assert is_red(original) and not is_red(edited)
    one.page.get_by_label("shapeworld-red", exact=True).uncheck()  # its switch
    original, edited = compare(one)
    assert original == edited


def test_a_full_disk_is_one_line_and_then_it_goes_on(open_page: Any, server: Server, folder: Path) -> None:
    """The limit of files is the kernel's, on the running server and on the encoder of clips."""
    others = set(folder.glob("unlearn-app-*"))  # of pages that were closed a moment ago
    seen: Visit = open_page()
    build(seen)
    (own,) = set(folder.glob("unlearn-app-*")) - others
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100, hard))
    try:
        for tab, button in (("Compare", "Compare"), ("Measure", "Measure"), ("Share", "Show the card and the files")):
            seen.tab(tab)
            seen.press(button)
            line = seen.page.locator(".ua-error").filter(visible=True).first
            line.wait_for()
            assert "no room left on the disk" in line.inner_text() and "\n" not in line.inner_text(), tab
            assert not [path for path in own.glob("**/*") if path.is_file()], tab
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
    seen.tab("Compare")
    original, edited = compare(seen)
    assert is_red(original) and not is_red(edited)


def test_what_is_wrong_is_one_line_and_remarks_follow_the_typing(open_page: Any, tmp_path: Path) -> None:
    seen: Visit = open_page()
    choice = seen.page.get_by_label("What to forget")
    choice.click()
    seen.page.get_by_role("option", name="my own pairs").click()
    pairs = seen.page.get_by_label("Pairs, one on each line")
    pairs.fill("a crimson circle moves up")
    seen.sees("Line 1 of the pairs is no pair")
    pairs.fill("a crimson circle moves up | a crimson circle moves down")
    seen.sees("names the concept ('crimson' is in `words`)")
    seen.press("Build")
    line = seen.page.locator(".ua-error").filter(visible=True, has_text="names the concept")
    line.wait_for()
    assert "\n" not in line.inner_text()
    choice.click()
    seen.page.get_by_role("option", name="a file of mine").click()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("pairs: 3\n")
    seen.page.locator("input[type=file]").first.set_input_files(wrong)
    seen.sees("wrong.yaml")
    seen.press("Build")
    seen.sees(re.compile("Expected `?pairs`?"))


def test_the_token_goes_to_the_hub_and_nowhere_else(
    open_page: Any, server: Server, folder: Path, hub: LoopbackHub
) -> None:
    seen: Visit = open_page()
    build(seen)
    seen.tab("Share")
    seen.page.get_by_text("Push to the Hub").click()
    seen.page.get_by_label("Repository on the Hub").fill("org/from-the-page")
    seen.page.get_by_label("Access token").fill(TOKEN)
    done = seen.page.get_by_text("Pushed:").filter(visible=True)
    for second in range(60):
        if second % 20 == 0:  # a press while the fields are sent may do nothing; a second push changes nothing
            seen.press("Push")
        seen.page.wait_for_timeout(1000)
        if done.count():
            break
    assert done.count()
    assert "org/from-the-page" in hub.repositories and TOKEN in {request[3] for request in hub.requests}
    assert seen.page.get_by_label("Access token").input_value() == ""
    assert TOKEN not in seen.page.content() and TOKEN not in server.log.read_text("utf-8", "replace")
    assert not [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
