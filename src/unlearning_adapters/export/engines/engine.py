"""`Engine`: which names of LoRA layers a program reads for each model, and how it loads a file; imports no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from unlearning_adapters.export.names.naming import Naming, Rows

# From the files that were written, by what users call the denoiser ("" if there is one), to the lines to run there.
Instructions = Callable[[Mapping[str, str]], str]


Suffixes = tuple[tuple[str, str], ...]
AB: Suffixes = ((".lora_A.weight", ".lora_B.weight"),)
DOWN_UP: Suffixes = ((".lora_down.weight", ".lora_up.weight"),)
A_B_DOWN_UP: Suffixes = (*AB, *DOWN_UP)
AB_DEFAULT: Suffixes = ((".lora_A.default.weight", ".lora_B.default.weight"),)


@dataclass(frozen=True)
class Spelling:
    """One way in which an engine knows the layers of a model.

    Args:
        rows: Pairs of patterns: the layer of diffusers, and its name in the file without the prefix.
        prefixes: What the engine takes off the names; "" where it reads bare ones.
        whole: Patterns of layers, as diffusers names them, that it has as one: it reads all of their parts or none.
        needs: A text that must be in the name of some tensor, or it does not know the file as one of this model.
        kohya: Whether the names of kohya stand for these layers too, in an engine that reads them.
    """

    rows: Rows
    prefixes: tuple[str, ...] = ("diffusion_model.",)
    whole: tuple[str, ...] = ()
    needs: str = ""
    kohya: bool = True
    naming: Naming = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "naming", Naming(self.rows))


@dataclass(frozen=True)
class Reads:
    """What an engine reads of the LoRA files of one family of models.

    Args:
        layouts: Names of the layouts that it reads, the best one first.
        source: File and function that decide it.
        spellings: How it knows the layers.
        every: Whether it has a LoRA for each layer of the model under the model's own name, so that the spellings list
            the common ones alone.
        instructions: How a file of this family is loaded, where that is not how the engine loads the others.
    """

    layouts: tuple[str, ...]
    source: str
    spellings: tuple[Spelling, ...]
    every: bool = False
    instructions: Instructions | None = None

    @property
    def whole(self) -> tuple[str, ...]:
        """Patterns of layers that have to be in a file together."""
        return tuple(dict.fromkeys(pattern for spelling in self.spellings for pattern in spelling.whole))


@dataclass(frozen=True)
class Engine:
    """A program that takes LoRA files for video models.

    Args:
        name: Its name in `ENGINES`.
        title: What people call it.
        version: The version whose code the table was held against.
        reads: What it reads, by family.
        instructions: How a file is loaded there.
        lacks: Why it reads no LoRA of each of the other families, with the file that says so.
        not_run: Why its loader was read and not run by the tests, "" if it was run for each family.
        strict: What makes it refuse a file as a whole: any "tensors" that it does not know, or "layers" alone; others
            ignore what they do not know.
        suffixes: What follows the layer's name, for the factors A and B, in all the ways that it reads.
        embedders: Whether LoRAs reach the layers that prepare the prompt.
        kohya: Whether it reads `lora_unet_` names too.
        experts: How the files of the two denoisers of Wan 2.2 are told apart; "" where they cannot be.
        undo: "exact" if it restores the weights from a copy, "restart" if it cannot.
        alpha: What it makes of an `alpha` beside the factors.
    """

    name: str
    title: str
    version: str
    reads: Mapping[str, Reads]
    instructions: Instructions
    lacks: Mapping[str, str]
    not_run: str = ""
    strict: Literal["", "layers", "tensors"] = ""
    suffixes: Suffixes = (*AB, *DOWN_UP, *AB_DEFAULT)
    embedders: bool = True
    kohya: bool = False
    experts: str = ""
    undo: Literal["exact", "restart"] = "exact"
    alpha: str = "alpha / rank"


def lacking(reason: str, *families: str) -> dict[str, str]:
    """Return one reason for several families."""
    return dict.fromkeys(families, reason)
