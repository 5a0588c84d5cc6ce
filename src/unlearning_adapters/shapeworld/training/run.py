"""What trainings share: the command line, the folder of a run, its log and checkpoints, the data's form, the loop."""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.adapter.draft import draft_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the rate of a linear warm-up and a cosine decay to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def to_tensor(clips: list[np.ndarray]) -> Tensor:
    """Return uint8 clips (frames, height, width, 3) as a batch (clips, 3, frames, height, width) in [-1, 1]."""
    batch = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)
    return batch.float().div_(127.5).sub_(1.0)


class TrainingRun:
    """A folder that holds the log and the checkpoints of one training run, which may end after some minutes."""

    def __init__(self, folder: Path, minutes: float = math.inf) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started = time.time()
        self.minutes = minutes

    @property
    def is_over(self) -> bool:
        """Whether its minutes have passed: a loop then saves and stops, and another call goes on from there."""
        return time.time() - self.started > 60 * self.minutes

    def log(self, stage: str, **values: float | int | str) -> None:
        """Append one line to the log."""
        row = {"stage": stage, "seconds": round(time.time() - self.started, 1), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint so that a killed run leaves the old or the new one, never half of one."""
        with draft_of(self.folder / f"{name}.pt") as draft:
            torch.save(state, draft)

    def load(self, name: str) -> dict[str, Any] | None:
        """Read a checkpoint of this run; None if there is none."""
        path = self.folder / f"{name}.pt"
        return torch.load(path, map_location=DEVICE, weights_only=True) if path.exists() else None

    def check_data(self, settings: dict[str, int]) -> None:
        """Note what clips and captions are drawn by, or end the program if those that the run holds are others."""
        path = self.folder / "data.json"
        if not path.exists():
            path.write_text(json.dumps(settings) + "\n")
        elif (before := json.loads(path.read_text())) != settings:
            raise SystemExit(
                f"{self.folder} holds clips and captions of {before}, not {settings}; choose another folder."
            )

    def publish(self, folder: Path, settings: Any) -> None:
        """Write the settings, and the log of this run if it has one, beside the model that was exported to a folder."""
        (folder / "training.json").write_text(json.dumps(settings, indent=2) + "\n")
        if (log := self.folder / "log.jsonl").exists():  # a run that only resumed an exported model has none
            (folder / "training_log.jsonl").write_text(log.read_text())


class MatrixOptimizer:
    """Muon for the kernels of convolutions, each read as a matrix (outputs, inputs x kernel), and AdamW for the rest.

    Args:
        model: What is trained; kernels of its first and last convolutions are left to AdamW.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        edges = ("conv_in", "conv_out", "quant_conv")
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.kernels = [p for name, p in named if p.ndim >= 4 and not any(edge in name for edge in edges)]
        kernel_ids = {id(p) for p in self.kernels}
        others = [p for _, p in named if id(p) not in kernel_ids]
        # Views share the kernels' memory: Muon takes matrices alone.
        self.matrices = [torch.nn.Parameter(p.data.view(len(p), -1)) for p in self.kernels]
        muon = torch.optim.Muon(self.matrices, lr=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.parts = [muon, torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both optimisers, whose "lr" the loop sets."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of both."""
        self.parts[1].zero_grad(set_to_none)
        for kernel in self.kernels:
            kernel.grad = None

    def step(self) -> None:
        """Take one step of both."""
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.view_as(matrix)
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the states of both."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def minimise(
    run: TrainingRun,
    stage: str,
    model: torch.nn.Module,
    steps: int,
    rate: Callable[[int], float],
    loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    matrices: bool = False,
) -> None:
    """Minimise a loss over the parameters that ask for gradients, from the newest checkpoint of a stage.

    Args:
        run: Where checkpoints and log lines go.
        stage: Their name.
        model: What is trained.
        steps: Number of steps, with those of the checkpoint.
        rate: Step -> learning rate.
        loss: Step -> loss, and what the log says of it.
        matrices: Whether kernels of convolutions are trained by `MatrixOptimizer`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.0)
    if matrices:
        optimizer = MatrixOptimizer(model)
    start = 0
    if (state := run.load(stage)) is not None:
        model.load_state_dict(state["model"])
        if "optimizer" in state:  # weights alone, of an exported model, start the schedule anew
            optimizer.load_state_dict(state["optimizer"])
            start = state["step"]
    bar = tqdm(range(start, steps), total=steps, initial=start, desc=stage)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        value, values = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.set_postfix({name: f"{number:.4f}" for name, number in values.items()})
        if step % 50 == 49:
            run.log(stage, step=step + 1, **values)
        over = run.is_over
        if step % 100 == 99 or step + 1 == steps or over:
            run.save(stage, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
        if over:
            break


def stage_parser(description: str | None, stages: Sequence[str]) -> argparse.ArgumentParser:
    """Return the command line of a training script, whose last stage is "export"."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("stage", choices=(*stages, "export"))
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints and log")
    parser.add_argument("--to", type=Path, help="folder of the exported model")
    parser.add_argument("--minutes", type=float, default=math.inf, help="save and stop after so long")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def parse_stage(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, TrainingRun]:
    """Return the arguments and the folder of the run, and set the number of threads."""
    arguments = parser.parse_args()
    if arguments.stage == "export" and arguments.to is None:
        parser.error("the stage 'export' needs --to DIR")
    torch.set_num_threads(arguments.threads)
    return arguments, TrainingRun(arguments.output, arguments.minutes)
