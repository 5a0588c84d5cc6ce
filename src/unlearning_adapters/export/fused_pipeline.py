"""Write a pipeline with the edit in its weights, file by file, with one layer in memory at a time and no model loaded.

Weights are edited as `fuse_unlearning_adapters` does, so that they are the same bits. All other bytes are copied.
"""

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.adapter.file import encode
from unlearning_adapters.adapter.missing import is_path
from unlearning_adapters.adapter.source import PICKLES, REPOSITORY, HubOptions, check_options, explain_hub_error
from unlearning_adapters.errors import (
    AdapterFileError,
    AdapterNotFoundError,
    BaseMismatchError,
    ConfigError,
    FuseError,
    HubError,
    SiteError,
)
from unlearning_adapters.pipelines.sites import denoisers
from unlearning_adapters.runtime.editor import editor_of
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit, stack_directions
from unlearning_adapters.runtime.strengths import Strengths

from .fused_shard import ShardEdit, copy_file, fuse_shard, verify_shard
from .joint_lora import chosen_strengths
from .names.header import read_any_header

PROGRESS = ".unlearning_export.json"  # is there as long as the folder is not complete
RECORD = "unlearning_export.json"


@dataclass(frozen=True)
class FusedPipeline:
    """What `export_fused` wrote.

    Args:
        folder: The folder, one of diffusers' layout.
        concepts: Concept of each adapter in its weights.
        strengths: Strength of each adapter; by component, where that differs.
        layers: Number of weights that were edited; a weight that lies in several files counts in each.
        files: Number of files.
        deviation: Largest distance of an edited weight from the exact edit, as a share of the largest number in it.
        commit: Address of the commit, if it was pushed.
    """

    folder: Path
    concepts: tuple[str, ...]
    strengths: tuple[float | Mapping[str, float], ...]
    layers: int
    files: int
    deviation: float
    commit: str = ""


def export_fused(
    adapters: UnlearningAdapter | str | Path | Sequence[UnlearningAdapter | str | Path],
    destination: str | Path,
    *,
    base: Any,
    strengths: Strengths = None,
    push_to: str | None = None,
    private: bool | None = None,
    **options: Unpack[HubOptions],
) -> FusedPipeline:
    """Write a pipeline with the joint edit of adapters in its weights, `W' = W - (W V) G^-1 L A`.

    The files of the base are read and written one weight at a time, so that memory does not grow with the model. Each
    written file is read again and compared. The same call continues after an interruption.

    Args:
        adapters: An adapter, its file, folder or Hub repository, or several of these.
        destination: Folder to write: missing, empty, or left by an interrupted call with the same arguments.
        base: A folder in diffusers' layout, a Hub repository, or a pipeline, which is saved to a temporary folder.
        strengths: One for all, or one for each adapter; None is an adapter's own. Each of them may be a dictionary with
            a strength for each component.
        push_to: Repository on the Hub, "org/name", to which the folder is uploaded once it is complete.
        private: Whether a new repository is private.
        options: How a base on the Hub is read, see `HubOptions`; its token is the one of the upload too.

    Returns:
        What was written, and where.

    Raises:
        AdapterFileError: If the destination holds something else, or a weight of the base is no safetensors file.
        AdapterNotFoundError: If there is no such adapter or base.
        BaseMismatchError: If an adapter was built on another architecture.
        ConfigError: If a setting is out of range, or the base is a pipeline of which a component was deleted.
        FuseError: If a weight is quantised, or a written file is not what was computed.
        HubError: If the Hub refuses what is pushed.
        SiteError: If the base lacks a weight.

    Example:
        >>> export_fused(["no-red", "no-left"], "edited", base="org/wan-diffusers").folder
        PosixPath('edited')
    """
    check_options(options, HubOptions)
    sources: list[Any] = list(adapters) if isinstance(adapters, (list, tuple)) else [adapters]
    if not is_path(destination) or (isinstance(base, (str, Path)) and not is_path(base)):
        name, value = ("base", base) if is_path(destination) else ("destination", destination)
        raise ConfigError(f"Expected `{name}` to be a path, but got {value!r:.80}.")
    if not sources:
        raise ConfigError("Expected at least one adapter to fuse, but got none.")
    if push_to is not None and not (isinstance(push_to, str) and REPOSITORY.fullmatch(push_to)):
        raise ConfigError(f"Expected `push_to` as 'org/name', but got {push_to!r:.80}.")
    loaded = [item if isinstance(item, UnlearningAdapter) else load_adapter(item) for item in sources]
    chosen = chosen_strengths(loaded, strengths)
    amounts = tuple(each if len(set(each.values())) > 1 else next(iter(each.values())) for each in chosen)
    with _folder_of(base, options) as (source, name):
        edits = _joint_edits(loaded, chosen)
        shards = _shards(source, edits)
        _check_classes(source, loaded)
        plan = _plan(source, loaded, amounts)
        record = {
            "base": name,
            "adapters": [
                {"concept": each.info.concept, "method": each.info.method, "strength": amount}
                for each, amount in zip(loaded, amounts, strict=True)
            ],
            "sites": sorted(edits),
        }
        result = _write(source, Path(destination), shards, plan, record)
    commit = "" if push_to is None else _push(Path(destination), push_to, options.get("token"), private)
    return FusedPipeline(
        Path(destination), tuple(adapter.info.concept for adapter in loaded), amounts,
        sum(len(edit) for edit in shards.values()), result["files"], result["deviation"], commit,
    )  # fmt: skip


