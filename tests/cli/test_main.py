"""The command line: help, exit codes, what goes to stdout and what to stderr, and that it equals the Python calls."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forge
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from command_line import parsed
from diffusers import WanPipeline
from PIL import Image
from tiny import CALL, tiny_wan_pipeline

from unlearning_adapters.adapter.adapter import load_adapter, save_adapter
from unlearning_adapters.adapter.file import FILE_NAME, inspect_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.building.build_many import build_adapters
from unlearning_adapters.cli import main as cli
from unlearning_adapters.cli.commands.apply import call_arguments
from unlearning_adapters.cli.commands.build import opened
from unlearning_adapters.concepts.concept import Concept, Pair, list_concepts, load_concept, save_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.evaluation.demo import run_demo
from unlearning_adapters.shapeworld.models.load import load_shapeworld

HELP = [[command.name] for command in cli.COMMANDS]
HELP += [["concepts", action] for action in ("list", "show", "new", "lint")]
HEAVY = ("torch", "diffusers", "transformers", "numpy", "huggingface_hub")
Outcome = tuple[int, str, str]


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "no-red"
    save_adapter(forge.planted_adapter(forge.small_weights(), description="The colour red."), folder)
    return folder


@pytest.fixture
def red(tmp_path: Path) -> Path:
    """A concept file in the words of the tiny pipelines."""
    pairs = (Pair("a red circle moves left", "a green circle moves left"), Pair("a red car runs", "a blue car runs"))
    return save_concept(
        Concept("tiny-red", pairs, ("a dog walks", "two trees near a house")), tmp_path / "tiny-red.yaml"
    )


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_wan_pipeline().save_pretrained(folder)
    return folder


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def loaded_by(*arguments: object, before: str = "") -> set[str]:
    """Return the heavy modules that a command imports in a process of its own."""
    listed = [str(argument) for argument in arguments]
    done = fresh(
        f"{before}\nimport sys\nfrom unlearning_adapters.cli.main import main\n"
        f"try:\n    code = main({listed!r})\nexcept SystemExit as leave:\n    code = leave.code\n"
        f"print(code, *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    )
    code, *names = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr
    return set(names)


# Help and usage.


def test_the_table_of_commands_is_what_help_lists(unlearn: Callable[..., Outcome]) -> None:
    code, out, err = unlearn("--help")
    assert (code, err) == (0, "")
    names = [command.name for command in cli.COMMANDS]
    assert re.findall(r"^  (\w+) ", out.partition("Commands:")[2], flags=re.MULTILINE) == names


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_every_command_has_help(command: list[str], unlearn: Callable[..., Outcome]) -> None:
    code, out, err = unlearn(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: unlearn {' '.join(command)} ") and "--json" in out
    made = cli.unlearn
    for name in command:
        made = made.commands[name]
    assert all(item.help and item.help in " ".join(out.split()) for item in made.params), "each says what it does"


def test_help_tells_the_defaults_of_the_functions(unlearn: Callable[..., Outcome]) -> None:
    def told(command: str) -> dict[str, str]:
        text = " ".join(unlearn(command, "--help")[1].split())
        return dict(re.findall(r"--(\w+) (?:(?!--).)*?\(default: ([^)]*)\)", text))

    demo = {name: str(item.default) for name, item in inspect.signature(run_demo).parameters.items()}
    assert told("demo") == {name: demo[name] for name in ("concept", "clips", "output")}
    config, shown = BuildConfig(), told("build")
    for name in ("method", "rank", "epsilon", "components", "contrast", "seed"):
        assert shown[name] == f"{getattr(config, name)}".removesuffix(".0")
    assert (config.strength, config.blocks, config.pairs, config.sites) == (None, None, None, None)
    assert (shown["strength"], shown["blocks"], shown["pairs"]) == (
        "calibrated on the pairs",
        "all",
        "5, or all if there are fewer",
    )
    assert shown["sites"] == "by the pairs"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Usage: unlearn [OPTIONS] COMMAND"),
        (["forget"], "No such command 'forget'"),
        (["demo", "--clips", "0"], "Invalid value for '--clips': 0 is not in the range x>=1"),
        (["demo", "--clips", "few"], "Invalid value for '--clips': 'few' is not"),
        (["build", "shapeworld", "red"], "Missing option '-o' / '--output'"),
        (["build", "shapeworld", "red", "-o", "x", "--method", "erase"], "'erase' is not one of 'ridge'"),
        (["build", "shapeworld", "red", "-o", "x", "--blocks", "1-"], "expected block numbers such as 0,4-7, but got"),
        (
            ["build", "shapeworld", "red", "-o", "x", "--strength", "much"],
            "expected a number, or one for each component",
        ),
        (["build", "shapeworld", "red", "-o", "x", "--blocks", "5-4"], "expected block numbers such as 0,4-7, but got"),
        (["inspect"], "Missing argument 'ADAPTER'"),
        (["apply", "shapeworld", "x", "-o", "x.mp4"], "Missing option '--prompt'"),
        (["concepts", "forget"], "No such command 'forget'"),
        (["eval", "x", "y", "-o", "z", "--clips", "0"], "Invalid value for '--clips': 0 is not in the range x>=1"),
        (["eval", "x", "y", "-o", "z", "--seeds", "0,a"], "expected values such as 0,1, but got '0,a'"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], text: str, unlearn: Callable[..., Outcome]) -> None:
    code, out, err = unlearn(*arguments)
    assert (code, out) == (2, "")
    assert text in " ".join(err.split()) and err.startswith("Usage: unlearn")


def test_the_version_is_that_of_the_package(unlearn: Callable[..., Outcome]) -> None:
    import unlearning_adapters

    assert unlearn("--version") == (0, f"unlearn {unlearning_adapters.__version__}\n", "")


@pytest.mark.parametrize(("text", "numbers"), [("3", (3,)), ("0,4-7", (0, 4, 5, 6, 7)), ("2-2, 1", (2, 1))])
def test_block_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert parsed("build", "x", "y", "-o", "z", "--blocks", text)["blocks"] == numbers


# What is imported.


def test_help_and_inspect_import_nothing_heavy(adapter_folder: Path) -> None:
    assert loaded_by("--help") == set()
    assert loaded_by("inspect", adapter_folder) == set()
    assert loaded_by("inspect", adapter_folder, "--json") == set()
    assert loaded_by("concepts") == set()
    assert loaded_by("pipelines") == set()


def test_the_help_of_no_command_imports_anything_heavy() -> None:
    calls = "".join(f"    main({[*command, '--help']!r})\n" for command in HELP)
    done = fresh(
        f"import sys\nfrom unlearning_adapters.cli.main import main\nif True:\n{calls}"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    )
    assert done.stdout.count("Usage: unlearn") == len(HELP) and done.stderr.strip() == ""


def test_the_check_of_imports_sees_them() -> None:
    assert loaded_by("--help", before="import numpy") == {"numpy"}


# Errors.


def broken(name: str, blob: bytes, tmp_path: Path) -> Path:
    return forge.written(tmp_path, blob, name)


ERRORS: dict[str, tuple[list[str], str]] = {
    "inspect missing": (["inspect", "{tmp}/none"], "No unlearning adapter at .*none'.*Check the path"),
    "inspect text": (["inspect", "{tmp}/text.safetensors"], "text.safetensors"),
    "inspect cut": (["inspect", "{tmp}/cut.safetensors"], "cut.safetensors.*truncated"),
    "inspect pickle": (["inspect", "{tmp}/x.bin"], "pickles"),
    "build concept": (["build", "shapeworld", "rad", "-o", "{tmp}/x"], "Unknown concept 'rad'. Did you mean 'red'"),
    "build pipeline": (["build", "{tmp}", "red", "-o", "{tmp}/x"], "no model_index.json"),
    "build missing": (["build", "./none/here/at/all", "red", "-o", "{tmp}/x"], "Cannot open the pipeline './none/here"),
    "build device": (["build", "shapeworld", "red", "-o", "{tmp}/x", "--device", "toaster"], "on 'toaster'"),
    "build strength": (["build", "shapeworld", "red", "-o", "{tmp}/x", "--strength", "9"], "but got 9.0"),
    "build sites": (["build", "{tiny}", "{red}", "-o", "{tmp}/x", "--sites", "*.attn3.*"], r"\*\.attn3\.\*"),
    "build pairs": (["build", "{tiny}", "{red}", "-o", "{tmp}/x", "--pairs", "7"], "tiny-red.* 7 .*has 2"),
    "build place": (["build", "{tiny}", "{red}", "-o", "{red}"], "tiny-red.yaml"),
    "apply adapter": (["apply", "{tiny}", "{tmp}/none", "--prompt", "a", "-o", "{tmp}/x.mp4"], "No unlearning adapter"),
    "apply suffix": (["apply", "{tiny}", "{good}", "--prompt", "a", "-o", "{tmp}/x.gif"], "ends in .mp4"),
    "apply strengths": (
        ["apply", "{tiny}", "{good}", "--prompt", "a", "-o", "{tmp}/x.mp4", "--strength", "1", "--strength", "2"],
        "Got 2 values of --strength for 1 adapters",
    ),
    "apply width": (
        ["apply", "{tiny}", "{good}", "--prompt", "a", "-o", "{tmp}/x.mp4"],
        "'red' does not fit: .*in_features = 8.*has 48",
    ),
    "show": (["concepts", "show", "{tmp}/none.yaml"], "none.yaml: there is no such file"),
    "new taken": (["concepts", "new", "tiny-red", "-o", "{red}"], "exists already and was not changed"),
    "new name": (["concepts", "new", "-o", "{tmp}/y.yaml", "a/b"], "name of a concept"),
    "new folder": (["concepts", "new", "ok", "-o", "{tmp}/no/such/folder.yaml"], "No such file or directory"),
    "demo concept": (["demo", "--concept", "nudity", "--output", "{tmp}/x"], "'nudity' has no `target`"),
    "demo unknown": (["demo", "--concept", "rad", "--output", "{tmp}/x"], "Unknown concept 'rad'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_and_exits_with_1(
    case: str, tmp_path: Path, tiny_folder: Path, red: Path, adapter_folder: Path, unlearn: Callable[..., Outcome]
) -> None:
    good = (adapter_folder / FILE_NAME).read_bytes()
    (tmp_path / "text.safetensors").write_text("not a safetensors file, but longer than eight bytes")
    (tmp_path / "cut.safetensors").write_bytes(good[:-10])
    (tmp_path / "x.bin").write_bytes(good)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    places = {"tmp": tmp_path, "tiny": tiny_folder, "red": red, "good": adapter_folder}
    arguments, text = ERRORS[case]
    code, out, err = unlearn(*(argument.format(**places) for argument in arguments), "--json")
    assert (code, out) == (1, "")
    line = err.splitlines()[-1]
    assert line.startswith("error: ") and re.search(text, line), err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_errors_of_light_commands_print_nothing_else(tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    _, _, err = unlearn("inspect", tmp_path / "none")
    assert len(err.splitlines()) == 1


def test_ctrl_c_is_quiet(
    adapter_folder: Path, unlearn: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearning_adapters.adapter.file.inspect_adapter", interrupted)
    assert unlearn("inspect", adapter_folder) == (130, "", "")


def test_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "unlearning_adapters", "concepts"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_module_is_the_command(adapter_folder: Path) -> None:
    call = [sys.executable, "-m", "unlearning_adapters", "inspect", str(adapter_folder)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(str(adapter_folder))
    call[-1] = "none"
    assert subprocess.run(call, capture_output=True).returncode == 1


# Results.


def test_inspect_prints_what_the_function_returns(adapter_folder: Path, unlearn: Callable[..., Outcome]) -> None:
    code, out, err = unlearn("inspect", adapter_folder, "--json")
    assert (code, err) == (0, "") and out.count("\n") == 1
    assert json.loads(out) == inspect_adapter(adapter_folder)
    code, out, err = unlearn("inspect", adapter_folder / FILE_NAME)
    assert (code, err) == (0, "")
    size = (adapter_folder / FILE_NAME).stat().st_size
    for text in ("red: The colour red.", "ridge, strength 1.25, rank 1", "org/base", "WanTransformer3DModel"):
        assert text in out
    assert f"{size:,} bytes, 2 sites" in out
    assert "1 x   transformer.blocks.*.attn2.to_k (8 -> 6)" in out


def test_inspect_names_a_shrinkage(tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    adapter = forge.planted_adapter(forge.small_weights())
    shrunk = {site: replace(direction, shrinkage=0.3) for site, direction in adapter.directions.items()}
    save_adapter(replace(adapter, directions=shrunk), tmp_path / "shrunk")
    assert "rank 1, shrinkage 0.3 in a stack\n" in unlearn("inspect", tmp_path / "shrunk")[1]


def test_inspect_adds_up_sites_that_differ_in_their_block_only(tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    weights = forge.small_weights(*(f"transformer.blocks.{block}.attn2.to_k" for block in range(12)))
    save_adapter(forge.planted_adapter(weights), tmp_path / "many")
    assert "12 x   transformer.blocks.*.attn2.to_k (8 -> 6)" in unlearn("inspect", tmp_path / "many")[1]


def test_concepts_lists_all(unlearn: Callable[..., Outcome]) -> None:
    code, out, err = unlearn("concepts")
    assert (code, err) == (0, "")
    assert tuple(line.split()[0] for line in out.splitlines()) == list_concepts()
    assert unlearn("concepts", "list") == (0, out, "")
    for call in (("concepts", "--json"), ("concepts", "list", "--json"), ("concepts", "--json", "list")):
        listed = json.loads(unlearn(*call)[1])["concepts"]
        assert tuple(item["name"] for item in listed) == list_concepts()


def test_show_prints_a_concept(unlearn: Callable[..., Outcome]) -> None:
    concept = load_concept("red")
    assert json.loads(unlearn("concepts", "show", "red", "--json")[1]) == json.loads(json.dumps(concept.to_dict()))
    out = unlearn("concepts", "show", "red")[1]
    assert all(pair.unsafe in out and pair.safe in out for pair in concept.pairs)
    assert f"{len(concept.pairs)} pairs, {len(concept.neutral)} neutral" in out


def test_new_writes_a_file_that_loads(
    tmp_path: Path, unlearn: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = unlearn("concepts", "new", "my-style", "--json")
    assert (code, err, json.loads(out)) == (0, "", {"file": "my-style.yaml"})
    assert load_concept("my-style.yaml").name == "my-style"
    assert unlearn("concepts", "new", "other", "-o", tmp_path / "there.yaml")[0] == 0
    assert load_concept(tmp_path / "there.yaml").name == "other"


def test_build_equals_the_python_call(tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    options = ["--method", "mean", "--blocks", "0,2-3", "--pairs", "2", "--strength", "0.75", "--seed", "3"]
    code, out, _ = unlearn("build", "shapeworld", "red", "-o", tmp_path / "no-red", *options, "--json")
    assert code == 0 and out.count("\n") == 1
    found, loaded = json.loads(out), load_adapter(tmp_path / "no-red")
    config = BuildConfig(method="mean", blocks=(0, 2, 3), pairs=2, strength=0.75, seed=3)
    made = build_adapter(load_shapeworld(), load_concept("red"), config, progress=False)
    assert loaded.info == made.info and loaded.sites == made.sites and len(made.sites) == 6
    for site in made.sites:
        assert torch.equal(loaded.directions[site].read, made.directions[site].read)
        assert torch.equal(loaded.lora_B[site], made.lora_B[site])
    assert found.pop("seconds") >= 0
    assert found == {
        "file": str(tmp_path / "no-red" / FILE_NAME), "bytes": (tmp_path / "no-red" / FILE_NAME).stat().st_size,
        "concept": "shapeworld-red", "method": "mean", "strength": 0.75, "rank": 1, "sites": 6,
    }  # fmt: skip


def test_build_of_several_concepts_writes_a_folder_of_each_and_keeps_neutral_prompts(
    tmp_path: Path, tiny_folder: Path, red: Path, unlearn: Callable[..., Outcome]
) -> None:
    other = save_concept(
        Concept("blue car", (Pair("a blue car drives", "a white car drives"),), neutral=("a dog runs",)),
        tmp_path / "blue.yaml",
    )
    given = ("build", tiny_folder, red, other, "--neutral-cache", tmp_path / "cache")
    code, out, err = unlearn(*given, "-o", tmp_path / "all", "--json")
    assert code == 0, err
    made = json.loads(out)["adapters"]
    assert [each["concept"] for each in made] == ["tiny-red", "blue car"] and "2/2" in err
    assert [each["file"] for each in made] == [str(tmp_path / "all" / n / FILE_NAME) for n in ("tiny-red", "blue car")]
    assert (tmp_path / "cache" / "neutral.safetensors").exists()
    code, out, _ = unlearn(*given, "-o", tmp_path / "again")
    assert code == 0 and "2 adapters, built in" in out
    first, again = (load_adapter(tmp_path / folder / "tiny-red") for folder in ("all", "again"))
    assert all(torch.equal(first.lora_B[site], again.lora_B[site]) for site in first.sites)
    for extra, said in (
        ((red, "-o", tmp_path / "x"), "'tiny-red' twice"),
        (("-o", tmp_path / "x.safetensors"), "Give -o a folder"),
    ):
        code, _, err = unlearn("build", tiny_folder, red, other, *extra)
        assert code == 1 and said in err.splitlines()[-1]


def test_build_names_what_must_stay_in_the_sentences_of_the_first_concept(
    tmp_path: Path, tiny_folder: Path, red: Path, unlearn: Callable[..., Outcome]
) -> None:
    other = Concept("blue car", (Pair("a blue car drives", "a white car drives"),), neutral=("a dog runs",))
    files = (red, save_concept(other, tmp_path / "blue.yaml"))
    retain = ("--retain", "grey", "--retain", "pink")
    code, _, err = unlearn("build", tiny_folder, *files, *retain, "-o", tmp_path / "kept")
    assert code == 0, err
    first = load_concept(red)
    kept = [concept.retaining(["grey", "pink"], like=first) for concept in (first, other)]
    assert [len(concept.neutral) for concept in kept] == [6, 5]
    made = build_adapters(WanPipeline.from_pretrained(tiny_folder), kept, progress=False)
    for name, adapter in zip(("tiny-red", "blue car"), made, strict=True):
        loaded = load_adapter(tmp_path / "kept" / name)
        for site in adapter.sites:
            assert torch.equal(loaded.directions[site].read, adapter.directions[site].read)
    code, _, err = unlearn("build", tiny_folder, red, "--retain", "", "-o", tmp_path / "x")
    assert code == 1 and "`values`" in err.splitlines()[-1]
    # Sentences of the first concept may name the second, which is then not told to keep itself.
    code, _, err = unlearn("build", "shapeworld", "red", "circle", "--retain", "purple", "-o", tmp_path / "two")
    assert code == 0, err


def test_build_passes_arguments_of_the_call_on(
    tmp_path: Path, tiny_folder: Path, red: Path, unlearn: Callable[..., Outcome]
) -> None:
    start = ("build", tiny_folder, red, "-o", tmp_path / "x.safetensors")
    code, _, err = unlearn(*start, "--call", "max_sequence_length=16", "--batch-size", "2")
    assert code == 0, err
    made = load_adapter(tmp_path / "x.safetensors")
    assert made.info.settings["batch_size"] == 2
    code, _, err = unlearn(*start, "--call", "no_such_argument=1")
    assert code == 1 and "no_such_argument" in err.splitlines()[-1]
    code, _, err = unlearn(*start, "--call", "image=nowhere.png")
    assert code == 1
    assert err.splitlines()[-1].endswith(
        "--call names the file 'nowhere.png', but there is no such file. Check the path."
    )


def test_build_takes_clips_of_a_folder(
    tmp_path: Path, tiny_folder: Path, red: Path, unlearn: Callable[..., Outcome]
) -> None:
    for place, name in enumerate(("unsafe", "safe")):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for index in range(2):
            pixels = np.random.default_rng(2 * index + place).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "clips" / name / f"{index}.png")
    call = [word for item in {**CALL, "num_inference_steps": 4}.items() for word in ("--call", f"{item[0]}={item[1]}")]
    start = ("build", tiny_folder, red, "-o", tmp_path / "x", "--clips", tmp_path / "clips", *call)
    code, out, err = unlearn(*start, "--scope", "concept", "--json")
    assert code == 0, err
    config, clips = BuildConfig(scope="concept"), tmp_path / "clips"
    pipe = WanPipeline.from_pretrained(tiny_folder)
    made = build_adapter(
        pipe, load_concept(red), config, progress=False, call_kwargs={**CALL, "num_inference_steps": 4}, clips=clips
    )
    loaded = load_adapter(tmp_path / "x")
    assert loaded.additive == made.additive and len(made.additive) == json.loads(out)["sites"] - 4
    assert all(torch.equal(loaded.directions[site].read, made.directions[site].read) for site in made.sites)
    code, _, err = unlearn(*start)
    assert code == 1 and 'Clips are read for scope="concept" alone' in err.splitlines()[-1]
    code, _, err = unlearn(*start[:3], red, *start[3:], "--scope", "concept")
    assert code == 1 and "those of one concept, but 2 are named" in err.splitlines()[-1]


def test_a_value_of_the_call_may_name_a_picture_or_a_clip(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), (255, 0, 0)).save(tmp_path / "red.png")
    picture = opened(str(tmp_path / "red.png"))
    assert picture.size == (4, 2) and picture.getpixel((0, 0)) == (255, 0, 0)
    assert opened("a word") == "a word" and opened(49) == 49


def test_build_passes_patterns_on(
    tmp_path: Path, tiny_folder: Path, red: Path, unlearn: Callable[..., Outcome]
) -> None:
    sites = "transformer.blocks.0.attn2.to_k, transformer.blocks.1.attn2.to_v"
    code, out, _ = unlearn("build", tiny_folder, red, "-o", tmp_path / "x.safetensors", "--sites", sites)
    assert code == 0 and "tiny-red, ridge" in out and "2 sites" in out
    assert list(load_adapter(tmp_path / "x.safetensors").sites) == sites.split(", ")


def test_a_warning_is_one_line(tmp_path: Path, tiny_folder: Path, unlearn: Callable[..., Outcome]) -> None:
    bare = save_concept(Concept("bare", (Pair("a red car", "a blue car"),)), tmp_path / "bare.yaml")
    code, out, err = unlearn("build", tiny_folder, bare, "-o", tmp_path / "x", "--json")
    assert code == 0 and json.loads(out)["concept"] == "bare"
    lines = [line for line in err.splitlines() if "no neutral prompts" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: ")


def frames_of(path: Path) -> np.ndarray[Any, Any]:
    return np.stack(imageio.mimread(path)).astype(int)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of imageio's own reader
def test_apply_writes_the_clips_of_the_edited_pipeline(tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    assert unlearn("build", "shapeworld", "red", "-o", tmp_path / "no-red", "--pairs", "5")[0] == 0
    prompt = "a red circle moves left on a black background"
    common = ["apply", "shapeworld", tmp_path / "no-red", "--prompt", prompt, "--steps", "6", "--seed", "3"]
    made = {}
    for name, extra in {"base": ["--strength", "0"], "attached": [], "fused": ["--fuse"]}.items():
        code, out, _ = unlearn(*common, *extra, "-o", tmp_path / f"{name}.mp4", "--json")
        assert code == 0 and json.loads(out)["files"] == [str(tmp_path / f"{name}.mp4")]
        made[name] = frames_of(tmp_path / f"{name}.mp4")
    assert made["base"].shape == (9, 256, 256, 3)
    assert np.abs(made["attached"] - made["base"]).max() > 60
    assert np.abs(made["attached"] - made["fused"]).max() <= 8


def test_apply_on_a_folder_numbers_its_clips(
    tmp_path: Path, tiny_folder: Path, red: Path, unlearn: Callable[..., Outcome]
) -> None:
    assert unlearn("build", tiny_folder, red, "-o", tmp_path / "no-red")[0] == 0
    size = ["--height", "16", "--width", "16", "--frames", "5", "--steps", "2", "--guidance", "3"]
    prompts = ["--prompt", "a red circle", "--prompt", "a dog"]
    adapters = [tmp_path / "no-red", tmp_path / "no-red"]
    strengths = ["--strength", "1", "--strength", "0.5"]
    call = ["apply", tiny_folder, *adapters, *prompts, *strengths, *size, "-o", tmp_path / "out" / "clip.mp4"]
    code, out, _ = unlearn(*call, "--json")
    assert code == 0
    found = json.loads(out)
    assert [Path(file).name for file in found["files"]] == ["clip-1.mp4", "clip-2.mp4"]
    assert all(Path(file).stat().st_size > 500 for file in found["files"])
    assert found["strengths"] == [1.0, 0.5] and found["concepts"] == ["tiny-red", "tiny-red"]


def test_apply_refuses_what_the_pipeline_does_not_take() -> None:
    words = ["x", "y", "--prompt", "a", "-o", "x.mp4", "--frames", "5"]

    class ImagePipeline:
        def __call__(self, prompt: str, num_inference_steps: int = 1) -> None: ...

    context = cli.unlearn.commands["apply"].make_context("apply", words)
    with context, pytest.raises(ConfigError, match="ImagePipeline takes no `num_frames`. Leave --frames out."):
        call_arguments(ImagePipeline(), {"num_frames": context.params["num_frames"]})
