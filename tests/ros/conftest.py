"""A bundle that drives straight at the goal, for every test of the nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import straight

from envs.nav import NavEnv

SEED = 21  # its first goal is 4.4 m away on a free line, almost straight ahead


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return straight.write(
        tmp_path_factory.mktemp("bundle") / "straight.kfb", NavEnv("wheeled").contract, {"embodiment": "wheeled"}
    )


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED
