"""What `verify_unlearning_adapters` answers, as plain data, a table, and JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from unlearning_adapters.runtime.status import AdapterStatus

COLUMNS = ("site", "adapters", "place", "reached", "edited", "weight")


@dataclass(frozen=True)
class SiteCheck:
    """Whether the edit of one site acts now.

    Args:
        site: Name of the layer, such as "transformer.blocks.0.attn2.to_k".
        adapters: Names of the adapters that edit it and act.
        place: "input" if its input is edited, "weight" if the edit is in its weight, "both" if a part is in each.
        reached: Whether the last call of its denoiser called it; None if there was none since adapters changed, or if
            that cannot be seen, as in a denoiser that is compiled as a whole.
        edited: Whether what it computes in a call is edited; None if that is not known, as `cause` says.
        weight: Whether its weight is bit for bit what fusing made of it; None if no edit is in it, or it is in a file.
        cause: What is wrong, or what is not known; "" if nothing.
    """

    site: str
    adapters: tuple[str, ...]
    place: str
    reached: bool | None
    edited: bool | None
    weight: bool | None
    cause: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is known to be wrong."""
        return self.edited is not False and self.weight is not False


@dataclass(frozen=True)
class Verification:
    """Whether the adapters on a pipeline act now; `print` shows it as a table.

    Args:
        adapters: What each adapter does, by name.
        sites: One check for each layer that an adapter edits which acts.
        problems: What is wrong with the pipeline as a whole, such as a denoiser that was replaced.
    """

    adapters: Mapping[str, AdapterStatus]
    sites: tuple[SiteCheck, ...]
    problems: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether no problem is known, each site is edited, and each fused weight is unchanged."""
        return not self.problems and all(check.ok for check in self.sites)

    @property
    def wrong(self) -> tuple[SiteCheck, ...]:
        """The sites where something is wrong."""
        return tuple(check for check in self.sites if not check.ok)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON types."""
        adapters = {name: asdict(status) for name, status in self.adapters.items()}
        for status in adapters.values():
            status["components"] = list(status["components"])
        sites = [{**asdict(check), "adapters": list(check.adapters), "ok": check.ok} for check in self.sites]
        return {"ok": self.ok, "adapters": adapters, "sites": sites, "problems": list(self.problems)}

    def table(self) -> str:
        """Return it as text: a line for each adapter, a table of the sites, what is wrong, and a verdict."""
        lines = [_adapter_line(name, status) for name, status in self.adapters.items()] or ["No adapter is loaded."]
        if self.sites:
            lines += ["", *_aligned([COLUMNS, *map(_row, self.sites)])]
        causes: dict[str, list[str]] = {}
        for check in self.sites:
            if check.cause:
                causes.setdefault(check.cause, []).append(check.site)
        notes = [f"{sites[0]}{_more(len(sites) - 1)}: {cause}" for cause, sites in causes.items()]
        if self.problems or notes:
            lines += ["", *self.problems, *notes]
        return "\n".join([*lines, "", self._verdict()])

    def _verdict(self) -> str:
        if not self.ok:
            wrong = len(self.wrong)
            return f"wrong: {wrong} of {len(self.sites)} sites" if wrong else "wrong: see above"
        unknown = sum(check.edited is None for check in self.sites)
        if unknown:
            return f"nothing wrong, and not known of {unknown} of {len(self.sites)} sites"
        return f"ok: {len(self.sites)} sites are edited"

    def __str__(self) -> str:
        return self.table()


def _adapter_line(name: str, status: AdapterStatus) -> str:
    several = len(set(status.strengths.values())) > 1
    parts = ", ".join(f"{part} {value:g}" for part, value in status.strengths.items()) if several else ""
    strength = parts or f"{status.strength:g}"
    return f"{name}: {status.state}, strength {strength}, on {', '.join(status.components)}"


def _row(check: SiteCheck) -> tuple[str, ...]:
    answers = (_yes(check.reached), _yes(check.edited), {True: "as fused", False: "CHANGED", None: "-"}[check.weight])
    return (check.site, ", ".join(check.adapters), check.place, *answers)


def _yes(answer: bool | None) -> str:
    return {True: "yes", False: "NO", None: "?"}[answer]


def _more(count: int) -> str:
    return f" and {count} more" if count else ""


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
