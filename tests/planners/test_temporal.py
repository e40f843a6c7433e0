"""A learned temporal distance is a metric that grows with the way around walls, and survives a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from envs.mazes import CELL, SPEED, Maze, stitch_trajectories
from planners.edges import WITHIN, GraphError, Straight
from planners.graph import StateGraph
from planners.search import shortest_path
from planners.temporal import TemporalDistance, TemporalRecipe
from policies.spec import Array

RECIPE = TemporalRecipe(steps=1500, batch=128, goals=8, warmup=50, follow=0.05, width=64)
TINY = replace(RECIPE, steps=3)
# Two corridors of four cells beside each other, joined at one end only.
COLUMNS = 4
TWO = Maze(
    (2, COLUMNS),
    np.array([[cell, cell + 1] for cell in range(2 * COLUMNS - 1) if cell != COLUMNS - 1] + [[0, COLUMNS]]),
    np.empty(0, int),
    np.empty(0, bool),
)


@pytest.fixture(scope="module")
def walks() -> list[Array]:
    return list(stitch_trajectories(TWO, np.random.default_rng(0), 400))


@pytest.fixture(scope="module")
def learned(walks: list[Array]) -> TemporalDistance:
    return TemporalDistance.train(walks, RECIPE)


def pairs(seed: int, count: int = 200) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    high = [CELL * (COLUMNS - 1), CELL]
    return tuple(rng.uniform(-1.5, np.array(high) + 1.5, (3, count, 2)).astype(np.float32))


def test_it_is_a_metric(learned: TemporalDistance) -> None:
    first, second, third = pairs(0)
    np.testing.assert_array_equal(learned(first, second), learned(second, first))
    np.testing.assert_array_equal(learned(first, first), 0)
    assert (learned(first, second) > 0).all()
    assert (learned(first, third) <= learned(first, second) + learned(second, third) + 1e-3).all()


def test_it_grows_with_the_way_around_the_wall(learned: TemporalDistance) -> None:
    along = CELL * np.stack([np.arange(COLUMNS), np.zeros(COLUMNS)], -1)[::-1]
    way = np.concatenate([along, along[::-1] + np.array([0, CELL])])  # up one corridor and down the other
    steps = learned(np.broadcast_to(way[0], way.shape), way)
    assert (np.diff(steps) > 0).all(), steps
    beyond = np.array([way[0]]), np.array([way[-1]])
    assert learned(*beyond)[0] > 3 * Straight(SPEED)(*beyond)[0]


def test_its_unit_is_the_step_of_the_quick(learned: TemporalDistance, walks: list[Array]) -> None:
    pieces = np.concatenate([np.stack([walk[:-WITHIN], walk[WITHIN:]], 1) for walk in walks])
    assert np.quantile(learned(pieces[:, 0], pieces[:, 1]), 0.99) == pytest.approx(WITHIN, rel=0.02)
    near = np.array([[0.0, 0.0]]), np.array([[2.0, 0.0]])
    assert learned(*near)[0] == pytest.approx(Straight(SPEED)(*near)[0], rel=0.4)


def test_many_pairs_of_few_states_are_embedded_once(learned: TemporalDistance, monkeypatch: pytest.MonkeyPatch) -> None:
    states = np.stack(np.divmod(np.arange(30), 6), -1).astype(np.float32)  # each coordinate occurs more than once
    one, other = np.divmod(np.arange(900), 30)
    embed, seen = learned._network.forward, []

    def counted(given: torch.Tensor) -> torch.Tensor:
        seen.append(len(given))
        return embed(given)

    monkeypatch.setattr(learned._network, "forward", counted)
    steps = learned(states[one], states[other]).reshape(30, 30)
    assert seen == [30]
    assert steps[3, 5] == pytest.approx(learned(states[3:4], states[5:6])[0], rel=1e-4)


def test_a_million_pairs_are_subtracted_in_blocks(learned: TemporalDistance, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = pairs(2)
    whole = learned(first, second)
    monkeypatch.setattr("planners.temporal.BLOCK", 7)
    np.testing.assert_array_equal(learned(first, second), whole)
    assert learned(first[:0], second[:0]).shape == (0,)


def test_training_repeats_itself_and_leaves_torch_alone(walks: list[Array]) -> None:
    first, second, _ = pairs(3)
    state, reports = torch.get_rng_state(), []
    once = TemporalDistance.train(walks[:20], TINY, reports.append)(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert [report["step"] for report in reports] == [3] and np.isfinite(reports[0]["loss"])
    torch.rand(7)
    np.testing.assert_array_equal(TemporalDistance.train(walks[:20], TINY)(first, second), once)
    assert not np.array_equal(TemporalDistance.train(walks[:20], replace(TINY, seed=1))(first, second), once)


def test_units_of_states_do_not_matter(walks: list[Array]) -> None:
    first, second, _ = pairs(4)
    metres = TemporalDistance.train(walks[:20], TINY)(first, second)
    sizes = np.array([1024.0, 0.25], np.float32)  # of two, so that nothing is rounded
    other = TemporalDistance.train([walk * sizes for walk in walks[:20]], TINY)(first * sizes, second * sizes)
    np.testing.assert_allclose(other, metres, rtol=1e-4)


def test_a_file_gives_it_back_bit_by_bit(learned: TemporalDistance, tmp_path: Path) -> None:
    first, second, _ = pairs(5)
    learned.save(path := tmp_path / "distance.safetensors")
    loaded = TemporalDistance.load(path)
    assert loaded.recipe == learned.recipe
    np.testing.assert_array_equal(loaded(first, second), learned(first, second))
    loaded.save(again := tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_files_that_are_none_are_refused(learned: TemporalDistance, tmp_path: Path) -> None:
    learned.save(whole := tmp_path / "whole")
    content, path = whole.read_bytes(), tmp_path / "distance"
    with pytest.raises(FileNotFoundError):
        TemporalDistance.load(path)
    weights = safetensors.torch.load(content)

    def about(changes: dict[str, object]) -> dict[str, str]:
        return {"about": json.dumps({"format": 1, "recipe": {"width": 64}} | changes)}

    others = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "other weights": safetensors.torch.save({"centre": torch.zeros(2)}, about({})),
        "no metadata": safetensors.torch.save(weights),
        "another width": safetensors.torch.save(weights, about({"recipe": {"width": 32}})),
        "an unknown setting": safetensors.torch.save(weights, about({"recipe": {"depth": 3}})),
        "another format": safetensors.torch.save(weights, about({"format": 0})),
        "infinite": safetensors.torch.save({**weights, "unit": torch.tensor(torch.inf)}, about({})),
    }
    for name, damaged in others.items():
        path.write_bytes(damaged)
        with pytest.raises(GraphError, match=r"train (it|the distance) again"):
            pytest.fail(f"{name}: {TemporalDistance.load(path)}")


def test_what_does_not_fit_is_refused(learned: TemporalDistance, walks: list[Array]) -> None:
    for start, end in (((3, 3), (3, 3)), ((2,), (2,)), ((3, 2), (4, 2))):
        with pytest.raises(GraphError, match="as in the training"):
            learned(np.zeros(start), np.zeros(end))
    for short in ([walk[:WITHIN] for walk in walks], []):
        with pytest.raises(GraphError, match="record longer ones"):
            TemporalDistance.train(short, TINY)
    with pytest.raises(GraphError, match="leave out the rests"):
        TemporalDistance.train([np.zeros((30, 2))], TINY)


def test_a_graph_can_have_it_as_cost(learned: TemporalDistance, walks: list[Array], tmp_path: Path) -> None:
    graph = StateGraph.from_trajectories(walks, 150, np.random.default_rng(0), learned)
    route = shortest_path(graph, np.array([CELL * (COLUMNS - 1), 0.0]), np.array([CELL * (COLUMNS - 1), CELL]))
    assert TWO.segment_free(route.states[:-1], route.states[1:]).all()
    np.testing.assert_allclose(np.diff(route.times), learned(route.states[:-1], route.states[1:]), rtol=1e-4, atol=1e-4)
    graph.save(path := tmp_path / "graph.npz")
    assert np.array_equal(StateGraph.load(path, learned).costs, graph.costs)
