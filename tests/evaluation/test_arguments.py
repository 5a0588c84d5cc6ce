"""Arguments of an evaluation of another type, or out of range: one line that names the argument, before any clip."""

from typing import Any

import numpy as np
import pytest
from evaluation_runs import red_suite
from tiny import tiny_wan_pipeline

from planted import planted, snapshot
from unlearning_adapters.errors import EvaluationError, UnlearningError
from unlearning_adapters.evaluation.arms.arm import base_arm
from unlearning_adapters.evaluation.evaluate import evaluate, rescore

WRONG = {
    "adapter": [3, ["red"], object(), True],
    "suite": [3, ["red"], object(), {"red": 1.0}],
    "detectors": [3, "motion", {1: "motion"}, iter(["motion"]), [3], object(), [""]],
    "seeds": [3, [], [-1], [0.5], ["0"], [True], np.ones(3), {"red"}, [10**30]],
    "arms": [3, [base_arm()], {"rival": 3}, {3: base_arm()}, {"../rival": base_arm()}, {"": base_arm()}],
    "strengths": [3, None, "1.0", [9], ["1.0"], [None], {1.0}],
    "gate": ["1.0", -0.5, 2, float("nan"), True, object()],
    "features": [3, "fvd", object(), int],
    "output": [3, "", "a\0b", ["red"], True],
    "process": [3, "main", object()],
    "controls": [3, None, "yes", np.ones(3)],
    "fused": [3, None, "yes", np.ones(3)],
    "batch_size": [0, 0.5, "1", None, True],
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_wan_pipeline()


@pytest.mark.parametrize("name", WRONG)
def test_an_argument_of_another_type_is_named_before_anything_is_run(name: str, pipe: Any) -> None:
    before = snapshot(pipe)
    given = {"adapter": planted(pipe), "suite": red_suite(), "detectors": ["motion"]}
    for value in WRONG[name]:
        with pytest.raises(UnlearningError) as raised:
            evaluate(pipe, **{**given, name: value}, progress=False)
        text = str(raised.value)
        assert text.isprintable() and 20 < len(text) < 500, text
        assert name in ("adapter", "suite") or name.split("_")[0].rstrip("s") in text, text
    assert snapshot(pipe) == before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"detectors": "motion"}, "`detectors` to be a list"),
        ({"thresholds": ["motion"]}, "`thresholds` to be numbers by the name"),
        ({"thresholds": {"motion": "0.5"}}, "`thresholds` to be numbers by the name"),
        ({"gate": 3}, "`gate` to be a share from 0 to 1"),
        ({"features": "fvd"}, "`features` to be a network"),
    ],
)
def test_what_a_report_is_computed_with_is_checked(options: dict[str, Any], text: str, tmp_path) -> None:
    with pytest.raises(EvaluationError, match=text):
        rescore(tmp_path, progress=False, **options)


def test_a_folder_without_a_run_is_left_as_it_is(tmp_path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(EvaluationError, match="is not the folder of an evaluation"):
            rescore(place)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", 3, None, ""):
        with pytest.raises(EvaluationError, match="`folder` to be the path of a folder"):
            rescore(place)
