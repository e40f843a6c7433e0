from json import dumps
from math import hypot

import numpy as np
import pytest

from benchmarks.graph_planning import EDGES, KINDS, OURS, as_text, measure, run_maze, shortest_lengths
from envs.mazes import Maze


def test_the_shortest_way_bends_at_the_ends_of_walls() -> None:
    maze = Maze((2, 2), np.array([[0, 1], [1, 3], [2, 3]]), np.array([0]), np.array([False]))  # a wall from the left
    lengths = shortest_lengths(maze, np.array([[[0.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [4.0, 0.0]]]))
    assert lengths == pytest.approx([2 * hypot(2.1, 1.9) + 0.2, 4.0], abs=1e-3)


def test_the_report_counts_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.graph_planning.PAIRS", 4)
    maze = run_maze(1000)
    monkeypatch.setattr("benchmarks.graph_planning.run_maze", lambda seed: maze)
    result = measure(1, seed=1000)
    answers, ours = maze["methods"][OURS], result["methods"][OURS]
    assert set(maze["methods"]) == set(EDGES)
    assert all(len(answers[kind]) == 4 for kind in KINDS)
    assert ours["open"]["mean"] == np.mean([row["valid"] for row in answers["open"]])
    for kind, shortest in maze["shortest"].items():
        for row, length in zip(answers[kind], shortest, strict=True):
            assert not row["valid"] or row["length"] >= length - 1e-3
    assert OURS in as_text(result) and len(dumps(result)) < 10_000
