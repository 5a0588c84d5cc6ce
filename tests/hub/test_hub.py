"""Push and pull with the real client of the Hub, over HTTP to the loopback server of `loopback_hub.py`."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from forge import planted_adapter, small_weights
from fresh import in_copy, python
from huggingface_hub import EvalResultEntry, HfApi, ModelCard, constants, parse_eval_result_entries
from loopback_hub import READ, WRITE
from tiny import tiny_wan_pipeline

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.file import FILE_NAME, inspect_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.cli import main as cli
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import AdapterFileError, AdapterNotFoundError, ConfigError, HubError
from unlearning_adapters.hub.hub import RESULTS, pull_adapter, push_adapter
from unlearning_adapters.hub.measured import BENCHMARK, RATES
from unlearning_adapters.shapeworld.models.generate import GENERATION

REPOSITORY = "org/no-red"


@pytest.fixture
def adapter() -> UnlearningAdapter:
    return planted_adapter(small_weights())


@pytest.fixture
def options(tmp_path):
    """Options of a load that shares no cache with other tests."""
    return {"cache_dir": tmp_path / "cache"}


@pytest.fixture
def pushed(hub, adapter):
    """The commit of a pushed adapter."""
    url = push_adapter(adapter, REPOSITORY, token=WRITE)
    hub.requests.clear()
    return url.rsplit("/", 1)[1]


def same(one: UnlearningAdapter, other: UnlearningAdapter) -> bool:
    return one.info == other.info and all(
        torch.equal(direction.read, other.directions[site].read)
        and torch.equal(direction.write, other.directions[site].write)
        and torch.equal(one.lora_B[site], other.lora_B[site])
        for site, direction in one.directions.items()
    )


def refused(error: type[Exception], text: str, call, *arguments: object, **options: object) -> None:
    with pytest.raises(error, match=text) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


# Push.


def test_a_push_is_one_commit_of_the_file_and_its_card(hub, adapter, options):
    url = adapter.push_to_hub(REPOSITORY, token=WRITE, commit_message="First", license="apache-2.0")
    repository = hub.repositories[REPOSITORY]
    assert url == f"{hub.endpoint}/{REPOSITORY}/commit/{repository.refs['main']}"
    assert repository.messages == ["initial commit", "First"] and not repository.private
    assert set(repository.files()) == {".gitattributes", FILE_NAME, "README.md"}
    assert same(load_adapter(REPOSITORY, **options), adapter)
    card = ModelCard(repository.files()["README.md"].decode())
    assert (card.data.base_model, card.data.license, card.data.library_name) == ("org/base", "apache-2.0", "diffusers")
    assert "**Not measured.**" in card.text and f'pipe.load_lora_weights("{REPOSITORY}")' in card.text


def test_the_card_and_the_pushed_file_have_the_gains(hub, adapter, options):
    first, *_ = adapter.sites
    directions = {**adapter.directions, first: replace(adapter.directions[first], gain=0.5)}
    push_adapter(replace(adapter, directions=directions), REPOSITORY, token=WRITE)
    assert load_adapter(REPOSITORY, **options).gains == {first: 0.5}
    assert "1 of 2 sites take 0.5 times that" in hub.repositories[REPOSITORY].files()["README.md"].decode()


def test_an_equal_push_makes_no_commit(hub, adapter, pushed):
    assert push_adapter(adapter, REPOSITORY, token=WRITE).endswith(pushed)
    assert len(hub.repositories[REPOSITORY].messages) == 2
    assert not push_adapter(adapter.with_strength(0.5), REPOSITORY, token=WRITE).endswith(pushed)


def test_the_token_goes_to_the_hub_and_to_no_other_origin(hub, adapter, options):
    push_adapter(adapter, REPOSITORY, token=WRITE)
    load_adapter(REPOSITORY, token=WRITE, **options)
    elsewhere = [item for item in hub.requests if item[2] == "localhost"]
    assert {item[0] for item in elsewhere} >= {"PUT", "GET"} and {item[3] for item in elsewhere} == {None}
    assert {item[3] for item in hub.requests if item[2] != "localhost"} == {WRITE}


def test_a_branch_is_made_and_a_pull_request_is_opened(hub, adapter, pushed, options):
    push_adapter(adapter.with_strength(0.5), REPOSITORY, token=WRITE, revision="weak")
    url = push_adapter(adapter.with_strength(2.0), REPOSITORY, token=READ, create_pr=True)
    assert url == f"{hub.endpoint}/{REPOSITORY}/discussions/1"
    assert hub.repositories[REPOSITORY].refs["main"] == pushed
    found = [load_adapter(REPOSITORY, revision=name, **options).strength for name in (None, "weak", "refs/pr/1")]
    assert found == [1.25, 0.5, 2.0]


def test_a_private_repository_needs_the_token(hub, adapter, options):
    push_adapter(adapter, REPOSITORY, token=WRITE, private=True)
    assert hub.repositories[REPOSITORY].private
    assert same(load_adapter(REPOSITORY, token=READ, **options), adapter)
    refused(AdapterNotFoundError, "is private, run `hf auth login` or pass `token`", load_adapter, REPOSITORY)


def test_private_is_not_pushed_to_a_public_repository(hub, adapter, pushed):
    before = dict(hub.repositories[REPOSITORY].refs)
    text = "it is public, and `private` asks for a private one. Change its visibility"
    refused(HubError, text, push_adapter, adapter.with_strength(2.0), REPOSITORY, token=WRITE, private=True)
    assert hub.repositories[REPOSITORY].refs == before


def test_a_card_that_was_edited_is_kept(hub, adapter, pushed):
    card = hub.repositories[REPOSITORY].files()["README.md"].decode()
    edited = card.replace("tags:\n", "datasets:\n- org/mine\ntags:\n- mine\n").replace(
        "## Limits", "## Limits, changed"
    )
    edited = edited.replace(
        "<!-- unlearning-adapters: begin stack -->", "My own words.\n\n<!-- unlearning-adapters: begin stack -->"
    )
    hub.repositories[REPOSITORY].commit({"README.md": edited.encode()}, "edit")
    push_adapter(adapter.with_strength(2.0), REPOSITORY, token=WRITE)
    text = hub.repositories[REPOSITORY].files()["README.md"].decode()
    assert "My own words." in text and "- mine\n" in text and "- org/mine" in text
    assert "The default is 2," in text and "Limits, changed" not in text


def test_a_card_that_changes_during_the_push_is_not_lost(hub, adapter, pushed):
    repository = hub.repositories[REPOSITORY]
    hub.before_commit.append(lambda: repository.commit({"README.md": b"mine"}, "edit"))
    text = "somebody pushed in the meantime. Push again; the card is then merged with the newer one"
    refused(HubError, text, push_adapter, adapter.with_strength(2.0), REPOSITORY, token=WRITE)
    assert repository.files()["README.md"] == b"mine"
    push_adapter(adapter.with_strength(2.0), REPOSITORY, token=WRITE)
    assert repository.files()["README.md"].decode().split("---\n")[2].lstrip().startswith("mine\n")


def test_a_broken_card_is_not_overwritten(hub, adapter, pushed):
    hub.repositories[REPOSITORY].commit({"README.md": b"---\na: [\n---\nmine"}, "edit")
    text = "The front matter of the card is not a YAML mapping: .* Correct it, then push again"
    refused(ConfigError, text, push_adapter, adapter.with_strength(2.0), REPOSITORY, token=WRITE)
    assert hub.repositories[REPOSITORY].files()["README.md"] == b"---\na: [\n---\nmine"


def test_a_card_that_cannot_be_read_is_not_overwritten(hub, adapter, pushed):
    hub.failures += [("HEAD", "README.md", 404)]  # a broken proxy: not the Hub's "EntryNotFound"
    refused(HubError, "Did not push to 'org/no-red'", push_adapter, adapter.with_strength(2.0), REPOSITORY, token=WRITE)
    assert hub.repositories[REPOSITORY].refs["main"] == pushed


def test_refusals_are_one_line(hub, adapter, tmp_path):
    refused(HubError, "token is missing or not valid. Run `hf auth login`", push_adapter, adapter, REPOSITORY)
    refused(HubError, "token is missing or not valid", push_adapter, adapter, REPOSITORY, token="hf_wrong")
    refused(HubError, "may not write there.*`create_pr`", push_adapter, adapter, REPOSITORY, token=READ)
    refused(ConfigError, "a Hub repository as 'org/name', but got 'no-red'", push_adapter, adapter, "no-red")
    refused(ConfigError, "an .mp4 file, but got", push_adapter, adapter, REPOSITORY, clips=[("a", tmp_path / "x.mp4")])
    refused(AdapterNotFoundError, "there is no such file", push_adapter, tmp_path / "none", REPOSITORY)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"license": 3}, "`license` to be a text of one line"),
        ({"commit_message": "two\nlines"}, "`commit_message` to be a text of one line"),
        ({"revision": ""}, "`revision` to be a text of one line"),
        ({"private": "yes"}, "`private` to be True or False"),
        ({"create_pr": 1}, "`create_pr` to be True or False"),
        ({"clips": "car.mp4"}, "`clips` to be prompts with .mp4 files"),
        ({"clips": [("a red car",)]}, "`clips` to be prompts with .mp4 files"),
        ({"clips": [(3, "car.mp4")]}, "`clips` to be prompts with .mp4 files"),
        ({"clips": 3}, "`clips` to be prompts with .mp4 files"),
        ({"result": 3}, "The measured result cannot go on a card"),
    ],
)
def test_arguments_of_another_type_are_named_before_any_request(hub, adapter, options, text):
    with pytest.raises(ConfigError, match=text):
        push_adapter(adapter, "org/red", token=WRITE, **options)
    assert not hub.requests and not hub.repositories


def test_a_file_is_checked_before_it_is_pushed(hub, adapter, tmp_path):
    path = save_adapter(adapter, tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    refused(AdapterFileError, "Refused", push_adapter, path, REPOSITORY, token=WRITE)
    assert not hub.requests


def test_a_server_that_is_busy_is_asked_again(hub, adapter, options):
    hub.failures += [("POST", "preupload", 503)]
    push_adapter(adapter, REPOSITORY, token=WRITE)
    hub.failures += [("HEAD", "resolve", 503)]
    assert same(load_adapter(REPOSITORY, **options), adapter) and not hub.failures


def test_a_folder_of_this_machine_is_not_published(hub, options, tmp_path):
    push_adapter(planted_adapter(small_weights(), base_model=str(tmp_path)), REPOSITORY, token=WRITE)
    assert all(str(tmp_path).encode() not in data for data in hub.repositories[REPOSITORY].files().values())
    assert load_adapter(REPOSITORY, **options).info.base_model == ""


@pytest.mark.parametrize("base", ["shapeworld", "org/base", "my-wan", ""])
def test_other_names_of_a_base_are_published(hub, options, base):
    push_adapter(planted_adapter(small_weights(), base_model=base), REPOSITORY, token=WRITE)
    assert load_adapter(REPOSITORY, **options).info.base_model == base
    card = hub.repositories[REPOSITORY].files()["README.md"].decode()
    assert ("pipe = load_shapeworld()" in card) == (base == "shapeworld")


def test_clips_are_shown_and_pulled(hub, adapter, options, tmp_path):
    clip = tmp_path / "after.mp4"
    clip.write_bytes(b"\0\0\0\x18ftypmp42")
    adapter.push_to_hub(REPOSITORY, token=WRITE, clips=[("a red circle", clip)])
    card = ModelCard(hub.repositories[REPOSITORY].files()["README.md"].decode())
    assert card.data.widget == [{"text": "a red circle", "output": {"url": "clips/after.mp4"}}]
    pull_adapter(REPOSITORY, tmp_path / "pulled", **options)
    assert (tmp_path / "pulled" / "clips" / "after.mp4").read_bytes() == clip.read_bytes()


def test_the_command_shows_clips_before_and_after(hub, adapter, options, tmp_path, capsys):
    save_adapter(adapter, tmp_path / "no-red")
    for name in ("before", "after"):
        (tmp_path / f"{name}.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + name.encode())
    arguments = ["push", str(tmp_path / "no-red"), REPOSITORY, "--token", WRITE]
    for name in ("before", "after"):
        arguments += ["--clip", f"a red circle ({name})", str(tmp_path / f"{name}.mp4")]
    assert cli.main(arguments) == 0
    repository = hub.repositories[REPOSITORY]
    assert len(repository.messages) == 2, "one commit, after the one that makes the repository"
    card = ModelCard(repository.files()["README.md"].decode())
    assert card.data.widget == [
        {"text": f"a red circle ({name})", "output": {"url": f"clips/{name}.mp4"}} for name in ("before", "after")
    ]
    assert "<Gallery />" in card.text and repository.files()["clips/after.mp4"].endswith(b"after")
    assert cli.main(["push", str(tmp_path / "no-red"), REPOSITORY, "--token", WRITE, "--clip", "x", "none.mp4"]) == 1
    assert "Expected a clip to be an .mp4 file, but got 'none.mp4'" in capsys.readouterr().err
    assert len(repository.messages) == 2


def test_the_command_writes_to_a_branch_and_opens_a_pull_request(hub, adapter, pushed, options, tmp_path, capsys):
    file = str(save_adapter(adapter.with_strength(0.5), tmp_path))
    arguments = ["push", file, REPOSITORY, "--revision", "weak", "--commit-message", "Weaker", "--license", "mit"]
    assert cli.main([*arguments, "--token", WRITE]) == 0
    assert hub.repositories[REPOSITORY].messages[-1] == "Weaker"
    assert ModelCard(hub.repositories[REPOSITORY].files("weak")["README.md"].decode()).data.license == "mit"
    capsys.readouterr()
    file = str(save_adapter(adapter.with_strength(2.0), tmp_path))
    assert cli.main(["push", file, REPOSITORY, "--create-pr", "--token", READ]) == 0
    assert capsys.readouterr().out == f"{hub.endpoint}/{REPOSITORY}/discussions/1\n"
    assert hub.repositories[REPOSITORY].refs["main"] == pushed
    found = [load_adapter(REPOSITORY, revision=name, **options).strength for name in (None, "weak", "refs/pr/1")]
    assert found == [1.25, 0.5, 2.0]
    assert cli.main(["pull", REPOSITORY, "-o", str(tmp_path / "to"), "--revision", "weak"]) == 0
    assert load_adapter(tmp_path / "to").strength == 0.5


RESULT = {
    "n": 40,
    **{
        name: {
            **{rate: hits / 40 for rate in RATES},
            "intervals": {rate: [0.125, 0.875] for rate in RATES},
            "counts": {rate: [hits, 40] for rate in RATES},
        }
        for name, hits in {"base": 39, "attached": 3, "random_direction": 38}.items()
    },
}


def results_of(repository) -> list[EvalResultEntry]:
    """The results that the Hub reads, by its own client's parser."""
    return parse_eval_result_entries(yaml.safe_load(repository.files()[RESULTS]))


