"""How often do several agents get paths through one maze that keep a safety distance, and what does that cost?

Run: python -m benchmarks.multi_agent --json docs/results/multi_agent.json

Planning only: no robot is driven, and agents are taken to follow their paths exactly. Mazes have seeds from 2000, which
nothing else uses, all doors open, and graphs over what a point robot has visited, see `benchmarks.graph_planning`.
Starts and goals are drawn from the nodes of the largest component, any two of a kind a safety distance apart; whether
there is a plan at all is not known. All methods answer the same questions, and what they return is checked by
`planners.multi_agent.conflicts`, exactly and within steps. Costs are sums of arrival steps. The sum of the shortest
paths of agents that ignore each other is no bound that can always be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from json import dumps
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.progress import track
from scipy.spatial.distance import pdist

from benchmarks.entry import check, run
from envs.evaluate import wilson
from envs.mazes import SPEED, sample_maze, stitch_trajectories
from planners.edges import Straight, evidence_edges, sample_nodes, usual_gap, without_holes
from planners.graph import StateGraph
from planners.multi_agent import NoJointPlan, Plan, conflict_based, conflicts, prioritised, repair
from policies.files import replace_file
from policies.spec import Array

EPISODES, NODES, AGENTS = 1000, 500, (2, 4)
ALONE, WAIT, FIRST, BEST = "independent", "independent, repaired", "prioritised", "conflict-based"
METHODS = (ALONE, WAIT, FIRST, BEST)
Row = dict[str, Any]


def sample_ends(graph: StateGraph, agents: int, distance: float, rng: np.random.Generator) -> Array:
    """Nodes ``(2, agents)``: starts and goals in the largest component, any two of a kind a distance in m apart."""
    nodes, ends = np.flatnonzero(graph.components == 0), list[Array]()
    while len(ends) < 2:
        drawn = rng.choice(nodes, agents, replace=False)
        if pdist(graph.nodes[drawn, :2]).min() >= distance:
            ends.append(drawn)
    return np.stack(ends)


def ask(plan: Callable[[], Plan], distance: float) -> Row:
    """Plan; with ``cost`` or None, ``conflicts`` in the plan, ``reason`` of a refusal, ``ms``."""
    since = perf_counter()
    try:
        found, reason = plan(), ""
    except NoJointPlan as refusal:
        found, reason = None, refusal.reason
    spent = 1e3 * (perf_counter() - since)
    wrong = len(conflicts(found.positions, distance)) if found else 0
    return {"cost": found and found.cost, "conflicts": wrong, "reason": reason, "ms": spent}


def run_instance(graph: StateGraph, ends: Array, distance: float, limit: int, rng: np.random.Generator) -> Row:
    """By method the answer to one question, see `ask`; ``ends`` are starts and goals ``(2, A)``."""
    starts, goals = ends
    alone = prioritised(graph, starts, goals, 0.0, rng)
    return {
        ALONE: ask(lambda: prioritised(graph, starts, goals, 0.0, rng), distance),
        WAIT: ask(lambda: repair(alone.positions, distance, rng), distance),
        FIRST: ask(lambda: prioritised(graph, starts, goals, distance, rng), distance),
        BEST: ask(lambda: conflict_based(graph, starts, goals, distance, limit), distance),
    }


def run_maze(seed: int, instances: int, distance: float, limit: int) -> Row:
    """Ask everything about one maze; by number of agents one row per instance."""
    rng = np.random.default_rng(seed)
    trajectories = list(stitch_trajectories(sample_maze(rng), rng, EPISODES))
    nodes = sample_nodes(trajectories, NODES, rng)  # uniformly, as in the paper
    edges = without_holes(trajectories, nodes, evidence_edges(trajectories, nodes), usual_gap(trajectories))
    graph = StateGraph.build(nodes, edges, Straight(SPEED))
    rows = {
        str(agents): [
            run_instance(graph, sample_ends(graph, agents, distance, rng), distance, limit, rng)
            for _ in range(instances)
        ]
        for agents in AGENTS
    }
    return {"seed": seed, "edges": len(graph.edges), "agents": rows}


def measure(
    mazes: int,
    instances: int,
    distance: float,
    limit: int,
    seed: int = 2000,
    progress: Callable[[range], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Run everything.

    Args:
        mazes: How many.
        instances: By maze and number of agents.
        distance: Safety distance, metres.
        limit: Of the expansions of conflict-based search.
        seed: Of the first maze.
        progress: Wraps the seeds that are run through.

    Returns:
        Plain JSON values: by number of agents and method the rates with their intervals, costs and times; all rows.
    """
    found = [run_maze(number, instances, distance, limit) for number in progress(range(seed, seed + mazes))]
    pooled = {str(agents): [row for maze in found for row in maze["agents"][str(agents)]] for agents in AGENTS}
    settings = {"seed": seed, "nodes": NODES, "instances": instances, "distance": distance, "limit": limit}
    return {**settings, "agents": {agents: _summary(rows) for agents, rows in pooled.items()}, "mazes": found}


