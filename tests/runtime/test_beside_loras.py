"""Unlearning adapters beside LoRAs: every order of verbs leaves the concept erased, and all of it comes off again.

Each test compares with a stock twin (tests/twins.py) on which only the LoRA verbs were called.
"""

import re
import warnings
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from peft_kinds import KINDS
from twins import Twins, load

STYLE, SECOND, WIDE = Twins().lora(), Twins().lora(seed=4), Twins().lora(seed=5, rank=3)


def swap(pipe, factors, name="style"):
    load(pipe, factors, name, hotswap=True)


def without_prefix(factors):
    return {key.removeprefix("transformer."): value.clone() for key, value in factors.items()}


TOO_WIDE = {key: torch.cat([value, value], dim=1) if "lora_A" in key else value for key, value in STYLE.items()}
LOAD = lambda pipe: load(pipe, STYLE, "style")  # noqa: E731
LOAD_SECOND = lambda pipe: load(pipe, SECOND, "second")  # noqa: E731
LOAD_ON_DENOISER = lambda pipe: pipe.transformer.load_lora_adapter(  # noqa: E731
    without_prefix(STYLE), prefix=None, adapter_name="style"
)
# What docs/loras.md says of each row is tested under the row's name.
SCENARIOS = {
    "load_lora_weights": [LOAD],
    "load_lora_weights, twice": [LOAD, LOAD_SECOND],
    "set_adapters": [LOAD, LOAD_SECOND, lambda pipe: pipe.set_adapters(["style", "second"], [0.6, 1.4])],
    "set_adapters, per block": [
        LOAD,
        lambda pipe: pipe.set_adapters("style", {"transformer": {"blocks.0": 0.5, "blocks.1": 2.0}}),
    ],
    "disable_lora": [LOAD, lambda pipe: pipe.disable_lora()],
    "enable_lora": [LOAD, lambda pipe: pipe.disable_lora(), lambda pipe: pipe.enable_lora()],
    "delete_adapters": [LOAD, LOAD_SECOND, lambda pipe: pipe.delete_adapters("second")],
    "delete_adapters, all": [LOAD, lambda pipe: pipe.delete_adapters("style")],
    "unload_lora_weights": [LOAD, lambda pipe: pipe.unload_lora_weights()],
    "fuse_lora": [LOAD, lambda pipe: pipe.fuse_lora(safe_fusing=True)],
    "fuse_lora, part": [LOAD, LOAD_SECOND, lambda pipe: pipe.fuse_lora(adapter_names=["second"], lora_scale=0.5)],
    "fuse_lora, then load": [LOAD, lambda pipe: pipe.fuse_lora(), LOAD_SECOND],
    "fuse_lora, then disable_lora": [LOAD, lambda pipe: pipe.fuse_lora(), lambda pipe: pipe.disable_lora()],
    "fuse_lora, then unload_lora_weights": [LOAD, lambda p: p.fuse_lora(), lambda p: p.unload_lora_weights()],
    "unfuse_lora": [LOAD, lambda pipe: pipe.fuse_lora(lora_scale=0.7), lambda pipe: pipe.unfuse_lora()],
    "hotswap": [LOAD, lambda pipe: swap(pipe, SECOND)],
    "hotswap, other rank": [
        lambda pipe: pipe.enable_lora_hotswap(target_rank=4), LOAD, lambda pipe: swap(pipe, WIDE),
    ],
    "a load that fails": [LOAD_SECOND, lambda pipe: load(pipe, TOO_WIDE, "style")],
    "load_lora_adapter": [LOAD_ON_DENOISER, lambda pipe: pipe.transformer.set_adapters("style", 0.5)],
    "load_lora_adapter, then disable_adapters": [LOAD_ON_DENOISER, lambda pipe: pipe.transformer.disable_adapters()],
    "load_lora_adapter, then fuse_lora": [
        LOAD_ON_DENOISER, lambda p: p.transformer.fuse_lora(), lambda p: p.transformer.unload_lora(),
    ],
    "load_lora_adapter, then unfuse_lora": [
        LOAD_ON_DENOISER, lambda p: p.transformer.fuse_lora(), lambda p: p.transformer.unfuse_lora(),
    ],
}  # fmt: skip


def load_adapter(twins, name, strength):
    with warnings.catch_warnings():
        # Of a fused LoRA: it is then part of the weights that the adapter was not built on.
        warnings.filterwarnings("ignore", message=".* was built on other weights")
        twins.ours.load_unlearning_adapter(twins.known[name], strength=strength)
    twins.acting[name] = strength


