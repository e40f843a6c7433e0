"""The cheapest circuit through points, given what it costs to go from each to each.

CP-SAT of OR-tools searches, first over the few legs per point that a bound by spanning trees (Held and Karp,
Mathematical Programming 1, 1971) makes most likely, as Helsgaun's LKH chooses them, then over all that this bound
cannot rule out, so that the proof holds for all legs. That is much faster: without it 128 points are not proven within
10 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from time import perf_counter

import numpy as np
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import squareform

from policies.spec import Array

UNIT = 1e-3  # steps; CP-SAT counts whole ones, rounded down so that its bound holds
LEGS = 10  # per point that the first search may use
ROUNDS = 400  # of the bound by spanning trees


class NoTour(RuntimeError):
    """There is no tour, or none was found.

    Args:
        points: The numbers of the points that cannot be reached or seen; empty if none alone is to blame.
        message: The same in words, with the remedy.
    """

    def __init__(self, points: Sequence[int], message: str) -> None:
        super().__init__(message)
        self.points = tuple(points)

    def __reduce__(self) -> tuple[type[NoTour], tuple[tuple[int, ...], str]]:
        return type(self), (self.points, str(self))


def circuit_legs(steps: Array, closed: bool) -> Array:
    """Costs ``(P, P)`` of going from point to point; going back to the first one is free unless closed."""
    legs = steps.copy()
    legs[:, 0] = legs[:, 0] if closed else 0.0
    return legs


def length(legs: Array, order: Sequence[int]) -> float:
    """Cost of going through points in turn."""
    return float(sum(legs[leg] for leg in pairwise(order)))


def cheapest(legs: Array, closed: bool, limit_s: float, seed: int) -> tuple[list[int], float]:
    """The cheapest order of all points found and a lower bound."""
    hint = uncrossed(legs, nearest_neighbour(legs))
    if len(legs) <= LEGS:
        return circuit(legs, np.ones(legs.shape, bool), hint, limit_s, seed)
    until = perf_counter() + limit_s
    least, over = _ruled_out(legs, closed, length(legs, [*hint, 0]))
    tried = likely(over, legs)
    try:
        order, bound = circuit(legs, tried, hint, limit_s / 2, seed)
    except NoTour:  # where legs have directions these few may not suffice
        return circuit(legs, np.isfinite(legs), hint, limit_s / 2, seed)
    needed = over <= length(legs, [*order, 0]) - least + 1e-6  # no cheaper tour has any other leg
    if (needed & np.isfinite(legs) & ~tried).any() and least < length(legs, [*order, 0]):
        order, bound = circuit(legs, needed, order, max(until - perf_counter(), limit_s / 4), seed)
    return order, max(bound, least)


def circuit(
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
    if hint and np.isfinite(length(legs, [*hint, 0])):
        return list(hint), bound
    raise NoTour((), f"no tour found within {limit_s:g} s; allow more time or fewer points")


def likely(over: Array, legs: Array) -> Array:
    """For each point the few legs ``(P, P)`` from and to it that are over the bound by least, and all to the first."""
    rank = np.minimum(over, over.T).argsort(1, kind="stable").argsort(1)
    few = (rank <= LEGS) & np.isfinite(legs)
    few |= few.T
    few[:, 0] = few[0] = True
    return few


def nearest_neighbour(legs: Array) -> list[int]:
    """An order that begins at point 0 and goes to the nearest point left each time; ``legs (P, P)`` are steps."""
    order, left = [0], set(range(1, len(legs)))
    while left:
        order.append(min(left, key=lambda point: (legs[order[-1], point], point)))
        left.remove(order[-1])
    return order


def uncrossed(legs: Array, order: Sequence[int]) -> list[int]:
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
