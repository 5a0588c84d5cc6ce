"""The main job on the real ShapeWorld model: what is measured, what is written, and that nothing is left behind."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unlearning_adapters.adapter.adapter import load_adapter
from unlearning_adapters.adapter.file import inspect_adapter
from unlearning_adapters.cli import main as cli
from unlearning_adapters.concepts.concept import Concept, Pair, load_concept, save_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError, ConfigError
from unlearning_adapters.evaluation import demo
from unlearning_adapters.evaluation.suites.shapeworld import SHAPEWORLD
from unlearning_adapters.shapeworld.models.load import load_shapeworld

RATES = {"concept_rate", "valid_rate", "context_kept", "preservation", "worst_neighbour"}
KEYS = {
    "concept", "n", "base", "attached", "fused", "random_direction", "attached_equals_fused", "unfuse_bit_exact",
    "adapter_bytes", "seconds",
}  # fmt: skip
CLIPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "new"


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    """One small run: four prompts of each kind, eight steps."""
    return demo.run_demo("red", CLIPS, folder, progress=False, num_inference_steps=8)


def test_the_result_has_the_promised_keys(result: dict[str, Any]) -> None:
    assert set(result) == KEYS
    assert (result["concept"], result["n"]) == ("shapeworld-red", CLIPS)
    for arm in demo.ARMS:
        assert {*RATES, "motion_ratio"} <= set(result[arm])
        assert set(result[arm]["intervals"]) == set(result[arm]["counts"]) == RATES
        for rate in RATES:
            value, (low, high) = result[arm][rate], result[arm]["intervals"][rate]
            hits, count = result[arm]["counts"][rate]
            assert value is None or (value == hits / count and low <= value <= high)
        assert result[arm]["counts"]["valid_rate"][1] == 2 * CLIPS
        assert result[arm]["counts"]["preservation"][1] == CLIPS
    assert set(result["seconds"]) == {"build", "attach", "fuse", "unfuse", "generate_per_clip"}
    assert all(value > 0 for value in result["seconds"].values())


def test_the_result_is_what_was_written(result: dict[str, Any], folder: Path) -> None:
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == result


def test_the_adapter_makes_the_model_forget(result: dict[str, Any]) -> None:
    base, attached, fused = (result[arm] for arm in ("base", "attached", "fused"))
    assert base["concept_rate"] == 1.0 and attached["concept_rate"] == 0.0
    assert fused["concept_rate"] == attached["concept_rate"] and fused["landing"] == attached["landing"]
    assert attached["preservation"] >= base["preservation"] - 1 / CLIPS


def test_a_random_direction_changes_nothing(result: dict[str, Any]) -> None:
    for rate in RATES:
        assert abs(result["random_direction"][rate] - result["base"][rate]) <= 1 / CLIPS
    assert abs(result["random_direction"]["motion_ratio"] - 1) < 0.1


def test_attached_and_fused_agree_and_unfusing_is_exact(result: dict[str, Any]) -> None:
    assert 0 < result["attached_equals_fused"] < 1e-3
    assert result["unfuse_bit_exact"] is True


def test_the_adapter_is_written(result: dict[str, Any], folder: Path) -> None:
    found = inspect_adapter(folder / "adapter")
    assert found["bytes"] == result["adapter_bytes"] == Path(found["file"]).stat().st_size
    assert found["info"]["concept"] == "shapeworld-red"
    assert found["info"]["settings"]["pairs"] == 5 and found["info"]["method"] == BuildConfig().method
    assert load_adapter(folder / "adapter").strength > 0


def test_clips_and_contact_sheet_are_written(result: dict[str, Any], folder: Path) -> None:
    names = {
        f"{kind}-{n}-{arm}.mp4"
        for kind in ("concept", "neighbour")
        for n in range(1, 5)
        for arm in ("base", "unlearned")
    }
    assert {path.name for path in (folder / "clips").iterdir()} == names
    assert all(path.stat().st_size > 1000 for path in (folder / "clips").iterdir())
    before, after = ((folder / "clips" / f"concept-1-{arm}.mp4").read_bytes() for arm in ("base", "unlearned"))
    assert before != after
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 800 and sheet.height > 600
    assert {path.name for path in folder.iterdir()} == {"adapter", "clips", "contact_sheet.png", "result.json"}


def test_the_table_tells_the_result(result: dict[str, Any], folder: Path) -> None:
    text = demo.format_demo(result, folder)
    lines = text.splitlines()
    assert lines[0].startswith(f"shapeworld-red: {CLIPS} prompts that name it and {CLIPS} that name a neighbour")
    (row,) = (line for line in lines if line.startswith("concept rate"))
    low, high = result["base"]["intervals"]["concept_rate"]
    assert row.split(maxsplit=2)[2].startswith(f"{result['base']['concept_rate']:.2f} [{low:.2f}, {high:.2f}]")
    assert "unfuse is bit-exact: yes" in text
    assert max(map(len, lines[:10])) <= 110
    for name in ("contact_sheet.png", "clips", "adapter", "result.json"):
        assert str(folder / name) in lines and (folder / name).exists()


def test_the_table_hides_nothing(result: dict[str, Any], folder: Path) -> None:
    nothing = {**result["attached"], "concept_rate": None, "motion_ratio": None, "landing": {}}
    bad = {**result, "attached": nothing, "unfuse_bit_exact": False, "attached_equals_fused": None}
    text = demo.format_demo(bad, folder)
    assert "unfuse is bit-exact: NO" in text and "at most ?" in text and "nothing valid" in text
    (row,) = (line for line in text.splitlines() if line.startswith("motion ratio"))
    assert row.split()[2:4] == ["1.00", "-"]


def test_the_command_prints_one_json_object(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With a concept file of a user: three pairs and a target."""
    shipped = load_concept("left")
    own = Concept("my-left", shipped.pairs[:3], shipped.neutral, target={"motion": "left"})
    file = save_concept(own, tmp_path / "my-left.yaml")
    arguments = ["demo", "--concept", str(file), "--clips", "1", "--output", str(tmp_path / "out"), "--json"]
    assert cli.main(arguments) == 0
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and json.loads(out) == json.loads((tmp_path / "out" / "result.json").read_text())
    assert json.loads(out)["concept"] == "my-left"
    assert inspect_adapter(tmp_path / "out" / "adapter")["info"]["settings"]["pairs"] == 3
    assert all(f"{label}:" in err for label in demo.ARMS.values()), "each arm has a progress bar, on stderr"
    assert len(list((tmp_path / "out" / "clips").iterdir())) == 4


