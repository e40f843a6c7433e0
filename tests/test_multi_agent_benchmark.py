from json import dumps, loads

import numpy as np
import pytest

from benchmarks.multi_agent import AGENTS, ALONE, BEST, FIRST, METHODS, WAIT, as_text, measure, sample_ends
from planners.edges import Straight
from planners.graph import StateGraph


def test_starts_and_goals_are_apart_and_in_the_largest_component() -> None:
    nodes = [[float(x), 0.0] for x in range(12)]
    graph = StateGraph.build(nodes, [*((k, k + 1) for k in range(7)), (9, 10)], Straight(1.0))
    for seed in range(20):
        ends = sample_ends(graph, 3, 1.5, np.random.default_rng(seed))
        assert ends.shape == (2, 3) and ends.max() <= 7
        assert (np.diff(np.sort(ends)) >= 2).all()


def test_a_small_run_has_every_number_and_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.multi_agent.EPISODES", 100)
    monkeypatch.setattr("benchmarks.multi_agent.NODES", 150)
    result = loads(dumps(measure(1, 2, 0.5, 3, seed=7)))
    assert [*result["agents"]] == [str(agents) for agents in AGENTS]
    for agents, one in result["agents"].items():
        assert [*one["methods"]] == list(METHODS)
        rows = result["mazes"][0]["agents"][agents]
        assert len(rows) == 2
        assert all(not row[name]["conflicts"] for row in rows for name in (WAIT, FIRST, BEST))
        assert all(row[ALONE]["cost"] <= row[name]["cost"] for row in rows for name in METHODS if row[name]["cost"])
        assert one["in_conflict"]["count"] == sum(row[ALONE]["conflicts"] > 0 for row in rows)
    text = as_text(result)
    assert "planning only" in text and all(name in text for name in METHODS)
