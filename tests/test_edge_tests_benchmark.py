"""The comparison of edge tests drives, measures and counts what it says."""

from __future__ import annotations

from json import loads
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ogbench", reason="needs OGBench: pip install 'kinoflow[maze]'")

from benchmarks import edge_tests, point_robot
from benchmarks.edge_tests import METHODS, NODE_KINDS, OURS, World, as_text, main, plan_all, run_seed, summary
from benchmarks.point_robot import LIMIT, RADIUS, clearance, drive, least_steps, valid
from envs.mazes import SPEED, Maze
from planners.edges import Straight
from planners.graph import StateGraph
from planners.temporal import TemporalRecipe

CORNER = Maze.of_blocks(np.array([[False, False], [True, False]]))  # right, then up


@pytest.fixture(scope="module")
def world() -> World:
    return World.giant(300)


def test_the_robot_needs_the_steps_of_its_faster_axis() -> None:
    plans = [[[0.0, 0.0], [4.0, 0.4]], [[0.0, 0.0]], [[0.0, 0.0], [0.5, 0.0]]]
    driven = drive(CORNER, [np.array(plan) for plan in plans])
    np.testing.assert_array_equal(driven.steps, [20, 0, 3])
    assert driven.success.all()


def test_the_robot_slides_along_walls_and_does_not_pass_them() -> None:
    around = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]])
    through = np.array([[0.0, 0.0], [0.0, 4.0]])
    close = np.array([[0.0, 0.0], [2.4, 1.6], [4.0, 4.0]])  # nearer to the wall than the robot is wide
    driven = drive(CORNER, [around, through, close])
    assert driven.success.tolist() == [True, False, True]
    assert driven.steps[0] < LIMIT and driven.steps[1] == inf
    assert [valid(CORNER, plan) for plan in (around, through, close)] == [True, False, True]
    assert [valid(CORNER, plan, RADIUS) for plan in (around, through, close)] == [True, False, False]


def test_clearance_is_that_of_the_nearest_wall() -> None:
    plan = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]])
    assert clearance(CORNER, plan) == pytest.approx(2, abs=2e-3)
    assert clearance(CORNER, plan + np.array([0.5, 0.0])) == pytest.approx(1.5, abs=2e-3)
    assert clearance(CORNER, np.array([[0.0, 0.0], [4.0, 4.0]])) == 0 == clearance(CORNER, np.empty((0, 2)))


def test_least_steps_go_around_walls_and_make_use_of_diagonals() -> None:
    places = np.array([[0.0, 0.0], [4.0, 4.0], [4.0, 0.0]])
    steps = least_steps(CORNER, places, places)
    np.testing.assert_array_equal(steps, steps.T)
    assert steps[0, 2] == pytest.approx(4 / SPEED) and not steps.diagonal().any()
    # Up on the inside of the bend: 4 m each way, of which the corner saves 0.7 m on either side of it, on a grid.
    assert 4 / SPEED < steps[0, 1] < 8 / SPEED
    assert steps[0, 1] == pytest.approx((8 - 2 * 1.25) / SPEED, abs=0.5 / SPEED)
    mirrored = Maze.of_blocks(np.array([[False, False], [False, True]]))
    np.testing.assert_allclose(least_steps(mirrored, *2 * [places * [-1, 1] + np.array([4, 0])]), steps)
    walled = Maze.of_blocks(np.array([[False, True, False]]))
    assert least_steps(walled, np.array([[0.0, 0.0]]), np.array([[8.0, 0.0]])) == inf


def test_ours_is_the_graph_of_the_project(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_tests, "METHODS", (OURS,))
    straight, count = Straight(SPEED), 200
    nodes = NODE_KINDS["even"](world.trajectories, count, np.random.default_rng(3))
    found = edge_tests.graphs_of(world, nodes, straight)[OURS]
    usual = StateGraph.from_trajectories(world.trajectories, count, np.random.default_rng(3), straight)
    np.testing.assert_array_equal(found.nodes, usual.nodes)
    np.testing.assert_array_equal(found.edges, usual.edges)
    np.testing.assert_array_equal(found.costs, usual.costs)


