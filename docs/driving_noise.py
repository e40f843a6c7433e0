"""Whether recorded commands of driving, integrated over a plan, stay on the road, by when noise is injected.

Run: python docs/driving_noise.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.entry import run
from envs.collect import record
from envs.driving import DrivingEnv
from envs.evaluate import wilson
from kinoflow.console import progress_bar
from policies.files import replace_file
from policies.ground import ground_of
from policies.motion import Motion
from policies.raster import RASTER

OUT = Path(__file__).parent / "results" / "driving_noise.json"
SEED, EPISODES = 1_000_000, 100  # those that policies are trained on
HORIZON, EVERY = 24, 5  # steps of a plan, and from one to the next


def share_on_the_road(name: str, lead_in: int | None, noise: float) -> dict[str, float]:
    """Share of the windows of some demonstrations that lead nowhere off the road."""
    env = DrivingEnv()
    env.lead_in = lead_in
    motion, ground = Motion(env.contract.action, env.contract.dt), ground_of(env.contract)
    fine = []
    with progress_bar(name) as progress:
        for index in range(EPISODES):
            progress(index + 1, EPISODES)
            drive = record(env, SEED + index, noise)
            for step in range(0, len(drive) - HORIZON + 1 if drive else 0, EVERY):
                seen = {RASTER.name: torch.from_numpy(drive.observations[RASTER.name][step])[None, None]}
                poses = motion.poses(torch.from_numpy(drive.actions[step : step + HORIZON]))[None]
                fine.append(bool((ground.margin(seen, poses) > 0).all()))
    return {**wilson(sum(fine), len(fine)), "windows": len(fine)}


def main() -> None:
    """Without noise, with noise before the record begins, and with half as much all along: more ends most drives."""
    report = {
        "never": share_on_the_road("never", None, 0.0),
        "before": share_on_the_road("before", DrivingEnv.lead_in, DrivingEnv.noise),
        "always": share_on_the_road("always", None, DrivingEnv.noise / 2),
    }
    replace_file(OUT, json.dumps(report, indent=2).encode())
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run(main)