def _summary(rows: Sequence[Row]) -> Row:
    """By method what the instances come to; ratios are means over the instances that both have solved."""
    result = {}
    for method in METHODS:
        answers = [row[method] for row in rows]
        solved = [answer["cost"] is not None and not answer["conflicts"] for answer in answers]
        reasons = [answer["reason"] for answer in answers]
        times = [answer["ms"] for answer in answers]
        result[method] = {
            "solved": wilson(sum(solved), len(rows)),
            "violations": sum(answer["conflicts"] > 0 for answer in answers),
            "reasons": {reason: reasons.count(reason) for reason in sorted({*reasons} - {""})},
            "over_independent": _ratio(rows, method, ALONE),
            "over_conflict_based": _ratio(rows, method, BEST),
            "ms": {"median": float(np.median(times)), "p95": float(np.quantile(times, 0.95)), "max": max(times)},
        }
    hard = [row for row in rows if row[ALONE]["conflicts"]]
    either = [row[FIRST]["cost"] is not None or row[BEST]["cost"] is not None for row in rows]
    rates = {method: wilson(sum(row[method]["cost"] is not None for row in hard), len(hard)) for method in METHODS[1:]}
    return {
        "methods": result,
        "in_conflict": {"count": len(hard), "solved": rates},
        "either": wilson(sum(either), len(rows)),
    }


def _ratio(rows: Sequence[Row], method: str, other: str) -> dict[str, float] | None:
    """Mean and maximum of costs over those of another method where both have a cost, and how many these are."""
    pairs = [(row[method]["cost"], row[other]["cost"]) for row in rows]
    ratios = [mine / theirs for mine, theirs in pairs if mine is not None and theirs]
    return {"mean": float(np.mean(ratios)), "max": max(ratios), "count": len(ratios)} if ratios else None


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure` as tables."""
    lines = [
        f"planning only: {len(result['mazes'])} mazes from seed {result['seed']}, {result['nodes']} nodes, "
        f"{result['distance']:g} m apart, at most {result['limit']} expansions"
    ]
    for agents, one in result["agents"].items():
        hard = one["in_conflict"]
        lines.append(
            f"{agents} agents, {len(result['mazes']) * result['instances']} instances, {hard['count']} in conflict"
        )
        lines.append(
            f"  {'':<24}{'solved':>22}{'of those in conflict':>22}{'violations':>12}{'cost / independent':>20}"
            f"{'cost / optimum':>16}{'ms median':>11}{'p95':>9}{'max':>9}"
        )
        for name, row in one["methods"].items():
            rates = f"{_interval(row['solved']):>22}{_interval(hard['solved'].get(name)):>22}"
            over = f"{_mean(row['over_independent']):>20}{_mean(row['over_conflict_based']):>16}"
            times = f"{row['ms']['median']:>11.1f}{row['ms']['p95']:>9.1f}{row['ms']['max']:>9.1f}"
            lines.append(f"  {name:<24}{rates}{row['violations']:>12}{over}{times}")
        lines.append(f"  prioritised or conflict-based: {_interval(one['either'])}")
        lines += [f"  {name} refused: {row['reasons']}" for name, row in one["methods"].items() if row["reasons"]]
    return "\n".join(lines)


def _mean(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['mean']:.3f} ({ratio['count']})" if ratio else ""


def _interval(rate: Mapping[str, float] | None) -> str:
    return "" if rate is None else f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"


def main(
    json: Path | None = None,
    mazes: int = 20,
    instances: int = 5,
    distance: float = 1.0,
    limit: int = 200,
    seed: int = 2000,
) -> None:
    """Plan for 2 and 4 agents on procedural mazes; planning only, no robot is driven.

    Args:
        json: Where to write the results.
        mazes: How many.
        instances: By maze and number of agents.
        distance: Safety distance, metres.
        limit: Of the expansions of conflict-based search.
        seed: Of the first maze.
    """
    check(json, seed, mazes=mazes, instances=instances, limit=limit)
    result = measure(mazes, instances, distance, limit, seed, lambda seeds: track(seeds, "mazes"))
    print(as_text(result))
    if json:
        replace_file(json, (dumps(result) + "\n").encode())


if __name__ == "__main__":
    run(main)
