"""The record in an adapter file's header: strict JSON of known keys and plain, bounded values; imports no torch."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from unlearning_adapters.config import check_gain, check_shrinkage, check_strength, site_strength
from unlearning_adapters.errors import AdapterFileError, ConfigError

FORMAT_VERSION = 4
WITH_GAINS = 2  # the version whose records have gains; files without any are of the first one
WITH_BOTH = 3  # the version whose records name the sites of additive directions, beside others; gains are optional
WITH_SHRINKAGE = 4  # the version whose records have a shrinkage, of directions of any kind; gains are optional
EDITS = ("projection", "additive")
MIXED = "mixed"
COMPONENTS = ("transformer", "transformer_2", "transformer_ref", "unet")
MAX_SITES = 4096  # two denoisers of 60 blocks with twelve sites each have 1,440
MAX_NAME = 200
MAX_TEXT = 4096
MAX_DEPTH = 6
# Of the signs that structure JSON: the largest layout has 340,000, and 8 MiB of brackets would take 230 MiB.
MAX_MARKS = 2**19

_SITE = re.compile(rf"(?:{'|'.join(COMPONENTS)})(?:\.(?!__)[A-Za-z0-9_]+)+")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_TEXTS = ("concept", "method", "base_model", "base_revision", "pipeline", "pairs_hash", "description")
_TABLES = ("settings", "denoisers", "versions")
INFO_KEYS = frozenset((*_TEXTS, *_TABLES, "strength", "format_version"))
RECORD_KEYS = INFO_KEYS | {"edit", "sites"}
GAINS = "gains"
ADDITIVE = "additive"
SHRINKAGE = "shrinkage"
AGAIN = "Get the file again from where it came, or build it again with build_adapter."


def bad_file(name: str, reason: str, cure: str = AGAIN) -> AdapterFileError:
    """Return the error for a file that is refused: which one, what was found (with the limit), and the cure."""
    return AdapterFileError(f"Refused {name!r} as an unlearning adapter: {reason}. {cure}")


def shorten(value: object) -> str:
    """Return the `repr` of something found in a file, cut to a length that fits in an error."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, UTF-8."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise AdapterFileError(
            f"The adapter's record cannot be written as JSON: {error}. "
            "Its fields must hold plain texts, finite numbers, lists and dictionaries."
        ) from error
    return text


def strict_json(text: str, name: str, part: str) -> dict[str, Any]:
    """Parse JSON without duplicate keys, NaN, infinities, numbers beyond 64 bits, deep nesting or many values."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise ValueError(f"the key {shorten(key)} occurs twice")
            values[key] = value
        return values

    def integer(digits: str) -> int:
        if len(digits) > 19:
            raise ValueError(f"an integer has {len(digits)} digits, and the limit is 19")
        return int(digits)

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"the number {shorten(digits)} is not finite")
        return value

    def constant(word: str) -> None:
        raise ValueError(f"the number {word} is not finite")

    marks = sum(map(text.count, '[]{},:"'))
    if marks > MAX_MARKS:
        raise bad_file(
            name, f"its {part} has {marks:,} brackets, quotes, commas and colons, and the limit is {MAX_MARKS:,}"
        )
    depth = _depth(text)
    if depth > MAX_DEPTH:
        raise bad_file(name, f"its {part} is nested {depth:,} levels deep, and the limit is {MAX_DEPTH}")
    try:
        values = json.loads(
            text, object_pairs_hook=unique, parse_int=integer, parse_float=number, parse_constant=constant
        )
    except (ValueError, RecursionError) as error:
        raise bad_file(name, f"its {part} is not strict JSON: {error}") from error
    if not isinstance(values, dict):
        raise bad_file(name, f"its {part} is a JSON {type(values).__name__}, not an object")
    return values


def _depth(text: str) -> int:
    """Return how deep the brackets outside of strings are nested, at the speed of `str.split`: headers may be large."""
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", outside):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _known_keys(version: int, record: Mapping[str, Any]) -> frozenset[str]:
    """Return the keys that a record of a version has; gains are optional from the third version on."""
    optional = {GAINS} & set(record)
    if version == WITH_SHRINKAGE:
        return RECORD_KEYS | {SHRINKAGE, *([ADDITIVE] if record.get("edit") == MIXED else [])} | optional
    if version == WITH_BOTH:
        return RECORD_KEYS | {ADDITIVE} | optional
    return RECORD_KEYS | {GAINS} if version == WITH_GAINS else RECORD_KEYS


def check_record(record: Mapping[str, Any], name: str) -> tuple[tuple[str, ...], dict[str, float], frozenset[str]]:
    """Check the record, version first, since a newer one may have other keys.

    Returns:
        The sites, their gains, and those of them whose directions are additive.
    """
    version = record.get("format_version")
    if type(version) is not int or version < 1:
        raise bad_file(name, f"its format version is {shorten(version)}, not an integer of at least 1")
    if version > FORMAT_VERSION:
        raise bad_file(
            name,
            f"it was written by a newer version: found format {version}, this package reads {FORMAT_VERSION}",
            "Run: pip install -U unlearning-adapters",
        )
    keys = _known_keys(version, record)
    for key in sorted(keys ^ set(record)):
        raise bad_file(
            name,
            f"its record lacks the key {key!r}" if key in keys else f"unknown key {shorten(key)} in its record",
        )
    for key in _TEXTS:
        _check_text(record[key], key, name)
    for key in _TABLES:
        if not isinstance(record[key], dict):
            raise bad_file(name, f"`{key}` is {shorten(record[key])}, not an object")
        _check_plain(record[key], key, name)
        if key != "settings":
            for value in record[key].values():
                _check_text(value, key, name)
    for key in ("concept", "method"):
        if not record[key].strip() or len(record[key]) > MAX_NAME or re.search("[\n\t]", record[key]):
            raise bad_file(name, f"`{key}` is {shorten(record[key])}, not one line of 1 to {MAX_NAME} characters")
    try:
        check_strength(record["strength"])
    except ConfigError as error:
        raise bad_file(name, f"its strength is out of range: {str(error).rstrip('.')}") from error
    edits = {WITH_BOTH: (MIXED,), WITH_SHRINKAGE: (*EDITS, MIXED)}.get(version, EDITS)
    if record["edit"] not in edits:
        raise bad_file(name, f"`edit` is {shorten(record['edit'])}, not {' or '.join(map(repr, edits))}")
    sites = _check_site_names(record["sites"], name)
    gains = _check_gains(record[GAINS], record["strength"], sites, name) if GAINS in record else {}
    if SHRINKAGE in record:
        _check_shrinkage(record[SHRINKAGE], name)
    if ADDITIVE in record:
        return sites, gains, _check_additive(record[ADDITIVE], sites, name)
    return sites, gains, frozenset(sites if record["edit"] == "additive" else ())


def _check_shrinkage(shrinkage: Any, name: str) -> None:
    try:
        allowed = check_shrinkage(shrinkage)
    except ConfigError as error:
        raise bad_file(name, f"its shrinkage is out of range: {str(error).rstrip('.')}") from error
    if not allowed:
        raise bad_file(name, "its shrinkage is 0, which is that of files without one")


def _check_additive(additive: Any, sites: tuple[str, ...], name: str) -> frozenset[str]:
    """Check the list of the sites whose directions are additive: some of the record's, and not all."""
    names = _check_site_names(additive, name, ADDITIVE)
    unknown = next((site for site in names if site not in set(sites)), None)
    if unknown is not None:
        raise bad_file(name, f"`{ADDITIVE}` names {shorten(unknown)}, which is not a site of its record")
    if len(names) == len(sites):
        raise bad_file(name, f"`{ADDITIVE}` names all sites, for which `edit` is 'additive' and there is no list")
    return frozenset(names)


