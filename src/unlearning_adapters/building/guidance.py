"""`guidance_prompts`: the prompts that a build protects because guidance reads them: the empty and negative prompts."""

import warnings
from collections.abc import Mapping
from typing import Any

from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.wording import find_word, show, tokens
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.pipelines.running.call_arguments import call_defaults

NEGATIVE = "negative_prompt"


def guidance_prompts(pipe: Any, concept: Concept, call_kwargs: Mapping[str, Any] | None) -> list[str]:
    """Return the prompts that guidance steers away from, except those that name the concept.

    They are the empty prompt, and the pipeline's own negative prompts or those of `call_kwargs`, as a text or a list of
    texts. The edited layers read them at every guided step, and guidance multiplies any change that the edit makes to
    them.

    Args:
        pipe: A diffusers pipeline.
        concept: What is to be forgotten: a negative prompt often names it, such as "nudity", and is not protected then.
        call_kwargs: Further arguments of the pipeline's call.

    Warns:
        UserWarning: If negative prompts are given as embeddings, which cannot be protected.

    Raises:
        ConfigError: If a negative prompt is neither a text nor a list of texts.
    """
    arguments = {name: value for name, value in call_defaults(pipe).items() if name.startswith("negative_")}
    if NEGATIVE not in arguments:
        return []
    values = {name: value for name, value in (call_kwargs or {}).items() if name in arguments and value is not None}
    texts = [""]
    for name, value in {**arguments, **values}.items():
        if name.startswith(NEGATIVE) and name.removeprefix(NEGATIVE).lstrip("_").isdecimal() or name == NEGATIVE:
            texts += _texts(name, value)
    embeddings = [name for name in values if name.endswith("embeds")]
    if embeddings:
        warnings.warn(
            f"`{embeddings[0]}` is given as embeddings, and what it says may change with the concept, since a build "
            f"protects texts. Give its text as `{NEGATIVE}`, or as a neutral prompt of the concept.",
            stacklevel=6,
        )
    return [text for text in dict.fromkeys(texts) if not names_concept(concept, text)]


def names_concept(concept: Concept, prompt: str) -> bool:
    """Tell whether a prompt holds a word of the concept: one of its `words`, or one that only unsafe sides hold."""
    if find_word(prompt, concept.words) is not None:
        return True
    shown = {*tokens(prompt)} & {word for pair in concept.pairs for word in tokens(pair.unsafe)}
    others = (*concept.neutral, *(pair.safe for pair in concept.pairs)) if shown else ()
    return not shown <= {word for text in others for word in tokens(text)}


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, (str, list, tuple)):
        if value is None or isinstance(value, type):  # no default
            return []
        raise ConfigError(f"Expected `{name}` in call_kwargs to be a text or a list of texts, but got {show(value)}.")
    texts = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"Expected `{name}` in call_kwargs to be a text or a list of texts, but got {show(value)}.")
    return [text for text in texts if text]
