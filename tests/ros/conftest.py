"""A bundle that drives straight at the goal, and one that sees pictures, for every test of the nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import seeing
import straight

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
