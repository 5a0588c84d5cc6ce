import subprocess
import sys
from pathlib import Path

import pytest
from forge import planted_adapter, small_weights
from tiny import tiny_wan_pipeline

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.file import FILE_NAME, inspect_adapter
from unlearning_adapters.adapter.source import find_adapter_file
from unlearning_adapters.errors import AdapterFileError, AdapterNotFoundError, ConfigError
from unlearning_adapters.hub.hub import pull_adapter
from unlearning_adapters.runtime.verbs import load_unlearning_adapter


@pytest.fixture
def folder(tmp_path):
    save_adapter(planted_adapter(small_weights()), tmp_path / "red")
    return tmp_path / "red"


def missing(text: str, source: object, **options: object) -> None:
    for reader in (load_adapter, inspect_adapter):
        with pytest.raises(AdapterNotFoundError, match=text) as caught:
            reader(source, **options)
        assert isinstance(caught.value, FileNotFoundError) and "\n" not in str(caught.value)


def test_a_file_and_a_folder_are_found(folder):
    path = folder / FILE_NAME
    for source in (path, str(path), folder, str(folder), f"{folder}/"):
        assert find_adapter_file(source) == path
    other = save_adapter(planted_adapter(small_weights()), folder / "other name.safetensors")
    assert find_adapter_file(other) == other and find_adapter_file(folder) == path


def test_a_local_folder_wins_over_a_repository(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    assert load_adapter(f"{folder.parent.name}/red", revision="v1", token="x").info.concept == "red"


def test_a_subfolder_means_the_subfolder(folder):
    deep = save_adapter(planted_adapter(small_weights(), concept="deep"), folder / "v2")
    assert find_adapter_file(folder, subfolder="v2") == deep
    assert load_adapter(folder, subfolder="v2").info.concept == "deep"
    missing(f"in the folder '{folder}/v3': it has no '{FILE_NAME}', it is empty or missing", folder, subfolder="v3")


@pytest.mark.parametrize(
    "subfolder", ["..", "../red", "a/../..", "/etc", "C:\\x", "C:x", "a\\..\\b", "\\\\host\\share", 7]
)
def test_a_subfolder_stays_inside(folder, subfolder):
    with pytest.raises(ConfigError, match="Expected `subfolder` to be a path inside the source, such as 'v2', but got"):
        load_adapter(folder, subfolder=subfolder)
    with pytest.raises(ConfigError, match="Expected `subfolder`"):
        load_adapter("org/name", subfolder=subfolder, local_files_only=True)


def test_a_link_does_not_lead_out(folder, tmp_path):
    save_adapter(planted_adapter(small_weights()), tmp_path / "outside")
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match="`subfolder` 'link' leads out of"):
        load_adapter(folder, subfolder="link")
    with pytest.raises(ConfigError, match="`subfolder` is 'v2', but .* is a file. Leave it out"):
        load_adapter(folder / FILE_NAME, subfolder="v2")


def test_a_linked_file_is_read_as_the_cache_of_the_hub_has_it(folder, tmp_path):
    snapshot = tmp_path / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / FILE_NAME).symlink_to(folder / FILE_NAME)
    assert load_adapter(snapshot).info.concept == "red"


def test_what_is_missing_is_named(tmp_path):
    missing(r"No unlearning adapter at '.*/no': there is no such file or folder\. Check the path", tmp_path / "no")
    missing("there is no such file or folder", str(tmp_path / "no.safetensors"))
    missing("there is no such file or folder", "org/name.safetensors")
    missing("there is no such file or folder", Path("org/name"))
    missing("there is no such file or folder", "./name")
    missing("there is no such file or folder", "../org/name")
    missing("there is no such file or folder", "name")
    missing("there is no such file or folder", "org/name\n")
    missing("File name too long", "x" * 5000)
    missing("it is empty or missing. Name the .safetensors file itself", tmp_path)
    for name in "abcdef":
        (tmp_path / f"{name}.bin").touch()
    missing(r"it holds a.bin, b.bin, c.bin, d.bin, e.bin, \.\.\.", tmp_path)


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl", "A.BIN"])
@pytest.mark.parametrize("exists", [True, False])
def test_pickles_are_refused_by_their_suffix(tmp_path, name, exists):
    if exists:
        (tmp_path / name).write_bytes(b"anything")
    for reader in (load_adapter, inspect_adapter):
        with pytest.raises(
            AdapterFileError, match="files are pickles, which can run code when they are opened. Only .safe"
        ):
            reader(tmp_path / name)


