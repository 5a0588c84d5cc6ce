"""A whole pipeline of true size: Wan 2.1 1.3B behind UMT5-XXL, with random weights in bfloat16; one or two experts."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.building.guidance import guidance_prompts
from unlearning_adapters.concepts.concept import Concept, load_concept
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.pipelines.sites import find_sites, site_module
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)

from .measure import CLEAR_REFS, can_measure_memory, extra_bytes, seconds
from .real_text import filled, tokenizer, umt5
from .report import Row, compare
from .sizes import Sizes

CONCEPT = "trademarks"
BUILD_AT_MOST = 1.25
MEMORY = 2**29
BATCH, PADDED = 16, 512


def benchmark_true_sizes(sizes: Sizes, experts: int = 1) -> Iterator[Row]:
    """Compare a build with reading the same prompts by the text encoder alone, and the verbs with it."""
    case = "wan-1.3b" if experts == 1 else "wan-2-experts"
    shipped = load_concept(CONCEPT)
    concept = replace(shipped, neutral=shipped.neutral[: sizes.true_neutral])
    pipe = _pipeline(sizes, concept, experts)
    layers, width = pipe.text_encoder.config.num_layers, pipe.text_encoder.config.d_model
    where = (
        f"{experts} denoiser{'s' * (experts > 1)} of {pipe.transformer.config.num_layers} blocks "
        f"{pipe.transformer.config.num_attention_heads * 128} wide behind a UMT5 encoder of {layers} layers, {width} "
        "wide"
    )
    prompts = _prompts(pipe, concept)
    made: list[UnlearningAdapter] = []
    _build(pipe, _short(concept), [])  # buffers of the libraries
    read = seconds(lambda: _read(pipe, prompts))
    peak: list[float] = []
    took = _timed(lambda: _build(pipe, concept, made), peak)
    yield compare(
        f"true/{case}/build/text-encoder",
        f"build_adapter with 5 pairs of {CONCEPT} and {len(concept.neutral)} neutral prompts on {where}, against its "
        f"text encoder alone for the same {sum(map(len, prompts))} prompts in the same batches without padding",
        [took],
        [read],
        at_most=BUILD_AT_MOST,
        if_missed="one prompt runs through all blocks to find what the layers share, and the directions are solved",
    )
    yield _memory(
        f"true/{case}/build/memory",
        f"peak memory of that build above {where}",
        peak,
        "the pipeline fills each batch of prompts up with padding several times over, beside the text encoder's work",
    )
    yield from _verbs(case, where, pipe, made[0], read)


def _verbs(case: str, where: str, pipe: Any, adapter: UnlearningAdapter, read: float) -> Iterator[Row]:
    weights = [site_module(pipe, site.name).weight for site in find_sites(pipe, "text")]
    nbytes = sum(weight.nbytes for weight in weights)
    with TemporaryDirectory() as folder:
        file = adapter.save_pretrained(Path(folder) / "a.safetensors")
        steps: list[tuple[str, Callable[[], Any]]] = [
            ("load", lambda: load_unlearning_adapter(pipe, file)),
            ("fuse-copy", lambda: fuse_unlearning_adapters(pipe, record="copy")),
            ("unfuse-copy", lambda: unfuse_unlearning_adapters(pipe)),
            ("fuse-compact", lambda: fuse_unlearning_adapters(pipe, record="compact")),
            ("unfuse-compact", lambda: unfuse_unlearning_adapters(pipe)),
            ("unload", lambda: unload_unlearning_adapters(pipe)),
        ]
        for component in adapter.info.denoisers:
            place = Path(folder) / component
            steps.append((f"export-{component}", lambda c=component, p=place: export_lora(file, p, component=c)))
        for name, step in steps:
            peak: list[float] = []
            took = _timed(step, peak)
            yield compare(
                f"true/{case}/{name}/text-encoder",
                f"{name} of that adapter at {len(weights)} sites ({nbytes / 1e6:.0f} MB), against the text encoder",
                [took],
                [read],
            )
            if name != "fuse-copy":  # which keeps all of these weights
                yield _memory(
                    f"true/{case}/{name}/memory",
                    f"peak memory of {name} above {where}",
                    peak,
                    "records of the edited weights are held beside the pipeline",
                )


def _memory(name: str, what: str, peak: Sequence[float], if_missed: str) -> Row:
    return compare(
        name,
        f"{what}, against 0.5 GiB",
        list(peak),
        [MEMORY],
        at_most=1,
        unit="bytes",
        if_missed=if_missed,
    )


def _timed(step: Callable[[], Any], peak: list[float]) -> float:
    """Return how long a step takes, and note its peak of memory if the system tells."""
    took: list[float] = []
    measured = can_measure_memory() and os.access(CLEAR_REFS, os.W_OK)
    peak.append(extra_bytes(lambda: took.append(seconds(step))) if measured else 1.0)
    return took[0] if measured else seconds(step)


def _build(pipe: Any, concept: Concept, made: list[UnlearningAdapter]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.append(build_adapter(pipe, concept))


def _short(concept: Concept) -> Concept:
    return Concept("warm-up", concept.pairs[:2], neutral=concept.neutral[:2])


def _prompts(pipe: Any, concept: Concept) -> list[list[str]]:
    """Return the batches in which a build reads the prompts, those of one length together."""
    pairs = [pair.unsafe for pair in concept.pairs[:5]] + [pair.safe for pair in concept.pairs[:5]]
    neutral = [*concept.neutral, *guidance_prompts(pipe, concept, None)]
    ordered = [sorted(part, key=len) for part in (pairs, neutral)]
    return [part[start : start + BATCH] for part in ordered for start in range(0, len(part), BATCH)]


@torch.no_grad()
def _read(pipe: Any, batches: Sequence[Sequence[str]]) -> None:
    for batch in batches:
        tokens = pipe.tokenizer(list(batch), padding=True, return_tensors="pt", max_length=PADDED, truncation=True)
        pipe.text_encoder(tokens.input_ids, tokens.attention_mask)


def _pipeline(sizes: Sizes, concept: Concept, experts: int) -> WanPipeline:
    """Return the pipeline; no VAE, which no build calls."""
    layers, width, blocks = sizes.true_layers, sizes.text[1], sizes.load_blocks
    networks = []
    for _ in range(experts):
        with init_empty_weights(include_buffers=False):
            network = WanTransformer3DModel(
                num_attention_heads=sizes.heads,
                attention_head_dim=128,
                text_dim=width,
                ffn_dim=sizes.feed_forward,
                num_layers=blocks,
            )
        networks.append(filled(network, torch.bfloat16, keep=network._keep_in_fp32_modules))
    sides = [side for pair in concept.pairs for side in (pair.unsafe, pair.safe)]
    second = {"transformer_2": networks[1], "boundary_ratio": 0.875} if experts > 1 else {}
    pipe = WanPipeline(
        tokenizer=tokenizer(sides),
        text_encoder=umt5(layers, width, feed_forward=width * 5 // 2, vocabulary=256_384 if width > 1000 else 4096),
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=networks[0],
        **second,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
