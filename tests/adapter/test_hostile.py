"""Every hostile file is refused with its own words, in little memory, without a trace on disk or on a live pipeline."""

import os
from dataclasses import replace
from pathlib import Path

import forge
import pytest
import torch
from forgeries import FOLDER, FORGERIES, Forgery, whole
from fuzz.seeds import live_pipeline
from fuzz.watch import PYTHON_CAP, Untouched, Watch
from tiny import tiny_wan_pipeline

from planted import planted
from unlearning_adapters.adapter.adapter import load_adapter, save_adapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.adapter.file import FILE_NAME, inspect_adapter
from unlearning_adapters.errors import AdapterFileError, AdapterNotFoundError
from unlearning_adapters.runtime.verbs import load_unlearning_adapter


@pytest.fixture(scope="module")
def pipe():
    return live_pipeline()


@pytest.fixture(scope="module")
def untouched(pipe):
    return Untouched(pipe.transformer)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def watch(place) -> Watch:
    return Watch(place)


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.name)
def test_it_is_refused_in_its_own_words_and_leaves_no_trace(forgery: Forgery, pipe, untouched, place, watch) -> None:
    path = forge.written(place, forgery.make())
    text = f"Refused {str(path)!r} as an unlearning adapter: {forgery.found} {forgery.cure}"
    readers = [load_adapter, lambda source: load_unlearning_adapter(pipe, source)]
    readers += [] if forgery.values else [inspect_adapter]
    for reader in readers:
        with watch.watching(traced=True), pytest.raises(AdapterFileError) as caught:
            reader(place)
        assert str(caught.value) == text
    assert not watch.seen and watch.peak < PYTHON_CAP
    assert not untouched.changed()
    assert [item.name for item in place.iterdir()] == [FILE_NAME]


def test_the_small_files_lie_in_the_folder_as_they_are_made_now() -> None:
    small = {f"{forgery.name}.safetensors": forgery for forgery in FORGERIES if not forgery.large}
    assert {path.name for path in FOLDER.iterdir()} == set(small)
    for name, forgery in small.items():
        assert (FOLDER / name).read_bytes() == forgery.make(), "run `python tests/support/forgeries.py`"
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 500_000
    assert len({forgery.name for forgery in FORGERIES}) == len(FORGERIES)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"])
def test_a_valid_file_under_the_name_of_a_pickle_is_refused(tmp_path, suffix) -> None:
    path = forge.written(tmp_path, whole(), f"adapter{suffix}")
    text = (
        f"Refused {str(path)!r} as an unlearning adapter: {suffix} files are pickles, which can run code when they are "
        "opened. Only .safetensors files are read; ask its author for one."
    )
    for reader in (load_adapter, inspect_adapter):
        with pytest.raises(AdapterFileError) as caught:
            reader(path)
        assert str(caught.value) == text


@pytest.mark.parametrize("name", ["adapter.txt", "adapter.gguf", "adapter.SAFETENSORS", "adapter"])
def test_a_valid_file_under_another_suffix_is_refused(tmp_path, name) -> None:
    path = forge.written(tmp_path, whole(), name)
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(path)
    assert str(caught.value) == (
        f"Refused {str(path)!r} as an unlearning adapter: its suffix is {path.suffix!r}, not '.safetensors'. "
        f"Adapters are saved as {FILE_NAME!r}."
    )


def test_what_is_no_plain_file_is_not_opened(tmp_path) -> None:
    """A pipe would wait for ever, and a device never ends."""
    os.mkfifo(tmp_path / FILE_NAME)
    with pytest.raises(AdapterNotFoundError, match="No unlearning adapter in the folder"):
        load_adapter(tmp_path)
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    with pytest.raises(AdapterNotFoundError, match="is a device or a pipe there, not a file"):
        load_adapter(tmp_path / "zero.safetensors")


# A file that is valid, and is not what its builder wrote.


def beside(direction: Direction) -> torch.Tensor:
    """A vector of the write's length that the read does not see, so that `read . write` stays 1."""
    other = torch.randn(direction.write.shape, generator=torch.Generator().manual_seed(5))
    read = direction.read
    other -= (other @ read.T) / (read @ read.T) * read
    return other * (direction.write.norm() / other.norm())


@pytest.mark.parametrize("part", ["factor", "write"])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_tampered_factor_or_write_at_any_site_is_said(tmp_path, part, number) -> None:
    pipe = tiny_wan_pipeline()
    honest = planted(pipe)
    site = honest.sites[number]
    direction = honest.directions[site]
    if part == "factor":
        changed = replace(honest, lora_B={**honest.lora_B, site: -honest.lora_B[site]})
    else:
        moved = Direction(direction.read, direction.write + beside(direction))
        changed = replace(honest, directions={**honest.directions, site: moved})
    save_adapter(changed, tmp_path)
    with pytest.warns(UserWarning, match=r"or its file was changed: its LoRA factors deviate by \d+%") as caught:
        load_unlearning_adapter(pipe, tmp_path)
    assert len(caught) == 1
