"""Videos of episodes. Needs an OpenGL library; see `kinoflow doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium

from envs.drive import COMMAND_HZ, run_episode
from envs.evaluate import EvaluateConfig, driver_for
from policies.load import load_policy

EVERY = 5  # ticks per frame: 10 frames per second


def film(policy: str, config: EvaluateConfig, seed: int, path: Path) -> None:
    """Drive one episode and write what the following camera sees as an MP4 in real time.

    Args:
        policy: Bundle or run directory.
        config: Environment and embodiment.
        seed: Seed of the episode.
        path: Video to write.
    """
    import cv2

    env: Any = gymnasium.make(
        config.env,
        embodiment=config.embodiment,
        step_hz=COMMAND_HZ,
        render_mode="rgb_array",
        disable_env_checker=True,
    ).unwrapped
    env.reset(seed=seed)
    driver = driver_for(policy, load_policy(policy), env, seed, config)
    height, width = env.render().shape[:2]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), COMMAND_HZ / EVERY, (width, height))
    ticks = iter(range(10**9))

    def frame() -> None:
        if next(ticks) % EVERY == 0:
            video.write(env.render()[..., ::-1])

    try:
        run_episode(env, driver, seed, frame)
    finally:
        video.release()
        env.close()
