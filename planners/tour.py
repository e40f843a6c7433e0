"""Tours over a graph of states: to visit all points, or to see all of them from somewhere.

Ways between points are shortest paths, so that a tour is a travelling salesman problem in their costs, which
`planners.circuit` solves. Inspection, as XDiffuser (arXiv 2605.16863) has it, chooses the places to look from as well.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import inf
from typing import NamedTuple

import numpy as np
from scipy.sparse.csgraph import dijkstra

from planners.circuit import UNIT, NoTour, cheapest, circuit, circuit_legs, length, likely, uncrossed
from planners.edges import GraphError, Joints
from planners.graph import StateGraph
from planners.search import Route
from policies.spec import Array

DRAFTS, FEW, MOST = 64, 24, 40  # inspections drafted; the search chooses from all places if few, else from theirs

Sees = Callable[[Array, Array], Array]  # from states (M, D), a point of interest (2,): whether it is seen (M,)


class Tour(NamedTuple):
    """A tour and how good it is proven to be.

    Args:
        route: All waypoints from the first point on, with the time at each.
        order: What is visited in turn: numbers of points ``(P,)``, or of an inspection the start, as the number of
            nodes, and nodes to look from ``(V,)``.
        cost: Of the route, steps.
        bound: No tour costs less, steps; of an inspection none that looks from the places searched.
    """

    route: Route
    order: Array
    cost: float
    bound: float

    @property
    def optimal(self) -> bool:
        """Whether the cost is proven to be the least, but for the rounding of each leg."""
        return self.cost <= self.bound + UNIT * len(self.order) + 1e-6


def tour(
    graph: StateGraph,
    points: Array,
    joints: Joints | None = None,
    closed: bool = False,
    limit_s: float = 10.0,
    seed: int = 0,
) -> Tour:
    """The cheapest way from the first of some points through all others, in any order.

    The same seed gives the same tour as long as the limit cuts no search short.

    Args:
        graph: Stays as it is.
        points: States ``(P, D)``, which need not be nodes.
        joints: How these are joined to the graph.
        closed: Whether it ends where it begins.
        limit_s: Seconds for the search.
        seed: Of the search.

    Raises:
        NoTour: There is none, or none was found within the limit.
        GraphError: There are no points, or they do not fit the graph.
        ImportError: OR-tools is not installed.
    """
    if not len(points):
        raise GraphError("a tour needs at least the point that it begins at")
    wider = graph.insert(points, joints)
    numbers = np.arange(len(graph.nodes), len(wider.nodes))
    steps = dijkstra(wider.matrix, indices=numbers)[:, numbers]
    _check(steps, closed)
    legs = circuit_legs(steps, closed)
    order, bound = cheapest(legs, closed, limit_s, seed)
    stops = numbers[[*order, 0] if closed else order]
    route = _walk(wider, stops)
    return Tour(route, np.array(order), route.cost, min(bound, route.cost))


def inspection(
    graph: StateGraph,
    start: Array,
    interests: Array,
    sees: Sees,
    joints: Joints | None = None,
    limit_s: float = 10.0,
    seed: int = 0,
) -> Tour:
    """A cheap way from a start past nodes that all points of interest are seen from.

    The nodes are chosen and ordered at once, but only from those that the best of many greedy drafts look from, and
    each is left only for one of few near it. The bound, and so whether it is optimal, is of this reduced problem: there
    may be cheaper ways past other nodes. It is the whole one if a handful of nodes see anything at all. Distances
    between all nodes are held in memory.

    Args:
        graph: Stays as it is.
        start: State ``(D,)``, which need not be a node; interests are seen from there as well.
        interests: Points ``(P, 2)``.
        sees: Decides what is seen from where.
        joints: How the start is joined to the graph.
        limit_s: Seconds for the search; drafts take a second or so more.
        seed: Of drafts and search.

    Raises:
        NoTour: An interest is seen from no node that can be reached, or no way was found within the limit.
        GraphError: The start does not fit the graph.
        ImportError: OR-tools is not installed.
    """
    wider, first = graph.insert(np.asarray(start)[None], joints), len(graph.nodes)
    steps = dijkstra(wider.matrix)
    seen = np.zeros((len(interests), len(wider.nodes)), bool)
    for row, interest in zip(seen, interests, strict=True):
        row[:] = sees(wider.nodes, interest) & np.isfinite(steps[first])
    if len(unseen := np.flatnonzero(~seen.any(1))):
        message = f"interests {unseen.tolist()} are seen from no node that can be reached from the start"
        raise NoTour(unseen.tolist(), f"{message}; leave them out, add nodes or open what is closed")
    if seen[:, first].all():
        return Tour(Route(wider.nodes[[first]], np.zeros(1)), np.array([first]), 0.0, 0.0)
    rng, drafts = np.random.default_rng(seed), list[list[int]]()
    for _ in range(DRAFTS):
        if draft := _draft(steps, seen, first, rng):
            drafts.append(_polished(steps, seen, draft))
    drafts.sort(key=lambda draft: length(steps, draft))
    seeing = np.flatnonzero(seen.any(0)).tolist()
    drafted = seeing if len(seeing) <= FEW or not drafts else [place for draft in drafts for place in draft]
    places = list(dict.fromkeys([first, *drafted]))[: max(MOST, len(drafts[0])) if drafts else None]
    legs = circuit_legs(steps[np.ix_(places, places)], False)
    hint = [places.index(place) for place in drafts[0]] if drafts else []
    usable = np.ones(legs.shape, bool) if len(seeing) <= FEW else likely(legs, legs)
    order, bound = circuit(legs, usable, hint, limit_s, seed, seen[:, places])
    stops = np.array([places[place] for place in order])
    route = _walk(wider, stops)
    return Tour(route, stops, route.cost, min(bound, route.cost))


def _check(steps: Array, closed: bool) -> None:
    """Refuse points that no tour can reach; the costs ``(P, P)`` may be infinite."""
    reached = np.isfinite(steps)
    if len(lost := np.flatnonzero(~(reached[0] & (reached[:, 0] | (not closed))))):
        ways = "to and from" if closed else "to"
        message = f"there is no way {ways} points {lost.tolist()}, beginning at point 0"
        raise NoTour(lost.tolist(), f"{message}; leave them out, open what is closed or allow wider joints")
    if len(apart := np.argwhere(~(reached | reached.T))):
        one, other = apart[0].tolist()
        message = f"no way leads from point {one} to point {other} or back, so that no tour has both"
        raise NoTour([one, other], f"{message}; leave one out or make the graph undirected")


def _draft(steps: Array, seen: Array, first: int, rng: np.random.Generator) -> list[int]:
    """Go to the nearest node that sees something new, or to one that sees more; empty if that leads nowhere."""
    order, left = [first], ~seen[:, first]
    worth, taste = rng.uniform(0, 2), rng.uniform(0.8, 1.25, len(steps))
    while left.any():
        new = seen[left].sum(0)
        score = np.where(new > 0, taste * (steps[order[-1]] + 1) / np.maximum(new, 1) ** worth, inf)
        order.append(int(score.argmin()))
        if np.isinf(score[order[-1]]):
            return []
        left &= ~seen[:, order[-1]]
    return order


def _polished(steps: Array, seen: Array, order: list[int]) -> list[int]:
    """Reorder, drop what is not needed and move the rest to where it costs least, as long as that helps."""
    cost = inf
    while (now := length(steps, order)) < cost - 1e-6:
        cost, place = now, 1
        order = [
            order[index] for index in uncrossed(circuit_legs(steps[np.ix_(order, order)], False), range(len(order)))
        ]
        while place < len(order):
            duty = ~seen[:, order[:place] + order[place + 1 :]].any(1)
            if duty.any():
                onward = steps[:, order[place + 1]] if place + 1 < len(order) else 0.0
                via = np.where(seen[duty].all(0), steps[order[place - 1]] + onward, inf)
                order[place] = int(via.argmin())
                place += 1
            else:
                del order[place]
    return order


def _walk(graph: StateGraph, stops: Array) -> Route:
    """Shortest paths from stop to stop, as one."""
    states, times = [graph.nodes[stops[:1]]], [np.zeros(1)]
    for one, other in pairwise(stops.tolist()):
        distance, before = dijkstra(graph.matrix, indices=one, return_predecessors=True)
        way = [other]
        while way[-1] != one:
            way.append(int(before[way[-1]]))
        way = way[-2::-1]
        states.append(graph.nodes[way])
        times.append(times[-1][-1] + distance[way])
    return Route(np.concatenate(states), np.concatenate(times))