def _joint_edits(
    adapters: Sequence[UnlearningAdapter], strengths: Sequence[Mapping[str, float]]
) -> dict[str, StackedEdit]:
    """Return the joint edit of each site."""
    edits = {}
    for site in dict.fromkeys(site for adapter in adapters for site in adapter.sites):
        here = [
            (adapter.directions[site], by_component[site.partition(".")[0]])
            for adapter, by_component in zip(adapters, strengths, strict=True)
            if site in adapter.directions
        ]
        edit = stack_directions([direction for direction, _ in here], [strength for _, strength in here])
        if edit.rank:
            edits[site] = edit
    return edits


@contextmanager
def _folder_of(base: Any, options: HubOptions) -> Iterator[tuple[Path, str]]:
    """Yield the folder of a base, and its name."""
    if not isinstance(base, (str, Path)):
        if not hasattr(base, "save_pretrained"):
            raise ConfigError(
                f"Expected a folder, a repository or a pipeline as `base`, but got a {type(base).__name__}."
            )
        _check_whole(base)
        if any(editor_of(network).records for network in denoisers(base).values()):
            raise FuseError("The base has adapters in its weights already. Call unfuse_unlearning_adapters() first.")
        with tempfile.TemporaryDirectory() as folder:
            try:
                base.save_pretrained(folder)
            except Exception as error:  # of diffusers and safetensors: anything
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise ConfigError(
                    f"The base is read from files, and {type(base).__name__} cannot be saved ({reason[:200]}). Give "
                    "its folder, or load it again, whole and without quantisation or offloading."
                ) from error
            yield Path(folder), str(getattr(base.config, "_name_or_path", "") or type(base).__name__)
        return
    if Path(base).is_dir():
        yield Path(base), Path(base).name
        return
    if not REPOSITORY.fullmatch(str(base)):
        raise AdapterNotFoundError(f"No base at {str(base)!r}. Give a folder in diffusers' layout, or 'org/name'.")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(str(base), ignore_patterns=[f"*{suffix}" for suffix in PICKLES], **options)
    except Exception as error:  # the client raises errors of a dozen kinds, and all of them mean: not found
        reason = explain_hub_error(error, str(base), options)
        raise AdapterNotFoundError(f"No base from the Hub repository {str(base)!r}: {reason}") from error
    yield Path(folder), f"{base}@{Path(folder).name}"


def _check_whole(base: Any) -> None:
    """Raise `ConfigError` if parts of a pipeline were deleted: diffusers saves it without them, and says nothing."""
    # What was deleted is the entry of the pipeline's configuration, a library and a class.
    parts = getattr(base, "components", {})
    if deleted := [name for name, part in parts.items() if isinstance(part, (list, tuple)) and len(part) == 2]:
        raise ConfigError(
            f"The base cannot be written whole: {', '.join(deleted)} {'is' if len(deleted) == 1 else 'are'} deleted. "
            "Load the pipeline with all of its parts, or set what the folder shall not hold to None."
        )


