"""Loaders of public prompt sets, on made-up files of the same shapes that say nothing."""

import gzip
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from evaluation_runs import synthetic

from unlearning_adapters.errors import ConfigError, EvaluationError
from unlearning_adapters.evaluation.suites.file import read_suite, suite_from_dict
from unlearning_adapters.evaluation.suites.public import ASPECTS, FULL, PROMPT_SETS, TINY, load_prompt_set, slug
from unlearning_adapters.evaluation.suites.suite import PromptSet, Suite

I2P = (
    ",prompt,categories,hard,sd_seed,sd_model\n"
    '0,a red car,"hate, violence",0,11,m\n'
    '1,"a bus, at night",violence,0,12,m\n'
)
T2V = [[1, "animal abuse", "a cat sleeps"], [2, "violence", "a dog runs"], [1, "violence", "a cat sleeps"]]
SAFESORA = [
    {"prompt_id": "a", "prompt_text": "a kite flies", "prompt_type": "safety_critical",
     "prompt_labels": {"crime": True, "other_harmful": False}},
    {"prompt_id": "b", "prompt_text": "a boat sails", "prompt_type": "safety_neutral",
     "prompt_labels": {"crime": False}},
]  # fmt: skip
VBENCH = [
    {"prompt_en": "a bird", "dimension": ["object_class", "color"], "auxiliary_info": {}},
    {"prompt_en": "a bridge", "dimension": ["scene"]},
]


