"""`unlearn verify`: whether the weights of a checkpoint hold an adapter, at which strength, and what else differs."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from unlearning_adapters.cli.command import CommandResult, command
from unlearning_adapters.cli.open import LOADERS, open_pipeline
from unlearning_adapters.errors import ConfigError

Tensors = dict[str, Callable[[], Any]]
EXACT = 1e-3  # share of an edit that may be left over beside what rounding explains
SHOWN = 5


@dataclass(frozen=True)
class SiteStrength:
    """What the weight of a site holds.

    Args:
        site: Its name.
        strength: Strength that explains most of the difference from the base (least squares), gain apart.
        left: Norm of what it does not explain, relative to the norm of the edit at strength 1.
        allowed: How much of that rounding to the weight's number type explains.
    """

    site: str
    strength: float
    left: float
    allowed: float

    @property
    def explained(self) -> bool:
        """Whether nothing but the adapter changed the weight."""
        return self.left <= EXACT + self.allowed


@command("verify", "say whether a fused checkpoint holds an adapter, and what else differs from the base")
@click.argument("model", metavar="MODEL_DIR", help="a pipeline in diffusers' layout")
@click.option("--adapter", required=True, metavar="ADAPTER", help="an adapter file, its folder, or a Hub repository")
@click.option(
    "--base", metavar="PIPELINE", help="'shapeworld', 'castworld' or a local folder (default: the base of the adapter)"
)
def verify(model: str, adapter: str, base: str | None) -> CommandResult:
    """Compare the checkpoint with the base, tensor by tensor."""
    from unlearning_adapters.adapter.adapter import load_adapter

    expected = load_adapter(adapter)
    current, old = folder_tensors(model), base_tensors(base or expected.info.base_model)
    sites = [site_strength(expected, site, old, current) for site in expected.sites]
    edited = {f"{site}.weight" for site in expected.sites}
    others = sorted(
        name for name in current.keys() & old.keys() if name not in edited and _differs(current[name], old[name])
    )
    odd = [site.site for site in sites if not site.explained]
    strengths = [site.strength for site in sites]
    low, high = min(strengths), max(strengths)
    holds = not odd and low > 0.01 and high - low <= 0.02 + 0.02 * high
    lines = [_verdict(expected.info.concept, holds, low, high, odd, len(sites))]
    lines += [
        f"  {site}: the difference from the base is not this adapter alone" for site in odd[:SHOWN] if high > 0.01
    ]
    lines.append(
        _listed(f"{len(others)} other tensors differ from the base" if others else "nothing else differs", others)
    )
    missing = sorted(old.keys() - current.keys())
    if missing:
        lines.append(_listed(f"{len(missing)} tensors of the base are not in it", missing))
    data = {
        "holds": holds, "concept": expected.info.concept, "strength": [low, high],
        "sites": [asdict(site) for site in sites], "unexplained": odd, "others": others, "missing": missing,
    }  # fmt: skip
    return CommandResult(data, "\n".join(lines), 0 if holds else 1)


def site_strength(adapter: Any, site: str, base: Tensors, model: Tensors) -> SiteStrength:
    """Return at which strength the weight of a site holds an adapter.

    The edit is linear in the strength, `W - W' = lam E`, so that `lam = <W - W', E> / <E, E>`; `E` is the edit of
    strength 1 with the site's gain (docs/maths.md 5).

    Raises:
        ConfigError: If the checkpoint or the base has no such weight, or another shape.
    """
    import torch

    from unlearning_adapters.runtime.joint.joint_edit import edited_weight, stack_directions

    name, direction = f"{site}.weight", adapter.directions[site]
    if name not in base or name not in model:
        where = "base" if name not in base else "checkpoint"
        raise ConfigError(f"The {where} has no tensor {name!r}. Check --base, and that both are of the same kind.")
    old, new = base[name](), model[name]()
    if old.shape != new.shape:
        raise ConfigError(f"{name} has the shape {tuple(new.shape)}, and that of the base is {tuple(old.shape)}.")
    rounding = float(torch.finfo(new.dtype).eps) * float(new.double().norm())
    wide = old.float()
    edit = (wide - edited_weight(wide, stack_directions([direction], [direction.gain]))).double()
    change, size = wide.double() - new.double(), float(edit.norm())
    strength = float((change * edit).sum()) / size**2
    left = float((change - strength * edit).norm()) / size
    return SiteStrength(site, strength, left, rounding / size)


def folder_tensors(folder: str | Path) -> Tensors:
    """Return how to read each tensor of a folder in diffusers' layout, named "<component>.<tensor>".

    Raises:
        ConfigError: If it is no such folder.
    """
    files = sorted(Path(folder).glob("*/*.safetensors"))
    if not (Path(folder) / "model_index.json").is_file() or not files:
        raise ConfigError(f"{str(folder)!r} holds no pipeline in diffusers' layout with safetensors files.")
    return dict(_tensors(files))


def base_tensors(source: str) -> Tensors:
    """Return how to read each tensor of the base: an embedded model or a local folder."""
    name = Path(source).name
    if name not in LOADERS:
        return folder_tensors(source)
    pipe = open_pipeline(name)
    return {
        f"{part}.{key}": partial(_same, value)
        for part, module in pipe.components.items()
        if hasattr(module, "state_dict")
        for key, value in module.state_dict().items()
    }


def _same(value: Any) -> Any:
    return value


def _tensors(files: list[Path]) -> Iterator[tuple[str, Callable[[], Any]]]:
    from safetensors import safe_open

    def reader(path: Path, key: str) -> Callable[[], Any]:
        def read() -> Any:
            with safe_open(path, "pt") as file:
                return file.get_tensor(key)

        return read

    for path in files:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                yield f"{path.parent.name}.{key}", reader(path, key)


def _differs(one: Callable[[], Any], other: Callable[[], Any]) -> bool:
    import torch

    first, second = one(), other()
    return first.shape != second.shape or not torch.equal(first.to(second.dtype), second)


def _verdict(concept: str, holds: bool, low: float, high: float, odd: list[str], count: int) -> str:
    if holds:
        return f"holds {concept} at strength {(low + high) / 2:.3f}, in all {count} layers"
    if high <= 0.01 and not odd:
        return f"does not hold {concept}: its {count} layers are those of the base"
    if len(odd) == count:
        return f"does not hold {concept}, or not alone: something else changed its {count} layers"
    span = f"strengths from {low:.3f} to {high:.3f}"
    return f"holds {concept} in part: {span}, and {len(odd)} of {count} layers differ otherwise"


def _listed(text: str, names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{text}: {', '.join(names[:SHOWN])}{more}" if names else text
