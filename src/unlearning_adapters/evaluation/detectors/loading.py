"""What detectors need beside this package: optional packages, and models of transformers that the user gives."""

from importlib import import_module
from pathlib import Path
from typing import Any

from unlearning_adapters.errors import EvaluationError


def load_package(module: str, package: str, detector: str) -> Any:
    """Return an optional module.

    Args:
        module: Name to import.
        package: Name to install.
        detector: Name of the detector that needs it, for the error.

    Raises:
        EvaluationError: If it, or a package that it needs, is not installed; the text says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise EvaluationError(
            f"The detector {detector!r} needs the package {package}, but it cannot be imported ({error}). "
            f"Run: pip install {package}"
        ) from error


def load_pretrained(
    detector: str, model: Any, processor: Any, model_class: Any, processor_class: Any, device: str = "cpu"
) -> tuple[Any, Any]:
    """Return a model in inference mode and its processor.

    Args:
        detector: Name of the detector that needs them, for errors.
        model: Path or Hub id, or a loaded model, which stays on its device.
        processor: Path or Hub id, or a processor; None takes the model's.
        model_class: Class with `from_pretrained` for the model.
        processor_class: The same for the processor.
        device: Where a model that is loaded here runs.

    Raises:
        EvaluationError: If one of them is missing or cannot be loaded.
    """
    if model is None:
        raise EvaluationError(
            f"The detector {detector!r} needs a model of yours: give model=, a folder or an id of the Hub. "
            "None is shipped or chosen for you."
        )
    if processor is None and not _is_place(model):
        raise EvaluationError(f"The detector {detector!r} got a loaded model without a processor. Give processor=.")
    source = model if processor is None else processor
    try:
        prepare = processor_class.from_pretrained(source) if _is_place(source) else source
        # use_safetensors: nothing is unpickled
        network = model_class.from_pretrained(model, use_safetensors=True).to(device) if _is_place(model) else model
    except (OSError, ValueError, ImportError) as error:
        text = " ".join(str(error).split())[:200]
        raise EvaluationError(f"Cannot load the model {model!r} of the detector {detector!r}: {text}") from error
    return network.eval(), prepare


def describe_model(model: Any, network: Any) -> dict[str, Any]:
    """Return what a report says of a model: its name, its class, its revision and its number type."""
    return {
        "model": str(model) if _is_place(model) else str(getattr(network, "name_or_path", "")),
        "class": type(network).__name__,
        "revision": getattr(network.config, "_commit_hash", None),
        "dtype": str(network.dtype).removeprefix("torch."),
    }


def _is_place(value: Any) -> bool:
    return isinstance(value, (str, Path))
