"""A reader and a writer made from docs/format.md alone, with nothing of this package: they agree byte for byte."""

import json
import re
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

SUFFIX, NAME = ".safetensors", "pytorch_lora_weights.safetensors"
SIZE = {"F32": 4, "F16": 2, "BF16": 2}
RECORD = {
    "format_version", "concept", "method", "strength", "settings", "base_model", "base_revision", "pipeline",
    "denoisers", "pairs_hash", "versions", "description", "edit", "sites",
}  # fmt: skip
SITE_NAME = re.compile(r"(transformer|transformer_2|transformer_ref|unet)(\.(?!__)[A-Za-z0-9_]+)+")
CONTROL = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class RefusedError(Exception):
    pass


def need(ok: bool, what: str) -> None:
    if not ok:
        raise RefusedError(what)


# The reader: sections 2 to 6.


def strict(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), "a key twice")
        return dict(pairs)

    def whole(digits: str) -> int:
        need(len(digits) <= 19, "a long integer")
        return int(digits)

    def number(digits: str) -> float:
        need(np.isfinite(float(digits)), "overflow")
        return float(digits)

    need(sum(text.count(sign) for sign in '[]{},:"') <= 524_288, "too many marks")
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_int=whole, parse_float=number, parse_constant=number)
    except (ValueError, RecursionError) as error:
        raise RefusedError(str(error)) from error
    need(isinstance(value, dict) and levels(value) <= 6, "not an object, or nested deeply")
    return value


def levels(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(levels, inner), default=0)


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str) else []


def check_record(record: dict[str, Any]) -> None:
    version = record.get("format_version")
    need(type(version) is int and version in (1, 2, 3, 4), "another version")
    optional = {"gains"} & set(record) if version >= 3 else set()
    shrunk = {"shrinkage"} | ({"additive"} if record.get("edit") == "mixed" else set())
    more = {1: set(), 2: {"gains"}, 3: {"additive"} | optional, 4: shrunk | optional}[version]
    need(set(record) == RECORD | more, "keys of the record")
    edit, sites, strength = record.pop("edit"), record.pop("sites"), record["strength"]
    allowed = {3: ("mixed",), 4: ("projection", "additive", "mixed")}.get(version, ("projection", "additive"))
    need(edit in allowed, "edit")
    shrinkage = record.get("shrinkage", 1)
    need(type(shrinkage) in (int, float) and 0 < shrinkage <= 1, "shrinkage")
    need(all(len(text) <= 4096 and not CONTROL.search(text) for text in texts(record)), "a text")
    for key in ("concept", "method", "base_model", "base_revision", "pipeline", "pairs_hash", "description"):
        need(isinstance(record[key], str), key)
    for key in ("concept", "method"):
        need(0 < len(record[key].strip()) and len(record[key]) <= 200 and not re.search("[\n\t]", record[key]), key)
    for key in ("settings", "denoisers", "versions"):
        need(isinstance(record[key], dict), key)
    need(all(isinstance(text, str) for key in ("denoisers", "versions") for text in record[key].values()), "not texts")
    need(type(strength) in (int, float) and 0 <= strength <= 4, "strength")
    need(isinstance(sites, list) and 1 <= len(sites) <= 4096, "sites")
    need(all(isinstance(site, str) and len(site) <= 200 and SITE_NAME.fullmatch(site) for site in sites), "a site")
    need(len(set(sites)) == len(sites), "a site twice")
    gains = record.get("gains", {sites[0]: 0.5})
    need(isinstance(gains, dict) and 1 <= len(gains) and set(gains) <= set(sites), "gains of no sites")
    need(all(type(gain) in (int, float) and 0 <= gain <= 4 and gain != 1 for gain in gains.values()), "a gain")
    need("gains" not in record or all(strength * gain <= 4 for gain in gains.values()), "strength times gain")
    additive = record.get("additive", sites if edit == "additive" else [])
    need(isinstance(additive, list) and all(isinstance(site, str) for site in additive), "additive sites")
    need(len(set(additive)) == len(additive) and set(additive) <= set(sites), "additive sites")
    need(edit != "mixed" or 1 <= len(additive) < len(sites), "all sites are of one kind")
    record["edit"], record["sites"] = edit, sites


def values_of(entry: Any, data: bytes) -> np.ndarray:
    begin, end = entry["data_offsets"]
    raw = data[begin:end]
    if entry["dtype"] == "BF16":  # the upper half of a float32
        flat = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(raw, "<f4" if entry["dtype"] == "F32" else "<f2").astype(np.float32)
    need(bool(np.isfinite(flat).all()), "not finite")
    return flat.reshape(entry["shape"])


