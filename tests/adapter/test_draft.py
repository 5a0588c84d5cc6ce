"""Files and folders are written whole or not at all."""

from pathlib import Path

import pytest

from unlearning_adapters.adapter.draft import draft_of, write_whole
from unlearning_adapters.adapter.versions import version_of


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_draft_takes_the_place_of_a_file_and_of_a_missing_or_empty_folder(tmp_path: Path) -> None:
    place = tmp_path / "new" / "model"
    with draft_of(place) as draft:
        assert draft.parent == place.parent and not place.exists()
        draft.mkdir()
        (draft / "a").write_text("1")
    assert names(place) == ["a"] and names(place.parent) == ["model"]

    empty = tmp_path / "empty"
    empty.mkdir()
    with draft_of(empty) as draft:
        draft.mkdir()
        (draft / "b").write_text("2")
    assert names(empty) == ["b"]

    file = write_whole(tmp_path / "file", b"old")
    write_whole(file, b"new")
    assert file.read_bytes() == b"new" and names(tmp_path) == ["empty", "file", "new"]


@pytest.mark.parametrize("folder", [False, True])
def test_after_an_error_the_old_is_there_and_no_draft(tmp_path: Path, folder: bool) -> None:
    file = write_whole(tmp_path / "file", b"old")
    with pytest.raises(RuntimeError, match="no space"), draft_of(file) as draft:
        if folder:
            draft.mkdir()
            (draft / "half").write_text("1")
        else:
            draft.write_bytes(b"half")
        raise RuntimeError("no space")
    assert file.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_distribution_that_is_not_installed_has_no_version() -> None:
    assert version_of("torch")[0].isdigit()
    assert version_of("no-such-distribution") == "not installed"
    assert version_of("no-such-distribution", missing="0+unknown") == "0+unknown"
