"""Run the user's own pipeline for a moment and leave no trace: no pipeline loop is re-implemented.

Guidance is off, so that every call of the denoiser is a conditional one, and the run ends by an exception from a hook
as soon as enough was seen.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import load_image
from PIL import Image
from torch import Tensor

from unlearning_adapters.adapter.missing import why_unreadable
from unlearning_adapters.errors import ConceptError, PipelineError, UnlearningError

from .call_arguments import (
    IMAGE_ARGUMENTS,
    OWN,
    REQUIRED,
    SCHEDULE,
    call_defaults,
    check_call,
    check_complete,
    failed_call,
    no_guidance,
    small_video,
)
from .compiling import any_compiled, eager
from .fitting import grey_picture
from .isolation import own_pipeline

# Fails with guidance off (diffusers 0.42): there the first half of the batch is the unconditional prompt.
ALWAYS_GUIDED = {"TextToVideoZeroPipeline", "TextToVideoZeroSDXLPipeline"}
GUIDANCE_ONLY = {"guidance_scale_2"}  # of no use without guidance, as all negative prompts
COPIES = "num_videos_per_prompt"


class StopRun(BaseException):
    """Raised in a hook to end a run; not an `Exception`, so that modular pipelines do not log it as an error."""


class PartialRun:
    """Short runs of one pipeline.

    Args:
        pipe: A diffusers pipeline.
        call_kwargs: Arguments for it, such as {"height": 480}; prompt, seed, guidance and output type are set here.
        any_video: Whether the video does not matter, so that a small one and few steps do, unless `call_kwargs` says.
        own_guidance: Whether the pipeline guides as it does for its user; otherwise guidance is off.

    Raises:
        ConfigError: If `call_kwargs` has an argument that the pipeline does not accept; when it is called, if one is
            missing that only the user can give.
        PipelineError: When it is called, if the pipeline fails.
        ConceptError: When it is called, if the picture of a pair cannot be opened.
    """

    def __init__(
        self, pipe: Any, call_kwargs: Mapping[str, Any] | None, *, any_video: bool, own_guidance: bool = False
    ) -> None:
        self.pipe = pipe
        self.own_guidance = own_guidance
        # What holds while the pipeline runs, made for the copy of it that runs.
        self.around: Callable[[Any], AbstractContextManager[Any]] = nullcontext
        defaults = call_defaults(pipe)
        self.accepted = set(defaults)
        self.required = {name for name, default in defaults.items() if default is REQUIRED}
        self.image = next((name for name in IMAGE_ARGUMENTS if name in self.accepted), None)
        options = dict(call_kwargs or {})
        check_call(pipe, options, self.accepted)
        small = small_video(pipe) if any_video else {}
        if SCHEDULE & set(options):
            small.pop("num_inference_steps", None)
        self.guided = type(pipe).__name__ in ALWAYS_GUIDED
        without = {} if self.guided or own_guidance else no_guidance(self.accepted)
        without = {name: value for name, value in without.items() if options.get(name) is not OWN}
        # Modular pipelines refuse latents, and decode in any case, unless they are stopped before.
        output = "pt" if hasattr(pipe, "blocks") else "latent"
        arguments = self._only_accepted({**small, **options, **without, "output_type": output})
        self.arguments = {name: value for name, value in arguments.items() if value is not OWN}
        if not own_guidance:
            for name in [name for name in self.arguments if name in GUIDANCE_ONLY or name.startswith("negative_")]:
                del self.arguments[name]
        self.compiled = any_compiled(pipe.components.values())

    @property
    def takes_prompt(self) -> bool:
        """Whether the pipeline reads a prompt; Stable Video Diffusion reads a picture alone."""
        return "prompt" in self.accepted

    @property
    def one_by_one(self) -> bool:
        """Whether each call gets pictures, or tensors made of them, so that prompts are passed one by one."""
        if self.image in self.arguments or self.image in self.required:
            return True
        return any(_holds_pictures(value) for name, value in self.arguments.items() if name not in SCHEDULE)

    def __call__(self, prompts: Sequence[str] | Tensor, seeds: Sequence[int], image: Any = None) -> bool:
        """Run until a hook raises `StopRun`, or to the end; return whether it was stopped.

        Args:
            prompts: Prompts of one batch, or their text embeddings, of shape (prompts, tokens, width).
            seeds: Seed of the noise of each prompt.
            image: Picture for an image-to-video pipeline, or None for the one in `call_kwargs` or a grey one.
        """
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        return self._run(
            {**_asked(prompts), "generator": generators[0] if len(prompts) == 1 else generators}, seeds[0], image
        )

    def repeated(self, prompts: Sequence[str] | Tensor, seed: int, image: Any = None, copies: int = 2) -> bool:
        """Run as `__call__` does, with several clips of each prompt, one after the other; their noise does not matter.

        Args:
            prompts: Prompts of one batch, or text embeddings of each copy, of shape (prompts x copies, tokens, width).
            seed: Seed of the noise.
            image: Picture for an image-to-video pipeline, or None.
            copies: Clips per prompt.
        """
        # CogVideoX takes the argument, and makes one clip per prompt all the same; one picture fits no two prompts.
        by_argument = COPIES in self.accepted and (not self.takes_prompt or image is not None)
        batch: dict[str, Any] = {"generator": torch.Generator("cpu").manual_seed(seed)}
        if isinstance(prompts, Tensor):
            return self._run({**batch, **_asked(prompts)}, seed, image)
        batch |= _asked(prompts if by_argument else [prompt for prompt in prompts for _ in range(copies)])
        return self._run({**batch, COPIES: copies} if by_argument else batch, seed, image)

    def _run(self, batch: dict[str, Any], seed: int, image: Any) -> bool:
        if self.image and image is not None:
            batch[self.image] = _opened(image)
        elif self.image in self.required and self.image not in self.arguments:
            batch[str(self.image)] = grey_picture(self.arguments)
        call = {**self.arguments, **self._only_accepted(batch)}
        check_complete(self.pipe, call)
        private = own_pipeline(self.pipe, seed, guidance=self.own_guidance)
        with private as pipe, self.around(pipe), eager(self.compiled), _quiet():
            try:
                pipe(**call)
            except StopRun:
                # The pipeline's last line, which a stopped run did not reach: offloaded models leave the device.
                if hasattr(pipe, "maybe_free_model_hooks"):
                    pipe.maybe_free_model_hooks()
                return True
            except UnlearningError:
                raise
            except Exception as error:
                raise PipelineError(failed_call(self.pipe, error, self.arguments)) from error
            finally:
                _offload_again(self.pipe)
        return False

    def _only_accepted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in self.accepted}


def _asked(prompts: Sequence[str] | Tensor) -> dict[str, Any]:
    """Return what is asked for; one prompt as a text, not a list, for some pipelines take only that."""
    if isinstance(prompts, Tensor):
        return {"prompt_embeds": prompts}
    return {"prompt": prompts[0] if len(prompts) == 1 else list(prompts)}


def _opened(picture: Any) -> Image.Image:
    """Return a picture of a concept: a path, an address or a PIL image.

    Raises:
        ConceptError: If it cannot be opened.
    """
    place = str(picture) if isinstance(picture, (str, Path)) else "a PIL image"
    local = isinstance(picture, (str, Path)) and not place.startswith(("http://", "https://"))
    if local and (reason := why_unreadable(Path(place))):
        raise ConceptError(f"The picture {place!r} of the concept cannot be read: {reason}. Check the path.")
    try:
        image: Image.Image = load_image(place if isinstance(picture, Path) else picture)
        return image
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConceptError(
            f"The picture {place!r} of the concept cannot be opened ({reason[:200]}). Check that it is a picture."
        ) from error


def _offload_again(pipe: Any) -> None:
    """Take weights off the device again that accelerate brought there for forwards that did not come to their end."""
    for part in pipe.components.values():
        for module in part.modules() if isinstance(part, torch.nn.Module) else ():
            hook: Any = vars(module).get("_hf_hook")
            offloads = any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,)))
            if offloads and not all(each.is_meta for each in module.parameters(recurse=False)):
                hook.post_forward(module, ())


def _holds_pictures(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_pictures, value))
    return isinstance(value, (Image.Image, np.ndarray, torch.Tensor))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep modular pipelines from logging an error of this thread, which is raised as well, and may be expected."""
    thread, logger = threading.get_ident(), logging.getLogger("diffusers.modular_pipelines.modular_pipeline")

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(of_others)
    try:
        yield
    finally:
        logger.removeFilter(of_others)
