"""Every error that this package raises on purpose; each is also the builtin that fits, for handlers of those."""

import re

LONG = re.compile(r"\S{241,}")  # longer than any path or name that a person reads


class UnlearningError(Exception):
    """Base of all errors of this package; its text is one line that says what was found and what to do."""

    def __str__(self) -> str:
        """Return the text as one line: what cannot be printed is escaped, and of a value without end the ends stay."""
        words = LONG.sub(lambda word: f"{word[0][:160]}...{word[0][-40:]}", " ".join(super().__str__().split()))
        return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in words)


class ConfigError(UnlearningError, ValueError):
    """A setting is out of range, unknown, or contradicts another one."""


class ConceptError(UnlearningError, ValueError):
    """A concept is missing, cannot be read, or its pairs do not differ."""


class DenoiserError(UnlearningError, TypeError):
    """The pipeline has no denoiser that an adapter could edit, or it is in a state in which it cannot be edited."""


class PipelineError(UnlearningError, RuntimeError):
    """The user's own pipeline failed while a build, a search or an evaluation ran it; its error is the cause."""


class SiteError(UnlearningError, LookupError):
    """No site, or only some of the sites, were found on a denoiser."""


class AdapterFileError(UnlearningError, ValueError):
    """A file is not a valid unlearning adapter; nothing of it was used."""


class AdapterNotFoundError(UnlearningError, FileNotFoundError):
    """A folder, file or Hub repository does not hold an unlearning adapter, or cannot be reached."""


class HubError(UnlearningError, OSError):
    """The Hub cannot be reached, or refuses what was pushed; nothing was changed there."""


class AdapterNameError(UnlearningError, LookupError):
    """An adapter name is unknown, taken, or not a valid name."""


class BaseMismatchError(UnlearningError, ValueError):
    """An adapter was built on another base than the pipeline at hand, or its file was changed."""


class FuseError(UnlearningError, RuntimeError):
    """Weights cannot be fused or restored exactly; they were left as they were."""


class EvaluationError(UnlearningError, ValueError):
    """An evaluation cannot be run or read, or two of its parts do not belong together."""


class EngineError(UnlearningError, ValueError):
    """An engine would ignore a file, or a part of it, without an error of its own."""
