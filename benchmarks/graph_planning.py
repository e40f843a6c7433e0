"""Do plans of a graph over dataset states keep out of thin walls, and are impossible ones refused?

Run: python -m benchmarks.graph_planning --json docs/results/graph_planning.json

Mazes have seeds from 0; choices were made on mazes from 1000. The graphs know what a point robot has visited, in
episodes that each stay within a few cells, and nothing of the walls. A plan is valid if all of its segments are free of
walls. The map is asked in three places only: whether start and goal can be joined to a node, as a robot would ask its
sensors; which edges a door blocks; and to judge.

Pairs are uniform in the free space. With all doors open there is a way for each; with all of them shut for some. Those
without are asked of the graph whose door edges were closed, and of one whose data were taken behind shut doors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from json import dumps
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from benchmarks.entry import check, run
from envs.evaluate import wilson
from envs.mazes import SPEED, Maze, sample_maze, sample_points, stitch_trajectories, touches
from planners.edges import Joints, Straight, evidence_edges, nearest_edges, sample_nodes, usual_gap, without_holes
from planners.graph import StateGraph
from planners.search import NoRoute, shortest_path
from policies.files import replace_file
from policies.spec import Array

EPISODES, NODES, PAIRS = 1000, 1000, 20  # by maze; of the pairs as many of each kind
COST = Straight(SPEED)
OFF_WALL = 1e-4  # m, where the shortest way passes the corners of walls

OURS, NO_MAP, LINE = "evidence without holes", "the same, ends unchecked", "straight line"
Edges = Callable[[Sequence[Array], Array], Array]
Row = dict[str, Any]
KINDS = ("open", "around", "closed", "apart")  # of questions, see `run_method`


def _near(neighbours: int) -> Edges:
    return lambda _, nodes: nearest_edges(nodes, COST, Joints(neighbours, inf))


def _whole(edges: Edges) -> Edges:
    return lambda seen, nodes: without_holes(seen, nodes, edges(seen, nodes), usual_gap(seen))


EDGES: dict[str, Edges] = {
    OURS: _whole(evidence_edges),
    "evidence": evidence_edges,
    "nearest 10 without holes": _whole(_near(10)),
    "nearest 10": _near(10),
    "nearest 20": _near(20),
}


class Task(NamedTuple):
    """A maze with its pairs of points ``(PAIRS, 2, 2)`` in metres.

    Args:
        maze: All doors open.
        shut: All doors shut.
        pairs: Any.
        around: Those with a way when the doors are shut.
        without: Those without.
    """

    maze: Maze
    shut: Maze
    pairs: Array
    around: Array
    without: Array


class Data(NamedTuple):
    """What graphs are made of: trajectories ``(T, 2)`` in metres and nodes ``(NODES, 2)`` drawn from them."""

    trajectories: Sequence[Array]
    nodes: Array

    @classmethod
    def sample(cls, maze: Maze, rng: np.random.Generator) -> Data:
        """Let a robot wander."""
        trajectories = list(stitch_trajectories(maze, rng, EPISODES))
        return cls(trajectories, sample_nodes(trajectories, NODES, rng))

    def graph(self, edges: Edges) -> StateGraph:
        """With edges of some kind."""
        return StateGraph.build(self.nodes, edges(self.trajectories, self.nodes), COST)


def sample_task(rng: np.random.Generator) -> Task:
    """A random maze and random pairs."""
    maze = sample_maze(rng)
    shut = maze.with_doors(True)
    pairs = sample_points(shut, rng, 40 * PAIRS).reshape(-1, 2, 2)  # free with open doors as well
    same = np.equal(*shut.parts[shut.cell(pairs)].T)
    return Task(maze, shut, pairs[:PAIRS], pairs[PAIRS:][same[PAIRS:]][:PAIRS], pairs[PAIRS:][~same[PAIRS:]][:PAIRS])


def shortest_lengths(maze: Maze, pairs: Array) -> Array:
    """Metres ``(P,)`` of the shortest ways between pairs of points ``(P, 2, 2)``.

    Exact, for these pass nothing but corners of walls; those of a grid would be up to 8 % longer.

    Raises:
        NoRoute: There is none between the points of a pair.
    """
    low, high = maze.walls[:, :2] - OFF_WALL, maze.walls[:, 2:] + OFF_WALL
    corners = np.concatenate([low, high, np.stack([low[:, 0], high[:, 1]], -1), np.stack([high[:, 0], low[:, 1]], -1)])
    corners = corners[maze.free(corners)]
    sights = np.array([*combinations(range(len(corners)), 2)])
    sights = sights[maze.segment_free(*corners[sights.T])]
    graph, all_seen = StateGraph.build(corners, sights, Straight(1.0)), Joints(len(corners), inf, maze.segment_free)
    return np.array([shortest_path(graph, start, goal, all_seen).cost for start, goal in pairs])


def ask(graph: StateGraph, maze: Maze, pairs: Array, joints: Joints) -> list[Row]:
    """Plan between pairs of points ``(P, 2, 2)``; with ``valid``, ``length`` in m, ``reason`` of a refusal, ``ms``."""
    rows = []
    for start, goal in pairs:
        since = perf_counter()
        try:
            states, reason = shortest_path(graph, start, goal, joints).states, ""
        except NoRoute as refusal:
            states, reason = np.empty((0, 2)), refusal.reason
        spent = 1e3 * (perf_counter() - since)
        valid = not reason and bool(maze.segment_free(states[:-1], states[1:]).all())
        length = float(np.linalg.norm(np.diff(states, axis=0), axis=-1).sum())
        rows.append({"valid": valid, "length": length, "reason": reason, "ms": spent})
    return rows


def run_method(task: Task, edges: Edges, seen: Data, behind: Data) -> Row:
    """Build graphs and ask them everything.

    Args:
        task: The maze.
        edges: Of the graphs.
        seen: Data with open doors.
        behind: Data with shut doors.

    Returns:
        What the graph is like, and the answers: ``open`` for any pair with open doors, ``open_unchecked`` with ends
        joined without asking the map, ``around`` shut doors, ``closed`` where these leave no way, and ``apart`` for the
        same pairs from data taken behind shut doors.
    """
    since = perf_counter()
    graph = seen.graph(edges)
    build = perf_counter() - since
    start, end = np.moveaxis(graph.nodes[graph.edges], 1, 0)
    shut = graph.close(edges=touches(task.maze.panels, start, end))
    apart = behind.graph(edges)
    open_ends, shut_ends = Joints(valid=task.maze.segment_free), Joints(valid=task.shut.segment_free)
    return {
        "build_s": build,
        "edges": len(graph.edges),
        "false_edges": int((~task.maze.segment_free(start, end)).sum()),
        "components": int(graph.components.max()) + 1,
        "largest": int((graph.components == 0).sum()),
        "open": ask(graph, task.maze, task.pairs, open_ends),
        "open_unchecked": ask(graph, task.maze, task.pairs, Joints()),
        "around": ask(shut, task.shut, task.around, shut_ends),
        "closed": ask(shut, task.shut, task.without, shut_ends),
        "apart": ask(apart, task.shut, task.without, shut_ends),
    }


def run_maze(seed: int) -> Row:
    """Run all methods on one maze, on the same data, nodes and pairs."""
    rng = np.random.default_rng(seed)
    task = sample_task(rng)
    seen, behind = Data.sample(task.maze, rng), Data.sample(task.shut, rng)
    methods = {name: run_method(task, edges, seen, behind) for name, edges in EDGES.items()}
    line = [task.maze.segment_free(*np.moveaxis(task.pairs, 1, 0)), task.shut.segment_free(*task.around.swapaxes(0, 1))]
    return {
        "seed": seed,
        "shortest": {
            "open": shortest_lengths(task.maze, task.pairs).tolist(),
            "around": shortest_lengths(task.shut, task.around).tolist(),
        },
        "line": {"open": line[0].tolist(), "around": line[1].tolist()},
        "methods": methods,
    }


def measure(mazes: int, seed: int = 0, progress: Callable[[range], Iterable[int]] = iter) -> dict[str, Any]:
    """Run everything.

    Args:
        mazes: How many.
        seed: Of the first one.
        progress: Wraps the seeds that are run through.

    Returns:
        Plain JSON values: by method the rates with their intervals, lengths over the shortest and times, and the mazes.
    """
    rows = [run_maze(number) for number in progress(range(seed, seed + mazes))]
    methods = {name: _summary(rows, name) for name in EDGES}
    methods[NO_MAP] = {"open": _rate([row for maze in rows for row in maze["methods"][OURS]["open_unchecked"]])}
    methods[LINE] = {
        kind: wilson(sum(sum(maze["line"][kind]) for maze in rows), len(rows) * PAIRS) for kind in ("open", "around")
    }
    settings = {"seed": seed, "episodes": EPISODES, "nodes": NODES, "pairs": PAIRS}
    return {**settings, "methods": methods, "mazes": [_counts(maze) for maze in rows]}


def _counts(maze: Row) -> Row:
    """What a file keeps of a maze."""
    methods = {}
    for name, one in maze["methods"].items():
        counts = {kind: {"valid": sum(row["valid"] for row in one[kind])} for kind in KINDS}
        for kind in KINDS:
            counts[kind]["refused"] = sum(bool(row["reason"]) for row in one[kind])
        methods[name] = {
            **{key: value for key, value in one.items() if key not in (*KINDS, "open_unchecked")},
            **counts,
        }
    return {"seed": maze["seed"], "methods": methods}


def _rate(rows: Sequence[Row]) -> dict[str, float]:
    return wilson(sum(row["valid"] for row in rows), len(rows))


def _summary(mazes: Sequence[Row], name: str) -> Row:
    """Rates, lengths and times of one method over all mazes."""
    found = [maze["methods"][name] for maze in mazes]
    rows = {kind: [row for one in found for row in one[kind]] for kind in KINDS}
    ratios = [
        row["length"] / shortest
        for maze in mazes
        for kind, shortests in maze["shortest"].items()
        for row, shortest in zip(maze["methods"][name][kind], shortests, strict=True)
        if row["valid"]
    ]
    without = rows["closed"] + rows["apart"]
    reasons = [row["reason"] for row in without]
    return {
        "open": _rate(rows["open"]),
        "around": _rate(rows["around"]),
        "solvable": _rate(rows["open"] + rows["around"]),
        "solvable_refused": sum(bool(row["reason"]) for row in rows["open"] + rows["around"]),
        "perfect_mazes": sum(all(row["valid"] for row in one["open"] + one["around"]) for one in found),
        "refused": wilson(sum(map(bool, reasons)), len(reasons)),
        "reasons": {reason: reasons.count(reason) for reason in sorted({*reasons} - {""})},
        "over_shortest": {"mean": float(np.mean(ratios)), "p95": float(np.quantile(ratios, 0.95))} if ratios else None,
        "refusal_ms": _times([row["ms"] for row in without if row["reason"]]),
        "query_ms": _times([row["ms"] for row in rows["open"] + rows["around"] if not row["reason"]]),
        "build_s": float(np.median([one["build_s"] for one in found])),
        "false_edges": float(sum(one["false_edges"] for one in found) / sum(one["edges"] for one in found)),
    }


def _times(values: Sequence[float]) -> dict[str, float] | None:
    return {"p95": float(np.quantile(values, 0.95)), "max": float(max(values))} if values else None


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure` as tables."""
    lines = [f"{len(result['mazes'])} mazes from seed {result['seed']}, {result['nodes']} nodes; pairs planned validly"]
    lines.append(
        f"  {'':<26}{'doors open':>22}{'doors shut':>22}{'impossible refused':>22}{'length':>8}{'false edges':>13}"
    )
    for name, row in result["methods"].items():
        cells = "".join(f"{_interval(row.get(kind)):>22}" for kind in ("open", "around", "refused"))
        over = f"{row['over_shortest']['mean']:.3f}" if row.get("over_shortest") else ""
        false = f"{row['false_edges']:.3%}" if "false_edges" in row else ""
        lines.append(f"  {name:<26}{cells}{over:>8}{false:>13}")
    ours = result["methods"][OURS]
    lines.append(
        f"{OURS}: {_interval(ours['solvable'])} of all solvable pairs, {ours['solvable_refused']} of them refused"
    )
    lines.append(f"  refusals {ours['reasons']}")
    for what in ("query_ms", "refusal_ms"):
        lines.append(f"  {what:<12}p95 {ours[what]['p95']:.1f}, max {ours[what]['max']:.1f}")
    lines.append(f"  build {ours['build_s']:.2f} s (median)")
    lines.append(
        f"  {'maze':<8}{'open':>6}{'shut':>6}{'refused':>9}{'components':>12}{'largest':>9}{'edges':>8}{'false':>7}"
    )
    for maze in result["mazes"]:
        one = maze["methods"][OURS]
        valid = [one[kind]["valid"] for kind in ("open", "around")]
        refused = one["closed"]["refused"] + one["apart"]["refused"]
        counts = f"{one['components']:>12}{one['largest']:>9}{one['edges']:>8}{one['false_edges']:>7}"
        lines.append(f"  {maze['seed']:<8}{valid[0]:>6}{valid[1]:>6}{refused:>9}{counts}")
    return "\n".join(lines)


def _interval(rate: Mapping[str, float] | None) -> str:
    return "" if rate is None else f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"


def main(json: Path | None = None, mazes: int = 20, seed: int = 0) -> None:
    """Compare graphs on procedural mazes; about two minutes on one core.

    Args:
        json: Where to write the results.
        mazes: How many.
        seed: Of the first one.
    """
    check(json, seed, mazes=mazes)
    result = measure(mazes, seed, lambda seeds: track(seeds, "mazes"))
    print(as_text(result))
    if json:
        replace_file(json, (dumps(result) + "\n").encode())


if __name__ == "__main__":
    run(main)
