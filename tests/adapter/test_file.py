import json
import math
import os
import resource
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from forge import (
    INFO,
    OTHER,
    SITE,
    file_bytes,
    planted_adapter,
    planted_direction,
    small_weights,
    split,
    with_values,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.adapter.file import FILE_NAME, inspect_adapter
from unlearning_adapters.errors import AdapterFileError, BaseMismatchError, SiteError
from unlearning_adapters.runtime.compatibility import base_deviation

SOURCE = str(Path(__file__).resolve().parents[2] / "src")


def assert_same(left: UnlearningAdapter, right: UnlearningAdapter) -> None:
    assert left.info == right.info
    assert left.sites == right.sites
    assert set(left.lora_B) == set(right.lora_B)
    for site in left.sites:
        assert torch.equal(left.directions[site].read, right.directions[site].read)
        assert torch.equal(left.directions[site].write, right.directions[site].write)
        assert torch.equal(left.lora_B[site], right.lora_B[site])


# Round trip


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    sites=st.lists(
        st.tuples(st.integers(1, 5), st.integers(10, 24), st.integers(1, 9), st.booleans()), min_size=1, max_size=6
    ),
    order=st.randoms(use_true_random=False),
    strength=st.floats(0, 4),
)
def test_a_saved_adapter_loads_bit_for_bit(tmp_path_factory, sites, order, strength):
    folder = tmp_path_factory.mktemp("adapter")
    names = [f"transformer.blocks.{number}.ffn.net.0.proj" for number in range(len(sites))]
    order.shuffle(names)
    directions, factors = {}, {}
    for seed, (name, (rank, in_features, out_features, oblique)) in enumerate(zip(names, sites, strict=True)):
        directions[name] = planted_direction(rank, in_features, oblique=oblique, seed=seed)
        factors[name] = torch.randn(out_features, rank, generator=torch.Generator().manual_seed(seed))
    adapter = UnlearningAdapter(AdapterInfo("red", "ridge", strength), directions, factors)
    assert_same(load_adapter(save_adapter(adapter, folder)), adapter)


def test_all_fields_of_the_record_come_back(tmp_path):
    info = {
        **INFO, "base_revision": "0" * 40, "pipeline": "WanPipeline", "pairs_hash": "f" * 64,
        "versions": {"torch": "2.13.0"}, "description": 'Removes "red",\nöäü 赤 🔴 and \\ too.',
    }  # fmt: skip
    adapter = planted_adapter(small_weights(), **info)
    loaded = load_adapter(save_adapter(adapter, tmp_path))
    assert loaded.info == adapter.info
    assert set(info) | {"format_version"} == set(adapter.info.to_dict()), "a field is not tested"


def test_an_adapter_in_other_dtypes_is_saved_in_float32(tmp_path):
    adapter = planted_adapter(small_weights())
    direction = Direction(adapter.directions[SITE].read.double(), adapter.directions[SITE].write.double())
    factor = adapter.lora_B[SITE].bfloat16()
    loaded = load_adapter(save_adapter(UnlearningAdapter(adapter.info, {SITE: direction}, {SITE: factor}), tmp_path))
    assert torch.equal(loaded.directions[SITE].write, adapter.directions[SITE].write)
    assert torch.equal(loaded.lora_B[SITE], factor.float())
    assert loaded.directions[SITE].read.dtype == loaded.lora_B[SITE].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_factors_of_other_writers_load(tmp_path, dtype):
    adapter = planted_adapter(small_weights(SITE))
    tensors = safetensors.torch.load(file_bytes(adapter, tmp_path))
    header, _ = split(file_bytes(adapter, tmp_path))
    tensors[f"{SITE}.lora_B.weight"] = tensors[f"{SITE}.lora_B.weight"].to(dtype)
    blob = safetensors.torch.save(tensors, header["__metadata__"])
    assert torch.equal(load_adapter(written(tmp_path, blob)).lora_B[SITE], adapter.lora_B[SITE].to(dtype).float())


# The bytes


