"""Which states of a dataset lead to which: by what trajectories have done, or by nearness.

XDiffuser (arXiv 2605.16863) and GAS (graph-assisted stitching) connect states that are near in a learned temporal
distance. The shortest path seeks the edges that this gets wrong, so that few of them break most plans. Here an edge is
there if a trajectory has gone that way (`evidence_edges`) and there are states all along it (`without_holes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import KDTree

from policies.spec import Array, ContractError

WITHIN = 10  # steps; with 40 there are edges through walls
CLOSE = 0.95  # share of the states that have another one nearer than what counts as a hole
SURPLUS, HALVINGS = 20, 12  # states drawn per node that is kept, and bisections of the distance between nodes
PROBES = 5000  # states that are asked how near the next one is

Cost = Callable[[Array, Array], Array]  # from states (M, D) to states (M, D): steps (M,), not negative
Valid = Callable[[Array, Array], Array]  # from states (M, D) to states (M, D): whether one can go straight (M,)


class GraphError(ContractError):
    """A graph, a file of one or a request to it does not fit; the message names what and the remedy."""


@dataclass(frozen=True)
class Straight:
    """Steps along the straight line between states.

    Args:
        speed: Distance per step, in the units of the states.
    """

    speed: float

    def __call__(self, start: Array, end: Array) -> Array:
        """Steps ``(M,)`` from states ``(M, D)`` to states ``(M, D)``."""
        return np.linalg.norm(np.asarray(end, float) - start, axis=-1) / self.speed


@dataclass(frozen=True)
class Joints:
    """How states that are no nodes are joined to a graph.

    Args:
        neighbours: At most to so many nodes, the nearest by cost.
        reach: To none that is further, steps. Twice `WITHIN`: a leap further than any evidence is a guess.
        valid: To none that it does not pass, if given.
    """

    neighbours: int = 10
    reach: float = 2.0 * WITHIN
    valid: Valid | None = None


def checked_trajectories(trajectories: Sequence[Array], dim: int | None = None) -> list[Array]:
    """Trajectories as float32 arrays ``(T, D)``, all of the same dimensions.

    Args:
        trajectories: Arrays, one state per step.
        dim: D, if it has to be a certain one.

    Raises:
        GraphError: One has another shape or a state that is not finite, or there is no state at all.
    """
    found = [np.asarray(states, np.float32) for states in trajectories]
    for index, states in enumerate(found):
        if states.ndim != 2 or states.shape[1] != (dim or found[0].shape[1]):
            wanted = f"(T, {dim})" if dim else "(T, D) with the same D for all"
            raise GraphError(f"trajectory {index} has shape {states.shape}, not {wanted}: one state per step")
        if not np.isfinite(states).all():
            raise GraphError(f"trajectory {index} has a state that is not finite; drop such states")
    if not sum(map(len, found)):
        raise GraphError(f"{len(found)} trajectories have no state between them; record some first")
    return found


def sample_nodes(trajectories: Sequence[Array], count: int, rng: np.random.Generator) -> Array:
    """States ``(count, D)`` drawn uniformly and without repetition from trajectories ``(T, D)``.

    Raises:
        GraphError: There are not so many.
    """
    total = sum(map(len, trajectories))
    if not 0 < count <= total:
        raise GraphError(f"{count} nodes cannot be drawn from {total} states")
    return np.asarray(np.concatenate(trajectories)[rng.choice(total, count, replace=False)], np.float32)


def even_nodes(trajectories: Sequence[Array], count: int, rng: np.random.Generator) -> Array:
    """States ``(count, D)`` of trajectories ``(T, D)``, in random order and nowhere close together.

    Uniform samples leave places that trajectories seldom visit, such as dead ends, with hardly a node. Of states drawn
    uniformly, here each is left out that is too near to one before it; how near that is follows from the count.

    Raises:
        GraphError: There are not so many states.
    """
    drawn = sample_nodes(trajectories, min(SURPLUS * count, sum(map(len, trajectories))), rng)
    if len(drawn) < count:
        raise GraphError(f"{count} nodes cannot be drawn from {len(drawn)} states")
    tree, low, high = KDTree(drawn), 0.0, float(np.linalg.norm(np.ptp(drawn, axis=0)))
    enough = np.arange(count)
    for _ in range(HALVINGS):
        apart = (low + high) / 2
        kept = _apart(tree, apart)
        if len(kept) >= count:
            low, enough = apart, kept[:count]
        else:
            high = apart
    return drawn[enough]


def _apart(tree: KDTree, distance: float) -> Array:
    """Indices of points that keep a distance from each other, the first ones first."""
    left, kept = np.ones(tree.n, bool), []
    for index in range(tree.n):
        if left[index]:
            left[tree.query_ball_point(tree.data[index], distance)] = False
            kept.append(index)
    return np.array(kept)


def evidence_edges(trajectories: Sequence[Array], nodes: Array, within: int = WITHIN) -> Array:
    """Pairs of nodes ``(E, 2)`` such that a trajectory has gone from near the first to near the second.

    A state is near the node that is nearest to it.

    Args:
        trajectories: Arrays ``(T, D)``, one state per step.
        nodes: States ``(N, D)``.
        within: Steps that it may have taken. The longer, the more corners an edge cuts.
    """
    states, trajectory = _pooled(trajectories)
    near = KDTree(nodes).query(states)[1].astype(np.int64)
    found = []
    for steps in range(1, within + 1):
        start, end = near[:-steps], near[steps:]
        gone = (trajectory[:-steps] == trajectory[steps:]) & (start != end)
        found.append(np.unique(start[gone] * len(nodes) + end[gone]))
    codes = np.unique(np.concatenate(found))
    return np.stack([codes // len(nodes), codes % len(nodes)], -1)


def usual_gap(trajectories: Sequence[Array]) -> float:
    """Distance within which nearly every state of trajectories ``(T, D)`` has another one.

    States that follow each other do not count, so this says how densely trajectories lie beside each other; infinite
    if there are too few to say.
    """
    states, trajectory = _pooled(trajectories)
    probes = np.arange(0, len(states), max(1, len(states) // PROBES))
    distance, near = KDTree(states).query(states[probes], k=2 * WITHIN + 2)  # one more than those that do not count
    near = np.minimum(near, len(states) - 1)  # what is missing is infinitely far away
    follows = (trajectory[near] == trajectory[probes, None]) & (np.abs(near - probes[:, None]) <= WITHIN)
    return float(np.quantile(np.where(follows, np.inf, distance).min(1), CLOSE, method="lower"))


def without_holes(trajectories: Sequence[Array], nodes: Array, edges: Array, gap: float) -> Array:
    """Those of the edges ``(E, 2)`` that have states nearby all along the straight line between their nodes.

    Evidence alone lets edges cut the ends of walls, or begin beyond a thin one, because what is near a node need not be
    on its side. There are no states in walls. Where trajectories are rare, edges with holes of up to two gaps stay if
    they are the best way to connect what would fall apart; none of all these crosses a wall thicker than five gaps.

    Args:
        trajectories: Arrays ``(T, D)``.
        nodes: States ``(N, D)``.
        edges: Pairs of nodes.
        gap: How far the nearest state may be. Infinite where straight lines between states mean nothing.

    Raises:
        GraphError: The gap is not positive.
    """
    if not gap > 0:
        raise GraphError(
            f"a gap of {gap} leaves no edge; if states repeat exactly, `usual_gap` is 0 and one must be given"
        )
    if not (np.isfinite(gap) and len(edges)):
        return edges
    hole = _holes(_pooled(trajectories)[0], nodes, edges, gap)
    edges, hole = edges[hole <= 2 * gap], hole[hole <= 2 * gap]
    codes = np.sort(edges, axis=1) @ [len(nodes), 1]
    pairs, one = np.unique(codes, return_index=True)  # whether an edge has a way back does not matter here
    # Of all trees over the nodes that of least holes; all holes up to a gap are alike.
    weights, ends = np.maximum(hole[one], gap), (pairs // len(nodes), pairs % len(nodes))
    tree = minimum_spanning_tree(coo_array((weights, ends), shape=(len(nodes),) * 2).tocsr())
    return edges[(hole <= gap) | np.isin(codes, np.stack(tree.nonzero(), -1) @ [len(nodes), 1])]


def _holes(states: Array, nodes: Array, edges: Array, gap: float) -> Array:
    """Greatest distance ``(E,)`` to the nearest state along edges, in places a gap apart; infinite beyond two gaps."""
    start, way = nodes[edges[:, 0]], nodes[edges[:, 1]] - nodes[edges[:, 0]]
    count = np.ceil(np.linalg.norm(way, axis=-1) / gap).astype(int) + 1
    edge, first = np.repeat(np.arange(len(edges)), count), np.cumsum(count) - count
    share = (np.arange(len(edge)) - first[edge]) / np.maximum(count[edge] - 1, 1)
    places = start[edge] + share[:, None] * way[edge]
    distance = KDTree(states).query(places, distance_upper_bound=2.001 * gap)[0]
    return np.maximum.reduceat(distance, first)


def _pooled(trajectories: Sequence[Array]) -> tuple[Array, Array]:
    """The states of trajectories one after the other and which one each is of."""
    return np.concatenate(trajectories), np.repeat(np.arange(len(trajectories)), [*map(len, trajectories)])


def nearest_edges(
    nodes: Array, cost: Cost, joints: Joints, chosen: Array | None = None, hidden: Array | None = None
) -> Array:
    """Pairs of nodes ``(E, 2)``: each chosen one and the nearest to it by cost, as XDiffuser has it.

    Args:
        nodes: States ``(N, D)``.
        cost: Steps from the chosen node.
        joints: How many, how far, and the test that they have to pass.
        chosen: Indices ``(P,)``, all nodes by default.
        hidden: Nodes ``(N,)`` that are not to be joined to, none by default.
    """
    found = []
    for index in range(len(nodes)) if chosen is None else chosen:
        start = np.broadcast_to(nodes[index], nodes.shape)
        steps = np.array(cost(start, nodes), float)
        steps[index] = np.inf
        if hidden is not None:
            steps[hidden] = np.inf
        near = np.flatnonzero((steps <= joints.reach) & np.isfinite(steps))
        near = near[np.argsort(steps[near], kind="stable")]
        if joints.valid is not None:
            near = near[joints.valid(start[near], nodes[near])]
        near = near[: joints.neighbours]
        found.append(np.stack([np.full(len(near), index), near], -1))
    return np.concatenate([np.empty((0, 2), np.int64), *found])


def unique_edges(edges: Array, directed: bool) -> Array:
    """Edges ``(E, 2)`` without repetitions and loops, in ascending order; the lower node first unless directed."""
    edges = edges[edges[:, 0] != edges[:, 1]]
    edges = edges if directed else np.sort(edges, axis=1)
    base = edges.max(initial=0) + 1
    codes = np.unique(edges[:, 0] * base + edges[:, 1])
    return np.stack([codes // base, codes % base], -1)
