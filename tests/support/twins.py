"""Two equal pipelines: one with unlearning adapters, and a stock one on which only the LoRA verbs are called.

What each site must compute is then read off the stock one, whatever a LoRA does to it: the stock site on the input
`x (I - V G^+ L A)^T`, by a dense matrix (tests/reference.py) in a plain torch hook. No code of the package is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from copies import copier
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from reference import dense_edit
from tiny import cast, tiny_wan_transformer
from torch import Tensor, nn

from planted import bits, output, planted
from unlearning_adapters.adapter.adapter import UnlearningAdapter

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
LEFT = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of a direction, beyond what its strength leaves
OTHERS = ("transformer.blocks.1.ffn.net.2", "transformer.blocks.0.attn1.to_q")


def bare_pipeline(dtype: torch.dtype = torch.float32) -> WanPipeline:
    """A pipeline of a denoiser alone."""
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": FlowMatchEulerDiscreteScheduler()}
    return WanPipeline(**parts, transformer=_copier(dtype)())


@cache
def _copier(dtype: torch.dtype) -> Callable[[], WanTransformer3DModel]:
    """Return what makes copies of one denoiser, for hundreds of twins are made."""
    with torch.random.fork_rng(devices=[]):
        transformer = tiny_wan_transformer(heads=2)
    if dtype != torch.float32:
        cast(transformer, dtype)
    return copier(transformer)


@cache
def _adapters(dtype: torch.dtype, rank: int) -> dict[str, UnlearningAdapter]:
    pipe = bare_pipeline(dtype)
    return {name: planted(pipe, name, seed=seed, rank=rank) for seed, name in enumerate(("red", "blue"))}


class Twins:
    """A pipeline under test and its stock twin, and which adapters must act on the first."""

    def __init__(self, dtype: torch.dtype = torch.float32, rank: int = 2) -> None:
        self.dtype = dtype
        self.ours, self.stock = bare_pipeline(dtype), bare_pipeline(dtype)
        self.known = dict(_adapters(dtype, rank))
        self.acting: dict[str, float] = {}
        self.base = {name: bits(value) for name, value in self.stock.transformer.state_dict().items()}
        self.tree = tree(self.stock)

    def lora(self, seed: int = 9, rank: int = 2) -> dict[str, Tensor]:
        """A LoRA that reads just what the adapters remove, at their sites and at others."""
        maker = torch.Generator().manual_seed(seed)
        factors: dict[str, Tensor] = {}
        for site in (*self.known["red"].sites, *OTHERS):
            weight = layer_at(self.stock, site).weight
            read = torch.randn(rank, weight.shape[1], generator=maker) / weight.shape[1] ** 0.5
            if site in self.known["red"].directions:
                wanted = sum(adapter.directions[site].read for adapter in self.known.values())
                read[: len(wanted)] = wanted
            factors[f"{site}.lora_A.weight"] = read
            factors[f"{site}.lora_B.weight"] = torch.randn(weight.shape[0], rank, generator=maker)
        return factors

    def both(self, verb: Callable[[Any], Any]) -> None:
        """Call a LoRA verb on both pipelines; what stock refuses must be refused with adapters too."""
        errors = []
        for pipe in (self.stock, self.ours):
            with quiet():
                try:
                    verb(pipe)
                    errors.append(None)
                except Exception as error:  # noqa: BLE001
                    errors.append(type(error))
        assert errors[0] is errors[1], f"stock: {errors[0]}, with adapters: {errors[1]}"

    def edits(self) -> dict[str, Tensor]:
        """The dense matrix of what acts, by path."""
        matrices = {}
        for site in self.known["red"].sites if self.acting else ():
            here = [(self.known[name].directions[site], strength) for name, strength in self.acting.items()]
            reads, writes = ([getattr(d, part).double().numpy() for d, _ in here] for part in ("read", "write"))
            matrix = dense_edit(reads, writes, [strength for _, strength in here])
            matrices[site.removeprefix("transformer.")] = torch.from_numpy(matrix)
        return matrices

    def check(self, scale: float | None = None) -> None:
        """Compare what the whole denoiser predicts, and what each site does with the directions themselves."""
        with quiet(), edited_inputs(self.stock, self.edits()):
            expected = output(self.stock, scale=scale)
        with quiet():
            found = output(self.ours, scale=scale)
        assert near(found, expected, CLOSE[self.dtype]), f"off by {(found - expected).abs().max():g}"
        if scale is None:
            self.check_sites()

    @torch.no_grad()
    def check_sites(self) -> None:
        """The erasure itself: what a site makes of a direction is that of the stock site, times 1 - strength."""
        for path, matrix in self.edits().items():
            for name, strength in self.acting.items():
                write = self.known[name].directions[f"transformer.{path}"].write.to(self.dtype)
                zero = torch.zeros_like(write)
                site, stock = at(self.ours, path), at(self.stock, path)
                raw, edited = (stock(rows) - stock(zero) for rows in (write, edit(write, matrix)))
                made = site(write) - site(zero)
                assert near(made, edited, CLOSE[self.dtype] * raw.float().abs().max())
                if len(self.acting) == 1:
                    left = (made.float().norm() / raw.float().norm()).item()
                    assert abs(left - abs(1 - strength)) <= LEFT[self.dtype], f"{path} keeps {left:g} of {name}"

    def check_same_bits(self) -> None:
        """After all is taken off: the weights are those of the stock twin bit for bit, and nothing else is left."""
        ours, stock = (
            {name: bits(value) for name, value in denoiser(pipe).state_dict().items()}
            for pipe in (self.ours, self.stock)
        )
        assert ours.keys() == stock.keys()
        assert [name for name in ours if not torch.equal(ours[name], stock[name])] == []
        assert tree(self.ours) == tree(self.stock)
        assert traces(self.ours) == []


def tree(pipe: Any) -> list[tuple[str, type]]:
    """Every module of the denoiser and what it is."""
    return [(name, type(module)) for name, module in denoiser(pipe).named_modules()]


def traces(pipe: Any) -> list[str]:
    """Whatever of the package is still on a denoiser."""
    found = ["the editor"] if "_unlearning_adapters" in denoiser(pipe).__dict__ else []
    for name, module in denoiser(pipe).named_modules():
        found += [f"{name}: {key}" for key in ("_diffusers_hook", "forward") if key in module.__dict__]
        found += [f"{name}: hook" for _ in (*module._load_state_dict_post_hooks, *module._state_dict_pre_hooks)]
    return found


def denoiser(pipe: Any) -> nn.Module:
    """The denoiser, also inside of a `PeftModel` or compiled."""
    network = getattr(pipe.transformer, "_orig_mod", pipe.transformer)
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def at(pipe: Any, path: str) -> nn.Module:
    """The outermost module at a path."""
    return denoiser(pipe).get_submodule(path)


def layer_at(pipe: Any, site: str) -> nn.Module:
    """The layer itself."""
    module = at(pipe, site.removeprefix("transformer."))
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def edit(x: Tensor, matrix: Tensor) -> Tensor:
    """`x (I - V G^+ L A)^T`, in float64, rounded once."""
    return (x.double() @ matrix.T).to(x.dtype)


@contextmanager
def edited_inputs(pipe: Any, matrices: Mapping[str, Tensor]) -> Iterator[None]:
    """The sites of a stock pipeline read edited inputs."""
    handles = [
        at(pipe, path).register_forward_pre_hook(lambda _, args, matrix=matrix: (edit(args[0], matrix), *args[1:]))
        for path, matrix in matrices.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT and diffusers warn of nearly everything that is tested here; what this package warns of stays an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*unlearning adapter")
        yield


def near(found: Tensor, expected: Tensor, tolerance: float | Tensor) -> bool:
    """Whether two results are equal but for rounding."""
    return bool((found.float() - expected.float()).abs().max() <= tolerance * (1 + expected.float().abs().max()))


def copied(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA whose tensors are not those that were loaded before."""
    return {key: value.clone() for key, value in factors.items()}


def load(pipe: Any, factors: Mapping[str, Tensor], name: str, **options: Any) -> None:
    """Load a LoRA by the verb of the pipeline."""
    pipe.load_lora_weights(copied(factors), adapter_name=name, **options)
