"""Draws the figures of a robot that follows goal videos and sentences.

Run: python docs/navigation_figures.py docs models/videonav_g1.kfb
Another robot: python docs/navigation_figures.py docs models/videonav_wheeled.kfb --embodiment wheeled
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from envs.drive import Driver, Row, run_episode
from envs.nav import POLICY_HZ, Embodiment
from envs.rooms import HALF_SIZE
from envs.video_nav import FRAMES, VideoNavEnv
from envs.video_rooms import DOOR, Landmark
from kinoflow import figures
from kinoflow.film import at_rate
from kinoflow.video_scene import BUNDLE, RATE_HZ, apart, outcome, perform, pilot, stage
from policies.files import replace_file
from policies.load import load_policy
from policies.spec import Array

SEEDS = (0, 1, 2, 3)  # rooms from above; those of the training begin at 1,000,000
FILMED = (0, "last")  # seed and instruction of the strip and of the film
SHOWN = np.linspace(0, FRAMES - 1, 8).round().astype(int)  # frames of the strip
COLOURS = {"first": "#1b6ca8", "last": "#d98324"}
WIDTHS = {"first": 4.5, "last": 1.8}  # the second path lies on the first one
FILM_BYTES, FILM_WIDTHS, FILM_COLOURS = 1_500_000, (660, 550, 440, 352, 264, 176), 96

Pilot = Callable[[VideoNavEnv, int], Driver]


@dataclass(frozen=True)
class Take:
    """One episode: what came of it, and ten times a second the pose (x, y, yaw) and what the camera saw."""

    row: Row
    poses: Array
    pictures: Array


def take(env: VideoNavEnv, by: Pilot, seed: int, instruction: str) -> Take:
    """Drive one episode and take note of it."""
    env.reset(seed=seed, options={"instruction": instruction})
    poses, pictures = [env.pose[[0, 1, 3]]], [env.observe()["camera"]]

    def note() -> None:
        poses.append(env.pose[[0, 1, 3]])
        pictures.append(env.observe()["camera"])

    row = run_episode(env, by(env, seed), seed, at_rate(env, POLICY_HZ, note))
    print(f"seed {seed}, {outcome(env, row)}")
    return Take(row, np.array(poses), np.array(pictures))


def strip(env: VideoNavEnv, taken: Take, path: Path) -> None:
    """Frames of the goal video, and below each what the camera saw when the robot was nearest to where it was taken."""
    figure, axes = figures.canvas(1.6 * len(SHOWN), 4.0, len(SHOWN), 2)
    stop = SHOWN[np.abs(SHOWN - env.stop_frames[env.active]).argmin()]
    for frame, above, below in zip(SHOWN, axes, axes[len(SHOWN) :], strict=False):
        pose = env.frame_poses[frame]
        nearest = int(apart(taken.poses, pose).argmin())
        away = np.linalg.norm(taken.poses[nearest, :2] - pose[:2])
        colour = COLOURS[env.active] if frame == stop else "none"
        _picture(above, env.goal_video[frame], f"frame {frame + 1}", colour)
        _picture(below, taken.pictures[nearest], f"{nearest / POLICY_HZ:.1f} s, {away:.2f} m away", colour)
    axes[0].set_ylabel("goal video")
    axes[len(SHOWN)].set_ylabel("camera of the robot")
    figure.suptitle(env.instruction, fontsize=12)
    figures.save(figure, path)


def _picture(axis: Any, picture: Array, title: str, colour: str) -> None:
    axis.imshow(picture.transpose(1, 2, 0))
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    axis.spines[:].set(visible=True, color=colour, linewidth=3)


def rooms(env: VideoNavEnv, by: Pilot, path: Path) -> Take:
    """Rooms from above with the robot's path under both sentences; returns the episode that is filmed."""
    figure, axes = figures.canvas(9.6, 10.6, 2, len(SEEDS) // 2)
    takes = {}
    for seed, axis in zip(SEEDS, axes, strict=True):
        for instruction in COLOURS:
            takes[seed, instruction] = take(env, by, seed, instruction)
            _drive(axis, env, takes[seed, instruction])
        draw_room(axis, env)
    figures.save(figure, path)
    return takes[FILMED]


def draw_room(axis: Any, env: VideoNavEnv) -> None:
    """Draw a room from above: landmarks, the way of the video, and where to stop."""
    from matplotlib.patches import Circle, Rectangle

    walls = Rectangle((-HALF_SIZE, -HALF_SIZE), 2 * HALF_SIZE, 2 * HALF_SIZE, fill=False, lw=1)
    axis.add_patch(walls)
    for item in env.landmarks:
        _landmark(axis, item, env.room.look.colour(item.colour))
    axis.plot(*env.path[:, :2].T, "--", color="black", lw=1, zorder=2)
    axis.plot(*env.frame_poses[:, :2].T, ".", color="black", markersize=4, zorder=2)
    x, y, yaw = env.room.start
    axis.plot(x, y, marker=(3, 0, np.degrees(yaw) - 90), color="black", markersize=11, zorder=5)
    for instruction, (x, y, _) in env.stops.items():
        axis.add_patch(Circle((x, y), env.radius, facecolor=COLOURS[instruction], alpha=0.25, zorder=1))
        axis.text(x, y + env.radius, instruction, color=COLOURS[instruction], ha="center", va="bottom", fontsize=9)
    edge = HALF_SIZE + 0.4
    axis.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _drive(axis: Any, env: VideoNavEnv, taken: Take) -> None:
    """Draw a path, whose end is crossed out if it failed, and write its sentence: that of the last place is below."""
    colour, end = COLOURS[env.active], "o" if taken.row.success else "X"
    axis.plot(*taken.poses[:, :2].T, color=colour, lw=WIDTHS[env.active], zorder=3)
    axis.plot(*taken.poses[-1, :2], end, color=colour, markersize=9, markeredgecolor="black", zorder=4)
    write = axis.set_title if env.active == "first" else axis.set_xlabel
    write(env.instruction, color=colour, fontsize=9)


def _landmark(axis: Any, item: Landmark, colour: Sequence[float]) -> None:
    for shape in _outlines(item):
        shape.set(facecolor=colour, edgecolor="#555555", linewidth=0.8, zorder=2)
        axis.add_patch(shape)
    if item.kind == DOOR:  # named outside, along its wall
        x, y = item.x - 0.25 * np.cos(item.yaw), item.y - 0.25 * np.sin(item.yaw)
        upright = 90 if abs(np.cos(item.yaw)) > 0.5 else 0
        axis.text(x, y, item.name, ha="center", va="center", rotation=upright, fontsize=7)
    else:
        axis.text(item.x, item.y - item.half - 0.1, item.name, ha="center", va="top", fontsize=7, zorder=5)


def _outlines(item: Landmark) -> list[Any]:
    """What tells the kinds apart from above: a ball has a post below it, a cone is drawn from the side."""
    from matplotlib.patches import Circle, Rectangle, RegularPolygon

    if item.kind == "cone":
        return [RegularPolygon((item.x, item.y), 3, radius=1.2 * item.half)]
    if item.kind in ("cylinder", "ball"):
        return [Circle((item.x, item.y), item.half * size) for size in (1.0, 0.4)[: 1 + (item.kind == "ball")]]
    depth = 0.06 if item.kind == DOOR else item.half
    corner, angle = (item.x - depth, item.y - item.half), np.degrees(item.yaw)
    return [Rectangle(corner, 2 * depth, 2 * item.half, angle=angle, rotation_point="center")]


def film(env: VideoNavEnv, by: Pilot, path: Path) -> None:
    """Write an episode as a GIF, as large as `FILM_BYTES` allow."""
    seed, instruction = FILMED
    env.reset(seed=seed, options={"instruction": instruction})
    panels: list[Array] = []
    perform(env, by(env, seed), seed, panels.append)
    for width in FILM_WIDTHS:
        content = gif(panels, width)
        if len(content) <= FILM_BYTES:
            break
    replace_file(path, content)
    print(f"{path}: {len(panels)} pictures, {width} px wide, {len(content) / 1e6:.2f} MB")


def gif(pictures: Sequence[Array], width: int) -> bytes:
    """Encode ``(H, W, 3)`` pictures as an endless GIF in real time, with the colours of them all."""
    height = round(len(pictures[0]) * width / pictures[0].shape[1])
    images = [Image.fromarray(p).resize((width, height), Image.Resampling.LANCZOS) for p in pictures]
    sample = np.concatenate([np.asarray(image) for image in images[:: max(1, len(images) // 8)]])
    palette = Image.fromarray(sample).quantize(FILM_COLOURS)
    flat = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    flat[0].save(
        buffer, "GIF", save_all=True, append_images=flat[1:], duration=round(1000 / RATE_HZ), loop=0, optimize=True
    )
    return buffer.getvalue()


def draw(out: Path, embodiment: Embodiment, by: Pilot) -> None:
    """Drive all episodes and draw everything."""
    env = stage(embodiment)
    taken = rooms(env, by, out / "navigation_paths.png")
    film(env, by, out / "navigation_video.gif")  # leaves the room of the strip behind
    strip(env, taken, out / "navigation_strip.png")
    env.close()


def main(
    out: tyro.conf.Positional[Path], bundle: tyro.conf.Positional[Path] = BUNDLE, embodiment: Embodiment = "g1"
) -> None:
    """Draw navigation_paths.png, navigation_strip.png and navigation_video.gif.

    Args:
        out: Folder for them.
        bundle: Policy for kinoflow/VideoNav-v0.
        embodiment: Robot that it drives.
    """
    policy = load_policy(str(bundle))
    draw(out, embodiment, lambda env, seed: pilot(env, policy, seed))


if __name__ == "__main__":
    tyro.cli(main)
