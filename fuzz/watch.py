"""What a hostile file must not cause: writes elsewhere, processes, sockets, unpickling, much memory, new weights."""

import os
import resource
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

PYTHON_CAP = 128 * 2**20  # bytes of Python's own memory for one file, beyond what there was
ADDRESS_CAP = 2**28  # bytes of address space, torch included, beyond what the process had before the first file
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = (
    "pickle.find_class",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "socket.",
    "code.__new__",
)
CHANGING = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "shutil.",
)  # fmt: skip


class Watch:
    """Counts what happens while a file is loaded; one per process, since an audit hook cannot be taken off.

    Args:
        folder: The one folder in which files may be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve())
        self.seen: list[str] = []
        self.peak = 0
        self._on = False
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self, *, traced: bool) -> Iterator[None]:
        """Watch what happens inside; `seen` has what must not happen, `peak` the largest memory of Python so far.

        Args:
            traced: Whether to measure Python's memory as well, which takes three times as long.
        """
        self.seen.clear()
        if traced:
            tracemalloc.start()
        self._on = True
        try:
            yield
        finally:
            self._on = False
            if traced:
                used = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                self.peak = max(self.peak, used)
                if used > PYTHON_CAP:
                    self.seen.append(f"{used:,} bytes of memory, and the cap is {PYTHON_CAP:,}")

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, mode, flags = arguments
            writes = bool(flags & WRITING) if isinstance(flags, int) else any(sign in str(mode) for sign in "wax+")
            if writes and not self._inside(path):
                self.seen.append(f"open {path!r} {mode!r}")
        elif event.startswith(CHANGING) and not all(
            self._inside(item) for item in arguments if isinstance(item, (str, bytes, os.PathLike))
        ):
            self.seen.append(f"{event} {arguments!r:.200}")

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int):  # a descriptor that was opened before
            return True
        place = os.path.realpath(os.fsdecode(path))
        return place == self.folder or place.startswith(self.folder + os.sep)


def limit_address_space() -> None:
    """Let this process allocate no more than `ADDRESS_CAP` beyond what it has; more is a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESS_CAP
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Untouched:
    """A network as it is now: its weights, which are moved into one block of memory for speed, and its hooks.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = list(module.parameters())
        self._block = torch.cat([parameter.detach().flatten() for parameter in parameters])
        for parameter, part in zip(parameters, self._block.split([item.numel() for item in parameters]), strict=True):
            parameter.data = part.view_as(parameter)
        self._module = module
        self._modules = list(module.modules())
        self._sum, self._places = self._checksum(), self._where()

    def changed(self, *, structure: bool = True) -> str:
        """Return what is not as it was, or nothing.

        Args:
            structure: Whether to look for hooks, and for weights that were replaced, as well as at all values.
        """
        if self._checksum() != self._sum:
            return "A weight of the live pipeline was changed"
        if structure and self._where() != self._places:
            return "A weight of the live pipeline was replaced"
        if structure and any(map(_hooked, self._modules)):
            return "A hook was left on the live pipeline"
        return ""

    def _checksum(self) -> int:
        return zlib.crc32(self._block.numpy())

    def _where(self) -> list[int]:
        return [item.data_ptr() for module in self._modules for item in module._parameters.values() if item is not None]


def _hooked(module: nn.Module) -> bool:
    registry = module.__dict__.get("_diffusers_hook")
    return bool(module._forward_pre_hooks or module._forward_hooks or (registry is not None and registry.hooks))
