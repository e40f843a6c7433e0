from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from planners.edges import Cost, GraphError, Joints, Straight
from planners.graph import KINDS, StateGraph

COST = Straight(1.0)
SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
RING = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])


def graph_of(count: int, seed: int, directed: bool = False) -> StateGraph:
    """Random nodes in a square of 10 m, some pairs connected."""
    rng = np.random.default_rng(seed)
    edges = rng.integers(count, size=(2 * count, 2))
    return StateGraph.build(rng.uniform(0, 10, (count, 2)), edges, COST, directed)


def same(one: StateGraph, other: StateGraph) -> bool:
    return one.directed == other.directed and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in KINDS
    )


def test_built_from_trajectories_it_follows_them() -> None:
    line = np.stack([np.arange(0, 20, 0.2), np.zeros(100)], -1)
    graph = StateGraph.from_trajectories([line], 30, np.random.default_rng(0), Straight(0.2), gap=0.3)
    assert graph.components.tolist() == [0] * 30
    assert graph.costs.max() <= 2 * 10 + 1
    steps = np.abs(np.diff(graph.nodes[graph.edges, 0], axis=1)[:, 0]) / 0.2
    np.testing.assert_allclose(graph.costs, steps, rtol=1e-5)


def test_edges_lead_both_ways_or_one() -> None:
    both, one = (StateGraph.build(SQUARE, RING, COST, directed) for directed in (False, True))
    np.testing.assert_array_equal(both.matrix.toarray(), both.matrix.toarray().T)
    assert one.matrix.nnz == 4 and both.matrix.nnz == 8
    chain = StateGraph.build(SQUARE, RING[:3], COST, directed=True)
    assert sorted(chain.components) == [0, 1, 2, 3]  # there is no way back
    assert one.components.tolist() == [0, 0, 0, 0]


def test_edges_are_normal_and_cost_what_the_callable_says() -> None:
    graph = StateGraph.build(SQUARE, [[2, 0], [0, 2], [1, 1]], lambda start, end: np.full(len(start), 7.0))
    assert graph.edges.tolist() == [[0, 2]] and graph.costs.tolist() == [7.0]


def test_components_are_numbered_by_size_and_change_with_closures() -> None:
    graph = StateGraph.build(np.arange(6.0)[:, None], [[0, 1], [2, 3], [3, 4], [4, 5]], COST)
    assert graph.components.tolist() == [1, 1, 0, 0, 0, 0]
    assert graph.close(nodes=[3]).components.tolist() == [0, 0, 2, -1, 1, 1]
    assert graph.close(edges=[3]).components.tolist() == [1, 1, 0, 0, 0, 2]


def test_closing_and_opening_are_inverse_and_leave_the_graph_alone() -> None:
    graph = StateGraph.build(SQUARE, RING, COST)
    shut = graph.close(nodes=[1], edges=np.array([True, False, False, False]))
    assert not graph.closed_edges.any() and not graph.closed_nodes.any()
    assert shut.matrix.nnz == 4
    assert same(shut.open(nodes=[1], edges=[0]), graph) and same(shut.all_open(), graph)


def test_equal_states_are_connected_by_an_edge_of_no_cost() -> None:
    graph = StateGraph.build(np.zeros((2, 3)), [[0, 1]], COST)
    assert graph.components.tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_insertion_leaves_the_graph_alone_and_joins_the_nearest(seed: int) -> None:
    graph, before = graph_of(30, seed), graph_of(30, seed)
    points = np.random.default_rng(seed + 100).uniform(0, 10, (3, 2))
    wider = graph.insert(points, Joints(4, np.inf))
    assert same(graph, before)
    np.testing.assert_array_equal(wider.nodes[:30], graph.nodes)
    np.testing.assert_array_equal(wider.edges[: len(graph.edges)], graph.edges)
    np.testing.assert_array_equal(wider.nodes[30:], points.astype(np.float32))
    for index in (30, 31, 32):
        distance = np.linalg.norm(wider.nodes - wider.nodes[index], axis=1)
        joined = wider.edges[(wider.edges == index).any(1)].ravel()
        assert set(np.argsort(distance)[1:5]) <= set(joined)


