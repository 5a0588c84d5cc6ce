"""The documentation site builds without a warning, asks no other host, and fits a desktop and a phone."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import needs_chromium, open_page

import unlearning_adapters

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "": "Make a diffusers video model forget a concept",
    "guide/load/": "load_unlearning_adapter",
    "results/": "shapeworld-cogvideox",
    "experiments/": "Landing on what most pairs agree on",
    "api/build/": "Build an adapter that makes a pipeline forget a concept",
    "pipelines/": "CogVideoXTransformer3DModel",
}
WIDTHS = {"desktop": 1280, "phone": 390}
FRAME = "<!doctype html><iframe style='border: 0; width: {width}px; height: 900px' src='{page}'></iframe>"
# What of a page reaches beyond its width, and what it asked for. Tables and code may scroll inside of themselves.
MEASURE = """<script>
const frame = document.querySelector("iframe");
const scrolls = (element) => {
  for (let at = element; at && at.tagName != "BODY"; at = at.parentElement)
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(at).overflowX)) return true;
  return false;
};
frame.addEventListener("load", () => setTimeout(() => {
  const page = frame.contentDocument, width = page.documentElement.clientWidth;
  const wide = [...page.querySelectorAll("main *")].filter((element) => {
    const box = element.getBoundingClientRect();
    return box.width && (box.right > width + 1 || box.left < -1) && !scrolls(element);
  });
  const asked = frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name);
  const result = {
    width, content: page.documentElement.scrollWidth, text: page.querySelector("main").innerText, asked,
    wide: wide.map((element) => element.tagName + " " + element.textContent.slice(0, 60)),
    font: getComputedStyle(page.body).fontFamily, styled: page.styleSheets.length,
  };
  const output = document.createElement("pre");
  output.id = "result";
  output.textContent = JSON.stringify(result);
  document.body.append(output);
}, 1500));
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_every_public_name_is_documented(site: Path) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").rglob("*.html"))
    ids = set(re.findall(r'id="unlearning_adapters\.(\w+)"', text))
    assert set(unlearning_adapters.__all__) - ids == {"__version__"}


def test_a_page_of_the_api_is_made_of_the_docstrings(site: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "api/build/index.html").read_text(encoding="utf-8")))
    for part in ("build_adapter", "Raises", "call_kwargs", 'adapter.save_pretrained("no-red")', "class BuildConfig"):
        assert part.replace("class ", "") in text, part


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?([^\"'\s>]+)", text)
        loaded += [
            target for tag in re.findall(r"<link[^>]*>", text) for target in re.findall(r"href=[\"']?([^\"'\s>]+)", tag)
        ]
        assert [target for target in loaded if re.match(r"(\w+:)?//", target)] == [], page
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), style


@pytest.fixture
def address(site: Path, tmp_path: Path) -> Iterator[str]:
    """The site, and frames of a fixed width around its pages, on a loopback server."""
    for name, width in WIDTHS.items():
        for number, page in enumerate(PAGES):
            text = FRAME.format(width=width, page=f"/{page}") + MEASURE
            (site / f"frame-{name}-{number}.html").write_text(text, encoding="utf-8")
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@needs_chromium
@pytest.mark.parametrize("name", WIDTHS)
def test_a_browser_shows_the_pages_and_nothing_overflows(name: str, address: str, tmp_path: Path) -> None:
    for number, (page, expected) in enumerate(PAGES.items()):
        options = ("--window-size=1300,1000", "--virtual-time-budget=8000")
        document = open_page(f"{address}/frame-{name}-{number}.html", tmp_path, *options)
        (text,) = re.findall(r'<pre id="result">(.*?)</pre>', document, re.DOTALL)
        result = json.loads(html.unescape(text))
        assert result["width"] == WIDTHS[name] and result["styled"] >= 2
        assert expected in result["text"], page
        assert result["content"] <= result["width"] and result["wide"] == [], page
        assert result["asked"] and all(asked.startswith(f"{address}/") for asked in result["asked"])
        assert "Roboto" not in result["font"]
