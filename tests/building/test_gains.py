"""Gains of sites, strengths of blocks: attached, fused, in a file, in a stock LoRA and exported they are one edit."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from command_line import parsed
from forge import split
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_words import CONCEPT, planted_pipeline
from reference import dense_edit
from tiny import tiny_wan_pipeline

from planted import bits, direction, lora_that_reads, output, planted, reference_output, snapshot
from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.adapter.file import inspect_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.building.gains import with_block_strengths
from unlearning_adapters.cli import main as cli
from unlearning_adapters.config import BuildConfig, site_strength
from unlearning_adapters.errors import ConfigError, FuseError, SiteError
from unlearning_adapters.evaluation.arms.arm import adapter_hash
from unlearning_adapters.evaluation.arms.controls import random_adapter
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.hub.card import render_card
from unlearning_adapters.pipelines.sites import Site, site_module
from unlearning_adapters.runtime.compatibility import base_deviation
from unlearning_adapters.runtime.joint.joint_edit import stack_directions, stack_report
from unlearning_adapters.search.space import FACTOR, MAX_KNOTS, STRENGTH, first_guesses, interpolated, suggest

GAINS = (0.5, 1.4, 0.0, 1.0)
OTHER_GAINS = (1.5, 0.25, 0.8, 0.0)


def unequal(adapter: UnlearningAdapter, gains=GAINS) -> UnlearningAdapter:
    """The adapter with gains at its sites, and with stock factors that follow them."""
    given = dict(zip(adapter.sites, gains, strict=True))
    directions = {site: replace(item, gain=given[site]) for site, item in adapter.directions.items()}
    factors = {site: given[site] * factor for site, factor in adapter.lora_B.items()}
    return replace(adapter, directions=directions, lora_B=factors)


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((one - other).abs().max() <= tolerance * (1 + other.abs().max()))


def weights(pipe) -> dict[str, torch.Tensor]:
    return {name: bits(value) for name, value in pipe.transformer.state_dict().items()}


@pytest.fixture
def pipe():
    return tiny_wan_pipeline()


@pytest.fixture
def two(pipe) -> tuple[UnlearningAdapter, UnlearningAdapter]:
    """Two adapters with unequal gains whose directions overlap, so that the joint edit is not the sum of both."""
    red, left = planted(pipe, "red", seed=1, strength=1.3), planted(pipe, "left", seed=2, strength=0.8)
    directions, factors = {}, {}
    for site, own in left.directions.items():
        read, write = own.read + 0.6 * red.directions[site].read, own.write + 0.6 * red.directions[site].write
        directions[site] = Direction(read / (read @ write.T), write)
        factors[site] = -0.8 * site_module(pipe, site).weight.detach() @ write.T
    return unequal(red), unequal(replace(left, directions=directions, lora_B=factors), OTHER_GAINS)


# The edit.


def test_attached_and_fused_are_the_reference_and_unfusing_is_bit_exact(pipe):
    red, before, base = unequal(planted(pipe, strength=1.2)), weights(pipe), output(pipe)
    expected = reference_output((red, 1.2))
    assert not close(expected, base, 1e-3) and not close(expected, reference_output((planted(pipe), 1.2)), 1e-3)
    pipe.load_unlearning_adapter(red)
    attached = output(pipe)
    assert close(attached, expected)
    hooked = ["_diffusers_hook" in site_module(pipe, site).__dict__ for site in red.sites]
    assert hooked == [gain > 0 for gain in GAINS], "a gain of 0 costs nothing per call"
    pipe.fuse_unlearning_adapters()
    assert close(output(pipe), expected)
    after = weights(pipe)
    changed = {f"transformer.{name}" for name, value in after.items() if not torch.equal(value, before[name])}
    acting = {f"{site}.weight" for site, gain in zip(red.sites, GAINS, strict=True) if gain}
    assert changed == acting, "a site of gain 0 is not edited, and nothing else is"
    pipe.unfuse_unlearning_adapters()
    assert all(torch.equal(value, before[name]) for name, value in weights(pipe).items())
    assert torch.equal(output(pipe), attached)
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)


@pytest.mark.parametrize("fused", [(), ("red",), ("left",), ("red", "left")])
def test_a_stack_of_unequal_gains_is_the_reference_whatever_is_fused(pipe, two, fused):
    red, left = two
    for adapter in (left, red):
        pipe.load_unlearning_adapter(adapter)
    before, attached = weights(pipe), output(pipe)
    expected = reference_output((red, 1.3), (left, 0.8))
    assert not close(expected, reference_output((red, 1.3)), 1e-3)
    if fused:
        pipe.fuse_unlearning_adapters(list(fused))
    assert close(output(pipe), expected)
    if fused:
        pipe.unfuse_unlearning_adapters()
    assert torch.equal(output(pipe), attached)
    assert all(torch.equal(value, before[name]) for name, value in weights(pipe).items())
    pipe.set_unlearning_adapters(["red", "left"], [0.4, 2.0])
    assert close(output(pipe), reference_output((red, 0.4), (left, 2.0)))


@pytest.mark.parametrize("fused", [False, True])
def test_a_style_lora_reads_the_edited_input(pipe, fused):
    red = unequal(planted(pipe, strength=1.2))
    style = lora_that_reads(red, pipe)
    pipe.load_unlearning_adapter(red)
    if fused:
        pipe.fuse_unlearning_adapters()
    pipe.load_lora_weights(style, adapter_name="style")
    assert close(output(pipe), reference_output((red, 1.2), lora=style))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=3),
)
def test_the_joint_edit_takes_strength_times_gain(amounts):
    directions = [direction(24, 1, seed=number) for number in range(len(amounts))]
    gained = [replace(each, gain=gain) for each, (_, gain) in zip(directions, amounts, strict=True)]
    one = stack_directions(gained, [strength for strength, _ in amounts])
    products = [strength * gain for strength, gain in amounts]
    other = stack_directions(directions, products)
    assert torch.equal(one.read, other.read) and torch.equal(one.mix, other.mix)
    acting = [(each, product) for each, product in zip(directions, products, strict=True) if product]
    if acting:
        reads, writes = ([getattr(each, part).double().numpy() for each, _ in acting] for part in ("read", "write"))
        expected = np.eye(24) - dense_edit(reads, writes, [product for _, product in acting])
        assert np.abs(one.mix.double().numpy() @ one.read.double().numpy() - expected).max() < 1e-5


def test_of_twins_the_one_that_is_stronger_at_the_site_counts():
    one = direction(24)
    pair = [replace(one, gain=0.5), replace(one, gain=2.0)]
    assert stack_report(pair, [1.0, 1.0]).merged == ((1, 0),)
    joint, alone = stack_directions(pair, [1.0, 1.0]), stack_directions([one], [2.0])
    assert torch.equal(joint.read, alone.read) and torch.equal(joint.mix, alone.mix)


def test_the_warning_of_twins_says_that_gains_count(pipe, tmp_path):
    named = {"denoisers": {"transformer": "WanTransformer3DModel"}}
    red = planted(pipe)
    red = replace(red, info=replace(red.info, **named))
    stronger = unequal(red, (2.0, 2.0, 2.0, 2.0))
    text = (
        r"remove nearly the same direction at 4 of 4 sites; .* at the larger strength \(1, times the gain of the site\)"
    )
    pipe.load_unlearning_adapter(red, "one")
    with pytest.warns(UserWarning, match=f"'other' and 'one' {text}"):
        pipe.load_unlearning_adapter(stronger, "other")
    assert close(output(pipe), reference_output((stronger, 1.0)))
    with pytest.warns(UserWarning, match=text):
        export_lora([red, stronger], tmp_path / "lora")


def test_a_fused_adapter_is_not_outdone_by_a_gain(pipe):
    red = planted(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.fuse_unlearning_adapters()
    before = snapshot(pipe)
    with pytest.raises(FuseError, match=r"'again' at strength 1\.5 on the input and 'red' at strength 1 in the weight"):
        pipe.load_unlearning_adapter(unequal(red, (1.0, 0.0, 1.5, 1.0)), "again")
    assert snapshot(pipe) == before


# What is out of range.


@pytest.mark.parametrize("gain", [-0.1, 4.1, float("nan"), float("inf"), True, "1", None])
def test_a_gain_is_a_number_from_0_to_4(gain):
    with pytest.raises(ConfigError, match=r"Expected the gain to be a number from 0 \(off\) to 4, but got"):
        replace(direction(8), gain=gain)


def test_strength_times_gain_stays_within_4(pipe):
    red = unequal(planted(pipe), (0.5, 3.0, 1.0, 1.0))
    text = re.escape(
        "Expected strength x gain to be at most 4, but got 1.5 x 3 = 4.5 at transformer.blocks.0.attn2.to_v. "
        "Give a strength of at most 1.333."
    )
    with pytest.raises(ConfigError, match=text):
        red.with_strength(1.5)
    with pytest.raises(ConfigError, match=text):
        UnlearningAdapter(replace(red.info, strength=1.5), red.directions)
    with pytest.raises(ConfigError, match="1.5 x 3 = 4.5. Give"):
        stack_directions([replace(direction(8), gain=3.0)], [1.5])
    with pytest.raises(ConfigError, match=text):
        export_lora(red, "nowhere", strengths=1.5)
    pipe("a dog", output_type="latent", **tiny.CALL)  # diffusers' own registry comes with the first call
    before = snapshot(pipe)
    with pytest.raises(ConfigError, match=text):
        pipe.load_unlearning_adapter(red, strength=1.5)
    assert snapshot(pipe) == before
    pipe.load_unlearning_adapter(red)
    before = snapshot(pipe)
    with pytest.raises(ConfigError, match=text):
        pipe.set_unlearning_adapters("red", 1.5)
    assert snapshot(pipe) == before


@given(st.floats(1, 4))
def test_the_limit_is_reached_without_rounding_over_it(gain):
    assert site_strength(4 / gain, gain) == pytest.approx(4) and site_strength(4 / gain, gain) <= 4


# The file.


def test_gains_come_back_from_a_file_and_equal_ones_leave_no_mark(pipe, tmp_path):
    red = unequal(planted(pipe, strength=1.2))
    path = save_adapter(red, tmp_path)
    again = load_adapter(path)
    assert {site: each.gain for site, each in again.directions.items()} == dict(zip(red.sites, GAINS, strict=True))
    assert again.info == red.info and again.info.format_version == 2 and again.gains == red.gains
    record = json.loads(split(path.read_bytes())[0]["__metadata__"]["unlearning_adapter"])
    assert record["gains"] == {site: gain for site, gain in zip(red.sites, GAINS, strict=True) if gain != 1}
    assert save_adapter(again, tmp_path / "again").read_bytes() == path.read_bytes()
    equal = unequal(again, (1.0, 1.0, 1.0, 1.0))
    plain = replace(equal, lora_B=planted(pipe, strength=1.2).lora_B)
    saved = save_adapter(plain, tmp_path / "equal").read_bytes()
    assert saved == save_adapter(planted(pipe, strength=1.2), tmp_path / "plain").read_bytes()
    assert "gains" not in json.loads(split(saved)[0]["__metadata__"]["unlearning_adapter"])
    assert load_adapter(tmp_path / "equal").info.format_version == 1


def test_the_stock_factor_is_compared_with_the_gain(pipe):
    red = unequal(planted(pipe, strength=1.2))
    live = {site: site_module(pipe, site).weight.detach() for site in red.sites}
    assert base_deviation(red, live) < 1e-5
    forged = replace(red, directions=planted(pipe).directions)  # gains of 1, and the factors of others
    assert base_deviation(forged, live) > 0.3
    zero = red.sites[2]
    assert base_deviation(replace(red, lora_B={zero: red.lora_B[red.sites[0]]}), {zero: live[zero]}) == float("inf")


def test_stock_loading_of_the_file_is_the_same_edit(pipe, tmp_path):
    red = unequal(planted(pipe, strength=1.2))
    expected, base = reference_output((red, 1.2)), output(pipe)
    save_adapter(red, tmp_path)
    pipe.load_lora_weights(tmp_path)
    assert close(output(pipe), expected) and not close(output(pipe), base, 1e-3)


def test_what_a_pipeline_saves_has_the_gains(pipe, tmp_path):
    red = unequal(planted(pipe, strength=1.2))
    pipe.load_unlearning_adapter(replace(red, lora_B={}), strength=0.7)
    saved = load_adapter(pipe.save_unlearning_adapter(tmp_path))
    assert saved.gains == red.gains and saved.strength == 0.7
    for site, factor in red.with_strength(0.7).lora_B.items():
        assert close(saved.lora_B[site], factor)


@pytest.mark.parametrize("with_base", [False, True])
def test_an_exported_stack_is_the_joint_edit(pipe, two, tmp_path, with_base):
    adapters = [
        replace(each, info=replace(each.info, denoisers={"transformer": "WanTransformer3DModel"})) for each in two
    ]
    export_lora(adapters, tmp_path / "lora", base=tiny_wan_pipeline() if with_base else None)
    pipe.load_lora_weights(tmp_path / "lora")
    assert close(output(pipe), reference_output((two[0], 1.3), (two[1], 0.8)))


def test_an_export_in_comfyui_layout_is_the_same_lora(pipe, two, tmp_path):
    adapters = [
        replace(each, info=replace(each.info, denoisers={"transformer": "WanTransformer3DModel"})) for each in two
    ]
    export_lora(adapters, tmp_path / "lora", layout="comfyui")
    pipe.load_lora_weights(tmp_path / "lora")
    assert close(output(pipe), reference_output((two[0], 1.3), (two[1], 0.8)))


def test_gains_are_said_and_hashed_and_kept_by_the_control(pipe, tmp_path, capfd):
    plain = planted(pipe, strength=1.2)
    red = unequal(plain)
    save_adapter(red, tmp_path)
    assert [site["gain"] for site in inspect_adapter(tmp_path)["sites"]] == list(GAINS)
    assert cli.main(["inspect", str(tmp_path)]) == 0
    assert "ridge, strength 1.2 (times 0 to 1.4, by site), rank 1" in capfd.readouterr().out
    save_adapter(plain, tmp_path)
    assert cli.main(["inspect", str(tmp_path)]) == 0
    assert "ridge, strength 1.2, rank 1" in capfd.readouterr().out
    card = render_card(red.info, sites=4, gains=tuple(red.gains.values()))
    assert "The default is 1.2, which is written in the file. 3 of 4 sites take 0 to 1.4 times that" in card
    assert "times that" not in render_card(plain.info, sites=4)
    assert adapter_hash(red) != adapter_hash(plain) == adapter_hash(unequal(red, (1.0, 1.0, 1.0, 1.0)))
    shared = replace(
        red, directions={site: replace(direction(8), gain=g) for site, g in zip("abcd", GAINS, strict=True)}
    )
    assert [each.gain for each in random_adapter(shared).directions.values()] == list(GAINS)


# The build.


def test_a_build_gives_each_block_its_factor():
    pipe = planted_pipeline()
    config = BuildConfig(strength=1.2, block_strengths={1: 0.5})
    adapter = build_adapter(pipe, CONCEPT, config, progress=False, call_kwargs=tiny.CALL)
    plain = build_adapter(pipe, CONCEPT, BuildConfig(strength=1.2), progress=False, call_kwargs=tiny.CALL)
    assert plain.gains == {} and adapter.gains == {site: 0.5 for site in adapter.sites if ".blocks.1." in site} != {}
    for site, each in adapter.directions.items():
        assert torch.equal(each.read, plain.directions[site].read)
        assert close(adapter.lora_B[site], each.gain * plain.lora_B[site], 1e-6)
    assert BuildConfig.from_dict(adapter.info.settings) == config


def test_a_build_gives_its_shrinkage_to_all_directions_and_changes_no_bit_else(tmp_path):
    pipe = planted_pipeline()
    plain, shrunk = (
        build_adapter(pipe, CONCEPT, BuildConfig(shrinkage=share), progress=False, call_kwargs=tiny.CALL)
        for share in (0, 0.25)
    )
    assert (
        (plain.shrinkage, shrunk.shrinkage) == (0, 0.25) == (0, load_adapter(save_adapter(shrunk, tmp_path)).shrinkage)
    )
    assert adapter_hash(plain) != adapter_hash(shrunk)
    for site, each in shrunk.directions.items():
        assert torch.equal(each.read, plain.directions[site].read) and torch.equal(
            each.write, plain.directions[site].write
        )
        assert torch.equal(shrunk.lora_B[site], plain.lora_B[site])
    assert parsed("build", "x", "y", "-o", "z", "--shrinkage", "0.25")["shrinkage"] == 0.25
    with pytest.raises(ConfigError, match=r"Expected the shrinkage to be a number from 0 .* to 1, but got 1.5\."):
        BuildConfig(shrinkage=1.5)


def test_a_block_that_is_not_there_is_named_before_anything_is_recorded():
    pipe = planted_pipeline()
    text = r"`block_strengths` names block 2, 7, and no selected site is there; the blocks with such sites: 0, 1\."
    with pytest.raises(SiteError, match=text):
        build_adapter(pipe, CONCEPT, BuildConfig(block_strengths={7: 0.5, 0: 1, 2: 2}), progress=False)
    with pytest.raises(SiteError, match="names block 1, .* the blocks with such sites: 0"):
        build_adapter(pipe, CONCEPT, BuildConfig(blocks=(0,), block_strengths={1: 0.5}), progress=False)


def test_sites_outside_of_blocks_keep_their_strength():
    inside, outside = (
        Site("transformer", path, "text", 8, 8) for path in ("blocks.3.attn2.to_k", "text_embedder.linear")
    )
    found = with_block_strengths({each.name: direction(8) for each in (inside, outside)}, (inside, outside), {3: 0.25})
    assert [found[each.name].gain for each in (inside, outside)] == [0.25, 1.0]


def test_sites_of_a_block_that_shared_a_direction_still_do():
    one = direction(8)
    sites = [Site("transformer", f"blocks.{block}.{name}", "text", 8, 8) for block in range(3) for name in "kv"]
    found = with_block_strengths({site.name: one for site in sites}, sites, {1: 0.5, 2: 0.5})
    assert len({id(item) for item in found.values()}) == 2 and found[sites[0].name] is one
    assert all(item.read is one.read for item in found.values())


def test_settings_go_to_json_and_back():
    config = BuildConfig(strength=1.0, block_strengths={10: 1, 2: 0.5})
    assert list(config.block_strengths.items()) == [(2, 0.5), (10, 1.0)]
    plain = json.loads(json.dumps(config.to_dict()))
    assert plain["block_strengths"] == {"2": 0.5, "10": 1.0} and BuildConfig.from_dict(plain) == config
    assert hash(config) == hash(BuildConfig.from_dict(plain)) and config != BuildConfig(strength=1.0)
    assert BuildConfig(block_strengths={}) == BuildConfig() == BuildConfig.from_dict(BuildConfig().to_dict())


@pytest.mark.parametrize(
    ("factors", "strength", "text"),
    [
        ([0.5], None, r"Expected `block_strengths` as a mapping such as {0: 0.5, 3: 1.2}, but got \[0.5\]"),
        ({-1: 0.5}, None, "Expected the keys of `block_strengths` to be indices of blocks, but got -1"),
        ({"a": 0.5}, None, "to be indices of blocks, but got 'a'"),
        ({True: 0.5}, None, "to be indices of blocks, but got True"),
        ({0: "x"}, None, r"the factor of block 0 in `block_strengths` to be a number from 0 \(off\) to 4, but got"),
        ({0: float("nan")}, None, "the factor of block 0 .* but got nan"),
        ({0: -1}, None, "the factor of block 0 .* but got -1"),
        ({3: 2.5}, None, "factor 2.5 for block 3, and the strength is calibrated, to 2 at most. Set `strength`, or"),
        ({3: 3}, 1.5, "factor 3 for block 3, and the strength is 1.5. Take a factor of at most 2.666"),
    ],
)  # fmt: skip
def test_factors_that_make_no_sense_are_refused(factors, strength, text):
    with pytest.raises(ConfigError, match=text):
        BuildConfig(strength=strength, block_strengths=factors)


def test_the_command_line_takes_factors():
    call = ["build", "x", "y", "-o", "z"]
    assert parsed(*call, "--block-strengths", "0=0.5, 3=1.2")["block_strengths"] == {0: 0.5, 3: 1.2}
    assert parsed(*call)["block_strengths"] is None


@pytest.mark.parametrize("text", ["", "0", "0=", "=1", "0=0.5,0=0.7", "0:1", "a=1", "0=x", "-1=1", "0=1,,1=1"])
def test_other_factors_are_a_usage_error(text, capfd):
    assert cli.main(["build", "x", "y", "-o", "z", f"--block-strengths={text}"]) == 2
    assert "expected a factor for each block once, such as 0=0.5,3=1.2, but got" in capfd.readouterr().err


# What a search chooses.


@given(st.lists(st.floats(0, 2), min_size=1, max_size=MAX_KNOTS), st.integers(0, 60))
def test_interpolation_goes_through_the_knots_in_straight_lines(knots, more):
    count = len(knots) + more
    values = interpolated(knots, count)
    assert len(values) == count and min(knots) - 1e-9 <= min(values) <= max(values) <= max(knots) + 1e-9
    if len(knots) == count:
        assert values == tuple(knots)
    places = np.linspace(0, 1, count) if count > 1 else [0.0]
    expected = np.interp(places, np.linspace(0, 1, len(knots)), knots) if len(knots) > 1 else [knots[0]] * count
    assert np.allclose(values, expected, atol=1e-12)
    assert values[0] == knots[0] and values[-1] == (knots[-1] if count > 1 else knots[0])
    assert interpolated(knots[::-1], count) == pytest.approx(values[::-1])


def test_interpolation_keeps_a_line_and_refuses_what_it_cannot_spread():
    assert interpolated([0.0, 1.0, 0.0], 5) == (0.0, 0.5, 1.0, 0.5, 0.0)
    assert interpolated([1.5], 3) == (1.5, 1.5, 1.5)
    with pytest.raises(ConfigError, match="Expected 1 to 1 knots for 1 blocks, but got 2"):
        interpolated([0.0, 1.0], 1)
    with pytest.raises(ConfigError, match="but got 0"):
        interpolated([], 3)


class Chosen:
    """A trial whose choices are given."""

    def __init__(self, **values):
        self.values, self.asked = values, []

    def take(self, name, *_limits, **_options):
        self.asked.append(name)
        return self.values[name]

    suggest_categorical = suggest_float = suggest_int = take


def test_a_trial_chooses_a_factor_per_block_or_at_knots():
    common = {"method": "mean", "strength": 1.0, "every_block": True}
    one = suggest(Chosen(**common, one_strength=True), [0, 1], 5, 0)
    assert one.block_strengths is None
    told = suggest(Chosen(**common), [0, 1], 5, 0, one_strength=True)  # the trial is not asked
    assert told == one
    each = suggest(Chosen(**common, one_strength=False, factor_0=0.5, factor_1=1.5), [4, 9], 5, 0)
    assert each.block_strengths == {4: 0.5, 9: 1.5}
    factors = {f"factor_{number}": number / 4 for number in range(MAX_KNOTS)}
    trial = Chosen(**common, one_strength=False, **factors)
    deep = suggest(trial, range(43), 5, 0)
    assert sum(name.startswith("factor_") for name in trial.asked) == MAX_KNOTS
    assert list(deep.block_strengths) == list(range(43))
    assert deep.block_strengths[0] == 0 and deep.block_strengths[42] == 1.75 and deep.block_strengths[6] == 0.25
    assert deep.block_strengths[3] == pytest.approx(0.125)
    part = {**common, "every_block": False, "one_end": 30, "other_end": 20}
    some = suggest(Chosen(**part, one_strength=False, **factors), range(43), 5, 0)
    assert some.block_strengths == {block: deep.block_strengths[block] for block in range(20, 31)}
    assert suggest(Chosen(**common), [0], 5, 0).block_strengths is None, "one block has no other to differ from"
    assert FACTOR[1] * STRENGTH[1] <= 4
    assert all(guess["one_strength"] is True for guess in first_guesses(1.2))