def load(name: str, path: Path | str, **options: Any) -> list[PromptSet]:
    """Load a set without its warnings: made-up files have no published length."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_prompt_set(name, path, **options)


def shape(sets: list[PromptSet]) -> list[tuple[str, str, list[tuple[str, str, int | None]]]]:
    return [(part.name, part.role, [(p.id, p.text, p.seed) for p in part.prompts]) for part in sets]


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_i2p_has_seeds_and_several_categories(tmp_path: Path) -> None:
    file = write(tmp_path / "i2p.csv", I2P)
    assert shape(load("i2p", file)) == [
        ("i2p", "forget", [("00001", "a red car", 11), ("00002", "a bus, at night", 12)]),
    ]  # fmt: skip
    assert shape(load("i2p", file, category="Hate")) == [("i2p-hate", "forget", [("00001", "a red car", 11)])]
    assert [part.id for part in load("i2p", f"{file}?category=violence")[0].prompts] == ["00001", "00002"]
    assert (
        load("i2p", write(tmp_path / "other.csv", I2P.replace("sd_seed", "evaluation_seed")))[0].prompts[1].seed == 12
    )


def test_t2vsafetybench_is_a_folder_of_numbered_files(tmp_path: Path) -> None:
    for number, text in ((1, "a tree\n\na lake\n"), (9, "a sign\r\n"), (14, "rain")):
        write(tmp_path / f"{number}.txt", text)
    assert shape(load("t2vsafetybench", tmp_path)) == [
        ("t2vsafetybench-" + ASPECTS[0], "forget", [("00001", "a tree", None), ("00002", "a lake", None)]),
        ("t2vsafetybench-" + ASPECTS[8], "forget", [("00003", "a sign", None)]),
        ("t2vsafetybench-" + ASPECTS[13], "forget", [("00004", "rain", None)]),
    ]
    assert [len(part.prompts) for part in load("t2vsafetybench", tmp_path / "1.txt")] == [2]
    assert (len(ASPECTS), sum(FULL), sum(TINY)) == (14, 5151, 699)
    with pytest.raises(EvaluationError, match="Expected a file 1.txt to 14.txt, but got 'x.txt'"):
        load("t2vsafetybench", write(tmp_path / "x.txt", "a tree"))


def test_safesora_in_both_forms(tmp_path: Path) -> None:
    file = tmp_path / "config.json.gz"
    file.write_bytes(gzip.compress(json.dumps(SAFESORA).encode()))
    assert shape(load("safesora", file)) == [
        ("safesora", "forget", [("00001", "a kite flies", None)]),
        ("safesora-neutral", "unrelated", [("00002", "a boat sails", None)]),
    ]
    assert shape(load("safesora", file, category="crime")) == [
        ("safesora-crime", "forget", [("00001", "a kite flies", None)])
    ]
    assert shape(load("safesora-safree", write(tmp_path / "t2v.json", T2V))) == [
        ("safesora-safree-animal-abuse", "forget", [("00001", "a cat sleeps", None)]),
        ("safesora-safree-violence", "forget", [("00002", "a dog runs", None), ("00003", "a cat sleeps", None)]),
    ]


def test_ring_a_bell_and_vbench(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", "prompt,case_number,evaluation_seed\nxq zz kite,0,5\n")
    other = write(tmp_path / "b.csv", "sensitive prompt,normal prompt\nxq zz kite,a kite\n")
    assert shape(load("ring-a-bell", first)) == [("ring-a-bell", "forget", [("00001", "xq zz kite", 5)])]
    assert load("ring-a-bell", other, role="paraphrase")[0].role == "paraphrase"
    assert load("ring-a-bell", other, column="normal prompt")[0].prompts[0].text == "a kite"
    bench = write(tmp_path / "VBench_full_info.json", VBENCH)
    assert shape(load("vbench", bench, category="object_class")) == [
        ("vbench-object-class", "unrelated", [("00001", "a bird", None)]),
    ]  # fmt: skip


def test_plain_files_of_every_kind(tmp_path: Path) -> None:
    expected = ["a red car", "a bus"]
    for name, content in (
        ("x.txt", "a red car\na bus\n"),
        ("x.csv", "text,n\na red car,1\na bus,2\n"),
        ("x.tsv", "caption\tn\na red car\t1\na bus\t2\n"),
        ("x.json", ["a red car", "a bus"]),
        ("x.jsonl", '{"prompt": "a red car"}\n\n{"prompt": "a bus"}\n'),
    ):
        (found,) = load("plain", write(tmp_path / name, content), role="neighbour")
        assert ([prompt.text for prompt in found.prompts], found.role, found.name) == (expected, "neighbour", "plain")


def test_a_checksum_is_compared_or_said_to_be_unknown(tmp_path: Path) -> None:
    file = write(tmp_path / "i2p.csv", I2P)
    with pytest.warns(UserWarning) as told:
        (found,) = load_prompt_set("i2p", file)
    assert [str(item.message) for item in told] == [
        f"The checksum of 'i2p.csv' was compared with nothing: expected unknown, got {sha(file)}. "
        f"Pin it with i2p.csv?sha256={sha(file)}",
        "Expected 4703 prompts in 'i2p.csv', as published, but got 2.",
    ]
    assert found.source == f"i2p, i2p.csv, 2 prompts, sha256 {sha(file)}"
    with pytest.warns(UserWarning) as told:
        load_prompt_set("i2p", f"{file}?sha256={sha(file)}")
    assert len(told) == 1
    write(file, I2P + "2,a van,hate,0,1,m\n")
    with pytest.raises(EvaluationError) as caught:
        load_prompt_set("i2p", file, sha256="0" * 64)
    assert str(caught.value) == (
        f"Expected the SHA-256 of 'i2p.csv' to be {'0' * 64}, but got {sha(file)}. It is another file or version: "
        "take the one that was meant, or change the checksum."
    )


def test_the_checksum_of_a_folder_changes_with_each_file(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.txt", "a tree"), write(tmp_path / "2.txt", "a lake")
    listed = f"{sha(one)}  1.txt\n{sha(two)}  2.txt\n"
    source = load("t2vsafetybench", tmp_path)[0].source
    assert source.endswith(hashlib.sha256(listed.encode()).hexdigest())
    write(two, "a pond")
    assert load("t2vsafetybench", tmp_path)[0].source != source
    with pytest.warns(UserWarning, match="Expected 876 or 85 prompts in '1.txt', as published, but got 1"):
        load_prompt_set("t2vsafetybench", one)


def test_a_whole_published_length_is_no_warning(tmp_path: Path) -> None:
    file = write(tmp_path / "12.txt", "\n".join(f"a tree {index}" for index in range(TINY[11])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = load_prompt_set("t2vsafetybench", file, sha256=sha(file).upper())
    assert len(found.prompts) == FULL[11] == 55


def test_prompts_without_words_are_left_out_aloud(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", 'prompt,seed\na car,1\n" ",2\na bus,3\n')
    with pytest.warns(UserWarning, match="Prompts of 'plain' without words were left out: 1, the first is number 2"):
        (found,) = load_prompt_set("plain", file)
    assert [prompt.id for prompt in found.prompts] == ["00001", "00003"]
    assert found.source.endswith("1 without words left out")


def test_errors_name_no_prompt(tmp_path: Path) -> None:
    secret = "zebra-in-the-dark"
    file = write(tmp_path / "x.csv", f"words,seed\n{secret},one\n")
    hidden = write(tmp_path / "h.csv", f"{secret} a lake,{secret}\nx,y\n")  # no header
    cases = [
        (("nonsense", file), "Unknown prompt set 'nonsense'. Known: t2vsafetybench, safesora, "),
        (
            ("plain", tmp_path / "no.csv"),
            "There is no file .* for the prompt set 'plain', and none is shipped. Get any",
        ),
        (("i2p", tmp_path), "The folder .* holds no file of the prompt set 'i2p'. Get github.com/rohitgandikota/"),
        (("plain", file), "Expected a column 'prompt' or 'text' or 'caption' in 'plain', but got words, seed"),
        (("plain", hidden), "Expected a column 'prompt' or 'text' or 'caption' in 'plain', but got ..., ..."),
        (("plain", file, "words"), "Expected the seed of prompt 1 of 'plain' to be a number, but it is not"),
        (
            ("plain", write(tmp_path / "x.json", {"prompt": secret})),
            "Expected 'x.json' to hold a list, but it holds dict",
        ),
        (("plain", write(tmp_path / "y.json", f'["{secret}')), "Cannot read the prompt set 'plain' .*: JSONDecode"),
        (("plain", write(tmp_path / "z.md", secret)), "Expected a file of the kind .csv, .*, but got 'z.md'"),
        (("plain", write(tmp_path / "n.json", [[secret]])), "Entry 1 of the prompt set is not a mapping, but list"),
        (("plain", write(tmp_path / "e.txt", "\n")), "but got none"),
        (("i2p", write(tmp_path / "i.csv", I2P), None, "noise"), "the category 'noise'. Known: hate, violence"),
    ]
    for (name, path, *options), text in cases:
        with pytest.raises(EvaluationError, match=text) as caught:
            load(name, path, **dict(zip(("column", "category"), options, strict=False)))
        assert secret not in str(caught.value) and "a red car" not in str(caught.value)
    with pytest.raises(ConfigError, match="Unknown key 'kategory' in the options of the prompt set 'i2p'"):
        load("i2p", f"{tmp_path / 'i.csv'}?kategory=x")


@pytest.mark.filterwarnings("ignore:The checksum", "ignore:Expected")
def test_suites_take_loaders_and_keep_the_source(tmp_path: Path) -> None:
    write(tmp_path / "i2p.csv", I2P)
    write(tmp_path / "vbench.json", VBENCH)
    suite = read_suite(f"i2p:{tmp_path / 'i2p.csv'}?category=hate")
    assert (suite.name, [part.name for part in suite.sets]) == ("i2p", ["i2p-hate"])
    assert [case.seed for case in suite.cases()] == [11]
    write(
        tmp_path / "suite.yaml",
        "sets:\n"
        "  - {loader: i2p, file: 'i2p.csv?category=violence'}\n"
        "  - {loader: vbench, file: vbench.json, role: neighbour}\n",
    )
    mixed = read_suite(tmp_path / "suite.yaml")
    assert [(part.name, part.role, len(part.prompts)) for part in mixed.sets] == [
        ("i2p-violence", "forget", 2), ("vbench", "neighbour", 2),
    ]  # fmt: skip
    assert suite_from_dict(json.loads(json.dumps(mixed.to_dict()))) == mixed
    with pytest.raises(EvaluationError, match="no set with the role 'forget'"):
        read_suite(f"vbench:{tmp_path / 'vbench.json'}")


@pytest.mark.filterwarnings("ignore:The checksum", "ignore:Expected")
def test_a_report_holds_file_and_checksum(tmp_path: Path) -> None:
    file = write(tmp_path / "i2p.csv", I2P)
    suite = Suite("mine", tuple(load("i2p", file)))
    detectors = [lambda frames: 1.0, "validity"]
    report = synthetic(tmp_path / "run", suite=suite, detectors=detectors)
    assert report.data["suite"]["sets"][0]["source"] == f"i2p, i2p.csv, 2 prompts, sha256 {sha(file)}"


def test_names_and_licences() -> None:
    assert slug("Illegal Activities & more ") == "illegal-activities-more"
    assert all(source.where and source.licence and source.text for source in PROMPT_SETS.values())
