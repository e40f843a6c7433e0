"""The benchmark of several agents that are driven."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.four_agents import ALONE, DISTANCE, GRAPH, REPAIRED, as_text, main, measure, outcome, sample_ends
from planners.xdiffuser import XDiffuser
from policies.spec import ContractError

pytest.importorskip("ogbench", reason="needs OGBench: pip install 'kinoflow[maze]'")
PLANNER = Path(__file__).parent.parent / "models" / "maze_giant.kfp"


def test_starts_and_goals_are_apart() -> None:
    graph = XDiffuser.load(PLANNER).graph
    ends = sample_ends(graph, 4, np.random.default_rng(0))
    assert len({*ends.ravel()}) == 8
    for kind in ends:
        apart = np.linalg.norm(graph.nodes[kind][:, None] - graph.nodes[kind], axis=-1)
        assert apart[~np.eye(4, dtype=bool)].min() > DISTANCE


def test_who_arrives_late_or_touches_is_found() -> None:
    line = np.stack([np.linspace(0, 9, 10), np.zeros(10)], -1)
    apart = outcome([line, line + np.array([0, 3])], np.array([[9.0, 0], [9, 3]]))
    assert apart == {"arrived": True, "least_m": 3.0, "clear": True, "steps": 10}
    assert not outcome([line, line[::-1] + np.array([0, 0.5])], np.array([[9.0, 0], [0, 0.5]]))["clear"]
    late = outcome([line[:5], line + np.array([0, 3])], np.array([[9.0, 0], [9, 3]]))
    assert not late["arrived"] and not late["clear"]
    parked = outcome([line[:1], line + np.array([0, 1])], np.array([[0.0, 0], [9, 1]]))
    assert parked["least_m"] == 1.0  # who has arrived stays there as an obstacle


def test_a_small_run_has_every_number_and_a_text() -> None:
    result = measure(XDiffuser.load(PLANNER), 2, 2, 500_000)
    methods = result["methods"]
    assert methods[REPAIRED]["clear"]["mean"] == methods[GRAPH]["clear"]["mean"] == 1.0
    assert methods[REPAIRED]["least_m"] > 1.4 and {*methods} > {ALONE}
    assert "denoised and repaired" in as_text(result) and result["plan_p50_s"] > 0


def test_a_planner_of_another_place_is_refused() -> None:
    with pytest.raises(ContractError, match="was made for kinoflow/MazeNav-v0, not for kinoflow/Maze-giant-v0"):
        main(planner=PLANNER.with_name("mazenav.kfp"))
    with pytest.raises(ContractError, match="instances is 0"):
        main(instances=0)
