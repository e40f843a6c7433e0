"""Tours over a graph of states: to visit all points, or to see all of them from somewhere.

Ways between points are shortest paths, so that a tour is a travelling salesman problem in their costs. CP-SAT of
OR-tools solves it as one circuit, first over the few legs per point that a bound by spanning trees (Held and Karp,
Mathematical Programming 1, 1971) makes most likely, as Helsgaun's LKH chooses them, then over all that this bound
cannot rule out, so that the proof holds for all legs. That is much faster: without it 128 points are not proven within
10 s. Inspection, as XDiffuser (arXiv 2605.16863) has it, chooses the places to look from as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf
from time import perf_counter
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree
from scipy.spatial.distance import squareform

from planners.edges import GraphError, Joints
from planners.graph import StateGraph
from planners.search import Route
from policies.spec import Array

UNIT = 1e-3  # steps; CP-SAT counts whole ones, rounded down so that its bound holds
LEGS = 10  # per point that the first search may use
ROUNDS = 400  # of the bound by spanning trees
DRAFTS, FEW, MOST = 64, 24, 40  # inspections drafted; the search chooses from all places if few, else from theirs

Sees = Callable[[Array, Array], Array]  # from states (M, D), a point of interest (2,): whether it is seen (M,)


class NoTour(Exception):
    """There is no tour, or none was found.

    Args:
        points: The numbers of the points that cannot be reached or seen; empty if none alone is to blame.
        message: The same in words, with the remedy.
    """

    def __init__(self, points: Sequence[int], message: str) -> None:
        super().__init__(message)
        self.points = tuple(points)


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
    legs = _legs(steps, closed)
    order, bound = _cheapest(legs, closed, limit_s, seed)
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
    drafts.sort(key=lambda draft: _length(steps, draft))
    seeing = np.flatnonzero(seen.any(0)).tolist()
    drafted = seeing if len(seeing) <= FEW or not drafts else [place for draft in drafts for place in draft]
    places = list(dict.fromkeys([first, *drafted]))[: max(MOST, len(drafts[0])) if drafts else None]
    legs = _legs(steps[np.ix_(places, places)], False)
    hint = [places.index(place) for place in drafts[0]] if drafts else []
    usable = np.ones(legs.shape, bool) if len(seeing) <= FEW else _likely(legs, legs)
    order, bound = _circuit(legs, usable, hint, limit_s, seed, seen[:, places])
    stops = np.array([places[place] for place in order])
    route = _walk(wider, stops)
    return Tour(route, stops, route.cost, min(bound, route.cost))


def nearest_neighbour(legs: Array) -> list[int]:
    """An order that begins at point 0 and goes to the nearest point left each time; ``legs (P, P)`` are steps."""
    order, left = [0], set(range(1, len(legs)))
    while left:
        order.append(min(left, key=lambda point: (legs[order[-1], point], point)))
        left.remove(order[-1])
    return order


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


def _legs(steps: Array, closed: bool) -> Array:
    """Costs ``(P, P)`` of going from point to point; going back to the first one is free unless closed."""
    legs = steps.copy()
    legs[:, 0] = legs[:, 0] if closed else 0.0
    return legs


def _length(legs: Array, order: Sequence[int]) -> float:
    """Cost of going through points in turn."""
    return float(sum(legs[leg] for leg in pairwise(order)))


def _cheapest(legs: Array, closed: bool, limit_s: float, seed: int) -> tuple[list[int], float]:
    """The cheapest order of all points found and a lower bound."""
    hint = _uncrossed(legs, nearest_neighbour(legs))
    if len(legs) <= LEGS:
        return _circuit(legs, np.ones(legs.shape, bool), hint, limit_s, seed)
    until = perf_counter() + limit_s
    least, over = _ruled_out(legs, closed, _length(legs, [*hint, 0]))
    tried = _likely(over, legs)
    try:
        order, bound = _circuit(legs, tried, hint, limit_s / 2, seed)
    except NoTour:  # where legs have directions these few may not suffice
        return _circuit(legs, np.isfinite(legs), hint, limit_s / 2, seed)
    needed = over <= _length(legs, [*order, 0]) - least + 1e-6  # no cheaper tour has any other leg
    if (needed & np.isfinite(legs) & ~tried).any() and least < _length(legs, [*order, 0]):
        order, bound = _circuit(legs, needed, order, max(until - perf_counter(), limit_s / 4), seed)
    return order, max(bound, least)


def _likely(over: Array, legs: Array) -> Array:
    """For each point the few legs ``(P, P)`` from and to it that are over the bound by least, and all to the first."""
    rank = np.minimum(over, over.T).argsort(1, kind="stable").argsort(1)
    few = (rank <= LEGS) & np.isfinite(legs)
    few |= few.T
    few[:, 0] = few[0] = True
    return few


def _circuit(
    legs: Array, usable: Array, hint: Sequence[int], limit_s: float, seed: int, seen: Array | None = None
) -> tuple[list[int], float]:
    """The cheapest circuit from point 0 that CP-SAT finds, and its bound, which holds for the usable legs only.

    Args:
        legs: Costs ``(P, P)``, infinite where there is no way.
        usable: Which of them may be used ``(P, P)``; those of the hint may too.
        hint: An order to begin with, empty for none.
        limit_s: Seconds.
        seed: Of the search.
        seen: What is seen from points ``(I, P)``. If given, points may be left out as long as all is seen.

    Raises:
        NoTour: None was found.
        ImportError: OR-tools is not installed.
    """
    if len(legs) == 1:
        return [0], 0.0
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise ImportError("tours need OR-tools: pip install 'kinoflow[planning]'") from error
    known = set(pairwise([*hint, 0]))
    usable = usable & ~np.eye(len(legs), dtype=bool)
    for pair in known:
        usable[pair] = True
    usable &= np.isfinite(legs)
    np.fill_diagonal(usable, seen is not None)  # whoever goes from a point to itself leaves it out
    usable[0, 0] = False
    model, pairs = cp_model.CpModel(), [(int(one), int(other)) for one, other in np.argwhere(usable)]
    taken = {pair: model.new_bool_var("") for pair in pairs}
    model.add_circuit([(*pair, literal) for pair, literal in taken.items()])
    for row in () if seen is None else np.unique(seen[~seen[:, 0]], axis=0):
        model.add_bool_or([taken[place, place].negated() for place in np.flatnonzero(row).tolist()])
    for pair, literal in taken.items() if hint else ():
        model.add_hint(literal, int(pair in known or (pair[0] == pair[1] and pair[0] not in hint)))
    costs = [0 if one == other else int(legs[one, other] / UNIT) for one, other in pairs]
    model.minimize(cp_model.LinearExpr.weighted_sum(list(taken.values()), costs))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.linearization_level = 2  # the bound without it stays a third too low
    solver.parameters.random_seed, solver.parameters.max_time_in_seconds = seed, limit_s
    status = solver.solve(model)
    bound = max(solver.best_objective_bound, 0) * UNIT
    if solver.status_name(status) in ("OPTIMAL", "FEASIBLE"):
        after = {one: other for (one, other), literal in taken.items() if solver.boolean_value(literal)}
        order = [0]
        while after[order[-1]] != 0:
            order.append(after[order[-1]])
        return order, bound
    if hint and np.isfinite(_length(legs, [*hint, 0])):
        return list(hint), bound
    raise NoTour((), f"no tour found within {limit_s:g} s; allow more time or fewer points")


def _ruled_out(legs: Array, closed: bool, upper: float) -> tuple[float, Array]:
    """A lower bound of all tours and by how much those with a leg ``(P, P)`` exceed it at least.

    A tour without one of its points is a path, and so a spanning tree of the others; a price for the neighbours of each
    point, changed until all have two, makes the cheapest tree a good bound. Open tours end at a point of their own that
    lies beside all others. Legs with directions count as the cheaper one, which is a bound as well.

    Args:
        legs: Costs; infinite ones are ruled out.
        closed: Whether the first point is the end.
        upper: Cost of a tour, towards which prices are raised.
    """
    most = float(legs[np.isfinite(legs)].max()) + 1.0
    one_way, upper = np.where(np.isfinite(legs), legs, 1e3 * most), min(upper, most * len(legs))
    steps = np.minimum(one_way, one_way.T)
    if not closed:
        steps[0], steps[:, 0] = one_way[0], one_way[0]
    inner = steps[1:, 1:] if closed else steps
    tie = steps[0, 1:].copy() if closed else np.zeros(len(legs))
    forced = 0.0 if closed else 10.0 * most * len(legs)
    tie[0] -= forced  # the point that open tours end at lies beside the first one
    count, price, scale, best, stalled = len(inner), np.zeros(len(inner)), 2.0, (-inf, np.zeros(len(inner))), 0
    for _ in range(ROUNDS):
        weights = inner - price[:, None] - price
        low = weights.min() - 1.0  # zeros would be no edges
        one, other = minimum_spanning_tree(weights - low).nonzero()
        ends = np.argsort(tie - price, kind="stable")[:2]
        value = float(weights[one, other].sum() + (tie - price)[ends].sum() + 2 * price.sum() + forced)
        missing = 2 - np.bincount(np.r_[one, other, ends], minlength=count)
        stalled = 0 if value > best[0] else stalled + 1
        best = max(best, (value, price), key=lambda found: found[0])
        if not missing.any() or value >= upper or scale < UNIT:
            break
        if stalled == 10:
            scale, stalled = scale / 2, 0
        price = price + scale * max(upper - value, UNIT) / (missing @ missing) * missing
    least, price = best
    weights = inner - price[:, None] - price
    weights = (weights + weights.T) / 2 - weights.min() + 1.0
    np.fill_diagonal(weights, 0.0)
    over = weights - squareform(cophenet(linkage(squareform(weights), "single")))  # than the tree edge it would replace
    to_end = np.maximum(tie - price - np.sort(tie - price)[1], 0.0)
    found = legs - steps  # of legs against the cheaper direction
    found[-count:, -count:] += over
    if closed:
        found[1:, 0] += to_end
        found[0, 1:] += to_end
    else:
        found[:, 0] = to_end
    return least, found


def _uncrossed(legs: Array, order: Sequence[int]) -> list[int]:
    """Turn parts of an order round as long as that makes it cheaper (2-opt), whether or not legs have directions."""
    way = np.array([*order, 0])
    legs = np.where(np.isfinite(legs), legs, 1e9)
    while True:
        one, other = way[:-1], way[1:]
        there, back = np.r_[0.0, np.cumsum(legs[one, other])], np.r_[0.0, np.cumsum(legs[other, one])]
        gain = legs[one[:, None], one] + legs[other[:, None], other] - legs[one, other][:, None] - legs[one, other]
        gain += (back - there)[:-1] - (back - there)[1:, None]
        gain[np.tril_indices(len(one))] = 0.0
        first, last = divmod(int(gain.argmin()), len(one))
        if gain[first, last] > -1e-6:
            return way[:-1].tolist()
        way[first + 1 : last + 1] = way[first + 1 : last + 1][::-1].copy()


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
    while (now := _length(steps, order)) < cost - 1e-6:
        cost, place = now, 1
        order = [order[index] for index in _uncrossed(_legs(steps[np.ix_(order, order)], False), range(len(order)))]
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
