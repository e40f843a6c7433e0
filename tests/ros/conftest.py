"""A bundle that drives straight at the goal, one that sees pictures, and planners, for every test of the nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import seeing
import straight
import tiny_planner

from envs.nav import NavEnv
from envs.video_nav import VideoNavEnv

SEED = 21  # its first goal is 4.4 m away on a free line, almost straight ahead


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return straight.write(
        tmp_path_factory.mktemp("bundle") / "straight.kfb", NavEnv("wheeled").contract, {"embodiment": "wheeled"}
    )


@pytest.fixture(scope="session")
def seeing_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing.write(tmp_path_factory.mktemp("bundle") / "seeing.kfb", VideoNavEnv("wheeled").contract)


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


@pytest.fixture(scope="session")
def planner_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The file of a planner for the maze of a seed."""
    folder = tmp_path_factory.mktemp("planner")

    def file(seed: int) -> Path:
        path = folder / f"{seed}.kfp"
        return path if path.exists() else tiny_planner.write(path, seed)

    return file
