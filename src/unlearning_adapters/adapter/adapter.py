"""`UnlearningAdapter`: named directions for many sites, how they were made, and how they are saved and loaded."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from typing_extensions import Unpack

from unlearning_adapters.config import site_strength
from unlearning_adapters.errors import AdapterFileError, ConfigError

from .direction import EQUAL_GAINS, FORMAT_VERSION, WITH_BOTH, WITH_GAINS, AdapterInfo, Direction, Edit
from .draft import write_whole
from .file import contradiction, decode, encode, file_at, read_file
from .header import FileHeader, read_header
from .missing import is_path, why_missing
from .record import shorten
from .source import SourceOptions, find_adapter_file

# What Python raises for a place where there can be no file.
WRONG_PLACE = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError)


@dataclass(frozen=True, eq=False)
class UnlearningAdapter:
    """One concept's directions at many sites.

    Args:
        info: How it was made.
        directions: A direction per site; a site is named "<component>.<module path>", such as
            "transformer.blocks.0.attn2.to_k". All have one shrinkage.
        lora_B: The factor `-strength * gain * W @ write.T` of shape (out_features, rank) per site for the base it was
            built on; only stock LoRA loaders use it. Empty if it is not known.
    """

    info: AdapterInfo
    directions: Mapping[str, Direction]
    lora_B: Mapping[str, Tensor] = field(default_factory=dict)

    push_to_hub: ClassVar[Callable[..., str]]  # `hub.push_adapter`; the package adds it, as it adds verbs to pipelines

    def __post_init__(self) -> None:
        if not self.directions:
            raise ConfigError("An adapter needs a direction for at least one site, but got none.")
        self.allowed_strength(self.info.strength)
        if len(shares := {direction.shrinkage for direction in self.directions.values()}) > 1:
            raise ConfigError(f"Expected one shrinkage for all sites, but got {', '.join(map(str, sorted(shares)))}.")
        plain = WITH_BOTH if self.edit == "mixed" else WITH_GAINS if self.gains else EQUAL_GAINS
        version = FORMAT_VERSION if self.shrinkage else plain
        if self.info.format_version <= FORMAT_VERSION and self.info.format_version != version:
            object.__setattr__(self, "info", replace(self.info, format_version=version))

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in file order."""
        return tuple(self.directions)

    @property
    def edit(self) -> Edit:
        """What its directions are: "projection", "additive" (docs/maths.md 6 and 7), or "mixed" for both."""
        if len(self.additive) == len(self.directions):
            return "additive"
        return "mixed" if self.additive else "projection"

    @property
    def additive(self) -> tuple[str, ...]:
        """Names of the sites whose directions are additive."""
        return tuple(site for site, direction in self.directions.items() if direction.additive)

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
    def shrinkage(self) -> float:
        """Shrinkage of its directions."""
        return next(iter(self.directions.values())).shrinkage

    @property
    def gains(self) -> dict[str, float]:
        """Factors of the strength by site, without those that are 1."""
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
        return save_adapter(self, destination)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        **options: Unpack[SourceOptions],
    ) -> "UnlearningAdapter":
        """Read an adapter from a file, a folder or the Hub; see `load_adapter`.

        Args:
            source: A ".safetensors" file, a folder, or a Hub repository "org/name".
            **options: See `SourceOptions`.

        Returns:
            The adapter.
        """
        return load_adapter(source, **options)

    def __repr__(self) -> str:
        return (
            f"UnlearningAdapter(concept={self.info.concept!r}, method={self.info.method!r}, "
            f"strength={self.info.strength:g}, rank={self.rank}, sites={len(self.directions)})"
        )


def save_adapter(adapter: UnlearningAdapter, destination: str | Path) -> Path:
    """Write an adapter to one file, whole or not at all; the same adapter gives the same bytes.

    Args:
        adapter: The adapter; it needs the stock factor `lora_B` for each of its sites.
        destination: A path that ends in ".safetensors", or a folder, in which the file gets the name `FILE_NAME`.
            Missing folders are made.

    Returns:
        Path of the file.

    Raises:
        AdapterFileError: If the adapter could not be loaded again, or there can be no such file; one that is there
            stays as it is.
        OSError: If the system fails to write it, as on a full disk.
    """
    if not isinstance(adapter, UnlearningAdapter):
        raise AdapterFileError(f"Expected an UnlearningAdapter to save, but got {shorten(adapter)}. Build or load one.")
    path = file_at(destination)
    blob = encode(adapter)
    try:
        _adapter_of(blob, read_header(io.BytesIO(blob), len(blob), str(path)), str(path))
    except AdapterFileError as error:
        raise AdapterFileError(
            f"Cannot save the adapter {adapter.info.concept!r}, since it could not be loaded again: {error}"
        ) from error
    try:
        return write_whole(path, blob)
    except WRONG_PLACE as error:
        reason = getattr(error, "strerror", None) or str(error)
        if not is_path(path) or not path.parent.is_dir():
            reason = why_missing(path.parent, reason)
        raise AdapterFileError(f"Cannot write {str(path)!r:.300}: {reason}. Choose another folder or file.") from error


def load_adapter(
    source: str | Path,
    **options: Unpack[SourceOptions],
) -> UnlearningAdapter:
    """Read an adapter from a file, a folder or the Hub, and check every value before it is returned.

    Args:
        source: A ".safetensors" file, a folder that holds `FILE_NAME`, or a Hub repository "org/name".
        **options: `revision`, `token`, `cache_dir`, `local_files_only` and `subfolder`, see `SourceOptions`.

    Returns:
        The adapter, with the directions as they were saved, bit for bit, in float32 on the CPU.

    Raises:
        AdapterNotFoundError: If there is no such file, or the Hub cannot give it.
        AdapterFileError: If the file is not a valid adapter; the text says what was found and what to do.
    """
    path = find_adapter_file(source, **options)
    header, blob = read_file(path, with_data=True)
    return _adapter_of(blob, header, str(path))


def _adapter_of(blob: bytes, header: FileHeader, name: str) -> UnlearningAdapter:
    info, directions, factors = decode(blob, header, name)
    try:
        return UnlearningAdapter(info, directions, factors)
    except ConfigError as error:
        raise contradiction(name, error) from error
