"""The page on pipelines that are not the embedded one: of the repository, from the Hub, and without text."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import needs_chromium
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from gradio_page import browsing, visit
from loopback_hub import LoopbackHub
from tiny import CALL as TINY
from tiny import tiny_wan_pipeline

from unlearning_adapters.cli.app.bench import Bench
from unlearning_adapters.cli.app.jobs import Job
from unlearning_adapters.cli.app.serve import import_gradio, serve
from unlearning_adapters.cli.app.session import Session, Sessions
from unlearning_adapters.cli.app.tabs.comparing import compare
from unlearning_adapters.cli.app.tabs.forgetting import build, chosen_concept
from unlearning_adapters.cli.open import open_pipeline
from unlearning_adapters.concepts.concept import load_concept

UNET = Path(__file__).resolve().parents[3] / "models" / "shapeworld-unet"
RED = "a red circle moves left on a black background"


@pytest.mark.slow
@needs_chromium
@pytest.mark.xdist_group("page")
def test_a_pipeline_of_the_hub_is_edited_in_the_browser(tmp_path: Path, hub: LoopbackHub) -> None:
    tiny_wan_pipeline().save_pretrained(tmp_path / "base")
    files = [path for path in (tmp_path / "base").rglob("*") if path.is_file()]
    hub.create("org/tiny-wan", **{str(path.relative_to(tmp_path / "base")): path.read_bytes() for path in files})
    import_gradio()
    from unlearning_adapters.cli.app.page import make_page

    sessions = Sessions()
    page = make_page(Bench(open_pipeline("org/tiny-wan"), "org/tiny-wan", TINY), sessions)
    assert any("model_index.json" in request[1] for request in hub.requests)
    try:
        address = serve(page, None, block=False)
        with browsing() as browser:
            seen = visit(browser, address)
            seen.page.get_by_label("What to forget").click()
            seen.page.get_by_role("option", name="my own pairs").click()
            seen.page.get_by_label("Its words, separated by commas").fill("red")
            pairs = "\n".join(f"a red {thing} | a blue {thing}" for thing in ("car", "dog", "house"))
            seen.page.get_by_label("Pairs, one on each line").fill(pairs)
            seen.page.get_by_label("Prompts that must not change").fill("an old man\ntwo trees")
            seen.press("Build")
            seen.sees("Look at it in the tab Compare")
            seen.tab("Compare")
            seen.page.get_by_label("Prompt", exact=True).fill("a red car")
            seen.page.get_by_label("number input for Strength of no-crimson").fill("2")
            seen.press("Compare")
            films = seen.page.locator(".ua-pair figure:not(.ua-over) video")
            films.nth(1).wait_for()
            original, edited = films.evaluate_all("films => films.map(film => film.src)")
            assert original.startswith("data:video/mp4") and original != edited
            assert seen.errors == [] and seen.hosts() == {"127.0.0.1"}
    finally:
        page.close()
        sessions.close_all()


@pytest.mark.slow
def test_a_unet_of_the_repository_forgets_red() -> None:
    bench, session = Bench(open_pipeline(str(UNET)), str(UNET)), Session()
    assert bench.embedded
    try:
        job = Job(lambda job: build(bench, session, load_concept("shapeworld-red"), {"pairs": 5}, job), "Building")
        assert job.wait(120) and job.error == "", job.error
        edits = [(job.result["name"], job.result["adapter"], job.result["adapter"].strength)]
        looked = Job(lambda job: compare(bench, session, RED, 0, edits, job), "Making two clips")
        assert looked.wait(120) and looked.error == "", looked.error
        original, edited = (looked.result[key].astype(float).sum((0, 1, 2)) for key in ("original", "edited"))
        assert original[0] > 2 * max(original[1:]) and edited[0] < 2 * max(edited[1:])
    finally:
        session.close()


def test_a_pipeline_without_text_is_one_line_in_each_tab() -> None:
    network = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    bench, session = Bench(DDPMPipeline(network, DDPMScheduler()), "pictures"), Session()
    try:
        for work in (
            lambda job: build(bench, session, load_concept("shapeworld-red"), {"pairs": 5}, job),
            lambda job: compare(bench, session, RED, 0, [], job),
        ):
            job = Job(work, "Trying")
            assert job.wait(60)
            assert job.error.startswith("DDPMPipeline takes no prompt") and "\n" not in job.error
        assert not session.entries and not list(session.folder.iterdir())
    finally:
        session.close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.yaml", b""),
        ("list.yaml", b"- a\n- b\n"),
        ("broken.yaml", b"pairs: [\n"),
        ("picture.yaml", bytes(range(256))),
        ("line.jsonl", b'{"unsafe": "a red car"}\n'),
        ("broken.jsonl", b'{"unsafe": "a red car", \n'),
        ("notes.txt", b"red"),
    ],
)
def test_a_wrong_file_of_prompts_is_one_line_with_its_name(name: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    job = Job(lambda job: chosen_concept("file", str(file), ["", "", "", ""], True), "Reading")
    assert job.wait(30)
    assert name in job.error and "\n" not in job.error and "Traceback" not in job.error
    assert "Error: " not in job.error, "it is named by its kind, and should be in words"
