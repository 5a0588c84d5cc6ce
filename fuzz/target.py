"""One file through the loader: what came of it, or what was wrong with that."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import WanPipeline

from unlearning_adapters.adapter_file import FILE_NAME, inspect_adapter, load_adapter, save_adapter
from unlearning_adapters.errors import AdapterFileError, UnlearningError
from unlearning_adapters.verbs import load_unlearning_adapter, unload_unlearning_adapters

from .watch import Watch, Weights, hooks

TRACED = 16  # the memory of Python is measured for one file in so many; the limit of the process holds for all
SAVED = 4  # one valid file in so many is saved again, which waits for the disk
MAX_TEXT = 1200  # characters of an error, the path of the file included


class DefectError(Exception):
    """A file did something that no file may do."""


class Target:
    """The loader next to a live pipeline.

    Args:
        pipe: A pipeline, whose weights must stay.
        folder: Where the file is written; nothing else may be.
        watch: What looks for side effects.
    """

    def __init__(self, pipe: WanPipeline, folder: Path, watch: Watch) -> None:
        self.pipe, self.watch = pipe, watch
        self.path = folder / FILE_NAME
        self.other = folder / "again.safetensors"
        self.weights = Weights(pipe.transformer)
        self.hooks = hooks(pipe.transformer)
        self.count = 0

    def run(self, blob: bytes) -> str:
        """Load a file in every way, and return what came of it in a few words.

        Raises:
            DefectError: If something escaped that is no named error, or anything changed that must not.
        """
        self.path.write_bytes(blob)
        self.count += 1
        with self.watch.watching(traced=self.count % TRACED == 0), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            inspected = self._ask(lambda: inspect_adapter(self.path))
            loaded = self._ask(lambda: load_unlearning_adapter(self.pipe, self.path))
            if loaded is None:
                self._check_weights("attached")
                unload_unlearning_adapters(self.pipe)
            if not isinstance(loaded, AdapterFileError) and self.count % SAVED == 0:
                self._check_round_trip()
        if self.watch.seen:
            raise DefectError(f"It caused {'; '.join(self.watch.seen)}")
        self._check_weights("after it")
        if self.hooks != hooks(self.pipe.transformer):
            raise DefectError("A hook was left on the live pipeline")
        if inspected is not None and (loaded is None or str(loaded) != str(inspected)):
            raise DefectError(f"inspect_adapter refused it ({inspected}), but loading gave: {loaded}")
        if loaded is not None:
            return f"{type(loaded).__name__}: {_kind(str(loaded))}"
        notes = [str(item.message) for item in caught if issubclass(item.category, UserWarning)]
        changed = any("its file was changed" in note for note in notes)
        return "loaded, with the warning of other weights or a changed file" if changed else "loaded"

    def _ask(self, call: Callable[[], object]) -> UnlearningError | None:
        try:
            call()
        except UnlearningError as error:
            text = str(error)
            if not text.isprintable() or len(text) > MAX_TEXT:
                raise DefectError(f"Its error is not one short line: {text!r:.300}") from error
            return error
        except Exception as error:
            raise DefectError(f"{type(error).__name__} escaped: {error}") from error
        return None

    def _check_weights(self, state: str) -> None:
        if self.weights.checksum() != self.weights.sum:
            raise DefectError(f"A weight of the live pipeline is not what it was ({state})")

    def _check_round_trip(self) -> None:
        adapter = load_adapter(self.path)
        again = load_adapter(save_adapter(adapter, self.other))
        for site, direction in adapter.directions.items():
            other = again.directions[site]
            if not (torch.equal(direction.read, other.read) and torch.equal(direction.write, other.write)):
                raise DefectError(f"The direction of {site} changed when it was saved again")
        if adapter.info != again.info or adapter.sites != again.sites:
            raise DefectError("The record changed when it was saved again")


def _kind(text: str) -> str:
    """Return an error's text without what is particular to one file."""
    text = re.sub(r"^Refused '[^']*' as an unlearning adapter: ", "", text)
    text = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "'...'", text)
    text = re.sub(r"[\[{(].*[\]})]", "(...)", text)
    text = re.sub(r"-?\d[\d,.e+]*", "N", text)
    return text[:64]
