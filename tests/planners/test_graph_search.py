import pickle
from itertools import pairwise, permutations

import numpy as np
import pytest

from planners.edges import GraphError, Joints, Straight
from planners.graph import StateGraph
from planners.search import NoRoute, Route, downsampled, k_alternatives, shortest_path

COST = Straight(1.0)
ALONE = Joints(1, np.inf)  # a start that is a node is joined to just that


def graph_of(count: int, seed: int, directed: bool = False) -> StateGraph:
    """Random nodes in a square of 10 m, some pairs connected."""
    rng = np.random.default_rng(seed)
    edges = rng.integers(count, size=(2 * count, 2))
    return StateGraph.build(rng.uniform(0, 10, (count, 2)), edges, COST, directed)


def costs_by_hand(graph: StateGraph, first: int, last: int) -> list[float]:
    """Costs of all ways that visit no node twice, in ascending order."""
    matrix = graph.matrix.toarray()
    inner, found = [index for index in range(len(graph.nodes)) if index not in (first, last)], []
    for length in range(len(inner) + 1):
        for between in permutations(inner, length):
            steps = [matrix[pair] for pair in pairwise((first, *between, last))]
            if all(steps):
                found.append(float(sum(steps)))
    return sorted(found)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("directed", [False, True])
def test_nothing_is_shorter_and_alternatives_come_in_order(seed: int, directed: bool) -> None:
    graph = graph_of(6, seed, directed)
    expected = costs_by_hand(graph, 0, 1)
    if not expected:
        with pytest.raises(NoRoute):
            shortest_path(graph, graph.nodes[0], graph.nodes[1], ALONE)
        return
    route = shortest_path(graph, graph.nodes[0], graph.nodes[1], ALONE)
    assert route.cost == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_array_equal(route.states[[0, -1]], graph.nodes[:2])
    ways = k_alternatives(graph, graph.nodes[0], graph.nodes[1], 5, ALONE)
    found = [way.cost for way in ways]
    assert found == sorted(found) and found[0] == pytest.approx(route.cost)
    np.testing.assert_allclose(sorted({round(cost, 4) for cost in found}), sorted({round(c, 4) for c in expected[:5]}))


def test_times_are_costs_so_far() -> None:
    graph = StateGraph.build([[0.0], [3.0], [5.0]], [[0, 1], [1, 2]], Straight(0.5))
    route = shortest_path(graph, [0.0], [5.0], ALONE)
    assert route.times[0] == 0 and (np.diff(route.times) >= 0).all() and route.cost == 10
    steps = np.abs(np.diff(route.states[:, 0])) / 0.5
    np.testing.assert_allclose(np.diff(route.times), steps)


def test_neighbours_go_straight() -> None:
    graph = StateGraph.build([[0.0, 0.0], [9.0, 0.0]], [[0, 1]], COST)
    route = shortest_path(graph, [1.0, 1.0], [2.0, 1.0])
    assert len(route.states) == 2 and route.cost == pytest.approx(1)


@pytest.mark.parametrize("seed", range(10))
def test_closing_never_shortens_and_opening_restores(seed: int) -> None:
    graph = graph_of(25, seed)
    rng, ends = np.random.default_rng(seed), graph.nodes[:2]
    last = shortest_path(graph, *ends).cost if np.ptp(graph.components[:2]) == 0 else np.inf
    first = last
    for edge in rng.permutation(len(graph.edges))[:15]:
        graph = graph.close(edges=[edge])
        try:
            cost = shortest_path(graph, *ends).cost
        except NoRoute as refusal:
            assert refusal.reason in ("closed", "components")
            cost = np.inf
        assert cost >= last - 1e-9
        last = cost
    if np.isfinite(first):
        assert shortest_path(graph.all_open(), *ends).cost == pytest.approx(first)


def two_rooms() -> StateGraph:
    return StateGraph.build([[0.0], [1.0], [2.0], [50.0], [51.0]], [[0, 1], [1, 2], [3, 4]], COST)


@pytest.mark.parametrize(
    ("graph", "start", "goal", "reason", "message"),
    [
        (two_rooms(), 25.5, 1.0, "start", r"the start \[25.5\] cannot be joined to any node within 3 steps"),
        (two_rooms(), 1.0, 25.5, "goal", r"the goal \[25.5\] cannot be joined"),
        (two_rooms(), 0.0, 51.0, "components", "components of 4 and 3 nodes"),
        (two_rooms().close(edges=[0, 1]), 0.0, 2.0, "closed", "something that is closed"),
        (two_rooms().close(nodes=[1]), 0.0, 2.0, "closed", "something that is closed"),
        (two_rooms().close(nodes=[0, 1, 2]), 0.0, 2.0, "closed", "something that is closed"),
    ],
)
def test_a_refusal_says_why(graph: StateGraph, start: float, goal: float, reason: str, message: str) -> None:
    joints = Joints(1, 3.0, lambda a, b: np.abs(b - a)[:, 0] < 1.5)
    for search in (shortest_path, lambda *of: k_alternatives(*of[:3], 3, of[3])):
        with pytest.raises(NoRoute, match=message) as refusal:
            search(graph, [start], [goal], joints)
        assert refusal.value.reason == reason


def test_one_way_is_no_way_back() -> None:
    graph = StateGraph.build([[0.0], [5.0], [10.0]], [[0, 1], [1, 2]], COST, directed=True)
    assert shortest_path(graph, [0.0], [10.0], Joints(1, 1.0)).cost == 10
    with pytest.raises(NoRoute) as refusal:
        shortest_path(graph, [10.0], [0.0], Joints(1, 1.0))
    assert refusal.value.reason == "components"


def test_searching_changes_nothing() -> None:
    graph = graph_of(20, 3)
    before = [array.copy() for array in (graph.nodes, graph.edges, graph.costs, graph.matrix.toarray())]
    k_alternatives(graph, [1.0, 1.0], [9.0, 9.0], 3, Joints(5, np.inf))
    for old, new in zip(before, (graph.nodes, graph.edges, graph.costs, graph.matrix.toarray()), strict=True):
        np.testing.assert_array_equal(old, new)


def test_thinning_out_keeps_the_ends_and_the_times() -> None:
    times = np.array([0.0, 4.0, 12.0, 13.0, 20.0, 25.0, 26.0])
    thin = downsampled(Route(times[:, None], times), 12)
    assert thin.times.tolist() == [0, 12, 25, 26] and thin.states[:, 0].tolist() == [0, 12, 25, 26]
    whole = downsampled(Route(times[:, None], times), 0)
    np.testing.assert_array_equal(whole.times, times)
    here = downsampled(Route(np.zeros((2, 1)), np.zeros(2)), 12)
    assert here.times.tolist() == [0, 0]


@pytest.mark.parametrize("count", [0, -3])
def test_no_alternatives_are_refused(count: int) -> None:
    with pytest.raises(GraphError, match="ask for at least 1"):
        k_alternatives(two_rooms(), [0.0], [1.0], count)


def test_a_refusal_crosses_processes_and_is_an_expected_error() -> None:
    refusal = pickle.loads(pickle.dumps(NoRoute("goal", "it is in a wall")))
    assert isinstance(refusal, RuntimeError)  # which `kinoflow.cli.call` prints as one line
    assert (refusal.reason, str(refusal)) == ("goal", "it is in a wall")
