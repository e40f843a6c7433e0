"""A graph over dataset states that can be searched, changed while driving, and kept in a file.

XDiffuser (arXiv 2605.16863) samples states of the dataset as nodes and plans along the shortest path between them, as
GAS (graph-assisted stitching) does. Here two questions are kept apart: which edges there are, see `planners.edges`, and
what they cost, which is up to a callable, a learned temporal distance or any other.

Searching is scipy's: it is installed wherever kinoflow is, its Dijkstra runs on the arrays as they are, and it has
Yen's alternatives, of which rustworkx has the lengths only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from planners.edges import (
    Cost,
    GraphError,
    Joints,
    checked_trajectories,
    even_nodes,
    evidence_edges,
    nearest_edges,
    unique_edges,
    usual_gap,
    without_holes,
)
from policies.files import replace_file
from policies.spec import Array

FORMAT = 1  # of the file
KINDS = {"nodes": "float32", "edges": "int64", "costs": "float64", "closed_nodes": "bool", "closed_edges": "bool"}


@dataclass(frozen=True, eq=False)
class StateGraph:
    """States, edges between them and their costs. Never changes: every change is a new graph that shares its arrays.

    Args:
        nodes: States ``(N, D)``, float32.
        edges: Pairs of nodes ``(E, 2)``, int64; from the first to the second if directed, else the lower one first.
        costs: Of the edges ``(E,)`` in steps, float64.
        cost: What the costs were computed with and those of joints will be; symmetric unless directed.
        directed: Whether edges lead one way only.
        closed_nodes: Nodes that cannot be used ``(N,)``, bool.
        closed_edges: Edges that cannot be used ``(E,)``, bool.

    Raises:
        GraphError: Shapes, indices or costs do not fit together.
    """

    nodes: Array
    edges: Array
    costs: Array
    cost: Cost
    directed: bool
    closed_nodes: Array
    closed_edges: Array

    def __post_init__(self) -> None:
        shapes = (self.costs.shape, self.closed_edges.shape, self.closed_nodes.shape, self.edges.shape)
        count = len(self.edges)
        if self.nodes.ndim != 2 or shapes != ((count,), (count,), (len(self.nodes),), (count, 2)):
            raise GraphError(f"nodes {self.nodes.shape}, edges, costs and closures {shapes} do not fit together")
        if not np.isfinite(self.nodes).all():
            raise GraphError("a node is not finite; drop such states from the trajectories")
        if not (np.isfinite(self.costs) & (self.costs >= 0)).all():
            raise GraphError("a cost is negative or not finite; the callable for the cost must return steps")
        _check_ends(self.edges, len(self.nodes))

    @classmethod
    def build(cls, nodes: Array, edges: Array, cost: Cost, directed: bool = False) -> StateGraph:
        """A graph with everything open.

        Args:
            nodes: States ``(N, D)``.
            edges: Pairs of nodes ``(E, 2)``; repeated ones count once, those from a node to itself not at all.
            cost: Of an edge.
            directed: Whether edges lead one way only.
        """
        nodes = np.asarray(nodes, np.float32)
        edges = unique_edges(np.asarray(edges, np.int64).reshape(-1, 2), directed)
        _check_ends(edges, len(nodes))
        costs = np.asarray(cost(nodes[edges[:, 0]], nodes[edges[:, 1]]), float)
        closed = np.zeros(len(nodes), bool), np.zeros(len(edges), bool)
        return cls(nodes, edges, costs, cost, directed, *closed)

    @classmethod
    def from_trajectories(
        cls,
        trajectories: Sequence[Array],
        count: int,
        rng: np.random.Generator,
        cost: Cost,
        gap: float | None = None,
        directed: bool = False,
    ) -> StateGraph:
        """A graph over states sampled from trajectories, with the edges that these are evidence of.

        Args:
            trajectories: Arrays ``(T, D)``, one state per step.
            count: How many nodes.
            rng: Draws them.
            cost: Of an edge.
            gap: See `without_holes`; `usual_gap` by default.
            directed: Whether the dynamics cannot be run backwards.

        Raises:
            GraphError: The trajectories are not ``(T, D)`` with the same D, not finite, or have fewer states.
        """
        trajectories = checked_trajectories(trajectories)
        nodes = even_nodes(trajectories, count, rng)
        edges = unique_edges(evidence_edges(trajectories, nodes), directed)
        edges = without_holes(trajectories, nodes, edges, usual_gap(trajectories) if gap is None else gap)
        return cls.build(nodes, edges, cost, directed)

    @cached_property
    def matrix(self) -> csr_array:
        """Costs ``(N, N)`` of the edges that are open, both ways unless directed."""
        usable = ~(self.closed_edges | self.closed_nodes[self.edges].any(1))
        (start, end), costs = self.edges[usable].T.astype(np.int32), self.costs[usable]  # what scipy searches
        if not self.directed:
            start, end, costs = np.r_[start, end], np.r_[end, start], np.r_[costs, costs]
        return coo_array((costs, (start, end)), shape=(len(self.nodes),) * 2).tocsr()

    @cached_property
    def components(self) -> Array:
        """By node ``(N,)`` the number of its component, 0 for the largest, -1 for a closed node.

        Between any two nodes of one component there is a way, both ways; components are those of what is open.
        """
        labels = connected_components(self.matrix, connection="strong")[1]
        found, sizes = np.unique(labels[~self.closed_nodes], return_counts=True)
        rank = np.full(len(self.nodes) + 1, -1)
        rank[found[np.argsort(-sizes, kind="stable")]] = np.arange(len(found))
        return np.where(self.closed_nodes, -1, rank[labels])

    def close(self, nodes: Sequence[int] | Array = (), edges: Sequence[int] | Array = ()) -> StateGraph:
        """The graph without these nodes and these edges, by index; of an undirected edge both ways are closed.

        Args:
            nodes: Indices ``(K,)``, or whether each is meant ``(N,)``.
            edges: As well, ``(K,)`` or ``(E,)``.

        Raises:
            GraphError: They are something else, or out of range.
        """
        return self._set(nodes, edges, True)

    def open(self, nodes: Sequence[int] | Array = (), edges: Sequence[int] | Array = ()) -> StateGraph:
        """The graph with these nodes and these edges, by index, open again; as `close`."""
        return self._set(nodes, edges, False)

    def _set(self, nodes: Sequence[int] | Array, edges: Sequence[int] | Array, closed: bool) -> StateGraph:
        masks = self.closed_nodes.copy(), self.closed_edges.copy()
        for name, mask, indices in zip(("nodes", "edges"), masks, (nodes, edges), strict=True):
            mask[_chosen(name, np.asarray(indices), len(mask))] = closed
        return replace(self, closed_nodes=masks[0], closed_edges=masks[1])

    def all_open(self) -> StateGraph:
        """The graph with nothing closed."""
        return replace(
            self, closed_nodes=np.zeros_like(self.closed_nodes), closed_edges=np.zeros_like(self.closed_edges)
        )

    def insert(self, states: Array, joints: Joints | None = None) -> StateGraph:
        """The graph with more states ``(P, D)`` as its last nodes, joined to open nodes and to each other.

        A state that nothing is near enough to has no edges then.

        Args:
            states: A start, a goal, points of interest.
            joints: How they are joined.

        Raises:
            GraphError: The states do not have the dimensions of the nodes or are not finite.
        """
        states, joints, first = np.asarray(states, np.float32), joints or Joints(), len(self.nodes)
        if states.ndim != 2 or states.shape[1] != self.nodes.shape[1] or not np.isfinite(states).all():
            raise GraphError(f"states to insert are {states.shape}, not finite (P, {self.nodes.shape[1]})")
        nodes, closed = np.concatenate([self.nodes, states]), np.r_[self.closed_nodes, np.zeros(len(states), bool)]
        added = np.arange(first, len(nodes))
        edges = nearest_edges(nodes, self.cost, joints, added, closed)
        if self.directed:
            towards = replace(joints, valid=joints.valid and _swapped(joints.valid))
            edges = np.concatenate([edges, nearest_edges(nodes, _swapped(self.cost), towards, added, closed)[:, ::-1]])
        return self._with_edges(nodes, closed, unique_edges(edges, self.directed))

    def _with_edges(self, nodes: Array, closed_nodes: Array, edges: Array) -> StateGraph:
        costs = np.asarray(self.cost(nodes[edges[:, 0]], nodes[edges[:, 1]]), float)
        return replace(
            self,
            nodes=nodes,
            edges=np.concatenate([self.edges, edges]),
            costs=np.r_[self.costs, costs],
            closed_nodes=closed_nodes,
            closed_edges=np.r_[self.closed_edges, np.zeros(len(edges), bool)],
        )

    def joined(self, joints: Joints) -> StateGraph:
        """The graph in one component: as long as there are several, the cheapest joint of each to another is added.

        There is no evidence for a joint: without a test it may lead through a wall.

        Args:
            joints: Which ones are allowed.

        Raises:
            GraphError: The graph is directed, so that nobody knows the way back; something is closed, so that a joint
                might lead through it; or a component has no joint that is allowed.
        """
        if self.directed or self.closed_nodes.any() or self.closed_edges.any():
            raise GraphError("only an undirected graph with everything open is joined: a joint leads both ways")
        graph, single = self, replace(joints, neighbours=1)
        while (labels := graph.components).max(initial=0) > 0:
            cheapest = []
            for part in range(labels.max() + 1):
                found = nearest_edges(self.nodes, self.cost, single, np.flatnonzero(labels == part), labels == part)
                if not len(found):
                    sizes = np.bincount(labels).tolist()
                    raise GraphError(
                        f"of components of {sizes} nodes, number {part} has no valid joint within {joints.reach:g} "
                        "steps; allow more, or plan within components"
                    )
                cheapest.append(found[np.argmin(self.cost(self.nodes[found[:, 0]], self.nodes[found[:, 1]]))])
            graph = graph._with_edges(self.nodes, self.closed_nodes, unique_edges(np.array(cheapest), False))
        return graph

    def to_bytes(self) -> bytes:
        """The graph, but for the callable, as the content of a file."""
        content, arrays = BytesIO(), {name: getattr(self, name) for name in KINDS}
        np.savez(content, format=np.array(FORMAT), directed=np.array(self.directed), **arrays)
        return content.getvalue()

    def save(self, path: Path) -> None:
        """Write the graph, but for the callable, to a file in one step.

        Raises:
            OSError: The file cannot be written.
        """
        replace_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path, cost: Cost) -> StateGraph:
        """Read a graph from a file.

        Args:
            path: Of the file.
            cost: What the graph was built with.

        Raises:
            OSError: The file cannot be read.
            GraphError: It is damaged, of another format, or was built with another cost.
        """
        return cls.from_bytes(path.read_bytes(), cost, str(path))

    @classmethod
    def from_bytes(cls, content: bytes, cost: Cost, owner: str) -> StateGraph:
        """Rebuild a graph from `to_bytes`; ``owner`` is named in errors.

        Raises:
            GraphError: It is damaged, of another format, or was built with another cost.
        """
        arrays = _read(content, owner)
        if str(found := arrays.pop("format")) != str(FORMAT):
            raise GraphError(f"{owner} has format {found}, not {FORMAT}; build the graph again")
        directed, kinds = arrays.pop("directed"), {name: str(array.dtype) for name, array in arrays.items()}
        if directed.dtype != bool or directed.shape:
            raise GraphError(f"{owner} holds directed as {directed}, not as one truth; build the graph again")
        if kinds != KINDS:
            raise GraphError(f"{owner} holds {kinds}, not {KINDS}; build the graph again")
        try:
            graph = cls(**arrays, cost=cost, directed=bool(directed))
        except GraphError as error:
            raise GraphError(f"{owner}: {error}") from error
        if len(unique_edges(graph.edges, graph.directed)) != len(graph.edges):
            raise GraphError(f"{owner} has an edge twice; build the graph again")
        expected = cost(graph.nodes[graph.edges[:, 0]], graph.nodes[graph.edges[:, 1]])
        if not np.allclose(expected, graph.costs, rtol=1e-3, atol=1e-3):
            raise GraphError(f"{owner} was built with another cost; load it with that one or build it again")
        return graph


def _swapped(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda start, end: function(end, start)


def _chosen(name: str, indices: Array, count: int) -> Array:
    """Indices or truths that fit ``count`` things (`GraphError`)."""
    if indices.dtype == bool and indices.shape == (count,):
        return indices
    if indices.shape == (0,):
        return indices.astype(int)
    if indices.dtype.kind not in "iu" or indices.ndim != 1 or not 0 <= indices.min() <= indices.max() < count:
        raise GraphError(
            f"{name} are {indices.dtype} {indices.shape}, not indices from 0 to {count - 1} or {count} truths; "
            "`numpy.flatnonzero` turns a mask into indices"
        )
    return indices


def _check_ends(edges: Array, count: int) -> None:
    if len(edges) and not 0 <= edges.min() <= edges.max() < count:
        raise GraphError(f"edges refer to nodes {edges.min()} to {edges.max()} of {count}")


def _read(content: bytes, owner: str) -> dict[str, Array]:
    try:
        with np.load(BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in ("format", "directed", *KINDS)}
    except Exception as error:  # what zipfile, zlib and numpy raise on damaged files is not documented
        raise GraphError(f"{owner} is no graph or is damaged ({error}); build the graph again") from error
