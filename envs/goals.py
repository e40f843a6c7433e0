"""Goals without demonstrations: what a policy has to read, and where it should stop. Nothing drives for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from envs.episodes import Episode
from envs.video_nav import FRAMES, STOP_FRAME, TEXT
from envs.video_rooms import COLOURS, DOOR, KINDS, Landmark
from policies.senses import FOVY, VIDEO_PATH
from policies.sentence import sentence_bytes
from policies.spec import Array, Feature, Spec

STOP_SIGHT = Feature("stop_sight", (FRAMES, 2), "rad, m", "head_camera", label=True)
WORDS = (*COLOURS, *KINDS, DOOR)
STOP_WORDS = Feature("stop_words", (len(WORDS),), "1", "text", label=True)
OUT_OF_SIGHT = 9.0  # rad, no bearing


def goal_contract(env: Any) -> Spec:
    """Contract of episodes of goals: the video of a room is constant, each step has another sentence and its labels.

    The sense ``video_path`` is exact here: measuring it in so many videos would take hours. What is measured is
    longer or shorter by some percent, mostly because the mount of the camera is not known exactly.

    The labels are the frame at which it says to stop; at which bearing to the left each frame shows the landmark to
    stop at, `OUT_OF_SIGHT` where it does not, and how far away that is; and which of `WORDS` name that landmark.
    """
    features = {feature.name: feature for feature in env.contract.observations}
    changing = (replace(feature, constant=False) for feature in (features["instruction"], STOP_FRAME))
    seen = (features["goal_video"], VIDEO_PATH, *changing)
    return replace(env.contract, observations=(*seen, STOP_SIGHT, STOP_WORDS))


def record_goals(env: Any, seed: int) -> Episode:
    """Record all sentences of one room, a step each; actions are zero because there are none.

    Args:
        env: kinoflow/VideoNav-v0.
        seed: Seed of the room.
    """
    observation, _ = env.reset(seed=seed)
    rows = [(text, name) for name, sentences in env.sentences.items() for text in sentences]
    sights = {name: _sights(env, name) for name in env.sentences}
    rest = np.zeros((len(rows), env.contract.action.dim), np.float32)
    return Episode(
        seed=seed,
        observations={
            "goal_video": observation["goal_video"][None],
            "video_path": from_first(env.frame_poses)[None],
            "instruction": np.stack([sentence_bytes(text, TEXT) for text, _ in rows]),
            "stop_frame": np.array([[env.stop_frames[name]] for _, name in rows], np.float32),
            "stop_sight": np.stack([sights[name] for _, name in rows]),
            "stop_words": np.stack([_words(env.targets[name]) for _, name in rows]),
        },
        actions=rest,
        executed=rest,
        rewards=np.zeros(len(rows), np.float32),
        states=np.zeros((len(rows), 0), np.float32),
    )


def from_first(poses: Array) -> Array:
    """Poses ``(N, 3)`` x, y in m and yaw in rad, seen from the first one, float32; the yaw is not wrapped."""
    cos, sin = np.cos(poses[0, 2]), np.sin(poses[0, 2])
    x, y = (poses[:, :2] - poses[0, :2]).T
    return np.stack([cos * x + sin * y, cos * y - sin * x, poses[:, 2] - poses[0, 2]], -1).astype(np.float32)


def _sights(env: Any, name: str) -> Array:
    target, poses = env.targets[name], env.frame_poses
    away = np.hypot(target.x - poses[:, 0], target.y - poses[:, 1])
    seen = [target.bearing(pose) if env.room.sees(pose, target, FOVY / 2) else OUT_OF_SIGHT for pose in poses]
    return np.stack([seen, away], -1).astype(np.float32)


def _words(target: Landmark) -> Array:
    return np.array([word in (target.colour, target.kind) for word in WORDS], np.float32)