def test_insertion_passes_over_closed_nodes_and_what_is_not_valid() -> None:
    graph = StateGraph.build(SQUARE, RING, COST).close(nodes=[0])
    wider = graph.insert([[0.1, 0.1]], Joints(1, np.inf))
    assert wider.edges[4:].tolist() in ([[1, 4]], [[3, 4]])
    wider = graph.insert([[0.1, 0.1]], Joints(1, np.inf, lambda start, end: end[:, 0] + end[:, 1] > 1.5))
    assert wider.edges[4:].tolist() == [[2, 4]]
    assert len(graph.insert([[50.0, 50.0]]).edges) == 4


def test_insertion_into_a_directed_graph_asks_for_the_cost_of_each_way() -> None:
    uphill = StateGraph.build([[0.0], [1.0], [2.0]], [[0, 1], [1, 2]], lambda a, b: 10 * (b - a).clip(0)[:, 0], True)
    wider = uphill.insert([[1.1]], Joints(1, np.inf))
    assert wider.edges[2:].tolist() == [[2, 3], [3, 0]] and wider.costs[2:].tolist() == [0.0, 0.0]
    assert uphill.insert([[1.1]], Joints(3, reach=1.5)).edges[2:].tolist() == [[1, 3], [2, 3], [3, 0], [3, 1]]
    downhill = Joints(3, np.inf, lambda start, end: end[:, 0] < start[:, 0])
    assert uphill.insert([[1.1]], downhill).edges[2:].tolist() == [[2, 3], [3, 0], [3, 1]]


@pytest.mark.parametrize("states", [np.zeros((1, 3)), np.zeros(2), np.full((1, 2), np.nan)])
def test_states_that_do_not_fit_are_refused(states: np.ndarray) -> None:
    with pytest.raises(GraphError, match="states to insert"):
        StateGraph.build(SQUARE, RING, COST).insert(states)


def test_components_are_joined_on_request_by_the_cheapest_valid_joints() -> None:
    graph = StateGraph.build([[0.0], [1.0], [3.0], [4.0], [9.0]], [[0, 1], [2, 3]], COST)
    joined = graph.joined(Joints(reach=np.inf))
    assert joined.components.tolist() == [0] * 5
    assert joined.edges[2:].tolist() == [[1, 2], [3, 4]] and joined.costs[2:].tolist() == [2.0, 5.0]
    around = graph.joined(Joints(reach=np.inf, valid=lambda start, end: (start[:, 0] != 1) & (end[:, 0] != 1)))
    assert around.edges[2:].tolist() == [[0, 2], [3, 4]]


def test_components_too_far_apart_are_named() -> None:
    graph = StateGraph.build([[0.0], [1.0], [3.0], [4.0], [9.0]], [[0, 1], [2, 3]], COST)
    with pytest.raises(GraphError, match=r"of \[2, 2, 1\] nodes, number 2 has no valid joint within 4 steps"):
        graph.joined(Joints(reach=4.0))
    with pytest.raises(GraphError, match="only an undirected graph with everything open"):
        graph.close(nodes=[0]).joined(Joints())


@pytest.mark.parametrize(
    ("nodes", "edges", "cost", "message"),
    [
        (np.zeros(3), [[0, 1]], COST, "do not fit together"),
        (SQUARE, [[0, 4]], COST, "nodes 0 to 4 of 4"),
        (SQUARE, [[0, 1]], lambda start, end: -np.ones(len(start)), "negative"),
        (SQUARE, [[0, 1]], lambda start, end: np.full(len(start), np.nan), "not finite"),
        (np.full((2, 2), np.inf), [[0, 1]], COST, "a node is not finite"),
    ],
)
def test_what_is_no_graph_is_refused(nodes: np.ndarray, edges: list[list[int]], cost: Cost, message: str) -> None:
    with pytest.raises(GraphError, match=message), np.errstate(invalid="ignore"):
        StateGraph.build(nodes, edges, cost)