PAIR = Pair("a red car", "a blue car")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ({}, "'cars' has no `target`.*Choose a shapeworld concept.*or add `target: {colour: red}`"),
        ({"colour": "pink"}, r"is \{'colour': 'pink'\}, and ShapeWorld needs one.*Known: colour: red, green"),
        ({"size": "red"}, "needs one factor with one of its values"),
        ({"shape": "red"}, "needs one factor with one of its values"),
        ({"colour": "red", "motion": "left"}, "needs one factor with one of its values"),
    ],
)
def test_a_concept_that_the_judge_cannot_see_is_refused(target: dict[str, str], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match=text):
        demo.run_demo(Concept("cars", (PAIR,), target=target), output=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_no_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected `clips` to be at least 1, but got 0"):
        demo.run_demo("red", clips=0, output=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["red", "shapeworld-circle", "up"])
def test_shipped_concepts_have_a_target(name: str) -> None:
    assert SHAPEWORLD.value_of(load_concept(name)) == name.removeprefix("shapeworld-")


def test_one_bit_of_a_weight_is_noticed() -> None:
    pipe = load_shapeworld()
    before = demo._copy_weights(pipe)
    assert demo._changed(before, demo._copy_weights(pipe)) == set()
    weight = pipe.transformer.blocks[1].attn2.to_v.weight.data
    weight[3, 5] = np.nextafter(np.float32(weight[3, 5]), np.float32(np.inf)).item()
    assert demo._changed(before, demo._copy_weights(pipe)) == {"transformer.blocks.1.attn2.to_v.weight"}


def test_the_largest_difference() -> None:
    one = torch.tensor([0.0, -1.0, 2.0])
    assert demo.largest_difference(one, one) == 0.0
    assert demo.largest_difference(one, torch.tensor([0.0, -1.5, 2.25])) == 0.5
    assert demo.largest_difference(one, torch.tensor([0.0, math.nan, 2.0])) is None