def test_what_was_measured_goes_to_the_card_and_to_the_folder_that_the_hub_reads(hub, adapter, tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    file = str(save_adapter(adapter, tmp_path))
    assert cli.main(["push", file, REPOSITORY, "--token", WRITE, "--result", str(tmp_path / "result.json")]) == 0
    repository = hub.repositories[REPOSITORY]
    assert repository.messages == ["initial commit", "Upload the unlearning adapter red"], "one commit for all"
    entries = {entry.task_id: entry for entry in results_of(repository)}
    assert list(entries) == list(RATES) and {entry.dataset_id for entry in entries.values()} == {BENCHMARK}
    on_card = ModelCard(repository.files()["README.md"].decode()).data.eval_results
    assert {item.metric_type: item.metric_value for item in on_card} == {
        rate: entry.value for rate, entry in entries.items()
    }
    assert entries["concept_rate"].value == 0.075
    assert entries["concept_rate"].notes == (
        "concept shown (lower is better); 0.07 [0.12, 0.88] (3/40); base 0.97 [0.12, 0.88] (39/40); "
        "concept red, method ridge, strength 1.25"
    )


def test_results_of_others_stay_and_ours_go_with_their_adapter(hub, adapter):
    theirs = b"- dataset: {id: org/theirs, task_id: default}\n  value: 1\n"
    push_adapter(adapter, REPOSITORY, token=WRITE, result=RESULT)
    repository = hub.repositories[REPOSITORY]
    first = repository.files()[RESULTS]
    repository.commit({".eval_results/theirs.yaml": theirs}, "their own")
    better = {**RESULT, "attached": RESULT["random_direction"]}
    push_adapter(adapter, REPOSITORY, token=WRITE, result=better)
    assert repository.files()[RESULTS] != first and results_of(repository)[0].value == 0.95
    push_adapter(adapter.with_strength(2.0), REPOSITORY, token=WRITE)
    assert RESULTS not in repository.files(), "numbers of another adapter are not left beside this one"
    assert repository.files()[".eval_results/theirs.yaml"] == theirs
    assert ModelCard(repository.files()["README.md"].decode()).data.eval_results is None


def test_a_result_that_cannot_be_read_is_refused_before_any_request(hub, adapter):
    refused(ConfigError, "cannot go on a card", push_adapter, adapter, REPOSITORY, token=WRITE, result={"n": 1})
    assert not hub.requests


# Load and pull.


def test_a_tag_names_its_commit_for_ever(hub, adapter, pushed, options, tmp_path):
    HfApi(token=WRITE).create_tag(REPOSITORY, tag="v1.0")
    newer = push_adapter(adapter.with_strength(2.0), REPOSITORY, token=WRITE).rsplit("/", 1)[1]
    assert UnlearningAdapter.from_pretrained(REPOSITORY, revision="v1.0", **options).strength == 1.25
    assert UnlearningAdapter.from_pretrained(REPOSITORY, **options).strength == 2.0
    assert pull_adapter(REPOSITORY, tmp_path / "old", revision="v1.0", **options).commit == pushed
    assert pull_adapter(REPOSITORY, tmp_path / "new", **options).commit == newer


def test_a_pull_asks_for_the_commit_once_and_for_its_files_by_it(hub, pushed, options, tmp_path):
    pull_adapter(REPOSITORY, tmp_path, **options)
    paths = [path for _, path, _, _ in hub.requests]
    assert [path for path in paths if path.startswith("/api/") and "/tree/" not in path] == [
        f"/api/models/{REPOSITORY}/revision/main"
    ]
    resolved = {path.split("/resolve/")[1].split("/")[0] for path in paths if "/resolve/" in path}
    assert resolved == {pushed}
    assert all(f"/tree/{pushed}" in path for path in paths if "/tree/" in path)


def test_nothing_of_pickle_is_asked_for_or_pushed(hub, adapter, options, tmp_path):
    repository = hub.create("org/pickled", **{"pytorch_lora_weights.bin": b"PK", "adapter_model.bin": b"PK"})
    refused(AdapterNotFoundError, f"it has no file '{FILE_NAME}' there", load_adapter, "org/pickled", **options)
    refused(AdapterNotFoundError, "has no", pull_adapter, "org/pickled", tmp_path / "to", **options)
    assert not any(path.endswith(".bin") for _, path, _, _ in hub.requests) and not (tmp_path / "to").exists()
    for name in ("adapter.bin", "adapter.pt", "adapter.pkl"):
        path = tmp_path / name
        path.write_bytes(b"PK")
        refused(AdapterFileError, "files are pickles, which can run code", push_adapter, path, REPOSITORY, token=WRITE)
    push_adapter(adapter, REPOSITORY, token=WRITE)
    assert set(hub.repositories[REPOSITORY].files()) == {".gitattributes", FILE_NAME, "README.md"}
    assert repository.messages == ["initial commit"]


def test_a_pipeline_meets_the_same_refusals_and_stays_as_it_was(hub, pushed, options):
    pipe = tiny_wan_pipeline()
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    hub.create("org/gated", gated=True)
    for text, name, more in (
        ("it does not exist or is private", "org/none", {}),
        ("it has no revision 'v9'", REPOSITORY, {"revision": "v9"}),
        ("access is gated", "org/gated", {}),
        ("it is not in the local cache, and `local_files_only` is set", "org/gated", {"local_files_only": True}),
    ):
        refused(AdapterNotFoundError, text, pipe.load_unlearning_adapter, name, **options, **more)
    assert pipe.get_list_unlearning_adapters() == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.transformer.state_dict().items())


