"""Hooks on the layers that read video tokens, and the moments of what they read; no token is kept."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from unlearning_adapters.methods.moments import Moments
from unlearning_adapters.pipelines.hooks import count_calls, on_input, place_of
from unlearning_adapters.pipelines.sites import Site, denoisers, site_module


class VideoMoments:
    """What sites read of noised clips, in moments; sites that are fed the same tensor share theirs.

    Args:
        pipe: A diffusers pipeline.
        sites: Its layers that read video tokens.
    """

    def __init__(self, pipe: Any, sites: Sequence[Site]) -> None:
        networks = denoisers(pipe)
        self.pipe = pipe
        self.modules = {site.name: site_module(pipe, site.name) for site in sites}
        self.networks = {name: networks[name] for name in dict.fromkeys(site.component for site in sites)}
        self.leaders: dict[str, str] = {}  # site -> the first site that was fed the same tensor
        self.sums: dict[str, Moments] = {}

    @contextmanager
    def placed(self, scenes: int, copies: int, weight: float) -> Iterator[None]:
        """Hook a run over some scenes, each in so many copies.

        Args:
            scenes: Number of scenes in the batch.
            copies: 1 for a scene that must not change; else its first clip is led to its second, and others must stay.
            weight: Weight of each token.
        """
        inputs: list[tuple[Any, str, Tensor]] = []
        with ExitStack() as stack:
            calls = count_calls(stack, self.pipe, self.networks, lambda *_: inputs.clear())
            for name, module in self.modules.items():
                if self.leaders.get(name, name) == name:
                    on_input(stack, module, self._reader(name, calls, inputs, (scenes, copies), weight))
            yield

    def _reader(
        self,
        name: str,
        calls: Counter[str],
        fed: list[tuple[Any, str, Tensor]],
        batch: tuple[int, int],
        weight: float,
    ) -> Callable[[Tensor], None]:
        def read(tensor: Tensor) -> None:
            if calls.total() < 2:  # the first call of all reads noise alone
                return
            if name not in self.leaders:
                place = place_of(tensor)
                shared = bool(fed) and fed[0][0] == place
                self.leaders[name] = fed[0][1] if shared else name
                fed[:] = [(place, self.leaders[name], tensor)]  # alive, so that an equal address is the same tensor
            if self.leaders[name] == name:
                self._add(name, tensor.detach(), batch, weight)

        return read

    def _add(self, name: str, tensor: Tensor, batch: tuple[int, int], weight: float) -> None:
        width = tensor.shape[-1]
        sums = self.sums.setdefault(name, Moments(width))
        sides = tensor.reshape(*batch, -1, width).unbind(1)  # frames and places that were moved into the batch stay
        clips = [side.flatten(0, 1) for side in sides]
        if len(clips) > 1:
            sums.add_pair(clips[0], clips[1], weight)
        for rows in clips[2:] if len(clips) > 1 else clips:
            sums.add_kept(rows, weight)
