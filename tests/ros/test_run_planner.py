"""``kinoflow run`` with a planner: simulator, planner and guard as processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kinoflow.run import RunConfig, run
from policies.spec import ContractError

PLANNER, ENV = Path(__file__).parent.parent.parent / "models" / "mazenav.kfp", "kinoflow/MazeNav-v0"
ATTEMPTS = 3


def test_a_base_drives_along_plans() -> None:
    pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")
    for _ in range(ATTEMPTS):
        report = run(RunConfig(PLANNER, ENV, seconds=8), lambda *state: None)
        assert report["mode"] == "ros2" and report["commands"] > 0 and report["received_hz"] > 0
        assert report["plans"] >= 1 and report["plan_ms"]["max"] > 0 and report["planner_restarts"] == 0
        assert (report["falls"], report["collisions"]) == (0, 0)
        if report["ended"] in ("the time is over", "all goals reached"):  # a busy machine may make the guard stop it
            path = np.array(report["path"])[:, 1:]
            assert np.linalg.norm(path[-1] - path[0]) > 0.3
            break


def test_what_does_not_fit_is_refused_before_anything_starts() -> None:
    for config, message in (
        (RunConfig(PLANNER, "kinoflow/Nav-v0"), "was made for kinoflow/MazeNav-v0"),
        (RunConfig(PLANNER, ENV, seed=3), "train one with --room 3"),
        (RunConfig(PLANNER, ENV, in_process=True), "a planner runs as a ROS 2 node"),
    ):
        with pytest.raises(ContractError, match=message):
            run(config, lambda *state: None)
