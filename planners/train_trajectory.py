"""Training of a trajectory model on recorded positions. A run that is interrupted continues exactly where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from planners.edges import checked_trajectories
from policies.spec import Array, ContractError
from policies.training import Training, interruptible, seeded
from policies.trajectory import TrajectoryConfig, TrajectoryModel

REST = 0.5  # m
SHORTEST = 8  # positions of a piece; it is a multiple of 4, see `policies.nets.unet1d`


@dataclass(frozen=True)
class TrajectoryRecipe:
    """How to train.

    Args:
        steps: Optimiser steps.
        batch: Pieces per step, all of one length.
        learning_rate: Peak rate of AdamW; linear warm-up, then cosine decay to 1 %.
        warmup: Steps of warm-up.
        ema: Decay of the running average of the weights that becomes the model.
        stride: Recorded positions per position of a piece.
        widths: Channels per level of the network; a point needs a quarter of what a puck does.
        seed: Of initial weights and batches.
        report_every: Steps between two reports, each of which also saves.
    """

    steps: int = 8000
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.998
    stride: int = 4
    widths: tuple[int, ...] = (64, 128, 128)
    seed: int = 0
    report_every: int = 200


class TrajectoryTrainer:
    """State of one training run.

    Args:
        out: Directory of the run, where it is saved.
        recipe: What to do.
        trajectories: Positions ``(T, 2)`` in m, one per step, without the rests at their ends, see `trimmed`.
        resume: Continue the run in ``out`` instead of starting one.

    Raises:
        ContractError: There is a run already, or none, or a damaged one, or one of another recipe or other data; or the
            trajectories are not ``(T, 2)``, not finite or not long enough.
    """

    def __init__(
        self, out: Path, recipe: TrajectoryRecipe, trajectories: Sequence[Array], resume: bool = False
    ) -> None:
        self.recipe, trajectories = recipe, checked_trajectories(trajectories, 2)
        with seeded(recipe.seed):
            self.model = TrajectoryModel(dataclasses.replace(config_for(trajectories), widths=recipe.widths))
        self.average = deepcopy(self.model).requires_grad_(False)
        self._places = self.model.normal(torch.from_numpy(np.concatenate(trajectories)))
        self._starts = self._eligible([*map(len, trajectories)])
        digest = hashlib.sha256(self._places.numpy().tobytes()).hexdigest()
        self._about = {"recipe": json.dumps(dataclasses.asdict(recipe)), "data": digest}
        networks = {"model": self.model, "average": self.average}
        self._training = Training(out, recipe, networks, recipe.ema, weight_decay=1e-4)
        self._training.enter(self._about, resume)

    def _eligible(self, lengths: Sequence[int]) -> dict[int, Tensor]:
        """By length of a piece the positions ``(N,)`` that one can begin at."""
        ends, found = np.cumsum(lengths), {}
        for size in range(SHORTEST, self.model.config.horizon + 1, 4):
            last = ends - (size - 1) * self.recipe.stride
            ranges = [np.arange(end - length, stop) for end, length, stop in zip(ends, lengths, last, strict=True)]
            found[size] = torch.from_numpy(np.concatenate(ranges))
        if not len(found[self.model.config.horizon]):
            needed = (self.model.config.horizon - 1) * self.recipe.stride + 1
            raise ContractError(f"no trajectory moves for {needed} steps; record longer ones or lower the stride")
        return found

    def run(self, progress: Callable[[dict[str, float]], None]) -> TrajectoryModel:
        """Train to the end and return the averaged model; Ctrl-C saves first.

        Args:
            progress: Called at every report with the step, the mean ``loss`` since the last one and ``pieces_per_s``.
        """
        training, recipe = self._training, self.recipe
        losses, since = [], time.perf_counter()
        with interruptible() as interrupted:
            while training.step < recipe.steps:
                losses.append(training.advance(self.model.loss(self._batch(), training.generator)))
                if interrupted.is_set():
                    training.save(self._about)
                    raise KeyboardInterrupt
                if training.step % recipe.report_every == 0 or training.step == recipe.steps:
                    rate = len(losses) * recipe.batch / (time.perf_counter() - since)
                    training.save(self._about)
                    progress({"step": training.step, "loss": float(np.mean(losses)), "pieces_per_s": rate})
                    losses, since = [], time.perf_counter()
            if interrupted.is_set():  # while the last step was saved
                raise KeyboardInterrupt
        return self.average.eval()

    def _batch(self) -> Tensor:
        """Pieces ``(batch, H, 2)``: every second time of the full length, else of a random shorter one."""
        sizes, generator = sorted(self._starts), self._training.generator
        drawn = int(torch.randint(2 * len(sizes), (1,), generator=generator))
        starts = self._starts[size := sizes[min(drawn, len(sizes) - 1)]]
        chosen = starts[torch.randint(len(starts), (self.recipe.batch,), generator=generator)]
        return self._places[chosen[:, None] + self.recipe.stride * torch.arange(size)]


def trimmed(states: Array, rest: float = REST) -> Array:
    """A trajectory ``(T, D)`` up to where its position ``[:2]`` stays within ``rest`` m of the last one for good."""
    away = np.flatnonzero(np.linalg.norm(states[:, :2] - states[-1, :2], axis=-1) > rest)
    return states[: away[-1] + 2] if len(away) else states[:1]


def config_for(trajectories: Sequence[Array]) -> TrajectoryConfig:
    """Units of a model: positions of trajectories ``(T, 2)`` span [-1, 1] along the longer axis."""
    low, high = (getattr(np.concatenate(trajectories), name)(0) for name in ("min", "max"))
    return TrajectoryConfig(tuple(((low + high) / 2).tolist()), float((high - low).max()) / 2)
