import itertools
import linecache
import random
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_wan_pipeline

from planted import bits, output, planted, snapshot
from unlearning_adapters.errors import DenoiserError, FuseError
from unlearning_adapters.runtime import editor as editor_module
from unlearning_adapters.runtime.change import change_stacks
from unlearning_adapters.runtime.editor import editor_of
from unlearning_adapters.runtime.fusing import compact_record, weight_copy
from unlearning_adapters.runtime.fusing.compact_record import CompactRecord
from unlearning_adapters.runtime.fusing.record_choice import RecordChoice
from unlearning_adapters.runtime.fusing.weight_copy import WeightCopy
from unlearning_adapters.runtime.hooks.denoiser import EditHooks
from unlearning_adapters.runtime.verbs import (
    delete_unlearning_adapters,
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    set_unlearning_adapters,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)

FOLDER = str(Path(editor_module.__file__).parent)
LOCKED = ("with _guard:", "with _LOCK:", "try:")


class Plug(BaseException):
    """Neither an Exception nor anything that the code expects."""


def failing_at(function, call: int, error=Plug):
    count = itertools.count(1)

    def wrapped(*args, **kwargs):
        if next(count) == call:
            raise error("pulled the plug")
        return function(*args, **kwargs)

    return wrapped


def two_loaded(two_denoisers=True):
    pipe = tiny_wan_pipeline(two_denoisers)
    for number, name in enumerate(("red", "blue")):
        load_unlearning_adapter(pipe, planted(pipe, name, seed=number, strength=1.2))
    return pipe


def load_more(pipe):
    load_unlearning_adapter(pipe, planted(pipe, "green", seed=7, rank=2))


ACTIONS = {
    "load": (load_more, False),
    "load beside fused": (load_more, True),
    "set": (lambda pipe: set_unlearning_adapters(pipe, ["blue"], 0.3), False),
    "delete": (lambda pipe: delete_unlearning_adapters(pipe, "red"), False),
    "unload": (unload_unlearning_adapters, False),
    "fuse": (fuse_unlearning_adapters, False),
    "fuse one": (lambda pipe: fuse_unlearning_adapters(pipe, "red"), False),
    "fuse the other too": (fuse_unlearning_adapters, True),
    "unfuse": (unfuse_unlearning_adapters, True),
}
RECORDS = {"copy": WeightCopy, "compact": CompactRecord}
FAULTS = [
    (action, fault, call, record)
    for action in ACTIONS
    for fault, calls in (("place", (1, 2)), ("fuse_block", (1, 3, 5, 8)), ("restore_block", (1, 3, 5, 8)))
    for call in calls
    for record in RECORDS
    if fault == "place"
    or (fault == "fuse_block" and "fuse" in action and action not in ("unfuse", "load beside fused"))
    or (fault == "restore_block" and action in ("unfuse", "fuse the other too"))
]  # fmt: skip


@pytest.fixture
def record(request, monkeypatch):
    """Lets fusing keep this record, as if the memory had room for it or not."""
    monkeypatch.setattr(RecordChoice, "takes_copies", lambda *_: request.param == "copy")
    return request.param


@pytest.mark.parametrize(("action", "fault", "call", "record"), FAULTS, indirect=["record"])
def test_whatever_fails_midway_everything_is_as_it_was(action, fault, call, record):
    pipe = two_loaded()
    act, fused = ACTIONS[action]
    if fused:
        fuse_unlearning_adapters(pipe, "red")
    before, outputs = snapshot(pipe), [output(pipe), output(pipe, "transformer_2")]
    owner = EditHooks if fault == "place" else RECORDS[record]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, fault, failing_at(getattr(owner, fault), call))
        with pytest.raises(Plug, match="pulled the plug"):
            act(pipe)
    assert_as_it_was(pipe, before, outputs)
    act(pipe)  # and the same call works when nothing fails
    assert any(not same(value, before.get(key)) for key, value in snapshot(pipe).items())


