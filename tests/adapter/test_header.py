"""Every way in which a file can be wrong before its values are looked at; load and inspect must refuse each."""

import gzip
import io
import json
import pickle
import struct
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from forge import INFO, OTHER, SITE, file_bytes, join, planted_adapter, small_weights, split, with_header, written
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearning_adapters.adapter import header as adapter_header
from unlearning_adapters.adapter import record as adapter_record
from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.adapter.file import inspect_adapter
from unlearning_adapters.adapter.header import (
    MAX_FILE_BYTES,
    MAX_HEADER_BYTES,
    factor_key,
    read_header,
    read_key,
    write_key,
)
from unlearning_adapters.adapter.record import COMPONENTS, MAX_SITES
from unlearning_adapters.errors import AdapterFileError

READ, FACTOR, WRITE = f"{SITE}.lora_A.weight", f"{SITE}.lora_B.weight", f"unlearning.lora_V.{SITE}"

with tempfile.TemporaryDirectory() as _folder:
    WHOLE = file_bytes(planted_adapter(small_weights()), Path(_folder))


@pytest.fixture
def blob():
    return WHOLE


def refuse(folder, content: bytes, text: str) -> None:
    path = written(folder, content)
    for reader in (load_adapter, inspect_adapter):
        with pytest.raises(AdapterFileError, match=text) as caught:
            reader(folder)
        message = str(caught.value)
        assert message.startswith(f"Refused {str(path)!r} as an unlearning adapter: ") and message.count(". ") >= 1
        assert "\n" not in message and len(message) < 700


def test_the_untouched_file_is_valid(tmp_path, blob):
    header, data = split(blob)
    assert load_adapter(written(tmp_path, join(header, data))).sites == (SITE, OTHER)


# Not safetensors at all


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "it has 0 bytes, and a header starts with 8"),
        (b"\x10\0\0", "it has 3 bytes, and a header starts with 8"),
        (struct.pack("<Q", 2**63) + b"{}", "header claims 9,223,372,036,854,775,808 bytes, and the limit is 8,388,608"),
        (struct.pack("<Q", 2**23 + 1), "its header claims 8,388,609 bytes, and the limit is 8,388,608"),
        (struct.pack("<Q", 100) + b"{}", "its header claims 100 bytes, and 2 follow"),
        (join(b""), "its header starts with b'', not with '{'"),
        (join(b' {"a":1}'), "not with '{'"),
        (join(b"\xef\xbb\xbf{}"), "not with '{'"),
        (join(b'{"\xff": 1}'), "not UTF-8 at byte 2"),
        (b"<html><body>404 Not Found</body></html>", "it is a text, .*: it starts with '<html><body>404 Not"),
        (b'{"error": "Repository not found"}\n', "it is a text, .*: it starts with '{\"error\""),
        (b"/annex/objects/SHA256E-s123--abc.safetensors\n", "it starts with '/annex/objects/"),
        (b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (gzip.compress(join(b"{}"), mtime=0), "it is compressed by gzip. Unpack it first"),
        (pickle.dumps({"a": 1}, 4), "a pickle or a zip archive, which can run code"),
        (pickle.dumps({"a": [1, 2]}, 2), "a pickle or a zip archive, which can run code"),
        (pickle.dumps({"a": [1, 2]}, 0), "a pickle or a zip archive, which can run code"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, content, text):
    refuse(tmp_path, content, text)


def test_a_renamed_torch_file_is_refused(tmp_path):
    torch.save({READ: torch.zeros(1, 8)}, tmp_path / "weights.bin")
    refuse(tmp_path, (tmp_path / "weights.bin").read_bytes(), "a pickle or a zip archive, which can run code")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, blob):
    path = written(tmp_path, blob)
    with path.open("r+b") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse
    for reader in (load_adapter, inspect_adapter):
        with pytest.raises(AdapterFileError, match="it has 536,870,913 bytes, and the limit is 536,870,912"):
            reader(path)


