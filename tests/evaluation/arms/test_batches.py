"""Several clips per call: the clips are those of single calls up to rounding, and runs stop and go on as before."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.t5 import COG_CALL, make_cogvideox
from cases.unet import FRAMES, make_zeroscope
from diffusers import WanPipeline
from tiny import tiny_wan_pipeline

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms import observe
from unlearning_adapters.evaluation.arms.arm import Arm, base_arm, negative_prompt_arm, reseeded_arm
from unlearning_adapters.evaluation.arms.conditions import conditions_hash
from unlearning_adapters.evaluation.arms.generate import (
    ClipRequest,
    batches,
    check_batch,
    check_count,
    for_each,
    generate_batch,
)
from unlearning_adapters.evaluation.arms.processes import Process
from unlearning_adapters.evaluation.arms.record import RECORD, read_record
from unlearning_adapters.evaluation.arms.store import Store
from unlearning_adapters.evaluation.detectors.detector import as_detector
from unlearning_adapters.evaluation.evaluate import evaluate
from unlearning_adapters.evaluation.reports.report import Report
from unlearning_adapters.evaluation.suites.suite import PromptSet, Suite
from unlearning_adapters.pipelines.sites import denoisers

CALL = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2}
TEXTS = ("a red car", "a dog runs", "two red trees near a house", "a red boat", "the red cat sits")
SUITE = Suite(
    "tiny",
    (PromptSet.of("forget", "forget", TEXTS), PromptSet.of("far", "unrelated", ["a man walks", "a grey street"])),
    generation=CALL,
)
ROUNDING = 1e-3  # of frames from 0 to 1; clips of other seeds or prompts are further apart by far
BRIGHT = as_detector(lambda frames: frames.mean(axis=(1, 2, 3)) / 255, "bright")
VALID = as_detector(lambda frames: 1.0, "any", kind="validity")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_wan_pipeline()


def requests(texts: Sequence[str] = TEXTS) -> list[ClipRequest]:
    return [ClipRequest(text, 7 * index) for index, text in enumerate(texts)]


def run(pipe: Any, folder: Path, size: int, **options: Any) -> Report:
    arms = {"mine": replace(reseeded_arm(), part="edited"), "negative": negative_prompt_arm("a red dog")}
    return evaluate(
        pipe, None, SUITE, [BRIGHT, VALID], arms=arms, controls=False, gate=0.0, output=folder, progress=False,
        batch_size=size, **options,
    )  # fmt: skip


def clips(folder: Path) -> dict[Any, Any]:
    store = Store(folder)
    return {key: store.load_clip(row).astype(int) for key, row in store.rows().items() if row.arm != "base-again"}


def check_same_clips(one: dict[Any, Any], other: dict[Any, Any]) -> None:
    assert one.keys() == other.keys() and len(one) == 21
    assert max(np.abs(clip - other[key]).max() for key, clip in one.items()) <= 1  # of 255
    seeds = [clip for key, clip in one.items() if key[0] == "base"]
    assert min(np.abs(a - b).max() for index, a in enumerate(seeds) for b in seeds[:index]) > 5


@pytest.fixture(scope="module")
def single(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("single")
    return run(pipe, folder, 1), folder


@pytest.fixture(scope="module")
def four(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("four")
    return run(pipe, folder, 4), folder


@pytest.mark.parametrize(
    ("make", "call"),
    [(tiny_wan_pipeline, CALL), (make_zeroscope, FRAMES), (make_cogvideox, COG_CALL)],
    ids=["Wan", "TextToVideoSD", "CogVideoX"],
)
def test_a_clip_of_a_batch_is_that_of_a_single_call(make: Any, call: dict[str, Any]) -> None:
    """And it is asked for with its own prompt and the negative one, which the second pipeline refuses as one text."""
    pipe, some = make(), requests(TEXTS[:3])
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "guidance_scale": 5.0, "negative_prompt": "the blue dog runs"}
    read: list[torch.Tensor] = []
    hook = next(iter(denoisers(pipe).values())).register_forward_pre_hook(
        lambda _, __, options: read.append(options["encoder_hidden_states"].clone()), with_kwargs=True
    )
    try:
        made = generate_batch(pipe, some, call)
        check_count(pipe, made, some)
        together = torch.cat(read).unflatten(0, (-1, len(some)))  # per step one group of either guidance
        for index, request in enumerate(some):
            read.clear()
            alone = np.asarray(generate_batch(pipe, [request], call)[0])
            assert np.allclose(made[index], alone, atol=ROUNDING)
            assert all(np.abs(made[other] - alone).max() > 10 * ROUNDING for other in range(3) if other != index)
            torch.testing.assert_close(together[:, index], torch.cat(read), atol=1e-5, rtol=1e-4)
    finally:
        hook.remove()
    same = [torch.allclose(group[0], group[1], atol=1e-4) for group in together]
    assert len(same) == 4 and sum(same) == 2  # of two steps: the negative prompt is that of all, the others differ


def test_noise_does_not_depend_on_the_company(pipe: Any) -> None:
    """Latents before any step: those of one seed are equal bit for bit in every batch."""
    seen: list[torch.Tensor] = []

    def remember(_: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append(options["hidden_states"].clone() if "hidden_states" in options else inputs[0].clone())

    one, two, three = requests(TEXTS[:3])
    hook = pipe.transformer.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        firsts = []
        for group in ([two], [one, two], [two, three], [three, one, two]):
            seen.clear()
            generate_batch(pipe, group, {**CALL, "num_inference_steps": 1})
            firsts.append(seen[0][group.index(two)])
    finally:
        hook.remove()
    assert all(torch.equal(firsts[0], other) for other in firsts[1:])
    assert not torch.equal(seen[0][0], seen[0][2])


def test_a_run_in_batches_gives_the_numbers_of_single_clips(
    single: tuple[Report, Path], four: tuple[Report, Path]
) -> None:
    check_same_clips(clips(single[1]), clips(four[1]))
    (one, _), (many, folder) = single, four
    for name in ("base", "mine", "negative"):
        before, after = one.data["arms"][name], many.data["arms"][name]
        assert after["missing"] == 0 and after["counts"] == before["counts"]
        mean, other = (arm["scores"]["bright"]["mean"] for arm in (before, after))
        assert other == pytest.approx(mean, abs=1e-3)
        if name != "base":
            drift, again = (arm["drift"]["all"]["difference"]["value"] for arm in (before, after))
            assert again == pytest.approx(drift, abs=2e-4)
            assert drift > 0.004 or name == "negative"  # random weights hardly read the prompt
    assert many.data["repeat"]["identical"] == {"value": 1.0, "hits": 4, "count": 4, "interval": [0.5101, 1.0]}
    assert len(Store(folder).rows()) == 3 * 7 + 4


def test_the_batch_is_one_of_the_conditions(pipe: Any, single: tuple[Report, Path], four: tuple[Report, Path]) -> None:
    one, many = (report.data["conditions"] for report, _ in (single, four))
    assert (one["batch"], many["batch"]) == (1, 4) and one["hash"] != many["hash"]
    with pytest.raises(EvaluationError, match=r"holds a run with another batch: 4, now 1\. Choose another folder"):
        run(pipe, four[1], 1)
    with pytest.raises(EvaluationError, match="holds a run with another batch: 1, now 4"):
        run(pipe, single[1], 4)


def test_a_run_of_before_there_were_batches_goes_on(pipe: Any, single: tuple[Report, Path]) -> None:
    folder = single[1]
    record = read_record(folder)
    del record["conditions"]["batch"]
    assert conditions_hash(record["conditions"]) == record["conditions"]["hash"]
    (folder / RECORD).write_text(json.dumps(record))
    rows = Store(folder).rows()
    run(pipe, folder, 1)
    assert Store(folder).rows() == rows and read_record(folder)["conditions"]["batch"] == 1


@pytest.mark.parametrize("where", ["generate_batch", "look"])
def test_a_kill_costs_one_batch_at_most(
    where: str, pipe: Any, single: tuple[Report, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second call of the pipeline, or while the sixth clip is looked at."""
    last, calls, true = {"generate_batch": 2, "look": 6}[where], [], getattr(observe, where)

    def dies(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == last:
            raise KeyboardInterrupt
        return true(*arguments)

    monkeypatch.setattr(observe, where, dies)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, tmp_path, 4)
    monkeypatch.undo()
    assert len(Store(tmp_path).rows()) == {"generate_batch": 4, "look": 5}[where]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips" / "base" / "forget").iterdir()}
    run(pipe, tmp_path, 4)
    check_same_clips(clips(single[1]), clips(tmp_path))
    assert sum(path.stat().st_mtime_ns == time for path, time in kept.items()) >= 4  # made once


