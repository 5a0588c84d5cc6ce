"""Work that several builds on one pipeline share: recorded neutral prompts and measurements of the pipeline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, TypeVar

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.methods.rows import NeutralRows
from unlearning_adapters.pipelines.activations import Recording, record
from unlearning_adapters.pipelines.sites import Site

from .neutral_cache import NeutralCache, made_with

T = TypeVar("T")
SHOWN = ("progress", "description")  # settings of a recording that do not change what is read


@dataclass
class SharedWork:
    """What the builds of one context share.

    Args:
        ahead: Neutral prompts that the builds will need.
        cache: Where recorded prompts are kept for later, or None.
    """

    ahead: tuple[str, ...] = ()
    cache: NeutralCache | None = None
    recordings: dict[Any, Recording] = field(default_factory=dict)  # of lists of prompts that are read as a whole
    prompts: dict[Any, dict[str, Recording]] = field(default_factory=dict)  # each a recording of that prompt alone
    remembered: dict[Any, Any] = field(default_factory=dict)
    neutral: dict[int, NeutralRows] = field(default_factory=dict)  # of each group, those of the last build


_SHARED: ContextVar[SharedWork | None] = ContextVar("shared work of builds", default=None)


@contextmanager
def shared_neutral(ahead: Sequence[str] = (), neutral_cache: str | PathLike[str] | None = None) -> Iterator[None]:
    """Let all builds inside, which have to be of one pipeline that is not changed, share what they record.

    Args:
        ahead: Neutral prompts that the builds will need, which are then recorded together.
        neutral_cache: Folder in which recorded prompts are kept for later builds, or None.
    """
    cache = None if neutral_cache is None else NeutralCache(neutral_cache)
    token = _SHARED.set(SharedWork(tuple(dict.fromkeys(ahead)), cache))
    try:
        yield
    finally:
        _SHARED.reset(token)


def remembered(key: tuple[Any, ...], find: Callable[[], T]) -> T:
    """Return a result, from an earlier build if it asked for the same key; parts of the key need not be hashable."""
    work, place = _SHARED.get(), _frozen(key)
    if work is None:
        return find()
    if place not in work.remembered:
        work.remembered[place] = find()
    result: T = work.remembered[place]
    return result


def shared_rows(group: int, rows: NeutralRows) -> NeutralRows:
    """Return what a group reads of neutral prompts, as the last build has it if it is the same: its moment is shared.

    Args:
        group: Index of the group.
        rows: What it reads.
    """
    work = _SHARED.get()
    if work is None:
        return rows
    last = work.neutral.get(group)
    if last is None or not last.same_tensors(rows):
        work.neutral[group] = rows  # alone, since a decomposed moment is as large as the rows
    return work.neutral[group]


def record_neutral(
    pipe: Any, prompts: Sequence[str], sites: Sequence[Site], *, images: Sequence[Any], **settings: Any
) -> Recording:
    """Return what sites read for neutral prompts, from an earlier build as far as it recorded just the same.

    If the sites read only the prompt, single prompts are shared. If they also read noise (hidden sites, and sites whose
    input changes with the step), only whole lists of prompts are shared.

    Args:
        pipe: A diffusers pipeline.
        prompts: The prompts.
        sites: The sites.
        images: Picture of each prompt or None; with pictures nothing is shared.
        settings: As for `record`.

    Raises:
        ConfigError: If there is a cache on disk, and the sites read more than the prompt, or it is not of this build.
    """
    work = _SHARED.get()
    pictures = any(image is not None for image in images)
    by_prompt = not (pictures or settings.get("calls") or any(site.kind != "text" for site in sites))
    if work is not None and work.cache is not None and not by_prompt:
        raise ConfigError(
            "A neutral cache holds what text sites read of a prompt, and sites of this build read a picture or the "
            'noise as well. Leave `neutral_cache` out, or build with sites="text".'
        )
    if work is None or pictures:
        return record(pipe, prompts, sites, images=images, **settings)
    options = {name: value for name, value in settings.items() if name not in SHOWN}
    if by_prompt:
        return _record_by_prompt(work, pipe, prompts, sites, options, settings)
    key = id(pipe), tuple(prompts), tuple(sites), _frozen(options)
    if key not in work.recordings:
        work.recordings[key] = record(pipe, prompts, sites, images=images, **settings)
    return work.recordings[key]


def _record_by_prompt(
    work: SharedWork,
    pipe: Any,
    prompts: Sequence[str],
    sites: Sequence[Site],
    given: dict[str, Any],
    settings: dict[str, Any],
) -> Recording:
    del given["seed"]  # the noise does not matter
    key = id(pipe), tuple(sites), _frozen(given)
    origin = made_with(pipe, sites, given) if work.cache is not None and key not in work.prompts else {}
    if key not in work.prompts:
        work.prompts[key] = {} if work.cache is None else work.cache.read(origin)
    by_prompt = work.prompts[key]
    missing = [prompt for prompt in dict.fromkeys((*prompts, *work.ahead)) if prompt not in by_prompt]
    if not by_prompt.keys() >= set(prompts):
        by_prompt.update(_alone(missing, record(pipe, missing, sites, **settings)))
        if work.cache is not None:
            work.cache.write(origin or made_with(pipe, sites, given), by_prompt)
    return _together([by_prompt[prompt] for prompt in prompts])


def _alone(prompts: Sequence[str], recording: Recording) -> dict[str, Recording]:
    """Return the recording of each prompt."""
    return {
        prompt: replace(recording, rows=tuple((rows[index],) for rows in recording.rows))
        for index, prompt in enumerate(prompts)
    }


def _together(recordings: Sequence[Recording]) -> Recording:
    """Return one recording of all prompts of several recordings of the same sites."""
    groups = recordings[0].groups
    rows = tuple(tuple(each.rows[group][0] for each in recordings) for group in range(len(recordings[0].rows)))
    return Recording(rows, groups, padded=any(each.padded for each in recordings))


def _frozen(value: Any) -> Any:
    """Return settings as something that can be a key; what cannot is told apart by its identity."""
    if isinstance(value, Mapping):
        return tuple((name, _frozen(item)) for name, item in sorted(value.items()))
    if isinstance(value, (list, tuple, range)):
        return tuple(map(_frozen, value))
    return value if isinstance(value, (bool, int, float, str, Site)) or value is None else id(value)
