"""`Fitting`: arguments with which a pipeline runs for a moment, found by trying, so that no user has to know them.

The smallest video and few steps suit most classes. Others fix their steps (distilled ones), take a step from the middle
of a long schedule (Text2Video-Zero), have parts that a small video does not fill (pyramids), want a picture, or refuse
to run without guidance.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from PIL import Image

from unlearning_adapters.errors import PipelineError

from .call_arguments import IMAGE_ARGUMENTS, OWN, SCHEDULE, STEPS, broken_part, call_defaults, no_guidance, small_video

SIZES = ("height", "width", "num_frames")
LARGER = 4  # times the smallest side: two halvings more
T = TypeVar("T")


class Fitting:
    """The arguments of a build's runs: those of the user, completed by the first ones with which the pipeline runs.

    Args:
        pipe: A diffusers pipeline.
        given: What the user gives; it is never changed.
        any_video: Whether the video does not matter, so that its size may be any.
    """

    def __init__(self, pipe: Any, given: Mapping[str, Any] | None, *, any_video: bool = True) -> None:
        self.pipe, self.given = pipe, dict(given or {})
        self.found: dict[str, Any] = {}
        self._open = iter(_by_size(pipe, self.given, any_video))
        self._fits = False
        accepted = call_defaults(pipe).keys()
        self._guidance = accepted & no_guidance(accepted).keys()

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments for the next run."""
        guided = {name: OWN for name in self._guidance if self.found.get(name) is OWN}
        return {**self.found, **self.given, **guided}

    def take(self, found: dict[str, Any]) -> None:
        """Take the arguments with which the pipeline is known to run, from another build of the same."""
        self.found, self._fits = found, True

    def run(self, action: Callable[[dict[str, Any]], T]) -> T:
        """Return what an action gives, with other arguments where the pipeline fails; what fits is kept.

        Raises:
            PipelineError: If the pipeline fails with all of them, or with two sizes of the video by the same words,
                unless it refuses these values: its own size may be the only one.
        """
        if self._fits:
            return action(self.arguments)
        failure: PipelineError | None = None
        before: set[str] = set()
        for size in self._open:
            messages = set[str]()
            for self.found in size:
                with_picture = not self.found.keys().isdisjoint(IMAGE_ARGUMENTS)
                try:
                    result = action(self.arguments)
                except PipelineError as error:
                    if failure is None or with_picture == _wants_picture(failure):
                        failure = error
                    no_memory = isinstance(error.__cause__, (MemoryError, torch.OutOfMemoryError))
                    if no_memory or broken_part(self.pipe):
                        raise
                    messages.add(str(error.__cause__))
                    if "guidance" in str(error.__cause__).lower() and OWN not in map(self.found.get, self._guidance):
                        size.append({**self.found, **dict.fromkeys(self._guidance, OWN)})
                else:
                    self._fits = True
                    return result
            if messages == before and not _refuses(failure):
                break
            before = messages
        assert failure is not None
        raise failure from failure.__cause__


def _refuses(failure: PipelineError | None) -> bool:
    """Whether a pipeline refused its arguments, before it did anything with them, as far as its error tells."""
    return failure is not None and isinstance(failure.__cause__, (ValueError, AssertionError))


def _wants_picture(error: PipelineError) -> bool:
    """Whether a pipeline failed because it got no picture, as far as its error tells."""
    text = str(error.__cause__)
    return "image" in text.lower() or "NoneType" in text


def _by_size(pipe: Any, arguments: Mapping[str, Any], any_video: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield arguments to try for each size of the video, the cheapest first; `OWN` is the pipeline's own default."""
    accepted = call_defaults(pipe).keys() - arguments.keys()
    small = small_video(pipe)
    free = [name for name in SIZES if any_video and name in accepted & small.keys()]
    larger = {name: LARGER * (small[name] - 1) + 1 if name == "num_frames" else LARGER * small[name] for name in free}
    variants: list[dict[str, Any]] = [{}]
    if STEPS in accepted and not SCHEDULE & arguments.keys():
        variants.append({STEPS: OWN})
    for name in [name for name in IMAGE_ARGUMENTS if name in accepted][:1]:
        variants = [{**variant, **image} for variant in variants for image in ({}, {name: grey_picture(small)})]
    for size in ({}, larger, dict.fromkeys(free, OWN)) if free else ({},):
        yield [{**size, **variant} for variant in variants]


def grey_picture(arguments: Mapping[str, Any]) -> Image.Image:
    """Return a picture that shows nothing, of the size of a call's video."""
    width, height = (arguments.get(name) for name in ("width", "height"))
    size = (width if isinstance(width, int) else 256, height if isinstance(height, int) else 256)
    return Image.new("RGB", size, (128, 128, 128))