def test_processes_share_batches(pipe: Any, single: tuple[Report, Path], tmp_path: Path) -> None:
    for index in (1, 0):
        run(pipe, tmp_path, 2, process=Process(index, 2))
    assert {path.name for path in tmp_path.glob("rows-*")} == {"rows-0.jsonl", "rows-1.jsonl"}
    check_same_clips(clips(single[1]), clips(tmp_path))


def test_what_differs_in_its_call_is_no_batch() -> None:
    guided, tensor = {"guidance_scale": 2.0}, {"latents": torch.zeros(2)}
    calls = [{}, {}, {}, guided, dict(guided), {}, tensor, tensor, {"latents": torch.zeros(2)}]
    some = [replace(request, call=call) for request, call in zip(requests(["a dog"] * 9), calls, strict=True)]
    assert [len(group) for group in batches(some, 2)] == [2, 1, 2, 1, 2, 1]
    assert [request for group in batches(some, 4) for request in group] == some
    assert [len(group) for group in batches(some, 1)] == [1] * 9 and list(batches([], 3)) == []
    picture = replace(some[0], image="a.png")
    assert [len(group) for group in batches([some[0], picture, picture, some[0], some[1]], 3)] == [1, 1, 1, 2]
    read = replace(some[0], embeds=torch.zeros(1, 2, 3))
    assert [len(group) for group in batches([some[0], read, read, replace(read, latents=torch.zeros(1))], 4)] == [
        1,
        2,
        1,
    ]


