"""What the sites of a pipeline read while it works on some prompts: recorded by hooks that leave no trace."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from unlearning_adapters.errors import ConfigError, DenoiserError, PipelineError, SiteError
from unlearning_adapters.pipelines.running.kept_rows import (
    LARGE,
    RowStore,
    distinct,
    give_back_memory,
    most_different,
)
from unlearning_adapters.pipelines.running.partial_run import PartialRun, StopRun
from unlearning_adapters.pipelines.running.short_calls import ShortCalls

from .hooks import count_calls, is_finite, on_input, place_of, rows_at
from .not_finite import explain_not_finite
from .sites import Site, denoisers, site_modules
from .spacing import evenly_spaced
from .text_padding import padding_once, without_padding

HIDDEN_ROWS = 64  # per prompt and step: a real video has tens of thousands of tokens, all alike


@dataclass(frozen=True)
class Recording:
    """Token rows that sites read.

    Sites that were fed the very same tensor share a group, so that nothing is stored twice: all text sites of Wan
    read one text stream.

    Args:
        rows: Per group, per prompt: rows of shape (tokens, in_features), float32, on the CPU, no two the same.
        groups: Group of each site, by the site's name.
        by_call: Of groups that were recorded in `calls`: per prompt, the rows of each call.
        padded: Whether text encoders had to read padding, for the pipeline lets it through to a site.
    """

    rows: tuple[tuple[Tensor, ...], ...]
    groups: Mapping[str, int]
    by_call: Mapping[int, tuple[tuple[Tensor, ...], ...]] = field(default_factory=dict)
    padded: bool = False

    def of(self, site_name: str) -> tuple[Tensor, ...]:
        """Return the rows of a site, one tensor per prompt."""
        return self.rows[self.groups[site_name]]

    @property
    def leaders(self) -> dict[str, str]:
        """Name of the first site of its group, by the site's name."""
        first: dict[int, str] = {}
        return {name: first.setdefault(group, name) for name, group in self.groups.items()}

    def members(self, group: int) -> list[str]:
        """Return the names of the sites of a group."""
        return [name for name, index in self.groups.items() if index == group]


def record(
    pipe: Any,
    prompts: Sequence[str],
    sites: Sequence[Site],
    *,
    images: Sequence[Any] | None = None,
    steps: int = 1,
    calls: Mapping[str, Sequence[int]] | None = None,
    batch_size: int = 16,
    seed: int | Sequence[int] = 0,
    max_rows: int | None = None,
    leaders: Mapping[str, str] | None = None,
    padded: bool = False,
    call_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
    description: str = "Recording",
) -> Recording:
    """Run a pipeline on some prompts, without guidance, and return what the sites read.

    Text encoders are not given the padding behind the prompts, unless a site is fed it: then all is recorded again.
    Each run is stopped after the last call of a site that is needed: the first call of the denoiser for text and image
    sites that `calls` does not name, and its first `steps` calls for hidden ones. Nothing is left behind, also if the
    pipeline raises.

    Args:
        pipe: A diffusers pipeline; it is used as it is, with its own loop.
        prompts: Prompts; a pipeline that takes none, Stable Video Diffusion, reads the images alone.
        sites: Sites as `find_sites` returns them.
        images: Picture of each prompt or None, for image-to-video pipelines; others ignore them.
        steps: Number of denoising steps that are recorded at hidden sites.
        calls: Calls of the denoiser, from 0, that are recorded at text and image sites, by name; others have the first.
        batch_size: Number of prompts per call of the pipeline; one where it takes no list of prompts.
        seed: Seed of the noise; one for all prompts, which then get seed, seed + 1, ..., or one per prompt.
        max_rows: Largest number of rows kept per prompt and call: at text and image sites those that differ most, so
            that words are kept and padding is not; at hidden sites evenly spaced ones, 64 unless it is set.
        leaders: By site, the one that stands for all that are fed the same tensor, as `find_shared_inputs` or an
            earlier recording of these sites and calls tells (`Recording.leaders`). Others are found in the first run,
            which then goes as far as the last site; later ones end at the last leader.
        padded: Whether text encoders are to read the padding behind the prompts as well, as an earlier recording tells
            (`Recording.padded`). Without it they are given none, unless it turns out that a site is fed it.
        call_kwargs: Further arguments of the pipeline's call, such as {"height": 480, "max_sequence_length": 512}.
        progress: Whether to show a progress bar.
        description: Its label.

    Returns:
        The rows of all sites.

    Raises:
        ConfigError: If there is no prompt or no site, or `call_kwargs` has an argument that the pipeline lacks.
        DenoiserError: If a site reads NaN or infinite numbers; the text says where they come from.
        SiteError: If a site was never called.
    """
    if not prompts or not sites:
        raise ConfigError(f"Expected prompts and sites, but got {len(prompts)} prompts and {len(sites)} sites.")
    first = {site.name: tuple(range(steps if site.kind == "hidden" else 1)) for site in sites}
    calls_by_site = {**first, **{name: tuple(wanted) for name, wanted in (calls or {}).items()}}
    check_no_cache(denoisers(pipe), 1 + max(max(wanted) for wanted in calls_by_site.values()))
    run = PartialRun(pipe, call_kwargs, any_video=all(site.kind != "hidden" for site in sites))
    seeds = [seed + index for index in range(len(prompts))] if isinstance(seed, int) else list(seed)
    pictures = list(images) if images is not None and run.image else [None] * len(prompts)

    size = 1 if run.one_by_one or any(picture is not None for picture in pictures) else batch_size
    inputs = list(zip(prompts, seeds, pictures, strict=True))
    read_padding = padded
    with tqdm(total=len(inputs), desc=description, unit="prompt", disable=not progress) as bar:
        while True:
            taps = _Taps(run, sites, calls_by_site, max_rows, leaders, len(inputs), read_padding)
            if _gather(run, taps, inputs, size, bar):
                return taps.recording()
            # Some denoisers join all prompts of a batch to one sequence of tokens, and some are fed padding.
            read_padding = read_padding or taps.needs_padding
            if taps.packed or not taps.needs_padding:  # and some pipelines take no lists of prompts
                size, read_padding = 1, padded