@pytest.mark.parametrize("directed", [False, True])
def test_a_file_gives_the_same_graph(tmp_path: Path, directed: bool) -> None:
    graph = graph_of(40, 1, directed).close(nodes=[3], edges=[0, 5])
    graph.save(tmp_path / "graph.npz")
    assert same(StateGraph.load(tmp_path / "graph.npz", COST), graph)
    assert [path.name for path in tmp_path.iterdir()] == ["graph.npz"]


def test_a_graph_without_edges_is_kept_too(tmp_path: Path) -> None:
    graph = StateGraph.build(SQUARE, np.empty((0, 2)), COST)
    graph.save(tmp_path / "graph.npz")
    assert StateGraph.load(tmp_path / "graph.npz", COST).components.tolist() == [0, 1, 2, 3]


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    path, graph = tmp_path / "graph.npz", graph_of(40, 2)
    graph.save(path)
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place])
        with pytest.raises(GraphError, match="damaged"):
            StateGraph.load(path, COST)
        spoiled = bytearray(content)
        spoiled[place] ^= 0x10
        path.write_bytes(spoiled)
        with suppress(GraphError):  # or the same graph: zip files have bytes that nobody reads
            assert same(StateGraph.load(path, COST), graph)
    path.write_text("no graph")
    with pytest.raises(GraphError, match="no graph or is damaged"):
        StateGraph.load(path, COST)


def test_a_file_that_was_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    StateGraph.build(SQUARE, RING, COST).save(path)
    with np.load(path) as file:
        good = {name: file[name] for name in file.files}
    edits = {
        "format 2, not 1": {"format": np.array(2)},
        "format one, not 1": {"format": np.array("one")},
        "holds": {"nodes": SQUARE},
        "holds directed": {"directed": np.zeros(2, bool)},
        "nodes 0 to 9 of 4": {"edges": np.where(good["edges"] == 3, 9, good["edges"])},
        "an edge twice": {"edges": good["edges"][[0, 0, 2, 3]]},
        "negative": {"costs": -good["costs"]},
        "another cost": {"costs": 2 * good["costs"]},
        "do not fit together": {"closed_edges": np.zeros(3, bool)},
    }
    for message, edit in edits.items():
        np.savez(path, **good | edit)
        with pytest.raises(GraphError, match=message):
            StateGraph.load(path, COST)
    np.savez(path, **good | {"nodes": np.array([{}], object)})
    with pytest.raises(GraphError, match="pickle"):
        StateGraph.load(path, COST)


def test_a_graph_is_not_loaded_with_another_cost(tmp_path: Path) -> None:
    graph_of(10, 0).save(tmp_path / "graph.npz")
    with pytest.raises(GraphError, match="built with another cost"):
        StateGraph.load(tmp_path / "graph.npz", Straight(0.5))
    with pytest.raises(OSError):
        StateGraph.load(tmp_path / "nowhere.npz", COST)


@pytest.mark.parametrize("edges", [[0.0, 1.0], [[0, 1]], [-1], [4], [True, False], np.zeros(3, bool)])
def test_what_names_no_edges_is_not_closed(edges: list) -> None:
    graph = StateGraph.build(SQUARE, RING, COST)
    for change in (graph.close, graph.open):
        with pytest.raises(GraphError, match=r"edges are .*, not indices from 0 to 3 or 4 truths"):
            change(edges=edges)
    assert not graph.close(edges=[], nodes=np.zeros(0, int)).closed_edges.any()


@pytest.mark.parametrize(
    ("trajectories", "message"),
    [
        ([], "no state"),
        ([np.zeros((0, 2))], "no state"),
        ([np.zeros((5, 2)), np.zeros((5, 3))], r"trajectory 1 has shape \(5, 3\), not \(T, D\) with the same D"),
        ([np.zeros(5)], r"trajectory 0 has shape \(5,\)"),
        ([np.full((5, 2), np.nan)], "not finite; drop"),
    ],
)
def test_trajectories_that_do_not_fit_are_refused(trajectories: list[np.ndarray], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        StateGraph.from_trajectories(trajectories, 2, np.random.default_rng(0), COST)
