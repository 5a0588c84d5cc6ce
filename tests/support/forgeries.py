"""Hostile adapter files, each with the exact words of its refusal.

`PYTHONPATH=src python tests/support/forgeries.py` writes the small ones to `tests/adapter/hostile/`, for readers by
other makers. The bombs, and what may not lie in a repository (pickles), are made when they are needed.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import forge
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parent.parent / "adapter" / "hostile"
SITE, OTHER = forge.SITE, forge.OTHER
READ, FACTOR, WRITE = f"{SITE}.lora_A.weight", f"{SITE}.lora_B.weight", f"unlearning.lora_V.{SITE}"
AGAIN = "Get the file again from where it came, or build it again with build_adapter."
SAFE_ONLY = "Only safetensors files are read; ask its author for one."
MIB = 2**20


@dataclass(frozen=True)
class Forgery:
    """A hostile file.

    Args:
        name: What is wrong with it.
        make: Returns its bytes.
        found: What the refusal says that was found.
        cure: And what to do.
        large: Whether it is made on the fly and is not in that folder.
        values: Whether only its values are wrong, which `inspect_adapter` does not read.
    """

    name: str
    make: Callable[[], bytes]
    found: str
    cure: str = AGAIN
    large: bool = False
    values: bool = False


def whole(rank: int = 1) -> bytes:
    """A valid file of two sites."""
    with tempfile.TemporaryDirectory() as folder:
        return forge.file_bytes(forge.planted_adapter(forge.small_weights(), rank=rank), Path(folder))


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[], bytes]:
    return lambda: forge.with_header(whole(), change)


def metadata(**more: Any) -> Callable[[], bytes]:
    return header(lambda parts: parts["__metadata__"].update(more))


def record(**changes: Any) -> Callable[[], bytes]:
    return lambda: forge.with_record(whole(), **changes)


def entry(tensor: str, **changes: Any) -> Callable[[], bytes]:
    return header(lambda parts: parts[tensor].update(changes))


def renamed(old: str, new: str) -> Callable[[], bytes]:
    return header(lambda parts: parts.update({new: parts.pop(old)}))


def values(tensor: str, change: Callable[[Tensor], object], rank: int = 1) -> Callable[[], bytes]:
    return lambda: forge.with_values(whole(rank), tensor, change)


def additive(tensor: str, change: Callable[[Tensor], object]) -> Callable[[], bytes]:
    return lambda: forge.with_record(values(tensor, change)(), edit="additive")


def text(header_text: str) -> Callable[[], bytes]:
    return lambda: forge.join(header_text)


def shapes(**tensors: tuple[int, int]) -> Callable[[], bytes]:
    """The file of one site with tensors of these shapes, all ones."""

    def make() -> bytes:
        names = {"A": READ, "B": FACTOR, "V": WRITE}
        begin, parts, data = 0, {}, b""
        for key, (rows, columns) in tensors.items():
            end = begin + 4 * rows * columns
            parts[names[key]] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, end]}
            data += struct.pack(f"<{rows * columns}f", *[1.0] * (rows * columns))
            begin = end
        original = forge.split(forge.with_record(whole(), sites=[SITE]))[0]
        return forge.join({"__metadata__": original["__metadata__"], **parts}, data)

    return make


def flood(count: int) -> Callable[[], bytes]:
    extra = {f"t{number}": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]} for number in range(count)}
    return header(lambda parts: parts.update(extra))


def record_text(change: Callable[[str], str]) -> Callable[[], bytes]:
    def edit(parts: dict[str, Any]) -> None:
        parts["__metadata__"]["unlearning_adapter"] = change(parts["__metadata__"]["unlearning_adapter"])

    return header(edit)


def torch_file() -> bytes:
    stream = BytesIO()
    torch.save({READ: torch.zeros(1, 8)}, stream)
    return stream.getvalue()


def mark(old: bytes, new: bytes) -> Callable[[], bytes]:
    """The file with some bytes of its header replaced by as many others."""
    return lambda: whole().replace(old, new, 1)


def stock(settings: dict[str, Any]) -> Callable[[], bytes]:
    return metadata(lora_adapter_metadata=json.dumps(settings))


EXECUTED = "unknown key 'lora_adapter_metadata' in its metadata (stock loaders execute it)."
STRENGTH = (
    "its strength is out of range: Expected the strength to be a number from 0 (off) to 4, but got {}. "
    "1 removes the direction, values above 1 over-correct."
)
PICKLED = "its content is a pickle or a zip archive, which can run code when it is opened."
FULL = len(whole())
HEAD = FULL - len(forge.split(whole())[1])

TRUNCATED = (
    Forgery("empty", lambda: b"", "it is truncated: it has 0 bytes, and a header starts with 8."),
    Forgery("five-bytes", lambda: whole()[:5], "it is truncated: it has 5 bytes, and a header starts with 8."),
    Forgery(
        "length-only",
        lambda: whole()[:8],
        f"it is truncated or not safetensors: its header claims {HEAD - 8:,} bytes, and 0 follow.",
    ),
    Forgery(
        "half-a-header",
        lambda: whole()[: HEAD // 2],
        f"it is truncated or not safetensors: its header claims {HEAD - 8:,} bytes, and {HEAD // 2 - 8:,} follow.",
    ),
    Forgery(
        "no-data", lambda: whole()[:HEAD], "it is truncated or has bytes of no tensor: 0 follow, 176 are described."
    ),
    Forgery(
        "last-byte-missing",
        lambda: whole()[:-1],
        "it is truncated or has bytes of no tensor: 175 follow, 176 are described.",
    ),
    Forgery(
        "polyglot-tail",
        lambda: whole() + b"PK\x05\x06" + bytes(18),
        "it is truncated or has bytes of no tensor: 198 follow, 176 are described.",
    ),
)

BOMBS = (
    Forgery(
        "header-of-exabytes",
        lambda: struct.pack("<Q", 2**63) + b"{}",
        "its header claims 9,223,372,036,854,775,808 bytes, and the limit is 8,388,608.",
    ),
    Forgery(
        "header-above-the-limit",
        lambda: struct.pack("<Q", 8 * MIB + 1) + b"{",
        "its header claims 8,388,609 bytes, and the limit is 8,388,608.",
    ),
    Forgery("nested", text('{"a":' * 7 + "1" + "}" * 7), "its header is nested 7 levels deep, and the limit is 6."),
    Forgery(
        "nested-100000",
        text('{"a":' * 100_000 + "1" + "}" * 100_000),
        "its header is nested 100,000 levels deep, and the limit is 6.",
        large=True,
    ),
    Forgery(
        "brackets",
        text("{" + "[" * (8 * MIB - 1)),
        "its header has 8,388,608 brackets, quotes, commas and colons, and the limit is 524,288.",
        large=True,
    ),
    Forgery(
        "lists",
        text('{"a":[' + "[]," * (2 * MIB) + "0]}"),
        "its header has 6,291,463 brackets, quotes, commas and colons, and the limit is 524,288.",
        large=True,
    ),
    Forgery(
        "100000-tensors",
        flood(100_000 - 6),
        "its header has 2,500,129 brackets, quotes, commas and colons, and the limit is 524,288.",
        large=True,
    ),
    Forgery("too-many-tensors", flood(12_283), "it has 12,289 tensors, and the limit is 12,288.", large=True),
    Forgery(
        "too-many-sites",
        record(sites=[f"transformer.b{number}" for number in range(4097)]),
        "`sites` is 4,097 sites, not a list of 1 to 4,096 names.",
        large=True,
    ),
    Forgery(
        "integer-of-5000-digits",
        text('{"a": ' + "9" * 5000 + "}"),
        "its header is not strict JSON: an integer has 5000 digits, and the limit is 19.",
    ),
    Forgery(
        "long-text",
        record(description="x" * 4 * MIB),
        "`description` has 4,194,304 characters, and the limit is 4,096.",
        large=True,
    ),
    Forgery(
        "long-name",
        renamed(READ, "x" * 2**20),
        f"the tensor '{'x' * 76}... belongs to no site of its record.",
        large=True,
    ),
)

JSON = (
    Forgery(
        "not-json",
        text('{"a": 1,}'),
        "its header is not strict JSON: Expecting property name enclosed in double quotes: line 1 column 9 (char 8).",
    ),
    Forgery(
        "duplicate-tensor",
        lambda: forge.join(f'{{"{READ}": 1, "{READ}": 2}}'),
        f"its header is not strict JSON: the key '{READ}' occurs twice.",
    ),
    Forgery(
        "duplicate-metadata",
        text('{"__metadata__": {}, "__metadata__": {}}'),
        "its header is not strict JSON: the key '__metadata__' occurs twice.",
    ),
    Forgery(
        "duplicate-strength",
        record_text(lambda old: old[:-1] + ',"strength":4}'),
        "its record is not strict JSON: the key 'strength' occurs twice.",
    ),
    Forgery(
        "nan-in-the-record",
        record_text(lambda old: old.replace('"strength":1.25', '"strength":NaN')),
        "its record is not strict JSON: the number NaN is not finite.",
    ),
    Forgery(
        "infinite-in-the-record",
        record_text(lambda old: old.replace('"strength":1.25', '"strength":1e999')),
        "its record is not strict JSON: the number '1e999' is not finite.",
    ),
    Forgery(
        "two-documents",
        text('{"a": 1} {"b": 2}'),
        "its header is not strict JSON: Extra data: line 1 column 10 (char 9).",
    ),
    Forgery(
        "leading-space", text(' {"a":1}'), "it is not safetensors: its header starts with b' {\"a\":1}', not with '{'."
    ),
    Forgery(
        "not-utf-8", lambda: forge.join(b'{"\xff": 1}'), "it is not safetensors: its header is not UTF-8 at byte 2."
    ),
    Forgery(
        "list-as-metadata", text('{"__metadata__": []}'), "the `__metadata__` of its header is not an object of texts."
    ),
)

SHAPES = (
    Forgery(
        "zero-by-2-40",
        entry(READ, shape=[0, 2**40]),
        f"the tensor '{READ}' has shape [0, 1099511627776], not two lengths of at least 1.",
    ),
    Forgery(
        "shape-of-2-62",
        entry(READ, shape=[1, 2**62]),
        f"the tensor '{READ}' of shape [1, 4611686018427387904] lies at the bytes [0, 32].",
    ),
    Forgery(
        "shape-that-overflows",
        entry(READ, shape=[2**32, 2**32], data_offsets=[0, 0]),
        f"the tensor '{READ}' of shape [4294967296, 4294967296] lies at the bytes [0, 0].",
    ),
    Forgery(
        "negative-shape",
        entry(READ, shape=[-1, -8]),
        f"the tensor '{READ}' has shape [-1, -8], not two lengths of at least 1.",
    ),
    Forgery(
        "cube", entry(READ, shape=[1, 2, 4]), f"the tensor '{READ}' has shape [1, 2, 4], not two lengths of at least 1."
    ),
    Forgery(
        "fractional-shape",
        entry(READ, shape=[1.0, 8]),
        f"the tensor '{READ}' has shape [1.0, 8], not two lengths of at least 1.",
    ),
    Forgery(
        "negative-offsets",
        entry(READ, data_offsets=[-32, 0]),
        f"the tensor '{READ}' of shape [1, 8] lies at the bytes [-32, 0].",
    ),
    Forgery(
        "overlap",
        entry(FACTOR, data_offsets=[0, 24]),
        f"the tensor '{READ}' starts at byte 0, and the one before ends at 24.",
    ),
    Forgery(
        "gap",
        entry(WRITE, data_offsets=[1000, 1032]),
        f"the tensor 'unlearning.lora_V.{OTHER}' starts at byte 144, and the one before ends at 112.",
    ),
    Forgery(
        "double-precision", entry(READ, dtype="F64"), f"the tensor '{READ}' has dtype 'F64', not F32, F16 or BF16."
    ),
    Forgery(
        "eight-bit-floats",
        entry(READ, dtype="F8_E4M3"),
        f"the tensor '{READ}' has dtype 'F8_E4M3', not F32, F16 or BF16.",
    ),
    Forgery("rank-65", shapes(A=(65, 8), B=(6, 65), V=(65, 8)), f"the site '{SITE}' has rank 65, and the limit is 64."),
    Forgery(
        "factors-that-do-not-fit",
        shapes(A=(1, 8), B=(6, 2), V=(1, 8)),
        f"the tensors of the site '{SITE}' do not fit: A (1, 8), B (6, 2), V (1, 8).",
    ),
    Forgery("no-factor", shapes(A=(1, 8)), f"the site '{SITE}' lacks the tensor '{FACTOR}'."),
)

NAMES = (
    Forgery(
        "traversal-tensor",
        renamed(READ, "../../etc/passwd"),
        "the tensor '../../etc/passwd' belongs to no site of its record.",
    ),
    Forgery(
        "absolute-tensor", renamed(READ, "/etc/passwd"), "the tensor '/etc/passwd' belongs to no site of its record."
    ),
    Forgery("dunder-tensor", renamed(READ, "__class__"), "the tensor '__class__' belongs to no site of its record."),
    Forgery("escape-tensor", renamed(READ, "\x1b[2J\n"), "the tensor '\\x1b[2J\\n' belongs to no site of its record."),
    Forgery(
        "text-encoder-tensor",
        renamed(READ, "text_encoder.q.lora_A.weight"),
        "the tensor 'text_encoder.q.lora_A.weight' belongs to no site of its record.",
    ),
    *(
        Forgery(
            f"site-{name}",
            record(sites=[SITE, site]),
            f"{site!r} is not the name of a site, such as 'transformer.blocks.0.attn2.to_k'.",
        )
        for name, site in {
            "traversal": "transformer.../../x",
            "slash": "transformer.a/b",
            "dunder": "transformer.__class__.x",
            "other-component": "vae.decoder.conv_in",
            "newline": "transformer.x\n",
            "not-ascii": "transformer.bl\u00f6cke",
        }.items()
    ),
    Forgery("site-twice", record(sites=[SITE, OTHER, SITE]), f"the site '{SITE}' is named twice."),
    Forgery(
        "terminal-escape",
        record(description="\x1b]0;owned\x07"),
        "`description` holds control characters: '\\x1b]0;owned\\x07'.",
    ),
    Forgery("turned-text", record(concept="red\u202ednuos"), "`concept` holds control characters: 'red\\u202ednuos'."),
    Forgery(
        "two-line-concept",
        record(concept="red\nblue"),
        "`concept` is 'red\\nblue', not one line of 1 to 200 characters.",
    ),
    Forgery("other-edit", record(edit="sum"), "`edit` is 'sum', not 'projection' or 'additive'."),
    Forgery("other-key", record(trust_remote_code=True), "unknown key 'trust_remote_code' in its record."),
    Forgery(
        "newer",
        record(format_version=5),
        "it was written by a newer version: found format 5, this package reads 4.",
        "Run: pip install -U unlearning-adapters",
    ),
    Forgery("no-additive-sites", record(format_version=3, edit="mixed"), "its record lacks the key 'additive'."),
    Forgery(
        "additive-site-of-no-record",
        record(format_version=3, edit="mixed", additive=["unet.x"]),
        "`additive` names 'unet.x', which is not a site of its record.",
    ),
    Forgery(
        "all-sites-additive",
        record(format_version=3, edit="mixed", additive=[SITE, OTHER]),
        "`additive` names all sites, for which `edit` is 'additive' and there is no list.",
    ),
    Forgery("gains-of-version-1", record(gains={SITE: 0.5}), "unknown key 'gains' in its record."),
    Forgery(
        "no-gains",
        record(format_version=2, gains={}),
        "`gains` is {}, not an object with a number for one or more of its sites.",
    ),
    Forgery(
        "gain-of-no-site",
        record(format_version=2, gains={"unet.x": 0.5}),
        "`gains` names 'unet.x', which is not a site of its record.",
    ),
    Forgery(
        "gain-of-a-text",
        record(format_version=2, gains={SITE: "0.5"}),
        f"the gain of the site '{SITE}' is out of range: Expected the gain to be a number from 0 (off) to 4, but got "
        "'0.5'. 1 leaves the strength as it is.",
    ),
    Forgery(
        "gain-1e30",
        record(format_version=2, gains={SITE: 1e30}),
        f"the gain of the site '{SITE}' is out of range: Expected the gain to be a number from 0 (off) to 4, but got "
        "1e+30. 1 leaves the strength as it is.",
    ),
    Forgery(
        "gain-times-strength",
        record(format_version=2, gains={SITE: 3.5}),
        f"the gain of the site '{SITE}' is out of range: Expected strength x gain to be at most 4, but got 1.25 x 3.5 "
        "= 4.375. Give a strength of at most 1.142.",
    ),
    Forgery(
        "gain-1",
        record(format_version=2, gains={SITE: 1}),
        f"`gains` names the site '{SITE}' with 1, which is what sites without an entry take.",
    ),
)

PICKLES = (
    *(
        Forgery(
            f"pickle-{protocol}",
            lambda protocol=protocol: pickle.dumps({"a": [1, 2]}, protocol),
            PICKLED,
            SAFE_ONLY,
            large=True,
        )
        for protocol in (0, 2, 4, 5)
    ),
    Forgery("torch-file", torch_file, PICKLED, SAFE_ONLY, large=True),
    Forgery(
        "web-page",
        lambda: b"<html><body>404 Not Found</body></html>",
        "it is a text, such as a page or a pointer in place of the file: "
        "it starts with '<html><body>404 Not Found</body></html>'.",
    ),
)

METADATA = (
    Forgery("stock-rank-bomb", stock({"transformer.r": 10**9}), EXECUTED),
    Forgery("stock-pissa", stock({"transformer.init_lora_weights": "pissa", "transformer.r": 1}), EXECUTED),
    Forgery("stock-alpha", stock({"transformer.lora_alpha": 1e30}), EXECUTED),
    Forgery("other-metadata", metadata(note="x"), "unknown key 'note' in its metadata."),
    Forgery("other-framework", metadata(format="tf"), "the `format` of its metadata is 'tf', not 'pt'."),
    Forgery(
        "lost-record",
        header(lambda parts: parts.pop("__metadata__")),
        "it was an unlearning adapter, but its record is gone: its header has no 'unlearning_adapter', which tools "
        "drop that write the tensors of a file again.",
        "Get the original file, or build the adapter again with build_adapter.",
    ),
)

STRENGTHS = tuple(
    Forgery(f"strength-{name}", record(strength=value), STRENGTH.format(repr(value)))
    for name, value in {"1e30": 1e30, "negative": -1, "true": True, "text": "1", "none": None}.items()
) + (Forgery("strength-of-8000-letters", record(strength="x" * 8000), STRENGTH.format("'" + "x" * 79)),)

SITE_TEXT = f"the site '{SITE}'"
VALUES = tuple(
    Forgery(name, make, found, values=True)
    for name, make, found in (
        (
            "additive-row-of-nothing",
            additive(WRITE, lambda v: v.zero_()),
            f"{SITE_TEXT} has a row that does nothing: |read| |write| of row 0 is 0.",
        ),
        (
            "additive-too-large",
            additive(READ, lambda a: a.mul_(1e3)),
            f"the edit of the site '{SITE}' has the size 1.12e+03, and the limit is 1000.",
        ),
        (
            "additive-1e30",
            additive(READ, lambda a: a.mul_(1e30)),
            f"{SITE_TEXT} has |read| |write| = 1.12e+30, and the limit is 10000.",
        ),
        (
            "nan-read",
            values(READ, lambda a: a[0, 3].fill_(math.nan)),
            f"the tensor '{READ}' holds 1 values that are not finite.",
        ),
        (
            "nan-everywhere",
            lambda: whole()[:HEAD] + b"\xff" * (FULL - HEAD),
            f"the tensor '{READ}' holds 8 values that are not finite.",
        ),
        (
            "infinite-factor",
            values(FACTOR, lambda b: b.fill_(math.inf)),
            f"the tensor '{FACTOR}' holds 6 values that are not finite.",
        ),
        (
            "infinite-write",
            values(WRITE, lambda v: v[0, 0].fill_(-math.inf)),
            f"the tensor '{WRITE}' holds 1 values that are not finite.",
        ),
        (
            "read-1e30",
            values(READ, lambda a: a.mul_(1e30)),
            f"{SITE_TEXT} has |read| |write| = 1.12e+30, and the limit is 10000.",
        ),
        (
            "read-doubled",
            values(READ, lambda a: a.mul_(2)),
            f"{SITE_TEXT} holds no direction: read 0 . write 0 is 2, and it must be 1.",
        ),
        (
            "read-turned-round",
            values(READ, lambda a: a.mul_(-1)),
            f"{SITE_TEXT} holds no direction: read 0 . write 0 is -1, and it must be 1.",
        ),
        (
            "write-zero",
            values(WRITE, lambda v: v.zero_()),
            f"{SITE_TEXT} holds no direction: read 0 . write 0 is 0, and it must be 1.",
        ),
        (
            "reads-alike",
            values(READ, lambda a: a[0].add_(a[1]), 2),
            f"{SITE_TEXT} holds no direction: read 0 . write 1 is 1, and it must be 0.",
        ),
        (
            "only-zeros",
            lambda: forge.with_values(values(READ, lambda a: a.zero_())(), WRITE, lambda v: v.zero_()),
            f"{SITE_TEXT} has no direction, only zeros.",
        ),
        (
            "zero-first",
            lambda: forge.with_values(values(READ, lambda a: a[0].zero_(), 2)(), WRITE, lambda v: v[0].zero_()),
            f"the padding of the site '{SITE}' is not zero rows at the end of A and V, and zero in B.",
        ),
        (
            "padded-factor",
            lambda: forge.with_values(values(READ, lambda a: a[1].zero_(), 2)(), WRITE, lambda v: v[1].zero_()),
            f"the padding of the site '{SITE}' is not zero rows at the end of A and V, and zero in B.",
        ),
    )
)

FORGERIES = (*TRUNCATED, *BOMBS, *JSON, *SHAPES, *NAMES, *PICKLES, *METADATA, *STRENGTHS, *VALUES)


def main() -> None:
    """Write the small files."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for forgery in FORGERIES:
        if not forgery.large:
            (FOLDER / f"{forgery.name}.safetensors").write_bytes(forgery.make())


if __name__ == "__main__":
    main()
