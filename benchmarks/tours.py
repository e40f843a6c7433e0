"""How good are tours and inspections over graphs of states, and does a point robot that follows them see everything?

Run: python -m benchmarks.tours --json docs/results/tours.json

Mazes have seeds from 0; choices were made on mazes from 1000. Doors are open, graphs are those of
`benchmarks.graph_planning`. Points are uniform in the free space, the first one is the start. A tour visits all of
them; an inspection sees all but the first from within `SIGHT` along a free line, and is planned to do so from a little
nearer, because a robot does not come by exactly where it was planned to. Points that cannot be reached or seen are
refused by number, counted, and left out. The map is asked in three places only: whether points can be joined to a
node, what is seen from where, and to simulate and judge.

The robot follows ``x += SPEED * clip(a + noise, -1, 1)``, slides along walls, and goes for the place on its route a few
steps ahead of a clock that waits while it is behind. It does not plan again. A point of a tour counts as visited within
`AT` along a free line. The bound of a tour holds for all tours over the graph, that of an inspection only for the nodes
that its search may choose from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from json import dumps
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track
from scipy.sparse.csgraph import dijkstra

from benchmarks.entry import check, run
from benchmarks.graph_planning import EDGES, OURS, Data
from envs.evaluate import wilson
from envs.mazes import SPEED, Maze, sample_maze, sample_points, slide
from planners.circuit import NoTour, nearest_neighbour
from planners.edges import Joints
from planners.graph import StateGraph
from planners.search import Route
from planners.tour import Tour, inspection, tour
from policies.files import replace_file
from policies.spec import Array

POINTS = (4, 8, 16, 32, 64, 128)
SIGHT, MARGIN = 4.0, 0.3  # m; what is planned is seen from nearer by the margin
AT = 0.5  # m
AHEAD, BEHIND = 2.0, 0.2  # steps that the robot looks ahead, m that it may be further away before the clock waits
GAIN, NOISE = 5.0, 0.2  # of the action per m; standard deviation of its noise
PATIENCE = 3.0  # times the steps planned
TOUR, LOOK = "tour", "inspection"
KINDS = (TOUR, LOOK)
Row = dict[str, Any]


class Drive(NamedTuple):
    """What happened on the way: positions ``(T, 2)`` in metres, and the steps in which a wall was in the way."""

    positions: Array
    contacts: int


def sight(maze: Maze, radius: float) -> Callable[[Array, Array], Array]:
    """Whether a point is within a radius in metres of positions ``(M, 2)`` and no wall is between."""

    def sees(positions: Array, point: Array) -> Array:
        near = np.linalg.norm(positions - point, axis=-1) <= radius
        near[near] = maze.segment_free(positions[near], np.broadcast_to(point, (int(near.sum()), 2)))
        return near

    return sees


def follow(maze: Maze, route: Route, rng: np.random.Generator) -> Drive:
    """Drive along a route until its end is reached or patience is at an end."""
    place, clock, contacts, positions = route.states[0].astype(float), 0.0, 0, [route.states[0].astype(float)]
    for _ in range(round(PATIENCE * route.cost) + 100):
        if clock >= route.cost and np.linalg.norm(place - route.states[-1]) < AT / 2:
            break
        aim = _at(route, clock + AHEAD)
        action = np.clip(GAIN * (aim - place), -1, 1) + rng.normal(0, NOISE, 2)
        move = SPEED * np.clip(action, -1, 1)
        after = slide(maze, place[None], move[None])[0]
        contacts += bool((after != place + move).any())
        place = after
        positions.append(place)
        clock += float(np.linalg.norm(aim - place) < SPEED * AHEAD + BEHIND)
    return Drive(np.stack(positions), contacts)


def _at(route: Route, time: float) -> Array:
    return np.array([np.interp(time, route.times, axis) for axis in route.states.T])


def plan(points: Array, make: Callable[[Array], Tour], offset: int) -> tuple[Tour, Array, float]:
    """A tour of those of the points ``(P, 2)`` that are not refused, these, and seconds; refusals count from offset."""
    since = perf_counter()
    while True:
        try:
            return make(points), points, perf_counter() - since
        except NoTour as refusal:
            if not refusal.points:
                raise
            points = np.delete(points, np.array(refusal.points) + offset, axis=0)


def run_instance(graph: StateGraph, maze: Maze, points: Array, limit_s: float, seed: int) -> Row:
    """By kind the plan for points ``(P, 2)`` and what comes of it, see `judge`; of tours also the nearest-neighbour."""
    joints, sees = Joints(valid=maze.segment_free), sight(maze, SIGHT - MARGIN)
    visit, stops, visit_s = plan(points, lambda some: tour(graph, some, joints, limit_s=limit_s), 0)
    look, seen, look_s = plan(points, lambda some: inspection(graph, some[0], some[1:], sees, joints, limit_s), 1)
    rows = {
        TOUR: judge(visit, follow(maze, visit.route, np.random.default_rng(seed)), stops, sight(maze, AT), visit_s),
        LOOK: judge(look, follow(maze, look.route, np.random.default_rng(seed)), seen[1:], sight(maze, SIGHT), look_s),
    }
    rows[TOUR] |= {"refused": len(points) - len(stops), "nearest": nearest_cost(graph, stops, joints)}
    rows[LOOK] |= {"refused": len(points) - len(seen), "nearest": None}
    return rows


def nearest_cost(graph: StateGraph, points: Array, joints: Joints) -> float:
    """Steps of the tour that goes to the nearest point left each time."""
    wider = graph.insert(points, joints)
    numbers = np.arange(len(graph.nodes), len(wider.nodes))
    steps = dijkstra(wider.matrix, indices=numbers)[:, numbers]
    return float(sum(steps[leg] for leg in pairwise(nearest_neighbour(steps))))


def judge(found: Tour, drive: Drive, points: Array, sees: Callable[[Array, Array], Array], spent: float) -> Row:
    """What was planned, in steps, and what became of it: points ``(P, 2)`` that were done, steps, metres, contacts."""
    return {
        "points": len(points),
        "done": sum(bool(sees(drive.positions, point).any()) for point in points),
        "cost": found.cost,
        "bound": found.bound,
        "optimal": found.optimal,
        "stops": len(found.order),
        "plan_s": spent,
        "steps": len(drive.positions) - 1,
        "length": float(np.linalg.norm(np.diff(drive.positions, axis=0), axis=-1).sum()),
        "contacts": drive.contacts,
        "arrived": bool(np.linalg.norm(drive.positions[-1] - found.route.states[-1]) < AT),
    }


def run_maze(seed: int, counts: Sequence[int], limit_s: float) -> Row:
    """Ask everything about one maze; by number of points one row."""
    rng = np.random.default_rng(seed)
    maze = sample_maze(rng)
    graph = Data.sample(maze, rng).graph(EDGES[OURS])
    drawn = [sample_points(maze, rng, count) for count in counts]  # whatever becomes of the drives
    rows = {str(len(points)): run_instance(graph, maze, points, limit_s, seed) for points in drawn}
    return {"seed": seed, "points": rows}


def measure(
    mazes: int,
    limit_s: float,
    seed: int = 0,
    counts: Sequence[int] = POINTS,
    progress: Callable[[range], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Run everything.

    Args:
        mazes: How many.
        limit_s: Seconds for the search of each tour.
        seed: Of the first maze.
        counts: How many points, the start included.
        progress: Wraps the seeds that are run through.

    Returns:
        Plain JSON values: by kind and number of points what it comes to, and all rows.
    """
    found = [run_maze(number, counts, limit_s) for number in progress(range(seed, seed + mazes))]
    kinds = {
        kind: {str(count): summary([maze["points"][str(count)][kind] for maze in found]) for count in counts}
        for kind in KINDS
    }
    settings = {"seed": seed, "limit_s": limit_s, "sight": SIGHT, "margin": MARGIN, "at": AT, "noise": NOISE}
    return {**settings, "kinds": kinds, "mazes": found}


