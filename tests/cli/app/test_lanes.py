"""Jobs of several tabs on one pipeline: which wait, what they are told, and that none changes the result of another."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CALL as TINY
from tiny import PROMPTS, tiny_wan_pipeline

from unlearning_adapters.cli.app import lanes
from unlearning_adapters.cli.app.bench import Bench
from unlearning_adapters.cli.app.jobs import Job, collected_warnings
from unlearning_adapters.cli.app.session import Session
from unlearning_adapters.cli.app.tabs.forgetting import build
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.pipelines.sites import denoisers

RED = Concept.from_dict(
    {
        "name": "red",
        "words": ["red"],
        "pairs": [{"unsafe": f"a red {thing}", "safe": f"a blue {thing}"} for thing in ("car", "dog", "house")],
        "neutral": ["two dogs run on a quiet street at night", "a tree", "an old man"],
    }
)
ASKED = [(PROMPTS[0], 0)]


def until(condition: Callable[[], object]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come")


@pytest.fixture
def session() -> Iterator[Session]:
    opened = Session()
    yield opened
    opened.close()


def holding(bench: Bench, text: str) -> tuple[Job, threading.Event]:
    """A job that has the pipeline until the event is set."""
    inside, leave = threading.Event(), threading.Event()

    def work(job: Job) -> str:
        with bench.taken(job):
            inside.set()
            assert leave.wait(60)
        return "left"

    job = Job(work, text)
    assert inside.wait(60)
    return job, leave


def hooks(pipe: Any) -> int:
    return sum(len(module._forward_pre_hooks) for network in denoisers(pipe).values() for module in network.modules())


def test_a_clip_does_not_wait_for_the_build_of_another_tab() -> None:
    bench = Bench(tiny_wan_pipeline(), "tiny", TINY)
    builder, leave = holding(bench, "Building red")
    clip = Job(lambda job: bench.clips(job, ASKED, []), "Making two clips")
    assert clip.wait(60) and clip.error == "" and len(clip.result) == 1
    assert not builder.wait(0)
    leave.set()
    assert builder.wait(60) and builder.result == "left"


def test_at_once_or_alone_a_build_and_clips_are_the_same(session: Session) -> None:
    bench, settings = Bench(tiny_wan_pipeline(), "tiny", TINY), {"pairs": 3}
    alone = Job(lambda job: build(bench, session, RED, settings, job), "Building red")
    assert alone.wait(120), alone.text
    adapter = alone.result["adapter"]
    edits = [(adapter, 1.5)]
    (expected,) = bench.clips(alone, ASKED, edits)
    (base,) = bench.clips(alone, ASKED, [])
    assert not np.array_equal(expected, base)
    again = Job(lambda job: build(bench, session, RED, settings, job), "Building red")
    clips = []
    while not again.wait(0):
        clips += bench.clips(alone, ASKED, edits)
    assert clips and all(np.array_equal(clip, expected) for clip in clips)
    for site, direction in adapter.directions.items():
        assert torch.equal(again.result["adapter"].directions[site].read, direction.read), site
    assert hooks(bench.pipe) == 0


def test_on_a_large_pipeline_a_tab_is_told_its_place_and_can_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "SMALL", 0)
    bench = Bench(tiny_wan_pipeline(), "tiny", TINY)
    builder, leave = holding(bench, "Building a secret")
    second = Job(lambda job: bench.clips(job, ASKED, []), "Making two clips")
    until(lambda: second.waits)
    third = Job(lambda job: bench.clips(job, ASKED, []), "Making two clips")
    until(lambda: third.waits)
    assert second.waits == "Another tab is building; yours is next"
    assert third.waits == "Another tab is building; 1 more before yours"
    second.stop()
    assert second.wait(60) and second.stopped and second.result is None
    until(lambda: third.waits.endswith("yours is next"))
    leave.set()
    assert third.wait(60) and third.error == "" and third.waits == "" and len(third.result) == 1
    assert hooks(bench.pipe) == 0


def test_a_stopped_build_leaves_nothing(session: Session) -> None:
    bench = Bench(tiny_wan_pipeline(), "tiny", TINY)
    weights = {name: value.clone() for name, value in bench.pipe.transformer.state_dict().items()}

    def work(job: Job) -> Any:
        press = bench.pipe.transformer.register_forward_pre_hook(lambda *_: job.stop())  # at its first step
        try:
            return build(bench, session, RED, {"pairs": 3}, job)
        finally:
            press.remove()

    job = Job(work, "Building red")
    assert job.wait(60) and job.stopped and job.result is None and job.error == ""
    assert not session.entries and not list(session.folder.iterdir()) and hooks(bench.pipe) == 0
    assert all(torch.equal(weights[name], value) for name, value in bench.pipe.transformer.state_dict().items())


def test_a_page_that_closes_leaves_no_file_of_its_job(session: Session) -> None:
    inside = threading.Event()

    def work(job: Job) -> None:
        inside.set()
        time.sleep(0.2)
        (session.folder / "clips").mkdir(parents=True)
        job.tick()

    job = session.start(work, "Measuring red")
    assert inside.wait(60)
    session.close()
    assert job.stopped and not session.folder.exists()


def test_each_job_has_its_own_warnings() -> None:
    both = threading.Barrier(2, timeout=60)

    def warn(text: str) -> list[str]:
        texts = list[str]()
        both.wait()
        with collected_warnings(texts):
            both.wait()
            for _ in range(2):
                warnings.warn(f"{text} is weak", stacklevel=1)
            both.wait()
        return texts

    jobs = [Job(lambda job, text=text: warn(text), "Building") for text in ("red", "blue")]
    assert all(job.wait(60) for job in jobs)
    assert [job.result for job in jobs] == [["red is weak"], ["blue is weak"]]