def test_golden_file(tmp_path):
    direction = Direction(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.5]]))
    other = Direction(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    sites = {"transformer.b.to_v": direction, "transformer.a.to_k": other}
    factors = {"transformer.b.to_v": torch.tensor([[-2.0]]), "transformer.a.to_k": torch.tensor([[-3.0], [-4.0]])}
    info = AdapterInfo("no-red", "ridge", 1, {"rank": 1}, denoisers={"transformer": "WanTransformer3DModel"})
    blob = save_adapter(UnlearningAdapter(info, sites, factors), tmp_path).read_bytes()
    record = (
        r"{\"base_model\":\"\",\"base_revision\":\"\",\"concept\":\"no-red\","
        r"\"denoisers\":{\"transformer\":\"WanTransformer3DModel\"},\"description\":\"\",\"edit\":\"projection\","
        r"\"format_version\":1,\"method\":\"ridge\",\"pairs_hash\":\"\",\"pipeline\":\"\",\"settings\":{\"rank\":1},"
        r"\"sites\":[\"transformer.b.to_v\",\"transformer.a.to_k\"],\"strength\":1.0,\"versions\":{}}"
    )
    header = (
        '{"__metadata__":{"format":"pt","unlearning_adapter":"' + record + '"},'
        '"transformer.a.to_k.lora_A.weight":{"data_offsets":[0,8],"dtype":"F32","shape":[1,2]},'
        '"transformer.a.to_k.lora_B.weight":{"data_offsets":[8,16],"dtype":"F32","shape":[2,1]},'
        '"transformer.b.to_v.lora_A.weight":{"data_offsets":[16,24],"dtype":"F32","shape":[1,2]},'
        '"transformer.b.to_v.lora_B.weight":{"data_offsets":[24,28],"dtype":"F32","shape":[1,1]},'
        '"unlearning.lora_V.transformer.b.to_v":{"data_offsets":[28,36],"dtype":"F32","shape":[1,2]}}'
    )
    header += " " * (-len(header) % 8)
    values = struct.pack("<9f", 0, 1, -3, -4, 1, 0, -2, 1, 0.5)
    assert blob == struct.pack("<Q", len(header)) + header.encode() + values


def test_an_additive_adapter_comes_back_as_one(tmp_path):
    draw = torch.Generator().manual_seed(3)
    read, write = (torch.randn(3, 12, generator=draw) for _ in range(2))
    directions = {SITE: Direction(read, write, additive=True), OTHER: Direction(read[:1], write[:1], additive=True)}
    factors = {SITE: torch.ones(4, 3), OTHER: torch.ones(5, 1)}
    adapter = UnlearningAdapter(AdapterInfo(**INFO), directions, factors)
    loaded = load_adapter(save_adapter(adapter, tmp_path))
    assert_same(loaded, adapter)
    assert loaded.edit == inspect_adapter(tmp_path)["edit"] == "additive"
    assert all(direction.additive for direction in loaded.directions.values())
    as_projection = {site: replace(direction, additive=False) for site, direction in directions.items()}
    with pytest.raises(AdapterFileError, match=r"holds no direction: read 0 \. write 0 is"):
        save_adapter(UnlearningAdapter(adapter.info, as_projection, factors), tmp_path)


def test_the_size_of_an_additive_edit_is_that_of_all_rows_together(tmp_path):
    """Rows that point the same way add up, and rows that cancel each other are bounded on their own."""
    one, cancels = torch.zeros(2, 8), torch.tensor([[1.0], [-1.0]])
    one[:, 0] = 1.0
    factor = {SITE: torch.ones(6, 2)}
    with pytest.raises(AdapterFileError, match=r"has the size 1\.2e\+03, and the limit is 1000"):
        save_adapter(broken(Direction(600 * one, one, additive=True), factor), tmp_path)
    save_adapter(broken(Direction(600 * one, cancels * one, additive=True), factor), tmp_path)
    with pytest.raises(AdapterFileError, match=r"\|read\| \|write\| = 2e\+04, and the limit is 10000"):
        save_adapter(broken(Direction(2e4 * one, cancels * one, additive=True), factor), tmp_path)
    one[1] = 0
    with pytest.raises(AdapterFileError, match=r"has a row that does nothing: \|read\| \|write\| of row 1 is 0"):
        save_adapter(broken(Direction(one, torch.ones(2, 8), additive=True), factor), tmp_path)


def test_the_order_of_keys_changes_nothing_but_the_order_of_sites(tmp_path):
    adapter = planted_adapter(small_weights())
    backwards = UnlearningAdapter(
        AdapterInfo.from_dict(dict(reversed(adapter.info.to_dict().items()))),
        adapter.directions,
        dict(reversed(adapter.lora_B.items())),
    )
    assert file_bytes(adapter, tmp_path) == file_bytes(backwards, tmp_path)
    swapped = UnlearningAdapter(adapter.info, dict(reversed(adapter.directions.items())), adapter.lora_B)
    assert load_adapter(save_adapter(swapped, tmp_path)).sites == (OTHER, SITE)


def test_ranks_are_padded_to_one_and_stripped_again(tmp_path):
    directions = {SITE: planted_direction(1, 12, oblique=False), OTHER: planted_direction(3, 12, oblique=True)}
    factors = {SITE: torch.ones(4, 1), OTHER: torch.ones(4, 3)}
    adapter = UnlearningAdapter(AdapterInfo(**INFO), directions, factors)
    path = save_adapter(adapter, tmp_path)
    tensors = safetensors.torch.load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"{SITE}.lora_A.weight": (3, 12),
        f"{SITE}.lora_B.weight": (4, 3),
        f"{OTHER}.lora_A.weight": (3, 12),
        f"{OTHER}.lora_B.weight": (4, 3),
        f"unlearning.lora_V.{OTHER}": (3, 12),
    }
    assert not tensors[f"{SITE}.lora_A.weight"][1:].any() and not tensors[f"{SITE}.lora_B.weight"][:, 1:].any()
    assert_same(load_adapter(path), adapter)


