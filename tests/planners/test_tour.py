import pickle
import sys
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy.sparse.csgraph import dijkstra

from planners.circuit import LEGS, NoTour, nearest_neighbour
from planners.edges import GraphError, Joints, Straight
from planners.graph import StateGraph
from planners.tour import Tour, inspection, tour

pytest.importorskip("ortools", reason="needs OR-tools: pip install 'kinoflow[planning]'")

COST = Straight(1.0)
ALONE = Joints(1, np.inf)  # a point that is a node is joined to just that


def graph_of(count: int, seed: int, directed: bool = False) -> StateGraph:
    """Random nodes in a square of 10 m, a ring through them and some more pairs connected."""
    rng = np.random.default_rng(seed)
    ring = np.stack([np.arange(count), np.roll(np.arange(count), -1)], -1)
    edges = np.concatenate([ring, rng.integers(count, size=(count, 2))])
    return StateGraph.build(rng.uniform(0, 10, (count, 2)), edges, COST, directed)


def one_way(graph: StateGraph, rng: np.random.Generator) -> StateGraph:
    """Directed, with ways back that cost something else."""
    return StateGraph.build(graph.nodes, graph.edges[rng.permutation(len(graph.edges))], COST, directed=True)


def least_by_hand(steps: np.ndarray, closed: bool) -> float:
    ends = [0] if closed else []
    return min(sum(steps[leg] for leg in pairwise((0, *order, *ends))) for order in permutations(range(1, len(steps))))


def assert_follows_edges(graph: StateGraph, found: Tour) -> None:
    """Every step of the route is an open edge, or none at all where a point is a node."""
    number = {tuple(state): index for index, state in enumerate(graph.nodes.tolist())}
    nodes = [number[tuple(state)] for state in found.route.states.tolist()]
    for one, other, spent in zip(nodes, nodes[1:], np.diff(found.route.times), strict=False):
        assert spent == pytest.approx(0.0 if one == other else graph.matrix[one, other], abs=1e-5)
        assert one == other or graph.matrix[one, other] > 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_no_order_is_cheaper(seed: int, directed: bool, closed: bool) -> None:
    graph = graph_of(12, seed, directed)
    found = tour(graph, graph.nodes[:6], ALONE, closed, seed=seed)
    expected = least_by_hand(dijkstra(graph.matrix)[:6, :6], closed)
    assert found.cost == pytest.approx(expected, abs=0.01) and found.optimal
    assert found.bound <= found.cost == found.route.cost
    assert found.order[0] == 0 and sorted(found.order) == list(range(6))
    np.testing.assert_array_equal(found.route.states[0], graph.nodes[0])
    if closed:
        np.testing.assert_array_equal(found.route.states[-1], graph.nodes[0])
    assert_follows_edges(graph, found)