def _gather(
    run: PartialRun, taps: "_Taps", inputs: Sequence[tuple[str, int, Any]], size: int, bar: "tqdm[Any]"
) -> bool:
    """Run all batches of a size, prompts of one length together; tell whether what they read can be used."""
    order = sorted(range(len(inputs)), key=lambda index: len(inputs[index][0])) if size > 1 else range(len(inputs))
    bar.reset()
    for start in range(0, len(inputs), size):
        batch = order[start : start + size]
        prompts, seeds, pictures = zip(*(inputs[index] for index in batch), strict=True)
        try:
            with taps.placed(batch):
                run(prompts, seeds, pictures[0])
        except PipelineError:
            if start or not (taps.cut or size > 1):
                raise
            taps.needs_padding = bool(taps.cut)  # or it fails with padding as well, and then one by one
            return False
        if taps.packed or taps.needs_padding:
            return False
        if taps.not_finite:
            raise DenoiserError(explain_not_finite(run, taps.not_finite, prompts[0], seeds[0], pictures[0]))
        taps.check_reached()
        bar.update(len(prompts))
    return True


class _Taps:
    """Hooks on the sites, and the rows that they gathered so far."""

    def __init__(
        self,
        run: PartialRun,
        sites: Sequence[Site],
        needed: Mapping[str, tuple[int, ...]],
        max_rows: int | None,
        leaders: Mapping[str, str] | None,
        prompts: int,
        padded: bool,
    ) -> None:
        networks = denoisers(run.pipe)
        self.modules = site_modules(run.pipe, [site.name for site in sites])
        self.pipe, self.guided = run.pipe, run.guided
        self.networks = {name: networks[name] for name in dict.fromkeys(site.component for site in sites)}
        self.sites, self.needed, self.max_rows = sites, needed, max_rows
        self.leaders = dict(leaders or {})  # site -> the site of its group that is recorded
        # What text and image sites read does not depend on what a denoiser has predicted before.
        self.short = ShortCalls({} if any(site.kind == "hidden" for site in sites) else self.networks)
        self.store = RowStore()
        self.rows: dict[str, list[list[Tensor]]] = {}  # leader -> per prompt -> rows of each call
        self.prompts, self.padded = prompts, padded
        self.cut: list[int] = []  # tokens of padding that a text encoder was not given, by its call
        self.packed = False  # whether a batch's rows cannot be told apart by prompt
        self.needs_padding = False  # whether a site is fed padding, which was cut off
        self.large = False  # whether a batch takes so much memory that it should not be held until the next
        self.not_finite = ""  # the site that was fed numbers that are not finite

    @contextmanager
    def placed(self, chosen: Sequence[int]) -> Iterator[None]:
        """Hook a run over some prompts, given by index: after the first run, only one site of each group."""
        hooked_sites = [site for site in self.sites if self.leaders.get(site.name, site.name) == site.name]
        self.waiting = {(site.name, call) for site in hooked_sites for call in self.needed[site.name]}
        self.fed: dict[tuple[Any, ...], tuple[Tensor, str]] = {}
        self.chosen = chosen
        with ExitStack() as stack:
            if not self.padded:
                self.cut = stack.enter_context(without_padding(self.pipe))
            calls = count_calls(stack, self.pipe, self.networks, self._end_call)
            for site in hooked_sites:
                on_input(stack, self.modules[site.name], self._reader(site, calls))
            stack.enter_context(padding_once(self.networks.values()))
            stack.enter_context(self.short.placed(lambda name: self._is_wanted(name, calls[name] - 1)))
            try:
                yield
            finally:
                self.fed.clear()
                if self.large:
                    give_back_memory()

    def _reader(self, site: Site, calls: Counter[str]) -> Callable[[Tensor], None]:
        def read(rows: Tensor) -> None:
            key = (site.name, calls[site.component] - 1)
            if key in self.waiting:
                self.waiting.discard(key)
                self._keep(site, rows.detach())
                self._stop_if_complete()
                if not self._is_wanted(site.component, key[1]):
                    self.short.end_call(site.component)

        return read

    def _is_wanted(self, component: str, call: int) -> bool:
        """Tell whether a site of a component is still to be read in a call."""
        return any(index == call and name.startswith(f"{component}.") for name, index in self.waiting)

    def _keep(self, site: Site, tensor: Tensor) -> None:
        """Take the rows of one call, unless another site of its group has taken them."""
        if site.name not in self.leaders:
            identity = (site.kind, self.needed[site.name], *place_of(tensor))
            if site.kind == "hidden":  # large: keep alive only the last one, which its neighbour may share
                self.fed = {key: value for key, value in self.fed.items() if key[0] != "hidden" or key == identity}
            # Kept alive until the end of the run, so that an equal address means the same tensor.
            self.leaders[site.name] = self.fed.setdefault(identity, (tensor, site.name))[1]
        if self.leaders[site.name] != site.name:
            return
        if self.guided:
            tensor = tensor.chunk(2)[1]
        self.large = self.large or (tensor.device.type == "cpu" and tensor.nbytes >= LARGE)
        count = len(self.chosen)
        packed = tensor.shape[0] % count > 0 or (tensor.ndim == 2 and tensor.shape[0] != count)
        self.packed = count > 1 and (packed or (site.kind != "hidden" and _holds_negative(tensor, count)))
        finite = is_finite(tensor)
        self.needs_padding = not self.padded and not finite
        self.not_finite = "" if finite else site.name
        if self.packed or not finite:
            raise StopRun
        lists = self.rows.setdefault(site.name, [[] for _ in range(self.prompts)])
        # Frames or places that were moved into the batch stay with their prompt.
        each = tensor.numel() // tensor.shape[-1] // count
        for number, index in enumerate(self.chosen):
            first = number * each
            if site.kind == "hidden":
                rows = rows_at(tensor, [first + place for place in evenly_spaced(each, self.max_rows or HIDDEN_ROWS)])
            else:
                rows = tensor.reshape(-1, tensor.shape[-1])[first : first + each]
            rows = distinct(rows.to("cpu", torch.float32))
            lists[index].append(self.store.keep(rows if site.kind == "hidden" else most_different(rows, self.max_rows)))

    def _end_call(self, component: str, calls: int) -> None:
        """Stop waiting for the sites of a component that its call did not reach."""
        self.waiting = {
            (name, call) for name, call in self.waiting if call >= calls or not name.startswith(f"{component}.")
        }
        self._stop_if_complete()

    def _stop_if_complete(self) -> None:
        if not self.waiting:
            raise StopRun

    def check_reached(self) -> None:
        """Raise `SiteError` if a site was never called."""
        missing = [site.name for site in self.sites if self.leaders.get(site.name) not in self.rows]
        if missing:
            raise SiteError(
                f"{len(missing)} of {len(self.sites)} sites were never called in a run of the pipeline, the first is "
                f"{missing[0]!r}. Leave them out by a pattern, or pass a larger num_inference_steps in call_kwargs so "
                "that each denoiser takes part."
            )

    def recording(self) -> Recording:
        """Return what was gathered."""
        index = {leader: group for group, leader in enumerate(self.rows)}
        rows = tuple(tuple(map(self._of_all_calls, per_prompt)) for per_prompt in self.rows.values())
        several = {
            index[site.name]: tuple(tuple(calls) for calls in self.rows[site.name])
            for site in self.sites
            if site.name in index and site.kind != "hidden" and len(self.needed[site.name]) > 1
        }
        groups = {site.name: index[self.leaders[site.name]] for site in self.sites}
        return Recording(rows, groups, several, self.padded)

    def _of_all_calls(self, calls: Sequence[Tensor]) -> Tensor:
        return calls[0] if len(calls) == 1 else self.store.keep(distinct(torch.cat(list(calls))))


def _holds_negative(tensor: Tensor, count: int) -> bool:
    """Whether a tensor holds one prompt `count` times before or behind that many others: guidance in one call."""
    halves = tensor.split(count)
    same = [bool((half == half[:1]).all()) for half in halves]
    return len(halves) == 2 and same[0] is not same[1]


def check_no_cache(networks: Mapping[str, nn.Module], steps: int) -> None:
    """Raise `DenoiserError` if several steps are to be recorded and a denoiser has a cache that skips blocks."""
    for name, network in networks.items():
        if steps > 1 and getattr(network, "is_cache_enabled", False):
            raise DenoiserError(
                f"The {name} has a cache that skips blocks, so {steps} steps cannot be recorded. Call "
                f"pipe.{name}.disable_cache() first."
            )
