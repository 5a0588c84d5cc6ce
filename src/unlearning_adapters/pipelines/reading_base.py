"""`check_reads_base`: measure whether attached or fused edits change what the sites read."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.pipelines.running.partial_run import PartialRun, StopRun

from .edits import edited_modules
from .hooks import count_calls, is_finite, on_input
from .sites import Site, denoisers, site_module


def check_reads_base(
    pipe: Any,
    sites: Sequence[Site],
    calls: Mapping[str, Sequence[int]],
    prompt: str,
    image: Any = None,
    *,
    call_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Raise `DenoiserError` if an attached or fused edit changes what a site reads.

    In one run over one prompt all edited layers return NaN, which spreads: a site that reads no NaN depends on no
    edited layer. Without an edit the pipeline is not run.

    Args:
        pipe: A diffusers pipeline.
        sites: Sites as `find_sites` returns them.
        calls: Calls of the denoiser that are to be recorded, by the name of the site; the first one of others.
        prompt: A prompt.
        image: A picture, for image-to-video pipelines.
        call_kwargs: Further arguments of the pipeline's call.
    """
    edited = list(edited_modules(pipe))
    if not edited:
        return
    behind = _reads_nan(pipe, sites, calls, [module for module, _, _ in edited], prompt, image, call_kwargs)
    if behind is not None:
        what = next(name for _, _, name in edited)
        adapter = any("unlearning adapter" in name for _, _, name in edited)
        cure = "unfuse_unlearning_adapters() and disable_unlearning_adapters()" if adapter else "pipe.disable_lora()"
        raise DenoiserError(
            f"What {behind} reads has passed layers that {what} edits, and an adapter is built on the base. "
            f"Call {cure} first."
        )


def _reads_nan(
    pipe: Any,
    sites: Sequence[Site],
    calls: Mapping[str, Sequence[int]],
    edited: Sequence[nn.Module],
    prompt: str,
    image: Any,
    call_kwargs: Mapping[str, Any] | None,
) -> str | None:
    """Return the name of a site that reads what edited layers have made, or None."""
    run = PartialRun(pipe, call_kwargs, any_video=all(site.kind != "hidden" for site in sites))
    pending = {(site.name, call) for site in sites for call in calls.get(site.name, (0,))}
    behind: list[str] = []
    thread = threading.get_ident()

    def spoil(_module: nn.Module, _args: Any, output: Any) -> Any:
        return _as_nan(output) if threading.get_ident() == thread else output

    def end(component: str, count: int) -> None:
        pending.difference_update([key for key in pending if key[0].startswith(f"{component}.") and key[1] < count])
        if not pending:
            raise StopRun

    def reader(site: Site, counted: Counter[str]) -> Callable[[Tensor], None]:
        def read(tensor: Tensor) -> None:
            key = (site.name, counted[site.component] - 1)
            if key in pending:
                pending.discard(key)
                if not is_finite(tensor):
                    behind.append(site.name)
                if behind or not pending:
                    raise StopRun

        return read

    networks = denoisers(pipe)
    with ExitStack() as stack:
        for module in edited:
            stack.callback(module.register_forward_hook(spoil).remove)
        counted = count_calls(stack, pipe, networks, end)
        for site in sites:
            on_input(stack, site_module(pipe, site.name), reader(site, counted))
        try:
            run([prompt], [0], image if run.image else None)
        except Exception:  # the pipeline itself meets NaN, such as in a check of its own
            return sites[0].name
    return behind[0] if behind else None


def _as_nan(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output * math.nan if output.is_floating_point() else output
    return type(output)(map(_as_nan, output)) if type(output) in (tuple, list) else output
