"""Pictures of pairs: how a concept file names them, what is refused, and that an adapter knows which they were."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from command_line import parsed
from PIL import Image

from unlearning_adapters.adapter.missing import POINTER
from unlearning_adapters.concepts.concept import Concept, load_concept, save_concept
from unlearning_adapters.concepts.images import picture_digest, same_picture
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError, ConfigError
from unlearning_adapters.pipelines.activations import record
from unlearning_adapters.pipelines.sites import find_sites


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, colour in (("red", "red"), ("blue", "blue"), ("tree", "green")):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), colour).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


def written(folder: Path, text: str, name: str = "red.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


WORDLESS = """
pairs:
  - {unsafe_image: pictures/red.png, safe_image: pictures/blue.png}
  - {unsafe: a red thing, safe: a thing, unsafe_image: ./pictures/red.png, safe_image: pictures/tree.png}
neutral_images: [pictures/tree.png]
"""


def test_a_file_of_pictures_loads_with_and_without_words(folder):
    concept = load_concept(written(folder, WORDLESS))
    paths = {name: str(folder / "pictures" / f"{name}.png") for name in ("red", "blue", "tree")}
    assert concept.pairs == (
        Pair("", "", paths["red"], paths["blue"]),
        Pair("a red thing", "a thing", paths["red"], paths["tree"]),
    )
    assert [(pair.text_differs, pair.image_differs) for pair in concept.pairs] == [(False, True), (True, True)]
    assert concept.neutral_images == (paths["tree"],)
    assert concept.pairs[0].shown("unsafe") == f"[{paths['red']}]"
    assert concept.pairs[1].shown("safe") == f"a thing [{paths['tree']}]"
    assert Pair("a", "b", Image.new("L", (1, 1)), paths["red"]).shown("unsafe") == "a [a picture]"
    assert Pair("a", "b").shown("safe") == "b"
    pair, neutral = '{"unsafe_image": "pictures/red.png", "safe_image": "pictures/blue.png"}', "pictures/tree.png"
    lines = f'{pair}\n{{"neutral_image": "{neutral}"}}'
    again = load_concept(written(folder, lines, "red.jsonl"))
    assert (again.pairs, again.neutral_images) == (concept.pairs[:1], concept.neutral_images)


def test_a_saved_concept_moves_with_its_pictures(folder, tmp_path_factory):
    concept = load_concept(written(folder, WORDLESS))
    saved = save_concept(concept, folder / "saved.yaml")
    assert str(folder) not in saved.read_text()
    assert load_concept(saved) == concept
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert load_concept(moved / "saved.yaml").pairs_hash == concept_hash_of(moved)
    outside = save_concept(load_concept(moved / "saved.yaml"), tmp_path_factory.mktemp("other") / "saved.yaml")
    assert load_concept(outside).pairs == load_concept(moved / "saved.yaml").pairs  # by absolute paths


def concept_hash_of(folder: Path) -> str:
    return load_concept(folder / "red.yaml").pairs_hash


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("missing.png", r"is missing: there is no file .*missing\.png\. Paths are relative to the concept's file"),
        ("pictures", "is missing: 'pictures' is a folder there, not a file"),
        (
            "pictures/Red.PNG",
            r"is missing: there is no file .*, but there is 'red\.png', and names are case-sensitive",
        ),
        (
            "Pictures/red.png",
            "is missing: there is no file .*, but there is 'pictures', and names are case-sensitive",
        ),
        ("pictures/nowhere.png", "is missing: it is a link to 'gone.png', where nothing is"),
        ("pictures/pointer.png", r"cannot be opened as a picture: .*: it is a pointer of Git LFS, .*`git lfs pull`"),
        ("", "is missing: there is no file"),
        ("https://example.org/red.png", "is missing: there is no file"),
        ("pictures/words.png", r"cannot be opened as a picture: .*words\.png \(UnidentifiedImageError\)"),
        ("pictures/cut.png", "cannot be opened as a picture"),
        ("pictures/pipe.png", r"is missing: 'pipe\.png' is a device or a pipe there, not a file"),
        ("a\\0b", "is not a path"),
        ("x" * 5000, "is not a path"),
        ("pictures/loop.png", "is not a path|is missing"),
    ],
)
def test_what_is_no_picture_is_refused_by_the_name_of_its_entry(folder, path, problem):
    (folder / "pictures" / "words.png").write_text("not a picture")
    (folder / "pictures" / "cut.png").write_bytes((folder / "pictures" / "red.png").read_bytes()[:20])
    os.mkfifo(folder / "pictures" / "pipe.png")
    (folder / "pictures" / "loop.png").symlink_to("loop.png")
    (folder / "pictures" / "nowhere.png").symlink_to("gone.png")
    (folder / "pictures" / "pointer.png").write_bytes(POINTER + b"/spec/v1\noid sha256:0\nsize 1\n")
    pair = f'pairs: [{{unsafe_image: pictures/red.png, safe_image: "{path}"}}]'
    with pytest.raises(ConceptError, match=rf"red\.yaml: The `safe_image` of entry 1 of `pairs` ({problem})"):
        load_concept(written(folder, pair))
    neutral = f'pairs: [{{unsafe: a, safe: b}}]\nneutral_images: [pictures/tree.png, "{path}"]'
    with pytest.raises(ConceptError, match=rf"red\.yaml: Entry 2 of `neutral_images` ({problem})") as caught:
        load_concept(written(folder, neutral))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{unsafe_image: pictures/red.png}", "The unsafe prompt of entry 1 of `pairs` is missing"),
        ("{unsafe: a, safe: b, unsafe_image: pictures/red.png}", "only one side has an image"),
        (
            "{unsafe: a, unsafe_image: pictures/red.png, safe_image: pictures/blue.png}",
            "Expected the safe prompt of a pair to be a text with words, but got ''",
        ),
        (
            "{unsafe_image: pictures/red.png, safe_image: pictures/red.png}",
            r"same: '.*red\.png'\. The safe side must show a picture without the concept",
        ),
    ],
)
def test_pairs_that_are_none_are_refused(folder, entry, problem):
    with pytest.raises(ConceptError, match=problem):
        load_concept(written(folder, f"pairs: [{entry}]"))
    with pytest.raises(ConceptError, match="to be a text with words, but got ''"):
        Pair()
    with pytest.raises(
        ConceptError, match="Expected entry 1 of `neutral_images` to be a path or a PIL image, but got 3"
    ):
        Concept("x", (Pair("a", "b"),), neutral_images=[3])


def test_the_hash_follows_the_pictures(folder):
    concept = load_concept(written(folder, WORDLESS))
    assert re.fullmatch(r"[0-9a-f]{64}", concept.pairs_hash)
    others = [
        replace(concept, pairs=concept.pairs[:1]),
        replace(concept, pairs=(replace(concept.pairs[0], safe_image=concept.neutral_images[0]), concept.pairs[1])),
        replace(concept, pairs=(Pair("", "", Image.new("RGB", (4, 4)), Image.new("RGB", (2, 8))),)),
        replace(concept, pairs=(Pair("", "", Image.new("RGB", (4, 4)), Image.new("RGB", (8, 2))),)),
    ]
    assert len({concept.pairs_hash, *(other.pairs_hash for other in others)}) == 5
    before = concept.pairs_hash
    Image.new("RGB", (4, 4), "purple").save(concept.pairs[0].unsafe_image)
    assert concept.pairs_hash != before
    Path(concept.pairs[0].unsafe_image).unlink()
    with pytest.raises(ConceptError, match=r"The picture .*red\.png of a pair cannot be read: there is no such file"):
        _ = concept.pairs_hash
    # Words alone hash as they always did: adapters know their shipped concepts by it.
    assert Concept("x", (Pair("a", "b"),)).pairs_hash == (
        "cccb00f1aa26751ef483ce54ac95ba9c914ccf956651f6453229f53f2b682f98"
    )


def test_pictures_compare_by_path_or_by_pixels(folder):
    path = folder / "pictures" / "red.png"
    assert same_picture(path, str(path)) and not same_picture(path, folder / "pictures" / "blue.png")
    assert same_picture(Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2)))
    assert not same_picture(Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), "red"))
    assert not same_picture(None, path) and same_picture(None, None)
    assert picture_digest(path) == picture_digest(str(path)) != picture_digest(Image.open(path))


def test_paths_of_all_kinds_and_grey_pictures_reach_the_pipeline(folder):
    pipe = tiny.tiny_wan_image_pipeline()
    sites = find_sites(pipe, "transformer.blocks.1.attn1.to_out.0")
    grey = Image.new("L", (16, 16), 90)
    grey.save(folder / "grey.png")
    shown = [grey, grey.convert("RGB"), folder / "grey.png", str(folder / "grey.png")]
    rows = record(
        pipe, ["a dog"] * 4, sites, images=shown, seed=[0] * 4, steps=1, call_kwargs=tiny.CALL, progress=False
    ).rows[0]
    assert all(torch.equal(rows[0], other) for other in rows[1:])


def test_image_sites_are_chosen_on_the_command_line_too():
    sites = parsed("build", "model", "red", "-o", "out", "--sites", "text,image")["sites"]
    assert sites == ("text", "image")
    assert BuildConfig(sites=sites).to_dict()["sites"] == ["text", "image"]
    assert BuildConfig.from_dict(BuildConfig().to_dict()) == BuildConfig()
    with pytest.raises(ConfigError, match=r"it is empty\. The default, None, chooses by the pairs"):
        BuildConfig(sites=())
