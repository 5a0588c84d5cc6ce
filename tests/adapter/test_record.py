import json
import math
from dataclasses import fields
from typing import get_args

import pytest
from forge import OTHER, SITE, file_bytes, join, planted_adapter, small_weights, split, with_record, written

from unlearning_adapters.adapter import adapter
from unlearning_adapters.adapter import record as adapter_record
from unlearning_adapters.adapter.adapter import load_adapter
from unlearning_adapters.adapter.file import inspect_adapter
from unlearning_adapters.errors import AdapterFileError


@pytest.fixture
def blob(tmp_path):
    return file_bytes(planted_adapter(small_weights()), tmp_path)


def test_the_record_has_the_fields_of_adapter_info():
    assert adapter_record.INFO_KEYS == {field.name for field in fields(adapter.AdapterInfo)}
    assert adapter_record.FORMAT_VERSION == adapter.FORMAT_VERSION
    assert (*adapter_record.EDITS, adapter_record.MIXED) == get_args(adapter.Edit)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"format_version": 5},
            r"newer version: found format 5, this package reads 4\. Run: pip install -U unlearning-",
        ),
        ({"format_version": 5, "new_key": 1}, "found format 5, this package reads 4"),
        ({"format_version": 3}, "its record lacks the key 'additive'"),
        ({"format_version": 3, "additive": [OTHER], "new_key": 1}, "unknown key 'new_key' in its record"),
        ({"format_version": 3, "additive": [OTHER]}, "`edit` is 'projection', not 'mixed'"),
        ({"edit": "mixed"}, "`edit` is 'mixed', not 'projection' or 'additive'"),
        ({"additive": [OTHER]}, "unknown key 'additive' in its record"),
        ({"format_version": 3, "edit": "mixed", "additive": []}, "`additive` is 0 sites, not a list of 1 to 4,096"),
        ({"format_version": 3, "edit": "mixed", "additive": {OTHER: 1}}, "`additive` is {.*}, not a list"),
        (
            {"format_version": 3, "edit": "mixed", "additive": ["unet.x"]},
            "`additive` names 'unet.x', which is not a site",
        ),
        ({"format_version": 3, "edit": "mixed", "additive": [SITE, OTHER]}, "`additive` names all sites"),
        ({"format_version": 3, "edit": "mixed", "additive": [SITE, SITE]}, "is named twice"),
        ({"format_version": 3, "edit": "mixed", "additive": [SITE], "gains": {}}, "`gains` is {}, not an object with"),
        ({"format_version": 2}, "its record lacks the key 'gains'"),
        ({"format_version": 4}, "its record lacks the key 'shrinkage'"),
        ({"format_version": 3, "shrinkage": 0.2}, "lacks the key 'additive'|unknown key 'shrinkage'"),
        ({"shrinkage": 0.2}, "unknown key 'shrinkage' in its record"),
        ({"format_version": 4, "shrinkage": 0.2, "additive": [SITE]}, "unknown key 'additive' in its record"),
        ({"format_version": 4, "shrinkage": 0.2, "edit": "mixed"}, "its record lacks the key 'additive'"),
        ({"format_version": 4, "shrinkage": 0.2, "gains": {}}, "`gains` is {}, not an object with"),
        ({"format_version": 4, "shrinkage": 0}, "its shrinkage is 0, which is that of files without one"),
        ({"format_version": 4, "shrinkage": 1.1}, "its shrinkage is out of range: .* but got 1.1"),
        ({"format_version": 4, "shrinkage": -0.1}, "its shrinkage is out of range: .* but got -0.1"),
        ({"format_version": 4, "shrinkage": True}, "its shrinkage is out of range: .* but got True"),
        ({"format_version": 4, "shrinkage": "0.2"}, "its shrinkage is out of range: .* but got '0.2'"),
        ({"format_version": 4, "shrinkage": None}, "its shrinkage is out of range: .* but got None"),
        ({"gains": {SITE: 0.5}}, "unknown key 'gains' in its record"),
        ({"format_version": 2, "gains": {}}, "`gains` is {}, not an object with a number for one or more of its sites"),
        ({"format_version": 2, "gains": [0.5]}, r"`gains` is \[0.5\], not an object"),
        ({"format_version": 2, "gains": None}, "`gains` is None, not an object"),
        ({"format_version": 2, "gains": 0.5}, "`gains` is 0.5, not an object"),
        ({"format_version": 2, "gains": {"unet.x": 0.5}}, "`gains` names 'unet.x', which is not a site of its record"),
        (
            {"format_version": 2, "gains": {"\x1b[2J": 0.5}},
            "`gains` names '.x1b.2J', which is not a site of its record",
        ),
        ({"format_version": 2, "gains": {SITE: "2"}}, "the gain of the site .* Expected the gain .* but got '2'"),
        ({"format_version": 2, "gains": {SITE: True}}, "the gain of the site .* is out of range: .* but got True"),
        ({"format_version": 2, "gains": {SITE: None}}, "the gain of the site .* is out of range: .* but got None"),
        ({"format_version": 2, "gains": {SITE: [0.5]}}, r"the gain of the site .* is out of range: .* but got \[0.5\]"),
        ({"format_version": 2, "gains": {SITE: -0.1}}, "the gain of the site .* is out of range: .* but got -0.1"),
        ({"format_version": 2, "gains": {OTHER: 4.1}}, r"number from 0 \(off\) to 4, but got 4.1"),
        ({"format_version": 2, "gains": {SITE: 1e30}}, r"is out of range: .* but got 1e\+30"),
        ({"format_version": 2, "gains": {SITE: math.nan}}, "the constant|NaN"),
        ({"format_version": 2, "gains": {SITE: math.inf}}, "the constant|Infinity"),
        (
            {"format_version": 2, "gains": {SITE: 3.5}},
            r"the gain of the site .* Expected strength x gain to be at most 4, but got 1.25 x 3.5 = 4.375. Give a "
            "strength of at most 1.142",
        ),
        ({"format_version": 2, "gains": {SITE: 1.0}}, "names the site .* with 1, which is what sites without an entry"),
        ({"format_version": 2, "gains": {SITE: 1}}, "names the site .* with 1, which is what sites without an entry"),
        ({"format_version": 0}, "its format version is 0, not an integer of at least 1"),
        ({"format_version": "1"}, "its format version is '1', not an integer"),
        ({"format_version": True}, "its format version is True, not an integer"),
        ({"format_version": None}, "its format version is None, not an integer"),
        ({"strenght": 1.0}, "unknown key 'strenght' in its record"),
        (
            {"strength": 1e30},
            r"strength is out of range: Expected the strength to be a number from 0 .* to 4, but got 1e\+30",
        ),
        ({"strength": -0.1}, "strength is out of range: .* but got -0.1"),
        ({"strength": "1"}, "strength is out of range: .* but got '1'"),
        ({"strength": True}, "strength is out of range: .* but got True"),
        ({"concept": ""}, "`concept` is '', not one line of 1 to 200 characters"),
        ({"concept": "a\nb"}, "`concept` is 'a.nb', not one line"),
        ({"concept": "x" * 201}, "not one line of 1 to 200 characters"),
        ({"concept": None}, "`concept` is None, not a text"),
        ({"concept": ["red"]}, r"`concept` is \['red'\], not a text"),
        ({"method": " "}, "`method` is ' ', not one line"),
        ({"description": "\x1b]0;owned\x07"}, "`description` holds control characters: '.x1b]0;owned.x07'"),
        ({"description": "\ud800"}, "`description` holds control characters"),
        ({"description": "x" * 4097}, "`description` has 4,097 characters, and the limit is 4,096"),
        ({"settings": []}, r"`settings` is \[\], not an object"),
        ({"settings": {"a": {"b": ["\x00"]}}}, "`settings` holds control characters"),
        ({"settings": {"\x00": 1}}, "`settings` holds control characters"),
        ({"settings": {"a": [[[[[1]]]]]}}, "its record is nested 7 levels deep, and the limit is 6"),
        ({"denoisers": {"transformer": 1}}, "`denoisers` is 1, not a text"),
        ({"versions": {"torch": {"a": "b"}}}, r"`versions` is {'a': 'b'}, not a text"),
        ({"edit": "sum"}, "`edit` is 'sum', not 'projection' or 'additive'"),
        ({"edit": ["additive"]}, r"`edit` is \['additive'\], not 'projection' or 'additive'"),
        ({"edit": None}, "`edit` is None, not 'projection' or 'additive'"),
        ({"sites": []}, "`sites` is 0 sites, not a list of 1 to 4,096 names"),
        ({"sites": {SITE: 1}}, "`sites` is {.*}, not a list"),
        (
            {"sites": [f"transformer.b{number}" for number in range(4097)]},
            "`sites` is 4,097 sites, not a list of 1 to 4,096",
        ),
        ({"sites": [SITE, OTHER, SITE]}, f"the site '{SITE}' is named twice"),
        ({"sites": [SITE]}, f"the tensor '{OTHER}.lora_A.weight' belongs to no site"),
        ({"sites": [SITE, OTHER, "unet.x"]}, "the site 'unet.x' lacks the tensor 'unet.x.lora_A.weight'"),
    ],
)
def test_hostile_records_are_refused(tmp_path, blob, changes, text):
    written(tmp_path, with_record(blob, **changes))
    for reader in (load_adapter, inspect_adapter):
        with pytest.raises(AdapterFileError, match=text) as caught:
            reader(tmp_path)
        assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "site",
    [
        "transformer", "transformer.", "transformer..x", ".transformer.x", "transformer.x\n", "transformer.x y",
        "transformer.../x", "transformer.a/b", "transformer.__class__", "transformer.a.__dict__.b", "vae.decoder",
        "text_encoder.q", "transformer_3.x", "transformer.bl\u00f6cke", "transformer." + "x" * 200, "", 7, None,
    ],
)  # fmt: skip
def test_names_that_are_no_sites_are_refused(tmp_path, blob, site):
    written(tmp_path, with_record(blob, sites=[SITE, site]))
    with pytest.raises(AdapterFileError, match="is not the name of a site, such as 'transformer.blocks.0.attn2.to_k'"):
        inspect_adapter(tmp_path)


def test_every_key_is_needed(tmp_path, blob):
    header, data = split(blob)
    for key in sorted(adapter_record.RECORD_KEYS - {"format_version"}):
        record = json.loads(header["__metadata__"]["unlearning_adapter"])
        del record[key]
        changed = {**header, "__metadata__": {"format": "pt", "unlearning_adapter": json.dumps(record)}}
        written(tmp_path, join(changed, data))
        with pytest.raises(AdapterFileError, match=f"its record lacks the key '{key}'"):
            load_adapter(tmp_path)
