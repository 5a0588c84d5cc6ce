"""Run text encoders without the padding behind prompts, and a denoiser's layers on one row of it: 20 tokens of 512."""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .hooks import after_calls, before_calls

FEW_ROWS = 16  # of a prompt: below, nothing is gained
TOKENS, MASK = "input_ids", "attention_mask"


@contextmanager
def without_padding(pipe: Any) -> Iterator[list[int]]:
    """Cut off the padding that all prompts of a batch share, before a text encoder reads them.

    The encoder's output is filled up with NaN, which spreads. So the inputs of the layers show whether a pipeline uses
    the padding, as CogVideoX does. Only encoders that get an attention mask are run like this; the states of the
    remaining tokens are the same up to rounding.

    Args:
        pipe: A diffusers pipeline; its text encoders are the components whose names start with `text_encoder`.

    Yields:
        How many tokens were cut off in each call that had some, filled as the calls are made.
    """
    lengths: list[int] = []
    with ExitStack() as stack:
        for name, component in pipe.components.items():
            if name.startswith("text_encoder") and isinstance(component, nn.Module):
                _shorten(stack, component, lengths)
        yield lengths


def _shorten(stack: ExitStack, encoder: nn.Module, saved: list[int]) -> None:
    names = list(inspect.signature(encoder.forward).parameters)
    cut: list[tuple[int, int]] = []  # lengths with and without padding of the call under way

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        length, width = _lengths(given)
        cut[:] = [(length, width)]
        if width == length:
            return None
        saved.append(length - width)
        return (), {**given, TOKENS: given[TOKENS][:, :width], MASK: given[MASK][:, :width]}

    def after(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        length, width = cut.pop()
        return output if width == length else _padded(output, length, width)

    before_calls(stack, encoder, before)
    after_calls(stack, encoder, after)


@contextmanager
def padding_once(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Let Linear layers on a CPU compute the rows that all prompts of a batch end with once: a layer does rows alike.

    Pipelines fill prompts up with rows of zeros, which the text projection of a denoiser then maps: 30 times as much
    work as the words, and so do keys and values of all blocks. The output is the same up to rounding. Hooks that read
    the input of a layer must be registered before.

    Args:
        networks: The denoisers.
    """
    with ExitStack() as stack:
        for module in {module: None for network in networks for module in network.modules()}:
            if type(module) is nn.Linear:
                _once(stack, module)
        yield


def _once(stack: ExitStack, layer: nn.Module) -> None:
    left_out: list[int] = []  # of the call under way

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows = _repeated(args[0]) if len(args) == 1 and not kwargs else 0
        left_out[:] = [rows]
        # Contiguous: torch multiplies parts of several prompts by one copy of the weight per prompt, which took 1.2 s
        # and 200 MB where it takes 0.05 s and 4 MB, and rounds twice in bfloat16.
        return ((args[0][:, :-rows].contiguous(),), {}) if rows else None

    def after(_module: nn.Module, _args: Any, _kwargs: Any, output: Tensor) -> Any:
        rows = left_out.pop()
        return torch.cat([output, output[:, -1:].expand(-1, rows, -1)], dim=1) if rows else output

    before_calls(stack, layer, before)
    after_calls(stack, layer, after)


def _repeated(x: Any) -> int:
    """Return how many rows at the end of all prompts of a batch are the same as the one before; 0 if they are few."""
    if not isinstance(x, Tensor) or x.device.type != "cpu" or x.ndim != 3 or x.shape[1] < FEW_ROWS:
        return 0
    if not torch.equal(x[:, -1], x[:, -2]):
        return 0
    # Also NaN differs, in place of padding that was cut off.
    last = max(
        (int(differs.max()) for prompt in x if len(differs := (prompt != prompt[-1]).any(1).nonzero())), default=-1
    )
    rows = x.shape[1] - 2 - last
    return rows if 4 * rows > x.shape[1] else 0


def _lengths(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Return how long the prompts of a call are with and without what is padding behind all of them.

    Both are the same where there is no mask, or where a further tensor or a cache may be as long as the prompts.
    """
    tokens, mask = arguments.get(TOKENS), arguments.get(MASK)
    others = [value for name, value in arguments.items() if name not in (TOKENS, MASK)]
    plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in others)
    if not (plain and isinstance(tokens, Tensor) and isinstance(mask, Tensor)):
        return 0, 0
    if tokens.ndim != 2 or mask.shape != tokens.shape or not bool((mask > 0).any()):
        return 0, 0
    return tokens.shape[1], 1 + int((mask > 0).any(0).nonzero().max())


def _padded(output: Any, length: int, width: int) -> Any:
    """Return an encoder's output with NaN in place of the tokens that were cut off."""
    if isinstance(output, Tensor):
        if output.ndim != 3 or output.shape[1] != width or not output.is_floating_point():
            return output
        return nn.functional.pad(output, (0, 0, 0, length - width), value=math.nan)
    if isinstance(output, tuple):
        return tuple(_padded(item, length, width) for item in output)
    if isinstance(output, dict):  # outputs of transformers
        for name in list(output):
            output[name] = _padded(output[name], length, width)
    return output
