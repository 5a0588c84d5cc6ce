"""Settings of a build, checked once, where they are made."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args

from .errors import ConfigError


class MethodEntry(NamedTuple):
    """Where the record of a method is, "file:RECORD" in `methods/`, and the settings of `BuildConfig` that it uses."""

    record: str
    settings: tuple[str, ...] = ()


# In the order in which a search offers them: the numbers of its seeded trials rest on it.
METHODS: Mapping[str, MethodEntry] = {
    "ridge": MethodEntry("ridge:RIDGE", ("rank", "epsilon", "landing")),
    "cpca": MethodEntry("paper:CPCA", ("components", "contrast")),
    "mean": MethodEntry("paper:MEAN"),
    "pca": MethodEntry("paper:PCA", ("rank", "components")),
    "leace": MethodEntry("leace:LEACE"),
    "uce": MethodEntry("uce:UCE"),
    "rece": MethodEntry("uce:RECE", ("rounds",)),
    "cure": MethodEntry("cure:CURE", ("sharpness",)),
    "random": MethodEntry("control:RANDOM"),
}
MAX_STRENGTH = 4.0
MAX_RANK = 64
Landing = Literal["majority", "mean"]
Scope = Literal["word", "concept"]
DEFAULT_EPSILON = 0.001
DEFAULT_PAIRS = 5  # as in the paper
MAX_CALIBRATED_STRENGTH = 2.0
# Settings that are whole numbers, with their limits.
INTEGERS = (
    ("rank", 1, MAX_RANK), ("rounds", 0, 10), ("components", 1, 100_000), ("steps", 1, 1000), ("batch_size", 1, 4096),
    ("pairs", 1, 1_000_000), ("soft_prompts", 0, 32), ("seed", 0, 2**63 - 1),
)  # fmt: skip


@dataclass(frozen=True)
class BuildConfig:
    """How to build an adapter.

    Args:
        method: "ridge" (default), the paper's "mean" and "cpca", "pca", "leace", the edits of other works "uce",
            "rece" and "cure", or the control "random".
        rank: Number of directions per site, 1 to 64; "mean", "cpca", "leace" and "random" have rank 1, and "uce",
            "rece" and "cure" the rank that they need.
        components: Number k of principal components of "pca" and "cpca".
        contrast: Weight alpha >= 0 of the neutral covariance in "cpca".
        epsilon: Regularisation of "ridge", > 0, as a share of the mean eigenvalue of the neutral second moment.
        landing: Where "ridge" leads the concept at text sites: mostly to what most pairs agree on in its place
            ("majority"), or to the mean of all pairs ("mean"), a mixture where the safe sides show different things.
        rounds: Number of times that "rece" attacks its own edit and erases what it finds, 0 to 10; 0 is UCE.
        sharpness: Expansion of the spectrum of "cure", >= 1; its paper takes 2, and 5 for nudity.
        strength: Part of the direction that is removed, 0 to 4; None calibrates it on the pairs ("ridge"), or is 1.
        sites: "text" (inputs that depend on the prompt alone), "text-in-blocks" (the same without layers that prepare
            the prompt in front of the blocks, to which sglang and FastVideo load no LoRA), "text-projection" (that
            layer alone: the one for dozens of names, docs/recipes.md), "image" (on the picture alone), "hidden"
            (attention output and feed-forward inputs), a glob pattern over names such as
            "transformer.blocks.0.attn2.to_k", or several of these. None takes "text" if the prompts of the pairs
            differ, and "image" if their pictures do and the pipeline has such sites.
        scope: What is forgotten: what prompts and pictures say ("word"), or also what the model draws of itself where
            they leave it open ("concept"). The latter adds directions at video tokens, from clips of the pairs.
        soft_prompts: With the scope "concept", number of soft prompts that are learned against the edit, one after the
            other, and erased as well, 0 to 32. Each takes 200 training steps of the denoiser, with a gradient of the
            soft prompt alone.
        blocks: Indices of the transformer blocks whose sites are used; None uses all.
        block_strengths: Factor of the strength in a block, 0 to 4, by the index of the block; other blocks
            take 1. Strength and factor together are at most 4. None takes 1 everywhere.
        shrinkage: How far a stack of adapters that all have one leaves the exact joint edit, 0 (the default) to 1. With
            dozens of names it spares others that are not named; an adapter alone acts the same (docs/recipes.md), and
            so do "uce", "rece" and "cure", which are added as they are.
        steps: Number of denoising steps that are recorded for "hidden" sites.
        pairs: Number of the concept's pairs that are used, the first ones; None uses five, or all if there are fewer.
        seed: Seed of the noise and of the "random" method.
        batch_size: Number of prompts per call of the pipeline.
    """

    method: str = "ridge"
    rank: int = 1
    components: int = 100
    contrast: float = 1.0
    epsilon: float = DEFAULT_EPSILON
    landing: Landing = "majority"
    rounds: int = 3
    sharpness: float = 2.0
    strength: float | None = None
    sites: str | tuple[str, ...] | None = None
    scope: Scope = "word"
    soft_prompts: int = 0
    blocks: tuple[int, ...] | None = None
    block_strengths: Mapping[int, float] | None = field(default=None, hash=False)  # a dictionary has no hash
    shrinkage: float = 0.0
    steps: int = 4
    pairs: int | None = None
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("landing", get_args(Landing)), ("scope", get_args(Scope))):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ConfigError(f"Expected `{name}` to be one of {', '.join(known)}, but got {value!r:.80}.")
        for name, low, high in INTEGERS:
            if name != "pairs" or self.pairs is not None:
                object.__setattr__(self, name, _integer(name, getattr(self, name), low, high))
        for name, least, limit in (("contrast", 0, ">= 0"), ("epsilon", None, "> 0"), ("sharpness", 1, ">= 1")):
            value = getattr(self, name)
            if not is_number(value) or not (value > 0 if least is None else value >= least):
                raise ConfigError(f"Expected `{name}` to be a number {limit}, but got {value!r:.80}.")
            object.__setattr__(self, name, _plain(value))
        object.__setattr__(self, "shrinkage", check_shrinkage(self.shrinkage))
        if self.strength is not None:
            check_strength(self.strength)
            object.__setattr__(self, "strength", _plain(self.strength))
        if self.rank > 1 and "rank" not in METHODS[self.method].settings:
            raise ConfigError(f"Expected `rank` to be 1 for the method {self.method!r}, but got {self.rank}.")
        if self.soft_prompts and self.scope != "concept":
            raise ConfigError(
                f'Soft prompts are erased with scope="concept" alone, but the scope is {self.scope!r}. '
                'Set scope="concept", or leave `soft_prompts` out.'
            )
        if self.sites is not None:
            object.__setattr__(self, "sites", check_sites(self.sites))
        if self.blocks is not None:
            object.__setattr__(self, "blocks", check_blocks(self.blocks))
        object.__setattr__(self, "block_strengths", _checked_factors(self.block_strengths, self.strength))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        values = asdict(self)
        if self.block_strengths is not None:  # keys of JSON are texts
            values["block_strengths"] = {str(block): factor for block, factor in self.block_strengths.items()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BuildConfig":
        """Make settings from plain types; an unknown key is an error that names the nearest known one."""
        check_keys("BuildConfig", values, {item.name for item in fields(cls)})
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        if isinstance(factors := plain.get("block_strengths"), Mapping):
            plain["block_strengths"] = {_block_index(block): factor for block, factor in factors.items()}
        return cls(**plain)


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number, of Python or of numpy, and not True or False."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _plain(value: Any) -> float:
    """Return a number of numpy as one of Python, which JSON can hold; others as they are."""
    return value if type(value) in (int, float) else float(value)


def check_sites(sites: object) -> str | tuple[str, ...]:
    """Return a selection of sites, a text or several, or raise `ConfigError`."""
    parts = (sites,) if isinstance(sites, str) else tuple(sites) if isinstance(sites, (list, tuple, set)) else (None,)
    if not parts:
        raise ConfigError("Expected `sites` to name sites, but it is empty. The default, None, chooses by the pairs.")
    if not all(isinstance(part, str) and part for part in parts):
        raise ConfigError(
            'Expected `sites` to be "text", "text-in-blocks", "text-projection", "image", "hidden", a pattern of '
            f"names, or several of these, but got {sites!r:.80}."
        )
    return sites if isinstance(sites, str) else tuple(str(part) for part in parts)


def check_blocks(blocks: object) -> tuple[int, ...]:
    """Return indices of blocks, or raise `ConfigError` if they are not whole numbers of at least 0."""
    indices = tuple(blocks) if isinstance(blocks, (list, tuple, set, frozenset, range)) else (None,)
    if not all(isinstance(index, Integral) and not isinstance(index, bool) and int(index) >= 0 for index in indices):
        raise ConfigError(f"Expected `blocks` to be indices such as [0, 1, 2], but got {blocks!r:.80}.")
    return tuple(int(index) for index in indices if index is not None)


def _integer(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise ConfigError(f"Expected `{name}` to be an integer from {low} to {high}, but got {value!r:.80}.")
    return int(value)


def check_keys(owner: str, values: Mapping[str, Any], known: set[str]) -> None:
    """Raise `ConfigError` if a mapping has a key that is not known."""
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(sorted(known))}."
            raise ConfigError(f"Unknown key {key!r} in {owner}.{hint}")


def check_strength(strength: float) -> float:
    """Return a strength as a float, or raise `ConfigError` if it is not a number from 0 to 4."""
    if not (is_number(strength) and 0 <= strength <= MAX_STRENGTH):
        raise ConfigError(
            f"Expected the strength to be a number from 0 (off) to {MAX_STRENGTH:g}, but got {strength!r:.80}. "
            "1 removes the direction, values above 1 over-correct."
        )
    return float(strength)


def check_gain(gain: float, what: str = "the gain") -> float:
    """Return what a site multiplies the strength by as a float, or raise `ConfigError` if it is not from 0 to 4."""
    if not (is_number(gain) and 0 <= gain <= MAX_STRENGTH):
        raise ConfigError(
            f"Expected {what} to be a number from 0 (off) to {MAX_STRENGTH:g}, but got {gain!r:.80}. "
            "1 leaves the strength as it is."
        )
    return float(gain)


def check_shrinkage(shrinkage: float) -> float:
    """Return a shrinkage as a float, or raise `ConfigError` if it is not a number from 0 to 1."""
    if not (is_number(shrinkage) and 0 <= shrinkage <= 1):
        raise ConfigError(
            f"Expected the shrinkage to be a number from 0 (the exact joint edit) to 1, but got {shrinkage!r:.80}."
        )
    return float(shrinkage)


def site_strength(strength: float, gain: float, site: str = "") -> float:
    """Return the strength of a site, `strength * gain`.

    Args:
        strength: Strength of the adapter, 0 to 4.
        gain: Gain of the site, 0 to 4.
        site: What an error calls the site, if anything.

    Raises:
        ConfigError: If the strength is out of range, or the product is.
    """
    product = check_strength(strength) * gain
    if product > MAX_STRENGTH * (1 + 1e-9):  # such as 3.6 * (4 / 3.6), which may be rounded up
        largest = math.floor(1000 * MAX_STRENGTH / gain) / 1000
        raise ConfigError(
            f"Expected strength x gain to be at most {MAX_STRENGTH:g}, but got {strength:g} x {gain:g} = {product:g}"
            f"{f' at {site}' if site else ''}. Give a strength of at most {largest:g}."
        )
    return min(product, MAX_STRENGTH)


def _checked_factors(factors: Mapping[int, float] | None, strength: float | None) -> dict[int, float] | None:
    """Return the factors of blocks in the order of these, or None if there are none."""
    if factors is None:
        return None
    if not isinstance(factors, Mapping):
        raise ConfigError(
            f"Expected `block_strengths` as a mapping such as {{0: 0.5, 3: 1.2}}, but got {factors!r:.80}."
        )
    for block, factor in factors.items():
        if not isinstance(block, Integral) or isinstance(block, bool) or block < 0:
            raise ConfigError(f"Expected the keys of `block_strengths` to be indices of blocks, but got {block!r:.80}.")
        check_gain(factor, f"the factor of block {block} in `block_strengths`")
        limit = MAX_STRENGTH / (MAX_CALIBRATED_STRENGTH if strength is None else max(strength, 1e-9))
        if factor > limit * (1 + 1e-9):
            origin = (
                f"is calibrated, to {MAX_CALIBRATED_STRENGTH:g} at most. Set `strength`, or take"
                if strength is None
                else f"is {strength:g}. Take"
            )
            raise ConfigError(
                f"Expected strength x factor to be at most {MAX_STRENGTH:g}, but got the factor {factor:g} for block "
                f"{block}, and the strength {origin} a factor of at most {math.floor(1000 * limit) / 1000:g}."
            )
    return {int(block): float(factors[block]) for block in sorted(factors)} or None


def _block_index(key: Any) -> Any:
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else key
