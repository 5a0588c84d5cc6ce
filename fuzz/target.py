"""One file through the loader: what came of it, or what was wrong with that."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import WanPipeline

from unlearning_adapters.adapter.adapter import load_adapter, save_adapter
from unlearning_adapters.adapter.file import FILE_NAME, inspect_adapter
from unlearning_adapters.errors import UnlearningError
from unlearning_adapters.runtime.verbs import load_unlearning_adapter, unload_unlearning_adapters

from .watch import Untouched, Watch

# Every file goes through `load_adapter`. Of sixteen, eight go through `inspect_adapter`, four through the verb of the
# live pipeline, four are saved again if they are valid, and for one the memory of Python is measured. The limit of the
# process holds for all.
TURNS = 16
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
        self.untouched = Untouched(pipe.transformer)
        self.count = 0

    def run(self, blob: bytes) -> str:
        """Load a file, and return what came of it in a few words.

        Raises:
            DefectError: If something escaped that is no named error, or anything changed that must not.
        """
        self.path.write_bytes(blob)
        self.count += 1
        turn = self.count % TURNS
        with self.watch.watching(traced=turn == 0), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            refused = self._ask(lambda: load_adapter(self.path))
            outcome = f"AdapterFileError: {_kind(str(refused))}" if refused else "loaded"
            if turn % 2:
                self._check_inspection(refused)
            if turn % 4 == 0:
                outcome = self._attach(refused) or outcome
            if turn % 4 == 1 and refused is None:
                self._check_round_trip()
        if self.watch.seen:
            raise DefectError(f"It caused {'; '.join(self.watch.seen)}")
        changed = self.untouched.changed(structure=turn % 4 == 0)
        if changed:
            raise DefectError(changed)
        warned = any("its file was changed" in str(item.message) for item in caught)
        return "loaded, with the warning of other weights or a changed file" if warned else outcome

    def _check_inspection(self, refused: UnlearningError | None) -> None:
        """A header that `inspect_adapter` refuses is refused alike by loading, which looks at the values as well."""
        inspected = self._ask(lambda: inspect_adapter(self.path))
        if inspected is not None and str(refused) != str(inspected):
            raise DefectError(f"inspect_adapter refused it ({inspected}), but loading gave: {refused}")

    def _attach(self, refused: UnlearningError | None) -> str:
        """Attach the file to the live pipeline and take it off; return the kind of its error, if it has one now."""
        error = self._ask(lambda: load_unlearning_adapter(self.pipe, self.path))
        changed = self.untouched.changed(structure=False)
        if error is None:
            unload_unlearning_adapters(self.pipe)
        if changed:
            raise DefectError(changed)
        if refused is not None and str(error) != str(refused):
            raise DefectError(f"load_adapter refused it ({refused}), but the pipeline said: {error}")
        return f"{type(error).__name__}: {_kind(str(error))}" if error else "loaded and attached"

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
