"""Training: a recipe in, a run directory out. A run that is interrupted continues exactly where it was."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from policies.files import replace_file
from policies.head import find_head
from policies.load import load_trained
from policies.norm import ACTION, Normaliser
from policies.policy import Policy
from policies.spec import Array, ContractError, Feature, Spec
from policies.training import STATE, Training, seeded

ConfigT = TypeVar("ConfigT")
Rollout = Callable[[Policy], float]

LOG_EVERY = 20
SHARE = 16  # windows of a batch from one episode where something is constant, so that it is encoded once for them
REMAINING = "remaining"  # label: seconds to the end of the demonstration, (B,)
CHUNKS = 8192  # of the experts that a head sees before training
SAVE_EVERY = 200  # steps an interruption can cost at most


class Windows(Protocol):
    """Training data: steps of episodes from which windows are cut."""

    @property
    def spec(self) -> Spec: ...
    @property
    def sha256(self) -> str: ...
    @property
    def observations(self) -> Mapping[str, Array]: ...
    @property
    def valid(self) -> Array: ...
    @property
    def pushed(self) -> Array: ...
    @property
    def first(self) -> Array: ...
    @property
    def last(self) -> Array: ...
    def windows(self, steps: Array, history: int, horizon: int, share: int = 1) -> tuple[dict[str, Array], Array]: ...


@dataclass(frozen=True)
class Recipe(Generic[ConfigT]):
    """What to train, on what, for how long.

    Args:
        data: Episode file, from ``kinoflow collect``; none where the episodes are recorded for the run.
        out: Run directory.
        config: Hyper-parameters of the head.
        steps: Optimiser steps.
        batch: Windows per step.
        learning_rate: Peak rate of AdamW; linear warm-up, then cosine decay to 1 %.
        warmup: Steps of warm-up.
        weight_decay: AdamW's.
        ema: Decay of the running average of the weights that becomes the policy.
        history: Observations the policy sees.
        horizon: Actions per chunk.
        undisturbed: Train only on windows that lie within a demonstration and in which no noise was injected, so that
            chunks are plans as the expert would carry them out.
        observations: Features the policy sees, by name; all of the episodes' by default.
        sample_steps: Denoising steps of the policy.
        temperature: Scale of the policy's start noise.
        evaluate_every: Steps between checkpoints; each is rolled out on validation seeds, the best becomes the policy.
        rollouts: Validation episodes per checkpoint; 0 keeps the last weights.
        seed: Seed of initial weights, batches and noise.
        bf16: Compute in bfloat16; slow on a processor without units for it, see ``kinoflow doctor``.
        initial: Policy to begin with, as `policies.load.load_trained` takes it: weights and units of the same name and
            shape are taken over.
    """

    data: Path | None
    out: Path
    config: ConfigT
    steps: int = 5000
    batch: int = 256
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 1e-4
    ema: float = 0.998
    history: int = 2
    horizon: int = 16
    undisturbed: bool = False
    observations: tuple[str, ...] = ()
    sample_steps: int = 4
    temperature: float = 0.5
    evaluate_every: int = 1000
    rollouts: int = 40
    seed: int = 0
    bf16: bool = True
    initial: Path | None = None


class Trainer(Generic[ConfigT]):
    """State of one training run.

    Args:
        head: Name of the head, see `policies.head.find_head`.
        recipe: What to do.
        data: Episodes; their hash is part of the run.
        resume: Continue the run in ``recipe.out`` instead of starting one.
    """

    def __init__(self, head: str, recipe: Recipe[ConfigT], data: Windows, resume: bool = False) -> None:
        for name in ("steps", "batch", "evaluate_every"):
            if getattr(recipe, name) < 1:
                raise ValueError(f"{name} is {getattr(recipe, name)}, at least 1 is needed")
        self.recipe, self.data, self.out = recipe, data, recipe.out
        usable = _undisturbed(data, recipe.horizon) if recipe.undisturbed else np.ones(len(data.valid), bool)
        self._train_steps, self._valid_steps = (np.flatnonzero(usable & part) for part in (~data.valid, data.valid))
        seen = _chosen(data.spec, recipe.observations)
        spec = dataclasses.replace(data.spec, observations=seen, history=recipe.history, horizon=recipe.horizon)
        with seeded(recipe.seed):
            network = find_head(head)(spec, recipe.config)
        normaliser = Normaliser.fit(spec, {feature.name: data.observations[feature.name] for feature in seen})
        self.policy = Policy(network, normaliser, recipe.sample_steps, recipe.temperature)
        network.prepare(normaliser, self._chunks())
        if recipe.initial is not None and not resume:
            _take_over(self.policy, self._initial(recipe.initial), recipe.initial)
        self.average = deepcopy(self.policy).eval().requires_grad_(False)
        networks = {"policy": self.policy, "average": self.average}
        settings = {"betas": (0.9, 0.99), "weight_decay": recipe.weight_decay}
        self._training = Training(self.out, recipe, networks, recipe.ema, **settings)
        self.generator, self.best = self._training.generator, -math.inf
        known = {feature.name for feature in data.spec.observations if feature.label}
        self._labels = [name for name in network.labels if name in known]
        self._resume(head) if resume else self._begin(head)
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._board = SummaryWriter(str(self.out), purge_step=self.step + 1)

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return self._training.step

    def _initial(self, owner: Path) -> dict[str, Tensor]:
        """Weights and units to begin with."""
        return load_trained(str(owner)).state_dict()

    def _chunks(self) -> Tensor:
        """What the experts did in some of the windows, ``(N, H, A)`` in SI units."""
        chosen = np.random.default_rng(self.recipe.seed).permutation(self._train_steps)[:CHUNKS]
        return torch.from_numpy(self.data.windows(np.sort(chosen), 1, self.recipe.horizon)[1])

    def _begin(self, head: str) -> None:
        if (self.out / STATE).exists():
            raise ContractError(f"{self.out} already holds a run; continue it with --resume or choose another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "metrics.jsonl").unlink(missing_ok=True)  # of a run that ended before there was anything to resume
        packages = ("torch", "numpy", "mujoco", "gymnasium")
        run = {
            "head": head,
            "recipe": _plain(self.recipe),
            "data_sha256": self.data.sha256,
            "parameters": sum(p.numel() for p in self.policy.head.parameters()),
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in packages},
        }
        replace_file(self.out / "run.json", json.dumps(run, indent=2).encode())

    def _resume(self, head: str) -> None:
        if not (self.out / STATE).exists():
            raise ContractError(f"nothing to resume: {self.out / STATE} is missing; start without --resume")
        run = json.loads((self.out / "run.json").read_text())
        present = {"head": head, "data_sha256": self.data.sha256, **_plain(self.recipe)}
        past = {"head": run["head"], "data_sha256": run["data_sha256"], **run["recipe"]}
        content = sorted(past.keys() - {"data", "out"})  # paths may change
        self.best = float(self._training.load({name: past[name] for name in content}, present)["best"])
        log = self.out / "metrics.jsonl"
        complete = [line for line in log.read_text().splitlines() if line.endswith("}")]  # an interruption may cut one
        kept = [line for line in complete if json.loads(line)["step"] <= self.step]
        replace_file(log, "".join(f"{line}\n" for line in kept).encode())

    def _save(self) -> None:
        self._training.save(best=torch.tensor(self.best, dtype=torch.float64))

    def run(self, rollout: Rollout | None, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
        """Train to the end.

        Args:
            rollout: Scores a policy on validation seeds, higher is better; without it the last weights are kept.
            progress: Called with (step, steps in all, a short text).

        Returns:
            Last metrics.
        """
        entry: dict[str, Any] = {}
        since, losses = time.perf_counter(), []
        for loss in self._losses():
            losses.append(loss)
            if self.step % LOG_EVERY == 0:
                rate = len(losses) * self.recipe.batch / (time.perf_counter() - since)
                mean = float(np.mean(losses))
                self._log({"step": self.step, "loss": mean, "samples_per_s": rate, "lr": self._training.rate})
                progress(self.step, self.recipe.steps, f"loss {mean:.4f}")
                since, losses = time.perf_counter(), []
            if self.step % self.recipe.evaluate_every == 0 or self.step == self.recipe.steps:
                entry = self._checkpoint(rollout)
                progress(
                    self.step, self.recipe.steps, ", ".join(f"{k} {v:.3f}" for k, v in entry.items() if k != "step")
                )
                since = time.perf_counter()
            elif self.step % SAVE_EVERY == 0:
                self._save()
        return entry

    def _losses(self) -> Iterator[float]:
        self.policy.train()
        while self.step < self.recipe.steps:
            with _fast_math(self.recipe.bf16):
                loss = self._loss(self.policy, self._train_steps)
            yield self._training.advance(loss)

    def _loss(self, policy: Policy, pool: Array) -> Tensor:
        """Of a batch drawn from steps of the data."""
        return policy.head.loss(*self._batch(pool), self.generator)

    def _batch(self, pool: Array) -> tuple[dict[str, Tensor], Tensor]:
        spec, normaliser = self.policy.spec, self.policy.normaliser
        constant = {feature.constant for feature in spec.observations}
        share = SHARE if constant == {True, False} else 1
        first = pool[torch.randint(len(pool), (max(1, self.recipe.batch // share),), generator=self.generator).numpy()]
        chosen = first if share == 1 else self._neighbours(pool, first, share)
        observations, actions = self.data.windows(chosen, self.recipe.history, self.recipe.horizon, share)
        batch = normaliser({f.name: torch.from_numpy(observations[f.name]) for f in spec.observations})
        batch |= {name: torch.from_numpy(observations[name][:, -1]) for name in self._labels}
        if REMAINING in self.policy.head.labels:
            batch[REMAINING] = torch.from_numpy(self.data.last[chosen] - chosen) / spec.rate_hz
        return batch, normaliser.normalise(ACTION, torch.from_numpy(actions))

    def _neighbours(self, pool: Array, steps: Array, count: int) -> Array:
        """Draw ``count`` steps of the pool from the episode of each step, those of an episode behind one another."""
        begin = np.searchsorted(pool, self.data.first[steps])
        length = np.searchsorted(pool, self.data.last[steps], "right") - begin
        drawn = torch.rand(len(steps), count, generator=self.generator).numpy()
        return pool[(begin[:, None] + (drawn * length[:, None]).astype(int)).ravel()]

    def _checkpoint(self, rollout: Rollout | None) -> dict[str, Any]:
        entry: dict[str, Any] = {"step": self.step}
        if len(self._valid_steps):
            entry["valid_loss"] = self._valid_loss()
        score = float(self.step)
        if rollout is not None and self.recipe.rollouts:
            score = entry["score"] = rollout(self.average)
        if score >= self.best:  # of equals the later one has seen more data
            self.best = score
            self.average.save(self.out)
        self._log(entry)
        self._save()
        return entry

    @torch.no_grad()
    def _valid_loss(self) -> float:
        state = self.generator.get_state()
        self.generator.manual_seed(0)  # the same windows and noise every time
        losses = [float(self._loss(self.average, self._valid_steps)) for _ in range(4)]
        self.generator.set_state(state)
        return float(np.mean(losses))

    def _log(self, entry: dict[str, Any]) -> None:
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        for name, value in entry.items():
            self._board.add_scalar(name, value, entry["step"])
        self._board.flush()


def _undisturbed(data: Windows, horizon: int) -> Array:
    """Whether the expert did what it planned for the horizon from each step on ``(N,)``."""
    pushes = np.concatenate([[0], np.cumsum(data.pushed)])
    end = np.minimum(np.arange(len(data.valid)) + horizon, len(data.valid))
    found = (pushes[end] == pushes[:-1]) & (np.arange(len(data.valid)) + horizon - 1 <= data.last)
    if not (found & ~data.valid).any():
        raise ContractError(
            f"no {horizon} actions in a row are undisturbed; collect with --noise 0, or train with a shorter --horizon"
        )
    return found


def _take_over(policy: Policy, state: Mapping[str, Tensor], owner: Path) -> None:
    own = policy.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not any(name.startswith("head.") for name in fitting):
        raise ContractError(f"{owner} has no weights that fit this head; give a run of the same head")
    policy.load_state_dict(fitting, strict=False)


def _chosen(spec: Spec, names: Sequence[str]) -> tuple[Feature, ...]:
    known = {feature.name: feature for feature in spec.observations if not feature.label}
    unknown = sorted({*names} - known.keys())
    if unknown:
        raise ContractError(f"the episodes have no observations {unknown}; choose from {sorted(known)}")
    return tuple(known[name] for name in names or known)


@contextmanager
def _fast_math(bf16: bool) -> Iterator[None]:
    """bfloat16 with the plain attention kernel: at a few tokens the fused CPU kernel is half as fast."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), sdpa_kernel(SDPBackend.MATH):
        yield


def _plain(recipe: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
