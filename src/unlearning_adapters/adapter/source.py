"""Where an adapter file is: a file, a folder, or a repository on the Hub; imports no torch."""

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, TypedDict

from typing_extensions import Unpack

from unlearning_adapters.errors import AdapterFileError, AdapterNotFoundError, ConfigError

from .missing import why_missing

FILE_NAME = "pytorch_lora_weights.safetensors"  # the one name that stock loaders guess right
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")


class HubOptions(TypedDict, total=False):
    """Keyword arguments of every function that reads from the Hub; each may be left out.

    Args:
        revision: Branch, tag or commit of a Hub repository; without it, "main".
        token: Access token for a Hub repository; None uses the one of `hf auth login`, False sends none.
        cache_dir: Folder that keeps what was downloaded, instead of the Hub client's own.
        local_files_only: Whether to use only what is already in that folder, without any request.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


class SourceOptions(HubOptions, total=False):
    """Keyword arguments of every function that loads an adapter: those of `HubOptions`, and one for folders as well.

    Args:
        subfolder: Folder inside the source; a path that stays inside it.
    """

    subfolder: str | None


def check_options(options: Mapping[str, Any], kind: type = SourceOptions) -> None:
    """Raise TypeError for a keyword that functions with `**options` do not take.

    Args:
        options: The keywords that were given.
        kind: `HubOptions` or `SourceOptions`.
    """
    names = kind.__annotations__
    for name in options:
        if name not in names:
            cure = " To read a file of another name, give its path as the source." if name == "weight_name" else ""
            raise TypeError(f"Unexpected keyword argument {name!r}. Known: {', '.join(names)}.{cure}")


def find_adapter_file(
    source: str | Path,
    **options: Unpack[SourceOptions],
) -> Path:
    """Return the path of the adapter file of a source; a local path wins over a Hub repository of the same name.

    Args:
        source: A `.safetensors` file, a folder that holds `FILE_NAME`, or a Hub repository "org/name".
        **options: See `SourceOptions`.

    Raises:
        AdapterNotFoundError: If there is no such file, or the Hub cannot give it.
        AdapterFileError: If the source is a file of another kind.
        ConfigError: If an argument makes no sense.
    """
    if not isinstance(source, (str, Path)) or not str(source).strip():
        raise ConfigError(f"Expected a file, a folder or a Hub repository as the source, but got {source!r:.80}.")
    check_options(options)
    subfolder = options.get("subfolder")
    _check_subfolder(subfolder)
    path = Path(source)
    kind = _kind(path)
    if kind != "folder" and path.suffix.lower() in PICKLES:
        raise AdapterFileError(
            f"Refused {str(source)!r} as an unlearning adapter: {path.suffix} files are pickles, which can run code "
            "when they are opened. Only .safetensors files are read; ask its author for one."
        )
    if kind == "folder":
        return _in_folder(path, subfolder)
    if kind == "file":
        return _single_file(path, subfolder)
    if isinstance(source, str) and path.suffix != ".safetensors" and REPOSITORY.fullmatch(source):
        return _download(source, options)
    raise AdapterNotFoundError(
        f"No unlearning adapter at {str(source)!r:.300}: {why_missing(path)}. "
        "Check the path, or name a Hub repository as 'org/name'."
    )


def _kind(path: Path) -> str:
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else "missing"
    except (OSError, ValueError) as error:  # no permission, or not a possible path
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise AdapterNotFoundError(f"No unlearning adapter at {str(path)!r:.300}: {reason}. Check the path.") from error


def _check_subfolder(subfolder: str | None) -> None:
    if subfolder is None:
        return
    parts = re.split(r"[/\\]", subfolder) if isinstance(subfolder, str) else [".."]
    if ".." in parts or "\\" in subfolder or subfolder.startswith("/") or PureWindowsPath(subfolder).drive:
        raise ConfigError(
            f"Expected `subfolder` to be a path inside the source, such as 'v2', but got {subfolder!r:.80}."
        )


def _single_file(path: Path, subfolder: str | None) -> Path:
    if path.suffix != ".safetensors":
        raise AdapterFileError(
            f"Refused {str(path)!r} as an unlearning adapter: its suffix is {path.suffix!r}, not '.safetensors'. "
            f"Adapters are saved as {FILE_NAME!r}."
        )
    if subfolder:
        raise ConfigError(f"`subfolder` is {subfolder!r}, but {str(path)!r} is a file. Leave it out.")
    return path


def _in_folder(folder: Path, subfolder: str | None) -> Path:
    place = folder / subfolder if subfolder else folder
    if not place.resolve().is_relative_to(folder.resolve()):  # a link may lead out of the folder
        raise ConfigError(f"`subfolder` {subfolder!r} leads out of {str(folder)!r}. Name a folder inside it.")
    path = place / FILE_NAME
    if path.is_file():
        return path
    names = sorted(item.name for item in place.iterdir()) if place.is_dir() else []
    content = (
        f"it holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty or missing"
    )
    reason = why_missing(path, f"it has no {FILE_NAME!r}, {content}")
    raise AdapterNotFoundError(
        f"No unlearning adapter in the folder {str(place)!r}: {reason}. "
        "Name the .safetensors file itself, or the folder that save_pretrained wrote."
    )


def _download(repository: str, options: SourceOptions) -> Path:
    """Fetch the file from the Hub; one call, so that the revision is resolved to a commit once."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(repository, FILE_NAME, **{**options, "subfolder": options.get("subfolder") or None})
    except Exception as error:  # the client raises errors of a dozen kinds, and all of them mean: not found
        reason = explain_hub_error(error, repository, options)
        raise AdapterNotFoundError(
            f"No unlearning adapter from the Hub repository {repository!r} (nor is it a local folder): {reason}"
        ) from error
    return Path(path)


def explain_hub_error(error: Exception, repository: str, options: HubOptions) -> str:
    """Say in one sentence why the Hub gave no file, and in another what to do.

    Args:
        error: What the Hub's client raised.
        repository: The repository "org/name".
        options: How it was asked.
    """
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return f"access is gated. Accept the terms at {page}, then run `hf auth login` or pass `token`."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "it does not exist or is private. Check the name; if it is private, run `hf auth login` or pass `token`."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {options.get('revision')!r:.80}. Choose a branch, tag or commit that {page} lists."
    if isinstance(error, errors.LocalEntryNotFoundError):
        if options.get("local_files_only") or constants.HF_HUB_OFFLINE:
            why = "`local_files_only` is set" if options.get("local_files_only") else "HF_HUB_OFFLINE is set"
            return f"it is not in the local cache, and {why}. Load it once with a network, or name a local folder."
        cause = " ".join(str(error.__cause__ or error).split())[:120]
        return (
            f"{constants.ENDPOINT} did not give it ({cause}), and no copy is cached. "
            "Check the network, or name a local folder."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"it has no file {FILE_NAME!r} there. Check `revision` and `subfolder` against {page}."
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}. Check the name and the network, or name a local folder."
