"""A graph over dataset states: which states lead to which, and how many steps that takes.

XDiffuser (arXiv 2605.16863) samples states of the dataset as nodes, connects each to its nearest ones in a learned
temporal distance and searches the graph; the recipe is that of GAS (graph-assisted stitching). One edge through a wall is
enough to break every plan, because the shortest path seeks it. Here two questions are kept apart: an edge is there if a
trajectory has gone that way (`evidence_edges`), and what it costs is up to a callable, a learned distance or any other.

Searching is scipy's: it is installed wherever kinoflow is, its Dijkstra runs on the arrays as they are, and it has Yen's
alternatives, of which rustworkx has the lengths only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial import KDTree

from policies.files import replace_file
from policies.spec import Array

FORMAT = 1  # of the file
WITHIN = 10  # steps; with 40 the mask lets edges through walls

Cost = Callable[[Array, Array], Array]  # from states (M, D) to states (M, D): steps (M,), not negative
Valid = Callable[[Array, Array], Array]  # from states (M, D) to states (M, D): whether one can go straight (M,)


class GraphError(ValueError):
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
        if count and not 0 <= self.edges.min() <= self.edges.max() < len(self.nodes):
            raise GraphError(f"edges refer to nodes {self.edges.min()} to {self.edges.max()} of {len(self.nodes)}")

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
        edges = _unique(np.asarray(edges, np.int64).reshape(-1, 2), directed)
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
        within: int = WITHIN,
        directed: bool = False,
    ) -> StateGraph:
        """A graph over states sampled from trajectories, with the edges that these are evidence of.

        Args:
            trajectories: Arrays ``(T, D)``, one state per step.
            count: How many nodes.
            rng: Draws them.
            cost: Of an edge.
            within: See `evidence_edges`.
            directed: Whether the dynamics cannot be run backwards.
        """
        nodes = sample_nodes(trajectories, count, rng)
        return cls.build(nodes, evidence_edges(trajectories, nodes, within), cost, directed)

    @cached_property
    def matrix(self) -> csr_array:
        """Costs ``(N, N)`` of the edges that are open, both ways unless directed."""
        usable = ~(self.closed_edges | self.closed_nodes[self.edges].any(1))
        (start, end), costs = self.edges[usable].T, self.costs[usable]
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
        """The graph without these nodes and these edges, by index; of an undirected edge both ways are closed."""
        return self._set(nodes, edges, True)

    def open(self, nodes: Sequence[int] | Array = (), edges: Sequence[int] | Array = ()) -> StateGraph:
        """The graph with these nodes and these edges, by index, open again."""
        return self._set(nodes, edges, False)

    def _set(self, nodes: Sequence[int] | Array, edges: Sequence[int] | Array, closed: bool) -> StateGraph:
        masks = self.closed_nodes.copy(), self.closed_edges.copy()
        for mask, indices in zip(masks, (nodes, edges), strict=True):
            chosen = np.asarray(indices)
            mask[chosen if chosen.dtype == bool else chosen.astype(int)] = closed
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
        edges = nearest_edges(nodes, self.cost, joints, np.arange(first, len(nodes)), closed)
        if self.directed:
            back = nearest_edges(nodes, lambda a, b: self.cost(b, a), joints, np.arange(first, len(nodes)), closed)
            edges = np.concatenate([edges, back[:, ::-1]])
        return self._with_edges(nodes, closed, _unique(edges, self.directed))

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
        """The graph in one component, with the cheapest joints that do it.

        There is no evidence for a joint: without a test it may lead through a wall.

        Args:
            joints: Which ones are allowed; each node is tried with its nearest ones of every other component.

        Raises:
            GraphError: The graph is directed, so that nobody knows the way back, or falls apart with all of them.
        """
        if self.directed:
            raise GraphError("components of a directed graph are not joined: a joint would lead back as well")
        labels, found = self.components, []
        for part in range(labels.max() + 1):
            members = np.flatnonzero(labels == part)
            for other in range(part):
                hidden = (labels != other) & (labels != part)
                hidden[members] = True
                found.append(nearest_edges(self.nodes, self.cost, joints, members, hidden))
        edges = np.concatenate([np.empty((0, 2), np.int64), *found])
        costs = np.asarray(self.cost(*np.moveaxis(self.nodes[edges], 1, 0)), float)
        pairs, order = labels[edges], np.argsort(costs, kind="stable")
        _, cheapest = np.unique(pairs[order], axis=0, return_index=True)
        chosen = order[cheapest]
        parts = labels.max() + 1
        shape = (parts, parts)
        # Ranks instead of costs: a joint between equal states costs nothing, and a tree has no edge of nothing.
        ranks = 1.0 + np.argsort(np.argsort(costs[chosen], kind="stable"))
        tree = minimum_spanning_tree(coo_array((ranks, tuple(pairs[chosen].T)), shape=shape).tocsr())
        if tree.nnz != parts - 1:
            sizes = np.bincount(labels[labels >= 0]).tolist()
            raise GraphError(f"components of {sizes} nodes stay apart within {joints.reach:g} steps; allow more")
        kept = chosen[np.isin(ranks, tree.data)]
        return self._with_edges(self.nodes, self.closed_nodes, _unique(edges[kept], False))

    def save(self, path: Path) -> None:
        """Write the graph to a file, in one step; not the callable for the cost.

        Raises:
            OSError: The file cannot be written.
        """
        content = BytesIO()
        np.savez(
            content,
            format=np.array(FORMAT),
            nodes=self.nodes,
            edges=self.edges,
            costs=self.costs,
            directed=np.array(self.directed),
            closed_nodes=self.closed_nodes,
            closed_edges=self.closed_edges,
        )
        replace_file(path, content.getvalue())

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
        content = BytesIO(path.read_bytes())
        try:
            with np.load(content, allow_pickle=False) as file:
                if (found := int(file["format"])) != FORMAT:
                    raise GraphError(f"{path} has format {found}, not {FORMAT}; build the graph again")
                arrays = {name: _of_kind(file[name], kind) for name, kind in _KINDS.items()}
            graph = cls(**arrays, directed=bool(file_directed(arrays)), cost=cost)
        except GraphError as error:
            raise GraphError(f"{path}: {error}") from None
        except Exception as error:  # zipfile, zlib and numpy raise all sorts of things on damaged files
            raise GraphError(f"{path} is damaged ({error}); build the graph again") from error
        return graph