def test_a_revision_is_resolved_once_and_a_cached_commit_needs_no_request(hub, adapter, pushed, options):
    assert same(load_adapter(REPOSITORY, **options), adapter)
    asked = [path for method, path, _, _ in hub.requests if method == "HEAD" and "/resolve/" in path]
    assert asked == [f"/{REPOSITORY}/resolve/main/{FILE_NAME}"]
    hub.requests.clear()
    hub.repositories[REPOSITORY].commit({FILE_NAME: b"changed"}, "newer")
    assert same(load_adapter(REPOSITORY, revision=pushed, **options), adapter)
    assert same(load_adapter(REPOSITORY, local_files_only=True, **options), adapter)
    assert not hub.requests
    refused(AdapterFileError, "Refused", load_adapter, REPOSITORY, **options)


def test_missing_things_are_named(hub, adapter, pushed, options):
    hub.create("org/empty")
    hub.create("org/gated", gated=True)
    for text, name, more in (
        ("'org/none' .*it does not exist or is private", "org/none", {"token": READ}),
        ("'org/none' .*it does not exist or is private", "org/none", {}),
        (
            "it has no revision 'v9'. Choose a branch, tag or commit that http.*/org/no-red lists",
            REPOSITORY,
            {"revision": "v9"},
        ),
        (f"it has no file '{FILE_NAME}' there", "org/empty", {}),
        (f"it has no file '{FILE_NAME}' there", REPOSITORY, {"subfolder": "v2"}),
        ("access is gated. Accept the terms at http.*/org/gated", "org/gated", {}),
        ("access is gated", "org/gated", {"token": READ}),
    ):
        for call in (load_adapter, inspect_adapter):
            refused(AdapterNotFoundError, text, call, name, **options, **more)


