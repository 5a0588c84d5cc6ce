"""The command `unlearn`: its options, its exit codes, and what it prints where."""

import argparse
import contextlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from unlearning_adapters.config import METHODS
from unlearning_adapters.errors import UnlearningError

from . import commands
from . import evaluate as evaluate_command
from .attack import attack_options, run_attack
from .compare import compare, compare_options
from .export import export, export_options
from .lint import lint_concepts, lint_options
from .pipelines import add_pipelines_options, pipelines
from .search import search, search_options

Options = argparse.ArgumentParser
DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None takes that of the process.

    Returns:
        0; or 1 after an error, which is one line on stderr, or if a check found errors; or 130 after Ctrl-C. Wrong
        usage exits with 2.
    """
    options = make_parser().parse_args(arguments)
    try:
        # Libraries print what they like: stdout belongs to the result alone.
        with contextlib.redirect_stdout(sys.stderr), _plain_warnings():
            report: commands.Report = options.run(options)
        if report.data:  # nothing to tell in the other processes of a launcher
            print(json.dumps(report.data, allow_nan=False) if hasattr(options, "json") else report.text, flush=True)
        if report.failure:
            raise UnlearningError(report.failure)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has gone, as in `unlearn concepts | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UnlearningError, OSError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return report.code


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; an option that is not given is no attribute, unless it has a default here."""
    top = argparse.ArgumentParser(prog="unlearn", description="Make diffusers video models forget a concept.")
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    group = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text, add_options, run in COMMANDS:
        _add_command(group, name, text, add_options, run)
    return top


def _add_command(
    group: Any, name: str, text: str, add_options: Callable[[Options], None], run: Callable[..., commands.Report]
) -> None:
    command = group.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    command.set_defaults(run=run)
    add_options(command)


def _demo_options(command: Options) -> None:
    add = _optional(command)
    add("--concept", metavar="NAME", help="a ShapeWorld concept, or a file with a `target` (default: shapeworld-red)")
    add("--clips", type=_count, metavar="N", help="prompts of the concept, and of its neighbours (default: 24)")
    add("--output", metavar="DIR", help="folder of clips, pictures, adapter and result.json (default: unlearn-demo)")


def _build_options(command: Options) -> None:
    command.add_argument("pipeline", metavar="PIPELINE", help="'shapeworld', a local folder or a Hub repository")
    command.add_argument("concept", metavar="CONCEPT", help="a shipped concept, or a .yaml or .jsonl file")
    command.add_argument("-o", "--output", metavar="DIR", required=True, help="folder or .safetensors file to write")
    add = _optional(command)
    add("--method", choices=METHODS, help="how directions are found (default: ridge)")
    add("--strength", type=float, help="part of the direction that is removed (default: calibrated on the pairs)")
    add("--rank", type=int, help="directions per site (default: 1)")
    add("--epsilon", type=float, help="regularisation of ridge (default: 0.001)")
    add(
        "--landing",
        choices=("majority", "mean"),
        help="where ridge leads the concept: to what most safe sides agree on (default), or to their mean",
    )
    add("--components", type=int, help="principal components of pca and cpca (default: 100)")
    add("--contrast", type=float, help="weight of the neutral covariance in cpca (default: 1)")
    add(
        "--sites",
        type=_names,
        help="'text', 'image', 'hidden' or name patterns, comma-separated (default: by the pairs)",
    )
    add("--blocks", type=_numbers, help="blocks to use, such as 0,4-7 (default: all)")
    add(
        "--block-strengths",
        type=_factors,
        metavar="N=X,N=X",
        help="multiply the strength in some blocks, such as 0=0.5,3=1.2 (default: 1 in all)",
    )
    add("--pairs", type=int, metavar="N", help="use the first N pairs (default: 5, or all if there are fewer)")
    add("--seed", type=int, help="seed of the noise and of the random method (default: 0)")
    _pipeline_options(command)


def _inspect_options(command: Options) -> None:
    command.add_argument("adapter", metavar="ADAPTER", help="an adapter file, its folder, or a Hub repository")


def _apply_options(command: Options) -> None:
    command.add_argument("pipeline", metavar="PIPELINE", help="'shapeworld', a local folder or a Hub repository")
    command.add_argument("adapters", metavar="ADAPTER", nargs="+", help="adapter files, folders or Hub repositories")
    command.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="repeat it for more clips")
    command.add_argument("-o", "--output", metavar="FILE", required=True, help="the .mp4 file; numbered for more clips")
    command.add_argument(
        "--strength", action="append", type=float, help="repeat it for each adapter (default: its own)"
    )
    command.add_argument("--fuse", action="store_true", help="write the edit into the weights instead of attaching it")
    command.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    command.add_argument("--fps", type=float, default=8.0, help="frames per second of the file (default: 8)")
    add = _optional(command)
    add("--negative-prompt", metavar="TEXT", help="what to steer away from")
    add("--steps", type=int, help="denoising steps")
    add("--guidance", type=float, help="guidance scale")
    add("--height", type=int, help="height in pixels")
    add("--width", type=int, help="width in pixels")
    add("--frames", type=int, help="number of frames")
    _pipeline_options(command)


