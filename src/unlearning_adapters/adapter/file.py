"""One adapter, one file that stock LoRA loaders read too: its bytes, read and written (docs/format.md specifies it).

Only `encode` and `decode` import torch; looking at a header does not.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from unlearning_adapters.errors import AdapterFileError, AdapterNotFoundError, ConfigError

from .header import FileHeader, encode_header, factor_key, read_header, read_key, write_key
from .missing import why_missing
from .record import bad_file
from .source import FILE_NAME, PICKLES, SourceOptions, find_adapter_file

if TYPE_CHECKING:
    from torch import Tensor

    from .adapter import UnlearningAdapter
    from .direction import AdapterInfo, Direction

__all__ = ["FILE_NAME", "contradiction", "decode", "encode", "file_at", "inspect_adapter", "read_file"]

UNIT_TOLERANCE = 1e-3  # of `read @ write.T` from the identity; what half-precision reads and writes can hold
ROUNDING = 1e-6  # the same, per unit of |a_i| |w_j|: what float32 can hold, with a margin of eight
MAX_GAIN = 1e4  # of |a_i| |w_i|: above, float32 cannot hold a.w = 1 to UNIT_TOLERANCE, and the edit would amplify noise
MAX_SIZE = 1e3  # of the largest singular value of an additive edit; UCE's is at most |C - G| / (2 sqrt(l)), about 200


def file_at(destination: str | Path) -> Path:
    """Return the path of the file that a destination means: itself, or `FILE_NAME` in a folder.

    Raises:
        AdapterFileError: If it is a file of another kind.
    """
    if not isinstance(destination, (str, os.PathLike)) or not str(destination).strip():
        raise AdapterFileError(f"Expected a folder or a file to save an adapter in, but got {destination!r:.80}.")
    path = Path(destination)
    try:
        folder = path.is_dir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AdapterFileError(f"Cannot write {str(path)!r:.300}: {reason}. Choose another folder or file.") from error
    if folder:
        return path / FILE_NAME
    if path.suffix == ".safetensors":
        return path
    if path.suffix.lower() in PICKLES or path.exists():
        raise AdapterFileError(
            f"Cannot save an adapter as {str(path)!r}: adapters are .safetensors files. "
            "Name a folder, or a path that ends in .safetensors."
        )
    return path / FILE_NAME


def inspect_adapter(
    source: str | Path,
    **options: Unpack[SourceOptions],
) -> dict[str, Any]:
    """Return what an adapter's header says, without reading a tensor and without importing torch.

    Args:
        source: A ".safetensors" file, a folder that holds `FILE_NAME`, or a Hub repository "org/name".
        **options: See `SourceOptions`.

    Returns:
        Plain values: "file", "bytes", "rank" (padding included), "components", "edit" ("projection", "additive" or
        "mixed"), "shrinkage", "info" (the fields of `AdapterInfo`) and "sites" (for each, "name", "in_features",
        "out_features", "orthogonal": it writes what it reads, and "gain": by what it multiplies the strength).

    Raises:
        AdapterNotFoundError: If there is no such file, or the Hub cannot give it.
        AdapterFileError: If the header is not that of a valid adapter.
    """
    path = find_adapter_file(source, **options)
    header, _ = read_file(path, with_data=False)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "rank": header.rank,
        "components": list(dict.fromkeys(site.split(".", 1)[0] for site in header.sites)),
        "edit": header.edit,
        "shrinkage": header.shrinkage,
        "info": dict(header.info),
        "sites": [header.describe_site(site) for site in header.sites],
    }


def encode(adapter: UnlearningAdapter) -> bytes:
    """Return the bytes of an adapter's file: header, then the tensors in the order of their names.

    Raises:
        AdapterFileError: If a site has no stock factor, or one of another shape.
    """
    tensors = _tensors(adapter)
    shapes = {name: (int(tensor.shape[0]), int(tensor.shape[1])) for name, tensor in tensors.items()}
    head = encode_header(
        adapter.info.to_dict(), adapter.edit, adapter.sites, shapes, adapter.gains, adapter.additive, adapter.shrinkage
    )
    return head + b"".join(tensors[name].numpy().astype("<f4", copy=False).tobytes() for name in sorted(tensors))


def _tensors(adapter: UnlearningAdapter) -> dict[str, Tensor]:
    """Return the file's tensors: float32 on the CPU, padded with zeros to one rank, since stock loaders need one."""
    missing = [site for site in adapter.directions if site not in adapter.lora_B]
    unknown = [site for site in adapter.lora_B if site not in adapter.directions]
    if missing or unknown:
        reason = (
            f"{len(missing)} of {len(adapter.directions)} sites lack it" if missing else f"{unknown[0]!r} is no site"
        )
        raise AdapterFileError(
            f"Cannot save the adapter {adapter.info.concept!r}: stock loaders need `lora_B` for each site, "
            f"and {reason}. Save it from a pipeline with pipe.save_unlearning_adapter, or build it again."
        )
    tensors: dict[str, Tensor] = {}
    for site, direction in adapter.directions.items():
        factor = adapter.lora_B[site]
        if factor.ndim != 2 or factor.shape[1] != direction.rank:
            raise AdapterFileError(
                f"Cannot save the adapter {adapter.info.concept!r}: `lora_B` of {site!r} has shape "
                f"{tuple(factor.shape)}, and its direction has rank {direction.rank}. Build the adapter again."
            )
        tensors[read_key(site)] = _padded(direction.read, adapter.rank)
        tensors[factor_key(site)] = _padded(factor.T, adapter.rank).T.contiguous()
        if not direction.orthogonal:
            tensors[write_key(site)] = _padded(direction.write, adapter.rank)
    return tensors


