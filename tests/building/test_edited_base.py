"""Beside edits, fused or attached, of this package or of a LoRA: what is computed is of the base, or is refused."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cases.hunyuan import make_text
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from planted_words import CONCEPT, planted_pipeline

from planted import bits, lora_that_reads, planted, snapshot
from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.attacks.run import run_attacks
from unlearning_adapters.attacks.target import world_target
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import AdapterNameError, DenoiserError, EvaluationError, UnlearningError
from unlearning_adapters.evaluation.detectors.detector import as_detectors
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.search.search import Search

METHODS = ("ridge", "mean", "pca", "cpca", "leace", "uce", "rece", "cure", "random")
OTHER_LAYERS = ("transformer.blocks.0.attn1.to_q", "transformer.blocks.1.ffn.net.2")
OPERATIONS: dict[str, Callable[[Any], None]] = {
    "attach": lambda pipe: pipe.load_unlearning_adapter(planted(pipe, "first", seed=3, rank=2)),
    "fuse": lambda pipe: pipe.fuse_unlearning_adapters(),
    "unfuse": lambda pipe: pipe.unfuse_unlearning_adapters(),
    "disable": lambda pipe: pipe.disable_unlearning_adapters(),
    "load LoRA": lambda pipe: pipe.load_lora_weights(
        lora_that_reads(planted(planted_pipeline(), "first", seed=3), planted_pipeline(), OTHER_LAYERS), "style"
    ),
    "fuse LoRA": lambda pipe: pipe.fuse_lora(),
    "unfuse LoRA": lambda pipe: pipe.unfuse_lora(),
    "disable LoRA": lambda pipe: pipe.disable_lora(),
    "run": lambda pipe: pipe("a red dog", **tiny.CALL, output_type="latent"),
}
STATES = {
    "clean": (),
    "attached": ("attach",),
    "disabled": ("attach", "disable"),
    "fused": ("attach", "fuse"),
    "LoRA attached": ("load LoRA",),
    "LoRA attached to a fused weight": ("attach", "fuse", "load LoRA"),
    "the same, after a call": ("attach", "fuse", "load LoRA", "run"),
    "LoRA fused": ("load LoRA", "fuse LoRA"),
    "LoRA fused into a fused weight": ("attach", "fuse", "load LoRA", "fuse LoRA"),
    "fused into a weight with a fused LoRA": ("load LoRA", "fuse LoRA", "attach", "fuse"),
    "LoRA fused and taken out": ("load LoRA", "fuse LoRA", "unfuse LoRA"),
}
OF_THE_BASE = tuple(state for state in STATES if "LoRA fused" not in state and "fused LoRA" not in state)
TAKEN_OUT = "FuseError: A LoRA was fused into the transformer and taken out by unfuse_lora()"


@pytest.fixture(scope="module")
def clean() -> Any:
    return planted_pipeline()


@pytest.fixture(scope="module")
def base_build(clean: Any) -> Callable[..., UnlearningAdapter]:
    """A build on the clean pipeline, made once for each setting."""
    return cache(partial(build, clean))


def in_state(*operations: str) -> Any:
    pipe = planted_pipeline()
    for name in ("run", *operations):  # a first call leaves an empty registry of diffusers behind
        apply(pipe, name)
    return pipe


def apply(pipe: Any, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        OPERATIONS[name](pipe)


def build(pipe: Any, method: str = "ridge", **changes: Any) -> UnlearningAdapter:
    config = BuildConfig(**{"method": method, **changes})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_adapter(pipe, CONCEPT, config, progress=False, call_kwargs=tiny.CALL)


def file_of(adapter: UnlearningAdapter, folder: Path, name: str) -> bytes:
    return adapter.save_pretrained(folder / f"{name}.safetensors").read_bytes()


def same_or_refused(pipe: Any, expected: bytes, made: Callable[[Any], bytes]) -> str:
    """What is made on a pipeline has these bytes, or is refused in one line; the pipeline is left as it was."""
    before = snapshot(pipe)
    try:
        assert made(pipe) == expected, "another file"
        outcome = "same"
    except UnlearningError as error:
        assert str(error).isprintable() and len(str(error)) < 400
        outcome = f"{type(error).__name__}: {error}"
    assert snapshot(pipe) == before
    return outcome


def expected_in(state: str) -> str:
    if state in OF_THE_BASE:
        return "same"
    return TAKEN_OUT if state == "LoRA fused and taken out" else "FuseError: The LoRA 'style' is fused into"


# Each state, each verb.


@pytest.mark.parametrize("state", STATES)
def test_a_build_gives_the_same_file_or_names_the_lora(state, base_build, tmp_path):
    pipe = in_state(*STATES[state])
    for method in METHODS:
        expected = file_of(base_build(method), tmp_path, "clean")
        outcome = same_or_refused(pipe, expected, lambda pipe, m=method: file_of(build(pipe, m), tmp_path, "edited"))
        assert outcome.startswith(expected_in(state)), f"{method}: {outcome}"


@pytest.mark.parametrize("state", STATES)
def test_hidden_sites_are_built_on_the_base_or_not_at_all(state, base_build, tmp_path):
    hidden = {"sites": "transformer.blocks.1.ffn.net.0.proj", "steps": 2}
    pipe = in_state(*STATES[state])
    expected = file_of(base_build(**hidden), tmp_path, "clean")
    outcome = same_or_refused(pipe, expected, lambda pipe: file_of(build(pipe, **hidden), tmp_path, "edited"))
    if state in ("clean", "disabled"):
        assert outcome == "same"
    elif state == "LoRA fused and taken out":
        assert outcome.startswith(TAKEN_OUT)
    else:
        assert outcome.startswith("DenoiserError: What transformer.blocks.1.ffn.net.0.proj reads has passed"), outcome


@pytest.mark.parametrize("state", STATES)
def test_a_saved_adapter_has_the_factors_of_the_base(state, clean, base_build, tmp_path):
    bare = replace(base_build(), lora_B={})
    clean.load_unlearning_adapter(bare, "new")
    expected = clean.save_unlearning_adapter(tmp_path / "clean.safetensors", "new").read_bytes()
    clean.unload_unlearning_adapters()
    pipe = in_state(*STATES[state])
    pipe.load_unlearning_adapter(bare, "new")
    outcome = same_or_refused(
        pipe, expected, lambda pipe: pipe.save_unlearning_adapter(tmp_path / "x.safetensors", "new").read_bytes()
    )
    assert outcome.startswith(expected_in(state)), outcome


@pytest.mark.parametrize("state", STATES)
def test_an_export_for_a_base_has_the_factors_of_that_base(state, clean, base_build, tmp_path):
    adapters = [base_build(), planted(clean, "second", seed=8)]

    def exported(pipe: Any, name: str) -> bytes:
        return export_lora(adapters, tmp_path / f"{name}.safetensors", base=pipe).file.read_bytes()

    pipe = in_state(*STATES[state])
    outcome = same_or_refused(pipe, exported(clean, "clean"), lambda pipe: exported(pipe, "edited"))
    assert outcome.startswith(expected_in(state)), outcome


@pytest.mark.parametrize("state", [state for state in STATES if state != "clean"])
def test_a_search_and_attacks_are_of_the_base_or_not_at_all(state):
    pipe = in_state(*STATES[state])
    before = snapshot(pipe)
    with pytest.raises((AdapterNameError, DenoiserError), match="unload_unlearning_adapters|pipe.disable_lora"):
        Search(pipe, CONCEPT, progress=False, call_kwargs=tiny.CALL)
    with pytest.raises((EvaluationError, DenoiserError), match="unload_unlearning_adapters|pipe.disable_lora"):
        adapter = planted(pipe, "second", seed=8)
        run_attacks(pipe, adapter, world_target("red", 1), as_detectors(["shapes"]), ["seeds"], progress=False)
    assert snapshot(pipe) == before


def test_the_check_of_the_base_says_nothing_of_weights_that_hold_an_edit(clean):
    adapter = build(clean)
    for state in STATES:
        pipe = in_state(*STATES[state])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipe.load_unlearning_adapter(adapter, "new")
        assert not [item for item in caught if "built on other weights" in str(item.message)], state
    with pytest.warns(UserWarning, match="built on other weights"):
        tiny.tiny_wan_pipeline(seed=5).load_unlearning_adapter(adapter, "new")


@pytest.mark.parametrize("verbs_of", ["pipeline", "denoiser"])
def test_the_rounding_of_a_lora_that_was_taken_out_is_refused_also_after_it_is_gone(verbs_of):
    pipe = in_state("load LoRA")
    owner = pipe if verbs_of == "pipeline" else pipe.transformer
    before = {name: bits(weight) for name, weight in pipe.transformer.named_parameters()}
    owner.fuse_lora()
    owner.unfuse_lora()
    changed = [
        name for name, weight in pipe.transformer.named_parameters() if not torch.equal(bits(weight), before[name])
    ]
    assert changed  # or there was nothing to refuse
    with pytest.raises(UnlearningError, match="taken out by unfuse_lora"):
        build(pipe, "rece")
    if verbs_of == "pipeline":
        pipe.unload_lora_weights()
        with pytest.raises(UnlearningError, match="taken out by unfuse_lora"):
            build(pipe, "rece")


@pytest.mark.parametrize("verbs_of", ["pipeline", "denoiser"])
def test_the_rounding_of_a_lora_that_a_call_took_out_is_refused_also_after_it_is_gone(verbs_of):
    pipe = in_state("load LoRA")
    before = {name: bits(weight) for name, weight in pipe.transformer.named_parameters()}
    (pipe if verbs_of == "pipeline" else pipe.transformer).fuse_lora()
    for name in ("disable LoRA", "run"):
        apply(pipe, name)
    after = dict(pipe.transformer.named_parameters())
    assert not all(torch.equal(bits(after[name]), weight) for name, weight in before.items())
    for change in (lambda: None, pipe.enable_lora, pipe.unload_lora_weights, lambda: apply(pipe, "load LoRA")):
        change()
        with pytest.raises(UnlearningError, match="taken out by a call after disable_lora"):
            build(pipe, "rece")


def test_a_lora_that_was_fused_for_good_is_a_part_of_the_base_also_beside_another_one():
    pipe = in_state("load LoRA", "fuse LoRA")
    pipe.unload_lora_weights()
    merged = build(pipe)
    assert not torch.equal(merged.lora_B[merged.sites[0]], build(planted_pipeline()).lora_B[merged.sites[0]])
    apply(pipe, "load LoRA")
    assert all(torch.equal(build(pipe).lora_B[site], factor) for site, factor in merged.lora_B.items())


def test_a_build_inside_of_a_scope_sees_the_edits_of_the_scope():
    pipe = make_text()
    pipe.load_unlearning_adapter(planted(pipe, "first", seed=3))
    expected = joint_build(make_text())
    with pipe.unlearning_adapters([]):  # nothing acts here, whatever acts outside
        built = joint_build(pipe)
    assert all(torch.equal(built.lora_B[site], factor) for site, factor in expected.lora_B.items())
    pipe.set_unlearning_adapters([])
    with pytest.raises(DenoiserError, match="reads has passed layers"), pipe.unlearning_adapters("first"):
        joint_build(pipe)


# Any sequence of verbs.


@settings(max_examples=12, deadline=None, phases=[Phase.generate])
@given(
    operations=st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=5),
    method=st.sampled_from(["ridge", "rece"]),
)
def test_after_any_verbs_a_build_is_that_of_the_base_or_is_refused(operations, method, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    expected = file_of(build(planted_pipeline(), method), folder, "clean")
    pipe = in_state()
    for name in operations:
        try:
            apply(pipe, name)
        except Exception:  # noqa: BLE001 - a LoRA verb without a LoRA, or a verb of ours that refuses
            continue
    same_or_refused(pipe, expected, lambda pipe: file_of(build(pipe, method), folder, "edited"))


# Joint attention: what later sites read has passed earlier ones.


def joint_build(pipe: Any) -> UnlearningAdapter:
    concept = Concept(
        "no-red", [Pair("a red car", "a blue car"), Pair("the red cat", "the blue cat")], neutral=["a dog"]
    )
    call = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 16}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_adapter(pipe, concept, BuildConfig(batch_size=2), progress=False, call_kwargs=call)


def test_where_text_passes_edited_layers_the_build_says_so_and_switched_off_it_gives_the_same_file(tmp_path):
    pipe = make_text()
    expected = file_of(joint_build(pipe), tmp_path, "clean")
    pipe.load_unlearning_adapter(planted(pipe, "first", seed=3))
    with pytest.raises(
        DenoiserError, match=r"What transformer\..* reads has passed layers that the unlearning adapter"
    ):
        joint_build(pipe)
    pipe.disable_unlearning_adapters()
    assert file_of(joint_build(pipe), tmp_path, "disabled") == expected
    pipe.enable_unlearning_adapters()
    pipe.fuse_unlearning_adapters()
    with pytest.raises(DenoiserError, match="unfuse_unlearning_adapters"):
        joint_build(pipe)
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    assert file_of(joint_build(pipe), tmp_path, "unloaded") == expected


def test_a_lora_of_the_text_encoder_is_seen_by_what_sites_read(tmp_path):
    pipe = planted_pipeline()
    expected = file_of(build(pipe), tmp_path, "clean")
    torch.manual_seed(0)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q"], init_lora_weights=False), pipe.text_encoder, "voice")
    before = {name: bits(value) for name, value in pipe.text_encoder.state_dict().items()}
    with pytest.raises(DenoiserError, match="the LoRA 'voice' edits"):
        build(pipe)
    after = {name: bits(value) for name, value in pipe.text_encoder.state_dict().items()}
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for layer in pipe.text_encoder.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(False)
    assert file_of(build(pipe), tmp_path, "off") == expected


def test_stock_lora_loaders_read_what_was_built_beside_a_fused_adapter(clean, tmp_path):
    """The report: built while another adapter was fused, the stock factors were those of the edited weights."""
    pipe = planted_pipeline()
    pipe.load_unlearning_adapter(build(clean))
    pipe.fuse_unlearning_adapters()
    again = load_adapter(build(pipe).save_pretrained(tmp_path / "again"))
    assert again.lora_B.keys() == build(clean).lora_B.keys()
    for site, factor in build(clean).lora_B.items():
        assert factor.norm() > 0.01 and torch.equal(again.lora_B[site], factor)
