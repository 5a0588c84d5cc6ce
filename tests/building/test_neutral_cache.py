"""Neutral prompts on disk: the same adapters bit for bit, nothing is recorded twice, and a stale cache is refused."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import CALL, tiny_wan_pipeline

from unlearning_adapters import BuildConfig, Concept, ConfigError, Pair, build_adapter, build_adapters
from unlearning_adapters.building import shared_neutral
from unlearning_adapters.building.neutral_cache import CACHE_NAME

NEUTRAL = ("a dog runs on the street", "a small house in the river", "two women walk slowly")


def concept(word: str = "red", neutral: tuple[str, ...] = NEUTRAL) -> Concept:
    pairs = [Pair(f"a {word} {thing} moves left", f"a green {thing} moves left") for thing in ("circle", "cat", "car")]
    return Concept(name=word, pairs=tuple(pairs), neutral=neutral)


def settings(**changes):
    call = {"max_sequence_length": CALL["max_sequence_length"], **changes}
    return {"progress": False, "call_kwargs": call}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The lists of neutral prompts that were recorded."""
    lists: list[list[str]] = []
    record = shared_neutral.record

    def counting(pipe, prompts, *args, **kwargs):
        lists.append(list(prompts))
        return record(pipe, prompts, *args, **kwargs)

    monkeypatch.setattr(shared_neutral, "record", counting)
    return lists


def test_a_later_build_reads_the_prompts_from_disk_and_is_the_same_bit_for_bit(tmp_path: Path, recorded):
    plain = build_adapter(tiny_wan_pipeline(), concept(), **settings())
    first = build_adapter(tiny_wan_pipeline(), concept(), **settings(), neutral_cache=tmp_path / "cache")
    assert len(recorded) == 2
    second = build_adapter(tiny_wan_pipeline(), concept(), **settings(), neutral_cache=str(tmp_path / "cache"))
    other = build_adapter(tiny_wan_pipeline(), concept("black"), **settings(), neutral_cache=tmp_path / "cache")
    assert len(recorded) == 2
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [CACHE_NAME]
    for site in plain.sites:
        for made in (first, second):
            assert torch.equal(made.directions[site].read, plain.directions[site].read)
            assert torch.equal(made.lora_B[site], plain.lora_B[site])
    assert not torch.equal(other.directions[plain.sites[0]].read, plain.directions[plain.sites[0]].read)


def test_only_prompts_that_are_missing_are_recorded_and_several_concepts_share_it(tmp_path: Path, recorded):
    build_adapter(tiny_wan_pipeline(), concept(), **settings(), neutral_cache=tmp_path)
    more = concept("black", (*NEUTRAL[1:], "a blue cup"))
    build_adapters(tiny_wan_pipeline(), [concept(), more], **settings(), neutral_cache=tmp_path)
    assert recorded[1:] == [["a blue cup"]]
    with safe_open(tmp_path / CACHE_NAME, framework="pt") as stored:
        assert all(f'"{prompt}"' in stored.metadata()["prompts"] for prompt in (*NEUTRAL, "a blue cup"))


def changed_weight(pipe):
    with torch.no_grad():
        pipe.text_encoder.encoder.block[0].layer[0].SelfAttention.q.weight.mul_(1.01)
    return pipe


@pytest.mark.parametrize(
    ("pipe", "config", "call", "named"),
    [
        (lambda: changed_weight(tiny_wan_pipeline()), BuildConfig(), {}, "weights"),
        (tiny_wan_pipeline, BuildConfig(sites="*.attn2.to_k"), {}, "sites"),
        (tiny_wan_pipeline, BuildConfig(batch_size=2), {}, "setting 'batch_size'"),
        (tiny_wan_pipeline, BuildConfig(), {"max_sequence_length": 24}, "setting 'call_kwargs'"),
    ],
    ids=["weights", "sites", "settings", "call"],
)
def test_a_stale_cache_is_refused_in_one_line_and_left_alone(tmp_path: Path, pipe, config, call, named):
    build_adapter(tiny_wan_pipeline(), concept(), **settings(), neutral_cache=tmp_path)
    before = (tmp_path / CACHE_NAME).read_bytes()
    with pytest.raises(ConfigError, match=f"is stale: its {named}.*Delete it, or give another folder") as caught:
        build_adapter(pipe(), concept(), config, **settings(**call), neutral_cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / CACHE_NAME).read_bytes() == before


def test_a_cache_is_that_of_the_base_whatever_is_fused_into_the_sites(tmp_path: Path, recorded):
    pipe = tiny_wan_pipeline()
    adapter = build_adapter(pipe, concept(), **settings(), neutral_cache=tmp_path)
    pipe.load_unlearning_adapter(adapter)
    pipe.fuse_unlearning_adapters()
    again = build_adapter(pipe, concept(), **settings(), neutral_cache=tmp_path)
    assert len(recorded) == 1
    assert all(torch.equal(again.lora_B[site], adapter.lora_B[site]) for site in adapter.sites)


def test_what_is_no_cache_is_refused_in_one_line(tmp_path: Path):
    pipe = tiny_wan_pipeline()
    build_adapter(pipe, concept(), **settings(), neutral_cache=tmp_path / "good")
    good = tmp_path / "good" / CACHE_NAME
    with safe_open(good, framework="pt") as stored:
        header = stored.metadata()
    tensors = load_file(good)
    broken = tmp_path / "broken"
    broken.mkdir()
    file = broken / CACHE_NAME
    for write in (
        lambda: file.write_bytes(good.read_bytes()[:-10]),
        lambda: save_file(tensors, file),
        lambda: save_file(tensors, file, {**header, "prompts": '["a"]'}),
        lambda: save_file(tensors, file, {key: value for key, value in header.items() if key != "groups"}),
        lambda: save_file({**tensors, "rows.0": tensors["rows.0"] * float("nan")}, file, header),
        lambda: save_file({key: value for key, value in tensors.items() if key != "lengths.0"}, file, header),
    ):
        write()
        with pytest.raises(ConfigError, match="Delete it, or give another folder") as caught:
            build_adapter(pipe, concept(), **settings(), neutral_cache=broken)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="is a file"):
        build_adapter(pipe, concept(), **settings(), neutral_cache=good)
    with pytest.raises(ConfigError, match="Expected `neutral_cache` to be a folder"):
        build_adapter(pipe, concept(), **settings(), neutral_cache=" ")


def test_sites_that_read_noise_or_pictures_have_no_cache(tmp_path: Path):
    with pytest.raises(ConfigError, match='Leave `neutral_cache` out, or build with sites="text"'):
        build_adapter(
            tiny_wan_pipeline(),
            concept(),
            BuildConfig(sites="hidden", steps=1),
            progress=False,
            call_kwargs=CALL,
            neutral_cache=tmp_path,
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="Cannot write the neutral cache"):
        build_adapter(tiny_wan_pipeline(), concept(), **settings(), neutral_cache=tmp_path / "file" / "below")
