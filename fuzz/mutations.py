"""Changes of a valid adapter file that know its structure: its header, its record, its tensors, its bytes."""

import json
import pickle
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from .json_text import Pairs, Raw, objects, parse, places, write

INTEGERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    63,
    64,
    65,
    255,
    4096,
    4097,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    2**64,
)
FLOATS = (0.0, 1.0, -1.0, 0.5, 4.0, 4.0000001, 1e-45, 1e-30, 1e4, 1e19, 1e30, 3.4e38, float("inf"), float("nan"))
TEXTS = (
    "", " ", "pt", "F32", "F16", "BF16", "F64", "I64", "F8_E4M3", "ridge", "../../etc/passwd", "/etc/passwd", "C:\\x",
    "..", "transformer", "transformer.blocks.0.attn2.to_k", "transformer.blocks.99.attn2.to_k", "transformer.__class__",
    "transformer_2.blocks.0.attn2.to_k", "text_encoder.x", "unet.x", "__metadata__", "__reduce__",
    "lora_adapter_metadata", "unlearning_adapter", "projection", "additive",
    "\x1b[2J", "a\nb", "\x00", "\u202egnp", "\ud800", "🔴", "é" * 300, "x" * 201, "x" * 5000,
    "{}", "[]", '{"r": 1000000000}', '{"init_lora_weights": "pissa"}', "$concept", "${x}", "{{7*7}}", "%s%n",
    "<script>",
)  # fmt: skip
RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 50, "9" * 5000, "-0", "01", "1.", ".5", "0x10", "1e-999",
    "'a'", "None", "True", "undefined", "[" * 50, "{" * 50, "[" * 3000 + "]" * 3000, '"\\ud800"', '"\\u0000"', '"', "",
    "1,2", "/**/1", "[],[]", "\ufeff1", '{"a":1,"a":2}', "[[[[[[[1]]]]]]]",
)  # fmt: skip
Change = Callable[["File", Random], None]


class File:
    """A file in parts: the header as a tree, the data, and what overrides them."""

    def __init__(self, blob: bytes) -> None:
        length = struct.unpack("<Q", blob[:8])[0]
        self.header: Any = parse(blob[8 : 8 + length].decode())
        self.data = bytearray(blob[8 + length :])
        self.length: int | None = None  # what the first eight bytes say, if not the truth
        self.padding = b""

    def metadata(self) -> Any:
        """The object of `__metadata__`, or None if it is gone."""
        return _value(self.header, "__metadata__")

    def entries(self) -> list[Any]:
        """The [name, entry] of each tensor."""
        return [pair for pair in self.header if pair[0] != "__metadata__"] if isinstance(self.header, Pairs) else []

    def to_bytes(self) -> bytes:
        """The file."""
        text = write(self.header).encode("utf-8", "surrogatepass") + self.padding
        return struct.pack("<Q", len(text) if self.length is None else self.length) + text + bytes(self.data)


def mutate(seeds: Sequence[bytes], random: Random) -> bytes:
    """Return one of the seeds with one to four changes."""
    blob = random.choice(seeds)
    file = File(blob)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(STRUCTURED)(file, random)
    blob = file.to_bytes() if random.random() < 0.85 else blob
    for _ in range(random.choice((0, 0, 0, 0, 1, 1, 2))):
        blob = random.choice(BYTEWISE)(blob, seeds, random)
    return blob


def _value(tree: Any, key: str) -> Any:
    return next((pair[1] for pair in tree if pair[0] == key), None) if isinstance(tree, Pairs) else None


def _hostile(random: Random) -> Any:
    kind = random.randrange(8)
    if kind < 2:
        return random.choice(INTEGERS) * random.choice((1, 1, 1, -1)) + random.choice((0, 0, 1, -1))
    if kind < 4:
        return random.choice(TEXTS)
    if kind == 4:
        return Raw(random.choice(RAW))
    if kind == 5:
        return random.choice((None, True, False, 0.5, -0.0, 1e30, 1.25))
    if kind == 6:
        return [random.choice(INTEGERS) for _ in range(random.randrange(4))]
    return Pairs([[random.choice(TEXTS), random.choice(INTEGERS)] for _ in range(random.randrange(3))])