def test_texts_are_repeated_for_each_prompt_and_nothing_else_is() -> None:
    given = {"prompt_2": "a", "negative_prompt": "b", "negative_prompt_2": ["c", "d"], "sampler": "e", "prompt_seed": 1}
    assert for_each({**given, "negative_prompt_3": None}, 2) == {
        **given, "prompt_2": ["a", "a"], "negative_prompt": ["b", "b"], "negative_prompt_3": None,
    }  # fmt: skip


class OnePrompt:
    def __call__(self, prompt: str, generator: torch.Generator | None = None) -> None: ...


class OneGenerator:
    def __call__(self, prompt: str | list[str], generator: "torch.Generator | None" = None) -> None: ...


def test_a_pipeline_without_batches_is_named_with_the_cure() -> None:
    with pytest.raises(
        EvaluationError, match=r"OnePrompt takes no list of prompts, and cannot make 4 .* Use batch 1\."
    ):
        check_batch(OnePrompt(), 4)
    with pytest.raises(EvaluationError, match="OneGenerator takes no list of generators, and cannot make 2 clips"):
        check_batch(OneGenerator(), 2)
    for size in (0, True, 2.0):
        with pytest.raises(EvaluationError, match=re.escape(f"a whole number of clips from 1, but got {size!r}.")):
            check_batch(OnePrompt(), size)
    check_batch(OnePrompt(), 1)


class FirstOnly(WanPipeline):
    """A call without annotations, which takes a list and makes one clip."""

    def __call__(self, prompt, generator=None, **call):
        alone = (prompt[0], generator[0]) if isinstance(prompt, list) else (prompt, generator)
        return super().__call__(alone[0], generator=alone[1], **call)


def test_another_number_of_clips_ends_the_run(pipe: Any, tmp_path: Path) -> None:
    sole = FirstOnly(**pipe.components)
    arms = {"mine": replace(base_arm(), part="edited")}
    call = {"arms": arms, "output": tmp_path, "controls": False, "gate": 0.0, "progress": False}
    text = (
        r"FirstOnly returned 1 clip for 3 prompts, so that it is unknown which .*\. Use batch 1, and another folder\."
    )
    with pytest.raises(EvaluationError, match=text):
        evaluate(sole, None, SUITE, [BRIGHT, VALID], batch_size=3, **call)
    assert not Store(tmp_path).rows()


def test_a_batch_that_fails_fails_for_each_of_its_clips(pipe: Any, tmp_path: Path) -> None:
    arm = Arm(base_arm().enter, "edited", "fails", {"negative_prompt": ["one", "two"]})
    call = {"arms": {"mine": arm}, "output": tmp_path, "controls": False, "gate": 0.0, "progress": False}
    text = "No clip of the arm 'mine' could be made. The last error: .* If WanPipeline cannot make 3 clips in one call,"
    with pytest.raises(EvaluationError, match=text):
        evaluate(pipe, None, SUITE, [BRIGHT, VALID], batch_size=3, **call)
    assert sum(bool(row.error) for row in Store(tmp_path).rows().values()) == 3
