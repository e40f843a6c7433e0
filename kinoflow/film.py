"""Videos of episodes. Needs an OpenGL library; see `kinoflow doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envs.drive import run_episode
from envs.evaluate import EvaluateConfig, driver_for
from envs.world import make, robot
from policies.load import load_policy

FRAMES_HZ = 10.0


def film(policy: str, config: EvaluateConfig, seed: int, path: Path) -> None:
    """Drive one episode and write what the following camera sees as an MP4 in real time.

    Args:
        policy: Bundle or run directory.
        config: Environment and embodiment.
        seed: Seed of the episode.
        path: Video to write.
    """
    import cv2

    env: Any = make(config.env, robot(config.embodiment), commands=True, render_mode="rgb_array")
    env.reset(seed=seed)
    driver = driver_for(policy, load_policy(policy), env, seed, config)
    height, width = env.render().shape[:2]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_HZ, (width, height))
    frames = 0

    def frame() -> None:
        nonlocal frames
        if env.time * FRAMES_HZ >= frames + 1 - 1e-6:
            video.write(env.render()[..., ::-1])
            frames += 1

    try:
        run_episode(env, driver, seed, frame)
    finally:
        video.release()
        env.close()