def _change_tree(tree: Any, random: Random) -> Any:
    """Change one place of a tree."""
    found = list(places(tree))
    if not found:
        return _hostile(random)
    holder, index = random.choice(found)
    kind = random.randrange(7)
    if kind < 3:
        holder[index] = _hostile(random)
    elif kind == 3 and isinstance(holder[index], (int, float)):
        holder[index] += random.choice((-8, -4, -1, 1, 4, 8))
    elif kind == 4:
        other, place = random.choice(found)
        holder[index], other[place] = other[place], holder[index]
    elif kind == 5:
        choice = random.choice(list(objects(tree)) or [Pairs()])
        if choice:
            pair = random.choice(choice)
            choice.insert(random.randrange(len(choice) + 1), [pair[0], random.choice((pair[1], _hostile(random)))])
    else:
        choice = random.choice(list(objects(tree)) or [Pairs()])
        if choice and random.random() < 0.6:
            choice.pop(random.randrange(len(choice)))
        else:
            choice.append([random.choice(TEXTS), _hostile(random)])
    return tree


def _header(file: File, random: Random) -> None:
    file.header = _change_tree(file.header, random)


def _record(file: File, random: Random) -> None:
    """Change the record, which is JSON in a text of JSON."""
    metadata = file.metadata()
    text = _value(metadata, "unlearning_adapter")
    try:
        tree = parse(text)
    except (TypeError, ValueError, RecursionError):
        return
    new = write(_change_tree(tree, random))
    for pair in metadata:
        if pair[0] == "unlearning_adapter":
            pair[1] = new


def _strength(file: File, random: Random) -> None:
    metadata = file.metadata()
    for pair in metadata if isinstance(metadata, Pairs) else ():
        if pair[0] == "unlearning_adapter" and isinstance(pair[1], str):
            value = random.choice(("1e30", "-1", "4.1", "0", "NaN", "true", '"1"', "null", "1e-320", "-0.0"))
            pair[1] = pair[1].replace('"strength":1.25', f'"strength":{value}')


def _metadata(file: File, random: Random) -> None:
    metadata = file.metadata()
    if isinstance(metadata, Pairs):
        metadata.append([random.choice(("lora_adapter_metadata", *TEXTS)), random.choice(TEXTS)])


def _entry(file: File, random: Random) -> None:
    """Change the dtype, the shape or the place of one tensor, or swap those of two."""
    found = file.entries()
    if not found:
        return
    pair, other = random.choice(found), random.choice(found)
    kind = random.randrange(6)
    if kind == 0:
        pair[1], other[1] = other[1], pair[1]
    elif kind == 1:
        pair[0], other[0] = other[0], pair[0]
    elif kind == 2:
        pair[0] = random.choice((random.choice(TEXTS), f"{pair[0]}\n", str(pair[0]).upper(), 1))
    elif kind == 3 and isinstance(_value(pair[1], "shape"), list):
        shape = _value(pair[1], "shape")
        shape[:] = random.choice((shape[::-1], [1, *shape], shape[:1], [random.choice(INTEGERS) for _ in shape]))
    elif kind == 4:
        file.header.remove(pair)
    elif isinstance(pair[1], Pairs):
        for field in pair[1]:
            if field[0] == random.choice(("dtype", "data_offsets", "shape")):
                field[1] = _hostile(random)


def _flood(file: File, random: Random) -> None:
    """Add many tensors, of no bytes or of the same bytes."""
    if random.random() < 0.005 and isinstance(file.header, Pairs):
        count = random.choice((100, 12_289, 20_000))
        entry = Pairs([["dtype", "F32"], ["shape", [1, 1]], ["data_offsets", [0, 4]]])
        file.header.extend([f"t{number}", entry] for number in range(count))


