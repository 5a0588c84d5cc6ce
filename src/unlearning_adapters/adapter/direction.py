"""`Direction` and `AdapterInfo`: what an adapter edits at one site, and how it was made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from unlearning_adapters.config import check_gain, check_keys, check_shrinkage, check_strength, site_strength
from unlearning_adapters.errors import ConfigError

FORMAT_VERSION = 4  # with a shrinkage
WITH_BOTH = 3  # kinds of directions
WITH_GAINS = 2
EQUAL_GAINS = 1  # format version of adapters whose sites all have the gain 1
Edit = Literal["projection", "additive", "mixed"]


@dataclass(frozen=True, eq=False)  # tensors have no truth value, so that == would raise
class Direction:
    """The edit of one site, `x' = x - strength * gain * sum_j write_j (read_j . x)`: what it reads and what it writes.

    Args:
        read: Rows a_j, shape (rank, in_features), float32.
        write: Rows w_j, shape (rank, in_features), float32, with `read @ write.T` the identity.
        additive: Whether `read @ write.T` may differ from the identity, as in UCE. Such an edit is applied unchanged,
            and several of them are added.
        gain: Factor of the adapter's strength at this site, 0 to 4.
        left_out: Share of the edit that the limit of its rank cut off (Frobenius norm); a file does not hold it.
        shrinkage: How far a stack of adapters that all have one leaves the exact joint edit, 0 to 1: it spares what no
            adapter names (docs/maths.md 5). Alone nothing changes.
    """

    read: Tensor
    write: Tensor
    additive: bool = False
    gain: float = field(default=1.0, kw_only=True)
    left_out: float = field(default=0.0, kw_only=True)
    shrinkage: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.read.ndim != 2 or self.read.shape != self.write.shape:
            raise ConfigError(
                "Expected `read` and `write` of one shape (rank, in_features), "
                f"but got {tuple(self.read.shape)} and {tuple(self.write.shape)}."
            )
        object.__setattr__(self, "gain", check_gain(self.gain))
        object.__setattr__(self, "shrinkage", check_shrinkage(self.shrinkage))

    @property
    def rank(self) -> int:
        """Number of rows."""
        return int(self.read.shape[0])

    @property
    def in_features(self) -> int:
        """Width of the site's input."""
        return int(self.read.shape[1])

    def stock_factor(self, response: Tensor, strength: float, site: str = "") -> Tensor:
        """Return the LoRA factor that makes this edit on one weight W, `B = -strength * gain * W write^T`.

        Args:
            response: What the weight makes of the writes, `write @ W.T`, shape (rank, out_features), float32.
            strength: Strength of the adapter.
            site: What an error calls the site, if anything.

        Returns:
            Shape (out_features, rank); `W + B @ read` is the edited weight.

        Raises:
            ConfigError: If strength times gain is out of range.
        """
        return -site_strength(strength, self.gain, site) * response.T

    @property
    def orthogonal(self) -> bool:
        """Whether the edit reads what it writes, so that one matrix describes it."""
        return torch.equal(self.read, self.write)


@dataclass(frozen=True)
class AdapterInfo:
    """How an adapter was made; what its file's header holds.

    Args:
        concept: Name of the concept that is removed.
        method: Name of the method.
        strength: Strength that the builder wrote, and that loading uses by default.
        settings: The `BuildConfig` of the build as a dictionary.
        base_model: Name or path of the base pipeline, "" if unknown.
        base_revision: Commit of the base on the Hub, "" if unknown.
        pipeline: Class name of the pipeline that it was built on.
        denoisers: Class name of each edited component, such as {"transformer": "WanTransformer3DModel"}.
        pairs_hash: SHA-256 of the pairs.
        versions: Versions of the libraries that built it.
        description: One sentence for people.
        format_version: Version of the file format; an adapter sets it by its directions.
    """

    concept: str
    method: str
    strength: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    base_model: str = ""
    base_revision: str = ""
    pipeline: str = ""
    denoisers: Mapping[str, str] = field(default_factory=dict)
    pairs_hash: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    format_version: int = EQUAL_GAINS

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AdapterInfo":
        """Make a record from plain types; an unknown key is an error."""
        check_keys("AdapterInfo", values, {item.name for item in fields(cls)})
        return cls(**values)
