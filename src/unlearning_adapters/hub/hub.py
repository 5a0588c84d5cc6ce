"""Adapters on the Hub: push one as one commit of a file and its card, pull one at one commit; never a pickle."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from typing import Any

from typing_extensions import Unpack

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.file import FILE_NAME, inspect_adapter
from unlearning_adapters.adapter.missing import is_path
from unlearning_adapters.adapter.source import REPOSITORY, HubOptions, check_options, explain_hub_error
from unlearning_adapters.concepts.concept import Concept, list_concepts, load_concept
from unlearning_adapters.errors import AdapterNotFoundError, ConfigError, HubError, UnlearningError

from .card import render_card
from .card_merge import merge_card
from .measured import Measured, result_file

CARD = "README.md"
CLIPS = "clips"
RESULTS = ".eval_results/unlearning-adapters.yaml"  # other files of that folder belong to others


@dataclass(frozen=True)
class Pulled:
    """What `pull_adapter` wrote: the adapter's file, and the commit that it is from."""

    file: Path
    commit: str


def push_adapter(
    adapter: UnlearningAdapter | str | Path,
    repository: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    result: Mapping[str, Any] | None = None,
    license: str | None = None,
    clips: Sequence[tuple[str, str | Path]] = (),
) -> str:
    """Push an adapter and its card to the Hub, in one commit on top of the one whose card was read.

    A repository or branch that does not exist is made. A card that somebody edited is kept: only the sections of this
    package are renewed. A base that is a folder of this machine is not named. What was measured goes to the card and to
    the file `RESULTS`, which a push without a result deletes, since its numbers are those of another adapter.

    Args:
        adapter: The adapter, or its file or folder, which is checked first.
        repository: Repository on the Hub, "org/name".
        commit_message: Title of the commit.
        private: Whether a new repository is private; None is the default of the account.
        token: Access token with write permission; None uses the one of `hf auth login`.
        create_pr: Whether to open a pull request instead of writing to the branch.
        revision: Branch to write to; None is "main".
        result: What was measured, see `Measured.from_result`; without it the card says "not measured".
        license: Licence of the adapter, such as "apache-2.0"; that of the base may apply.
        clips: Prompts with .mp4 files that the card shows, before and after.

    Returns:
        URL of the commit, or of the pull request.

    Raises:
        ConfigError: If an argument makes no sense, or the card on the Hub has broken front matter.
        AdapterNotFoundError: If there is no adapter at the path.
        AdapterFileError: If it is not a valid adapter.
        HubError: If the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _check_repository(repository)
    _check_texts(commit_message=commit_message, revision=revision, license=license)
    _check_flags(private=private, create_pr=create_pr)
    adapter = _published(adapter if isinstance(adapter, UnlearningAdapter) else load_adapter(adapter))
    examples = _check_clips(clips)
    card = render_card(
        adapter.info,
        repository,
        sites=len(adapter.sites),
        gains=tuple(adapter.gains.values()),
        shrinkage=adapter.shrinkage,
        result=result,
        concept=_shipped_concept(adapter),
        license=license,
        widget=[(text, f"{CLIPS}/{file.name}") for text, file in examples],
    )
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder, _plain_errors(repository):
        file = save_adapter(adapter, folder)
        parent, files = _prepare(api, repository, private, revision)
        existing = _read_card(api, repository, parent)
        text = card if existing is None else merge_card(existing, card)
        changes: list[Any] = [
            CommitOperationAdd(FILE_NAME, file),
            CommitOperationAdd(CARD, text.encode()),
            *(CommitOperationAdd(f"{CLIPS}/{clip.name}", clip) for _, clip in examples),
        ]
        if result is not None:
            measurement = Measured.from_result(result, adapter.info.method)
            changes.append(CommitOperationAdd(RESULTS, result_file(adapter.info, measurement).encode()))
        elif RESULTS in files:
            changes.append(CommitOperationDelete(RESULTS))
        info = api.create_commit(
            repository,
            changes,
            commit_message=commit_message or f"Upload the unlearning adapter {adapter.info.concept}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        )
    return str(info.pr_url or info.commit_url)


def pull_adapter(
    repository: str,
    folder: str | Path,
    **options: Unpack[HubOptions],
) -> Pulled:
    """Download an adapter, its card and its clips from one commit of a repository into a folder.

    The revision is resolved to a commit once. The adapter's header is checked before anything is written to the folder,
    and only these files are written.

    Args:
        repository: Repository on the Hub, "org/name".
        folder: Folder to write to; missing ones are made.
        **options: `revision`, `token`, `cache_dir` and `local_files_only`, see `HubOptions`.

    Returns:
        Path of the adapter's file, and the commit.

    Raises:
        AdapterNotFoundError: If the Hub cannot give it; the text says why.
        AdapterFileError: If the file is not a valid adapter.
    """
    from huggingface_hub import snapshot_download

    check_options(options, HubOptions)
    _check_repository(repository)
    patterns = [FILE_NAME, CARD, f"{CLIPS}/*.mp4"]
    try:
        snapshot = Path(snapshot_download(repository, allow_patterns=patterns, **options))
    except Exception as error:  # the client raises errors of a dozen kinds, and all of them mean: not found
        reason = explain_hub_error(error, repository, options)
        raise AdapterNotFoundError(f"No unlearning adapter from the Hub repository {repository!r}: {reason}") from error
    if not (snapshot / FILE_NAME).is_file():
        raise AdapterNotFoundError(
            f"No unlearning adapter from the Hub repository {repository!r}: commit {snapshot.name} has no "
            f"{FILE_NAME!r}. Check the name and `revision`."
        )
    inspect_adapter(snapshot)
    target = Path(folder)
    for source in sorted(path for path in snapshot.rglob("*") if path.is_file()):
        name = source.relative_to(snapshot)
        if name.as_posix() in (FILE_NAME, CARD) or (name.parent.as_posix() == CLIPS and name.suffix == ".mp4"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            copyfile(source, target / name)
    return Pulled(target / FILE_NAME, snapshot.name)


def _published(adapter: UnlearningAdapter) -> UnlearningAdapter:
    """Return the adapter without the path of a folder of this machine as the name of its base."""
    base = adapter.info.base_model
    is_path = Path(base).name != base and (Path(base).exists() or not REPOSITORY.fullmatch(base))
    return replace(adapter, info=replace(adapter.info, base_model="")) if is_path else adapter


def _shipped_concept(adapter: UnlearningAdapter) -> Concept | None:
    """Return the shipped concept that an adapter was built from, if its pairs are the same."""
    if adapter.info.concept not in list_concepts():
        return None
    concept = load_concept(adapter.info.concept)
    return concept if concept.pairs_hash == adapter.info.pairs_hash else None


def _check_texts(**texts: object) -> None:
    for name, value in texts.items():
        if value is not None and not (isinstance(value, str) and value.strip() and value.isprintable()):
            raise ConfigError(f"Expected `{name}` to be a text of one line, or None, but got {value!r:.80}.")


def _check_flags(**flags: object) -> None:
    for name, value in flags.items():
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"Expected `{name}` to be True or False, but got {value!r:.80}.")


def _check_clips(clips: Sequence[tuple[str, str | Path]]) -> list[tuple[str, Path]]:
    pairs = isinstance(clips, (list, tuple)) and all(
        isinstance(each, (list, tuple)) and len(each) == 2 for each in clips
    )
    if not pairs or not all(isinstance(text, str) and is_path(file) for text, file in clips):
        raise ConfigError(
            f"Expected `clips` to be prompts with .mp4 files, such as [('a car', 'car.mp4')], but got {clips!r:.80}."
        )
    examples = [(text, Path(file)) for text, file in clips]
    for _, file in examples:
        if file.suffix != ".mp4" or not file.is_file():
            raise ConfigError(f"Expected a clip to be an .mp4 file, but got {str(file)!r}. Write it with save_clip.")
    names = [file.name for _, file in examples]
    if len(set(names)) != len(names):
        raise ConfigError(f"Expected clips of different file names, but got {', '.join(names)}. Rename them.")
    return examples


def _prepare(api: Any, repository: str, private: bool | None, branch: str | None) -> tuple[str, set[str]]:
    """Make the repository and the branch if they are missing; return the commit to build on, and its files."""
    api.create_repo(repository, private=private, exist_ok=True)
    if branch is not None:
        api.create_branch(repository, branch=branch, exist_ok=True)
    state = api.model_info(repository, revision=branch)
    if private and not state.private:
        raise HubError(
            f"Did not push to {repository!r}: it is public, and `private` asks for a private one. "
            "Change its visibility on the Hub, or choose another name."
        )
    return str(state.sha), {file.rfilename for file in state.siblings or ()}


def _read_card(api: Any, repository: str, commit: str) -> str | None:
    from huggingface_hub.errors import RemoteEntryNotFoundError  # and not its base, which also means: no network

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = api.hf_hub_download(repository, CARD, revision=commit, local_dir=folder)
        except RemoteEntryNotFoundError:
            return None
        return Path(path).read_text(encoding="utf-8")


def _check_repository(repository: object) -> None:
    if not isinstance(repository, str) or not REPOSITORY.fullmatch(repository):
        raise ConfigError(f"Expected a Hub repository as 'org/name', but got {repository!r:.80}.")


@contextmanager
def _plain_errors(repository: str) -> Iterator[None]:
    """Turn the client's errors into one line that says why nothing was pushed, and what to do."""
    try:
        yield
    except UnlearningError:
        raise
    except Exception as error:  # the client raises errors of a dozen kinds
        raise HubError(f"Did not push to {repository!r}: {_why_not_pushed(error)}") from error


def _why_not_pushed(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set. Unset it, since a push needs a network."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the access token is missing or not valid. Run `hf auth login`, or pass `token`."
    if status == 403:
        return "the access token may not write there. Use one that may, or open a pull request with `create_pr`."
    if status == 412:
        return "somebody pushed in the meantime. Push again; the card is then merged with the newer one."
    text = " ".join(str(error.__cause__ or error).split())
    return f"{type(error).__name__}: {text[:200]}. Check the name and the connection to {constants.ENDPOINT}."
