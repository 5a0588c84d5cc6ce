"""Wrong arguments of a build are named in one line, before the pipeline is read."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import WanModularPipeline
from PIL import Image
from planted_words import CONCEPT
from torch import nn

from unlearning_adapters.adapter.missing import POINTER
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.building.build_many import build_adapters
from unlearning_adapters.concepts.concept import Concept, load_concept, save_concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError, ConfigError, DenoiserError, PipelineError, UnlearningError

LONG = "x" * 5000


class Untouched:
    """A pipeline that must not be looked at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the pipeline was asked for {name}")


@pytest.mark.parametrize("config", ["text", None, 3, {"pairs": 2}, BuildConfig, torch.ones(3), LONG], ids=repr)
@pytest.mark.parametrize("build", [build_adapter, lambda pipe, concept, *more: build_adapters(pipe, [concept], *more)])
def test_a_config_of_another_type_is_named_before_the_pipeline_is_read(build, config):
    with pytest.raises(ConfigError, match="Expected a BuildConfig, such as BuildConfig") as caught:
        build(Untouched(), CONCEPT, config)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    "concept", ["red", None, 3, [CONCEPT], Concept, np.ones(3), LONG], ids=lambda each: repr(each)[:9]
)
def test_a_concept_of_another_type_is_named(concept):
    with pytest.raises(ConceptError, match=re.escape("Expected a Concept, such as load_concept(")) as caught:
        build_adapter(Untouched(), concept)
    assert_one_line(caught.value)
    with pytest.raises(ConceptError, match="Expected entry 2 of the concepts to be a Concept, but got"):
        build_adapters(Untouched(), [CONCEPT, concept])


@pytest.mark.parametrize("concepts", [CONCEPT, "red", None, {"a": CONCEPT}, 3], ids=lambda each: repr(each)[:9])
def test_what_is_no_list_of_concepts_is_named(concepts):
    with pytest.raises(ConceptError, match="Expected a list of concepts, but got"):
        build_adapters(Untouched(), concepts)


@pytest.mark.parametrize("call", ["height", 3, [("height", 32)], {"height"}, {"height": 32, 1: 2}], ids=repr)
def test_arguments_of_the_call_that_are_no_mapping_are_named(call):
    with pytest.raises(ConfigError, match="Expected `call_kwargs` to be a mapping of arguments, but got"):
        build_adapter(Untouched(), CONCEPT, call_kwargs=call)


@pytest.mark.parametrize("pipe", [None, "shapeworld", 3, nn.Linear(2, 2), {}, LONG], ids=lambda each: repr(each)[:9])
def test_what_is_no_pipeline_is_named(pipe):
    with pytest.raises(DenoiserError, match="has no denoiser. Expected a component named transformer") as caught:
        build_adapter(pipe, CONCEPT)
    assert_one_line(caught.value)


@pytest.mark.parametrize("name", [LONG, "x" * 300, "a\0b", "\ud800", "a\nb", f"{'x' * 300}.yaml", "", ".", "/"])
def test_names_that_cannot_be_concepts_are_named(name):
    for source in (name, Path(name)):
        with pytest.raises(ConceptError) as caught:
            load_concept(source)
        assert_one_line(caught.value)


@pytest.mark.parametrize("place", [3, None, "no-suffix", "nowhere/at/all.yaml", "a\0.yaml", f"{LONG}.yaml", "dir.yaml"])
def test_where_no_concept_can_be_written_is_named(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir.yaml").mkdir()
    with pytest.raises(ConceptError) as caught:
        save_concept(CONCEPT, place)
    assert_one_line(caught.value)
    with pytest.raises(ConceptError, match="Expected a Concept to save, but got 'red'"):
        save_concept("red", tmp_path / "red.yaml")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sides", [(np.ones(3), "a"), (torch.ones(2), torch.ones(2)), (["a"], "b"), (b"a", b"b"), (3, 4)]
)
def test_sides_of_a_pair_that_are_no_texts_are_named(sides):
    with pytest.raises(ConceptError, match="Expected the unsafe prompt of a pair to be a text with words") as caught:
        Pair(*sides)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "cannot be read: there is no such file"),
        (lambda path: path.mkdir(), "cannot be read: 'red.png' is a folder there, not a file"),
        (lambda path: path.symlink_to("gone.png"), "cannot be read: it is a link to 'gone.png', where nothing is"),
        (lambda path: path.write_bytes(POINTER + b"/spec/v1\n"), "cannot be read: it is a pointer of Git LFS"),
        (
            lambda path: path.with_name("Red.png").touch(),
            "cannot be read: there is no such file, but there is 'Red.png', and names are",
        ),
        (lambda path: path.write_text("no picture"), r"cannot be opened \(UnidentifiedImageError"),
        (lambda path: cut(path), r"cannot be opened \(OSError: image file is truncated"),
    ],
)
def test_a_picture_that_cannot_be_opened_is_named_while_building(make, problem, tmp_path):
    path, other = tmp_path / "red.png", tmp_path / "blue.png"
    Image.new("RGB", (16, 16)).save(other)
    make(path)
    pipe = image_pipeline()
    for unsafe, safe in ((path, other), (str(other), str(path))):
        with pytest.raises(ConceptError, match=rf"picture '.*red\.png' of the concept {problem}") as caught:
            build_adapter(pipe, Concept("red", [Pair("a dog", "a cat", unsafe, safe)], neutral=["a"]), progress=False)
        assert_one_line(caught.value)