def _padded(rows: Tensor, rank: int) -> Tensor:
    import torch

    padded = torch.zeros(rank, rows.shape[1], dtype=torch.float32, device="cpu")
    padded[: rows.shape[0]] = rows.detach()
    return padded


def read_file(path: Path, *, with_data: bool) -> tuple[FileHeader, bytes]:
    """Read a file's header, and its bytes only once the header has passed."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = read_header(file, size, str(path))
            if not with_data:
                return header, b""
            file.seek(0)
            blob = file.read(size)
    except OSError as error:
        reason = why_missing(path, error.strerror or "it cannot be opened")
        raise AdapterNotFoundError(
            f"Cannot read {str(path)!r}: {reason}. Check the path and the permissions."
        ) from error
    try:
        same = read_header(io.BytesIO(blob), len(blob), str(path)) == header
    except AdapterFileError:
        same = False
    if not same:
        raise bad_file(str(path), "it changed while it was read", "Load it again when it is written.")
    return header, blob


def decode(blob: bytes, header: FileHeader, name: str) -> tuple[AdapterInfo, dict[str, Direction], dict[str, Tensor]]:
    """Return the record, directions and stock factors of a file whose header has passed; every value is checked.

    Raises:
        AdapterFileError: If a tensor is not finite, a site has no valid direction, or the parts contradict each other.
    """
    import safetensors
    import safetensors.torch

    from .direction import AdapterInfo

    try:
        tensors = safetensors.torch.load(blob)
    except safetensors.SafetensorError as error:
        raise bad_file(name, f"safetensors refuses it: {error}") from error
    for key, tensor in sorted(tensors.items()):  # safetensors gives them in an order that changes from call to call
        if not tensor.isfinite().all():
            raise bad_file(
                name, f"the tensor {key!r} holds {int((~tensor.isfinite()).sum())} values that are not finite"
            )
    directions, factors = {}, {}
    try:
        for site in header.sites:
            directions[site], factors[site] = _site_tensors(tensors, site, header, name)
        return AdapterInfo.from_dict(header.info), directions, factors
    except ConfigError as error:
        raise contradiction(name, error) from error


def contradiction(name: str, error: ConfigError) -> AdapterFileError:
    """Return the error for a file whose parts do not fit each other."""
    return bad_file(name, f"its contents contradict each other: {str(error).rstrip('.')}")


def _site_tensors(tensors: Mapping[str, Tensor], site: str, header: FileHeader, name: str) -> tuple[Direction, Tensor]:
    """Return a site's direction and stock factor in float32, without the padding."""
    from .direction import Direction

    read, factor = tensors[read_key(site)].float(), tensors[factor_key(site)].float()
    write = tensors[write_key(site)].float() if write_key(site) in tensors else read
    nonzero = read.any(dim=1) | write.any(dim=1)
    rank = int(nonzero.sum())
    if not rank:
        raise bad_file(name, f"the site {site!r} has no direction, only zeros")
    if not nonzero[:rank].all() or factor[:, rank:].any():
        raise bad_file(name, f"the padding of the site {site!r} is not zero rows at the end of A and V, and zero in B")
    if rank < len(nonzero):
        orthogonal = write is read
        read, factor = read[:rank].clone(), factor[:, :rank].contiguous()
        write = read if orthogonal else write[:rank].clone()
    additive = site in header.additive
    (_check_additive if additive else _check_projection)(read, write, site, name)
    gain = header.gains.get(site, 1.0)
    return Direction(read, write, additive, gain=gain, shrinkage=header.shrinkage), factor


def _check_additive(read: Tensor, write: Tensor, site: str, name: str) -> None:
    """Check in float64 that each row does something, and that neither a row nor all together amplify what they read."""
    import torch

    reads, writes = read.double(), write.double()
    gains = reads.norm(dim=1) * writes.norm(dim=1)
    if not gains.min() > 0:
        row = int(gains.argmin())
        raise bad_file(name, f"the site {site!r} has a row that does nothing: |read| |write| of row {row} is 0")
    _check_gain(float(gains.max()), site, name)
    # The singular values of V^T A are those of R_V R_A^T, of the rank's size.
    size = torch.linalg.svdvals(torch.linalg.qr(writes.T).R @ torch.linalg.qr(reads.T).R.T).max()
    if size > MAX_SIZE:
        raise bad_file(name, f"the edit of the site {site!r} has the size {size:.3g}, and the limit is {MAX_SIZE:g}")


def _check_gain(gain: float, site: str, name: str) -> None:
    if gain > MAX_GAIN:
        raise bad_file(name, f"the site {site!r} has |read| |write| = {gain:.3g}, and the limit is {MAX_GAIN:g}")


def _check_projection(read: Tensor, write: Tensor, site: str, name: str) -> None:
    """Check in float64 that each write is read as exactly itself, and that no row amplifies what it reads."""
    import torch

    reads, writes = read.double(), write.double()
    gains = reads.norm(dim=1) * writes.norm(dim=1)
    _check_gain(float(gains.max()), site, name)
    products = (reads * writes).sum(dim=1)
    wrong = torch.diag((products - 1).abs() > UNIT_TOLERANCE + ROUNDING * gains)
    if not wrong.any():
        # (c a, w / c) is the same direction as (a, w): between rows, compare reads and writes of equal length.
        balance = (reads.norm(dim=1) / writes.norm(dim=1)).sqrt()[:, None]
        others = ((reads / balance) @ (writes * balance).T).fill_diagonal_(0).abs()
        wrong = others > UNIT_TOLERANCE + ROUNDING * (gains[:, None] * gains).sqrt()
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise bad_file(
            name,
            f"the site {site!r} holds no direction: read {row} . write {column} is "
            f"{float(reads[row] @ writes[column]):.6g}, and it must be {int(row == column)}",
        )
