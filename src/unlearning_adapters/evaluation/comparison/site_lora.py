"""A LoRA on sites, `W' = W + B A`, which acts for a moment by hooks on what the layers return; no module is replaced.

So it acts on layers of every kind, quantised ones too, can be trained through, and is gone without a trace. Its tensors
have the names and the meaning of diffusers' and PEFT's own files: lora_alpha is the rank, so that the scale is 1.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearning_adapters.errors import AdapterFileError
from unlearning_adapters.pipelines.hooks import after_calls
from unlearning_adapters.pipelines.running.compiling import any_compiled, eager
from unlearning_adapters.pipelines.sites import Site, site_module

FACTOR = re.compile(r"(?P<site>.+)\.lora_(?P<factor>[AB])\.weight")


@dataclass(frozen=True)
class SiteLora:
    """The two factors per site, by the site's name.

    Args:
        factors: A of shape (rank, in_features) and B of shape (out_features, rank), float32.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(next(iter(self.factors.values()))[0])

    @property
    def parameters(self) -> list[Tensor]:
        """All factors."""
        return [factor for pair in self.factors.values() for factor in pair]

    @contextmanager
    def acting(self, pipe: Any) -> Iterator[None]:
        """Let the LoRA act on a pipeline; afterwards the pipeline is what it was, bit for bit."""
        with ExitStack() as stack:
            for name, (down, up) in self.factors.items():
                after_calls(stack, site_module(pipe, name), _adds(down, up))
            stack.enter_context(eager(any_compiled(pipe.components.values())))
            yield

    def tensors(self) -> dict[str, Tensor]:
        """Return the factors by the names of a LoRA file of diffusers, on the CPU."""
        tensors = {}
        for site, (down, up) in self.factors.items():
            tensors[f"{site}.lora_A.weight"] = down.detach().cpu().contiguous()
            tensors[f"{site}.lora_B.weight"] = up.detach().cpu().contiguous()
        return tensors


def start_lora(pipe: Any, sites: Sequence[Site], rank: int, seed: int) -> SiteLora:
    """Return a LoRA that can be trained and does nothing yet: A uniform in +-1 / sqrt(in_features), as PEFT's, B zero.

    Args:
        pipe: The pipeline; factors lie where its weights are.
        sites: The sites.
        rank: Rank at every site.
        seed: Seed of A.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    factors = {}
    for site in sites:
        down = (
            2 * torch.rand(rank, site.in_features, generator=generator, dtype=torch.float32, device="cpu") - 1
        ) / site.in_features**0.5
        place = _device(site_module(pipe, site.name))
        factors[site.name] = (
            down.to(place).requires_grad_(),
            torch.zeros(site.out_features, rank, dtype=torch.float32, device=place, requires_grad=True),
        )
    return SiteLora(factors)


def lora_from(pipe: Any, tensors: Mapping[str, Tensor], source: str) -> SiteLora:
    """Return the LoRA of a file's tensors, after a check against the layers of a pipeline.

    Args:
        pipe: The pipeline.
        tensors: What `SiteLora.tensors` returned.
        source: What an error calls the file.

    Raises:
        AdapterFileError: If a name is none of a LoRA, a factor is missing, or one does not fit its layer.
        SiteError: If the pipeline has no such layer.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = FACTOR.fullmatch(name)
        if not match:
            raise AdapterFileError(f"The tensor {name!r} in {source} is not a factor of a LoRA. Remove the file.")
        pairs.setdefault(match["site"], {})[match["factor"]] = tensor
    factors = {}
    for site, pair in pairs.items():
        layer: Any = site_module(pipe, site)
        rank = len(next(iter(pair.values())))
        shapes = {name: tuple(tensor.shape) for name, tensor in sorted(pair.items())}
        expected = {"A": (rank, layer.in_features), "B": (layer.out_features, rank)}
        if (
            shapes.keys() != expected.keys()
            or shapes["A"][1] != layer.in_features
            or shapes["B"][0] != layer.out_features
        ):
            raise AdapterFileError(
                f"Expected the factors of {site!r} in {source} to have the shapes {expected}, but got {shapes}. "
                "It belongs to another model; remove the file."
            )
        place = _device(layer)
        factors[site] = (pair["A"].float().to(place), pair["B"].float().to(place))
    return SiteLora(factors)


def _adds(down: Tensor, up: Tensor) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        read = (args[0] if args else next(iter(kwargs.values()))).float()
        edited: Tensor = out + (read @ down.T.to(read.device) @ up.T.to(read.device)).to(out.dtype)
        return edited

    return hook


def _device(layer: nn.Module) -> torch.device:
    """Return where a layer's weight is; the CPU for one that is offloaded."""
    weight = next(layer.parameters()).device
    return torch.device("cpu") if weight.type == "meta" else weight