def test_other_suffixes_are_refused(folder):
    path = (folder / FILE_NAME).rename(folder / "red.txt")
    with pytest.raises(AdapterFileError, match=r"its suffix is '\.txt', not '\.safetensors'"):
        load_adapter(path)


@pytest.mark.parametrize("source", ["", "  ", None, 7, b"org/name"])
def test_sources_of_other_types_are_refused(source):
    with pytest.raises(ConfigError, match="Expected a file, a folder or a Hub repository as the source, but got"):
        load_adapter(source)


def test_a_repository_that_is_not_cached_makes_no_request_with_local_files_only(tmp_path):
    text = (
        r"from the Hub repository 'org/no-red' \(nor is it a local folder\): it is not in the local cache, "
        r"and `local_files_only` is set\. Load it once with a network, or name a local folder\."
    )
    missing(text, "org/no-red", local_files_only=True, cache_dir=tmp_path)
    missing(text, "org/no-red", local_files_only=True, cache_dir=tmp_path, revision="v1", subfolder="v2")
    missing("HFValidationError: .*'org/a..b'", "org/a..b", local_files_only=True, cache_dir=tmp_path)


def test_a_cached_repository_is_read_without_a_request(folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "cache" / "models--org--no-red"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    save_adapter(load_adapter(folder), home / "snapshots" / commit)
    options = {"local_files_only": True, "cache_dir": tmp_path / "cache"}
    assert load_adapter("org/no-red", **options).info.concept == "red"
    assert load_adapter("org/no-red", revision=commit, **options).info.concept == "red"
    assert load_adapter("org/no-red", revision=commit, cache_dir=tmp_path / "cache").info.concept == "red"
    assert inspect_adapter("org/no-red", **options)["bytes"] == (folder / FILE_NAME).stat().st_size
    missing("'org/no-red' .* it is not in the local cache", "org/no-red", revision="v2", **options)


def test_a_hub_id_is_inspected_without_torch(tmp_path):
    script = (
        "import sys\nfrom unlearning_adapters.adapter.file import inspect_adapter\n"
        "try: inspect_adapter('org/no-red', local_files_only=True, cache_dir=sys.argv[1])\n"
        "except FileNotFoundError: print('torch' in sys.modules)"
    )
    source = str(Path(__file__).resolve().parents[2] / "src")
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.check_output(command, env={"PYTHONPATH": source}, text=True).strip() == "False"


# The keywords of the Hub, declared once.

TAKES_OPTIONS = {
    "load_adapter": lambda **options: load_adapter("org/none", **options),
    "inspect_adapter": lambda **options: inspect_adapter("org/none", **options),
    "from_pretrained": lambda **options: UnlearningAdapter.from_pretrained("org/none", **options),
    "find_adapter_file": lambda **options: find_adapter_file("org/none", **options),
    "pull_adapter": lambda **options: pull_adapter("org/none", "nowhere", **options),
    "the verb": lambda **options: load_unlearning_adapter(tiny_wan_pipeline(), "org/none", **options),
}


@pytest.mark.parametrize("name", TAKES_OPTIONS)
def test_a_keyword_that_is_misspelt_is_an_error(name):
    call = TAKES_OPTIONS[name]
    with pytest.raises(TypeError, match="Unexpected keyword argument 'revison'. Known: revision, token, cache_dir"):
        call(revison="v1")
    with pytest.raises(TypeError, match="'weight_name'.* To read a file of another name, give its path as the source"):
        call(weight_name="red.safetensors")
    with pytest.raises(AdapterNotFoundError, match="`local_files_only` is set"):
        call(revision="v1", token=False, cache_dir=None, local_files_only=True)


def test_only_functions_that_load_an_adapter_take_a_subfolder():
    for name, call in TAKES_OPTIONS.items():
        error = TypeError if name == "pull_adapter" else AdapterNotFoundError
        with pytest.raises(error):
            call(subfolder="v2", local_files_only=True)
