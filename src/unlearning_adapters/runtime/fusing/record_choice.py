"""How fusing keeps the way back: as a copy of each weight, as a compact record, or as the free memory allows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import psutil

from unlearning_adapters.errors import ConfigError

Record = Literal["auto", "copy", "compact"]
COPY_SHARE = 0.25
CGROUP = Path("/sys/fs/cgroup")
# Of a container, in both versions of control groups: limit, usage, and what of the usage are cached files.
CONTAINER_LIMITS = (
    (CGROUP / "memory.max", CGROUP / "memory.current", "inactive_file"),
    (CGROUP / "memory/memory.limit_in_bytes", CGROUP / "memory/memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True)
class RecordChoice:
    """Which record fusing keeps of the weights that it edits.

    Args:
        record: "copy" keeps the weights themselves on the CPU, "compact" a few per cent of them; "auto" takes the copy
            if all copies together fit into `copy_share` of the memory that is free.
        copy_share: Share of the free memory of the CPU, 0 to 1.
    """

    record: Record = "auto"
    copy_share: float = COPY_SHARE

    def __post_init__(self) -> None:
        if self.record not in get_args(Record):
            raise ConfigError(f"Expected `record` to be one of {', '.join(get_args(Record))}, but got {self.record!r}.")
        share = self.copy_share
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
            raise ConfigError(f"Expected `copy_share` to be a number from 0 to 1, but got {share!r:.80}.")

    def takes_copies(self, nbytes: int) -> bool:
        """Return whether weights of so many bytes are to be kept as copies."""
        return self.record == "copy" or (self.record == "auto" and nbytes <= self.copy_share * free_memory())


def free_memory() -> int:
    """Return how many bytes of the CPU's memory are free: of the machine, or of the container if that has fewer."""
    free = int(psutil.virtual_memory().available)
    for limit_file, usage_file, cache in CONTAINER_LIMITS:
        limit, usage = _numbers(limit_file).get(""), _numbers(usage_file).get("")
        if limit is not None and usage is not None:
            # What the kernel keeps of files is given back on demand.
            cache_size = _numbers(limit_file.with_name("memory.stat")).get(cache, 0)
            free = min(free, max(0, limit - usage + cache_size))
    return free


def _numbers(file: Path) -> dict[str, int]:
    """Return the numbers in lines "name number"; a line without a name has the name ""."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:  # another kind of container, or none
        return {}
    words = [line.rpartition(" ") for line in lines]
    return {name: int(number) for name, _, number in words if number.isdecimal()}
