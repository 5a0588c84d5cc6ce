"""The arguments of an evaluation, checked before anything is run: each error names the argument and what it takes."""

import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.adapter.missing import is_path
from unlearning_adapters.concepts.wording import show
from unlearning_adapters.config import check_strength, is_number
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.arm import Arm
from unlearning_adapters.evaluation.arms.processes import Process


def checked_adapter(adapter: Any) -> UnlearningAdapter | None:
    """Return an adapter, or read it from where it is; None stays None."""
    return adapter if adapter is None or isinstance(adapter, UnlearningAdapter) else load_adapter(adapter)


def check_plan(
    detectors: Any, seeds: Any, arms: Any, strengths: Any, gate: Any, features: Any, output: Any, process: Any
) -> None:
    """Raise `EvaluationError` if an argument of `evaluate` is of another type than it takes, or out of range."""
    check_scoring(detectors, gate, features)
    if seeds is not None and not (_is_list(seeds) and seeds and all(map(_is_seed, seeds))):
        raise EvaluationError(
            f"Expected `seeds` to be whole numbers from 0, such as [0, 1], or None, but got {show(seeds)}."
        )
    if arms is not None:
        named = isinstance(arms, Mapping) and all(map(_is_name, arms))
        if not named or not all(isinstance(arm, Arm) for arm in arms.values()):
            raise EvaluationError(
                f"Expected `arms` to be arms by name, such as {{'rival': arm}}, but got {show(arms)}."
            )
    if not _is_list(strengths):
        raise EvaluationError(f"Expected `strengths` to be a list such as [0.5, 1.5], but got {show(strengths)}.")
    for strength in strengths:
        check_strength(strength)
    if output is not None:
        check_folder("output", output)
    if process is not None and not isinstance(process, Process):
        raise EvaluationError(f"Expected `process` to be a Process, or None, but got {show(process)}.")


def check_flags(**flags: Any) -> None:
    """Raise `EvaluationError` if a switch is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise EvaluationError(f"Expected `{name}` to be True or False, but got {show(value)}.")


def check_scoring(detectors: Any, gate: Any, features: Any) -> None:
    """Raise `EvaluationError` if what decides a report is of another type than it takes, or out of range."""
    if detectors is not None and not _is_list(detectors):
        named = isinstance(detectors, Mapping) and all(isinstance(name, str) and name for name in detectors)
        if not named:
            raise EvaluationError(
                "Expected `detectors` to be a list of names and callables, or a mapping of them by name, but got "
                f"{show(detectors)}."
            )
    if gate is not None and not (is_number(gate) and 0 <= gate <= 1):
        raise EvaluationError(f"Expected `gate` to be a share from 0 to 1, or None, but got {show(gate)}.")
    if not (features == "random" if isinstance(features, str) else _is_network(features)):
        raise EvaluationError(f"Expected `features` to be a network, 'random' or None, but got {show(features)}.")


def check_thresholds(thresholds: Any) -> None:
    """Raise `EvaluationError` if thresholds are no numbers by the name of a detector."""
    if thresholds is None:
        return
    if not isinstance(thresholds, Mapping) or not all(map(is_number, thresholds.values())):
        raise EvaluationError(
            f"Expected `thresholds` to be numbers by the name of a detector, but got {show(thresholds)}."
        )


def check_folder(name: str, folder: Any) -> None:
    """Raise `EvaluationError` if a folder of a run is no path, or a file is there."""
    if not is_path(folder) or not str(folder).strip():
        raise EvaluationError(f"Expected `{name}` to be the path of a folder, but got {show(folder)}.")
    if Path(folder).is_file():
        raise EvaluationError(f"Expected `{name}` to be the path of a folder, but {str(folder)!r:.200} is a file.")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_seed(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < 2**63


def _is_name(value: Any) -> bool:
    """Tell whether a value can name an arm, after which a folder of clips is called."""
    return isinstance(value, str) and re.fullmatch(r"\w[\w.-]{0,79}", value) is not None


def _is_network(value: Any) -> bool:
    return value is None or (callable(value) and not isinstance(value, type))