def two_integers(value: Any, low: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(item) is int and item >= low for item in value)


def check_entries(entries: dict[str, Any], size: int) -> None:
    need(len(entries) <= 12_288, "too many tensors")
    for entry in entries.values():
        need(isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}, "an entry")
        need(isinstance(entry["dtype"], str) and entry["dtype"] in SIZE, "a dtype")
        need(two_integers(entry["shape"], 1) and two_integers(entry["data_offsets"], 0), "a shape or a place")
        rows, columns = entry["shape"]
        begin, end = entry["data_offsets"]
        need(end - begin == rows * columns * SIZE[entry["dtype"]], "a place that does not fit")
    edges = sorted(entry["data_offsets"] for entry in entries.values())
    need([0, *(end for _, end in edges)] == [*(begin for begin, _ in edges), size], "a gap or an overlap")


def check_direction(read: np.ndarray, write: np.ndarray) -> None:
    reads, writes = read.astype(np.float64), write.astype(np.float64)
    long, short = np.linalg.norm(reads, axis=1), np.linalg.norm(writes, axis=1)
    need(bool((long * short <= 10_000).all()), "it would amplify noise")
    balance = np.sqrt(long / short)[:, None]
    reads, writes = reads / balance, writes * balance
    lengths = np.linalg.norm(reads, axis=1)[:, None] * np.linalg.norm(writes, axis=1)
    need(bool((np.abs(reads @ writes.T - np.eye(len(reads))) <= 1e-3 + 1e-6 * lengths).all()), "no direction")


def check_additive(read: np.ndarray, write: np.ndarray) -> None:
    reads, writes = read.astype(np.float64), write.astype(np.float64)
    gains = np.linalg.norm(reads, axis=1) * np.linalg.norm(writes, axis=1)
    need(bool(((gains > 0) & (gains <= 10_000)).all()), "a row that does nothing, or would amplify noise")
    need(float(np.linalg.norm(writes.T @ reads, 2)) <= 1_000, "a large edit")


def read_adapter(path: Path) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """The record, and per site the reads, the writes and the factor."""
    need(path.suffix == SUFFIX and path.stat().st_size <= 536_870_912, "suffix or size")
    blob = path.read_bytes()
    need(len(blob) >= 8, "no length")
    (length,) = struct.unpack("<Q", blob[:8])
    need(length <= 8_388_608 and 8 + length <= len(blob), "length of the header")
    raw, data = blob[8 : 8 + length], blob[8 + length :]
    need(raw[:1] == b"{", "no object")
    try:
        header = strict(raw.decode())
    except UnicodeDecodeError as error:
        raise RefusedError("not UTF-8") from error
    metadata = header.pop("__metadata__", None)
    need(isinstance(metadata, dict) and set(metadata) == {"format", "unlearning_adapter"}, "metadata")
    need(metadata["format"] == "pt" and isinstance(metadata["unlearning_adapter"], str), "metadata")
    record = strict(metadata["unlearning_adapter"])
    check_record(record)
    check_entries(header, len(data))
    additive = record["sites"] if record["edit"] == "additive" else record.get("additive", [])
    return record, sites_of(record["sites"], header, data, additive)


def sites_of(sites: list[str], header: dict[str, Any], data: bytes, additive: list[str]) -> dict[str, Any]:
    names = [(f"{site}.lora_A.weight", f"{site}.lora_B.weight", f"unlearning.lora_V.{site}") for site in sites]
    need(set(header) <= {name for three in names for name in three}, "a tensor of no site")
    found, ranks = {}, set()
    for site, (a, b, v) in zip(sites, names, strict=True):
        need(a in header and b in header, "a tensor is missing")
        read, factor = values_of(header[a], data), values_of(header[b], data)
        write = values_of(header[v], data) if v in header else read
        need(len(read) <= 64 and write.shape == read.shape and factor.shape[1] == len(read), "shapes")
        ranks.add(len(read))
        used = read.any(axis=1) | write.any(axis=1)
        own = int(used.sum())
        need(own >= 1 and bool(used[:own].all()) and not factor[:, own:].any(), "padding")
        (check_additive if site in additive else check_direction)(read[:own], write[:own])
        found[site] = (read[:own], write[:own], factor[:, :own])
    need(len(ranks) == 1, "ranks")
    return found


