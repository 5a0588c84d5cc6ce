"""What trainings share: the command line, the folder of a run, its log and checkpoints, the rate, the data's form."""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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


class Run:
    """A folder that holds the log and the checkpoints of one training run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started = time.time()

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

    def publish(self, folder: Path, settings: Any) -> None:
        """Write the settings and the log of this run beside the model that was exported to a folder."""
        (folder / "training.json").write_text(json.dumps(settings, indent=2) + "\n")
        (folder / "training_log.jsonl").write_text((self.folder / "log.jsonl").read_text())


def stage_parser(description: str | None, stages: Sequence[str]) -> argparse.ArgumentParser:
    """Return the command line of a training script, whose last stage is "export"."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("stage", choices=(*stages, "export"))
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints and log")
    parser.add_argument("--to", type=Path, help="folder of the exported model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def parse_stage(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Run]:
    """Return the arguments and the folder of the run, and set the number of threads."""
    arguments = parser.parse_args()
    if arguments.stage == "export" and arguments.to is None:
        parser.error("the stage 'export' needs --to DIR")
    torch.set_num_threads(arguments.threads)
    return arguments, Run(arguments.output)
