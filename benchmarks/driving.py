"""Speed of driving: scenes that go on together, scores of many plans in one scene, beside their limits.

    python -m benchmarks.driving --json docs/results/driving_speed.json

Times are of one core. Scenes are stepped with their traffic, the car and collisions, without what is observed; the
environment on its own observes as well.
"""

from __future__ import annotations

import json as json_format
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.entry import check, run
from envs.driving import DrivingEnv
from envs.metrics import pdm_score
from envs.scenes import sample_scene
from envs.traffic import Traffic
from policies.files import replace_file

STEPS_PER_S = 2000.0  # scene steps per second that are wanted at least
SCORING_S = 0.5  # for a thousand plans in one scene, at most


def stepping(scenes: int, steps: int) -> float:
    """Scene steps per second of processor time."""
    traffic = Traffic([sample_scene(np.random.default_rng(seed)) for seed in range(scenes)])
    commands = np.tile([6.0, 0.0], (scenes, 1))
    begin = time.process_time()
    for _ in range(steps):
        traffic.step(commands)
        _ = traffic.collided
    return scenes * steps / (time.process_time() - begin)


def alone(steps: int) -> float:
    """Steps per second of processor time of the environment, observations included."""
    env = DrivingEnv(step_hz=10.0)
    env.reset(seed=0)
    begin = time.process_time()
    for _ in range(steps):
        env.step(np.array([3.0, 0.0], np.float32))
    return steps / (time.process_time() - begin)


def scoring(plans: int) -> float:
    """Seconds of processor time for plans in the four-way junction of a scene, the reference planner included."""
    env = DrivingEnv("four-way", step_hz=10.0)
    env.reset(seed=0)
    while env.time < 5.0:
        env.step(np.array([4.0, 0.0], np.float32))
    scene = env.scored_scene()
    rng = np.random.default_rng(0)
    speeds, rates = rng.uniform(0, 12, (plans, 1)), rng.uniform(-0.3, 0.3, (plans, 1))
    moments = 0.1 * np.arange(41)
    heading = scene.ego.heading + rates * moments
    steps = 0.1 * speeds[..., None] * np.stack([np.cos(heading), np.sin(heading)], -1)
    places = np.cumsum(steps, 1) - steps + [scene.ego.x, scene.ego.y]
    begin = time.process_time()
    pdm_score(np.concatenate([places, heading[..., None]], -1), scene)
    return time.process_time() - begin


def measure(scenes: int, steps: int, plans: int) -> dict[str, Any]:
    """All figures, and each as a share of its limit; shares above 1 meet a rate, those below 1 a time."""
    together, single, seconds = stepping(scenes, steps), alone(steps), scoring(plans)
    return {
        "scenes": scenes,
        "scene_steps_per_s": round(together),
        "of_wanted_rate": round(together / STEPS_PER_S, 2),
        "environment_steps_per_s": round(single),
        "plans": plans,
        "scoring_s": round(seconds, 3),
        "of_allowed_time": round(seconds / SCORING_S, 3),
    }


def main(scenes: int = 64, steps: int = 100, plans: int = 1000, json: Path | None = None) -> None:
    """Measure how fast driving is simulated and scored.

    Args:
        scenes: That go on together.
        steps: Of each.
        plans: In the scored scene.
        json: File for the result.
    """
    check(json, scenes=scenes, steps=steps, plans=plans)
    report = measure(scenes, steps, plans)
    if json:
        replace_file(json, json_format.dumps(report, indent=2).encode())
    print("\n".join(f"{name:<26} {value}" for name, value in report.items()))


if __name__ == "__main__":
    run(main)
