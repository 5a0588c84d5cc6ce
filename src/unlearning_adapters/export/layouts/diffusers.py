"""The names of diffusers after `transformer.` or `unet.`, which `pipe.load_lora_weights` reads for every model."""

from unlearning_adapters.export.names.naming import Part

from .layout import Layout


def _name(denoiser: str, path: str) -> Part:
    return Part(f"{'unet' if 'UNet' in denoiser else 'transformer'}.{path}")


DIFFUSERS = Layout("diffusers", "diffusers' names after `transformer.` or `unet.`", _name)
