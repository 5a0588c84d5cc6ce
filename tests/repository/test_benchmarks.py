"""The benchmarks run at small sizes: every row is there, with numbers; no test looks at a time."""

import json
import math
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"name", "what", "unit", "ours", "other", "formula", "ratio", "target", "met", "reason"}
LIBRARIES = {"torch", "diffusers", "peft"}
SHAPES = ("narrow", "wide", "widest", "feed-forward")
TARGETS = {
    ("fuse", "copy"): (1.2, 4),
    ("unfuse", "copy"): (0.5, 4),
    ("fuse", "compact"): (2, 8),
    ("unfuse", "compact"): (1, 8),
}
# Every promise, and the bound that it is held to; None for rows that inform only.
ROWS = {
    **{
        f"solve/{case}/eigh-{dtype}": ">= 50"
        for case in ("few-tokens", "shipped-prompts")
        for dtype in ("float64", "float32")
    },
    **{
        f"{verb}/{record}/{shape}/{dtype}/1-threads/{other}": f"<= {bounds[place]:g}"
        for (verb, record), bounds in TARGETS.items()
        for shape in SHAPES
        for dtype in ("bfloat16", "float16", "float32")
        for place, other in enumerate((f"{verb}_lora", "bare-copy"))
    },
    **{f"kept/{shape}/rank-{rank}": "<= 0.15" if rank == 1 else None for rank in (1, 4, 8) for shape in SHAPES},
    **{f"call/{model}/lora": "<= 1" for model in ("wan", "shapeworld")},
    "call/wan/bypass-check": "<= 0.001",
    "call/shapeworld/bypass-check": None,
    **{f"call/{model}/{side}": None for model in ("wan", "shapeworld") for side in ("base", "lora-base")},
    **{f"build/{case}/generation": "<= 0.1" for case in ("shapeworld", "larger-video")},
    **{f"load/{model}/load_lora_weights": "<= 1" for model in ("shapeworld", "wan")},
    "stack/solve/3": "<= 1",
    "stack/call/1": None,
    "stack/call/3": "<= 1.05",
    "stack/call/3-fused": None,
    "stack/load/3": "<= 5",
    **{f"stack/{verb}/3": None for verb in ("unload", "fuse", "unfuse", "export")},
    **{
        f"arithmetic/{model}/{record}": None for model in ("wan-14b", "hunyuan-video") for record in ("copy", "compact")
    },
    **{f"many/{case}/one": None for case in ("shapeworld", "wide")},  # too few concepts for the promise
}
PARTS = ["solve", *(f"weights-{shape}" for shape in SHAPES), "calls", "build", "load", "stacks", "many", "arithmetic"]
TRUE = ("load", "fuse-copy", "unfuse-copy", "fuse-compact", "unfuse-compact", "unload")


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)  # where `python -m benchmarks` is run


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[dict, dict]:
    """What a quick run prints, and what it writes."""
    file = tmp_path_factory.mktemp("benchmarks") / "results.json"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.syspath_prepend(ROOT)
        from benchmarks.__main__ import main

        main(["--quick", "--threads", "1", "--json", "--output", str(file)])
    return json.loads(out.getvalue()), json.loads(file.read_text(encoding="utf-8"))


def test_every_row_is_there_with_its_target(quick):
    targets = {row["name"]: row["target"] for row in quick[0]["rows"]}
    assert len(quick[0]["rows"]) == len(targets), "a name is used twice"
    assert targets == ROWS


def test_rows_hold_finite_positive_numbers(quick):
    for row in quick[0]["rows"]:
        assert set(row) == KEYS
        for key in ("ours", "other", "ratio"):
            low, middle, high = (row[key][part] for part in ("min", "median", "max"))
            assert 0 < low <= middle <= high and math.isfinite(high), row["name"]
        assert row["unit"] in ("s", "bytes") and row["what"], row["name"]


def test_a_missed_target_has_a_reason(quick):
    for row in quick[0]["rows"]:
        assert (row["met"] is None) == (row["target"] is None)
        assert bool(row["reason"]) == (row["met"] is False), row["name"]


