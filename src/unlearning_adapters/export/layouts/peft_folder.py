"""A folder of PEFT: `adapter_config.json`, and `adapter_model.safetensors` with diffusers' names."""

from unlearning_adapters.export.names.naming import Part

from .layout import Layout


def _name(_denoiser: str, path: str) -> Part:
    return Part(f"base_model.model.{path}")


PEFT_FOLDER = Layout("peft-folder", "PEFT's folder with `adapter_config.json`, diffusers' names", _name, folder=True)
