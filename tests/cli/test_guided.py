"""Guided commands: asked at a terminal, refused in one line without one, and what an unfinished run offers."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fresh import environment

from unlearning_adapters.cli.guided import CONTINUE, EXAMPLES, MORE, OVER, SHOW, completed, resumed
from unlearning_adapters.cli.time_budget import time_budget

Outcome = tuple[int, str, str]


def answering(*answers: str) -> Callable[[str, str], str]:
    """Somebody who gives these answers; "" takes the default."""
    left: Iterator[str] = iter(answers)
    return lambda text, default: next(left) or default


@pytest.mark.parametrize("name", EXAMPLES)
def test_without_a_terminal_a_command_refuses_with_a_plain_one(name: str, unlearn: Callable[..., Outcome]) -> None:
    code, out, error = unlearn(name)
    assert (code, out, error.count("\n")) == (1, "", 1) and EXAMPLES[name] in error


def test_the_answers_become_the_plain_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert completed(["build"], answering("", "left", "no left")) == ["build", "shapeworld", "left", "-o", "no left"]
    assert capsys.readouterr().out == "unlearn build shapeworld left -o 'no left'\n"
    assert completed(["push"], answering("a", "org/a", "")) == ["push", "a", "org/a"]
    assert completed(["build", "--help"]) == ["build", "--help"]


def test_an_unfinished_run_offers_four_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    words = ["search", "shapeworld", "red", "-o", str(folder), "--trials", "10"]
    assert resumed(words, answering()) == words  # nothing is there, and nothing is asked
    (folder / "trials.jsonl").write_text("{}\n{}\n")
    assert resumed(words, answering(CONTINUE)) == words
    assert resumed(words, answering("what?", MORE, "20"))[-2:] == ["--trials", "20"]
    capsys.readouterr()
    assert resumed(words, answering(SHOW, CONTINUE)) == words
    assert "trials.jsonl: 2 lines" in capsys.readouterr().out
    assert resumed(words, answering(OVER))[-2:] == ["-o", str(tmp_path / "run-2")]
    assert resumed(["search", "a", "b", f"--output={folder}"], answering(OVER))[3:] == ["-o", str(tmp_path / "run-2")]
    assert resumed(["search", "a", "b", "-o"], answering()) == ["search", "a", "b", "-o"]  # for click to refuse


def test_more_of_an_evaluation_are_further_seeds_if_it_has_any(tmp_path: Path) -> None:
    words = ["eval", "shapeworld", "no-red", "-o", str(tmp_path), "--seeds", "0,3"]
    for seeds in ("[0, 3]", "null"):
        (tmp_path / "run.json").write_text(f'{{"seeds": {seeds}}}')
        more = resumed(words, answering(MORE, "", CONTINUE))  # without seeds, there is no such way
        assert more == (words if seeds == "null" else [*words[:-1], "0,3,4"])


def test_the_default_folder_of_a_search_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unlearn-search").mkdir()
    Path("unlearn-search/trials.jsonl").write_text("{}\n")
    assert resumed(["search", "a", "b"], answering(OVER))[-2:] == ["-o", "unlearn-search-2"]


@pytest.mark.slow
def test_at_a_terminal_a_build_is_asked_for_and_runs(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "unlearning_adapters", "build"]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path, env=environment()
    )
    os.close(terminal)
    seen = ""

    def read(until: str) -> None:
        nonlocal seen
        end = time.monotonic() + 90
        while until not in seen and time.monotonic() < end:
            if select.select([main], [], [], 1)[0]:
                try:
                    seen += os.read(main, 4096).decode()
                except OSError:  # the other end is closed
                    break
        assert until in seen, seen

    for question, answer in (("[shapeworld]:", ""), ("[shapeworld-red]:", "left"), ("[adapter]:", "no-left")):
        read(question)
        os.write(main, f"{answer}\n".encode())
    read("unlearn build shapeworld left -o no-left")
    read("12 sites")
    assert process.wait(30) == 0
    os.close(main)
    assert (tmp_path / "no-left" / "reproduce.json").is_file()


def test_a_time_budget_ends_a_run_quietly_and_ctrl_c_does_not() -> None:
    start = time.monotonic()
    with time_budget(0.2 / 60) as budget:
        time.sleep(20)
        raise AssertionError("the time was not limited")
    assert budget.over and time.monotonic() - start < 10
    with pytest.raises(KeyboardInterrupt), time_budget(5) as budget:
        raise KeyboardInterrupt
    assert not budget.over
    with time_budget(None) as budget:
        pass
    assert not budget.over


def test_a_time_budget_also_ends_a_job_in_the_background() -> None:
    """A shell starts such a job with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        start = time.monotonic()
        with time_budget(0.2 / 60) as budget:
            time.sleep(20)
        assert budget.over and time.monotonic() - start < 10
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