def load_red(twins):
    load_adapter(twins, "red", 1.0)


def fuse(twins):
    twins.ours.fuse_unlearning_adapters()


def attach_half(twins):
    load_adapter(twins, "blue", 0.5)


OURS = {"attached": [load_red], "fused": [load_red, fuse], "fused and attached": [load_red, fuse, attach_half]}


def orders(ours, loras):
    """Every way to call the verbs of two lists in turn."""
    length = len(ours) + len(loras)
    for places in combinations(range(length), len(ours)):
        mine, theirs = iter(ours), iter(loras)
        yield [(True, next(mine)) if place in places else (False, next(theirs)) for place in range(length)]


def take_off(twins, ours_first):
    def ours():
        twins.ours.unfuse_unlearning_adapters()
        twins.ours.unload_unlearning_adapters()
        twins.acting.clear()

    def loras():
        twins.both(lambda pipe: pipe.unload_lora_weights())

    for step in (ours, loras) if ours_first else (loras, ours):
        step()
        twins.check()
    twins.check_same_bits()


def run(order, number, looking, **settings):
    twins = Twins(**settings)
    for is_ours, verb in order:
        verb(twins) if is_ours else twins.both(verb)
        if looking:
            twins.check()
    twins.check()
    twins.check(scale=0.0 if number % 2 else 0.5)
    take_off(twins, ours_first=number % 4 < 2)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("state", ["attached", "fused"])
def test_every_order_of_verbs_leaves_the_concept_erased_and_all_of_it_comes_off(state, scenario):
    """Nothing is called between the verbs, so that nothing can be noticed in time by a call of the denoiser."""
    for number, order in enumerate(orders(OURS[state], SCENARIOS[scenario])):
        run(order, number, looking=False)


@pytest.mark.parametrize("state", ["attached", "fused"])
def test_group_offloading_does_not_come_between(state):
    for number, order in enumerate(orders(OURS[state], SCENARIOS["fuse_lora, then unload_lora_weights"])):
        twins = Twins()
        if number % 2:
            offload(twins.ours)
        for is_ours, verb in order:
            verb(twins) if is_ours else twins.both(verb)
        if not number % 2:
            offload(twins.ours)
        twins.check()


def offload(pipe):
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def test_the_document_has_a_row_for_each_of_these_and_no_other():
    text = (Path(__file__).resolve().parents[2] / "docs" / "loras.md").read_text(encoding="utf-8")
    tables = [re.findall(r"^\| ([^|]+) \|", part, re.MULTILINE) for part in text.split("\n## ")]
    assert tables[2] == ["LoRA verb", *SCENARIOS]
    assert tables[3] == ["kind", *KINDS]


@pytest.mark.parametrize("scenario", ["fuse_lora", "unfuse_lora", "set_adapters", "hotswap, other rank"])
def test_an_adapter_that_is_fused_and_one_that_is_attached_act_jointly_beside_loras(scenario):
    for number, order in enumerate(orders(OURS["fused and attached"], SCENARIOS[scenario])):
        if number % 4 == 0:
            run(order, number, looking=number % 8 == 0)


@pytest.mark.parametrize("scenario", ["set_adapters", "fuse_lora, then unload_lora_weights"])
@pytest.mark.parametrize("state", ["attached", "fused"])
def test_the_same_in_bfloat16(state, scenario):
    for number, order in enumerate(orders(OURS[state], SCENARIOS[scenario])):
        if number % 3 == 0:
            run(order, number, looking=True, dtype=torch.bfloat16)


def test_the_loras_of_these_tests_do_bring_the_concept_back_where_nothing_is_edited():
    """The planted reading is there: without an adapter, each site makes of the direction more than the base does."""
    twins = Twins()
    site = twins.known["red"].sites[0]
    write = twins.known["red"].directions[site].write
    module = twins.stock.transformer.get_submodule(site.removeprefix("transformer."))
    base = (module(write) - module(torch.zeros_like(write))).norm()
    for factors in (STYLE, SECOND, WIDE):
        styled = write @ factors[f"{site}.lora_A.weight"].T @ factors[f"{site}.lora_B.weight"].T
        assert styled.norm() > 3 * base


