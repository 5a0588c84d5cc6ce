"""The names of diffusers after `transformer.`, which `pipe.load_lora_weights` reads for every model."""

from unlearning_adapters.export.layout import Layout
from unlearning_adapters.export.naming import Part


def _name(_denoiser: str, path: str) -> Part:
    return Part(f"transformer.{path}")


DIFFUSERS = Layout("diffusers", "diffusers' names after `transformer.`", _name)