def _push_options(command: Options) -> None:
    command.add_argument("adapter", metavar="ADAPTER", help="an adapter file, or its folder")
    command.add_argument("repository", metavar="REPOSITORY", help="where to push it, org/name; made if it is missing")
    command.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    command.add_argument(
        "--create-pr", action="store_true", help="open a pull request instead of writing to the branch"
    )
    add = _optional(command)
    add("--revision", metavar="BRANCH", help="branch to write to (default: main)")
    add("--commit-message", metavar="TEXT", help="title of the commit (default: names the concept)")
    add("--license", metavar="NAME", help="licence of the adapter, such as apache-2.0 (default: none is named)")
    add("--token", help="access token (default: the one of `hf auth login`)")
    add(
        "--clip",
        nargs=2,
        action="append",
        dest="clips",
        metavar=("TEXT", "FILE"),
        help="an .mp4 file for the card and what to write below it; repeat it, such as for before and after",
    )
    command.add_argument("--result", metavar="FILE", help="result.json of `unlearn demo`, for the numbers of the card")


def _pull_options(command: Options) -> None:
    command.add_argument("repository", metavar="REPOSITORY", help="a Hub repository, org/name")
    command.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to write to")
    add = _optional(command)
    add("--revision", metavar="NAME", help="branch, tag or commit (default: main)")
    add("--token", help="access token (default: the one of `hf auth login`)")


def _concepts_options(command: Options) -> None:
    group = command.add_subparsers(title="actions", metavar="[list | show | new | lint]")
    _add_command(group, "list", "list the shipped concepts (the default)", lambda _: None, commands.concepts)
    _add_command(group, "show", "show the pairs of a concept", _show_options, commands.show_concept)
    _add_command(group, "new", "write a commented template for a new concept", _new_options, commands.new_concept)
    _add_command(group, "lint", "check concepts: one line for each doubt", lint_options, lint_concepts)


def _show_options(command: Options) -> None:
    command.add_argument("name", metavar="NAME", help="a shipped concept, or a .yaml or .jsonl file")


def _new_options(command: Options) -> None:
    command.add_argument("name", metavar="NAME", help="name of the concept")
    command.add_argument("-o", "--output", metavar="FILE", help="the file (default: NAME.yaml)")


def _pipeline_options(command: Options) -> None:
    command.add_argument("--dtype", choices=DTYPES, help="number type of the weights (default: float32 on a CPU)")
    command.add_argument("--device", help="where to run, such as cuda (default: a GPU if there is one)")


COMMANDS: tuple[tuple[str, str, Callable[[Options], None], Callable[..., commands.Report]], ...] = (
    ("demo", "show the main job on the embedded model, with numbers and pictures", _demo_options, commands.demo),
    ("build", "build an adapter from a concept's pairs", _build_options, commands.build),
    ("search", "find the settings that forget most and change least, and build with them", search_options, search),
    ("inspect", "show what an adapter file says about itself", _inspect_options, commands.inspect),
    ("apply", "generate clips with adapters on a pipeline", _apply_options, commands.apply),
    ("export", "write adapters as a plain LoRA, or a pipeline with them fused", export_options, export),
    (
        "eval",
        "measure what an adapter removes and what it keeps",
        evaluate_command.eval_options,
        evaluate_command.run_eval,
    ),
    ("compare", "build all methods on one concept, and measure them side by side", compare_options, compare),
    ("attack", "try to bring a concept back from an edited pipeline", attack_options, run_attack),
    ("push", "push an adapter and its card to the Hub", _push_options, commands.push),
    ("pull", "download an adapter, its card and its clips from the Hub", _pull_options, commands.pull),
    (
        "concepts",
        "list the shipped concepts, show or check one, or start a new one",
        _concepts_options,
        commands.concepts,
    ),
    ("pipelines", "list the video pipelines of diffusers, and what was tested", add_pipelines_options, pipelines),
)


class _Version(argparse.Action):
    """Prints the version; only then is it looked up."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from unlearning_adapters import __version__

        print(f"unlearn {__version__}")
        parser.exit()


def _optional(command: Options) -> Callable[..., Any]:
    """Return `add_argument` for options without a default here: the function that is called has it."""

    def add(name: str, **settings: Any) -> None:
        command.add_argument(name, default=argparse.SUPPRESS, **settings)

    return add


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, but got {text!r}")
    return int(text)


def _names(text: str) -> str | tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return names[0] if len(names) == 1 else names


def _numbers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        chosen = range(int(span[1]), int(span[2] or span[1]) + 1) if span else ()
        if not chosen:
            raise argparse.ArgumentTypeError(f"expected block numbers such as 0,4-7, but got {text!r}")
        numbers += chosen
    return tuple(numbers)


def _factors(text: str) -> dict[int, float]:
    factors: dict[int, float] = {}
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)=([-+.\w]+)", part.strip())
        try:
            if not found or int(found[1]) in factors:
                raise ValueError
            factors[int(found[1])] = float(found[2])
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected a factor for each block once, such as 0=0.5,3=1.2, but got {text!r}"
            ) from None
    return factors


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings as one line each, without the line of code that they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning):  # of libraries, for people who write code
            warnings.simplefilter("ignore", kind)
        warnings.showwarning = show
        yield