def test_pull_writes_one_commit_and_nothing_else(hub, adapter, pushed, options, tmp_path):
    hub.repositories[REPOSITORY].commit({"payload.bin": b"x", "sub/x.py": b"x", "clips/x.sh": b"x"}, "more")
    newer = hub.repositories[REPOSITORY].refs["main"]
    pulled = pull_adapter(REPOSITORY, tmp_path / "to", **options)
    assert pulled.commit == newer and pulled.file == tmp_path / "to" / FILE_NAME
    assert sorted(path.name for path in (tmp_path / "to").rglob("*")) == ["README.md", FILE_NAME]
    assert same(load_adapter(tmp_path / "to"), adapter)
    assert pull_adapter(REPOSITORY, tmp_path / "old", revision=pushed, **options).commit == pushed
    hub.requests.clear()
    assert pull_adapter(REPOSITORY, tmp_path / "again", local_files_only=True, **options).commit == newer
    assert not hub.requests


def test_pull_writes_nothing_that_is_no_adapter(hub, pushed, options, tmp_path):
    hub.repositories[REPOSITORY].commit({FILE_NAME: b"pickled"}, "bad")
    refused(AdapterFileError, "Refused", pull_adapter, REPOSITORY, tmp_path / "to", **options)
    hub.create("org/empty")
    refused(
        AdapterNotFoundError, "'org/empty': commit .* has no", pull_adapter, "org/empty", tmp_path / "to", **options
    )
    refused(AdapterNotFoundError, "does not exist or is private", pull_adapter, "org/none", tmp_path / "to", **options)
    refused(
        AdapterNotFoundError, "no revision 'v9'", pull_adapter, REPOSITORY, tmp_path / "to", revision="v9", **options
    )
    hub.create("org/gated", gated=True, **{FILE_NAME: b"x"})
    refused(AdapterNotFoundError, "access is gated", pull_adapter, "org/gated", tmp_path / "to", **options)
    refused(ConfigError, "as 'org/name', but got '../x'", pull_adapter, "../x", tmp_path / "to")
    assert not (tmp_path / "to").exists()


