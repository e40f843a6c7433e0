"""How far solvers end from where a head's field leads, by evaluations of the network per chunk.

    python docs/solver_study.py models/nav_flowdit.kfb --data runs/nav.hdf5 --json docs/results/solvers_nav.json

Root mean square over the normal chunks of 256 recorded observations from the same noise, against 100 Euler steps:

* euler: straight steps, for this path also DDIM.
* heun: second order, two evaluations per step.
* midpoint: second order, two evaluations per step, the second in its middle (RF-Solver, arXiv 2411.04746, whose
  derivative of the velocity is the difference to there).
* multistep: straight steps along the velocity extrapolated from this and the last evaluation to the middle of the step,
  second order at the price of the first (DPM-Solver++ 2M, arXiv 2211.01095, in velocities).
* grid: Euler on the cheapest grid (BOSS, arXiv 2312.16414).
"""

from __future__ import annotations

import json as json_format
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks.entry import check, run
from envs.episodes import read_episodes
from policies.distill import on_cheapest_grids
from policies.files import replace_file
from policies.flow import Field, Step, heun, solve, straight, uniform
from policies.flow.path import expand
from policies.load import load_trained

OBSERVED, REFERENCE = 256, 100
EVALUATIONS = (1, 2, 3, 4, 6, 10)


def main(policy: tyro.conf.Positional[str], data: Path, json: Path | None = None) -> None:
    """Measure a head that starts from pure noise.

    Args:
        policy: Bundle or run directory.
        data: Episodes, whose observations are used.
        json: File for the result.
    """
    check(json)
    trained, episodes = load_trained(policy), read_episodes(data)
    spec, rng = trained.spec, np.random.default_rng(0)
    seen, _ = episodes.windows(rng.choice(len(episodes.actions), OBSERVED), spec.history, spec.horizon)
    observation = {f.name: torch.from_numpy(seen[f.name]) for f in spec.observations}
    with torch.inference_mode():
        field = trained.bind(observation)
        noise = torch.randn(OBSERVED, *spec.noise_shape, generator=torch.Generator().manual_seed(0))
        x = trained.start(noise)
        exact = solve(straight(field), x, uniform(REFERENCE))
        grids = {n: found.grid for n, found in on_cheapest_grids(trained, episodes, EVALUATIONS).items()}
        result: dict[str, Any] = {"policy": policy, "spread": _rms(exact - exact.mean(0)), "error": {}}
        for n in EVALUATIONS:
            ends = {"euler": solve(straight(field), x, uniform(n)), "grid": solve(straight(field), x, grids[n])}
            ends["multistep"] = multistep(field, x, n)
            if n % 2 == 0:
                ends["heun"] = solve(heun(field), x, uniform(n // 2))
                ends["midpoint"] = solve(midpoint(field), x, uniform(n // 2))
            result["error"][n] = {name: _rms(end - exact) for name, end in ends.items()}
    for n, errors in result["error"].items():
        print(f"{n:>3} evaluations  " + "  ".join(f"{name} {error:.4f}" for name, error in errors.items()))
    if json:
        replace_file(json, json_format.dumps(result, indent=1).encode())


def midpoint(field: Field) -> Step:
    """Step along the velocity half a straight step ahead."""

    def step(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        middle = (s + t) / 2
        return x + expand(t - s, x) * field(straight(field)(x, s, middle), middle).velocity

    return step


def multistep(field: Field, x: Tensor, steps: int) -> Tensor:
    """Where steps along extrapolated velocities lead; the first one has nothing to extrapolate from."""
    before: Tensor | None = None
    for s, t in pairwise(uniform(steps)):
        velocity = field(x, torch.full((len(x),), s)).velocity
        ahead = velocity if before is None else 1.5 * velocity - 0.5 * before
        x, before = x + (t - s) * ahead, velocity
    return x


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


if __name__ == "__main__":
    run(main)