def assert_as_it_was(pipe, before, outputs):
    after = snapshot(pipe)
    assert after.keys() == before.keys()
    assert [key for key, value in after.items() if key != "hooks" and not same(value, before[key])] == []
    assert all(map(torch.equal, [output(pipe), output(pipe, "transformer_2")], outputs))


def lines_of_runtime(act) -> list[tuple[str, int]]:
    """The lines of the package's runtime that a call runs, in order."""
    lines = []

    def trace(frame, event, _argument):
        if FOLDER not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines.append((frame.f_code.co_filename, frame.f_lineno))
        return trace

    with_trace(trace, act)
    return lines


def with_trace(trace, act):
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)


def at_lock(file: str, line: int) -> bool:
    return linecache.getline(file, line).strip() in LOCKED


def interrupted_at(number: int, act) -> bool:
    """Press Ctrl-C in front of the n-th line of the package's runtime; tell whether it came through.

    Not at a lock's own line, which Python traces again behind the block, before the lock is given back, nor at a "try:"
    behind it: no true Ctrl-C comes there, nothing would give the lock back, and all later tests would wait for it.
    """
    count = itertools.count()

    def trace(frame, event, _argument):
        if FOLDER not in frame.f_code.co_filename:
            return None
        if event == "line" and next(count) >= number and not at_lock(frame.f_code.co_filename, frame.f_lineno):
            raise KeyboardInterrupt
        return trace

    try:
        with_trace(trace, act)
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.parametrize("record", RECORDS, indirect=True)
@pytest.mark.parametrize("fused", [False, True])
def test_control_c_at_any_line_leaves_weights_and_records_in_step(fused, record):
    """Whatever line it hits: the weights are the base's or the fused ones, and can be restored bit for bit."""
    pipe = two_loaded()
    base = weights(pipe)
    act = unfuse_unlearning_adapters if fused else fuse_unlearning_adapters
    if fused:
        fuse_unlearning_adapters(pipe)
    outputs = [output(pipe), output(pipe, "transformer_2")]
    lines = lines_of_runtime(lambda: act(pipe))
    total = 1 + max(index for index, line in enumerate(lines) if not at_lock(*line))
    (fuse_unlearning_adapters if fused else unfuse_unlearning_adapters)(pipe)
    assert total > 1000
    for number in random.Random(0).sample(range(total), 40):
        assert interrupted_at(number, lambda: act(pipe))
        assert all(map(near, [output(pipe), output(pipe, "transformer_2")], outputs))
        fuse_unlearning_adapters(pipe)
        unfuse_unlearning_adapters(pipe)
        assert all(torch.equal(value, base[name]) for name, value in weights(pipe).items())
        if fused:
            fuse_unlearning_adapters(pipe)


