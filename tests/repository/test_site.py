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
from typing import Any

import pytest
from browser import needs_chromium, open_page

import unlearning_adapters

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "": "Make a diffusers video model forget a concept",
    "guide/load/": "load_unlearning_adapter",
    "results/": "shapeworld-cogvideox",
    "experiments/": "Landing on what most pairs agree on",
    "api/build/": "Build the adapter that makes a pipeline forget a concept",
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
  const wide = [...page.querySelectorAll(".md-content *, header *")].filter((element) => {
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


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site on a loopback server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def measure(site: Path, address: str, page: str, width: int, folder: Path) -> dict[str, Any]:
    """What a browser finds on a page in a frame of a fixed width."""
    # A name of its own for each page: a server's dates count seconds, so that a browser may keep a file that changed.
    frame = f"frame-{width}-{page.strip('/').replace('/', '-')}.html"
    (site / frame).write_text(FRAME.format(width=width, page=f"/{page}") + MEASURE, encoding="utf-8")
    document = open_page(f"{address}/{frame}", folder, "--window-size=1300,1000", "--virtual-time-budget=8000")
    (text,) = re.findall(r'<pre id="result">(.*?)</pre>', document, re.DOTALL)
    return json.loads(html.unescape(text))


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_browser_shows_the_pages_and_nothing_overflows(site: Path, address: str, width: int, tmp_path: Path) -> None:
    for page, expected in PAGES.items():
        result = measure(site, address, page, width, tmp_path)
        assert result["width"] == width and result["styled"] >= 2
        assert expected in result["text"], page
        assert result["content"] <= width and result["wide"] == [], (page, result["wide"])
        assert result["asked"] and all(asked.startswith(f"{address}/") for asked in result["asked"])
        assert "Roboto" not in result["font"]


@needs_chromium
def test_what_overflows_is_seen(site: Path, address: str, tmp_path: Path) -> None:
    text = (site / "guide/load/index.html").read_text(encoding="utf-8")
    wide = re.sub(r"(<article[^>]*>)", r"\1<p style='width: 500px'>wide</p>", text)
    (site / "guide/wide").mkdir(exist_ok=True)
    (site / "guide/wide/index.html").write_text(wide, encoding="utf-8")
    result = measure(site, address, "guide/wide/", WIDTHS["phone"], tmp_path)
    assert result["wide"] == ["P wide"] or result["content"] > WIDTHS["phone"]
