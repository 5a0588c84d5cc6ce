"""Arguments and options that several commands share, and how their values are read from text."""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import click

from unlearning_adapters.errors import ConfigError

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]

COUNT = click.IntRange(min=1)

PIPELINES = "'shapeworld', 'castworld', a local folder or a Hub repository"
pipeline = click.argument("pipeline", metavar="PIPELINE", help=PIPELINES)
concept = click.argument(
    "concept", metavar="CONCEPT", help="a shipped concept, castworld-VALUE, or a .yaml or .jsonl file"
)
concepts = click.argument(
    "concepts",
    metavar="CONCEPT...",
    nargs=-1,
    required=True,
    help="shipped concepts, castworld-VALUE, or .yaml or .jsonl files",
)
adapter = click.argument("adapter", metavar="ADAPTER", help="an adapter file, its folder, or a Hub repository")
adapters = click.argument(
    "adapters", metavar="ADAPTER...", nargs=-1, required=True, help="adapter files, folders or Hub repositories"
)
gold = click.option("--gold", metavar="PIPELINE", help="add a pipeline that was trained without the concept")
gate = click.option(
    "--gate", type=float, metavar="X", help="share of forget prompts that the base must show (default: 0.9 or 0.5)"
)
detectors = click.option(
    "--detector", "detectors", metavar="NAME", multiple=True,
    help="a name, or package.module:callable; repeat it for more",
)  # fmt: skip
clips = click.option(
    "--clips", type=COUNT, metavar="N", help="prompts of each set at most (default: all; ShapeWorld, CastWorld: 24)"
)
token = click.option("--token", help="access token (default: the one of `hf auth login`)")


def output(metavar: str, text: str, required: bool = True) -> Decorator:
    """Return the option `--output`, or `-o`.

    Args:
        metavar: What is written: DIR or FILE.
        text: What is in it.
        required: Whether it must be given.
    """
    return click.option("-o", "--output", metavar=metavar, required=required, help=text)


def placement(function: Function) -> Function:
    """Add `--dtype` and `--device`: how and where a pipeline is opened."""
    dtype = click.option(
        "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
        help="number type of the weights (default: float32 on a CPU, for ShapeWorld and CastWorld, otherwise bfloat16)",
    )  # fmt: skip
    device = click.option("--device", help="where to run, such as cuda (default: a GPU if there is one)")
    return dtype(device(function))


def frame_size(function: Function) -> Function:
    """Add `--height`, `--width` and `--frames`: the size of the video."""
    for name, unit in (("frames", "number of frames"), ("width", "width in pixels"), ("height", "height in pixels")):
        argument = "num_frames" if name == "frames" else name
        text = f"{unit} (default: the pipeline's own)"
        function = click.option(f"--{name}", argument, type=COUNT, metavar="N", help=text)(function)
    return function


def suite(default: str) -> Decorator:
    """Return the option `--suite`.

    Args:
        default: What is taken without it.
    """
    text = f"a concept, or a .yaml, .jsonl or .csv file, or LOADER:FILE (default: {default})"
    return click.option("--suite", metavar="SUITE", help=text)


def batch(default: int | None = 1, text: str = "1") -> Decorator:
    """Return the option `--batch`.

    Args:
        default: What is taken without it.
        text: The default as the help says it.
    """
    help_text = f"clips per call of the pipeline (default: {text})"
    return click.option("--batch", type=COUNT, default=default, metavar="N", help=help_text)


def call_arguments(function: Function) -> Function:
    """Add `--call NAME=VALUE`, whose values are YAML."""
    option = name_values("--call", "argument of the pipeline's call; repeat it", _yaml, "num_frames=49")
    return option(function)