def test_every_truncation_and_every_tail_is_refused(tmp_path, blob):
    header_end = len(blob) - len(split(blob)[1])
    for length in {*range(0, header_end, 97), *range(header_end, len(blob), 13), len(blob) - 1}:
        refuse(tmp_path, blob[:length], "truncated")
    refuse(tmp_path, blob + b"\0", "it is truncated or has bytes of no tensor: 177 follow, 176 are described")


# JSON


def deep(levels: int) -> str:
    return '{"__metadata__": ' + '{"a":' * levels + "1" + "}" * levels + "}"


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ('{"a": 1,}', "its header is not strict JSON"),
        ('{"a": 1} {"b": 2}', "its header is not strict JSON: Extra data"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
        ('{"a": NaN}', "the number NaN is not finite"),
        ('{"a": -Infinity}', "the number -Infinity is not finite"),
        ('{"a": 1e999}', "the number '1e999' is not finite"),
        ('{"a": ' + "9" * 5000 + "}", "an integer has 5000 digits, and the limit is 19"),
        (deep(6), "nested 7 levels deep, and the limit is 6"),
        (deep(100_000), "nested 100,001 levels deep, and the limit is 6"),
        ("[" * 2**20, "not with '{'"),
        ("{" * 2**20, "its header has 1,048,576 brackets, quotes, commas and colons, and the limit is 524,288"),
        ('{"a": "' + "[" * 50, "not strict JSON: Unterminated string"),
        ('{"__metadata__": []}', "`__metadata__` of its header is not an object of texts"),
        ('{"__metadata__": {"unlearning_adapter": {}}}', "`__metadata__` of its header is not an object of texts"),
        ('{"__metadata__": {"format": "pt", "unlearning_adapter": "[]"}}', "its record is a JSON list, not an object"),
        ('{"__metadata__": {"format": "pt", "unlearning_adapter": ""}}', "its record is not strict JSON"),
        ('{"__metadata__": {"format": "pt", "unlearning_adapter": "{\\"a\\":1,\\"a\\":1}"}}', "key 'a' occurs twice"),
    ],
)
def test_json_that_is_not_strict_is_refused(tmp_path, header, text):
    refuse(tmp_path, join(header), text)


# Whose file it is


def test_a_plain_lora_is_told_apart(tmp_path, blob):
    header, data = split(blob)
    tensors = safetensors.torch.load(blob)
    for metadata in (None, {"format": "pt"}, {"lora_adapter_metadata": "{}"}):
        plain = safetensors.torch.save(tensors, metadata)
        refuse(tmp_path, plain, r"it was an unlearning adapter, but its record is gone: .* Get the original file")
        lora = safetensors.torch.save({key: tensors[key] for key in tensors if "lora_V" not in key}, metadata)
        refuse(tmp_path, lora, r"it is a plain LoRA \(4 LoRA tensors, .*\. Load it with pipe\.load_lora_weights\.")
    other = safetensors.torch.save({"conv.weight": torch.zeros(2, 2)}, {"format": "pt"})
    refuse(tmp_path, other, "its header has no 'unlearning_adapter'. Build an adapter with build_adapter")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lora_adapter_metadata": "{}"}, r"unknown key 'lora_adapter_metadata' .* \(stock loaders execute it\)"),
        ({"note": "x"}, "unknown key 'note' in its metadata"),
        ({"format": "tf"}, "`format` of its metadata is 'tf', not 'pt'"),
    ],
)
def test_other_metadata_is_refused(tmp_path, blob, change, text):
    refuse(tmp_path, with_header(blob, lambda header: header["__metadata__"].update(change)), text)


# Tensors


def entry(name: str, **change):
    return lambda header: header[name].update(change)


