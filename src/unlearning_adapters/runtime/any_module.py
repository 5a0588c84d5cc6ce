"""Any denoiser as a pipeline: a module, and a callable that runs it on prompts, of diffusers or not."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from unlearning_adapters.adapter.record import COMPONENTS
from unlearning_adapters.errors import ConfigError, DenoiserError
from unlearning_adapters.pipelines.sites import linear_layers

from .verbs import install

Run = Callable[..., Any]
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class DenoiserPipeline:
    """A pipeline around one denoiser, for `build_adapter` and the verbs; `wrap_denoiser` makes it.

    The verbs are its methods, as they are those of diffusers' pipelines. It keeps the module itself, no copy, so that
    an adapter that is attached here acts wherever the module is used.

    Args:
        module: The denoiser.
        run: Runs it on prompts.
        component: Name of the denoiser in sites and files.
        base_model: Name of the base, for the record of adapters.
    """

    def __init__(self, module: nn.Module, run: Run, component: str, base_model: str) -> None:
        self.components = {component: module}
        self.config = {"_name_or_path": base_model}
        self.run = run
        self.__signature__ = _call_signature(run)  # read by the recorder: which arguments a call accepts

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        image: Any = None,
        **arguments: Any,
    ) -> Any:
        """Run the denoiser and return what the callable returns.

        Args:
            prompt: A prompt, or several.
            generator: Source of the noise, one per prompt; None takes one from torch's global generator.
            image: Picture, or one per prompt, if the callable takes `images`.
            arguments: Further arguments of the callable.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if generator is None:
            seeds = torch.randint(2**31, (len(prompts),), device="cpu").tolist()
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        else:
            generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
        if image is not None:
            arguments["images"] = list(image) if isinstance(image, (list, tuple)) else [image] * len(prompts)
        return self.run(next(iter(self.components.values())), prompts, generators, **arguments)


def wrap_denoiser(
    module: nn.Module, run: Run, *, component: str = "transformer", base_model: str = ""
) -> DenoiserPipeline:
    """Make a pipeline of any denoiser, so that an adapter can be built on it, attached, fused and stacked.

    Sites whose names are not known are measured: inputs that change with the prompt and not with the noise.

    Args:
        module: A module with Linear layers that read the prompt; it is neither copied nor changed.
        run: `run(module, prompts, generators)` encodes a list of prompts, draws noise from one `torch.Generator` per
            prompt, and calls the module once or more, without guidance and without gradients. A parameter `images`, a
            list of PIL pictures, makes it an image-to-video denoiser. Further parameters need defaults; `call_kwargs`
            of `build_adapter` reaches them, and `height`, `width`, `num_frames` and `num_inference_steps` are set to
            small values while text or image sites are recorded.
        component: Name of the denoiser in the names of sites: "transformer", "transformer_2", "transformer_ref" or
            "unet".
        base_model: Name of the base for the record of adapters, such as a Hub repository.

    Returns:
        The pipeline; all verbs are its methods.

    Raises:
        DenoiserError: If there is no Linear layer in the module, or it is no module.
        ConfigError: If `run` or `component` is not as described.

    Example:
        >>> pipe = wrap_denoiser(stdit, run)
        >>> adapter = build_adapter(pipe, concept)
        >>> pipe.load_unlearning_adapter(adapter)
    """
    if not isinstance(module, nn.Module) or not any(True for _ in linear_layers(module)):
        what = f"{type(module).__name__}{' has no Linear layer' if isinstance(module, nn.Module) else ''}"
        raise DenoiserError(f"Expected the denoiser to be an nn.Module with Linear layers, but got {what}.")
    if not isinstance(component, str) or component not in COMPONENTS:
        raise ConfigError(f"Expected `component` to be one of {', '.join(COMPONENTS)}, but got {component!r:.80}.")
    return DenoiserPipeline(module, run, component, base_model)


def _call_signature(run: Run) -> inspect.Signature:
    """Return the arguments that a call of the pipeline accepts: `prompt`, `generator`, and those of the callable."""
    text = "Expected `run` to be a callable of (module, prompts, generators) and of further arguments with defaults"
    if not callable(run):
        raise ConfigError(f"{text}, but got {type(run).__name__}.")
    try:
        signature = inspect.signature(run)
    except (TypeError, ValueError) as error:  # of some callables that are not written in Python
        raise ConfigError(f"{text}, but the arguments of {getattr(run, '__name__', run)!r:.80} are unknown.") from error
    parameters = list(signature.parameters.values())
    first, rest = parameters[:3], parameters[3:]
    bare = [item.name for item in rest if item.default is item.empty and item.kind not in (item.VAR_KEYWORD,)]
    bare = [name for name in bare if name != "images"]
    if len(first) < 3 or any(item.kind not in POSITIONAL for item in first) or bare:
        raise ConfigError(f"{text}, but got {getattr(run, '__name__', run)}{signature}.")
    names = ["prompt", "generator"]
    accepted = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    for item in rest:
        if item.kind is not item.VAR_KEYWORD:
            name = "image" if item.name == "images" else item.name
            accepted.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=item.default))
    return inspect.Signature(accepted)


install(DenoiserPipeline)
