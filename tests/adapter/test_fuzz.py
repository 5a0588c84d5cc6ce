"""The fuzzer finds nothing in a few thousand files, and finds each kind of defect that is planted in its way."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from fuzz.json_text import Pairs, Raw, parse, write
from fuzz.mutations import mutate
from fuzz.seeds import live_pipeline
from fuzz.session import Session
from fuzz.target import DefectError, Target
from fuzz.watch import PYTHON_CAP, Untouched, Watch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    return Session(tmp_path_factory.mktemp("fuzz"), tmp_path_factory.mktemp("defects"), limited=False)


@pytest.mark.slow
def test_two_thousand_changed_files_show_no_defect(session) -> None:
    random = Random(1)
    session.outcomes.clear()
    for _ in range(2000):
        session.try_file(mutate(session.seeds, random))
    assert session.defects == [] and session.count == 2000
    assert len(session.outcomes) > 60, "the changes reach too little of the loader"
    assert session.outcomes["loaded"] > 100 and session.outcomes["loaded and attached"] > 20
    assert session.outcomes["loaded, with the warning of other weights or a changed file"] > 5


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_what_hypothesis_draws_shows_no_defect(session, random) -> None:
    session.target.run(mutate(session.seeds, random))


@pytest.mark.slow
def test_the_command_runs_in_a_process_with_little_memory(tmp_path) -> None:
    command = [sys.executable, "-m", "fuzz", "--inputs", "60", "--seed", "3", "--output", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0 and json.loads(done.stdout) == report
    assert (report["inputs"], report["seed"], report["defects"]) == (60, 3, [])
    assert sum(report["outcomes"].values()) == 60


# What the watch sees.


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def watch(place) -> Watch:
    return Watch(place)


def unpickle() -> None:
    import pickle

    pickle.loads(pickle.dumps(Path))


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (lambda elsewhere: (elsewhere / "x").write_text("x"), "open"),
        (lambda elsewhere: os.close(os.open(elsewhere / "y", os.O_CREAT | os.O_WRONLY)), "open"),
        (lambda elsewhere: (elsewhere / "z").mkdir(), "os.mkdir"),
        (lambda elsewhere: elsewhere.rmdir(), "os.rmdir"),
        (lambda elsewhere: subprocess.run(["true"]), "subprocess.Popen"),
        (lambda elsewhere: os.system("true"), "os.system"),
        (lambda elsewhere: unpickle(), "pickle.find_class"),
        (lambda elsewhere: bytearray(PYTHON_CAP + 1), "bytes of memory, and the cap is"),
        (lambda elsewhere: np.ones(PYTHON_CAP // 4, dtype=np.float64), "bytes of memory, and the cap is"),
    ],
)
def test_what_must_not_happen_is_seen(watch, place, tmp_path, act, found) -> None:
    with watch.watching(traced=True):
        (place / "own").write_text("x")
        (place / "own").unlink()
    assert watch.seen == []
    with watch.watching(traced=True):
        act(tmp_path)
    assert any(found in what for what in watch.seen)


def test_a_changed_a_replaced_and_a_hooked_weight_are_seen() -> None:
    transformer = live_pipeline().transformer
    untouched = Untouched(transformer)
    layer = transformer.blocks[0].attn2.to_k
    assert untouched.changed() == ""
    with torch.no_grad():
        layer.weight[0, 0].neg_()
        assert untouched.changed() == "A weight of the live pipeline was changed"
        layer.weight[0, 0].neg_()
    kept, layer.weight.data = layer.weight.data, layer.weight.data.clone()
    assert untouched.changed() == "A weight of the live pipeline was replaced"
    layer.weight.data = kept
    handle = layer.register_forward_pre_hook(lambda *_: None)
    assert untouched.changed() == "A hook was left on the live pipeline" and untouched.changed(structure=False) == ""
    handle.remove()
    assert untouched.changed() == ""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("a"), "KeyError escaped"),
        (MemoryError(), "MemoryError escaped"),
        (RecursionError(), "RecursionError escaped"),
        (DefectError("two\nlines"), "escaped"),
    ],
)
def test_an_error_that_is_not_ours_is_a_defect(session, error, text) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(DefectError, match=text):
        session.target._ask(fail)


def test_an_error_of_two_lines_is_a_defect(session) -> None:
    from unlearning_adapters.errors import AdapterFileError

    class Raw(AdapterFileError):
        """An error that does not make one line of its text, as those of this package do."""

        def __str__(self) -> str:
            return str(self.args[0])

    def fail(text: str) -> None:
        raise Raw(text)

    assert isinstance(session.target._ask(lambda: fail("one line")), AdapterFileError)
    for text in ("two\nlines", "\x1b[2J", "x" * 5000):
        with pytest.raises(DefectError, match="not one short line"):
            session.target._ask(lambda text=text: fail(text))


def test_a_file_that_shows_a_defect_is_kept(session, tmp_path) -> None:
    class Broken(Target):
        def run(self, blob: bytes) -> str:
            raise DefectError("as planted")

    other = object.__new__(Session)
    other.__dict__.update(session.__dict__, kept=tmp_path / "kept", defects=[], target=object.__new__(Broken))
    other.try_file(b"hostile")
    (entry,) = other.defects
    assert entry["what"] == "as planted" and (tmp_path / "kept" / entry["file"]).read_bytes() == b"hostile"


def test_json_text_comes_back_and_may_be_wrong_on_purpose() -> None:
    text = '{"a":[1,2.5,{"b":null}],"a":"\\u00e9","c":true}'
    tree = parse(text)
    assert isinstance(tree, Pairs) and [key for key, _ in tree] == ["a", "a", "c"]
    assert parse(write(tree)) == tree
    assert write(Pairs([["a", Raw("NaN")], ["a", -1]])) == '{"a":NaN,"a":-1}'


def test_changes_are_the_same_for_the_same_seed(session) -> None:
    assert mutate(session.seeds, Random(5)) == mutate(session.seeds, Random(5)) != mutate(session.seeds, Random(6))