ASK = """
import sys
from unlearning_adapters.adapter.file import inspect_adapter
try: print(inspect_adapter('org/no-red', cache_dir=sys.argv[1])['info']['concept'])
except FileNotFoundError as error: print(error)
"""


def test_offline_makes_no_request(hub, pushed, options):
    cache, offline = options["cache_dir"], {"HF_HUB_OFFLINE": "1"}
    assert "not in the local cache, and HF_HUB_OFFLINE is set. Load it once" in python("-c", ASK, cache, **offline)
    assert not hub.requests
    assert python("-c", ASK, cache) == "red" and hub.requests
    hub.requests.clear()
    assert python("-c", ASK, cache, **offline) == "red" and not hub.requests


def test_without_a_network_the_cache_serves_or_one_line_says_why(hub, pushed, tmp_path):
    inspect_adapter(REPOSITORY, cache_dir=tmp_path / "full")
    impatient = f"import time\ntime.sleep = lambda seconds: None\n{ASK}"  # the client waits 20 s between its retries
    with ThreadPoolExecutor() as pool:
        ask = partial(python, "-c", impatient, HF_ENDPOINT="http://127.0.0.1:9")
        empty, full = pool.map(ask, [tmp_path / "empty", tmp_path / "full"])
    assert "http://127.0.0.1:9 did not give it" in empty and "Check the network" in empty and "\n" not in empty
    assert full == "red"


