"""A LoRA of others in the file of an export: it reads the edited input, so that it cannot bring the concept back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import tiny_wan_pipeline
from torch import Tensor

from planted import lora_that_reads, output, planted
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.errors import AdapterFileError, ConfigError
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.export.style import read_lora
from unlearning_adapters.pipelines.sites import site_module

WAN = "WanTransformer3DModel"
OTHER = ["transformer.blocks.0.attn1.to_q", "transformer.blocks.1.ffn.net.2"]
ROUNDING = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="module")
def pipe():
    return tiny_wan_pipeline()


@pytest.fixture(scope="module")
def red(pipe) -> UnlearningAdapter:
    adapter = planted(pipe, "red", seed=1, strength=1.3)
    return replace(adapter, info=replace(adapter.info, denoisers={"transformer": WAN}))


@pytest.fixture(scope="module")
def left(pipe) -> UnlearningAdapter:
    adapter = planted(pipe, "left", seed=2, strength=0.8)
    return replace(adapter, info=replace(adapter.info, denoisers={"transformer": WAN}))


@pytest.fixture(scope="module")
def style(pipe, red) -> dict[str, Tensor]:
    """Reads just what the adapter removes: loaded beside the exported LoRA it would bring it back."""
    return lora_that_reads(red, pipe, OTHER)


def saved(style: dict[str, Tensor], path: Path) -> Path:
    safetensors.torch.save_file(style, path)
    return path


def loaded(file: Path, *others: tuple[Path, float]) -> Tensor:
    pipe = tiny_wan_pipeline()
    pipe.load_lora_weights(str(file), adapter_name="a")
    for number, (other, _) in enumerate(others):
        pipe.load_lora_weights(str(other), adapter_name=str(number))
    names = ["a", *map(str, range(len(others)))]
    pipe.set_adapters(names, [1.0, *(scale for _, scale in others)])
    return output(pipe)


def test_the_file_does_what_attached_adapters_do_beneath_the_lora(pipe, red, left, style, tmp_path) -> None:
    lora = saved(style, tmp_path / "style.safetensors")
    made = export_lora([red, left], tmp_path / "both", loras={lora: 0.8})
    attached = tiny_wan_pipeline()
    attached.load_lora_weights(dict(style), adapter_name="style")
    attached.set_adapters("style", 0.8)
    attached.load_unlearning_adapter(red)
    attached.load_unlearning_adapter(left)
    expected = output(attached)
    torch.testing.assert_close(loaded(made.file), expected, **ROUNDING)
    apart = export_lora([red, left], tmp_path / "edit").file
    added = loaded(apart, (lora, 0.8))
    assert (added - expected).abs().max() > 30 * (loaded(made.file) - expected).abs().max(), "a sum would pass"
    assert made.layers == len(red.sites) + len(OTHER)


def test_what_the_adapter_removes_stays_removed(pipe, red, style, tmp_path) -> None:
    """Along the direction of the adapter at strength 1 the edited weight with the LoRA gives nothing."""
    lora = saved(style, tmp_path / "style.safetensors")
    file = export_lora(red, tmp_path / "both", strengths=1.0, loras={lora: 1.0}).file
    tensors = safetensors.torch.load_file(file)
    for site in red.sites:
        weight = site_module(pipe, site).weight.detach().double()
        delta = tensors[f"{site}.lora_B.weight"].double() @ tensors[f"{site}.lora_A.weight"].double()
        write = red.directions[site].write.double()
        before = weight + style[f"{site}.lora_B.weight"].double() @ style[f"{site}.lora_A.weight"].double()
        assert ((weight + delta) @ write.T).norm() < 1e-5 < 1e-2 < (before @ write.T).norm()


@pytest.mark.parametrize("spelling", ["native", "kohya"])
def test_names_of_the_first_release_and_alphas_are_understood(red, style, tmp_path, spelling: str) -> None:
    names = {"attn2.to_": "cross_attn.", "attn1.to_": "self_attn.", "ffn.net.2": "ffn.2"}
    renamed = {}
    for name, value in style.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        name = name.replace("transformer.", "diffusion_model.")
        if spelling == "kohya":
            layer, end = name.removeprefix("diffusion_model.").split(".lora_")
            part = "lora_down.weight" if end.startswith("A") else "lora_up.weight"
            renamed[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(0.5 * len(style[next(iter(style))]))
            name = f"lora_unet_{layer.replace('.', '_')}.{part}"
        renamed[name] = value.contiguous()
    lora = read_lora(saved(renamed, tmp_path / "renamed.safetensors"), WAN, 0.8)
    amount = 0.4 if spelling == "kohya" else 0.8
    assert len(lora) == len(style) // 2
    for path, (lora_A, lora_B) in lora.items():
        assert torch.equal(lora_A, style[f"transformer.{path}.lora_A.weight"])
        torch.testing.assert_close(lora_B, amount * style[f"transformer.{path}.lora_B.weight"])


def test_a_fused_layer_is_taken_apart(tmp_path) -> None:
    down, up = torch.randn(2, 6), torch.randn(18, 2)
    up[6:12] = 0
    tensors = {
        "diffusion_model.double_blocks.3.txt_attn_qkv.lora_A.weight": down,
        "diffusion_model.double_blocks.3.txt_attn_qkv.lora_B.weight": up,
    }
    lora = read_lora(saved(tensors, tmp_path / "x.safetensors"), "HunyuanVideoTransformer3DModel")
    assert list(lora) == [f"transformer_blocks.3.attn.add_{leaf}_proj" for leaf in "qv"]
    assert torch.equal(lora["transformer_blocks.3.attn.add_v_proj"][1], up[12:])


def test_what_is_not_understood_is_refused(red, style, tmp_path) -> None:
    odd = {**style, "transformer.blocks.0.norm1.diff": torch.ones(3)}
    text = r"has the tensor 'transformer\.blocks\.0\.norm1\.diff', which is not a LoRA factor of a known layer of wan"
    with pytest.raises(AdapterFileError, match=text):
        export_lora(red, tmp_path / "x", loras={saved(odd, tmp_path / "odd.safetensors"): 1.0})
    wide = {name: torch.cat([value, value], dim=1 if "lora_A" in name else 0) for name, value in style.items()}
    with pytest.raises(
        ConfigError, match=r"of shape \(96, 96\), and the adapter for \(48, 48\). Give a LoRA of the same"
    ):
        export_lora(red, tmp_path / "x", loras={saved(wide, tmp_path / "wide.safetensors"): 1.0})
    assert not (tmp_path / "x").exists()
