"""One episode on film: a robot gets a goal video and a sentence, and follows both by what it sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from envs.drive import Driver, PolicyDriver, Row, run_episode
from envs.g1.assets import available
from envs.nav import Embodiment
from envs.pictures import unavailable
from envs.video_nav import FRAMES, VideoNavEnv
from envs.world import make, robot
from kinoflow.film import Film, at_rate
from policies.load import load_policy
from policies.runtime.worker import InlineWorker
from policies.spec import Array, ChunkPolicy

ENV = "kinoflow/VideoNav-v0"
BUNDLE = Path(__file__).parents[1] / "models" / "videonav_g1.kfb"
RATE_HZ = 5.0  # pictures per second of the film: they take longer than all the rest
OPENGL = "apt-get install libegl1 libgl1, then export MUJOCO_GL=egl"
CAPTION, MARGIN = 48, 10  # px, height of the line of text and what is left free around a label
INK, PAPER = (25, 25, 25), 255


def missing(bundle: Path = BUNDLE, embodiment: Embodiment = "g1") -> str:
    """What the scene needs and this machine does not have, with the remedies; empty if all is there."""
    picture, body = unavailable(), available() if embodiment == "g1" else None
    reasons = (
        "" if bundle.is_file() else f"there is no {bundle}",
        f"no walking G1 on this machine ({body})" if body else "",
        f"no picture can be rendered ({picture}); on Debian or Ubuntu: {OPENGL}" if picture else "",
    )
    return ", and ".join(filter(None, reasons))


def video_scene(path: Path, bundle: Path = BUNDLE, embodiment: Embodiment = "g1", seed: int = 0) -> str:
    """Film a robot that follows a goal video and a sentence.

    Args:
        path: MP4 to write, `RATE_HZ` pictures per second of simulated time, see `panel`.
        bundle: Policy for ``kinoflow/VideoNav-v0``.
        embodiment: Robot.
        seed: Seed of the room, of the sentence and of the sampling noise.

    Returns:
        What came of it, in one line.

    Raises:
        ContractError: The bundle is damaged or does not fit the robot.
        OSError: The film cannot be written.
    """
    env = stage(embodiment)
    try:
        env.reset(seed=seed)
        with Film(path, RATE_HZ) as film:
            row = perform(env, pilot(env, load_policy(str(bundle)), seed), seed, film.add)
        return outcome(env, row)
    finally:
        env.close()


def stage(embodiment: Embodiment) -> Any:
    """Make the environment so that it also shows the robot from outside."""
    return make(ENV, robot(embodiment), commands=True, render_mode="rgb_array")


def pilot(env: VideoNavEnv, policy: ChunkPolicy, seed: int) -> Driver:
    """Let a policy drive in simulated time; ``seed`` is that of its sampling noise.

    Raises:
        ContractError: It does not fit the robot.
    """
    policy.spec.require(env.contract)
    return PolicyDriver(InlineWorker(policy), seed)


def perform(env: VideoNavEnv, by: Driver, seed: int, keep: Callable[[Array], None]) -> Row:
    """Drive one episode and hand over a `panel` of it `RATE_HZ` times per second of simulated time.

    Args:
        env: Freshly reset, made by `stage`.
        by: Who drives.
        seed: Seed of the episode.
        keep: Takes each picture.
    """
    return run_episode(env, by, seed, at_rate(env, RATE_HZ, lambda: keep(panel(env))))


def panel(env: VideoNavEnv) -> Array:
    """Picture ``(H, W, 3)`` uint8 of one moment.

    The sentence is above; below are the robot from outside and, beside it, what its camera sees now and the frame of
    the goal video that was taken nearest to where it is.
    """
    outside = env.render()
    side = len(outside) // 2
    frame = int(apart(env.frame_poses, env.pose[[0, 1, 3]]).argmin())
    now = labelled(env.observe()["camera"], side, f"camera, {env.time:.1f} s")
    goal = labelled(env.goal_video[frame], side, f"goal video, frame {frame + 1} of {FRAMES}")
    below = np.concatenate([outside, np.concatenate([now, goal])], 1)
    return np.concatenate([_caption(env.instruction, below.shape[1]), below])


def apart(poses: Array, pose: Array) -> Array:
    """How far poses ``(..., 3)`` x, y in m and yaw in rad are from one ``(3,)``; facing 1 rad aside counts as 1 m."""
    away = np.asarray(poses) - pose
    return np.sqrt(away[..., 0] ** 2 + away[..., 1] ** 2 + (2 * np.sin(away[..., 2] / 2)) ** 2)


def outcome(env: VideoNavEnv, row: Row) -> str:
    """What came of an episode, in one line."""
    happened = [
        (row.success, "arrived"),
        (row.metrics["fall"], "fell"),
        (row.metrics["collision"], "touched something"),
        (row.metrics["stopped_at_other"], "stopped at the other place"),
        (row.metrics["gave_up"], "stopped elsewhere"),
        (True, "ran out of time"),
    ]
    what = next(words for came, words in happened if came)
    where = f"{row.metrics['final_distance_m']:.2f} m from where to stop"
    return f"'{env.instruction}': {what}, {where} after {row.time_s:.1f} s"


def labelled(picture: Array, side: int, text: str) -> Array:
    """A ``(3, S, S)`` picture as ``(side, side, 3)``, with a text at its lower edge."""
    import cv2

    large = cv2.resize(picture.transpose(1, 2, 0), (side, side), interpolation=cv2.INTER_CUBIC)
    strip = large[-2 * MARGIN :]
    strip[:] = strip // 3
    return _written(large, text, side - MARGIN // 2, 0.45, (255, 255, 255))


def _caption(text: str, width: int) -> Array:
    return _written(np.full((CAPTION, width, 3), PAPER, np.uint8), text, CAPTION - 2 * MARGIN + 5, 0.8, INK)


def _written(picture: Array, text: str, baseline: int, size: float, colour: tuple[int, int, int]) -> Array:
    """Write a line that is as large as asked for, or as fits."""
    import cv2

    font, room = cv2.FONT_HERSHEY_SIMPLEX, picture.shape[1] - 2 * MARGIN
    (width, _), _ = cv2.getTextSize(text, font, size, 1)
    cv2.putText(picture, text, (MARGIN, baseline), font, size * min(1, room / width), colour, 1, cv2.LINE_AA)
    return picture
