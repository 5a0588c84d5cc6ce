"""docs/format.md is the specification: its examples must load, and its limits must be those of the code."""

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from forge import OTHER, SITE, join, planted_direction, written

from unlearning_adapters.adapter import header as adapter_header
from unlearning_adapters.adapter import record as adapter_record
from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.adapter.file import MAX_GAIN, MAX_SIZE, ROUNDING, UNIT_TOLERANCE
from unlearning_adapters.config import MAX_STRENGTH

SPECIFICATION = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text()


def fences(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SPECIFICATION, re.DOTALL)


def test_the_example_is_a_valid_file(tmp_path):
    header, record = (json.loads(text) for text in fences("json"))
    header["__metadata__"]["unlearning_adapter"] = json.dumps(record)
    values = torch.tensor([1.0, 0.0, -2.0, -3.0, -4.0, 1.0, 0.5])  # A, B, V
    adapter = load_adapter(written(tmp_path, join(header, values.numpy().tobytes())))
    assert adapter.info.to_dict() == {key: value for key, value in record.items() if key not in ("edit", "sites")}
    assert adapter.directions[SITE].write.tolist() == [[1.0, 0.5]]
    assert adapter.lora_B[SITE].tolist() == [[-2.0], [-3.0], [-4.0]]


def test_the_reader_of_the_specification_reads_our_files(tmp_path, monkeypatch):
    directions = {SITE: planted_direction(1, 12, oblique=False), OTHER: planted_direction(3, 12, oblique=True)}
    factors = {SITE: torch.ones(4, 1), OTHER: torch.ones(4, 3)}
    save_adapter(UnlearningAdapter(AdapterInfo("red", "ridge"), directions, factors), tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(fences("python")[0], names)
    assert list(names["directions"]) == [SITE, OTHER]
    for site, (read, write) in names["directions"].items():
        assert torch.equal(read, directions[site].read) and torch.equal(write, directions[site].write)


@pytest.mark.parametrize(
    "limit",
    [
        f"| file | {adapter_header.MAX_FILE_BYTES:,} bytes |",
        f"| header | {adapter_header.MAX_HEADER_BYTES:,} bytes |",
        f"| sites; tensors | {adapter_record.MAX_SITES:,}; {3 * adapter_record.MAX_SITES:,} |",
        f"| rank | {adapter_header.MAX_RANK} |",
        f"no more than {adapter_record.MAX_DEPTH} levels of nesting",
        f"no more than {adapter_record.MAX_MARKS:,} of the characters",
        f"Texts have at most {adapter_record.MAX_TEXT:,} characters",
        f"one line of 1 to {adapter_record.MAX_NAME} characters each",
        f"number from 0 to {MAX_STRENGTH:g}: the default strength",
        f"within `{UNIT_TOLERANCE:g} + {ROUNDING:f} |a_i| |w_j|`",
        f"MUST NOT exceed {MAX_GAIN:,.0f}",
        f"the largest singular value of `V^T A` MUST NOT exceed {MAX_SIZE:,.0f}",
        " or ".join(f"`{edit}`" for edit in adapter_record.EDITS),
        f"format version {adapter_record.FORMAT_VERSION}\n",
        *(f"`{key}`" for key in sorted(adapter_record.RECORD_KEYS)),
        *(f"`{component}`" for component in adapter_record.COMPONENTS),
    ],
)
def test_the_numbers_of_the_specification_are_those_of_the_code(limit):
    assert limit in SPECIFICATION


def test_the_size_that_the_specification_names(tmp_path):
    small = planted_direction(1, 16, oblique=True)
    read, write = (torch.nn.functional.pad(rows, (0, 5104)) for rows in (small.read, small.write))
    directions = {f"transformer.blocks.{block}.{name}": Direction(read, write) for block in range(40) for name in "kv"}
    factors = {site: torch.ones(5120, 1) for site in directions}
    path = save_adapter(UnlearningAdapter(AdapterInfo("red", "ridge"), directions, factors), tmp_path)
    tensors = safetensors.torch.load_file(path)
    assert round(sum(tensor.nbytes for tensor in tensors.values()) / 80 / 1000) == 61
    assert round(path.stat().st_size / 1e6, 1) == 4.9
