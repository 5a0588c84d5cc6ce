"""Make diffusers video models forget a concept: training-free, exactly reversible unlearning adapters.

Importing this package is cheap: names are imported when they are used, and the verbs become methods of diffusers'
pipelines when diffusers itself is imported, before or after.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

if TYPE_CHECKING:
    from .adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
    from .adapter.direction import AdapterInfo, Direction
    from .adapter.file import inspect_adapter
    from .adapter.source import HubOptions, SourceOptions
    from .building.build import build_adapter
    from .building.build_many import build_adapters
    from .concepts.concept import Concept, load_concept, save_concept
    from .concepts.pair import Pair
    from .config import BuildConfig
    from .errors import (
        AdapterFileError,
        AdapterNameError,
        AdapterNotFoundError,
        BaseMismatchError,
        ConceptError,
        ConfigError,
        DenoiserError,
        EngineError,
        EvaluationError,
        FuseError,
        HubError,
        PipelineError,
        SiteError,
        UnlearningError,
    )
    from .evaluation.evaluate import evaluate, rescore
    from .evaluation.suites.file import read_suite
    from .evaluation.suites.suite import Suite
    from .export.check import check_lora
    from .export.for_engine import ForEngine, export_for_engine
    from .export.fused_pipeline import FusedPipeline, export_fused
    from .export.lora import ExportedLora, export_lora
    from .export.reading import Reading
    from .pipelines.sites import find_sites
    from .runtime.any_module import DenoiserPipeline, wrap_denoiser
    from .runtime.checks.verification import SiteCheck, Verification
    from .runtime.status import AdapterStatus
    from .runtime.verbs import (
        delete_unlearning_adapters,
        disable_unlearning_adapters,
        enable_unlearning_adapters,
        fuse_unlearning_adapters,
        get_active_unlearning_adapters,
        get_list_unlearning_adapters,
        get_unlearning_adapters_info,
        load_unlearning_adapter,
        push_unlearning_adapter,
        save_unlearning_adapter,
        set_unlearning_adapters,
        unfuse_unlearning_adapters,
        unlearning_adapters,
        unload_unlearning_adapters,
        verify_unlearning_adapters,
    )
    from .shapeworld.models.cast import load_castworld
    from .shapeworld.models.language_model import load_shapeworld_language
    from .shapeworld.models.load import load_shapeworld

    __version__: str

__all__ = [
    "AdapterFileError",
    "AdapterInfo",
    "AdapterNameError",
    "AdapterNotFoundError",
    "AdapterStatus",
    "BaseMismatchError",
    "BuildConfig",
    "Concept",
    "ConceptError",
    "ConfigError",
    "DenoiserError",
    "DenoiserPipeline",
    "Direction",
    "EngineError",
    "EvaluationError",
    "ExportedLora",
    "ForEngine",
    "FuseError",
    "FusedPipeline",
    "HubError",
    "HubOptions",
    "Pair",
    "PipelineError",
    "Reading",
    "SiteCheck",
    "SiteError",
    "SourceOptions",
    "Suite",
    "UnlearningAdapter",
    "UnlearningError",
    "Verification",
    "__version__",
    "build_adapter",
    "build_adapters",
    "check_lora",
    "delete_unlearning_adapters",
    "disable_unlearning_adapters",
    "enable_unlearning_adapters",
    "evaluate",
    "export_for_engine",
    "export_fused",
    "export_lora",
    "find_sites",
    "fuse_unlearning_adapters",
    "get_active_unlearning_adapters",
    "get_list_unlearning_adapters",
    "get_unlearning_adapters_info",
    "inspect_adapter",
    "load_adapter",
    "load_castworld",
    "load_concept",
    "load_shapeworld",
    "load_shapeworld_language",
    "load_unlearning_adapter",
    "push_unlearning_adapter",
    "read_suite",
    "rescore",
    "save_adapter",
    "save_concept",
    "save_unlearning_adapter",
    "set_unlearning_adapters",
    "unfuse_unlearning_adapters",
    "unlearning_adapters",
    "unload_unlearning_adapters",
    "verify_unlearning_adapters",
    "wrap_denoiser",
]

_MODULES = {
    "adapter.adapter": ("UnlearningAdapter", "load_adapter", "save_adapter"),
    "adapter.direction": ("AdapterInfo", "Direction"),
    "adapter.file": ("inspect_adapter",),
    "adapter.source": ("HubOptions", "SourceOptions"),
    "building.build": ("build_adapter",),
    "building.build_many": ("build_adapters",),
    "concepts.concept": ("Concept", "load_concept", "save_concept"),
    "config": ("BuildConfig",),
    "export.check": ("check_lora",),
    "export.for_engine": ("ForEngine", "export_for_engine"),
    "export.fused_pipeline": ("FusedPipeline", "export_fused"),
    "export.lora": ("ExportedLora", "export_lora"),
    "export.reading": ("Reading",),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "concepts.pair": ("Pair",),
    "evaluation.evaluate": ("evaluate", "rescore"),
    "evaluation.suites.suite": ("Suite",),
    "evaluation.suites.file": ("read_suite",),
    "shapeworld.models.cast": ("load_castworld",),
    "shapeworld.models.language_model": ("load_shapeworld_language",),
    "shapeworld.models.load": ("load_shapeworld",),
    "pipelines.sites": ("find_sites",),
    "runtime.verbs": tuple(name for name in __all__ if "unlearning_adapter" in name),
    "runtime.checks.verification": ("SiteCheck", "Verification"),
    "runtime.status": ("AdapterStatus",),
    "runtime.any_module": ("DenoiserPipeline", "wrap_denoiser"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

# The base class of all pipelines of a kind, by the module that defines it.
_PIPELINES = {
    "diffusers.pipelines.pipeline_utils": "DiffusionPipeline",
    "diffusers.modular_pipelines.modular_pipeline": "ModularPipeline",
}


if not TYPE_CHECKING:  # a type checker that sees it believes that every name exists

    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        elif name == "__version__":
            value = _version()
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("unlearning-adapters")
    except PackageNotFoundError:  # used from a source tree that is not installed
        return "0+unknown"


def _add_verbs(module: ModuleType) -> None:
    """Make the verbs methods of the pipelines that a module of diffusers defines, once it is imported."""
    from .runtime.verbs import install

    install(getattr(module, _PIPELINES[module.__name__]))


def _import_hub(_module: ModuleType) -> None:
    """Import the module of the Hub with that of adapters; it may be what imports adapters just now."""
    import_module(f"{__name__}.hub.hub")


def _add_push(module: ModuleType) -> None:
    """Make `push_adapter` a method of `UnlearningAdapter`, whose module knows nothing of the Hub."""
    module.UnlearningAdapter.push_to_hub = module.push_adapter


for _name in _PIPELINES:
    register_post_import_hook(_add_verbs, _name)
register_post_import_hook(_import_hub, f"{__name__}.adapter.adapter")
register_post_import_hook(_add_push, f"{__name__}.hub.hub")
