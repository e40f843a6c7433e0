"""Figures of evaluations, trainings and runs. matplotlib is imported when a figure is drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from envs.rooms import HALF_SIZE, Room
from envs.world import make, robot
from policies.files import replace_file

COLOURS = {"policy": "#1b6ca8", "expert": "#2a9d5c", "straight line": "#d98324", "standing still": "#8a8f98"}


def canvas(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure of a size in inches, and its axes in reading order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes.ravel()


def draw_scene(axis: Any, report: Mapping[str, Any], seed: int) -> None:
    """Draw where an episode of a report takes place, from above, where its environment can be drawn."""
    world = make(report["env"], robot(report.get("embodiment")))
    world.reset(seed=seed)
    if hasattr(world, "room"):
        draw_room(axis, world.room)
    elif hasattr(world, "scene"):
        from kinoflow.driving_figures import draw_road

        draw_road(axis, world.scene)
    elif hasattr(world, "maze"):
        from kinoflow.plan_figures import draw_ends, draw_walls

        draw_walls(axis, world)
        draw_ends(axis, world.pose, world.goal)
    else:
        picture = world.render()
        axis.imshow(picture, extent=(0, *world.extent, 0))
        axis.set(xticks=[], yticks=[])
    world.close()


def draw_room(axis: Any, room: Room) -> None:
    """Draw obstacles, start and goal of a room from above."""
    from matplotlib.patches import Circle, Rectangle

    for item in room.obstacles:
        if item.kind == "cylinder":
            axis.add_patch(Circle((item.x, item.y), item.half[0], color="#b9c0c8"))
        else:
            corner = (item.x - item.half[0], item.y - item.half[1])
            size = (2 * item.half[0], 2 * item.half[1])
            box = Rectangle(corner, *size, angle=np.degrees(item.yaw), rotation_point="center", color="#b9c0c8")
            axis.add_patch(box)
    axis.plot(*room.start[:2], "o", color="black", markersize=5)
    axis.plot(*room.goal[:2], "*", color="#c0392b", markersize=11)
    axis.set(xlim=(-HALF_SIZE, HALF_SIZE), ylim=(-HALF_SIZE, HALF_SIZE), aspect="equal", xticks=[], yticks=[])
    axis.spines[["top", "right"]].set_visible(True)


def paths(report: Mapping[str, Any], count: int = 4) -> Any:
    """Paths from above in the first rooms of an evaluation, all drivers overlaid."""
    figure, axes = canvas(3.1 * count, 3.3, count)
    rows = report["rows"]
    for index, axis in enumerate(axes[: len(rows[report["policy"]])]):
        draw_scene(axis, report, rows[report["policy"]][index]["seed"])
        for name, of_name in rows.items():
            row, key = of_name[index], "policy" if name == report["policy"] else name
            axis.plot(*np.array(row["path"]).T, color=COLOURS.get(key, "#7d5ba6"), lw=2 if key == "policy" else 1.2)
            if row.get("collision"):
                axis.plot(*row["path"][-1], "x", color=COLOURS.get(key, "#7d5ba6"), markersize=8, mew=2)
        axis.set_title(f"seed {rows[report['policy']][index]['seed']}", fontsize=9)
    return figure


def success(report: Mapping[str, Any]) -> Any:
    """Success of every driver with its Wilson interval."""
    drivers = {report["policy"]: report, **report["baselines"]}
    figure, (axis,) = canvas(5.2, 0.5 * len(drivers) + 1)
    for position, (name, row) in enumerate(drivers.items()):
        rate, key = row["success"], "policy" if name == report["policy"] else name
        axis.barh(position, rate["mean"], color=COLOURS.get(key, "#7d5ba6"))
        axis.plot([rate["low"], rate["high"]], [position, position], color="black", lw=1.5)
        axis.text(
            1.02, position, f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]", va="center", fontsize=8
        )
    axis.set(
        yticks=range(len(drivers)),
        xlim=(0, 1.0),
        xlabel=f"success, {report['episodes']} unseen episodes, 95 % interval",
    )
    axis.set_yticklabels([Path(name).name for name in drivers], fontsize=8)
    axis.invert_yaxis()
    return figure


def loss(metrics: Path) -> Any:
    """Training loss and validation success over steps, from a metrics.jsonl."""
    entries = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure, (left, right) = canvas(8, 2.8, 2)
    training = [entry for entry in entries if "loss" in entry]
    checkpoints = [entry for entry in entries if "valid_loss" in entry]
    left.plot([e["step"] for e in training], [e["loss"] for e in training], color="#9db8cc", label="training")
    left.plot(
        [e["step"] for e in checkpoints],
        [e["valid_loss"] for e in checkpoints],
        "o-",
        color="#1b6ca8",
        label="validation",
    )
    left.set(xlabel="step", ylabel="flow-matching loss", yscale="log")
    left.legend(frameon=False, fontsize=8)
    scored = [entry for entry in checkpoints if "score" in entry]
    right.plot([e["step"] for e in scored], [e["score"] for e in scored], "o-", color="#2a9d5c")
    right.set(xlabel="step", ylabel="score on validation seeds", ylim=(0, 1.02))
    return figure


def histograms(columns: Sequence[tuple[str, np.ndarray]]) -> Any:
    """One histogram per (label, values)."""
    figure, axes = canvas(2.8 * len(columns), 2.4, len(columns))
    for axis, (label, values) in zip(axes, columns, strict=True):
        axis.hist(values, bins=40, color="#1b6ca8")
        axis.set(xlabel=label, yticks=[])
    return figure


def walk(room: Room, path: Sequence[Sequence[float]], goals: Sequence[Sequence[float]]) -> Any:
    """Path ``[[t, x, y], ...]`` of a run through its goals, from above."""
    figure, (axis,) = canvas(4.4, 4.4)
    draw_room(axis, room)
    points = np.array(path)
    shades = axis.scatter(points[:, 1], points[:, 2], c=points[:, 0], s=4, cmap="viridis")
    figure.colorbar(shades, label="time in s", shrink=0.7)
    for index, goal in enumerate(goals, 1):
        axis.plot(*goal[:2], "*", color="#c0392b", markersize=13)
        axis.annotate(str(index), goal[:2], textcoords="offset points", xytext=(7, 5), fontsize=10)
    return figure


def write_evaluation(report: Mapping[str, Any], out: Path) -> None:
    """Write report.json, paths.png and success.png."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "report.json", (json.dumps(report)).encode())
    for name, figure in (("paths", paths(report)), ("success", success(report))):
        save(figure, out / f"{name}.png")


def save(figure: Any, target: Path | BinaryIO) -> None:
    """Write a figure as PNG and release it."""
    from matplotlib import pyplot

    figure.savefig(target, dpi=110)
    pyplot.close(figure)