def test_the_output_file_is_what_was_printed(quick):
    assert quick[0] == quick[1]


def test_each_part_says_what_it_measured_and_how_long_it_took(quick):
    assert list(quick[0]["parts"]) == PARTS
    rows = [row["name"] for row in quick[0]["rows"]]
    assert [name for part in quick[0]["parts"].values() for name in part["rows"]] == rows
    assert all(part["seconds"] >= 0 for part in quick[0]["parts"].values())


def test_a_file_is_resumed_and_parts_are_measured_again_on_demand(tmp_path, capsys):
    from benchmarks.__main__ import main

    file = tmp_path / "results.json"
    given = ["--quick", "--threads", "1", "--output", str(file), "--only", "solve"]
    main(given)
    first = json.loads(file.read_text(encoding="utf-8"))
    assert list(first["parts"]) == ["solve"]
    main([*given, "many"])
    second = json.loads(file.read_text(encoding="utf-8"))
    assert list(second["parts"]) == ["solve", "many"] and second["rows"][: len(first["rows"])] == first["rows"]
    assert "solve: in the file" in capsys.readouterr().err
    main([*given, "--again"])
    third = json.loads(file.read_text(encoding="utf-8"))
    assert {row["name"] for row in third["rows"]} == {row["name"] for row in second["rows"]}
    assert third["rows"][-1] != second["rows"][-1]
    with pytest.raises(SystemExit):
        main(["--only", "call"])
    assert "there is no part 'call'" in capsys.readouterr().err


