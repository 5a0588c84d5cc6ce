"""The page, Markdown, pictures and plots of a report; the page is opened in a browser, where there is one."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import evaluation_runs as runs
import numpy as np
import pytest
from browser import needs_chromium, open_page, photograph
from evaluation_runs import recoloured, red_suite, scene, synthetic
from jinja2 import UndefinedError
from PIL import Image

from unlearning_adapters.evaluation.reports.drawing import Axis, Drawing
from unlearning_adapters.evaluation.reports.gallery import draw, moving, strip, worst_cases
from unlearning_adapters.evaluation.reports.markdown import to_markdown
from unlearning_adapters.evaluation.reports.numbers import change_text, p_text
from unlearning_adapters.evaluation.reports.page import write_page
from unlearning_adapters.evaluation.reports.plots import Mark, curves, intervals, matrix
from unlearning_adapters.evaluation.reports.rendering import render
from unlearning_adapters.evaluation.reports.report import Report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    """A run with two strengths, in which one clip still shows the concept, and a prompt that is no harmless text."""
    suite = red_suite(3)
    hostile = replace(suite.sets[0].prompts[0], text='a red circle <img src=x onerror=alert(1)> & "more" $title')
    suite = replace(suite, sets=(replace(suite.sets[0], prompts=(hostile, *suite.sets[0].prompts[1:])), suite.sets[1]))

    def leaks_once(case):
        return runs.obedient(case) if case.prompt.id == "0002" else recoloured("green")(case)

    return synthetic(
        folder, {"edited": leaks_once, "strength-0.5": runs.obedient}, suite,
        parts={**runs.PARTS, "strength-0.5": "sweep"}, about={"strength-0.5": {"strength": 0.5}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(report: Report, folder: Path) -> str:
    return write_page(report, folder).read_text(encoding="utf-8")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in ("img", "meta", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.names.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_is_well_formed(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and "script" not in tags.names and "link" not in tags.names
    assert tags.sources and all(source.startswith("data:image/") for source in tags.sources)
    assert not re.search(r"https?://|url\(|@import", page)
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page and "$title" in page


def test_the_page_shows_what_the_report_holds(page: str, report: Report) -> None:
    assert report.value("erase") == pytest.approx(2 / 3) and ">0.67<" in page
    for heading in ("Every arm", "Clips", "Strength", "All rates", "Worst cases", "Detectors and conditions"):
        assert f">{heading}<" in page
    assert "Strength against erasure and preservation" in page and "Seen by asked, edited minus base" in page
    assert page.count("<svg") == 5
    for caution in report.data["cautions"]:
        assert caution.split("'")[0] in page


def test_a_void_report_says_so_first(tmp_path: Path) -> None:
    void = synthetic(tmp_path, {"random": recoloured("blue")}, red_suite(1))
    page = write_page(void, tmp_path).read_text(encoding="utf-8")
    assert "This report is void" in page and page.index("This report is void") < page.index('class="cards"')
    assert to_markdown(void.data).splitlines()[2].startswith("**This report is void.**")


def test_frames_with_the_concept_are_blurred_unless_the_suite_is_harmless(tmp_path: Path, page: str) -> None:
    assert 'class="row blur"' not in page and 'id="show"' not in page
    suite = replace(red_suite(1), sensitive=True)
    text = write_page(synthetic(tmp_path, suite=suite), tmp_path).read_text(encoding="utf-8")
    assert text.count('class="row blur"') == 1  # the base of the forget prompt, and nothing else
    assert 'id="show"' in text and "body:has(#show:checked)" in text
    prompt = suite.sets[0].prompts[0].text
    assert f"<details><summary>prompt forget/0001</summary>{prompt}</details>" in text


def test_pictures_hold_the_frames() -> None:
    clip = scene({"colour": "red", "motion": "left"})
    still = decode(strip(clip))
    assert still.size == (6 * 96 + 5 * 2, 96)
    animated = decode(moving(clip))
    assert animated.n_frames == len(clip) and animated.size == (96, 96)
    first = np.asarray(still.convert("RGB"))[:, :96].astype(int)
    wanted = np.asarray(Image.fromarray(clip[0]).resize((96, 96), Image.Resampling.NEAREST)).astype(int)
    assert np.abs(first - wanted).mean() < 8


def decode(uri: str) -> Image.Image:
    head, data = uri.split(",", 1)
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_samples_are_drawn_blindly_and_worst_cases_first(report: Report) -> None:
    samples = report.data["samples"]["edited"]
    blind = [{**sample, "valid": not sample["valid"]} for sample in samples]
    assert [item["key"] for item in draw(samples, 3)] == [item["key"] for item in draw(blind, 3)]
    worst = worst_cases(report.data, "edited")
    assert [item["key"][:2] for item in worst] == [["forget", "0002"]]
    assert len(worst_cases(report.data, "destroyed")) == 6


def test_plots_are_drawn_to_scale() -> None:
    text = intervals(
        [Mark("a <b>", 0.5, 0.25, 0.75, "edited"), Mark("none", None)], "title", width=506, label_width=206
    )
    assert 'x1="266.0" x2="386.0"' in text and 'cx="326.0"' in text
    assert "a &lt;b&gt;" in text and "not applicable" in text
    line = curves({"erased": [(0, 0.0, 0.0, 0.1), (1, 1.0, 0.9, 1.0), (1.01, 1.0, 0.9, 1.0)]}, "t", "strength")
    assert line.count("<circle") == 3 and ">1.01<" not in line  # labels that would touch are left out
    cells = matrix(["red"], ["red", "blue"], {("red", "red"): -1.0, ("red", "blue"): 0.25}, "t", signed=True)
    assert 'class="less"' in cells and ">-1.00<" in cells and ">+0.25<" in cells


def test_axes_ticks_and_labels_are_placed_by_one_rule() -> None:
    across, up = Axis(100, 300, 0.0, 4.0, (0.0, 1.0), "x <axis>"), Axis(200, 50, -1.0, 1.0, (-1.0, 0.5), grid=False)
    assert (across(0.0), across(1.0), across(4.0)) == (100, 150, 300)
    assert (up(-1.0), up(0.0), up(1.0)) == (200, 125, 50), "values grow upwards, pixels downwards"
    drawing = Drawing(400, 300, "a & b")
    drawing.axes(across, up)
    root = ElementTree.fromstring(drawing.svg())
    grid = [(line.get("x1"), line.get("x2"), line.get("y1"), line.get("y2")) for line in root.iter("line")]
    assert grid == [("100.0", "100.0", "50.0", "200.0"), ("150.0", "150.0", "50.0", "200.0")]
    texts = {text.text: (text.get("x"), text.get("y")) for text in root.iter("text")}
    assert texts == {"0": ("100.0", "218.0"), "1": ("150.0", "218.0"), "-1": ("92.0", "204.0"),
                     "0.5": ("92.0", "91.5"), "x <axis>": ("200.0", "238.0")}  # fmt: skip
    assert root.findtext("title") == "a & b" == root.get("aria-label")


def test_a_drawing_of_a_page_has_no_colours_of_its_own_and_a_file_has() -> None:
    assert "<style>" not in Drawing(1, 1, "t").svg() and "xmlns" not in Drawing(1, 1, "t").svg()
    svg = ElementTree.fromstring(Drawing(1, 1, "t", to_file=True).svg())
    assert svg.tag == "{http://www.w3.org/2000/svg}svg" and svg.findtext("{http://www.w3.org/2000/svg}style")


@pytest.mark.parametrize("text", ["a|b", "a\nb", "a | b\n\n# c\r\n", "a\u2028b"])
def test_in_markdown_a_value_stays_in_its_cell(text: str, report: Report) -> None:
    data = {**report.data, "arms": {name: {**arm, "title": text} for name, arm in report.data["arms"].items()}}
    plain, hostile = to_markdown(report.data), to_markdown(data)
    assert plain.count("|") == hostile.count("|") and plain.count("\n") == hostile.count("\n")
    assert len(hostile.splitlines()) == len(plain.splitlines())


def test_a_template_names_nothing_that_is_not_there() -> None:
    with pytest.raises(UndefinedError, match="'data' is undefined"):
        render("verdict.md")


def test_markdown_has_a_row_per_rate_and_a_column_per_arm(report: Report) -> None:
    text = to_markdown(report.data)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0].count("|") == len(report.data["arms"]) + 2
    assert (
        "| **erased** (valid, known, without the concept) | 0.00 [0.00, 0.56] (0/3) | 0.67 [0.21, 0.94] (2/3) |" in text
    )
    assert "Several strengths were run" in text


def test_both_looks_have_a_row_for_each_prompt_set_of_each_arm(report: Report, page: str) -> None:
    text = to_markdown(report.data)
    assert "| forget | forget | base | 1.00 [0.44, 1.00] (3/3) | 1.00 [" in text
    assert "| forget | forget | edited | 0.33 [" in text and "| neighbours | neighbour | edited | 0.00 [" in text
    assert "<td>neighbours</td>" in page and "| forget | forget | random |" not in text
    before = {name: {k: v for k, v in arm.items() if k != "sets"} for name, arm in report.data["arms"].items()}
    assert "| forget |" not in to_markdown({**report.data, "arms": before}), "a report of before sets"


def test_numbers_are_compared_with_their_test_in_both_looks(report: Report, page: str) -> None:
    text, arm = to_markdown(report.data), report.data["arms"]["edited"]
    motion, drift = arm["paired"]["motion"], arm["drift_against_random"]
    assert motion["count"] == 6 and drift == {"value": 0.0, "interval": [0.0, 0.0], "count": 3,
                                              "p_value": drift["p_value"]}  # fmt: skip
    assert drift["p_value"] == 1.0 and motion["p_value"] is not None  # no neighbour moved
    assert f"| edited | motion | 6 | {change_text(motion)} | {p_text(motion['p_value'])} |" in text
    assert f"<td>motion</td><td>6</td><td>{change_text(motion)}</td><td>{p_text(motion['p_value'])}</td>" in page
    assert "drift beyond that of a random direction" in text and "drift beyond that of a random direction" in page


def test_structural_similarity_is_beside_the_difference(report: Report, page: str) -> None:
    found = report.data["arms"]["edited"]["drift"]
    assert found["neighbour"]["ssim"] == {"value": 1.0, "interval": [1.0, 1.0], "count": 3}
    assert 0.5 < found["forget"]["ssim"]["value"] < 1 and found["all"]["ssim"]["count"] == 6
    assert report.data["arms"]["destroyed"]["drift"]["all"]["ssim"]["value"] < 0.2
    value = f"{found['all']['ssim']['value']:.3f}"
    row = next(line for line in to_markdown(report.data).splitlines() if "(SSIM)" in line)
    assert row.startswith(f"| mean structural similarity to the base (SSIM) | n/a | {value} |")
    assert f"SSIM {value}</div>" in page and "<th>SSIM</th>" in page


def test_a_concept_over_time_is_drawn(tmp_path: Path) -> None:
    redness = lambda frames: ((frames[..., 0] > 180) & (frames[..., 1] < 90)).mean(axis=(1, 2))  # noqa: E731
    from unlearning_adapters.evaluation.detectors.detector import as_detector

    suite = replace(red_suite(1), target={})
    found = synthetic(tmp_path, suite=suite, detectors=[as_detector(redness, "redness", threshold=0.02)])
    assert "Concept by frame" in write_page(found, tmp_path).read_text(encoding="utf-8")


@needs_chromium
def test_a_browser_shows_the_page(page: str, folder: Path, tmp_path: Path) -> None:
    assert page
    address = (folder / "index.html").as_uri()
    document = open_page(address, tmp_path)
    for text in ("shapeworld-red", "Every arm", "controls failed, as they must", "</svg>", "data:image/webp"):
        assert text in document
    picture = tmp_path / "page.png"
    photograph(address, picture, 1180, 1600)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] == 1180
    red = (pixels[..., 0] > 190) & (pixels[..., 1] < 80) & (pixels[..., 2] < 80)
    green = (pixels[..., 1] > 140) & (pixels[..., 0] < 80) & (pixels[..., 2] < 110)
    assert red.sum() > 500 and green.sum() > 500  # the clips are there, before and after
