from itertools import pairwise

import numpy as np
import pytest

from planners.edges import Straight
from planners.graph import StateGraph
from planners.intervals import Ban, Bans, Others, Road, Traffic, closest, fastest_way, together
from policies.spec import Array

DISTANCE = 1.0


def random_road(rng: np.random.Generator) -> Road:
    """A chain of eight nodes with chords, from its first to its last."""
    nodes = rng.uniform(0, 5, (8, 2))
    edges = np.array([*pairwise(range(8)), *rng.integers(8, size=(4, 2)).tolist()])
    graph = StateGraph.build(nodes, edges, Straight(float(rng.choice([0.7, 1.5]))))
    moves: list[list[tuple[int, int]]] = [[] for _ in nodes]
    for (one, other), cost in zip(graph.edges.tolist(), np.ceil(graph.costs).astype(int).tolist(), strict=True):
        moves[one].append((other, cost))
        moves[other].append((one, cost))
    return Road(graph.nodes, graph.nodes.astype(float), moves, np.zeros(8), 0, 7)


def first_arrival(road: Road, traffic: Traffic) -> int | None:
    """At the goal for good, by going through all nodes and steps."""

    def safe(start: Array, end: Array, step: int) -> bool:
        moves, steps = traffic.hits(start[None], end[None])
        return min(step, traffic.horizon - 1) not in steps[moves == 0]

    def staying(step: int) -> bool:
        goal = road.points[road.goal]
        return all(safe(goal, goal, later) for later in range(step, max(step, traffic.horizon) + 1))

    there = {0: {road.start}}
    for step in range(traffic.horizon + 80):
        nodes = there.get(step, set())
        if road.goal in nodes and staying(step):
            return step
        for node in nodes:
            for after, steps in [(node, 1), *road.moves[node]]:
                shares = np.linspace(0, 1, steps + 1)[:, None]
                places = road.points[node] * (1 - shares) + road.points[after] * shares
                if all(safe(places[k], places[k + 1], step + k) for k in range(steps)):
                    there.setdefault(step + steps, set()).add(after)
    return None


@pytest.mark.parametrize("banned", [False, True])
def test_nothing_arrives_earlier(banned: bool) -> None:
    arrivals = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        road = random_road(rng)
        paths = [np.cumsum(rng.normal(0, 0.5, (20, 2)), axis=0) + rng.uniform(0, 5, 2) for _ in range(2)]
        places, moments = rng.uniform(0, 5, (40, 2)).tolist(), rng.integers(40, size=40).tolist()
        bans = [Ban((x, y), moment // 2, moment % 2 / 2) for (x, y), moment in zip(places, moments, strict=True)]
        traffic = Bans(bans, 2 * DISTANCE) if banned else Others(paths, DISTANCE)
        way = fastest_way(road, traffic)
        arrivals.append(way and way[-1][1])
        assert arrivals[-1] == first_arrival(road, traffic), seed
    assert None in arrivals and len({*arrivals}) > 5


def test_hits_are_those_of_a_dense_check() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        paths = [np.cumsum(rng.normal(0, 0.5, (15, 2)), axis=0) for _ in range(3)]
        start, end = rng.normal(0, 2, (2, 2))
        moves, steps = Others(paths, DISTANCE).hits(start[None], end[None])
        tracks, shares = together(paths), np.linspace(0, 1, 401)[:, None, None, None]
        before, after = start - tracks[:, :-1], end - tracks[:, 1:]
        least = np.linalg.norm(before + shares * (after - before), axis=-1).min((0, 1))
        assert sorted({*steps.tolist()}) == np.flatnonzero(least < DISTANCE - 1e-6).tolist() and not moves.any()


def test_closest_is_within_the_step() -> None:
    before, after = np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 0.0]]), np.array([[-1.0, 1.0], [3.0, 1.0], [2.0, 0.0]])
    share, distance = closest(before, after)
    np.testing.assert_allclose(share, [0.5, 0.0, 0.0])
    np.testing.assert_allclose(distance, [1.0, np.sqrt(2), 2.0])