@pytest.mark.parametrize(  # a float32 weight is fused in place where a copy is kept
    ("fused", "record"), [(True, "copy"), (True, "compact"), (False, "compact")], indirect=["record"]
)
def test_control_c_behind_the_write_of_a_block_leaves_its_record_in_step(fused, record, monkeypatch):
    pipe = two_loaded()
    base = weights(pipe)
    if fused:
        fuse_unlearning_adapters(pipe)
    outputs, presses = [output(pipe), output(pipe, "transformer_2")], iter([True])
    for module in (weight_copy, compact_record):

        def interrupted(block, values, write=module.write):
            write(block, values)
            if next(presses, False):
                raise KeyboardInterrupt

        monkeypatch.setattr(module, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        (unfuse_unlearning_adapters if fused else fuse_unlearning_adapters)(pipe)
    assert all(map(near, [output(pipe), output(pipe, "transformer_2")], outputs))
    assert pipe.verify_unlearning_adapters().ok
    fuse_unlearning_adapters(pipe)
    unfuse_unlearning_adapters(pipe)
    assert all(torch.equal(value, base[name]) for name, value in weights(pipe).items())


def near(one, other) -> bool:
    return torch.allclose(one, other, atol=1e-4)


def weights(pipe):
    parts = {"transformer": pipe.transformer, "transformer_2": pipe.transformer_2}
    return {f"{part}.{name}": bits(v) for part, module in parts.items() for name, v in module.state_dict().items()}


def same(one, other) -> bool:
    """Hooks that were put back are others of the same name."""
    if isinstance(one, tuple) and isinstance(other, tuple) and isinstance(one[-1], dict):
        return one[:-1] == other[:-1] and one[-1].keys() == other[-1].keys()
    return one == other


def test_a_new_editor_leaves_no_trace():
    pipe = tiny_wan_pipeline()
    before = snapshot(pipe)
    editor_of(pipe.transformer)
    assert snapshot(pipe) == before


def test_a_weight_that_changed_is_found_before_anything_is_changed():
    pipe = two_loaded()
    fuse_unlearning_adapters(pipe)
    layer = pipe.transformer_2.blocks[1].attn2.to_v
    with torch.no_grad():
        layer.weight[0, 0] += 1.0
    with pytest.warns(UserWarning, match=r"blocks\.1\.attn2\.to_v changed .* so that the concept stays erased"):
        before = snapshot(pipe)
    with pytest.raises(FuseError, match=r"blocks\.1\.attn2\.to_v changed after it was fused"):
        unfuse_unlearning_adapters(pipe)
    assert snapshot(pipe) == before


def test_sites_that_share_a_weight_are_not_fused_but_attached():
    pipe = tiny_wan_pipeline()
    attention = pipe.transformer.blocks[0].attn2
    attention.to_v.weight = attention.to_k.weight
    load_unlearning_adapter(pipe, planted(pipe))
    before = snapshot(pipe)
    with pytest.raises(FuseError, match=r"blocks\.0\.attn2\.to_v and blocks\.0\.attn2\.to_k share one weight"):
        fuse_unlearning_adapters(pipe)
    assert snapshot(pipe) == before


def test_projections_that_are_fused_are_refused():
    pipe = tiny_wan_pipeline()
    adapter = planted(pipe)
    pipe.transformer.fuse_qkv_projections()
    before = snapshot(pipe)
    with pytest.raises(DenoiserError, match=r"'blocks\.0\.attn2\.to_k' is not used .* unfuse_qkv_projections"):
        load_unlearning_adapter(pipe, adapter)
    assert snapshot(pipe) == before


def test_new_strengths_leave_every_hook_and_tensor_in_its_place():
    pipe = two_loaded()
    before = snapshot(pipe)
    hooks = editor_of(pipe.transformer).hooks
    places = {path: live.edit.mix.data_ptr() for path, live in hooks.sites.items()}
    set_unlearning_adapters(pipe, ["red", "blue"], [0.0, 0.7])
    after = snapshot(pipe)
    assert {key for key in before if before[key] != after[key]} == {
        f"{part}:{what}" for part in ("transformer", "transformer_2") for what in ("stack", "edits")
    }
    assert {path: live.edit.mix.data_ptr() for path, live in hooks.sites.items()} == places


def test_changing_nothing_fuses_nothing_again(monkeypatch):
    pipe = two_loaded(False)
    fuse_unlearning_adapters(pipe, "red")
    weights = {name: bits(value) for name, value in pipe.transformer.state_dict().items()}
    for step in ("fuse_block", "restore_block"):
        for kind in RECORDS.values():
            monkeypatch.setattr(kind, step, failing_at(None, 1))
    load_more(pipe)
    set_unlearning_adapters(pipe, ["red", "green"], [None, 0.2])
    change_stacks([(editor_of(pipe.transformer), editor_of(pipe.transformer).stack)])
    assert all(torch.equal(bits(value), weights[name]) for name, value in pipe.transformer.state_dict().items())