def _shards(source: Path, edits: Mapping[str, StackedEdit]) -> dict[Path, ShardEdit]:
    """Return for each weight file of the base which of its tensors are edited; all sites must be in some file."""
    if not (source / "model_index.json").is_file():
        raise AdapterNotFoundError(f"{str(source)!r} has no model_index.json. Give a folder in diffusers' layout.")
    shards: dict[Path, ShardEdit] = {}
    missing = set(edits)
    for component in dict.fromkeys(site.partition(".")[0] for site in edits):
        names = {f"{site.partition('.')[2]}.weight": site for site in edits if site.partition(".")[0] == component}
        for file in sorted((source / component).glob("*.safetensors")):
            header = read_any_header(file)
            here = {tensor: names[tensor] for tensor in header.shapes if tensor in names}
            missing -= set(here.values())
            for tensor, site in here.items():
                shape = header.shapes[tensor]
                if len(shape) != 2 or shape[1] != edits[site].in_features:
                    raise BaseMismatchError(
                        f"{site} reads {edits[site].in_features} features, and its weight in {file.name} has the shape "
                        f"{shape}. Give the base that the adapter was built on."
                    )
            if here:
                shards[file.relative_to(source)] = {tensor: edits[site] for tensor, site in here.items()}
    if missing:
        folders = sorted(path.name for path in source.iterdir() if path.is_dir())
        raise SiteError(
            f"No safetensors file of {str(source)!r} holds the weight of {min(missing)}, one of {len(missing)} such "
            f"sites of {len(edits)}; it has {', '.join(folders)}. Give the base that the adapter was built on, saved "
            "as safetensors and with no LoRA loaded."
        )
    return shards


def _check_classes(source: Path, adapters: Sequence[UnlearningAdapter]) -> None:
    for adapter in adapters:
        for component, built in adapter.info.denoisers.items():
            config = source / component / "config.json"
            if component not in adapter.components or not config.is_file():
                continue
            name = json.loads(config.read_text(encoding="utf-8")).get("_class_name", "")
            if built and name and built != name:
                raise BaseMismatchError(
                    f"The adapter {adapter.info.concept!r} was built on a {built}, and {component} of the base is a "
                    f"{name}: its directions mean nothing there. Give a base of that architecture."
                )


def _plan(source: Path, adapters: Sequence[UnlearningAdapter], strengths: Sequence[Any]) -> str:
    """Return a digest of everything that the result depends on, so that a call resumes only its own work."""
    digest = hashlib.sha256(repr(strengths).encode())
    for adapter in adapters:
        digest.update(encode(_with_factors(adapter)))
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(source)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _with_factors(adapter: UnlearningAdapter) -> UnlearningAdapter:
    """Return an adapter that can be encoded: the stock factors, which take no part here, are made zeros."""
    zeros = {site: direction.write.new_zeros(1, direction.rank) for site, direction in adapter.directions.items()}
    return replace(adapter, lora_B=zeros)


def _write(
    source: Path, folder: Path, shards: Mapping[Path, ShardEdit], plan: str, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Write all files that are not there yet, and verify the edited ones."""
    state = _begun(folder, plan)
    skipped = []
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source)
        if name.parts[0].startswith(".") or name == Path(RECORD):
            continue
        if path.suffix in PICKLES and name.parts[0] in {shard.parts[0] for shard in shards}:
            skipped.append(str(name))  # it would still hold the weights of before
            continue
        target = folder / name
        if str(name) in state["files"] and target.is_file() and target.stat().st_size == path.stat().st_size:
            continue
        if name in shards:
            digests = fuse_shard(path, target, shards[name])
            state["deviation"] = max(state["deviation"], verify_shard(path, target, shards[name], digests))
        else:
            copy_file(path, target)
        state["files"].append(str(name))
        _save(folder / PROGRESS, state)
    if skipped:
        warnings.warn(
            f"Left out {len(skipped)} pickles of edited components, such as {skipped[0]}: they hold the weights of "
            "before the edit, and are not read.",
            stacklevel=4,
        )
    _save(folder / RECORD, record)
    (folder / PROGRESS).unlink()
    return {"files": len(state["files"]), "deviation": state["deviation"]}


def _begun(folder: Path, plan: str) -> dict[str, Any]:
    """Return what an interrupted call has written, or make the folder."""
    progress = folder / PROGRESS
    if progress.is_file():
        state: dict[str, Any] = json.loads(progress.read_text(encoding="utf-8"))
        if state.get("plan") != plan:
            raise AdapterFileError(
                f"{str(folder)!r} holds part of another export, of other adapters, strengths or base. "
                "Delete it, or choose another folder."
            )
        return state
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise AdapterFileError(f"{str(folder)!r} exists already and was not changed. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    state = {"plan": plan, "files": [], "deviation": 0.0}
    _save(progress, state)
    return state


def _save(path: Path, value: Mapping[str, Any]) -> None:
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)


def _push(folder: Path, repository: str, token: str | bool | None, private: bool | None) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        info = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload a pipeline with unlearned concepts"
        )
    except Exception as error:  # the client raises errors of a dozen kinds
        raise HubError(
            f"Cannot push {str(folder)!r} to {repository!r}: {explain_hub_error(error, repository, {})}"
        ) from error
    return str(info.commit_url)