def name_values(flag: str, text: str, read: Callable[[str], Any], example: str, kind: str = "VALUE") -> Decorator:
    """Return an option that is given as NAME=VALUE, any number of times; its value is a dictionary.

    Args:
        flag: Name of the option.
        text: Its help.
        read: Function that reads a value; it raises ValueError for a value that is none.
        example: Name and value, for the error.
        kind: What a value is.
    """

    def values(_context: click.Context, _option: click.Parameter, texts: Sequence[str]) -> dict[str, Any]:
        return dict(map(pair, texts))

    def pair(item: str) -> tuple[str, Any]:
        name, equals, value = (part.strip() for part in item.partition("="))
        try:
            if not (name and equals):
                raise ValueError
            return name, read(value)
        except ValueError:
            raise ConfigError(f"Expected {flag} as NAME={kind}, such as {example}, but got {item!r}.") from None

    return click.option(flag, metavar=f"NAME={kind}", multiple=True, callback=values, help=text)


class FromText(click.ParamType[Any]):
    """A value that a function reads from text.

    Args:
        read: The function; the message of its ValueError is the error of the command line.
    """

    name = "value"

    def __init__(self, read: Callable[[str], Any]) -> None:
        self.read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value, or end with wrong usage."""
        try:
            return self.read(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


class NameIn(click.ParamType[Any]):
    """A key of a table that is too heavy to import for `--help`.

    Args:
        module: Module of the table, imported when a value is checked.
        table: Name of the table in it.
    """

    name = "name"

    def __init__(self, module: str, table: str) -> None:
        self.module, self.table = module, table

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name, or end with wrong usage."""
        names = tuple(getattr(import_module(self.module), self.table))
        if value not in names:
            self.fail(f"{value!r} is not one of {', '.join(map(repr, names))}.", param, ctx)
        return value


def strength_of(text: str) -> float | dict[str, float]:
    """Read a strength: a number, or one for each component, such as "transformer=1.2,transformer_2=0.8"."""
    parts = [part.partition("=") for part in text.split(",")]
    by_component: dict[str, float] = {}
    try:
        if len(parts) == 1 and not parts[0][1]:
            return float(text)
        for name, _, number in parts:
            if not name.strip() or name.strip() in by_component:
                raise ValueError
            by_component[name.strip()] = float(number)
    except ValueError:
        raise ValueError(
            f"expected a number, or one for each component, such as transformer=1.2,transformer_2=0.8, but got {text!r}"
        ) from None
    return by_component


def strength(text: str) -> Decorator:
    """Return the option `--strength` of one adapter.

    Args:
        text: Its help.
    """
    return click.option(
        "--strength", type=FromText(strength_of), metavar="X", help=f"{text}; by component: NAME=X,NAME=X"
    )


strengths = click.option(
    "--strength", "strengths", type=FromText(strength_of), metavar="X", multiple=True,
    help="repeat it for each adapter (default: its own); by component: NAME=X,NAME=X",
)  # fmt: skip


def listed(read: Callable[[str], Any], example: str) -> FromText:
    """Return the type of values that are separated by commas.

    Args:
        read: Function that reads one of them.
        example: An example, for the error.
    """

    def values(text: str) -> tuple[Any, ...]:
        try:
            return tuple(read(part.strip()) for part in text.split(",") if part.strip())
        except ValueError:
            raise ValueError(f"expected values such as {example}, but got {text!r}") from None

    return FromText(values)


def block_numbers(text: str) -> tuple[int, ...]:
    """Read numbers of blocks, such as "0,4-7"."""
    numbers: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        blocks = range(int(span[1]), int(span[2] or span[1]) + 1) if span else ()
        if not blocks:
            raise ValueError(f"expected block numbers such as 0,4-7, but got {text!r}")
        numbers += blocks
    return tuple(numbers)


def block_factors(text: str) -> dict[int, float]:
    """Read a factor for each block, such as "0=0.5,3=1.2"."""
    factors: dict[int, float] = {}
    for part in text.split(","):
        block = re.fullmatch(r"(\d+)=([-+.\w]+)", part.strip())
        try:
            if not block or int(block[1]) in factors:
                raise ValueError
            factors[int(block[1])] = float(block[2])
        except ValueError:
            raise ValueError(f"expected a factor for each block once, such as 0=0.5,3=1.2, but got {text!r}") from None
    return factors


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the command line gives; for all others, the function that is called has a default."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError from error
