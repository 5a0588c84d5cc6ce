"""One call of a denoiser with an adapter attached, against the base and against the same edit as a stock LoRA."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.runtime.coverage import covered
from unlearning_adapters.runtime.editor import editor_of
from unlearning_adapters.runtime.verbs import load_unlearning_adapter
from unlearning_adapters.shapeworld.models.generate import GENERATION
from unlearning_adapters.shapeworld.models.load import load_shapeworld

from .measure import in_turn
from .planted import save_planted, wan_pipeline, with_shared_weights
from .report import Row, compare
from .sizes import Sizes

CHECKS = 100  # of which one is too short to be measured


def benchmark_calls(sizes: Sizes) -> Iterator[Row]:
    """Compare calls of a Wan denoiser of real widths, and of ShapeWorld's own."""
    maker = torch.Generator().manual_seed(0)
    wan = wan_pipeline(sizes, sizes.blocks, sizes.feed_forward)
    inputs = (
        torch.randn(1, 16, *sizes.latents, generator=maker).bfloat16(),
        torch.tensor([500]),
        torch.randn(1, *sizes.text, generator=maker).bfloat16(),
    )
    width, tokens = 128 * sizes.heads, sizes.latents[0] * (sizes.latents[1] // 2) * (sizes.latents[2] // 2)
    where = (
        f"one call of a bfloat16 WanTransformer3DModel, {width} wide, {sizes.blocks} blocks, {tokens} video tokens, "
        f"{sizes.text[0]} text tokens"
    )
    yield from _case("wan", where, wan, inputs, sizes.call_rounds[0])

    shapeworld = load_shapeworld()
    config = shapeworld.transformer.config
    inputs = (
        torch.randn(1, config.in_channels, 3, 4, 4, generator=maker),
        torch.tensor([500]),
        torch.randn(1, GENERATION["max_sequence_length"], config.text_dim, generator=maker),
    )
    yield from _case("shapeworld", "one call of ShapeWorld's denoiser", shapeworld, inputs, sizes.call_rounds[1])


@torch.no_grad()
def _case(case: str, where: str, base: Any, inputs: tuple[Tensor, ...], rounds: int) -> Iterator[Row]:
    attached, stock = with_shared_weights(base), with_shared_weights(base)
    with TemporaryDirectory() as folder:
        count = save_planted(base, Path(folder))
        load_unlearning_adapter(attached, folder)
        stock.load_lora_weights(folder)
    arms = {"base": base, "attached": attached, "stock": stock}

    def call(pipe: Any) -> Tensor:
        result: Tensor = pipe.transformer(*inputs, return_dict=False)[0]
        return result

    _check(call(base), call(attached), call(stock))
    steps = [[(name, lambda pipe=pipe: call(pipe))] for name, pipe in arms.items()]
    times = in_turn([*steps, [("check", lambda: _checks(attached))]], rounds, f"calls/{case}")
    yield compare(
        f"call/{case}/lora",
        f"{where}, an adapter of rank 1 at {count} sites attached, against the same file as a stock LoRA",
        times["attached"],
        times["stock"],
        at_most=1,
        if_missed="editing an input in float32 and calling hooks took longer than adding a LoRA branch to an output",
    )
    yield compare(f"call/{case}/base", f"{where}, attached against the base", times["attached"], times["base"])
    yield compare(
        f"call/{case}/bypass-check",
        f"{where}: seeing that each of the {count} layers was reached, against the whole call",
        [time / CHECKS for time in times["check"]],
        times["attached"],
        at_most=0.001 if case == "wan" else None,
        if_missed="it is a fixed cost for each layer, and the call is a short one",
    )
    yield compare(f"call/{case}/lora-base", f"{where}, the stock LoRA against the base", times["stock"], times["base"])


def _checks(pipe: Any) -> None:
    """Do what a call does to see which layers it reached, and nothing else, several times."""
    hooks = editor_of(pipe.transformer).hooks
    for _ in range(CHECKS):
        with covered(pipe):
            hooks._begin()
            for path in hooks.sites:
                hooks.state.call.reached.add(path)
            hooks._end()


def _check(base: Tensor, attached: Tensor, stock: Tensor) -> None:
    """Check that both sides do the same, and do something."""
    effect, apart = float((attached - base).norm()), float((attached - stock).norm())
    if not 0 <= apart < effect:
        raise AssertionError(f"Attached and stock LoRA differ by {apart:.3g}, and their effect is {effect:.3g}.")
