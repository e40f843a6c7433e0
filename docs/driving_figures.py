"""Figures of docs/driving.md: what GoalFlow chooses from, intents commanded in one scene, what guidance costs.

Run: python docs/driving_figures.py, after python docs/driving_study.py weights
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from driving_study import RESULTS, SWEPT, candidates

from benchmarks.entry import run
from envs.evaluate import VALIDATION_SEED
from kinoflow.driving_figures import draw_moment
from kinoflow.driving_plans import Case, Plans, case, valid
from kinoflow.figures import canvas, save
from policies.load import load_trained
from policies.maneuver import INTENTS

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
GOALFLOW, INTENT = MODELS / "driving_goalflow.kfb", MODELS / "driving_intent.kfb"
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


def intents() -> None:
    """Plans for each command in one scene; those that break a rule of the road are dashed."""
    here = case(SEED, "four-way")
    figure, axes = canvas(11, 7.5, 4, 2)
    for axis, intent in zip(axes, SWEPT, strict=True):
        plans = Plans(load_trained(f"{INTENT}@intent={intent}"))
        chunk = plans.act(here)
        fine = bool(valid(plans.score(here, chunk[None]))[0])
        draw_moment(axis, here.env)
        draw_plan(axis, plans, chunk, color="#d1495b", lw=2.5, ls="-" if fine else "--")
        done = INTENTS[int(plans.maneuvers.labels(torch.from_numpy(chunk)))]
        axis.set_title(f"{intent}: {feasibility(here, intent)}\ndoes {done}", fontsize=9)
    save(figure, HERE / "driving_intents.png")


def feasibility(here: Case, intent: str) -> str:
    """Whether one of the reference drives of a scene follows an intent."""
    return "known" if INTENTS.index(intent) in here.feasible else "no drive known"


def weights() -> None:
    """Faithfulness and validity by the weight of guidance of a single chunk, and of the best of several."""
    found = json.loads((RESULTS / "driving_weights.json").read_text())
    rates = {"faithful": ":", "valid": "--", "faithful_and_valid": "-"}
    steps = sorted({int(name.split("_")[1]) for name in found if name.startswith("steps")})
    figure, axes = canvas(11, 3.6, len(steps))
    for axis, count in zip(axes, steps, strict=True):
        names = [name for name in found if name.startswith(f"steps_{count}_") and name.endswith("_all")]
        rows = {float(name.split("_")[3]): found[name] for name in names}
        for rate, style in rates.items():
            drawn = [row[rate] for row in rows.values()]
            (line,) = axis.plot([*rows], [row["mean"] for row in drawn], f"o{style}", label=rate.replace("_", " "))
        low, high = ([row[bound] for row in drawn] for bound in ("low", "high"))
        axis.fill_between([*rows], low, high, color=line.get_color(), alpha=0.2)
        best = found[f"steps_{count}_candidates"]["faithful_and_valid"]["mean"]
        axis.axhline(best, color="black", label="faithful and valid, best of candidates")
        axis.set(title=f"{count} step{'s' * (count > 1)}", xlabel="weight of guidance", ylim=(0, 1.02))
    axes[0].legend(fontsize=8)
    save(figure, HERE / "driving_weights.png")


def main() -> None:
    """Draw all of them."""
    for draw in (goals, intents, weights):
        draw()


if __name__ == "__main__":
    run(main)