def cut(path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:600])


def image_pipeline() -> Any:
    from cases.wan import CASES

    return next(case for case in CASES if case.pipeline == "WanImageToVideoPipeline").make()


def assert_one_line(error: UnlearningError) -> None:
    text = str(error)
    assert text.isprintable() and 20 < len(text) < 1000, text


def test_an_error_is_one_line_of_bounded_words_whatever_is_put_into_it():
    error = ConfigError(f"Expected a name,\n but   got '{LONG}' \x1b[31m\ud800. Give another one.")
    assert str(error).startswith("Expected a name, but got 'xxxx") and str(error).endswith(
        "xxxx' \\x1b[31m\\ud800. Give another one."
    )
    assert_one_line(error)
    assert str(ConfigError("As it is: /srv/a b.")) == "As it is: /srv/a b." and str(DenoiserError()) == ""
    assert tiny.KEY in str(ConfigError(f"The site {tiny.KEY}."))


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (
            {"num_videos_per_prompt": 2},
            "Expected `num_videos_per_prompt` in call_kwargs to be 1, but got 2. Leave it out",
        ),
        ({"num_videos_per_prompt": torch.ones(3)}, "Expected `num_videos_per_prompt` in call_kwargs to be 1, but got"),
        (
            {"prompt_embeds": torch.ones(1, 16, 32)},
            "`prompt_embeds` in call_kwargs would take the place of the prompts",
        ),
        ({"prompt": ["a dog", "a cat"]}, "`prompt` in call_kwargs would take the place of the prompts"),
        ({"generator": torch.Generator()}, "`generator` in call_kwargs would take the place of the prompts"),
    ],
)
def test_arguments_that_a_build_sets_itself_are_named(call, problem):
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        build_adapter(tiny.tiny_wan_pipeline(), CONCEPT, progress=False, call_kwargs=call)
    assert_one_line(caught.value)


@pytest.mark.parametrize("steps", [["red"], "two", 0, -1, 1.5, torch.ones(3)], ids=repr)
def test_steps_that_are_none_are_the_pipelines_to_refuse(steps):
    config = BuildConfig(pairs=2)
    with pytest.raises(UnlearningError) as caught:
        build_adapter(
            tiny.tiny_wan_pipeline(), CONCEPT, config, progress=False, call_kwargs={"num_inference_steps": steps}
        )
    assert_one_line(caught.value)


def emptied(pipe: Any) -> None:
    pipe.text_encoder = None


def deleted(pipe: Any) -> None:
    del pipe.text_encoder


def on_meta(pipe: Any) -> None:
    pipe.text_encoder.to("meta")


@pytest.mark.parametrize(
    ("disturb", "problem"),
    [
        (emptied, "Load the pipeline with all of its parts: text_encoder is None."),
        (deleted, "Load the pipeline with all of its parts: text_encoder is deleted."),
        (on_meta, "Load it again: weights of its text_encoder are on the meta device, and hold no numbers."),
    ],
)
def test_a_part_that_is_missing_is_named(disturb, problem):
    pipe = tiny.tiny_wan_pipeline()
    disturb(pipe)
    with pytest.raises(PipelineError, match=f"A run of WanPipeline failed with .*{re.escape(problem)}") as caught:
        build_adapter(pipe, CONCEPT, progress=False)
    assert_one_line(caught.value)


def test_a_modular_pipeline_that_is_not_loaded_or_is_a_half_is_named():
    with pytest.raises(
        DenoiserError, match=r"The transformer of WanModularPipeline is not loaded yet\. Call pipe\.load_"
    ):
        build_adapter(WanModularPipeline(), CONCEPT)
    blocks = WanModularPipeline().blocks
    blocks.sub_blocks.pop("text_encoder")
    half, parts = blocks.init_pipeline(), tiny.tiny_wan_pipeline().components
    wanted = {item.name for item in half.blocks.expected_components}
    half.update_components(**{name: part for name, part in parts.items() if name in wanted})
    with pytest.raises(
        ConceptError, match="takes `prompt_embeds` and no prompt, as half of a pipeline. Build on the who"
    ):
        build_adapter(half, CONCEPT)