def held_karp(steps: np.ndarray, closed: bool) -> float:
    """The least cost by dynamic programming over sets."""
    count = len(steps) - 1
    least = np.full((1 << count, count), np.inf)
    least[1 << np.arange(count), np.arange(count)] = steps[0, 1:]
    inner = steps[1:, 1:]
    for visited in range(1, 1 << count):
        for last in range(count):
            if visited >> last & 1 and visited != 1 << last:
                least[visited, last] = (least[visited ^ 1 << last] + inner[:, last]).min()
    return float((least[-1] + (steps[1:, 0] if closed else 0)).min())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_legs_that_are_ruled_out_were_not_needed(
    seed: int, directed: bool, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planners.circuit.LEGS", 2)  # of 11, so that most have to be proven away
    graph = graph_of(25, seed, directed)
    found = tour(graph, graph.nodes[:11], ALONE, closed)
    expected = held_karp(dijkstra(graph.matrix)[:11, :11], closed)
    assert found.bound <= expected + 1e-4
    assert found.cost == pytest.approx(expected, abs=0.02) and found.optimal


@pytest.mark.parametrize("closed", [False, True])
def test_many_points_are_proven_and_the_same_again(closed: bool) -> None:
    graph = graph_of(80, 5)
    points = np.random.default_rng(5).uniform(0, 10, (3 * LEGS, 2))
    found, again = (tour(graph, points, closed=closed, seed=3) for _ in range(2))
    assert found.optimal and found.order.tolist() == again.order.tolist()
    wider = graph.insert(points)
    numbers = np.arange(80, len(wider.nodes))
    steps = dijkstra(wider.matrix, indices=numbers)[:, numbers]
    greedy = sum(steps[leg] for leg in pairwise([*nearest_neighbour(steps), *([0] if closed else [])]))
    assert found.bound <= found.cost < greedy
    assert_follows_edges(wider, found)


@pytest.mark.parametrize("points", [1, 2])
@pytest.mark.parametrize("closed", [False, True])
def test_few_points(points: int, closed: bool) -> None:
    graph = StateGraph.build([[0.0], [3.0], [5.0]], [[0, 1], [1, 2]], COST)
    found = tour(graph, graph.nodes[[0, 2][:points]], ALONE, closed)
    assert found.cost == pytest.approx(5 * (points - 1) * (1 + closed)) and found.optimal
    assert found.route.states[0] == 0 and found.route.times[0] == 0


def test_no_points_are_refused() -> None:
    with pytest.raises(GraphError, match="at least the point"):
        tour(graph_of(5, 0), np.empty((0, 2)))


def test_without_or_tools_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(ImportError, match=r"pip install 'kinoflow\[planning\]'"):
        tour(graph_of(5, 0), np.zeros((2, 2)))


def test_a_search_cut_short_is_no_proof() -> None:
    graph = graph_of(80, 5)
    found = tour(graph, np.random.default_rng(5).uniform(0, 10, (40, 2)), limit_s=1e-6)
    assert sorted(found.order) == list(range(40)) and found.bound < found.cost and not found.optimal


def chain(directed: bool = False) -> StateGraph:
    return StateGraph.build([[0.0], [10.0], [20.0], [30.0]], [[0, 1], [1, 2], [2, 3]], COST, directed)


def test_closed_edges_are_not_used() -> None:
    nodes = [[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]]
    square = StateGraph.build(nodes, [[0, 1], [1, 2], [2, 3], [0, 3]], COST)
    assert tour(square, nodes, ALONE, closed=True).cost == pytest.approx(40, abs=0.01)
    assert tour(square.close(edges=[1]), nodes, ALONE, closed=True).cost == pytest.approx(60, abs=0.01)


def test_points_without_a_way_are_named() -> None:
    graph = chain().close(edges=[1])
    with pytest.raises(NoTour, match=r"points \[1, 3\]") as refusal:
        tour(graph, graph.nodes[[0, 2, 1, 3]], ALONE)
    assert refusal.value.points == (1, 3)
    with pytest.raises(NoTour, match=r"points \[2\]"):
        tour(chain(), [[0.0], [10.0], [15.0]], Joints(1, 1.0))


def test_one_way_is_no_way_back() -> None:
    graph = chain(directed=True)
    assert tour(graph, graph.nodes[[0, 3, 1, 2]], ALONE).order.tolist() == [0, 2, 3, 1]
    with pytest.raises(NoTour, match=r"to and from points \[1\]"):
        tour(graph, graph.nodes[[0, 3]], ALONE, closed=True)
    fork = StateGraph.build([[0.0], [10.0], [-10.0]], [[0, 1], [0, 2]], COST, directed=True)
    with pytest.raises(NoTour, match="from point 1 to point 2 or back") as refusal:
        tour(fork, fork.nodes, ALONE)
    assert refusal.value.points == (1, 2)


def near(nodes: np.ndarray, interest: np.ndarray) -> np.ndarray:
    return np.linalg.norm(nodes - interest, axis=-1) < 3.0


def least_inspection(graph: StateGraph, interests: np.ndarray) -> float:
    """From node 0, over all orders of one viewpoint per interest: what is seen in passing need not be stopped at."""
    steps = dijkstra(graph.matrix)
    views = [np.flatnonzero(near(graph.nodes, interest)) for interest in interests]
    least = np.inf
    for order in permutations(range(len(views))):
        at = np.where(np.arange(len(steps)) == 0, 0.0, np.inf)
        for interest in order:
            there = np.full(len(steps), np.inf)
            there[views[interest]] = (at[:, None] + steps)[:, views[interest]].min(0)
            at = there
        least = min(least, at.min())
    return float(least)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("directed", [False, True])
def test_all_is_seen_and_with_few_nodes_nothing_is_cheaper(seed: int, directed: bool) -> None:
    graph = graph_of(20, seed, directed)
    interests = graph.nodes[np.random.default_rng(seed).permutation(20)[:5]]
    found = inspection(graph, graph.nodes[0], interests, near, ALONE)
    looked = graph.insert(graph.nodes[:1], ALONE).nodes[found.order]
    assert found.order[0] == 20 and all(near(looked, interest).any() for interest in interests)
    assert found.bound <= found.cost == found.route.cost
    assert found.cost == pytest.approx(least_inspection(graph, interests), abs=0.02) and found.optimal
    assert_follows_edges(graph, found)


def test_what_is_seen_from_the_start_needs_no_way() -> None:
    graph = graph_of(20, 1)
    for interests in (np.empty((0, 2)), graph.nodes[:1]):
        found = inspection(graph, graph.nodes[0], interests, near, ALONE)
        assert found.cost == 0 and found.optimal and found.order.tolist() == [20] and len(found.route.states) == 1


def test_what_nobody_can_see_is_named() -> None:
    graph = chain().close(edges=[1])
    with pytest.raises(NoTour, match=r"interests \[0, 2\]") as refusal:
        inspection(graph, [0.0], np.array([[20.0], [10.0], [99.0]]), near, ALONE)
    assert refusal.value.points == (0, 2)


def test_a_refusal_crosses_processes() -> None:
    refusal = pickle.loads(pickle.dumps(NoTour([1, 3], "no way")))
    assert (refusal.points, str(refusal)) == ((1, 3), "no way") and isinstance(refusal, RuntimeError)
