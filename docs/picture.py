"""Draw docs/demo.png from a finished demo: python docs/picture.py runs/demo docs/demo.png (needs an OpenGL library)."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")

from matplotlib import pyplot

import envs  # noqa: F401 (registers the environment)
from envs.drive import PolicyDriver
from envs.world import make
from kinoflow import figures
from policies.load import load_policy
from policies.runtime.worker import InlineWorker

WALKED = 6.0  # s, after which the robot is photographed


def photograph(bundle: Path, seed: int) -> Any:
    """Let the G1 walk for a few seconds and take a picture of it."""
    env: Any = make("kinoflow/Nav-v0", {"embodiment": "g1"}, commands=True, render_mode="rgb_array")
    env.reset(seed=seed)
    driver = PolicyDriver(InlineWorker(load_policy(str(bundle))), seed)
    while env.time < WALKED:
        env.step(driver.command(env.observe(), env.time))
    picture = env.render()
    env.close()
    return picture


def rasterise(figure: Any) -> Any:
    """Turn a figure into an image array."""
    buffer = io.BytesIO()
    figures.save(figure, buffer)
    buffer.seek(0)
    return pyplot.imread(buffer)


def main(demo: Path, target: Path) -> None:
    """Put photograph, path and comparison side by side."""
    run = json.loads((demo / "run.json").read_text())
    world = make(run["env"], {"embodiment": run["embodiment"]})
    world.reset(seed=run["seed"])
    panels = [
        photograph(demo / "flowdit.kfb", run["seed"]),
        rasterise(figures.walk(world.room, run["path"], run["goals"])),
        rasterise(figures.success(json.loads((demo / "evaluation.json").read_text()))),
    ]
    sheet, axes = pyplot.subplots(1, 3, figsize=(15, 4.4), layout="constrained", width_ratios=[1.2, 1, 1.3])
    for axis, panel in zip(axes, panels, strict=True):
        axis.imshow(panel)
        axis.axis("off")
    figures.save(sheet, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
