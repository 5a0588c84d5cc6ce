"""The names of diffusers after `transformer.`, which `pipe.load_lora_weights` reads for every model."""

from unlearning_adapters.export.names.naming import Part

from .layout import Layout


def _name(_denoiser: str, path: str) -> Part:
    return Part(f"transformer.{path}")


DIFFUSERS = Layout("diffusers", "diffusers' names after `transformer.`", _name)
