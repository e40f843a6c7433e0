"""Paths of several agents on one graph that keep a safety distance at all times, and the same check for any paths.

Agents go straight along edges at constant speed, each edge in the whole number of steps that its cost is rounded up to,
and may wait at nodes for whole steps; who has arrived stays there as an obstacle. Within a step all agents move
linearly, so their least distance has a closed form and nothing is sampled.

They are planned one after the other (prioritised planning, Erdmann and Lozano-Perez 1987; as XDiffuser, arXiv
2605.16863, does), which is fast but may refuse what is possible, or by conflict-based search (Sharon et al., Artificial
Intelligence 219, 2015), which is optimal in the sum of costs but takes exponentially long where agents meet head-on in
a corridor. Both search with `planners.intervals`.

Paths that a tracker has driven or a denoiser has drawn are checked by `conflicts` and mended by `repair`.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import combinations, count
from math import factorial, inf
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse.csgraph import dijkstra

from planners.edges import GraphError
from planners.graph import StateGraph
from planners.intervals import TOLERANCE, Ban, Bans, Others, Road, Way, closest, fastest_way, together
from planners.search import Route
from policies.spec import Array

Reason = Literal["start", "goal", "components", "blocked", "budget"]


class NoJointPlan(RuntimeError):
    """There are no paths for all agents, or none were found.

    Args:
        reason: Two ``"start"`` or ``"goal"`` positions are too near each other, no way connects the ``"components"`` of
            start and goal, the other agents leave an agent ``"blocked"``, or the ``"budget"`` of a search is spent.
        agent: The one that could not be planned, None where it is not one alone.
        message: The same in words, with the remedy.
    """

    def __init__(self, reason: Reason, agent: int | None, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.agent = agent

    def __reduce__(self) -> tuple[type[NoJointPlan], tuple[Reason, int | None, str]]:
        return type(self), (self.reason, self.agent, str(self))


class Conflict(NamedTuple):
    """Where two agents come too near each other first.

    Args:
        agents: The two, the lower number first.
        step: It happens between this one and the next.
        distance: The least within that step, metres.
    """

    agents: tuple[int, int]
    step: int
    distance: float


class Plan(NamedTuple):
    """Paths of all agents.

    Args:
        routes: By agent the waypoints, of which waits have two, and when to be there.
    """

    routes: tuple[Route, ...]

    @property
    def positions(self) -> list[Array]:
        """By agent where it is at each step from 0 to its arrival ``(T, 2)``, metres; it stays at the last one."""
        return [_positions(route) for route in self.routes]

    @property
    def arrivals(self) -> list[int]:
        """By agent the step from which on it is at its goal for good."""
        return [int(route.times[-1]) for route in self.routes]

    @property
    def cost(self) -> int:
        """The sum of the arrivals."""
        return sum(self.arrivals)


def conflicts(paths: Sequence[Array], distance: float) -> list[Conflict]:
    """The first conflict of each pair of agents that has any, in the order of their steps.

    Args:
        paths: By agent where it is at each step ``(T, 2)``, metres, however it got there; each stays at its last
            position. Between steps agents are taken to move straight and at constant speed.
        distance: That any two agents have to keep at all times, metres.

    Raises:
        GraphError: A path is not ``(T, 2)``, empty or not finite, or the distance is negative.
    """
    _check_paths(paths, distance)
    tracks, found = together(paths), []
    for pair in combinations(range(len(tracks)), 2):
        away = tracks[pair[0]] - tracks[pair[1]]
        least = closest(away[:-1], away[1:])[1]
        near = np.flatnonzero(least < distance - TOLERANCE)
        if len(near):
            found.append(Conflict(pair, int(near[0]), float(least[near[0]])))
    return sorted(found, key=lambda conflict: conflict.step)


def prioritised(
    graph: StateGraph,
    starts: Sequence[int] | Array,
    goals: Sequence[int] | Array,
    distance: float,
    rng: np.random.Generator,
    orders: int = 8,
) -> Plan:
    """Plan one agent after the other, each the fastest way among those before it; the best of several orders.

    The first order has the agent with the longest way first. After one that fails, the agent that failed goes first;
    else the order is drawn. It ends early if nobody has to give way.

    Args:
        graph: Undirected; the first two dimensions of its states are a position in metres. It stays as it is.
        starts: Nodes ``(A,)``; see `StateGraph.insert` for states that are none.
        goals: Nodes ``(A,)``.
        distance: That any two agents have to keep at all times, metres; with 0 each goes its own way.
        rng: Draws orders.
        orders: How many at most.

    Raises:
        NoJointPlan: No order has paths for all. There may be some nonetheless, which `conflict_based` may find.
        GraphError: Graph, nodes and distance do not fit together, or no order is allowed.
    """
    return _by_priority(_roads(graph, starts, goals, distance), distance, rng, orders)


def conflict_based(
    graph: StateGraph,
    starts: Sequence[int] | Array,
    goals: Sequence[int] | Array,
    distance: float,
    limit: int = 1000,
) -> Plan:
    """Paths of the least sum of costs, by conflict-based search.

    If two agents are too near each other, no plan has both of them in the disc around their middle, whose diameter is
    the safety distance, at that moment. So one or the other is banned from it, and both cases are searched.

    Args:
        graph: Undirected; the first two dimensions of its states are a position in metres. It stays as it is.
        starts: Nodes ``(A,)``; see `StateGraph.insert` for states that are none.
        goals: Nodes ``(A,)``.
        distance: That any two agents have to keep at all times, metres.
        limit: How many sets of bans may be expanded.

    Raises:
        NoJointPlan: There are no paths, or none were found within the limit.
        GraphError: Graph, nodes and distance do not fit together.
    """
    roads = _roads(graph, starts, goals, distance)
    number, queue = count(), list[tuple[int, int, int, list[tuple[Ban, ...]], list[Route], list[Conflict]]]()

    def push(bans: list[tuple[Ban, ...]], routes: list[Route]) -> None:
        found = conflicts([_positions(route) for route in routes], distance)
        heappush(queue, (Plan(tuple(routes)).cost, len(found), next(number), bans, routes, found))

    free = [fastest_way(road, Bans((), distance)) for road in roads]
    push([()] * len(roads), [_route(road, way) for road, way in zip(roads, free, strict=True) if way])
    for _ in range(limit):
        if not queue:
            raise NoJointPlan("blocked", None, "no agent can give way any more; choose other goals")
        *_, bans, routes, found = heappop(queue)
        if not found:
            return Plan(tuple(routes))
        ban = _middle(routes, found[0])
        for agent in found[0].agents:
            wider = (*bans[agent], ban)
            if way := fastest_way(roads[agent], Bans(wider, distance)):
                route = _route(roads[agent], way)
                push([*bans[:agent], wider, *bans[agent + 1 :]], [*routes[:agent], route, *routes[agent + 1 :]])
    raise NoJointPlan("budget", None, f"no paths found in {limit} expansions; allow more, or use `prioritised`")


def repair(paths: Sequence[Array], distance: float, rng: np.random.Generator, orders: int = 24) -> Plan:
    """Let agents wait on their paths so that no conflict is left; paths keep their shape.

    One agent after the other gets the least delay among those before it, in several orders, of which the one of least
    total delay counts; up to four agents have no more than 24. The least over all plans may still be less.

    Args:
        paths: By agent where it is at each step ``(T, 2)``, metres; each stays at its last position.
        distance: That any two agents have to keep at all times, metres.
        rng: Draws orders.
        orders: How many at most.

    Returns:
        The plan; the total delay is its cost less that of the paths.

    Raises:
        NoJointPlan: Waiting does not help in any of the orders; plan again.
        GraphError: There are no paths, one is not ``(T, 2)``, empty or not finite, the distance is negative, or no
            order is allowed.
    """
    if not len(paths):
        raise GraphError("there are no paths; give that of one agent at least")
    _check_paths(paths, distance)
    roads = []
    for path in paths:
        moved = np.flatnonzero((path != path[-1]).any(1))
        points = np.asarray(path[: moved[-1] + 2 if len(moved) else 1], float)
        last = len(points) - 1
        chain = [[(node + 1, 1)] for node in range(last)] + [[]]
        roads.append(Road(points, points, chain, np.arange(last, -1.0, -1.0), 0, last))
    _check_ends(roads, distance)
    return _by_priority(roads, distance, rng, orders)


def _roads(
    graph: StateGraph, starts: Sequence[int] | Array, goals: Sequence[int] | Array, distance: float
) -> list[Road]:
    """Of all agents, after checking what was asked for."""
    first, last = np.asarray(starts), np.asarray(goals)
    if graph.directed or graph.nodes.shape[1] < 2:
        raise GraphError("agents need an undirected graph whose states begin with a position (x, y)")
    if first.ndim != 1 or first.shape != last.shape or not len(first):
        raise GraphError(f"starts {first.shape} and goals {last.shape} are not as many nodes (A,), one at least")
    ends = np.r_[first, last]
    if ends.dtype.kind not in "iu" or not 0 <= ends.min() <= ends.max() < len(graph.nodes):
        raise GraphError(f"starts and goals {ends.tolist()} are not nodes 0 to {len(graph.nodes) - 1}")
    if not 0 <= distance < inf:
        raise GraphError(f"a safety distance of {distance} m is negative or not finite")
    steps = graph.matrix.copy()
    steps.data = np.maximum(np.ceil(steps.data - 1e-6), 1)  # costs are of float32 states
    rows = np.split(np.stack([steps.indices, steps.data.astype(int)], -1), steps.indptr[1:-1])
    moves = [[(int(node), int(time)) for node, time in row] for row in rows]
    points = graph.nodes[:, :2].astype(float)
    roads = [
        Road(graph.nodes, points, moves, dijkstra(steps, indices=goal), int(start), int(goal))
        for start, goal in zip(first, last, strict=True)
    ]
    _check_ends(roads, distance)
    return roads


def _check_ends(roads: Sequence[Road], distance: float) -> None:
    for agent, road in enumerate(roads):
        if not np.isfinite(road.remaining[road.start]):
            remedy = "join the graph, or open what is closed in it"
            raise NoJointPlan("components", agent, f"agent {agent} has no way to its goal even alone; {remedy}")
    for one, other in combinations(range(len(roads)), 2):
        ends: tuple[tuple[Reason, int, int], ...] = (
            ("start", roads[one].start, roads[other].start),
            ("goal", roads[one].goal, roads[other].goal),
        )
        for reason, here, there in ends:
            apart = float(np.linalg.norm(roads[one].points[here] - roads[other].points[there]))
            if apart < distance - TOLERANCE / 2:
                message = f"agents {one} and {other} have {reason}s {apart:.3g} m apart, less than {distance:g} m"
                raise NoJointPlan(reason, other, f"{message}; choose others")


def _check_paths(paths: Sequence[Array], distance: float) -> None:
    for agent, path in enumerate(paths):
        if path.ndim != 2 or path.shape[1] != 2 or not len(path) or not np.isfinite(path).all():
            raise GraphError(f"the path of agent {agent} is {path.shape}, empty or not finite, not (T, 2)")
    if not 0 <= distance < inf:
        raise GraphError(f"a safety distance of {distance} m is negative or not finite")


def _by_priority(roads: Sequence[Road], distance: float, rng: np.random.Generator, orders: int) -> Plan:
    """See `prioritised`."""
    if orders < 1:
        raise GraphError(f"orders is {orders}; try at least 1")
    alone = [int(road.remaining[road.start]) for road in roads]
    order = tuple(sorted(range(len(roads)), key=lambda agent: -alone[agent]))
    tried, best, blocked = set[tuple[int, ...]](), None, list[int]()
    for _ in range(min(orders, factorial(len(roads)))):
        while order in tried:
            order = tuple(map(int, rng.permutation(len(roads))))
        tried.add(order)
        found = _in_order(roads, order, distance)
        if isinstance(found, int):
            blocked.append(found)
            order = (found, *(agent for agent in order if agent != found))
        elif best is None or found.cost < best.cost:
            best = found
            if best.cost == sum(alone):
                break
    if best is None:
        agent = blocked[0] if blocked else None
        message = f"agent {agent} has no way among those before it, nor did {len(tried)} orders help"
        raise NoJointPlan("blocked", agent, f"{message}; allow more orders or choose other goals")
    return best


def _in_order(roads: Sequence[Road], order: Sequence[int], distance: float) -> Plan | int:
    """A plan, or the agent that has none among those before it."""
    routes: dict[int, Route] = {}
    for agent in order:
        way = fastest_way(roads[agent], Others([_positions(route) for route in routes.values()], distance))
        if way is None:
            return agent
        routes[agent] = _route(roads[agent], way)
    return Plan(tuple(routes[agent] for agent in range(len(roads))))


def _route(road: Road, way: Way) -> Route:
    nodes, times = zip(*way, strict=True)
    return Route(road.states[list(nodes)], np.array(times, float))


def _positions(route: Route) -> Array:
    """Where an agent is at each step ``(T, 2)``."""
    steps = np.arange(int(route.times[-1]) + 1)
    return np.stack([np.interp(steps, route.times, route.states[:, axis].astype(float)) for axis in (0, 1)], -1)


def _middle(routes: Sequence[Route], conflict: Conflict) -> Ban:
    """Between two agents when they are nearest each other within the step."""
    tracks, step = together([_positions(routes[agent]) for agent in conflict.agents]), conflict.step
    away = tracks[0] - tracks[1]
    share = float(closest(away[step], away[step + 1])[0])
    x, y = (tracks[:, step] * (1 - share) + tracks[:, step + 1] * share).mean(0).tolist()
    return Ban((x, y), step, share)
