import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearning_adapters.adapter.missing import POINTER
from unlearning_adapters.concepts.file import (
    MAX_BYTES,
    PACKS,
    pack_names,
    parse_jsonl,
    parse_yaml,
    read_pack,
    read_values,
)
from unlearning_adapters.errors import ConceptError


def test_every_scalar_is_a_text():
    text = "a: no\nb: 1984\nc: ~\nd: 2001-99-99\ne: 1.5e3\nf: [yes, 0x10]\ng:\n"
    expected = {"a": "no", "b": "1984", "c": "~", "d": "2001-99-99", "e": "1.5e3", "f": ["yes", "0x10"], "g": ""}
    assert parse_yaml(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: x\na: y", "Line 2, column 1: not strict YAML, found the key 'a' twice"),
        ("a:\n  - b: x\n    b: x", "Line 3, column 5: not strict YAML, found the key 'b' twice"),
        ("a: &x [b]\nc: *x", "Line 2, column 4: not strict YAML, found the alias; write the text itself"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "Line 1, column 4: not strict YAML, found the tag 'tag:yaml.org,2002:py",
        ),
        ("a: !x y", "found the tag '!x'"),
        ("? [a]\n: b", "found a key that is no text"),
        ("a: [x", "Line 1, column 6: not strict YAML, expected ',' or ']'"),
        ("a: x\n---\nb: y", "not strict YAML, but found another document"),
        ("a: \0", "Not YAML: .*special characters are not allowed"),
        ("[" * 50_000, "nested too deeply"),
    ],
)
def test_yaml_that_is_not_strict_is_refused_with_its_line(text, expected):
    with pytest.raises(ConceptError, match=expected.replace("[", r"\[")) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"unsafe": "a", "safe": "b"', "Line 2: not JSON"),
        ('{"unsafe": "a", "unsafe": "b", "safe": "c"}', "Line 2: found the key 'unsafe' twice"),
        ('["a", "b"]', "Line 2: expected a pair with `unsafe` and `safe`, or one of neutral, .* but got no object"),
        ("{}", "Line 2: .* but got no object with keys"),
        ('{"unsafe": "a", "neutral": "b"}', "Line 2: .* but got the keys unsafe, neutral"),
        ('{"neighbor": "a"}', "Line 2: .* but got the keys neighbor"),
        ('{"neutral": ' + "9" * 5000 + "}", "Line 2: not JSON"),
        ("[" * 200_000, "Line 2: not JSON"),
    ],
)
def test_a_jsonl_line_that_is_no_entry_is_refused_with_its_number(line, expected):
    with pytest.raises(ConceptError, match=expected):
        parse_jsonl('{"unsafe": "a", "safe": "b"}\n' + line)


@settings(max_examples=100, deadline=None, database=None)
@given(st.one_of(st.text(max_size=200), st.text(alphabet="a:-[]{}#&*!|>'\"%@`, \n\t?", max_size=60)))
def test_any_text_gives_values_or_the_named_error(text):
    for parse in (parse_yaml, parse_jsonl):
        try:
            json.dumps(parse(text))
        except ConceptError as error:
            assert "\n" not in str(error)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    large = tmp_path / "large.yaml"
    large.write_bytes(b"a" * (MAX_BYTES + 5))
    with pytest.raises(
        ConceptError, match=r"large\.yaml: the file has 1,000,005 bytes, but at most 1,000,000 are read"
    ):
        read_values(large)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"ab\xff")
    with pytest.raises(ConceptError, match=r"binary\.jsonl: byte 2 is not UTF-8\. Save the file as UTF-8"):
        read_values(binary)
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(ConceptError, match=r"folder\.yaml: 'folder\.yaml' is a folder there, not a file\. Check"):
        read_values(folder)
    (tmp_path / "link.yaml").symlink_to("gone.yaml")
    with pytest.raises(ConceptError, match=r"link\.yaml: it is a link to 'gone\.yaml', where nothing is\. Check"):
        read_values(tmp_path / "link.yaml")
    (tmp_path / "pointer.yaml").write_bytes(POINTER + b"/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ConceptError, match=r"pointer\.yaml: it is a pointer of Git LFS.* Run `git lfs pull`"):
        read_values(tmp_path / "pointer.yaml")
    with pytest.raises(ConceptError, match=r"there is no such file, but there is 'binary\.jsonl', and names are case"):
        read_values(tmp_path / "Binary.JSONL")
    with pytest.raises(ConceptError, match="File name too long"):
        read_values(tmp_path / f"{'x' * 300}.yaml")
    bad = tmp_path / "bad.yml"
    bad.write_text("a: b: c")
    with pytest.raises(ConceptError, match=r"bad\.yml: Line 1, column 5: not strict YAML, mapping values"):
        read_values(bad)


def test_packs_are_plain_yaml_that_any_reader_understands_alike():
    for name in pack_names():
        values = read_pack(name)
        assert values == yaml.safe_load((PACKS / f"{name}.yaml").read_text("utf-8")), name
        prompts = [entry for value in values.values() if isinstance(value, list) for entry in value]
        assert all(isinstance(entry, (str, dict)) for entry in prompts), name