def renamed(old: str, new: str):
    return lambda header: header.update({new: header.pop(old)})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (entry(READ, dtype="F64"), "has dtype 'F64', not F32, F16 or BF16"),
        (entry(READ, dtype="I64"), "has dtype 'I64', not F32, F16 or BF16"),
        (entry(READ, dtype=["F32"]), r"has dtype \['F32'\], not F32"),
        (entry(READ, shape=[8]), r"has shape \[8\], not two lengths of at least 1"),
        (entry(READ, shape=[1, 2, 4]), "not two lengths of at least 1"),
        (entry(READ, shape=[0, 2**40]), "not two lengths of at least 1"),
        (entry(READ, shape=[-1, -8]), "not two lengths of at least 1"),
        (entry(READ, shape=[True, 8]), "not two lengths of at least 1"),
        (entry(READ, shape=[1.0, 8]), "not two lengths of at least 1"),
        (entry(READ, shape=[1, 2**62]), r"of shape \[1, 4611686018427387904\] lies at the bytes \[0, 32\]"),
        (entry(READ, shape=[2, 8]), r"of shape \[2, 8\] lies at the bytes \[0, 32\]"),
        (entry(READ, data_offsets=[-32, 0]), r"lies at the bytes \[-32, 0\]"),
        (entry(READ, data_offsets=[0]), r"lies at the bytes \[0\]"),
        (entry(READ, data_offsets=[32, 64]), "starts at byte 32, and the one before ends at 0"),
        (entry(FACTOR, data_offsets=[0, 24]), "starts at byte 0, and the one before ends at 24"),
        (entry(WRITE, data_offsets=[1000, 1032]), "starts at byte 144, and the one before ends at 112"),
        (entry(READ, extra=1), "the entry of the tensor 'transformer.*lora_A.weight' is {"),
        (lambda header: header[READ].pop("dtype"), "the entry of the tensor"),
        (lambda header: header.update({READ: [[[1]]]}), r"the entry of the tensor .* is \[\[\[1\]\]\]"),
        (renamed(READ, "../../etc/passwd"), "the tensor '../../etc/passwd' belongs to no site"),
        (renamed(READ, "__class__"), "the tensor '__class__' belongs to no site"),
        (renamed(READ, ""), "the tensor '' belongs to no site"),
        (renamed(READ, "\x1b[2J\n"), r"the tensor '.x1b\[2J.n' belongs to no site"),
        (renamed(READ, "x" * 100_000), "the tensor 'x{76}... belongs to no site"),
        (renamed(READ, "text_encoder.q.lora_A.weight"), "'text_encoder.q.lora_A.weight' belongs to no site"),
        (renamed(WRITE, "unlearning.lora_V.transformer.x"), "'unlearning.lora_V.transformer.x' belongs to no site"),
    ],
)
def test_wrong_tensor_entries_are_refused(tmp_path, blob, change, text):
    refuse(tmp_path, with_header(blob, change), text)


