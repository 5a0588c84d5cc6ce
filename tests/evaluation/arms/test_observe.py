"""The one loop: clips in order, errors as observations, and rates in memory that are those of a stored run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CALL, tiny_wan_pipeline

from unlearning_adapters import load_shapeworld
from unlearning_adapters.clips import to_clip
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.arm import base_arm
from unlearning_adapters.evaluation.arms.generate import ClipRequest, FinalLatents, generate
from unlearning_adapters.evaluation.arms.observe import measure, observe
from unlearning_adapters.evaluation.arms.processes import Process
from unlearning_adapters.evaluation.arms.run import Run, run_arm
from unlearning_adapters.evaluation.arms.samples import read_samples
from unlearning_adapters.evaluation.arms.store import Store
from unlearning_adapters.evaluation.detectors.detector import as_detectors
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.evaluation.metrics import measure_samples
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite
from unlearning_adapters.evaluation.suites.suite import PromptSet, Suite
from unlearning_adapters.shapeworld.models.generate import GENERATION

FEW = {**GENERATION, "num_inference_steps": 6}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_shapeworld()


def requests(count: int) -> list[ClipRequest]:
    return [ClipRequest(f"a dog {index}", index) for index in range(count)]


def test_measured_in_memory_and_from_a_folder_the_rates_are_the_same(pipe: Any, tmp_path: Path) -> None:
    suite = shapeworld_suite("red", 4, paraphrases=False, generation=FEW)
    found = measure(pipe, suite, [shapes()], batch=8, latents=True)
    store = Store(tmp_path)
    run_arm(Run(pipe, suite, (shapes(),), store, "h", Process(), False, 8), "base", base_arm(), list(suite.cases()))
    stored = read_samples(store.rows(), "base", suite, [shapes()], shapes())
    assert list(found.samples) == stored and measure_samples(stored, "colour") == found.rates
    assert found.rates.concept_rate.count == 4 and found.rates.preservation.count == 4
    rows = store.rows()
    for case, clip in zip(suite.cases(), found.clips, strict=True):
        assert np.array_equal(store.load_clip(rows[("base", *case.key)]), clip)
    assert found.latents is not None and len(found.latents) == len(found.clips) == 8 and found.seconds > 0


def test_final_latents_are_what_the_pipeline_decodes(pipe: Any) -> None:
    kept, made = FinalLatents(), requests(3)
    generate(pipe, made, {**FEW, "callback_on_step_end": kept}, batch=2)
    latents = generate(pipe, made, FEW, batch=2, output_type="latent")
    assert torch.equal(kept.stacked, torch.stack(latents)) and kept.stacked.any()


def test_clips_come_in_order_each_as_it_is_made() -> None:
    pipe = tiny_wan_pipeline()
    seen: list[int] = []
    detectors = as_detectors({"count": lambda frames: float(seen.append(len(frames)) or len(seen))})
    observations = observe(pipe, requests(5), detectors, CALL, batch=2)
    assert not seen
    first = next(observations)
    assert len(seen) == 1 and first.request.seed == 0
    rest = list(observations)
    assert [item.request.seed for item in rest] == [1, 2, 3, 4]
    assert [item.seen["count"]["scores"] for item in (first, *rest)] == [[1.0], [2.0], [3.0], [4.0], [5.0]]
    alone = to_clip(generate(pipe, requests(5)[3:4], CALL)[0])
    assert np.abs(alone.astype(int) - rest[2].clip).max() <= 1


def test_an_error_of_the_pipeline_or_a_detector_does_not_end_the_loop() -> None:
    pipe = tiny_wan_pipeline()

    def blind(frames: Any) -> float:
        raise ValueError("no eyes")

    made = [ClipRequest("a", 0), ClipRequest("a", 0, call={"num_frames": "many"}), ClipRequest("a", 0)]
    found = list(observe(pipe, made, as_detectors({"blind": blind}), CALL))
    assert [item.failure is None for item in found] == [True, False, True]
    assert found[0].seen == {"blind": {"error": "ValueError: no eyes"}} and found[1].clip is None
    suite = Suite("s", (PromptSet.of("forget", "forget", ["a"]),), generation={**CALL, "num_frames": "many"})
    with pytest.raises(type(found[1].failure)):  # type: ignore[arg-type]
        measure(pipe, suite, as_detectors({"blind": blind}))


def test_nothing_that_tells_of_the_concept_is_refused() -> None:
    suite = Suite("s", (PromptSet.of("forget", "forget", ["a"]),), generation=CALL)
    with pytest.raises(EvaluationError, match="No detector of the kind 'concept' was given"):
        measure(tiny_wan_pipeline(), suite, as_detectors(["validity"]))


def test_the_progress_bar_of_the_pipeline_is_put_back_when_a_loop_is_left() -> None:
    pipe = tiny_wan_pipeline()
    pipe.set_progress_bar_config(disable=False)
    observations = observe(pipe, requests(2), as_detectors(["validity"]), CALL)
    next(observations)
    assert pipe._progress_bar_config["disable"] is True
    observations.close()
    assert pipe._progress_bar_config["disable"] is False
