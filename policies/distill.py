"""Distillation: a trained policy in, the same head out, which gets along with fewer steps (`policies.flow.distill`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from policies.flow import Field, from_velocity, straight, uniform
from policies.flow.distill import (
    Average,
    cheapest_grid,
    reflow,
    split,
    step_costs,
    u_shaped_times,
)
from policies.flowdit import DiTHead
from policies.head import Head, head_name
from policies.load import load_trained
from policies.policy import Policy
from policies.spec import Array, ContractError
from policies.train import Recipe, Trainer, Windows

Method = Literal["paths", "split", "reflow"]
FINE, OBSERVED = 20, 64  # steps that grids are made of, and observations that say how much each goes astray
SHORTEST = 1e-3  # step that is compared with a path


@dataclass(frozen=True)
class DistillRecipe(Recipe[Any]):
    """What to teach whom, for how long; what a policy is made of comes from the teacher, which is ``initial``.

    Args:
        method: What the student is taught.
        teacher_steps: Steps that the teacher's chunks are taken from.
        depth: Blocks of the student's transformer; as many as the teacher's if None.
    """

    method: Method = "paths"
    teacher_steps: int = 10
    depth: int | None = None


class Lesson(NamedTuple):
    """What a student is taught with a batch.

    Args:
        average: Average velocity of the student.
        field: Of the teacher, at the same observations.
        path: ``(N + 1, B, H, A)`` states along which the teacher goes from noise to chunks.
        generator: Source of randomness.
    """

    average: Average
    field: Field
    path: Tensor
    generator: torch.Generator

    def times(self, count: int) -> Tensor:
        """Increasing times ``(count, B)``."""
        return torch.rand(count, self.path.shape[1], generator=self.generator).sort(0).values

    def at(self, t: Tensor) -> Tensor:
        """States ``(B, H, A)`` of the teacher's paths, which are straight between its times, at times ``(B,)``."""
        steps, row = len(self.path) - 1, torch.arange(len(t))
        before = (t * steps).long().clamp(max=steps - 1)
        return torch.lerp(self.path[before, row], self.path[before + 1, row], (t * steps - before)[:, None, None])


def _reflow(lesson: Lesson) -> Tensor:
    field = from_velocity(lambda x, t: lesson.average(x, t, torch.ones_like(t)))
    times = u_shaped_times(lesson.path.shape[1], lesson.generator)
    return reflow(field, lesson.path[0], lesson.path[-1], times)


def _paths(lesson: Lesson) -> Tensor:
    """Where the teacher's paths lead from any time to any later one, as a regression."""
    s, t = lesson.times(2)
    s = (1 - SHORTEST) * s
    t = t.maximum(s + SHORTEST)
    x = lesson.at(s)
    return (lesson.average(x, s, t) - (lesson.at(t) - x) / (t - s)[:, None, None]).square().mean()


def _split(lesson: Lesson) -> Tensor:
    r, s, t = lesson.times(3)
    x = lesson.at(r)
    now = (lesson.average(x, r, r) - lesson.field(x, r).velocity).square().mean()
    return now + split(lesson.average, x, r, s, t)


METHODS: dict[Method, Callable[[Lesson], Tensor]] = {
    "paths": _paths,
    "split": _split,
    "reflow": _reflow,
}


class Distiller(Trainer[Any]):
    """Training of a student, which begins as its teacher and keeps what that makes of observations.

    Args:
        recipe: What to do; ``batch`` counts chunks.
        data: Episodes, for their observations.
        resume: Continue the run in ``recipe.out`` instead of starting one.

    Raises:
        ContractError: The head of the teacher cannot be taught.
    """

    def __init__(self, recipe: DistillRecipe, data: Windows, resume: bool = False) -> None:
        teacher = load_trained(f"{recipe.initial}@{recipe.teacher_steps}")
        head, spec = teacher.head, teacher.spec
        if not isinstance(head, DiTHead):
            raise ContractError(f"{type(head).__name__} has no transformer that could learn where steps end")
        config = head.as_student(ends=recipe.method != "reflow")
        depth = config.depth if recipe.depth is None else recipe.depth
        if not 1 <= depth <= config.depth:
            raise ContractError(f"a student of {depth} blocks has none to begin with; take 1 to {config.depth}")
        blocks = {f"head.dit.{name}": weight for name, weight in head.dit.shallower(depth).items()}
        self._weights = {**teacher.state_dict(), **blocks}
        self._teach, self._teacher = METHODS[recipe.method], teacher.requires_grad_(False)
        recipe = dataclasses.replace(
            recipe,
            config=dataclasses.replace(config, depth=depth),
            batch=max(1, recipe.batch // head.candidates),
            history=spec.history,
            horizon=spec.horizon,
            observations=tuple(feature.name for feature in spec.observations),
            temperature=teacher.temperature,
        )
        super().__init__(head_name(head), recipe, data, resume)
        for name, weight in self.policy.head.named_parameters():
            weight.requires_grad_(name.startswith("dit."))

    def _initial(self, owner: Path) -> dict[str, Tensor]:
        return self._weights

    def _loss(self, policy: Policy, pool: Array) -> Tensor:
        observation, actions = self._batch(pool)
        teacher, head = self._teacher, policy.head
        known = head.begins(actions, self.generator).repeat_interleave(head.candidates, 0)
        begins = actions.repeat_interleave(head.candidates, 0)

        def begun(head: Head) -> Any:
            return head.given(_context(head, observation), begins, known)

        with torch.no_grad():
            field = teacher.head.field(begun(teacher.head))
            noise = torch.randn(len(actions) * head.candidates, *actions.shape[1:], generator=self.generator)
            path, step = [teacher.start(noise)], straight(field)
            times = torch.tensor(uniform(teacher.steps))[:, None].expand(-1, len(noise))
            for s, t in pairwise(times):
                path.append(step(path[-1], s, t))
        context = begun(head)

        def average(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            return head.estimate(x, s, head.until(context, t)).velocity

        return self._teach(Lesson(average, field, torch.stack(path), self.generator))


@torch.inference_mode()
def on_cheapest_grids(policy: Policy, data: Windows, steps: Iterable[int]) -> dict[int, Policy]:
    """The policy on the grids whose steps go astray least along its own paths (BOSS, arXiv 2312.16414); not trained.

    Args:
        policy: Any policy.
        data: Episodes, for their observations.
        steps: Numbers of steps, at most `FINE`.
    """
    head, spec = policy.head, policy.spec
    pool = np.random.default_rng(0).choice(np.flatnonzero(~data.valid), OBSERVED)
    seen, _ = data.windows(pool, spec.history, spec.horizon)
    observation = policy.normaliser({f.name: torch.from_numpy(seen[f.name]) for f in spec.observations})
    noise = torch.randn(OBSERVED * head.candidates, *spec.noise_shape, generator=torch.Generator().manual_seed(0))
    fine = head.grid(FINE)
    costs = step_costs(head.field(_context(head, observation)), policy.start(noise), fine)
    grids = {n: [fine[index] for index in cheapest_grid(costs, n)] for n in steps}
    return {n: Policy(head, policy.normaliser, n, policy.temperature, grid).eval() for n, grid in grids.items()}


def _context(head: Head, observation: Mapping[str, Tensor]) -> Any:
    return head.propose(head.encode(head.digest(observation)))
