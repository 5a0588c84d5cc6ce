import torch
from tiny import tiny_wan_pipeline

from planted import direction, planted
from unlearning_adapters.runtime.joint import solved_edits
from unlearning_adapters.runtime.joint.joint_edit import StackReport, stack_directions
from unlearning_adapters.runtime.joint.solved_edits import KEPT, SolvedEdits


def counted(monkeypatch) -> list[int]:
    """How many directions each solve had."""
    solves: list[int] = []
    solve = solved_edits.solved_edit

    def counting(directions, strengths):
        solves.append(len(directions))
        return solve(directions, strengths)

    monkeypatch.setattr(solved_edits, "solved_edit", counting)
    return solves


def test_the_same_directions_and_strengths_are_solved_once(monkeypatch):
    solves, solved, parts = counted(monkeypatch), SolvedEdits(), [direction(40, seed=1), direction(40, seed=2)]
    first = solved("blocks.0", parts, [1.0, 0.5])
    assert solved("blocks.0", list(parts), [1.0, 0.5]) is first and solves == [2]
    expected = stack_directions(parts, [1.0, 0.5])
    assert torch.equal(first[0].read, expected.read) and torch.equal(first[0].mix, expected.mix)
    assert first[1] == StackReport()


def test_another_strength_layer_or_direction_is_solved_anew(monkeypatch):
    solves, solved, part = counted(monkeypatch), SolvedEdits(), direction(40)
    for path, item, strength in (("a", part, 1.0), ("a", part, 0.5), ("b", part, 1.0), ("a", direction(40), 1.0)):
        edit, _ = solved(path, [item], [strength])
        assert torch.equal(edit.mix, stack_directions([item], [strength]).mix)
    assert len(solves) == 4


def test_only_the_last_edits_are_kept(monkeypatch):
    solves, solved, part = counted(monkeypatch), SolvedEdits(), direction(40)
    for strength in (0.1, 0.2, 0.3, 0.3, 0.2, 0.1):
        solved("a", [part], [strength])
    assert KEPT == 2 and len(solves) == 4


def test_fusing_what_is_attached_solves_nothing(monkeypatch):
    pipe = tiny_wan_pipeline()
    for number, name in enumerate(("red", "blue")):
        pipe.load_unlearning_adapter(planted(pipe, name, seed=number))
    solves = counted(monkeypatch)
    pipe.fuse_unlearning_adapters()
    pipe.unfuse_unlearning_adapters()
    assert solves == []
    pipe.set_unlearning_adapters(["red", "blue"], 0.5)
    assert solves and set(solves) == {2}


def test_unloading_forgets_the_edits():
    pipe = tiny_wan_pipeline()
    pipe.load_unlearning_adapter(planted(pipe))
    pipe.unload_unlearning_adapters()
    pipe.load_unlearning_adapter(planted(pipe))
    assert len(pipe.transformer._unlearning_adapters.stack.solved._by_path["blocks.0.attn2.to_k"]) == 1
