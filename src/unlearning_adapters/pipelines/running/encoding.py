"""Clips as the latents that a pipeline steps: encoded by its own VAE, and laid out as its own call lays them out.

Between its last step and its VAE each pipeline unpacks, permutes, scales and shifts latents in its own way. That way is
read off a run: known numbers take the place of the last step's latents, and the VAE is seen to get them. As long as
each number goes to one place and is scaled there, it can be gone backwards, whatever the code of the pipeline.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.errors import DenoiserError

from .clean_latents import exchanged
from .partial_run import PartialRun, StopRun

EXACT = {torch.float32, torch.float64}
BASES = (16, 1024)  # digits that are told apart in half precision, and in full
CHECKS = (0.05, 1e-3)  # largest relative error of the way that was found, likewise
FRAMES_AT_ONCE = 8  # that an image VAE encodes
NO_WAY = "Leave out the clips, so that the pipeline makes its own."


@dataclass(frozen=True)
class LatentLayout:
    """How the latents that a pipeline steps lie in what its VAE decodes: `decoded[places] = shift + scale * latents`.

    Args:
        pipe: The pipeline.
        latents: Shape of a clip's latents, as they are stepped.
        decoded: Shape of what the VAE decodes.
        places: Where each latent is in it, flattened.
        scale: Factor of each latent.
        shift: Offset of each latent.
        size: Frames, height and width of a decoded clip, in pixels.
    """

    pipe: Any
    latents: tuple[int, ...]
    decoded: tuple[int, ...]
    places: Tensor
    scale: Tensor
    shift: Tensor
    size: tuple[int, int, int]

    def stepped(self, decoded: Tensor) -> Tensor:
        """Return the latents that the pipeline would decode as these."""
        return ((decoded.flatten()[self.places] - self.shift) / self.scale).reshape(self.latents)

    def encoded(self, frames: Any) -> Tensor:
        """Return the latents of a clip, laid out as the pipeline steps them, float32 on the CPU.

        Args:
            frames: Array of shape (frames, height, width, 3), uint8, of the pipeline's own size.

        Raises:
            DenoiserError: If the VAE encodes to another shape than it decodes.
        """
        vae = self.pipe.components["vae"]
        pixels = torch.from_numpy(frames).to(vae.dtype) / 127.5 - 1
        pixels = pixels.permute(0, 3, 1, 2)
        parts = pixels.split(FRAMES_AT_ONCE) if len(self.decoded) == 4 else (pixels.transpose(0, 1)[None],)
        place = getattr(self.pipe, "_execution_device", vae.device)
        with torch.no_grad():
            found = torch.cat([_mode(vae.encode(part.to(place))).float().cpu() for part in parts])
        if tuple(found.shape) != self.decoded:
            raise DenoiserError(
                f"The VAE of {type(self.pipe).__name__} encodes a clip of {self.size} frames and pixels to the shape "
                f"{tuple(found.shape)}, but decodes it from {self.decoded}. {NO_WAY}"
            )
        return self.stepped(found).float()


def latent_layout(run: PartialRun, prompt: str, image: Any = None) -> LatentLayout:
    """Find out how the latents that a pipeline steps lie in what its VAE decodes, by a few short runs.

    Args:
        run: The pipeline with its call, with few steps.
        prompt: Any prompt.
        image: Picture for an image-to-video pipeline.

    Raises:
        DenoiserError: If it has no VAE that encodes, or does more to latents than to scale, shift and move them.
    """
    vae = run.pipe.components.get("vae")
    if not callable(getattr(vae, "encode", None)) or not callable(getattr(vae, "decode", None)):
        raise DenoiserError(f"{type(run.pipe).__name__} has no VAE that encodes the given clips. {NO_WAY}")
    probe = _Probe(run, vae, prompt, image)
    shift = probe.decoded(torch.zeros_like, whole=True)
    scale = probe.decoded(torch.ones_like) - shift
    moved = scale.abs() > 1e-6 * scale.abs().max()  # what the pipeline puts there itself stays
    count, index = prod(probe.latents), torch.zeros(int(moved.sum()), dtype=torch.int64, device="cpu")
    exact = vae.dtype in EXACT and probe.kind in EXACT
    base, unit = BASES[exact], 1
    while unit < count:
        digits = torch.arange(count, device="cpu").div(unit, rounding_mode="floor") % base
        found = probe.decoded(_in_place_of(digits))
        index += unit * ((found - shift)[moved] / scale[moved]).round().long()
        unit *= base
    maker = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(count, generator=maker, dtype=torch.float32, device="cpu")
    found = probe.decoded(_in_place_of(noise))
    order = index.argsort()
    if torch.equal(index[order], torch.arange(count, device="cpu")):
        places = moved.nonzero().flatten()[order]
        layout = LatentLayout(run.pipe, probe.latents, probe.shape, places, scale[places], shift[places], probe.size)
        error = (layout.stepped(found).flatten() - noise).norm() / noise.norm()
        if error < CHECKS[exact]:
            return layout
    raise DenoiserError(
        f"{type(run.pipe).__name__} does more to its latents before they are decoded than to scale, shift and move "
        f"them, so that given clips cannot be laid out like them. {NO_WAY}"
    )


def _in_place_of(values: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that puts values in the place of latents."""
    return lambda latents: values.reshape(latents.shape).to(latents)