def summary(rows: Sequence[Row]) -> Row:
    """Rates over all points, means over the mazes; driven lengths are of the steps that they would take straight."""
    points, steps = sum(row["points"] for row in rows), sum(row["steps"] for row in rows)
    return {
        "coverage": wilson(sum(row["done"] for row in rows), points),
        "complete": sum(row["done"] == row["points"] for row in rows),
        "refused": sum(row["refused"] for row in rows),
        "proven": sum(row["optimal"] for row in rows),
        "cost": float(np.mean([row["cost"] for row in rows])),
        "over_bound": _ratio(rows, "cost", "bound"),
        "nearest_over_cost": _ratio(rows, "nearest", "cost"),
        "driven_over_cost": _ratio(rows, "length", "cost", SPEED),
        "driven_over_bound": _ratio(rows, "length", "bound", SPEED),
        "steps_over_cost": _ratio(rows, "steps", "cost"),
        "contacts": sum(row["contacts"] for row in rows) / steps if steps else 0.0,
        "arrived": sum(row["arrived"] for row in rows),
        "plan_s": {
            "median": float(np.median([row["plan_s"] for row in rows])),
            "max": max(row["plan_s"] for row in rows),
        },
    }


def _ratio(rows: Sequence[Row], above: str, below: str, unit: float = 1.0) -> float | None:
    """Mean over the rows of one number over another times a unit, where both are known and the latter is not 0."""
    ratios = [row[above] / (row[below] * unit) for row in rows if row[above] is not None and row[below]]
    return float(np.mean(ratios)) if ratios else None


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure` as tables."""
    count, limit = len(result["mazes"]), result["limit_s"]
    lines = [
        f"{count} mazes from seed {result['seed']}, at most {limit:g} s of search; costs in steps, means over mazes"
    ]
    for kind, rows in result["kinds"].items():
        lines.append(kind)
        lines.append(
            f"  {'points':>6}{'cost':>8}{'/bound':>8}{'proven':>8}{'nearest':>9}{'plan s':>8}{'max':>7}{'refused':>9}"
            f"{'covered by the drive':>24}{'all':>6}{'m/plan':>8}{'m/bound':>9}{'steps':>7}{'contact':>9}"
        )
        for points, row in rows.items():
            ratios = [row["driven_over_cost"], row["driven_over_bound"], row["steps_over_cost"]]
            lines.append(
                f"  {points:>6}{row['cost']:>8.1f}{_number(row['over_bound']):>8}{row['proven']:>6}/{count}"
                f"{_number(row['nearest_over_cost']):>9}{row['plan_s']['median']:>8.2f}{row['plan_s']['max']:>7.2f}"
                f"{row['refused']:>9}{_interval(row['coverage']):>24}{row['complete']:>4}/{count}"
                f"{_number(ratios[0]):>8}{_number(ratios[1]):>9}{_number(ratios[2]):>7}{row['contacts']:>9.1%}"
            )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(rate: Mapping[str, float]) -> str:
    return f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"


def main(json: Path | None = None, mazes: int = 5, limit_s: float = 10.0, seed: int = 0) -> None:
    """Plan and drive tours and inspections in procedural mazes; about two minutes on one core.

    Args:
        json: Where to write the results.
        mazes: How many.
        limit_s: Seconds for the search of each tour.
        seed: Of the first maze.
    """
    check(json, seed, mazes=mazes)
    result = measure(mazes, limit_s, seed, progress=lambda seeds: track(seeds, "mazes"))
    print(as_text(result))
    if json:
        replace_file(json, (dumps(result) + "\n").encode())


if __name__ == "__main__":
    run(main)
