"""Track the running calls of pipelines, so that no verb changes their denoisers meanwhile.

A denoiser cannot see where the call of a pipeline begins and ends. So `__call__` of the pipeline classes is wrapped
once, when the verbs become their methods; the call itself stays the same, in the same thread.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from unlearning_adapters.pipelines.running.call_lock import in_call

from .coverage import covered

TRACKED = "_unlearning_adapters_tracked"


def track_calls(pipeline_class: Any) -> None:
    """Track the calls of a pipeline class and of all its present and future subclasses."""
    for each in _with_subclasses(pipeline_class):
        _track(each)

    def __init_subclass__(cls: Any, /, **options: Any) -> None:
        super(pipeline_class, cls).__init_subclass__(**options)
        _track(cls)

    if "__init_subclass__" not in vars(pipeline_class):
        pipeline_class.__init_subclass__ = classmethod(__init_subclass__)


def _track(pipeline_class: Any) -> None:
    call = vars(pipeline_class).get("__call__")
    if inspect.isfunction(call) and not inspect.isgeneratorfunction(call) and not hasattr(call, TRACKED):
        pipeline_class.__call__ = _tracked(call)


def _tracked(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        with in_call(self), covered(self):
            return call(self, *args, **kwargs)

    setattr(__call__, TRACKED, True)
    return __call__


def _with_subclasses(pipeline_class: Any) -> Iterator[Any]:
    yield pipeline_class
    for each in pipeline_class.__subclasses__():
        yield from _with_subclasses(each)