def rebuilt(blob: bytes, tensors: dict) -> bytes:
    return safetensors.torch.save(tensors, split(blob)[0]["__metadata__"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({READ: None}, "the site 'transformer.blocks.0.attn2.to_k' lacks the tensor '.*lora_A.weight'"),
        ({FACTOR: None}, "lacks the tensor '.*lora_B.weight'"),
        ({FACTOR: (6, 2)}, r"do not fit: A \(1, 8\), B \(6, 2\), V \(1, 8\)"),
        ({WRITE: (1, 7)}, r"do not fit: A \(1, 8\), B \(6, 1\), V \(1, 7\)"),
        ({WRITE: (2, 8)}, r"do not fit: A \(1, 8\), B \(6, 1\), V \(2, 8\)"),
        ({READ: (2, 8), FACTOR: (6, 2), WRITE: (2, 8)}, r"its sites have the ranks \[1, 2\]"),
        ({READ: (65, 8), FACTOR: (6, 65), WRITE: (65, 8)}, "has rank 65, and the limit is 64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, blob, changes, text):
    tensors = safetensors.torch.load(blob)
    for name, shape in changes.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = torch.ones(shape)
    refuse(tmp_path, rebuilt(blob, tensors), text)


def test_a_flood_of_tensors_is_refused(tmp_path, blob):
    def flood(header):
        header.update(
            {f"t{number}": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]} for number in range(12283)}
        )

    refuse(tmp_path, with_header(blob, flood), "it has 12,289 tensors, and the limit is 12,288")


def test_the_largest_layout_that_is_allowed_fits_the_limits_of_json():
    names = [f"transformer.blocks.{number}.layer" for number in range(MAX_SITES)]
    shapes = {key(name): (1, 1) for name in names for key in (read_key, factor_key, write_key)}
    info = AdapterInfo(**INFO, format_version=adapter_record.FORMAT_VERSION).to_dict()
    raw = adapter_header.encode_header(info, "mixed", names, shapes, dict.fromkeys(names, 0.5), names[1:], 0.3)
    header = read_header(io.BytesIO(raw), len(raw) + 4 * len(shapes), "file")
    assert len(header.shapes) == 3 * MAX_SITES and len(raw) < MAX_HEADER_BYTES


def test_the_largest_layout_that_is_meant_fits():
    names = [
        f"{part}.blocks.{block}.layer_{site}" for part in COMPONENTS[:2] for block in range(60) for site in range(12)
    ]
    shapes = {f"{name}.lora_A.weight": (1, 8) for name in names} | {f"{name}.lora_B.weight": (6, 1) for name in names}
    info = AdapterInfo(**INFO).to_dict()
    raw = adapter_header.encode_header(info, "projection", names, shapes)
    assert len(raw) < adapter_header.MAX_HEADER_BYTES / 4
    with pytest.raises(AdapterFileError, match="80,640 are described"):  # all but the data is in order
        read_header(io.BytesIO(raw), len(raw), "file")


def test_a_rank_above_the_width_cannot_be_saved(tmp_path):
    directions = {SITE: Direction(torch.eye(3, 2), torch.eye(3, 2))}
    with pytest.raises(AdapterFileError, match="is not zero rows|no direction"):
        file_bytes(UnlearningAdapter(AdapterInfo(**INFO), directions, {SITE: torch.ones(4, 3)}), tmp_path)


def test_unusual_but_valid_headers_load(tmp_path, blob):
    """Other writers may order keys and tensors differently, escape what they like, and pad or not."""
    header, data = split(blob)
    backwards = dict(reversed(header.items()))
    adapter = load_adapter(written(tmp_path, join(json.dumps(backwards, indent=1, ensure_ascii=True) + "   ", data)))
    assert adapter.sites == (SITE, OTHER)
    assert torch.equal(adapter.directions[SITE].read, planted_adapter(small_weights()).directions[SITE].read)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_end_in_our_error_or_in_a_valid_adapter(changes):
    content = bytearray(WHOLE)
    for place, value in changes:
        content[int(place * len(content))] = value
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), bytes(content))
        try:
            adapter = load_adapter(path)
        except AdapterFileError:
            return
        save_adapter(adapter, path)  # which checks it in full


# A LoRA that was exported from adapters.


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ('{"adapters": [{"concept": "red"}]}', "it is a LoRA that was exported from 'red', for one base at fixed"),
        ('{"adapters": [{"concept": "red"}, {"concept": 3}, 4]}', r"exported from \['red', 3\], for one base"),
        ('{"adapters": [{"concept": "\\u001b[2J"}]}', r"exported from '\\x1b\[2J', for one base"),
        ('{"adapters": 7}', "exported from an adapter, for one base"),
        ("{}", "exported from an adapter, for one base"),
        (json.dumps({"adapters": [{"concept": "x" * 9999}]}), r"exported from 'x+\.\.\., for one base"),
        ("[", "its record is not strict JSON"),
        ("[" * 99, "its record is nested 99 levels deep"),
    ],
)
def test_an_exported_lora_is_told_from_an_adapter(tmp_path, blob, record: str, text: str) -> None:
    exported = with_header(
        blob, lambda header: header.update(__metadata__={"format": "pt", "unlearning_export": record})
    )
    refuse(tmp_path, exported, text)


def test_an_adapter_with_the_record_of_an_export_is_refused(tmp_path, blob) -> None:
    both = with_header(blob, lambda header: header["__metadata__"].update(unlearning_export="{}"))
    refuse(tmp_path, both, "unknown key 'unlearning_export' in its metadata")
