"""Pictures of driving: roads from above, plans on them, what was done when something else was commanded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.driving import DrivingEnv
from envs.roads import Scene
from envs.traffic import box_corners
from kinoflow.figures import canvas, save
from policies.spec import Array

ROAD, USER, PERSON, OWN = "#c9ced4", "#4a4e57", "#d98324", "#2a9d5c"
REACH = (15.0, 60.0)  # m behind and ahead of the car that a picture shows


def draw_road(axis: Any, scene: Scene) -> None:
    """Draw the lanes of a scene, world frame."""
    for lane in scene.lanes:
        axis.fill(*lane.polygon.T, color=ROAD, linewidth=0)
    axis.set_aspect("equal")


def draw_moment(axis: Any, env: DrivingEnv) -> None:
    """Draw where everybody is, in the frame of the car, which looks up."""
    for lane in env.scene.lanes:
        axis.fill(*upright(lane.polygon, env.pose).T, color=ROAD, linewidth=0)
    poses, sizes = (values[0] for values in env.traffic.boxes)
    for corners, person, there in zip(
        box_corners(poses, sizes), env.traffic.person[0], env.traffic.present[0], strict=True
    ):
        if there:
            axis.fill(*upright(corners, env.pose).T, color=PERSON if person else USER)
    pose, size = env.traffic.own_box
    axis.fill(*upright(box_corners(pose[0], size), env.pose).T, color=OWN)
    axis.set(xlim=(-25, 25), ylim=(-REACH[0], REACH[1]), aspect="equal", xticks=[], yticks=[])


def upright(points: Array, pose: Array) -> Array:
    """Points ``(N, 2)`` of the world as a picture shows them in which a pose looks up."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    ahead, left = ((points - pose[:2]) @ np.array([[cos, -sin], [sin, cos]])).T
    return np.stack([-left, ahead], -1)


def draw_plans(axis: Any, plans: Mapping[str, Array]) -> None:
    """Draw plans ``(H, 3)`` of the frame of the car by name."""
    from matplotlib import colormaps

    for index, (name, poses) in enumerate(plans.items()):
        track = np.concatenate([np.zeros((1, 2)), poses[:, :2]])
        axis.plot(-track[:, 1], track[:, 0], lw=2, color=colormaps["tab10"](index % 10), label=name)
    axis.legend(fontsize=7, loc="lower right")


def write_sweep(env: DrivingEnv, plans: Mapping[str, Array], sweep: Mapping[str, Any], path: Path) -> None:
    """Write a picture of the plans for each command in one scene, beside what was done over all scenes."""
    figure, (left, right) = canvas(11, 6, 2)
    draw_moment(left, env)
    draw_plans(left, plans)
    draw_confusion(right, sweep["confusion"], sweep["intents"])
    save(figure, path)


def draw_confusion(axis: Any, confusion: Mapping[str, Sequence[int]], intents: Sequence[str]) -> None:
    """Draw shares of what was done (columns) per command (rows)."""
    counts = np.array(list(confusion.values()), float)
    axis.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_yticks(range(len(confusion)), list(confusion), fontsize=7)
    axis.set_xticks(range(len(intents)), intents, rotation=90, fontsize=7)
    axis.set(xlabel="done", ylabel="commanded, where that is possible")
