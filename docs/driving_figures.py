"""Figure of docs/driving.md: what GoalFlow chooses from.

Run: python docs/driving_figures.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from driving_study import candidates

from benchmarks.entry import run
from envs.evaluate import VALIDATION_SEED
from kinoflow.driving_figures import draw_moment
from kinoflow.driving_plans import Plans, case
from kinoflow.figures import canvas, save
from policies.load import load_trained

HERE = Path(__file__).parent
GOALFLOW = HERE.parent / "models" / "driving_goalflow.kfb"
KINDS = ("fork", "four-way", "parked")
SEED = VALIDATION_SEED + 10  # nothing here is a result
WORST = 10.0  # ratings below the best one, that look the same


def goals() -> None:
    """Candidates of GoalFlow in three scenes, by their ratings, and the one that is chosen."""
    from matplotlib import colormaps

    policy = load_trained(str(GOALFLOW))
    plans = Plans(policy)
    figure, axes = canvas(11, 6.5, len(KINDS))
    for axis, kind in zip(axes, KINDS, strict=True):
        here = case(SEED, kind)
        found = candidates(policy, here)
        shown = np.clip((found.rating - found.rating.max()) / WORST + 1, 0, 1)
        draw_moment(axis, here.env)
        for index in np.argsort(found.rating):
            draw_plan(axis, plans, found.chunks[index], color=colormaps["viridis"](shown[index]), lw=1.2)
        axis.scatter(-found.goals[:-1, 1], found.goals[:-1, 0], c=shown[:-1], cmap="viridis", vmin=0, vmax=1, zorder=3)
        draw_plan(axis, plans, found.chunks[found.rating.argmax()], color="#d1495b", lw=2.5)
        axis.set_title(kind)
    save(figure, HERE / "driving_goals.png")


def draw_plan(axis: Any, plans: Plans, chunk: Any, **style: Any) -> None:
    """A chunk ``(H, A)`` as the track that it leads along, the car looking up."""
    track = np.pad(plans.poses(chunk[None])[0, :, :2], ((1, 0), (0, 0)))
    axis.plot(-track[:, 1], track[:, 0], **style)


if __name__ == "__main__":
    run(goals)