def test_a_question_without_a_way_is_a_refusal(world: World) -> None:
    graph = StateGraph.build(np.array([[0.0, 0.0], [8.0, 8.0]]), np.empty((0, 2), int), Straight(SPEED))
    (points, cost), (_, none) = plan_all(graph, world.maze, np.array([[[0, 0], [0.5, 0.5]], [[0, 0], [8, 8]]], float))
    assert cost == pytest.approx(np.sqrt(0.5) / SPEED) and len(points) == 2 and none == inf


def test_a_summary_counts_by_graph() -> None:
    def task(good: bool, cost: float, steps: float) -> dict[str, object]:
        rates = dict.fromkeys(("valid", "valid_robot", "success"), good)
        return {**rates, "refused": False, "clearance": 0.3, "cost": cost, "steps": steps}

    rest = {"edges": 10, "components": 1, "query_ms": 1.0, "data_pace": 1.0}
    graphs = [
        {**rest, "pace": 0.5, "false_edges": 1, "tasks": [task(True, 120, 100), task(False, 100, inf)]},
        {**rest, "pace": 1.0, "false_edges": 0, "tasks": [task(True, 100, 100), task(True, 105, 100)]},
    ]
    found = summary(graphs)
    assert found["valid"]["by_graph"] == [1, 2] and found["valid"]["mean"] == 0.75
    assert found["false_edges"] == 0.05 and found["pace"] == 0.75
    assert found["cost_per_step"] == pytest.approx({"mean": 3.25 / 3, "min": 1.0, "max": 1.2, "within": 2 / 3})
    assert found["paced_cost_per_step"]["min"] == pytest.approx(0.6)
    assert summary([{**graphs[0], "tasks": [task(False, inf, inf)]}])["cost_per_step"] is None


def test_the_smallest_run_is_consistent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = []
    small = {"NODES": 250, "DISTANCES": 2, "ENDS": 3, "PROBES": (20, 100)}
    for name, value in small.items():
        monkeypatch.setattr(edge_tests, name, value)
    monkeypatch.setattr(point_robot, "LIMIT", 600)
    monkeypatch.setattr(edge_tests, "World", type("Small", (), {"giant": lambda: World.giant(200)}))
    monkeypatch.setattr(edge_tests, "TemporalRecipe", lambda seed: TemporalRecipe(steps=20, width=16, seed=seed))
    monkeypatch.setattr(edge_tests, "run_seed", lambda *given: seeds.append(run_seed(*given)) or seeds[-1])
    main(json := tmp_path / "result.json", graphs=1, seed=1000)
    result = loads(json.read_text())
    assert as_text(result) in capsys.readouterr().out
    assert set(result["rank_correlation"]) == {"temporal 0", "temporal 1", "straight"}
    assert result["recipe"]["seed"] == [0, 1] and result["episodes"] == 200
    assert set(result["methods"]) == set(seeds[0]) == set(NODE_KINDS)
    for kind, methods in seeds[0].items():
        assert set(result["methods"][kind]) == set(methods) == set(METHODS)
        for method, row in methods.items():
            check(row)
            assert result["methods"][kind][method]["valid"]["by_graph"] == [sum(task["valid"] for task in row["tasks"])]
        assert methods[OURS]["edges"] < methods["evidence, straight"]["edges"]
    assert any(task["success"] for task in seeds[0]["even"]["evidence, straight"]["tasks"])


def check(row: dict[str, Any]) -> None:
    """What must be so whatever the plans are like."""
    assert 0 <= row["false_edges"] <= row["edges"]
    for task in row["tasks"]:
        assert task["valid"] == (task["clearance"] > 0)
        assert task["valid"] or not task["valid_robot"]
        assert task["clearance"] > RADIUS - 2e-3 or not task["valid_robot"]
        assert np.isfinite(task["cost"]) != task["refused"]
        assert task["success"] or not np.isfinite(task["steps"])
        assert not (task["refused"] and (task["valid"] or task["success"]))
