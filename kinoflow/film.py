"""Videos of episodes. Needs an OpenGL library; see `kinoflow doctor`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from envs.drive import run_episode
from envs.evaluate import EvaluateConfig, driver_for
from envs.world import World, make, robot
from policies.load import load_policy
from policies.spec import Array

FRAMES_HZ = 10.0


class Film:
    """An MP4 that is there once it is complete; the first picture decides on its size.

    Args:
        path: Video to write.
        rate_hz: Pictures per second.
    """

    def __init__(self, path: Path, rate_hz: float = FRAMES_HZ) -> None:
        self._path, self._rate_hz = path, rate_hz
        self._part = path.with_name(f".{path.stem}.part.mp4")
        self._video: Any = None

    def add(self, picture: Array) -> None:
        """Append a ``(H, W, 3)`` uint8 picture.

        Raises:
            OSError: The file cannot be written.
        """
        import cv2

        if self._video is None:
            height, width = picture.shape[:2]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._video = cv2.VideoWriter(str(self._part), code, self._rate_hz, (width, height))
            if not self._video.isOpened():
                raise OSError(f"cannot write a film of {width} x {height} to {self._path}; is its folder there?")
        self._video.write(np.ascontiguousarray(picture[..., ::-1]))

    def __enter__(self) -> Film:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._video is None:
            return
        self._video.release()
        if error:
            self._part.unlink(missing_ok=True)
        else:
            self._part.replace(self._path)


def at_rate(env: World, rate_hz: float, act: Callable[[], None]) -> Callable[[], None]:
    """What to do after every tick of an episode so that ``act`` is called ``rate_hz`` times per simulated second."""
    done = 0

    def after_tick() -> None:
        nonlocal done
        if env.time * rate_hz >= done + 1 - 1e-6:
            act()
            done += 1

    return after_tick


def film(policy: str, config: EvaluateConfig, seed: int, path: Path) -> None:
    """Drive one episode and write what the following camera sees as an MP4 in real time.

    Args:
        policy: Bundle or run directory.
        config: Environment and embodiment.
        seed: Seed of the episode.
        path: Video to write.

    Raises:
        OSError: The video cannot be written.
    """
    env: Any = make(config.env, robot(config.embodiment), commands=True, render_mode="rgb_array")
    try:
        env.reset(seed=seed)
        driver = driver_for(policy, load_policy(policy), env, seed, config)
        with Film(path) as video:
            run_episode(env, driver, seed, at_rate(env, FRAMES_HZ, lambda: video.add(env.render())))
    finally:
        env.close()