def test_sites_with_one_direction_get_their_own_tensors(tmp_path):
    adapter = planted_adapter(small_weights(), shared=True)
    tensors = safetensors.torch.load_file(save_adapter(adapter, tmp_path))
    assert torch.equal(tensors[f"{SITE}.lora_A.weight"], tensors[f"{OTHER}.lora_A.weight"])
    assert not torch.equal(tensors[f"{SITE}.lora_B.weight"], tensors[f"{OTHER}.lora_B.weight"])


# Saving


def test_destinations(tmp_path):
    adapter = planted_adapter(small_weights())
    assert save_adapter(adapter, tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / FILE_NAME
    assert save_adapter(adapter, str(tmp_path / "deep" / "red.safetensors")) == tmp_path / "deep" / "red.safetensors"
    for path in (tmp_path / "new").rglob("*"):
        assert path.is_dir() or path.name == FILE_NAME, "a draft was left"
    with pytest.raises(AdapterFileError, match=r"Cannot save an adapter as '.*red\.bin': adapters are \.safetensors"):
        save_adapter(adapter, tmp_path / "red.bin")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(AdapterFileError, match=r"Name a folder, or a path that ends in \.safetensors"):
        save_adapter(adapter, tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for place, reason in (
        (tmp_path / "notes" / "deep", "Not a directory"),
        (tmp_path / "gone", "it is a link to '.*nowhere', where nothing is"),
        ("a\0b", "embedded null byte"),
        ("\ud800", "surrogates not allowed"),
    ):
        with pytest.raises(AdapterFileError, match=f"Cannot write .*: .*{reason}. Choose another folder or file"):
            save_adapter(adapter, place)


def broken(direction: Direction | None = None, factors: dict | None = None, **info) -> UnlearningAdapter:
    adapter = planted_adapter(small_weights(SITE))
    record = AdapterInfo(**{**INFO, **info})
    return UnlearningAdapter(
        record, {SITE: direction or adapter.directions[SITE]}, adapter.lora_B if factors is None else factors
    )


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        (broken(Direction(torch.full((1, 8), math.nan), torch.ones(1, 8))), "8 values that are not finite"),
        (broken(Direction(torch.ones(1, 8), torch.ones(1, 8))), r"read 0 \. write 0 is 8, and it must be 1"),
        (broken(factors={}), r"stock loaders need `lora_B` for each site, and 1 of 1 sites lack it"),
        (broken(factors={SITE: torch.ones(6, 1), OTHER: torch.ones(6, 1)}), f"{OTHER!r} is no site"),
        (broken(factors={SITE: torch.ones(6, 2)}), r"shape \(6, 2\), and its direction has rank 1"),
        (broken(concept="two\nlines"), "`concept` is 'two.nlines', not one line"),
        (broken(settings={"a": math.inf}), "Out of range float values"),
        (broken(settings={"a": object()}), "cannot be written as JSON"),
        (broken(format_version=5), "found format 5, this package reads 4"),
    ],
)
def test_a_failed_save_leaves_the_old_file(tmp_path, adapter, text):
    path = save_adapter(planted_adapter(small_weights()), tmp_path)
    before = path.read_bytes()
    with pytest.raises(AdapterFileError, match=text) as caught:
        save_adapter(adapter, tmp_path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before and [item.name for item in tmp_path.iterdir()] == [FILE_NAME]


def test_a_save_that_the_disk_refuses_leaves_the_old_file(tmp_path):
    path = save_adapter(planted_adapter(small_weights()), tmp_path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_adapter(planted_adapter(small_weights(), strength=2.0), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [item.name for item in tmp_path.iterdir()] == [FILE_NAME]


# Values


@pytest.mark.parametrize(
    ("tensor", "change", "text"),
    [
        (
            f"{SITE}.lora_A.weight",
            lambda a: a[0, 3].fill_(math.nan),
            r"lora_A.weight' holds 1 values that are not finite",
        ),
        (f"{SITE}.lora_B.weight", lambda b: b.fill_(math.inf), r"lora_B.weight' holds 12 values that are not finite"),
        (f"unlearning.lora_V.{SITE}", lambda v: v[0, 0].fill_(-math.inf), "1 values that are not finite"),
        (f"{SITE}.lora_A.weight", lambda a: a.mul_(2), r"read \d \. write \d is 2, and it must be 1"),
        (f"{SITE}.lora_A.weight", lambda a: a.mul_(-1), r"is -1, and it must be 1"),
        (f"{SITE}.lora_A.weight", lambda a: a[0].add_(a[1]), r"read 0 \. write 1 is 1, and it must be 0"),
        (f"{SITE}.lora_A.weight", lambda a: a[1].zero_(), r"read 1 \. write 1 is 0, and it must be 1"),
        (f"unlearning.lora_V.{SITE}", lambda v: v.zero_(), r"is 0, and it must be 1"),
        (f"{SITE}.lora_A.weight", lambda a: a.mul_(1e30), r"\|read\| \|write\| = 1\.12e\+30, and the limit is 10000"),
    ],
)
def test_hostile_values_are_refused(tmp_path, tensor, change, text):
    blob = file_bytes(planted_adapter(small_weights(SITE), rank=2), tmp_path)
    path = written(tmp_path, with_values(blob, tensor, change))
    with pytest.raises(AdapterFileError, match=text) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "change", "text"),
    [
        ("lora_A", lambda a: a.zero_(), "has no direction, only zeros"),
        ("lora_A", lambda a: a.copy_(a.flip(0)), "is not zero rows at the end"),
        ("lora_B", lambda b: b[:, 1].fill_(1.0), "is not zero rows at the end of A and V, and zero in B"),
    ],
)
def test_padding_must_be_zero_and_last(tmp_path, tensor, change, text):
    directions = {SITE: planted_direction(1, 8, oblique=False), OTHER: planted_direction(2, 8, oblique=False)}
    adapter = UnlearningAdapter(AdapterInfo(**INFO), directions, {SITE: torch.ones(3, 1), OTHER: torch.ones(3, 2)})
    blob = file_bytes(adapter, tmp_path)
    with pytest.raises(AdapterFileError, match=text):
        load_adapter(written(tmp_path, with_values(blob, f"{SITE}.{tensor}.weight", change)))


def test_rows_may_be_scaled_against_their_writes(tmp_path):
    plain = planted_direction(2, 8, oblique=True)
    scale = torch.tensor([[1e6], [1e-6]])
    direction = Direction(plain.read * scale, plain.write / scale)
    loaded = load_adapter(save_adapter(broken(direction, {SITE: torch.ones(6, 2)}), tmp_path))
    assert torch.equal(loaded.directions[SITE].read, direction.read)
    direction.read[0] += 0.1 * direction.read[1] * 1e12
    with pytest.raises(AdapterFileError, match="holds no direction: read 0 . write 1"):
        save_adapter(broken(direction, {SITE: torch.ones(6, 2)}), tmp_path)


# Inspect


def test_inspect_reads_no_tensor_and_imports_no_heavy_library(tmp_path):
    directions = {SITE: planted_direction(1, 12, oblique=False), OTHER: planted_direction(3, 10, oblique=True)}
    adapter = UnlearningAdapter(AdapterInfo(**INFO), directions, {SITE: torch.ones(4, 1), OTHER: torch.ones(5, 3)})
    path = save_adapter(adapter, tmp_path)
    header, data = split(path.read_bytes())
    path.write_bytes(path.read_bytes()[: -len(data)] + b"\xff" * len(data))  # every value is NaN now
    script = (
        "import json, sys; from unlearning_adapters.adapter.file import inspect_adapter\n"
        "print(json.dumps(inspect_adapter(sys.argv[1])))\n"
        "print([name for name in sys.modules if name.split('.')[0] in\n"
        "       {'torch', 'numpy', 'safetensors', 'diffusers', 'huggingface_hub', 'yaml'}])"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    output = subprocess.check_output(command, env={**os.environ, "PYTHONPATH": SOURCE}, text=True).splitlines()
    assert output[1] == "[]"
    assert (
        json.loads(output[0])
        == inspect_adapter(path)
        == {
            "file": str(path),
            "bytes": path.stat().st_size,
            "rank": 3,
            "components": ["transformer"],
            "edit": "projection",
            "shrinkage": 0.0,
            "info": adapter.info.to_dict(),
            "sites": [
                {"name": SITE, "in_features": 12, "out_features": 4, "orthogonal": True, "gain": 1.0},
                {"name": OTHER, "in_features": 10, "out_features": 5, "orthogonal": False, "gain": 1.0},
            ],
        }
    )
    with pytest.raises(AdapterFileError, match="not finite"):
        load_adapter(path)


# The base


def test_base_deviation_tells_the_base_from_others():
    weights = small_weights(in_features=64, out_features=48)
    adapter = planted_adapter(weights, rank=2)
    assert base_deviation(adapter, weights) < 1e-6
    assert 1e-4 < base_deviation(adapter, {site: weight.bfloat16() for site, weight in weights.items()}) < 1e-2
    assert base_deviation(adapter, {SITE: torch.randn(48, 64, generator=torch.Generator().manual_seed(1))}) > 0.5
    changed = UnlearningAdapter(adapter.info, adapter.directions, {**adapter.lora_B, OTHER: -adapter.lora_B[OTHER]})
    assert base_deviation(changed, weights) == pytest.approx(2)
    assert base_deviation(changed, {SITE: weights[SITE]}) < 1e-6, "only the named sites are compared"
    off = planted_adapter(weights, strength=0.0)
    assert base_deviation(off, weights) == 0
    assert base_deviation(UnlearningAdapter(off.info, off.directions, adapter.lora_B), weights) == math.inf


def test_base_deviation_names_what_does_not_fit():
    adapter = planted_adapter(small_weights())
    with pytest.raises(BaseMismatchError, match=r"shape \(6, 9\), but .* \(6, 8\)\. Load the base 'org/base'"):
        base_deviation(adapter, {SITE: torch.zeros(6, 9)})
    with pytest.raises(SiteError, match="no stock factor for the site 'transformer.x'"):
        base_deviation(adapter, {"transformer.x": torch.zeros(6, 8)})
