"""Adapters of scope "concept" on tiny whole pipelines of several families: they act, fuse, unfuse, leave no trace."""

from dataclasses import replace

import pytest
import torch
from pipeline_table import cases

from unlearning_adapters.runtime.verbs import load_unlearning_adapter, unload_unlearning_adapters
from whole import UNSAFE, Whole, build, changed, check_fuse_and_unfuse, output, plant_words, state

CASES = {
    "AllegroPipeline", "AnimateDiffPipeline", "CogVideoXPipeline", "HunyuanVideoPipeline", "LTX2Pipeline",
    "LTXImageToVideoPipeline", "LTXPipeline", "MochiPipeline", "SanaVideoPipeline", "WanModularPipeline",
    "WanImageToVideoPipeline (two denoisers)",
}  # fmt: skip


@pytest.mark.parametrize("case", [case for case in cases() if isinstance(case, Whole) and str(case) in CASES], ids=str)
def test_directions_at_video_tokens(case: Whole) -> None:
    case = replace(case, call={**case.call, "num_inference_steps": max(4, case.call.get("num_inference_steps", 4))})
    pipe = case.make()
    plant_words(pipe)
    base = output(case, pipe, UNSAFE)
    before = state(pipe)
    adapter = build(case, pipe, scope="concept")
    assert changed(before, state(pipe)) == set(), "the builder left something behind"
    assert adapter.edit == "mixed" and len(adapter.additive) > 1
    load_unlearning_adapter(pipe, adapter)
    attached = output(case, pipe, UNSAFE)
    assert torch.isfinite(attached).all() and not torch.equal(attached, base)
    check_fuse_and_unfuse(case, pipe, adapter, base, attached, before)
    unload_unlearning_adapters(pipe)
    assert changed(before, state(pipe)) == set(), "something of the adapter is left"
    assert torch.equal(output(case, pipe, UNSAFE), base)


def test_the_cases_are_there() -> None:
    assert {str(case) for case in cases()} >= CASES
