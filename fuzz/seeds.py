"""The valid files that are changed, and the live pipeline that must not be."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from unlearning_adapters.adapter.adapter import UnlearningAdapter, save_adapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.pipelines.sites import find_sites, site_module

STRENGTH = 1.25


def live_pipeline() -> WanPipeline:
    """Return a pipeline with the real denoiser class, small, and without what loading an adapter does not touch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=16, freq_dim=16, ffn_dim=24, num_layers=2, rope_max_seq_len=32,
        )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler()
    return WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=transformer.eval())


def valid_files(pipe: WanPipeline, folder: Path) -> tuple[bytes, ...]:
    """Return valid files: oblique, orthogonal, padded, additive, of other writers, with gains, and with a shrinkage."""
    oblique = _adapter(pipe, ranks=(1,), oblique=True)
    orthogonal = _adapter(pipe, ranks=(1,), oblique=False, sites=1)
    padded = _adapter(pipe, ranks=(3, 1), oblique=True, sites=2)
    additive = _adapter(pipe, ranks=(2, 1), oblique=True, sites=2, additive=True)
    unequal = _with_gains(oblique, (0.5, 1.0, 0.0, 2.0))
    shrunk = replace(
        unequal, directions={name: replace(one, shrinkage=0.3) for name, one in unequal.directions.items()}
    )
    adapters = (oblique, orthogonal, padded, additive, unequal, shrunk)
    blobs = [save_adapter(adapter, folder / "seed").read_bytes() for adapter in adapters]
    return (*blobs, _by_another_writer(blobs[0]), _for_another_pipeline(blobs[1]))


def _with_gains(adapter: UnlearningAdapter, gains: tuple[float, ...]) -> UnlearningAdapter:
    given = dict(zip(adapter.sites, gains, strict=True))
    directions = {site: replace(direction, gain=given[site]) for site, direction in adapter.directions.items()}
    factors = {site: given[site] * factor for site, factor in adapter.lora_B.items()}
    return replace(adapter, directions=directions, lora_B=factors)


def _adapter(
    pipe: WanPipeline, *, ranks: tuple[int, ...], oblique: bool, sites: int = 4, additive: bool = False
) -> UnlearningAdapter:
    directions, factors = {}, {}
    for number, site in enumerate(find_sites(pipe, "text")[:sites]):
        rank = ranks[number % len(ranks)]
        maker = torch.Generator().manual_seed(number)
        weight = site_module(pipe, site.name).weight.detach().double()
        basis = torch.linalg.qr(torch.randn(weight.shape[1], 2 * rank, generator=maker, dtype=torch.float64))[0].T
        write = basis[:rank] + 0.5 * basis[rank:] if oblique else basis[:rank]
        directions[site.name] = Direction(basis[:rank].float(), write.float(), additive)
        factors[site.name] = (-STRENGTH * weight @ write.T).float()
    info = AdapterInfo(
        "red", "ridge", STRENGTH, {"rank": 1, "pairs": [1, 2], "blocks": None}, base_model="org/base",
        denoisers={"transformer": "WanTransformer3DModel"}, versions={"torch": "2"}, description="The colour red.",
    )  # fmt: skip
    return UnlearningAdapter(info, directions, factors)


def _by_another_writer(blob: bytes) -> bytes:
    """Return the same adapter with half-precision factors and another order of everything."""
    length = struct.unpack("<Q", blob[:8])[0]
    metadata = json.loads(blob[8 : 8 + length])["__metadata__"]
    tensors = safetensors.torch.load(blob)
    halves = {key: value.half() if "lora_B" in key else value for key, value in reversed(tensors.items())}
    return bytes(safetensors.torch.save(halves, dict(reversed(metadata.items()))))


def _for_another_pipeline(blob: bytes) -> bytes:
    """Return the same adapter with sites that the live pipeline does not have."""
    length = struct.unpack("<Q", blob[:8])[0]
    text = blob[8 : 8 + length].decode().replace("transformer.blocks", "transformer_2.block").rstrip().encode()
    return struct.pack("<Q", len(text)) + text + blob[8 + length :]
