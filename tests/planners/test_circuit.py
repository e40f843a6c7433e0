"""What is known of circuits before they are searched for."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from planners.circuit import _ruled_out, circuit_legs, length, nearest_neighbour, uncrossed
from policies.spec import Array


def steps_between(points: int, seed: int, directed: bool) -> Array:
    """Costs ``(P, P)`` of the ways between points, twice as many in all, on a ring with some more pairs connected."""
    rng, count = np.random.default_rng(seed), 2 * points
    places = rng.uniform(0, 10, (count, 2))
    ring = np.stack([np.arange(count), np.roll(np.arange(count), -1)], -1)
    edges = np.unique(np.concatenate([ring, rng.integers(count, size=(count, 2))]), axis=0)
    costs = np.linalg.norm(places[edges[:, 0]] - places[edges[:, 1]], axis=-1)
    matrix = coo_array((costs, tuple(edges.T)), shape=(count, count)).tocsr()
    return dijkstra(matrix, directed=directed)[:points, :points]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_tours_with_a_leg_cost_at_least_what_is_said(seed: int, directed: bool, closed: bool) -> None:
    legs = circuit_legs(steps_between(7, seed, directed), closed)
    least = np.full(legs.shape, np.inf)
    for order in permutations(range(1, 7)):
        tour_legs = tuple(np.array([*pairwise((0, *order, 0))]).T)
        least[tour_legs] = np.minimum(least[tour_legs], legs[tour_legs].sum())
    bound, over = _ruled_out(legs, closed, float(least.min()) * 1.1)
    assert bound <= least.min() + 1e-6 and bound >= (0.5 if directed else 0.9) * least.min()
    np.fill_diagonal(over, 0)
    assert (bound + over <= least + 1e-6).all()


@pytest.mark.parametrize("directed", [False, True])
def test_what_is_uncrossed_visits_the_same_and_costs_no_more(directed: bool) -> None:
    legs = circuit_legs(steps_between(20, 0, directed), True)
    greedy = nearest_neighbour(legs)
    found = uncrossed(legs, greedy)
    assert found[0] == 0 and sorted(found) == list(range(20))
    assert length(legs, [*found, 0]) <= length(legs, [*greedy, 0])