def _values(file: File, random: Random) -> None:
    """Change values of one tensor where it lies in the data."""
    found = [pair for pair in file.entries() if isinstance(_value(pair[1], "data_offsets"), list)]
    if not found:
        return
    offsets = _value(random.choice(found)[1], "data_offsets")
    if len(offsets) != 2 or not all(isinstance(item, int) and 0 <= item <= len(file.data) for item in offsets):
        return
    begin, end = offsets
    count = (end - begin) // 4
    if count < 1:
        return
    values = list(struct.unpack(f"<{count}f", file.data[begin : begin + 4 * count]))
    kind = random.randrange(7)
    index = random.randrange(count)
    if kind < 2:
        values[index] = random.choice(FLOATS)
    elif kind == 2:
        values = [random.choice(FLOATS)] * count
    elif kind == 3:
        scale = random.choice((0.0, -1.0, 2.0, 0.999, 1.0001, 1e-20, 1e20))
        values = [value * scale for value in values]
    elif kind == 4:
        random.shuffle(values)
    elif kind == 5:
        values[index] += random.gauss(0, 0.01)
    else:
        values = [random.gauss(0, 1) for _ in values]
    file.data[begin : begin + 4 * count] = b"".join(_float32(value) for value in values)


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf"))


def _data(file: File, random: Random) -> None:
    """Make the data shorter or longer, or move it."""
    kind = random.randrange(4)
    if kind == 0:
        del file.data[random.randrange(len(file.data) + 1) :]
    elif kind == 1:
        file.data += bytes(random.choice((1, 4, 8, 64, 4096)))
    elif kind == 2:
        file.data.reverse()
    else:
        cut = random.randrange(len(file.data) + 1)
        file.data = file.data[cut:] + file.data[:cut]


def _length(file: File, random: Random) -> None:
    file.length = max(0, min(2**64 - 1, random.choice(INTEGERS) + random.choice((0, 0, -8, 8, 1, -1))))


def _pad(file: File, random: Random) -> None:
    file.padding = random.choice((b" ", b"\0", b"\n", b"{}", b"\xff", b" " * 5000)) * random.choice((1, 3, 8))


def _flip(blob: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    content = bytearray(blob)
    for _ in range(random.choice((1, 1, 2, 8))):
        if content:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(content)


def _write_bytes(blob: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    place = random.randrange(len(blob) + 1)
    piece = random.choice((b"\0", b"\xff" * 8, b'"', b"}", b"\\", struct.pack("<Q", random.choice(INTEGERS) % 2**64)))
    return blob[:place] + piece + blob[place + random.choice((0, len(piece))) :]


def _cut(blob: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    begin, end = sorted(random.randrange(len(blob) + 1) for _ in range(2))
    return random.choice((blob[:begin], blob[begin:], blob[:begin] + blob[end:], blob[:end] + blob[begin:]))


def _splice(blob: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    other = random.choice(seeds)
    return blob[: random.randrange(len(blob) + 1)] + other[random.randrange(len(other) + 1) :]


def _other_format(blob: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    """Put the start of another format in front, or replace all of the file."""
    start = random.choice(
        (b"PK\x03\x04", b"\x80\x02}q\x00", b"\x80\x04\x95", b"(dp0\n", b"cos\nsystem\n", b"GGUF", b"\x1f\x8b", b"MZ")
    )
    whole = pickle.dumps({"a": [1, 2]}, random.randrange(6))
    return random.choice((start + blob, start + blob[len(start) :], whole, whole + blob, json.dumps({"a": 1}).encode()))


STRUCTURED: tuple[Change, ...] = (
    _header, _record, _record, _record, _strength, _metadata, _entry, _entry, _flood, _values, _values, _values, _data,
    _length, _pad,
)  # fmt: skip
BYTEWISE = (_flip, _flip, _write_bytes, _cut, _splice, _other_format)