class _Probe:
    """Runs of a pipeline whose last latents are exchanged, and what its VAE then gets to decode."""

    def __init__(self, run: PartialRun, vae: Any, prompt: str, image: Any) -> None:
        self.run, self.vae, self.prompt, self.image = run, vae, prompt, image
        self.latents: tuple[int, ...] = ()
        self.shape: tuple[int, ...] = ()
        self.size = (0, 0, 0)
        self.kind = torch.float32  # number type of the latents
        if "output_type" in run.arguments:
            run.arguments["output_type"] = "pt"

    def decoded(self, change: Callable[[Tensor], Tensor], whole: bool = False) -> Tensor:
        """Return what the VAE gets if the last latents are changed, flattened; `whole` decodes it as well."""
        seen: list[Tensor] = []
        sizes: list[tuple[int, ...]] = []

        def exchange(scheduler: Any, step: int, latents: Tensor) -> Tensor | None:
            if step + 1 < len(scheduler.timesteps):
                return None
            self.latents, self.kind = tuple(latents.shape), latents.dtype
            return change(latents)

        def see(decode: Any, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(latents.detach().to("cpu", torch.float32))
            if not whole and sum(map(len, seen)) == self.shape[0]:
                raise StopRun
            result = decode(latents, *args, **kwargs)
            sizes.append(tuple((result[0] if isinstance(result, tuple) else result.sample).shape))
            return result

        @contextmanager
        def around(pipe: Any) -> Iterator[None]:
            with exchanged(pipe, exchange), _decoding(self.vae, see):
                yield

        before, self.run.around = self.run.around, around
        try:
            self.run([self.prompt], [0], self.image)
        finally:
            self.run.around = before
        if not seen or not self.latents:
            raise DenoiserError(f"{type(self.run.pipe).__name__} never stepped or never decoded its latents. {NO_WAY}")
        found = torch.cat(seen)
        if whole:
            self.shape = tuple(found.shape)
            frames = sum(size[0] for size in sizes) if found.ndim == 4 else sizes[0][2]
            self.size = (frames, sizes[0][-2], sizes[0][-1])
        return found.flatten().double()


@contextmanager
def _decoding(vae: Any, see: Callable[..., Any]) -> Iterator[None]:
    """Show what this thread decodes."""
    thread, decode, own = threading.get_ident(), vae.decode, vars(vae).get("decode")

    def seen(*args: Any, **kwargs: Any) -> Any:
        return see(decode, *args, **kwargs) if threading.get_ident() == thread else decode(*args, **kwargs)

    vars(vae)["decode"] = seen
    try:
        yield
    finally:
        if own is None:
            del vars(vae)["decode"]
        else:
            vars(vae)["decode"] = own


def _mode(encoded: Any) -> Tensor:
    """Return the likeliest latents of what a VAE encodes."""
    distribution = getattr(encoded, "latent_dist", None)
    if distribution is not None:
        return torch.as_tensor(distribution.mode())
    return torch.as_tensor(encoded.latent if hasattr(encoded, "latent") else encoded.latents)
