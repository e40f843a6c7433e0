"""Ways through a graph of states, with the time at each waypoint, or the reason why there is none.

The plans of XDiffuser (arXiv 2605.16863) are shortest paths whose waypoints carry their accumulated cost as time
stamps, thinned out to one every few steps. Searching is scipy's.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra, yen

from planners.edges import GraphError, Joints
from planners.graph import StateGraph
from policies.spec import Array

Reason = Literal["start", "goal", "components", "closed"]


class NoRoute(RuntimeError):
    """There is no way from a start to a goal.

    Args:
        reason: ``"start"`` or ``"goal"`` cannot be joined to the graph, no trajectory connects the ``"components"``
            that they are in, or all ways between them are ``"closed"``.
        message: The same in words, with the remedy.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason

    def __reduce__(self) -> tuple[type[NoRoute], tuple[Reason, str]]:
        return type(self), (self.reason, str(self))


class Route(NamedTuple):
    """Waypoints from a start to a goal, both included.

    Args:
        states: ``(M, D)``, float32.
        times: When to be there ``(M,)``, in steps since the start.
    """

    states: Array
    times: Array

    @property
    def cost(self) -> float:
        """Steps from the start to the goal."""
        return float(self.times[-1])


def shortest_path(graph: StateGraph, start: Array, goal: Array, joints: Joints | None = None) -> Route:
    """The cheapest way between two states ``(D,)``, which need not be nodes.

    Args:
        graph: Stays as it is.
        start: Where to begin.
        goal: Where to end.
        joints: How these two are joined to the graph.

    Raises:
        NoRoute: There is none.
        GraphError: The states do not fit the graph.
    """
    wider, first, last = _with_ends(graph, start, goal, joints)
    distance, before = dijkstra(wider.matrix, indices=first, return_predecessors=True)
    if np.isinf(distance[last]):
        raise _refusal(graph, start, goal, joints)
    return _route(wider, before, first, last)


def k_alternatives(
    graph: StateGraph, start: Array, goal: Array, count: int, joints: Joints | None = None
) -> list[Route]:
    """The cheapest ways between two states ``(D,)`` that visit no node twice, in ascending order (Yen 1971).

    In a dense graph they differ in few waypoints; for another corridor, close edges of this one and search again.

    Args:
        graph: Stays as it is.
        start: Where to begin.
        goal: Where to end.
        count: How many at most.
        joints: How start and goal are joined to the graph.

    Raises:
        NoRoute: There is none.
        GraphError: The states do not fit the graph, or the count is not positive.
    """
    if count < 1:
        raise GraphError(f"{count} alternatives are none; ask for at least 1")
    wider, first, last = _with_ends(graph, start, goal, joints)
    found, before = yen(wider.matrix, first, last, count, return_predecessors=True)
    if not len(found):
        raise _refusal(graph, start, goal, joints)
    return [_route(wider, before_one, first, last) for before_one in before]


def downsampled(route: Route, every: float) -> Route:
    """Start, goal and of the waypoints between them those at least so many steps after the last one kept.

    Args:
        route: A way.
        every: Steps; XDiffuser takes 12.
    """
    kept, last = [0], len(route.times) - 1
    for index in range(1, last):
        if route.times[index] >= route.times[kept[-1]] + every:
            kept.append(index)
    kept.append(last)
    return Route(route.states[kept], route.times[kept])


def _with_ends(graph: StateGraph, start: Array, goal: Array, joints: Joints | None) -> tuple[StateGraph, int, int]:
    """The graph with start and goal and their numbers in it."""
    wider = graph.insert(np.stack([start, goal]), joints)
    return wider, len(graph.nodes), len(graph.nodes) + 1


def _route(graph: StateGraph, before: Array, first: int, last: int) -> Route:
    """Follow predecessors ``(N,)`` back from the last node."""
    way = [last]
    while way[-1] != first:
        way.append(int(before[way[-1]]))
    way.reverse()
    steps = [graph.matrix[pair] for pair in pairwise(way)]
    return Route(graph.nodes[way], np.r_[0.0, np.cumsum(steps)])


def _refusal(graph: StateGraph, start: Array, goal: Array, joints: Joints | None) -> NoRoute:
    """Why there is no way."""
    wider, first, last = _with_ends(graph.all_open(), start, goal, joints)
    reach = (joints or Joints()).reach
    ends: tuple[tuple[Reason, Array, csr_array], ...] = (
        ("start", start, wider.matrix[[first]]),
        ("goal", goal, wider.matrix[:, [last]]),
    )
    for reason, state, matrix in ends:
        if not matrix.nnz:
            where = np.asarray(state).round(3).tolist()
            message = f"the {reason} {where} cannot be joined to any node within {reach:g} steps"
            return NoRoute(reason, f"{message}; is it in a wall, or far from all data?")
    if np.isfinite(dijkstra(wider.matrix, indices=first)[last]):
        return NoRoute("closed", "every way from start to goal leads over something that is closed; open it or wait")
    parts = wider.components
    sizes = [int((parts == parts[index]).sum()) for index in (first, last)]
    return NoRoute(
        "components",
        f"start and goal are in components of {sizes[0]} and {sizes[1]} nodes that no trajectory connects; "
        "`StateGraph.joined` joins components without evidence",
    )
