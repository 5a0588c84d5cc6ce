"""How reports write numbers: rates with counts and intervals, changes, p-values, and "n/a" for what does not apply."""

from collections.abc import Mapping
from typing import Any

NOT_APPLICABLE = "n/a"


def rate_of(arm: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a rate of an arm with its counts and interval, from any part of the report."""
    if key in arm["counts"]:
        hits, count = arm["counts"][key]
        return {"value": arm[key], "hits": hits, "count": count, "interval": arm["intervals"][key]}
    return dict(arm["details"][key])


def cell(rate: Mapping[str, Any]) -> str:
    """Return a rate as text: value, interval and counts; "n/a" if nothing was counted."""
    if rate["value"] is None:
        return NOT_APPLICABLE
    low, high = rate["interval"]
    return f"{rate['value']:.2f} [{low:.2f}, {high:.2f}] ({rate['hits']}/{rate['count']})"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text; "n/a" for None."""
    return NOT_APPLICABLE if value is None else f"{value:.{digits}f}"


def mean(measure: Mapping[str, Any] | None, form: str = ".3f") -> str:
    """Return a mean with its interval as text; "n/a" if nothing was measured.

    Args:
        measure: Its "value" and "interval".
        form: How each number is written.
    """
    if measure is None or measure["value"] is None:
        return NOT_APPLICABLE
    low, high = measure["interval"]
    return f"{measure['value']:{form}} [{low:{form}}, {high:{form}}]"


def drift(arm: Mapping[str, Any], measure: str = "difference") -> float | None:
    """Return the mean of a measure of an arm's clips against the base: absolute difference (0 to 1), "psnr", "ssim"."""
    mean_of = arm["drift"]["all"].get(measure) if "drift" in arm else None  # older reports have no "ssim"
    return None if mean_of is None or mean_of["value"] is None else float(mean_of["value"])


def p_text(value: float | None) -> str:
    """Return a p-value as text."""
    return NOT_APPLICABLE if value is None else ("< 0.001" if value < 0.001 else f"{value:.3f}")


def changes(arm: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return what is compared as numbers, pair by pair: title, and mean difference with its interval and test."""
    if "paired" not in arm:
        return []
    compared = [("motion", arm["paired"]["motion"])]
    compared += [(f"score of {name}", score["change"]) for name, score in arm["scores"].items()]
    if "drift_against_random" in arm:
        compared.append(("drift beyond that of a random direction", arm["drift_against_random"]))
    return [(title, change) for title, change in compared if change["count"]]


def change_text(change: Mapping[str, Any]) -> str:
    """Return a mean difference with its interval as text."""
    return mean(change, "+.3g")
