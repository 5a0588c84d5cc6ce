"""`--strength`: one number, or one for each component, in every command that takes a strength."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import parsed
from diffusers import DiffusionPipeline
from tiny import tiny_wan_pipeline

from planted import planted
from unlearning_adapters.adapter.adapter import load_adapter, save_adapter
from unlearning_adapters.cli.commands import build as build_command
from unlearning_adapters.cli.commands import doctor as doctor_command
from unlearning_adapters.concepts.concept import Concept, Pair, save_concept
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.evaluation.arms.arm import adapter_hash
from unlearning_adapters.export.fused_pipeline import export_fused
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.runtime.components import at_strength

Outcome = tuple[int, str, str]
FIRST, SECOND = "transformer", "transformer_2"
TEXT, BOTH = f"{FIRST}=1.5,{SECOND}=0.5", {FIRST: 1.5, SECOND: 0.5}
SIZE = ["--call", "height=16", "--call", "width=16", "--call", "num_frames=5", "--call", "num_inference_steps=4"]


def brightness(frames: Any) -> Any:
    """A detector as a user would write it."""
    return frames.mean(axis=(1, 2, 3)) / 255


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline of two denoisers, an adapter of both, a concept and a suite."""
    place = tmp_path_factory.mktemp("strengths")
    pipe = tiny_wan_pipeline(two_denoisers=True)
    pipe.save_pretrained(place / "base")
    save_adapter(planted(pipe), place / "no-red")
    pairs = [Pair(f"a red {thing}", f"a green {thing}") for thing in ("car", "dog")]
    save_concept(Concept("tiny-red", pairs, neutral=["a dog walks"]), place / "tiny-red.yaml")
    (place / "suite.yaml").write_text("words: [red]\nsets:\n  forget: [a red car]\n  unrelated: [two trees]\n")
    return place


def test_a_lora_has_the_strength_of_its_component(place: Path, tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    for component, alone in BOTH.items():
        file, python = tmp_path / f"{component}.safetensors", tmp_path / f"python-{component}.safetensors"
        code, out, err = unlearn(
            "export", place / "no-red", "-o", file, "--component", component, "--strength", TEXT, "--json"
        )
        assert code == 0, err
        assert json.loads(out)["strengths"] == [alone]
        export_lora(place / "no-red", python, component=component, strengths=alone)
        assert file.read_bytes() == python.read_bytes()


def test_a_fused_pipeline_has_both(place: Path, tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    call = ["export", place / "no-red", "--fused", "--base", place / "base", "-o", tmp_path / "edited"]
    code, out, err = unlearn(*call, "--strength", TEXT)
    assert code == 0, err
    assert "without red (1.5 on transformer, 0.5 on transformer_2), fused" in out
    pipe, saved = tiny_wan_pipeline(two_denoisers=True), DiffusionPipeline.from_pretrained(tmp_path / "edited")
    pipe.load_unlearning_adapter(place / "no-red", strength=BOTH)
    pipe.fuse_unlearning_adapters()
    for component in BOTH:
        weights = getattr(saved, component).state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in getattr(pipe, component).state_dict().items())


def test_a_component_of_strength_0_has_no_lora_and_no_fused_layer(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="All strengths on transformer_2 are 0"):
        export_lora(place / "no-red", tmp_path / "lora", component=SECOND, strengths={SECOND: 0})
    made = export_fused(place / "no-red", tmp_path / "edited", base=str(place / "base"), strengths={SECOND: 0})
    assert made.layers == 4 and made.strengths == ({FIRST: 1.0, SECOND: 0.0},)


def test_doctor_and_apply_load_at_it(
    place: Path, tmp_path: Path, unlearn: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny_wan_pipeline(two_denoisers=True)
    monkeypatch.setattr(doctor_command, "open_pipeline", lambda *_: pipe)
    code, _, err = unlearn("doctor", "tiny", place / "no-red", "--strength", TEXT)
    assert code == 0, err
    assert pipe.get_unlearning_adapters_info()["red"].strengths == BOTH
    words = ["tiny", "a", "b", "--prompt", "x", "-o", "x.mp4", "--strength", "0.5", "--strength", TEXT]
    assert parsed("apply", *words)["strengths"] == (0.5, BOTH)


def test_build_saves_it(
    place: Path, tmp_path: Path, unlearn: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny_wan_pipeline(two_denoisers=True)
    monkeypatch.setattr(build_command, "open_pipeline", lambda *_: pipe)
    call = ["build", "tiny", place / "tiny-red.yaml", *SIZE, "--call", "max_sequence_length=16", "-o"]
    for name, options in {"plain": [], "both": ["--strength", TEXT]}.items():
        code, _, err = unlearn(*call, tmp_path / name, *options)
        assert code == 0, err
    plain, both = (load_adapter(tmp_path / name) for name in ("plain", "both"))
    assert both.strength == 1.5 and {both.strength_at(site) for site in both.sites} == {1.5, 0.5}
    for site in both.sites:
        assert both.strength_at(site) == BOTH[site.partition(".")[0]]
        expected = plain.lora_B[site] * both.strength_at(site) / plain.strength_at(site)
        torch.testing.assert_close(both.lora_B[site], expected)
    code, _, err = unlearn(*call, tmp_path / "wrong", "--strength", "unet=1.0")
    assert code == 1 and "name 'unet', but it edits transformer, transformer_2" in err
    assert not (tmp_path / "wrong").exists()


def test_eval_measures_at_it(place: Path, tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    call = ["eval", place / "base", place / "no-red", "-o", tmp_path / "run", "--suite", place / "suite.yaml", *SIZE]
    options = ["--detector", f"{__name__}:brightness", "--gate", "0", "--no-controls", "--strength", TEXT, "--json"]
    code, out, err = unlearn(*call, *options)
    assert code == 0, err
    about = json.loads(out)["arms"]["edited"]["about"]
    made = at_strength(load_adapter(place / "no-red"), BOTH)
    assert about["strength"] == 1.5 and about["sha256"] == adapter_hash(made)


@pytest.mark.parametrize("text", ["much", "transformer=", "=1.0", "transformer=1,transformer=1", "transformer=1,2", ""])
def test_what_is_no_strength_is_wrong_usage(text: str, unlearn: Callable[..., Outcome]) -> None:
    for call in (["build", "shapeworld", "red", "-o", "x"], ["doctor", "tiny", "a"]):
        code, _, err = unlearn(*call, "--strength", text)
        assert code == 2 and "expected a number, or one for each component, such as" in " ".join(err.split())


def test_compare_takes_no_strength_and_says_which_commands_do(unlearn: Callable[..., Outcome]) -> None:
    code, _, err = unlearn("compare", "shapeworld", "shapeworld-red", "-o", "compared", "--strength", "1")
    assert code == 2 and "--strength" in err
    text = " ".join(unlearn("compare", "--help")[1].split())
    assert "`unlearn build --method NAME --strength X`, then `unlearn eval --strength X --rival ADAPTER`" in text
    for command, options in (("build", ("--method", "--strength")), ("eval", ("--strength", "--rival"))):
        assert all(f"{option} " in unlearn(command, "--help")[1] for option in options)