class BesideLoras(RuleBasedStateMachine):
    """LoRA verbs and unlearning verbs at random, looking after every one."""

    def __init__(self):
        super().__init__()
        self.names, self.fused, self.enabled, self.active = {}, set(), True, []

    @initialize(hotswap=st.booleans(), fused=st.booleans(), styled=st.booleans())
    def begin(self, hotswap, fused, styled):
        self.twins = Twins()
        if hotswap:
            self.twins.both(lambda pipe: pipe.enable_lora_hotswap(target_rank=4))
        self.load_unlearning(1.0)
        if fused:
            self.fuse_unlearning(True)
        if styled:
            self.load_lora("style", False)

    @rule(name=st.sampled_from(["style", "second"]), wide=st.booleans())
    def load_lora(self, name, wide):
        self.twins.both(lambda pipe: load(pipe, WIDE if wide else SECOND, name))

    @rule(name=st.sampled_from(["style", "second"]))
    def hotswap_lora(self, name):
        self.twins.both(lambda pipe: swap(pipe, STYLE, name))

    @rule(names=st.sets(st.sampled_from(["style", "second"]), min_size=1), weight=st.sampled_from([0.0, 0.5, 1.5]))
    def set_loras(self, names, weight):
        self.twins.both(lambda pipe: pipe.set_adapters(sorted(names), weight))

    @rule(verb=st.sampled_from(["disable_lora", "enable_lora", "unload_lora_weights", "unfuse_lora"]))
    def switch_loras(self, verb):
        self.twins.both(lambda pipe: getattr(pipe, verb)())

    @rule(name=st.sampled_from(["style", "second"]))
    def delete_lora(self, name):
        self.twins.both(lambda pipe: pipe.delete_adapters(name))

    @rule(names=st.sampled_from([None, ["style"], ["second"]]), scale=st.sampled_from([1.0, 0.5]))
    def fuse_loras(self, names, scale):
        self.twins.both(lambda pipe: pipe.fuse_lora(adapter_names=names, lora_scale=scale))

    @rule(scale=st.sampled_from([0.0, 0.5]))
    def call_with_a_scale(self, scale):
        self.twins.check(scale=scale)

    @precondition(lambda self: set(self.names) < {"red", "blue"})
    @rule(strength=st.sampled_from([0.5, 1.0, 1.3]))
    def load_unlearning(self, strength):
        name = next(name for name in ("red", "blue") if name not in self.names)
        load_adapter(self.twins, name, strength)
        self.names[name], self.enabled = strength, True
        self.active.append(name)

    @precondition(lambda self: self.names)
    @rule(strength=st.sampled_from([0.0, 0.4, 1.0]))
    def set_strengths(self, strength):
        free = [name for name in self.names if name not in self.fused]
        wanted = {**{name: self.names[name] for name in self.fused}, **dict.fromkeys(free, strength)}
        self.twins.ours.set_unlearning_adapters(list(wanted), list(wanted.values()))
        self.names.update(wanted)
        self.active, self.enabled = list(wanted), True

    @precondition(lambda self: self.names and not self.fused)
    @rule(on=st.booleans())
    def switch_unlearning(self, on):
        verb = "enable_unlearning_adapters" if on else "disable_unlearning_adapters"
        getattr(self.twins.ours, verb)()
        self.enabled = on

    @precondition(lambda self: self.enabled and self.active)
    @rule(everything=st.booleans())
    def fuse_unlearning(self, everything):
        chosen = list(self.active) if everything else self.active[:1]
        self.twins.ours.fuse_unlearning_adapters(chosen)
        self.fused.update(chosen)

    @precondition(lambda self: self.fused)
    @rule()
    def unfuse_unlearning(self):
        self.twins.ours.unfuse_unlearning_adapters(sorted(self.fused)[:1])
        self.fused.discard(min(self.fused))

    @precondition(lambda self: set(self.names) - self.fused)
    @rule()
    def delete_unlearning(self):
        name = min(set(self.names) - self.fused)
        self.twins.ours.delete_unlearning_adapters(name)
        del self.names[name]
        self.active = [other for other in self.active if other != name]

    @precondition(lambda self: not self.fused)
    @rule()
    def unload_unlearning(self):
        self.twins.ours.unload_unlearning_adapters()
        self.names, self.active, self.enabled = {}, [], True

    @invariant()
    def what_is_seen_is_what_must_be(self):
        if hasattr(self, "twins"):
            self.twins.acting = {name: self.names[name] for name in self.active} if self.enabled else {}
            self.twins.check()
            assert set(self.twins.ours.get_active_unlearning_adapters()) == set(self.twins.acting)

    def teardown(self):
        if hasattr(self, "twins"):
            take_off(self.twins, ours_first=len(self.names) == 1)


def test_verbs_of_both_kinds_at_random():
    machine = settings(
        max_examples=10, stateful_step_count=12, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(BesideLoras, settings=machine)
