"""Ctrl-C while the journal of a search is written: nothing is left behind, and the search goes on."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
from planted_words import planted_pipeline

from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.search.interrupts import interrupts_wait
from unlearning_adapters.search.search import Search, run_search

THINGS = ("circle", "dog", "car", "cross", "tree", "house")
CONCEPT = Concept(
    "no-red",
    tuple(Pair(f"a red {thing} moves", f"a blue {thing} moves") for thing in THINGS),
    neutral=tuple(f"a {thing} moves" for thing in THINGS),
    words=("red",),
)


def test_ctrl_c_comes_after_the_block_and_the_handler_is_put_back() -> None:
    before, steps = signal.getsignal(signal.SIGINT), list[int]()
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        signal.raise_signal(signal.SIGINT)
        steps.append(1)
    assert steps == [1] and signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError, match="own"), interrupts_wait():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_is_left_alone() -> None:
    handlers = list[Any]()

    def work() -> None:
        with interrupts_wait():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("call", ["symlink", "rename", "unlink"])
def test_a_search_that_is_interrupted_in_its_journal_goes_on(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes right after the call with which Optuna takes the lock, or gives it back."""
    search = Search(planted_pipeline(), CONCEPT, steps=1, progress=False, call_kwargs=tiny.CALL)
    run_search(search, tmp_path, trials=1)
    real, count = getattr(os, call), [0]

    def with_signal(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        count[0] += ".lock" in str(arguments)
        if count[0] == 4:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(os, call, with_signal)
    result = run_search(search, tmp_path, trials=4)
    assert count[0] >= 4 and result.interrupted and len(result.trials) < 4
    monkeypatch.undo()
    assert not [path.name for path in tmp_path.iterdir() if ".lock" in path.name]
    assert len(run_search(search, tmp_path, trials=4).trials) == 4
