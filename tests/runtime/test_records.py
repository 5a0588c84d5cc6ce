"""Which record fusing keeps, what it says of it, and that both restore every bit."""

from dataclasses import replace

import psutil
import pytest
import torch
from tiny import tiny_wan_pipeline

from planted import bits, planted
from unlearning_adapters import AdapterStatus
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.runtime.fusing import record_choice
from unlearning_adapters.runtime.fusing.record_choice import RecordChoice, free_memory

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
RECORDS = ("copy", "compact")


def pipeline(*names: str, two_denoisers: bool = False):
    pipe = tiny_wan_pipeline(two_denoisers)
    for number, name in enumerate(names or ("red",)):
        pipe.load_unlearning_adapter(planted(pipe, name, seed=number, strength=1.2))
    return pipe


def weights(pipe):
    return {name: bits(value) for name, value in pipe.transformer.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_records_restore_every_bit_of_a_pipeline(record, dtype):
    pipe = pipeline("red", "blue")
    pipe.transformer.to(dtype)
    before = weights(pipe)
    for _ in range(20):
        pipe.fuse_unlearning_adapters(record=record)
        assert not same(before, weights(pipe))
        pipe.unfuse_unlearning_adapters()
        assert same(before, weights(pipe))


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_records_fuse_the_same_weights(dtype):
    fused = {}
    for record in RECORDS:
        pipe = pipeline()
        pipe.transformer.to(dtype)
        pipe.fuse_unlearning_adapters(record=record)
        fused[record] = weights(pipe)
    apart = [(fused["copy"][name] - fused["compact"][name]).abs().max() for name in fused["copy"]]
    assert max(apart) <= 1, "one unit in the last place, where a sum is formed in another order"


@pytest.mark.parametrize("record", RECORDS)
def test_the_status_says_which_record_is_kept_and_what_it_takes(record):
    pipe = pipeline("red", "blue", two_denoisers=True)
    strengths = {"transformer": 1.2, "transformer_2": 1.2}
    attached = AdapterStatus("attached", 1.2, tuple(strengths), strengths=strengths)
    assert pipe.get_unlearning_adapters_info() == {"red": attached, "blue": attached}
    pipe.fuse_unlearning_adapters("red", record=record)
    info = pipe.get_unlearning_adapters_info()
    edited = [module.attn2.to_k for part in (pipe.transformer, pipe.transformer_2) for module in part.blocks]
    copied = 2 * sum(layer.weight.nbytes for layer in edited)
    assert info["blue"] == attached
    assert (info["red"].state, info["red"].components) == ("fused", attached.components)
    assert info["red"].records.keys() == {record}
    if record == "copy":
        assert copied < info["red"].records["copy"] < 1.2 * copied
    pipe.unfuse_unlearning_adapters()
    assert pipe.get_unlearning_adapters_info() == {"red": attached, "blue": attached}


def test_the_status_tells_disabled_from_inactive():
    pipe = pipeline("red", "blue")
    pipe.set_unlearning_adapters("red", 0.5)
    info = pipe.get_unlearning_adapters_info()
    assert (info["red"].state, info["red"].strength, info["blue"].state) == ("attached", 0.5, "inactive")
    pipe.disable_unlearning_adapters()
    assert [status.state for status in pipe.get_unlearning_adapters_info().values()] == ["disabled", "inactive"]


@pytest.mark.parametrize(
    ("free", "share", "expected"), [(10**9, 0.25, "copy"), (10, 0.25, "compact"), (10**9, 0, "compact")]
)
def test_auto_takes_copies_while_they_fit(free, share, expected, monkeypatch):
    monkeypatch.setattr(record_choice, "free_memory", lambda: free)
    pipe = pipeline()
    pipe.fuse_unlearning_adapters(copy_share=share)
    assert pipe.get_unlearning_adapters_info()["red"].records.keys() == {expected}


def test_auto_compares_all_copies_with_the_share():
    needed = 1000
    assert RecordChoice(copy_share=1.0).takes_copies(needed)
    assert not RecordChoice(copy_share=needed / 2 / free_memory()).takes_copies(needed)
    assert RecordChoice("copy", 0.0).takes_copies(2**60)
    assert not RecordChoice("compact", 1.0).takes_copies(0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"record": "full"}, "`record` to be one of auto, copy, compact, but got 'full'"),
        ({"copy_share": 1.5}, "`copy_share` to be a number from 0 to 1, but got 1.5"),
        ({"copy_share": True}, "`copy_share` to be a number from 0 to 1, but got True"),
        ({"copy_share": float("nan")}, "`copy_share` to be a number from 0 to 1, but got nan"),
    ],
)
def test_a_wrong_choice_is_named_and_nothing_is_fused(settings, text):
    pipe = pipeline()
    before = weights(pipe)
    with pytest.raises(ConfigError, match=text):
        pipe.fuse_unlearning_adapters(**settings)
    assert same(before, weights(pipe)) and pipe.get_unlearning_adapters_info()["red"].state == "attached"


@pytest.mark.parametrize("record", RECORDS)
def test_what_is_left_after_unfusing_one_keeps_the_choice(record):
    pipe = pipeline("red", "blue")
    before = weights(pipe)
    pipe.fuse_unlearning_adapters(record=record)
    pipe.unfuse_unlearning_adapters("red")
    assert pipe.get_unlearning_adapters_info()["blue"].records.keys() == {record}
    pipe.unfuse_unlearning_adapters()
    assert same(before, weights(pipe))


@pytest.mark.parametrize("first", [0, 1])
def test_adapters_of_different_blocks_are_fused_and_unfused_one_by_one(first):
    pipe = tiny_wan_pipeline()
    before, adapter = weights(pipe), planted(pipe)
    for block in ("0", "1"):  # their layers have the same shapes
        part = {site: item for site, item in adapter.directions.items() if f"blocks.{block}." in site}
        pipe.load_unlearning_adapter(replace(adapter, directions=part, lora_B={}), block)
        pipe.fuse_unlearning_adapters(block, record="copy")
    for block in (str(first), str(1 - first)):
        pipe.unfuse_unlearning_adapters(block)
        assert pipe.get_unlearning_adapters_info()[block].state == "attached"
    assert same(before, weights(pipe))


def test_a_container_has_less_free_memory_than_the_machine(tmp_path, monkeypatch):
    machine = psutil.virtual_memory().available
    for name, text in (
        ("memory.max", "3000\n"), ("memory.current", "2500\n"), ("memory.stat", "anon 700\ninactive_file 300\n")
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    limits = ((tmp_path / "memory.max", tmp_path / "memory.current", "inactive_file"),)
    monkeypatch.setattr(record_choice, "CONTAINER_LIMITS", limits)
    assert free_memory() == 3000 - 2500 + 300
    (tmp_path / "memory.max").write_text("max\n")  # no limit
    assert free_memory() == pytest.approx(machine, rel=0.2)
