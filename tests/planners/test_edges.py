import numpy as np
import pytest

from planners.edges import (
    GraphError,
    Joints,
    Straight,
    even_nodes,
    evidence_edges,
    nearest_edges,
    sample_nodes,
    unique_edges,
    usual_gap,
    without_holes,
)

LINE = np.stack([np.arange(0, 10, 0.5), np.zeros(20)], -1)  # 20 states, one every half metre


def test_nodes_are_different_states_of_the_trajectories() -> None:
    nodes = sample_nodes([LINE, LINE + 100], 40, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(nodes[:, 0]), np.r_[LINE[:, 0], LINE[:, 0] + 100].astype(np.float32))
    with pytest.raises(GraphError, match="41 nodes cannot be drawn from 40 states"):
        sample_nodes([LINE, LINE + 100], 41, np.random.default_rng(0))


def test_evidence_is_what_a_trajectory_did_in_so_many_steps() -> None:
    nodes = LINE[[0, 4, 8]]
    assert evidence_edges([LINE], nodes, within=3).tolist() == [[0, 1], [1, 2]]
    assert evidence_edges([LINE], nodes, within=6).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert evidence_edges([LINE[::-1]], nodes, within=3).tolist() == [[1, 0], [2, 1]]


def test_the_end_of_a_trajectory_does_not_lead_to_the_beginning_of_the_next() -> None:
    nodes = LINE[[2, 17]]
    assert evidence_edges([LINE[:10], LINE[10:]], nodes, within=19).tolist() == []
    assert evidence_edges([LINE], nodes, within=19).tolist() == [[0, 1]]


def test_a_trajectory_shorter_than_the_steps_is_no_trouble() -> None:
    assert evidence_edges([LINE[:1], LINE[:2]], LINE[:2]).tolist() == [[0, 1]]


def crowd(low: float, high: float, count: int = 4000) -> np.ndarray:
    """States that fill a strip one metre high."""
    return np.random.default_rng(0).uniform((low, 0), (high, 1), (count, 2))


def test_an_edge_over_a_hole_goes_and_the_others_stay() -> None:
    states = [np.concatenate([crowd(0, 2), crowd(2.5, 4)])]
    nodes = np.array([[0.5, 0.5], [1.5, 0.5], [3.0, 0.5]])
    assert without_holes(states, nodes, np.array([[0, 1], [1, 2], [2, 0]]), gap=0.1).tolist() == [[0, 1]]


def test_a_hole_of_two_gaps_is_crossed_once_if_there_is_no_other_way() -> None:
    states = [np.concatenate([crowd(0, 2), crowd(2.3, 4)])]  # 0.3 m wide: nothing is further than 0.15 m away
    nodes = np.array([[1.0, 0.5], [1.8, 0.5], [2.5, 0.5], [3.0, 0.5]])
    edges = np.array([[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]])
    kept = without_holes(states, nodes, edges, gap=0.1).tolist()
    assert len(kept) == 3 and [0, 1] in kept and [2, 3] in kept
    both = np.concatenate([edges, edges[:, ::-1]])
    assert sorted(map(sorted, without_holes(states, nodes, both, gap=0.1).tolist())) == sorted(2 * kept)


def test_no_gap_is_no_test_and_none_at_all_is_refused() -> None:
    edges = np.array([[0, 1]])
    assert without_holes([LINE], LINE[[0, 19]] + 5, edges, np.inf) is edges
    with pytest.raises(GraphError, match="states repeat"):
        without_holes([LINE], LINE, edges, 0.0)


def test_the_usual_gap_is_the_distance_between_trajectories_not_along_them() -> None:
    lanes = [np.stack([np.arange(0, 10, 0.01), np.full(1000, 0.3 * lane)], -1) for lane in range(5)]
    assert usual_gap(lanes) == pytest.approx(0.11)  # along the same lane, but too many steps away to follow
    sparse = [lane[::100] for lane in lanes]
    assert usual_gap(sparse) == pytest.approx(0.3)
    assert usual_gap([LINE[:2]]) == np.inf


def test_nearest_means_cheapest_and_keeps_to_the_rules() -> None:
    nodes = np.array([[0.0, 0.0], [1.0, 0.0], [2.5, 0.0], [0.0, 9.0]])
    cost = Straight(0.5)
    assert nearest_edges(nodes, cost, Joints(1, np.inf)).tolist() == [[0, 1], [1, 0], [2, 1], [3, 0]]
    assert nearest_edges(nodes, cost, Joints(9, reach=3.0)).tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    hidden = np.array([False, True, False, False])
    assert nearest_edges(nodes, cost, Joints(1, np.inf), [0], hidden).tolist() == [[0, 2]]
    level = Joints(9, np.inf, lambda start, end: start[:, 1] == end[:, 1])
    assert nearest_edges(nodes, cost, level, [0, 3]).tolist() == [[0, 1], [0, 2]]


def test_edges_count_once() -> None:
    edges = np.array([[2, 1], [1, 2], [0, 0], [0, 2], [0, 2]])
    assert unique_edges(edges, directed=True).tolist() == [[0, 2], [1, 2], [2, 1]]
    assert unique_edges(edges, directed=False).tolist() == [[0, 2], [1, 2]]
    assert unique_edges(np.empty((0, 2), np.int64), directed=False).shape == (0, 2)


def test_even_nodes_are_many_enough_and_reach_places_that_are_seldom_visited() -> None:
    rng = np.random.default_rng(0)
    crowd, corner = rng.uniform(0, 10, (20_000, 2)), rng.uniform(10, 12, (40, 2))
    trajectories = [*np.array_split(crowd.astype(np.float32), 100), corner.astype(np.float32)]
    even, uniform = (draw(trajectories, 300, np.random.default_rng(1)) for draw in (even_nodes, sample_nodes))
    assert even.shape == uniform.shape == (300, 2)
    assert (even > 10).all(1).sum() >= 3 > (uniform > 10).all(1).sum()
    nearest = [
        np.sort(np.linalg.norm(nodes[:, None] - nodes, axis=-1), axis=1)[:, 1].min() for nodes in (even, uniform)
    ]
    assert nearest[0] > 10 * nearest[1]
    np.testing.assert_array_equal(even, even_nodes(trajectories, 300, np.random.default_rng(1)))
    with pytest.raises(GraphError, match="50000 nodes"):
        even_nodes(trajectories, 50_000, rng)