def _check_text(value: Any, key: str, name: str) -> None:
    if not isinstance(value, str):
        raise bad_file(name, f"`{key}` is {shorten(value)}, not a text")
    if len(value) > MAX_TEXT:
        raise bad_file(name, f"`{key}` has {len(value):,} characters, and the limit is {MAX_TEXT:,}")
    if _CONTROL.search(value):
        raise bad_file(name, f"`{key}` holds control characters: {shorten(value)}")


def _check_plain(value: Any, key: str, name: str) -> None:
    """Check the texts of a table, which is shown to people and never executed; `strict_json` has bounded its depth."""
    if isinstance(value, dict):
        for inner, item in value.items():
            _check_text(inner, key, name)
            _check_plain(item, key, name)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, key, name)
    elif isinstance(value, str):
        _check_text(value, key, name)


def _check_site_names(sites: Any, name: str, key: str = "sites") -> tuple[str, ...]:
    if not isinstance(sites, list) or not 1 <= len(sites) <= MAX_SITES:
        what = f"{len(sites):,} sites" if isinstance(sites, list) else shorten(sites)
        raise bad_file(name, f"`{key}` is {what}, not a list of 1 to {MAX_SITES:,} names")
    for site in sites:
        if not isinstance(site, str) or len(site) > MAX_NAME or not _SITE.fullmatch(site):
            raise bad_file(
                name, f"{shorten(site)} is not the name of a site, such as 'transformer.blocks.0.attn2.to_k'"
            )
    if len(set(sites)) != len(sites):
        raise bad_file(name, f"the site {Counter(sites).most_common(1)[0][0]!r} is named twice")
    return tuple(sites)


def _check_gains(gains: Any, strength: float, sites: tuple[str, ...], name: str) -> dict[str, float]:
    """Check what sites multiply the strength by; a site without an entry multiplies it by 1."""
    if not isinstance(gains, dict) or not gains:
        raise bad_file(name, f"`{GAINS}` is {shorten(gains)}, not an object with a number for one or more of its sites")
    names = set(sites)
    for site, gain in gains.items():
        if site not in names:
            raise bad_file(name, f"`{GAINS}` names {shorten(site)}, which is not a site of its record")
        try:
            check_gain(gain)
            site_strength(strength, gain)
        except ConfigError as error:
            raise bad_file(name, f"the gain of the site {site!r} is out of range: {str(error).rstrip('.')}") from error
        if gain == 1:
            raise bad_file(name, f"`{GAINS}` names the site {site!r} with 1, which is what sites without an entry take")
    return {site: float(gain) for site, gain in gains.items()}