def test_a_file_of_other_settings_is_refused_and_stays(tmp_path, capsys):
    from benchmarks.__main__ import main

    file = tmp_path / "results.json"
    given = ["--quick", "--threads", "1", "--output", str(file), "--only", "arithmetic"]
    main(given)
    report = file.read_text(encoding="utf-8")
    others = [word for word in given if word != "--quick"]
    for arguments, changes in (
        ([*given, "--threads", "2"], "threads 1, and not 2"),
        ([*others, "--threads", "3"], "quick True, and not False; threads 1, and not 3"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == f"{file} was measured with {changes}. Give another --output, or --anew to replace it."
        assert file.read_text(encoding="utf-8") == report
    for text in ("", "[]", "{}", '{"environment": 1, "parts": {}}'):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit, match="is no report of the benchmarks. Give another --output, or --anew"):
            main(given)
        assert file.read_text(encoding="utf-8") == text
    main([*given, "--anew"])
    assert list(json.loads(file.read_text(encoding="utf-8"))["parts"]) == ["arithmetic"]
    capsys.readouterr()


@pytest.mark.parametrize("experts", [1, 2])
def test_the_pipeline_of_true_size_gives_all_rows(experts):
    from benchmarks.sizes import QUICK
    from benchmarks.true_sizes import benchmark_true_sizes

    rows = list(benchmark_true_sizes(QUICK, experts))
    case = "wan-1.3b" if experts == 1 else "wan-2-experts"
    exports = ["export-transformer", "export-transformer_2"][:experts]
    expected = {f"true/{case}/{verb}/text-encoder" for verb in ("build", *TRUE, *exports)}
    expected |= {f"true/{case}/{verb}/memory" for verb in ("build", *TRUE, *exports) if verb != "fuse-copy"}
    assert {row.name for row in rows} == expected
    assert rows[0].target == "<= 1.25" and rows[1].target == "<= 1"


def test_the_page_leads_with_what_is_missed_and_is_that_of_the_results(tmp_path):
    from benchmarks import readme
    from benchmarks.curves import write_curves
    from benchmarks.report import compare, from_json, to_json

    rows = [compare(f"stack/call/{n}", "what", [n / 10], [1.0], at_most=2, if_missed="slow") for n in (3, 10, 30)]
    report = {**to_json(rows, {"cpu": "a", "cores": 2, "threads": 2, "torch": "1"}), "parts": {"x": {"seconds": 3}}}
    curves = write_curves(from_json(report), tmp_path)
    text = readme.page(report, curves)
    assert curves == ["adapters.svg"] and (tmp_path / "adapters.svg").read_text(encoding="utf-8").count("<circle") == 3
    assert "x 3 s" in text and "1 of 3 promises are missed" in text and "- slow: `stack/call/30`." in text
    assert text.index("## Where we lose") < text.index("`stack/call/30`") < text.index("## Where we keep")
    held = json.loads(readme.RESULTS.read_text(encoding="utf-8"))
    written = write_curves(from_json(held), tmp_path)
    assert readme.PAGE.read_text(encoding="utf-8") == readme.page(held, written), "run `python -m benchmarks.readme`"
    for name in written:
        assert (readme.FOLDER / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8")


def test_conditions_are_stated(quick):
    conditions = quick[0]["environment"]
    assert conditions["quick"] is True and conditions["threads"] == 1 and conditions["cpu"]
    assert conditions.keys() >= LIBRARIES


@pytest.mark.parametrize(
    ("bound", "formula", "ratio", "met"),
    [
        ({"at_most": 1.5}, "ours / other", 1.5, True),
        ({"at_most": 1.49}, "ours / other", 1.5, False),
        ({"at_least": 0.67}, "other / ours", 2 / 3, True),
        ({"at_least": 0.68}, "other / ours", 2 / 3, False),
        ({}, "ours / other", 1.5, None),
    ],
)
def test_a_target_is_judged_by_the_median_of_the_rounds(bound, formula, ratio, met):
    from benchmarks.report import compare

    row = compare("name", "what", [1.0, 3.0, 9.0], [2.0, 2.0, 2.0], if_missed="slow", **bound)
    assert (row.formula, row.ratio.median, row.met) == (formula, pytest.approx(ratio), met)
    assert row.ratio.min == pytest.approx(min(0.5, 4.5) if formula == "ours / other" else 2 / 9)
    assert row.reason == ("slow" if met is False else "")


def test_every_arm_runs_in_every_round_and_takes_turns():
    from benchmarks.measure import in_turn

    seen: list[str] = []
    arms = [[("a", lambda: seen.append("a")), (None, lambda: seen.append("clean"))], [("b", lambda: seen.append("b"))]]
    found = in_turn(arms, 2, "turns", meter=lambda step: step() or float(len(seen)))
    assert seen == ["a", "clean", "b", "b", "a", "clean", "a", "clean", "b"]
    assert found == {"a": [5.0, 7.0], "b": [4.0, 9.0]}


def test_extra_memory_is_that_of_the_peak():
    from benchmarks.measure import can_measure_memory, extra_bytes

    if not can_measure_memory():
        return
    size = 64 * 2**20
    peak = extra_bytes(lambda: torch.ones(size, dtype=torch.uint8))
    assert 0.95 * size <= peak < 1.5 * size  # the kernel counts pages in batches, and may lag by some
    assert extra_bytes(lambda: None) < size / 8


def test_the_dense_solve_finds_the_same_direction():
    from benchmarks.solve import _dense, _rows

    from unlearning_adapters.methods.paper import cpca_direction

    problem = _rows(12, 96, 0), _rows(30, 96, 1), _rows(1, 96, 2)[0]
    thin = cpca_direction(*problem, 100, 1.0).read[0]
    assert torch.allclose(thin, _dense(*problem, torch.float64).float(), atol=1e-5)


def test_a_read_of_a_shipped_concept_is_put_to_its_held_out_prompts():
    from benchmarks import packs

    from unlearning_adapters import load_shapeworld_language

    rows = packs.measure(load_shapeworld_language(), "graphic-violence", neutral_count=64)
    assert [(row["method"], row["pairs"]) for row in rows] == [(name, n) for name in packs.METHODS for n in packs.PAIRS]
    for row in rows:
        assert 0.5 < row["told apart"] <= 1  # better than chance
        assert row["neighbours"] < row["taken"]
    assert packs.page({"graphic-violence": rows}).count("\n") == 1 + len(packs.PAIRS)


def test_a_mixture_is_found_and_its_first_part_is_taken_out():
    from benchmarks.posterior import mixture, removed

    torch.manual_seed(0)
    options, share = torch.randn(4, 3, 8, dtype=torch.float64), torch.tensor([0.4, 0.3, 0.3, 0.0], dtype=torch.float64)
    prediction = torch.tensordot(share, options, dims=1)
    assert torch.from_numpy(mixture(prediction.flatten().numpy(), options.flatten(1).numpy())).allclose(
        share, atol=1e-3
    )
    left = prediction + removed(prediction, options, gate=0.3)
    assert left.allclose((options[1] + options[2]) / 2, atol=1e-2)
    assert not removed(prediction, options, gate=0.5).any()  # the concept is less likely than that


def test_the_reference_that_is_told_all_values_keeps_all_but_the_concept():
    from benchmarks.concept import draw_sets, look
    from benchmarks.posterior import value_prompts, without_concept
    from benchmarks.worlds import NEIGHBOURS

    from unlearning_adapters import load_shapeworld

    pipe, sets = load_shapeworld(), draw_sets("red", 6, seed=3)
    prompts = value_prompts("red", sets, 6, 3)
    assert {"red", "blue"} <= {word for named in prompts.values() for word in " ".join(named).split()}
    kinds = ("named", NEIGHBOURS)
    with without_concept(pipe, prompts, gate=0.3):
        seen = look(pipe, "red", sets, kinds, "told all values")
    assert all(sample.labels["colour"] != "red" for sample in seen["samples"]["named"])
    assert all(sample.labels["colour"] == sample.truth["colour"] for sample in seen["samples"][NEIGHBOURS])
    assert "encode_prompt" not in vars(pipe)  # no trace


def test_the_drift_is_compared_with_the_rival_that_moves_least_of_those_that_erase_enough():
    from benchmarks import models

    def arm(own: int, other: int, drift: float, neutral: float | None = None) -> dict:
        shown = {"own word": {"hits": own, "count": 100}, "synonyms": {"hits": other, "count": 100}}
        return {"shown": shown, "drift": drift, "neutral drift": 2 * drift if neutral is None else neutral}

    arms = {"base": {}, "ridge": arm(1, 1, 0.002), "uce": arm(40, 50, 0.001), "cpca": arm(0, 9, 0.009)}
    arms |= {"uce 1.2": arm(2, 10, 0.004), "uce 1.4": arm(0, 3, 0.004), "uce 1.7": arm(2, 0, 0.005, 0.02)}
    results = {"one": {"concepts": {"red": arms, "blue": arms}}}
    aims, ridge = [line.split(" | ") for line in models.drifts(results).splitlines()[2:]]
    assert aims[1:] == ["0.02, 0.10", "uce 1.2", "0.020", "0.100", "0.50", "0.50 |"]
    assert ridge[1:] == ["ridge", "uce 1.7", "0.020", "0.000", "0.40", "0.20 |"]

    results["one"]["concepts"]["blue"] = {**arms, "uce 1.7": {}, "cpca": arm(9, 9, 0.009)}
    assert "| one | ridge | none |" in models.drifts(results)  # what is not measured on all concepts does not count
    del results["one"]["concepts"]["red"]["ridge"]
    assert len(models.drifts(results).splitlines()) == 2


def test_a_build_gives_the_published_adapter_and_the_command_sees_another_one(capsys):
    from benchmarks import adapters

    name = "shapeworld-red"
    assert adapters.main(["--concepts", name]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: ")
    published = {key: t for key, t in adapters.load_file(adapters.FILE).items() if key.startswith(name)}
    assert adapters.differences([name], published, published) == {name: 0}
    key = next(key for key in published if key.endswith("/read"))
    changed = {**published, key: published[key] * 1.01}
    assert adapters.differences([name], changed, published)[name] > adapters.TOLERANCE
    del changed[key]
    assert adapters.differences([name], changed, published)[name] == float("inf")
