"""Training of a trajectory model on recorded positions. A run that is interrupted continues exactly where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from policies.files import replace_file
from policies.spec import Array, ContractError
from policies.train import under
from policies.trajectory import TrajectoryConfig, TrajectoryModel

STATE = "state.safetensors"
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
        ContractError: There is a run already, or none, or one of another recipe or other data; or no trajectory is
            long enough.
    """

    def __init__(
        self, out: Path, recipe: TrajectoryRecipe, trajectories: Sequence[Array], resume: bool = False
    ) -> None:
        self.out, self.recipe, self.step = out, recipe, 0
        self.generator = torch.Generator().manual_seed(recipe.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)  # torch initialises layers from its global generator only
            self.model = TrajectoryModel(dataclasses.replace(config_for(trajectories), widths=recipe.widths))
        self.average = deepcopy(self.model).requires_grad_(False)
        self._places = self.model.normal(torch.from_numpy(np.concatenate(trajectories)))
        self._starts = self._eligible([*map(len, trajectories)])
        self.optimiser = torch.optim.AdamW(self.model.parameters(), recipe.learning_rate, weight_decay=1e-4)
        digest = hashlib.sha256(self._places.numpy().tobytes()).hexdigest()
        self._run = {"recipe": json.dumps(dataclasses.asdict(recipe)), "data": digest}
        if resume != (out / STATE).exists():
            remedy = "start without --resume" if resume else "continue it with --resume or choose another --out"
            raise ContractError(f"{out} holds {'no' if resume else 'a'} run already; {remedy}")
        if resume:
            self._resume()

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

    def _resume(self) -> None:
        with safe_open(self.out / STATE, "pt") as file:
            past = file.metadata()
        for name, present in self._run.items():
            if past[name] != present:
                raise ContractError(f"cannot resume {self.out}: {name} was {past[name]}, now it is {present}")
        state = load_file(self.out / STATE)
        self.step = int(state.pop("step"))
        self.generator.set_state(state.pop("generator"))
        self.model.load_state_dict(under("model.", state))
        self.average.load_state_dict(under("average.", state))
        for index, parameter in enumerate(self.model.parameters()):
            self.optimiser.state[parameter] = under(f"optimiser.{index}.", state)

    def _save(self) -> None:
        state = {"step": torch.tensor(self.step), "generator": self.generator.get_state()}
        state |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, parameter in enumerate(self.model.parameters()):
            state |= {f"optimiser.{index}.{name}": value for name, value in self.optimiser.state[parameter].items()}
        self.out.mkdir(parents=True, exist_ok=True)
        replace_file(self.out / STATE, save(state, self._run))

    def run(self, progress: Callable[[dict[str, float]], None]) -> TrajectoryModel:
        """Train to the end and return the averaged model.

        Args:
            progress: Called at every report with the step, the mean ``loss`` since the last one and ``pieces_per_s``.
        """
        losses, since = [], time.perf_counter()
        while self.step < self.recipe.steps:
            losses.append(self._advance())
            if self.step % self.recipe.report_every == 0 or self.step == self.recipe.steps:
                rate = len(losses) * self.recipe.batch / (time.perf_counter() - since)
                self._save()
                progress({"step": self.step, "loss": float(np.mean(losses)), "pieces_per_s": rate})
                losses, since = [], time.perf_counter()
        return self.average.eval()

    def _advance(self) -> float:
        self.step += 1
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * self._decay()
        loss = self.model.loss(self._batch(), self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {self.step}; lower --learning-rate")
        keep = min(self.recipe.ema, self.step / (self.step + 9))  # a young average must forget the random start
        torch._foreach_lerp_([*self.average.parameters()], [p.detach() for p in self.model.parameters()], 1 - keep)
        return value

    def _decay(self) -> float:
        if self.step < self.recipe.warmup:
            return self.step / self.recipe.warmup
        done = (self.step - self.recipe.warmup) / max(1, self.recipe.steps - self.recipe.warmup)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2

    def _batch(self) -> Tensor:
        """Pieces ``(batch, H, 2)``: every second time of the full length, else of a random shorter one."""
        sizes = sorted(self._starts)
        drawn = int(torch.randint(2 * len(sizes), (1,), generator=self.generator))
        starts = self._starts[size := sizes[min(drawn, len(sizes) - 1)]]
        chosen = starts[torch.randint(len(starts), (self.recipe.batch,), generator=self.generator)]
        return self._places[chosen[:, None] + self.recipe.stride * torch.arange(size)]


def trimmed(states: Array, rest: float = REST) -> Array:
    """A trajectory ``(T, D)`` up to where its position ``[:2]`` stays within ``rest`` m of the last one for good."""
    away = np.flatnonzero(np.linalg.norm(states[:, :2] - states[-1, :2], axis=-1) > rest)
    return states[: away[-1] + 2] if len(away) else states[:1]


def config_for(trajectories: Sequence[Array]) -> TrajectoryConfig:
    """Units of a model: positions of trajectories ``(T, 2)`` span [-1, 1] along the longer axis."""
    low, high = (getattr(np.concatenate(trajectories), name)(0) for name in ("min", "max"))
    return TrajectoryConfig(tuple(((low + high) / 2).tolist()), float((high - low).max()) / 2)
