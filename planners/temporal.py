"""How many steps there are between states, learned from trajectories: a cost for graphs that knows of walls.

A temporal distance representation as in HILP (arXiv 2402.15567) and GAS (graph-assisted stitching): the distance
between embeddings of two states is what a goal-conditioned value function says it takes to get from one to the other.
It is symmetric and obeys the triangle inequality by construction, so dynamics that cannot be run backwards it does not
fit. Unlike there, positions are also seen by waves, targets look up to ten steps ahead instead of one, and each batch
serves as its own random goals: on a CPU minutes are enough.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from planners.edges import WITHIN, GraphError
from policies.files import replace_file
from policies.spec import Array
from policies.training import seeded

FORMAT = 1  # of the file
OCTAVES = 5  # of the waves that states are seen by; the longest spans twice the data
LAYERS, SIZE = 3, 32  # hidden layers; numbers of an embedding
MEMBERS = 2  # networks whose distances are averaged
FUTURE = 0.625  # share of the goals that lie ahead on the same trajectory, as in HILP
FASTEST = 0.01  # share of the recorded pieces that are taken for as fast as the robot can be
FALLING = 0.4  # share of the steps in which the learning rate falls
BLOCK = 1 << 16  # pairs whose embeddings are subtracted at once, so that a million of them fit into memory


@dataclass(frozen=True)
class TemporalRecipe:
    """How to train.

    Args:
        steps: Optimiser steps.
        batch: States per step.
        goals: How many other states of the batch each of them has as random goals.
        learning_rate: Of Adam; it rises linearly, stays, and falls linearly at the end.
        warmup: Steps of the rise.
        follow: By how much the target networks follow per step.
        discount: Per step of the robot. Distances beyond a few times 1 / (1 - discount) are told apart badly.
        expectile: The nearer to 1, the more a distance is that of the luckiest trajectories.
        leap: How many steps ahead targets look at most.
        width: Of the hidden layers.
        seed: Of initial weights and batches.
        report_every: Steps between two reports.
    """

    steps: int = 10_000
    batch: int = 256
    goals: int = 16
    learning_rate: float = 3e-3
    warmup: int = 200
    follow: float = 0.02
    discount: float = 0.995
    expectile: float = 0.97
    leap: int = WITHIN
    width: int = 128
    seed: int = 0
    report_every: int = 500


class _Embedding(nn.Module):
    """From states ``(..., D)`` in their units to ``MEMBERS`` embeddings each."""

    centre: Tensor
    scale: Tensor
    unit: Tensor  # steps per distance between embeddings

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dims))
        self.register_buffer("scale", torch.ones(dims))
        self.register_buffer("unit", torch.ones(()))
        self.members = nn.ModuleList(_perceptron(dims * (1 + 2 * OCTAVES), width) for _ in range(MEMBERS))

    def forward(self, states: Tensor) -> Tensor:
        """Embeddings ``(MEMBERS, ..., SIZE)``."""
        normal = (states - self.centre) / self.scale
        angles = (normal[..., None] * (math.pi / 2 * 2.0 ** torch.arange(OCTAVES))).flatten(-2)
        seen = torch.cat([normal, angles.sin(), angles.cos()], -1)
        return torch.stack([member(seen) for member in self.members])


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    sizes = [inputs] + [width] * LAYERS
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(width, SIZE))


class TemporalDistance:
    """Steps between states, for graphs that are not directed; made by `train` or `load`.

    Args:
        network: The embedding.
        recipe: What it was trained with.
    """

    def __init__(self, network: _Embedding, recipe: TemporalRecipe) -> None:
        self._network, self.recipe = network.eval().requires_grad_(False), recipe

    def __call__(self, start: Array, end: Array) -> Array:
        """Steps ``(M,)`` between states ``(M, D)`` and states ``(M, D)``.

        Raises:
            GraphError: The states have other dimensions than those of the training.
        """
        start, end = np.asarray(start, np.float32), np.asarray(end, np.float32)
        dims = len(self._network.centre)
        if start.shape != end.shape or start.ndim != 2 or start.shape[1] != dims:
            raise GraphError(f"states {start.shape} and {end.shape} are not both (M, {dims}) as in the training")
        states, place = _distinct(np.concatenate([start, end]))  # the pairs of 1000 states are a million
        embedded = self._network(torch.from_numpy(states)).double().numpy()
        steps = np.empty(len(start))
        for first in range(0, len(start), BLOCK):
            rows = np.arange(first, min(first + BLOCK, len(start)))
            apart = embedded[:, place[rows]] - embedded[:, place[len(start) + rows]]
            steps[rows] = np.linalg.norm(apart, axis=-1).mean(0)
        return steps * float(self._network.unit)

    @classmethod
    def train(
        cls,
        trajectories: Sequence[Array],
        recipe: TemporalRecipe | None = None,
        progress: Callable[[dict[str, float]], None] = lambda report: None,
    ) -> TemporalDistance:
        """Learn from trajectories.

        The unit follows from the data: of all pieces of `WITHIN` steps the fastest hundredth takes as long as is said,
        or longer. The others wander, rest or were slowed down by noise and walls.

        Args:
            trajectories: States ``(T, D)``, one per step.
            recipe: How.
            progress: Called at every report with the step, the mean ``loss`` since the last one and ``steps_per_s``.

        Raises:
            GraphError: No trajectory goes on for more than `WITHIN` steps, or none moves.
            FloatingPointError: Training diverged.
        """
        recipe = recipe or TemporalRecipe()
        training = _Training([np.asarray(states, np.float32) for states in trajectories], recipe)
        losses, since = [], time.perf_counter()
        for step in range(1, recipe.steps + 1):
            losses.append(training.advance(step))
            if step % recipe.report_every == 0 or step == recipe.steps:
                rate = len(losses) / (time.perf_counter() - since)
                progress({"step": step, "loss": float(np.mean(losses)), "steps_per_s": rate})
                losses, since = [], time.perf_counter()
        distance = cls(training.target, recipe)
        training.target.unit.fill_(WITHIN / distance._fastest(trajectories))
        return distance

    def _fastest(self, trajectories: Sequence[Array]) -> float:
        """How far the fastest of all pieces of `WITHIN` steps go, by this distance."""
        pieces = [(states[:-WITHIN], states[WITHIN:]) for states in trajectories if len(states) > WITHIN]
        start, end = (np.concatenate(ends) for ends in zip(*pieces, strict=True))
        chosen = np.arange(0, len(start), max(1, len(start) // BLOCK))
        far = float(np.quantile(self(start[chosen], end[chosen]), 1 - FASTEST))
        if not far > 0:
            raise GraphError("hardly any piece of a trajectory moves; leave out the rests")
        return far

    def save(self, path: Path) -> None:
        """Write it to a file in one step.

        Raises:
            OSError: The file cannot be written.
        """
        about = json.dumps({"format": FORMAT, "recipe": dataclasses.asdict(self.recipe)})
        replace_file(path, safetensors.torch.save(self._network.state_dict(), {"about": about}))

    @classmethod
    def load(cls, path: Path) -> TemporalDistance:
        """Read one from a file.

        Raises:
            OSError: The file cannot be read.
            GraphError: It is damaged or no temporal distance.
        """
        path.open("rb").close()  # what safetensors raises for a file that is not there does not say so
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["about"])
                if about["format"] != FORMAT:
                    raise GraphError(f"{path} has format {about['format']}, not {FORMAT}; train the distance again")
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            recipe = TemporalRecipe(**about["recipe"])
            network = _Embedding(len(weights["centre"]), recipe.width)
            network.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
            raise GraphError(
                f"{path} is no temporal distance or is damaged ({error}); copy it again or train it again"
            ) from error
        if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
            raise GraphError(f"{path} holds weights that are not finite; copy it again or train it again")
        return cls(network, recipe)


class _Training:
    """Networks and data while training.

    Args:
        trajectories: States ``(T, D)``, float32.
        recipe: What to do.
    """

    def __init__(self, trajectories: Sequence[Array], recipe: TemporalRecipe) -> None:
        lengths = np.array([len(states) for states in trajectories])
        if lengths.max(initial=0) <= WITHIN:
            raise GraphError(f"no trajectory goes on for more than {WITHIN} steps; record longer ones")
        self._recipe, self._generator = recipe, torch.Generator().manual_seed(recipe.seed)
        self._states = torch.from_numpy(np.concatenate(trajectories))
        last = np.repeat(np.cumsum(lengths) - 1, lengths)
        self._last = torch.from_numpy(last)
        self._starts = torch.from_numpy(np.flatnonzero(np.arange(len(last)) < last))
        with seeded(recipe.seed):
            self._network = _Embedding(self._states.shape[1], recipe.width)
        low, high = self._states.min(0).values, self._states.max(0).values
        self._network.centre.copy_((low + high) / 2)
        self._network.scale.copy_(torch.where(high > low, (high - low) / 2, torch.ones_like(low)))
        self.target = deepcopy(self._network).requires_grad_(False)
        self._optimiser = torch.optim.Adam(self._network.parameters(), recipe.learning_rate)

    def advance(self, step: int) -> float:
        """Take one step, the first is 1, and return the loss."""
        recipe = self._recipe
        share = min(step / recipe.warmup, (recipe.steps + 1 - step) / (FALLING * recipe.steps), 1.0)
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.learning_rate * share
        loss = self._loss()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step}; lower the learning rate")
        learned = [parameter.detach() for parameter in self._network.parameters()]
        torch._foreach_lerp_([*self.target.parameters()], learned, recipe.follow)
        return value

    def _loss(self) -> Tensor:
        """Expectile loss of temporal differences for a state's own future goal and for random ones."""
        recipe, count = self._recipe, self._recipe.batch
        start, after, goal = self._draw()
        # Each state's own goal first, then those of other states of the batch: what is embedded once serves often.
        others = 1 + torch.randperm(count - 1, generator=self._generator)[: recipe.goals]
        column = (torch.arange(count)[:, None] + torch.cat([torch.zeros(1, dtype=torch.long), others])) % count
        weight = torch.full(column.shape, (1 - FUTURE) / len(others))
        weight[:, 0] = FUTURE
        reached = torch.zeros(column.shape, dtype=torch.bool)
        reached[:, 0] = after == goal
        kept = recipe.discount ** (after - start)[:, None].float()  # of a reward of -1 per step
        now, then, there = self._states[start], self._states[after], self._states[goal]
        with torch.no_grad():
            here, ahead, aim = self.target(torch.cat([now, then, there])).split(count, 1)
            rest = kept * ~reached
            value = -(1 - kept) / (1 - recipe.discount) - rest * _apart(ahead, aim[:, column])  # (MEMBERS, B, goals)
            better = value.min(0).values >= -_apart(here, aim[:, column]).mean(0)
            weight = weight * torch.where(better, recipe.expectile, 1 - recipe.expectile)
        here, aim = self._network(torch.cat([now, there])).split(count, 1)
        return (weight * (value + _apart(here, aim[:, column])).square()).sum(-1).mean(1).sum()

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of states ``(B,)``, of later ones, and of goals at or after these, geometrically far ahead."""
        recipe, size = self._recipe, (self._recipe.batch,)
        start = self._starts[torch.randint(len(self._starts), size, generator=self._generator)]
        waited = torch.log1p(-torch.rand(size, generator=self._generator)) / math.log(recipe.discount)
        goal = torch.minimum(start + 1 + waited.long(), self._last[start])
        leap = torch.randint(1, recipe.leap + 1, size, generator=self._generator)
        return start, torch.minimum(start + leap, goal), goal


def _apart(states: Tensor, goals: Tensor) -> Tensor:
    """Distances ``(MEMBERS, B, G)`` of embeddings ``(MEMBERS, B, SIZE)`` and ``(MEMBERS, B, G, SIZE)``."""
    return ((states[:, :, None] - goals).square().sum(-1) + 1e-6).sqrt()  # has a gradient where they are equal


def _distinct(states: Array) -> tuple[Array, Array]:
    """The states ``(U, D)`` that there are among states ``(M, D)``, and which one each of these is ``(M,)``.

    numpy's own `unique` of rows takes thirty times as long.
    """
    order = np.lexsort(states.T)
    new = np.ones(len(states), bool)
    new[1:] = (states[order[1:]] != states[order[:-1]]).any(1)
    place = np.empty(len(states), int)
    place[order] = np.cumsum(new) - 1
    return states[order[new]], place
