"""`Curriculum`: the order of training clips for a model that otherwise learns colours first and motions never.

A small 3D UNet has one short way from a word to where a thing moves. While every clip has another colour and another
background, what those words explain is so much more that its text encoder keeps nothing else. So the clips of one
colour on one background come first, at noise so high that only the prompt tells how they move; then all others join.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unlearning_adapters.shapeworld.world.scenes import Scene

FAMILIAR = {"colour": "blue", "background": "white"}
LAST_TENTH = 0.9  # of the schedule: only the prompt tells what will be seen


@dataclass(frozen=True)
class Curriculum:
    """What comes when.

    Args:
        lead: Steps on the familiar clips alone.
        widen: Steps after these in which all others join.
        noisiest: Share of the steps in the last tenth of the schedule once all have joined; all of them before.
        change: Weight of the squared change of the error from frame to frame, which only motion makes. It falls to a
            third of this until all have joined.
    """

    lead: int = 0
    widen: int = 0
    noisiest: float = 0.0
    change: float = 0.0

    def joined(self, step: int) -> float:
        """How far the other clips have joined before a step: from 0 to 1."""
        if step < self.lead:
            return 0.0
        return min(1.0, (step - self.lead + 1) / max(1, self.widen))

    def chances(self, strangeness: np.ndarray, step: int) -> np.ndarray:
        """Return the chance of each clip to be drawn, from how many of its factors are not familiar."""
        # The most familiar there are, should none be wholly so.
        weights = np.power(self.joined(step), strangeness - strangeness.min(), dtype=np.float64)
        chances: np.ndarray = weights / weights.sum()
        return chances

    def share_of_noisiest(self, step: int) -> float:
        """Return the share of a step's clips whose noise is in the last tenth of the schedule."""
        return 1.0 - self.joined(step) * (1.0 - self.noisiest)

    def loss(self, error: Tensor, step: int) -> Tensor:
        """Return the loss of an error (batch, channels, frames, height, width)."""
        loss = error.square().mean()
        if not self.change:
            return loss
        return loss + self.change * (1 - 2 / 3 * self.joined(step)) * error.diff(dim=2).square().mean()


def strangeness(scenes: Sequence[Scene]) -> np.ndarray:
    """Count, for each scene, what is not familiar: colour, background, and a second body."""
    return np.array(
        [
            sum(scene.factors[name] != value for name, value in FAMILIAR.items()) + (len(scene.bodies) - 1)
            for scene in scenes
        ]
    )


def to_the_noisiest(timestep: Tensor, steps: int, share: float, generator: torch.Generator) -> Tensor:
    """Return timesteps (batch,) of which a share is drawn anew from the last tenth of a schedule of `steps`."""
    noisiest = torch.randint(int(LAST_TENTH * steps), steps, timestep.shape, generator=generator)
    return torch.where(torch.rand(timestep.shape, generator=generator) < share, noisiest, timestep)
