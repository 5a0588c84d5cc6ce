"""The adapter itself: named directions for many sites and a record of how they were made; no pipeline, no file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .config import check_gain, check_keys, check_strength, site_strength
from .errors import ConfigError

FORMAT_VERSION = 2
EQUAL_GAINS = 1  # format version of adapters whose sites all have the gain 1
Edit = Literal["projection", "additive"]


@dataclass(frozen=True, eq=False)  # tensors have no truth value, so that == would raise
class Direction:
    """What a site's edit reads and writes, `x' = x - strength * gain * sum_j write_j (read_j . x)`.

    Args:
        read: Rows a_j, shape (rank, in_features), float32.
        write: Rows w_j, shape (rank, in_features), float32, with `read @ write.T` the identity.
        additive: Whether it is an edit of another kind, as UCE's, whose `read @ write.T` is no identity: it is taken
            as it stands, and stacks by adding.
        gain: By what the site multiplies the strength of its adapter, 0 to 4.
        left_out: What a limit of its rank cut off, as a share of the edit (Frobenius norm); a file does not hold it.
    """

    read: Tensor
    write: Tensor
    additive: bool = False
    gain: float = field(default=1.0, kw_only=True)
    left_out: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.read.ndim != 2 or self.read.shape != self.write.shape:
            raise ConfigError(
                "Expected `read` and `write` of one shape (rank, in_features), "
                f"but got {tuple(self.read.shape)} and {tuple(self.write.shape)}."
            )
        object.__setattr__(self, "gain", check_gain(self.gain))

    @property
    def rank(self) -> int:
        """Number of rows."""
        return int(self.read.shape[0])

    @property
    def in_features(self) -> int:
        """Width of the site's input."""
        return int(self.read.shape[1])

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
        format_version: Version of the file format; an adapter sets it by its gains.
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


@dataclass(frozen=True, eq=False)
class UnlearningAdapter:
    """One concept's directions at many sites.

    Args:
        info: How it was made.
        directions: A direction per site; a site is named "<component>.<module path>", such as
            "transformer.blocks.0.attn2.to_k".
        lora_B: The factor `-strength * gain * W @ write.T` of shape (out_features, rank) per site for the base it was
            built on; only stock LoRA loaders use it. Empty if it is not known.
    """

    info: AdapterInfo
    directions: Mapping[str, Direction]
    lora_B: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.directions:
            raise ConfigError("An adapter needs a direction for at least one site, but got none.")
        added = [site for site, direction in self.directions.items() if direction.additive]
        if added and len(added) < len(self.directions):
            other = next(site for site in self.directions if site not in added)
            raise ConfigError(
                f"Expected the directions of one adapter to be all additive or none, but {added[0]!r} is and {other!r} "
                "is not. Make an adapter of each kind, and load both."
            )
        self.allowed_strength(self.info.strength)
        version = FORMAT_VERSION if self.gains else EQUAL_GAINS
        if self.info.format_version in (EQUAL_GAINS, FORMAT_VERSION) and self.info.format_version != version:
            object.__setattr__(self, "info", replace(self.info, format_version=version))

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in file order."""
        return tuple(self.directions)

    @property
    def edit(self) -> Edit:
        """What its directions are: "projection", or "additive" for edits of other works (docs/maths.md 6)."""
        return "additive" if next(iter(self.directions.values())).additive else "projection"

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the edited components, such as ("transformer", "transformer_2")."""
        return tuple(dict.fromkeys(site.split(".", 1)[0] for site in self.directions))

    @property
    def rank(self) -> int:
        """The largest rank of its directions."""
        return max(direction.rank for direction in self.directions.values())

    @property
    def strength(self) -> float:
        """Strength that loading uses by default."""
        return self.info.strength

    @property
    def gains(self) -> dict[str, float]:
        """By what sites multiply the strength, for those that multiply it by something else than 1."""
        return {site: direction.gain for site, direction in self.directions.items() if direction.gain != 1}

    def allowed_strength(self, strength: float) -> float:
        """Return a strength as a float, or raise `ConfigError` if it is out of range at a site of this adapter."""
        site = max(self.directions, key=lambda name: self.directions[name].gain)
        site_strength(strength, self.directions[site].gain, site)
        return float(strength)

    def strength_at(self, site: str) -> float:
        """Return the default strength of a site, `strength * gain`."""
        return site_strength(self.strength, self.directions[site].gain, site)

    def with_strength(self, strength: float) -> "UnlearningAdapter":
        """Return the same adapter with another default strength; the stock LoRA factor follows it."""
        self.allowed_strength(strength)
        if self.info.strength == 0:
            scaled: Mapping[str, Tensor] = {}  # a zero factor cannot be scaled back
        else:
            scaled = {site: factor * (strength / self.info.strength) for site, factor in self.lora_B.items()}
        return replace(self, info=replace(self.info, strength=float(strength)), lora_B=scaled)

    def save_pretrained(self, destination: str | Path) -> Path:
        """Write the adapter to one file; see `save_adapter`.

        Args:
            destination: A folder, or a path that ends in ".safetensors".

        Returns:
            Path of the file.
        """
        from .adapter_file import save_adapter

        return save_adapter(self, destination)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str | None = None,
    ) -> "UnlearningAdapter":
        """Read an adapter from a file, a folder or the Hub; see `load_adapter`.

        Args:
            source: A ".safetensors" file, a folder, or a Hub repository "org/name".
            revision: Branch, tag or commit of a Hub repository.
            token: Access token for a Hub repository.
            cache_dir: Folder that keeps what was downloaded.
            local_files_only: Whether to make no request.
            subfolder: Folder inside the source.

        Returns:
            The adapter.
        """
        from .adapter_file import load_adapter

        return load_adapter(
            source,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            subfolder=subfolder,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        result: Mapping[str, Any] | None = None,
        license: str | None = None,
        clips: Sequence[tuple[str, str | Path]] = (),
    ) -> str:
        """Push the adapter and its card to the Hub, in one commit; see `push_adapter`.

        Args:
            repo_id: Repository on the Hub, "org/name"; it is made if it is missing.
            commit_message: Title of the commit.
            private: Whether a new repository is private.
            token: Access token with write permission.
            create_pr: Whether to open a pull request.
            revision: Branch to write to; it is made if it is missing.
            result: What was measured; without it the card says "not measured".
            license: Licence of the adapter, such as "apache-2.0".
            clips: Prompts with .mp4 files that the card shows, before and after.

        Returns:
            URL of the commit, or of the pull request.
        """
        from .hub import push_adapter

        return push_adapter(
            self,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            create_pr=create_pr,
            revision=revision,
            result=result,
            license=license,
            clips=clips,
        )

    def __repr__(self) -> str:
        return (
            f"UnlearningAdapter(concept={self.info.concept!r}, method={self.info.method!r}, "
            f"strength={self.info.strength:g}, rank={self.rank}, sites={len(self.directions)})"
        )