# The writer: sections 2 to 4.


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def write_adapter(record: dict[str, Any], sites: dict[str, Any]) -> bytes:
    rank = max(len(read) for read, _, _ in sites.values())
    tensors = {}
    for site, (read, write, factor) in sites.items():
        more = ((0, rank - len(read)), (0, 0))
        tensors[f"{site}.lora_A.weight"] = np.pad(read, more)
        tensors[f"{site}.lora_B.weight"] = np.pad(factor, more[::-1])
        if not np.array_equal(read, write):
            tensors[f"unlearning.lora_V.{site}"] = np.pad(write, more)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "unlearning_adapter": canonical(record)}}
    data = b""
    for name in sorted(tensors):
        raw = np.ascontiguousarray(tensors[name]).astype("<f4").tobytes()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = canonical(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


# Both against this package.


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A file with writes that differ from the reads, padding, and texts that need escapes."""
    import torch
    from forge import OTHER, SITE, planted_direction

    from unlearning_adapters.adapter.adapter import UnlearningAdapter
    from unlearning_adapters.adapter.direction import AdapterInfo

    directions = {SITE: planted_direction(1, 12, oblique=False), OTHER: planted_direction(3, 12, oblique=True)}
    factors = {SITE: torch.arange(4.0)[:, None] / 3, OTHER: torch.arange(12.0).reshape(4, 3) / 7}
    info = AdapterInfo(
        'no "red"', "ridge", 1.1, {"epsilon": 0.01, "blocks": None, "pairs": [1, 2], "x": {"y": True}},
        base_model="org/base", description='Removes "red",\n\toöü 赤 🔴 and \\ too.', versions={"torch": "2.13.0"},
        denoisers={"transformer": "WanTransformer3DModel"},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("real")
    return UnlearningAdapter(info, directions, factors).save_pretrained(folder)


def test_the_reader_gets_the_same_record_and_the_same_bits(real) -> None:
    from unlearning_adapters.adapter.adapter import load_adapter

    record, sites = read_adapter(real)
    adapter = load_adapter(real)
    assert record == {**adapter.info.to_dict(), "edit": adapter.edit, "sites": list(adapter.sites)}
    assert list(sites) == list(adapter.sites)
    for site, (read, write, factor) in sites.items():
        assert np.array_equal(read, adapter.directions[site].read.numpy())
        assert np.array_equal(write, adapter.directions[site].write.numpy())
        assert np.array_equal(factor, adapter.lora_B[site].numpy())


def test_the_writer_gives_the_same_bytes(real, tmp_path) -> None:
    record, sites = read_adapter(real)
    assert write_adapter(record, sites) == real.read_bytes()
    from unlearning_adapters.adapter.adapter import load_adapter

    (tmp_path / NAME).write_bytes(write_adapter({**record, "strength": 1.0, "concept": "other"}, sites))
    assert load_adapter(tmp_path).info.concept == "other"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_reader_reads_half_precision(real, tmp_path, dtype) -> None:
    import safetensors
    import safetensors.torch
    import torch

    from unlearning_adapters.adapter.adapter import load_adapter

    with safetensors.safe_open(real, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors = {name: item.to(getattr(torch, dtype)) if "lora_B" in name else item for name, item in tensors.items()}
    safetensors.torch.save_file(tensors, tmp_path / NAME, metadata)
    adapter = load_adapter(tmp_path)
    for site, (_, _, factor) in read_adapter(tmp_path / NAME)[1].items():
        assert np.array_equal(factor, adapter.lora_B[site].numpy())


def test_the_reader_refuses_what_this_package_refuses() -> None:
    folder = Path(__file__).parent / "hostile"
    refused = 0
    for path in sorted(folder.glob("*.safetensors")):
        with pytest.raises(RefusedError):
            read_adapter(path)
        refused += 1
    assert refused > 60


def test_the_reader_and_this_package_agree_on_changed_files(tmp_path_factory) -> None:
    from fuzz.mutations import mutate
    from fuzz.seeds import live_pipeline, valid_files

    from unlearning_adapters.adapter.adapter import load_adapter
    from unlearning_adapters.errors import AdapterFileError

    folder = tmp_path_factory.mktemp("both")
    seeds, random, path = valid_files(live_pipeline(), folder), Random(2), folder / NAME
    verdicts = {True: 0, False: 0}
    for number in range(800):
        path.write_bytes(mutate(seeds, random))
        try:
            read_adapter(path)
            mine = ""
        except RefusedError as error:
            mine = str(error)
        try:
            load_adapter(path)
            ours = ""
        except AdapterFileError as error:
            ours = str(error)
        assert bool(mine) == bool(ours), (number, mine, ours)
        verdicts[not ours] += 1
    assert min(verdicts.values()) > 100


def test_reader_and_writer_import_nothing_of_this_package() -> None:
    source = Path(__file__).read_text(encoding="utf-8").split("# Both against this package.")[0]
    assert not re.search(
        r"^\s*(import|from) (?!json|re|struct|collections|pathlib|random|typing|numpy|pytest)", source, re.MULTILINE
    )
