"""The names of the first releases after `diffusion_model.`, which most engines read."""

from unlearning_adapters.export.names.families import FAMILIES, family_of
from unlearning_adapters.export.names.naming import Part

from .layout import Layout

PREFIX = "diffusion_model."


def native_name(denoiser: str, path: str) -> Part | None:
    """Return the name of a layer in the first release of its model, after `diffusion_model.`."""
    family = family_of(denoiser)
    part = None if family in (None, "cogvideox") else FAMILIES[str(family)].native.part(path)
    return None if part is None else part._replace(layer=PREFIX + part.layer)


NATIVE = Layout("native", "the first releases' names after `diffusion_model.`", native_name)
NATIVE_FOR_DIFFUSERS = Layout(
    "native-for-diffusers",
    "the same with the layers of zeros by which diffusers' converters know such a file",
    native_name,
    companions=True,
)