def test_a_push_without_a_network_is_one_line(hub, adapter, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    text = "Did not push to 'org/no-red': ConnectError: .*Check the name and the connection to http://127.0.0.1:9"
    refused(HubError, text, push_adapter, adapter, REPOSITORY, token=WRITE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(HubError, "HF_HUB_OFFLINE is set. Unset it", push_adapter, adapter, REPOSITORY, token=WRITE)


# Pipelines and the command line.


def test_a_pipeline_pushes_what_acts_on_it_and_loads_it_by_name(hub, options):
    pipe = tiny_wan_pipeline()
    concept = Concept("red", (Pair("a red circle moves left", "a green circle moves left"),), ("a dog walks",))
    pipe.load_unlearning_adapter(build_adapter(pipe, concept, BuildConfig(strength=1.0), progress=False))
    pipe.set_unlearning_adapters("red", 0.75)
    pipe.push_unlearning_adapter(REPOSITORY, token=WRITE)
    other = tiny_wan_pipeline()
    assert other.load_unlearning_adapter(REPOSITORY, **options) == "red"
    loaded = load_adapter(REPOSITORY, **options)
    assert loaded.strength == 0.75 and loaded.info.base_model == ""


def test_the_commands_push_and_pull(hub, adapter, tmp_path, capsys):
    save_adapter(adapter, tmp_path / "no-red")
    arguments = ["push", str(tmp_path / "no-red"), REPOSITORY, "--token", WRITE, "--private", "--json"]
    assert cli.main(arguments) == 0
    commit = hub.repositories[REPOSITORY].refs["main"]
    url = f"{hub.endpoint}/{REPOSITORY}/commit/{commit}"
    assert json.loads(capsys.readouterr().out) == {"repository": REPOSITORY, "url": url}
    assert hub.repositories[REPOSITORY].private
    assert cli.main(["pull", REPOSITORY, "-o", str(tmp_path / "to"), "--token", READ]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'to' / FILE_NAME}: {REPOSITORY} at {commit}\n"
    assert same(load_adapter(tmp_path / "to"), adapter)
    assert cli.main(["pull", "org/none", "-o", str(tmp_path / "to")]) == 1
    assert capsys.readouterr().err.startswith(
        "error: No unlearning adapter from the Hub repository 'org/none': it does"
    )
    assert cli.main(["push", str(tmp_path / "no-red"), REPOSITORY, "--result", str(tmp_path / "none")]) == 1
    assert "Cannot read the measured result" in capsys.readouterr().err


# The main promise: built, pushed, and pulled by another process at one commit, the edit is the same; also for diffusers
# alone, in a process that never imports this package.

PROMPT = "a red circle moves left on a black background"
CALL = {**GENERATION, "num_inference_steps": 4}

OURS = """
import json, sys, torch
from unlearning_adapters import load_shapeworld
commit, call, cache, prompt, result, _ = sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:]
pipe = load_shapeworld()
pipe.load_unlearning_adapter("org/no-red", revision=commit, cache_dir=cache)
torch.save(pipe(prompt, generator=torch.Generator().manual_seed(7), output_type="latent", **call).frames, result)
"""
STOCK = """
import json, sys, torch
from diffusers import DiffusionPipeline
commit, call, cache, prompt, result, base = sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:]
pipe = DiffusionPipeline.from_pretrained(base)
pipe.load_lora_weights("org/no-red", revision=commit, cache_dir=cache)
torch.save(pipe(prompt, generator=torch.Generator().manual_seed(7), output_type="latent", **call).frames, result)
assert not any(name.startswith("unlearning") for name in sys.modules), "this process must know diffusers alone"
"""


def test_fresh_processes_generate_the_same_latents(hub, tmp_path):
    from unlearning_adapters import load_concept, load_shapeworld

    pipe = load_shapeworld()
    pipe.save_pretrained(tmp_path / "base")

    def latents() -> torch.Tensor:
        return pipe(PROMPT, generator=torch.Generator().manual_seed(7), output_type="latent", **CALL).frames

    base = latents()
    adapter = build_adapter(pipe, load_concept("red"), BuildConfig(pairs=5), progress=False)
    pipe.load_unlearning_adapter(adapter)
    expected = latents()
    commit = adapter.push_to_hub(REPOSITORY, token=WRITE).rsplit("/", 1)[1]
    later = adapter.with_strength(0.0).push_to_hub(REPOSITORY, token=WRITE).rsplit("/", 1)[1]
    assert later == hub.repositories[REPOSITORY].refs["main"] != commit, "the branch has moved on"
    for name, program in {"ours": OURS, "stock": STOCK}.items():
        given = (commit, json.dumps(CALL), tmp_path / f"cache of {name}", PROMPT, tmp_path / name, tmp_path / "base")
        in_copy("-c", program, *given)
    found = {name: torch.load(tmp_path / name, weights_only=True) for name in ("ours", "stock")}
    assert (expected - base).abs().max() > 0.1, "the edit does nothing"
    assert torch.equal(found["ours"], expected)
    assert torch.allclose(found["stock"], expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
def test_the_example_pushes_and_pulls(hub, tmp_path):
    example = Path(__file__).resolve().parents[2] / "examples" / "05_push_and_pull.py"
    out = in_copy(example, REPOSITORY, tmp_path, HF_TOKEN=WRITE)
    commit = hub.repositories[REPOSITORY].refs["main"]
    assert out.splitlines() == [
        f"pushed: {hub.endpoint}/{REPOSITORY}/commit/{commit}",
        f"pulled: {tmp_path / 'pulled' / FILE_NAME} at {commit}",
        "active: ['shapeworld-red']",
        "the directions are the same, bit for bit: True",
    ]
