"""XDiffuser: a way through a graph guides one denoising of a long trajectory (arXiv 2605.16863).

The trajectory is composed of overlapping pieces that are denoised together (`planners.pieces`). Waypoints of the way
pull what is near them in time. Where the published system descends the gradient of that pull, its proximal step is
taken here, which is stable for any strength.

The graph has chosen the corridor, so that few samples and few steps do. What comes out is checked for walls and for
leaps; what does not pass is denoised again with more time or a narrower window, and at last the way itself is taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from planners import planner_file
from planners.edges import Joints, Straight, checked_trajectories
from planners.graph import StateGraph
from planners.pieces import Pieces, agreeing, composed, joined, smoothed
from planners.search import Route, downsampled, shortest_path
from policies.archive import BundleError
from policies.checks import at_least
from policies.flow import solve, straight, toward
from policies.spec import Array, ContractError
from policies.trajectory import TrajectoryModel

NEAR = 64  # states that say how fast the trajectories are near a node
SLOWER = 1.08  # times the duration of a plan that leapt, for the next attempt
SPLICE = 8  # positions over which a trajectory fades into the way beside a wall
# Quantile of the steps of the data, times this, beyond which a plan leaps or turns too fast.
USUAL, LENIENT = 0.9999, 1.2
Free = Callable[[Array, Array], Array]  # from points (M, 2) to points (M, 2): whether the robot can go straight (M,)
Origin = Literal["denoised", "helped", "way"]


@dataclass(frozen=True)
class Sampler:
    """How trajectories are denoised.

    Args:
        steps: Evaluations of the network.
        samples: Trajectories per plan, of which the best is taken.
        pull: How near to the way the trajectory shall be, as the standard deviation of a waypoint in m; infinite for
            none at all.
        window: How many steps before and after its time a waypoint pulls.
        every: Steps between waypoints.
        attempts: How often it is denoised before the way is taken; after walls with half the window, else with more
            time.
    """

    steps: int = 8
    samples: int = 2
    pull: float = 1.0
    window: float = 24.0
    every: float = 6.0
    attempts: int = 3

    def __post_init__(self) -> None:
        for name in ("steps", "samples", "pull", "window", "every", "attempts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it has to be positive")


class Planned(NamedTuple):
    """A plan and how it came about.

    Args:
        route: Positions and when to be there, in steps.
        way: The way through the graph that guided it.
        origin: Whether it is denoised; denoised, but with more time, a narrower window or parts of the way after
            something did not pass, or with a turn that is too fast; or the way itself because nothing was free, or
            there is nowhere to go.
        pieces: How many were composed.
        search_s: Seconds that the graph took.
        denoise_s: Seconds that the network took, checks included.
        rejected: Why samples did not pass, counted.
    """

    route: Route
    way: Route
    origin: Origin
    pieces: int
    search_s: float
    denoise_s: float
    rejected: dict[str, int]


@dataclass(frozen=True, eq=False)
class XDiffuser:
    """A planner for one place: a graph over positions, a model of short trajectories, and the units between them.

    Args:
        graph: Over positions ``(N, 2)`` in m; its costs are steps.
        model: Of pieces of trajectories.
        speeds: How fast the trajectories are near each node ``(N,)``, in m per step.
        stride: Steps between two states of a piece.
        leap: Farthest that positions of a plan may be apart after a stride, in m.
        turn: By how much that step may change from one to the next, in m; as `leap` from the data.
        step_s: Seconds per step.
        origin: Where data and model come from, as plain JSON values.

    Raises:
        ContractError: A unit is not positive and finite, or the speeds do not fit the nodes.
    """

    graph: StateGraph
    model: TrajectoryModel
    speeds: Array
    stride: int
    leap: float
    turn: float
    step_s: float
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (isinstance(self.stride, Integral) and self.stride >= 1):
            raise ContractError(f"stride is {self.stride!r}, it has to be a whole number of steps, 1 or more")
        for name in ("leap", "turn", "step_s"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and 0 <= value < math.inf) or (value == 0 and name != "turn"):
                raise ContractError(f"{name} is {value!r}, it has to be a positive number")  # straight data never turn
        shape, nodes = self.speeds.shape, len(self.graph.nodes)
        if shape != (nodes,) or not (np.isfinite(self.speeds) & (self.speeds > 0)).all():
            raise ContractError(f"speeds {shape} are not ({nodes},), one per node, positive and finite")
        if not isinstance(self.origin, Mapping):
            raise ContractError(f"origin is {self.origin!r}, not names with values")

    @classmethod
    def build(
        cls,
        trajectories: Sequence[Array],
        model: TrajectoryModel,
        stride: int,
        step_s: float,
        rng: np.random.Generator,
        nodes: int = 1000,
        origin: Mapping[str, Any] | None = None,
    ) -> XDiffuser:
        """A planner from trajectories ``(T, 2)`` in m and a model that was trained on them.

        Args:
            trajectories: Positions, one per step, without the rests at their ends, see `trimmed`.
            model: Of pieces of these.
            stride: Steps between two states of a piece.
            step_s: Seconds per step.
            rng: Draws the nodes.
            nodes: How many the graph has.
            origin: Where data and model come from.

        Raises:
            ContractError: The trajectories are not ``(T, 2)``, not finite, too short or at rest, or a unit is not
                positive.
            GraphError: There are not so many states.
        """
        trajectories = checked_trajectories(trajectories, 2)
        at_least(1, stride=stride)
        if (longest := max(map(len, trajectories))) <= 2 * stride:
            raise ContractError(
                f"the longest trajectory has {longest} states, {2 * stride + 1} are needed; record longer ones or "
                "lower the stride"
            )
        moves = np.concatenate([np.linalg.norm(np.diff(place, axis=0), axis=-1) for place in trajectories])
        if not (speed := float(np.median(moves))) > 0:
            raise ContractError("most steps of the trajectories do not move at all; cut their rests off with `trimmed`")
        graph = StateGraph.from_trajectories(trajectories, nodes, rng, Straight(speed))
        places = np.concatenate([place[:-1] for place in trajectories])
        speeds = moves[KDTree(places).query(graph.nodes, min(NEAR, len(places)))[1]].mean(-1)
        leap, turn = (LENIENT * _largest(trajectories, stride, order) for order in (1, 2))
        return cls(graph, model, speeds, stride, leap, turn, step_s, origin or {})

    def save(self, path: Path) -> None:
        """Write the planner to one file, in one step; weights at half precision.

        Raises:
            OSError: The file cannot be written.
        """
        units = {name: getattr(self, name) for name in planner_file.UNITS}
        contents = planner_file.Contents(self.graph, self.model, self.speeds, units, self.origin)
        planner_file.write(path, contents)

    @classmethod
    def load(cls, path: Path) -> XDiffuser:
        """Read a planner.

        Raises:
            FileNotFoundError: There is no such file.
            BundleError: It is damaged or no planner.
        """
        graph, model, speeds, units, origin = planner_file.read(path)
        try:
            return cls(graph, model, speeds, **units, origin=origin)
        except ContractError as error:
            raise BundleError(f"{path} is damaged: {error}; copy the planner again") from error

    def require(self, env: str, room: int | None, name: str) -> None:
        """Require that the planner was made for an environment.

        Args:
            env: Gymnasium id.
            room: Seed of the maze, where there is more than one.
            name: Of the planner, for the message.

        Raises:
            ContractError: It was made for another, or for another maze.
        """
        made, known = self.origin.get("env"), self.origin.get("room")
        if made != env:
            raise ContractError(f"{name} was made for {made}, not for {env}; train one with `kinoflow train xdiffuser`")
        if room is not None and room != known:
            raise ContractError(f"{name} knows the maze of seed {known}, not of {room}; train one with --room {room}")

    def timed(self, places: Array) -> Route:
        """A trajectory ``(T, 2)`` with its times."""
        return Route(places, self.stride * np.arange(len(places), dtype=float))

    def way(self, start: Array, goal: Array, joints: Joints | None = None) -> Route:
        """The way through the graph with time stamps as fast as the data are.

        Args:
            start: Position, and whatever follows it, ``(2,)`` or longer.
            goal: Position ``(2,)`` in m.
            joints: How start and goal are joined to the graph.

        Raises:
            NoRoute: There is none.
        """
        found = shortest_path(self.graph, np.asarray(start)[:2], goal, joints)
        speeds = self.speeds[KDTree(self.graph.nodes).query(found.states)[1]]
        steps = np.linalg.norm(np.diff(found.states, axis=0), axis=-1) / ((speeds[1:] + speeds[:-1]) / 2)
        return Route(found.states, np.r_[0.0, np.cumsum(steps)])

    def plan(
        self,
        start: Array,
        goal: Array,
        free: Free,
        generator: torch.Generator,
        sampler: Sampler | None = None,
        joints: Joints | None = None,
    ) -> Planned:
        """Plan from a state to a position.

        Args:
            start: Where the robot is, and how fast if it has inertia: ``(2,)`` or ``(4,)`` in m and m/s.
            goal: Position ``(2,)`` in m.
            free: Whether the robot can go straight; what the joints of start and goal, and every segment of a
                trajectory, have to pass. For the way itself the graph answers: close edges where something is in them.
            generator: Source of the noise.
            sampler: How to denoise.
            joints: How start and goal are joined to the graph, by default to nodes that are free.

        Raises:
            NoRoute: There is no way through the graph.
            ContractError: Start or goal has another shape or is not finite.
        """
        start, goal = _state("start", start, (2, 4)), _state("goal", goal, (2,))
        sampler = sampler or Sampler()
        begin = time.perf_counter()
        way = self.way(start, goal, joints or Joints(valid=free))
        middle = time.perf_counter()
        if not way.cost > 0:  # the goal is the start
            return Planned(self.timed(np.stack([start[:2], goal])), way, "way", 0, middle - begin, 0.0, {})
        rejected: dict[str, int] = {}
        guide, window, best, origin = way, sampler.window, None, "denoised"
        for attempt in range(sampler.attempts):
            pieces = self.pieces(guide)
            found = self.denoise(guide, start, goal, generator, replace(sampler, window=window), pieces)
            flaws = [self.flaw(places, free) for places in found]
            spliced = [
                self.spliced(places, guide, free) for places, flaw in zip(found, flaws, strict=True) if flaw == "wall"
            ]
            for places, flaw in zip(found, flaws, strict=True):
                rejected[flaw] = rejected.get(flaw, 0) + bool(flaw)
                if flaw in ("", "turn") and (best is None or _turn(places) < _turn(best)):
                    best, origin = places, "helped" if attempt or flaw else "denoised"
            for places in spliced:
                if self.flaw(places, free) in ("", "turn") and (best is None or _turn(places) < _turn(best)):
                    best, origin = places, "helped"
            if "" in flaws or (best is not None and _turn(best) <= self.turn):
                break
            if 2 * flaws.count("wall") < len(flaws):
                guide = Route(guide.states, SLOWER * guide.times)
            else:
                window /= 2  # the mean of waypoints around a corner cuts it
        if best is None:
            best, origin = self.even(way).states, "way"
            if self.flaw(best, free) == "wall":
                best = way.states  # the graph answers for its segments
        route = way if best is way.states else self.timed(best)
        spent = time.perf_counter() - middle
        counts = {flaw: count for flaw, count in rejected.items() if count}
        return Planned(route, way, origin, len(pieces.first), middle - begin, spent, counts)  # type: ignore[arg-type]

    def even(self, way: Route) -> Route:
        """A way as a trajectory: positions a stride apart, smoothed as denoised ones are."""
        moments = np.arange(0, way.times[-1] + self.stride, self.stride)
        places = np.stack([np.interp(moments, way.times, way.states[:, axis]) for axis in (0, 1)], -1)
        return self.timed(smoothed(places[None])[0]) if len(places) > 3 else way

    def unguided(self, way: Route, start: Array, goal: Array, generator: torch.Generator, sampler: Sampler) -> Route:
        """What is denoised when only the duration of a way is known, unchecked: the composition alone, to compare with.

        Args:
            way: Says how long the trajectory is.
            start: As for `plan`.
            goal: As for `plan`.
            generator: Source of the noise.
            sampler: How to denoise; its pull does not count.
        """
        alone = replace(sampler, pull=np.inf, samples=1)
        return self.timed(self.denoise(way, start, goal, generator, alone, self.pieces(way))[0])

    def pieces(self, way: Route) -> Pieces:
        """Cut a trajectory that takes as long as a way into pieces, as long ones and as few as possible."""
        config = self.model.config
        return Pieces.cut(max(2, 1 + round(way.cost / self.stride)), config.horizon, config.overlap)

    @torch.inference_mode()
    def denoise(
        self, way: Route, start: Array, goal: Array, generator: torch.Generator, sampler: Sampler, pieces: Pieces
    ) -> Array:
        """Denoise whole trajectories ``(samples, T, 2)`` in m, from the start on.

        Args:
            way: What guides them.
            start: Where the robot is, and how fast if that matters: ``(2,)`` or ``(4,)``.
            goal: Last position ``(2,)``.
            generator: Source of the noise.
            sampler: How.
            pieces: Of what they are composed.
        """
        model, begin = self.model, self._begin(start)
        before = len(begin) - 1
        field = composed(model, begin, goal, pieces, sampler.samples)
        if np.isfinite(sampler.pull):
            field = toward(field, *self._pull(way, pieces, sampler, before))
        field = agreeing(field, pieces)
        grid = model.grid(sampler.steps)
        shape = (sampler.samples * len(pieces.first), pieces.horizon, 2)
        noise = torch.randn(shape, generator=generator) * float(np.hypot(grid[0], 1 - grid[0]))
        found = joined(solve(straight(field), noise, grid), pieces)
        return smoothed(model.restore(found).numpy()[:, before:])

    def _begin(self, start: Array) -> Array:
        """The first positions ``(B, 2)`` of a trajectory: where the robot is, after where it came from if it has
        inertia, which says how fast it is."""
        begin = np.asarray(start, np.float32)[None, :2]
        if len(start) == 2:
            return begin
        return np.concatenate([begin - self.stride * self.step_s * np.asarray(start)[None, 2:4], begin])

    def _pull(self, way: Route, pieces: Pieces, sampler: Sampler, before: int) -> tuple[Tensor, Tensor]:
        """Target ``(samples * K, H, 2)`` in normal units and its precision ``(samples * K, H, 1)``: the weighted mean
        waypoint of every position and the sum of the weights, which fall to zero a window before and after its time."""
        waypoints = downsampled(way, sampler.every)
        times = before + waypoints.times / way.times[-1] * (pieces.total - 1 - before)
        apart = self.stride * np.abs(np.arange(pieces.total)[:, None] - times)
        weights = np.clip(1 - apart / sampler.window, 0, None)
        total = weights.sum(1, keepdims=True)
        target = weights @ waypoints.states[:, :2] / np.maximum(total, 1e-9)
        precision = total * (self.model.config.scale / sampler.pull) ** 2
        wanted = self.model.normal(torch.as_tensor(target[pieces.rows], dtype=torch.float32))
        strength = torch.as_tensor(precision[pieces.rows], dtype=torch.float32)
        return wanted.repeat(sampler.samples, 1, 1), strength.repeat(sampler.samples, 1, 1)

    def spliced(self, places: Array, way: Route, free: Free) -> Array:
        """A trajectory ``(T, 2)`` that goes the way wherever it would hit a wall, and fades into it around there."""
        hits = np.flatnonzero(~free(places[:-1], places[1:]))
        moments = np.linspace(0, way.times[-1], len(places))
        instead = np.stack([np.interp(moments, way.times, way.states[:, axis]) for axis in (0, 1)], -1)
        apart = np.abs(np.arange(len(places))[:, None] - np.r_[hits, hits + 1]).min(1)
        share = np.clip((SPLICE - apart) / SPLICE + 0.5, 0, 1)[:, None]
        return smoothed(((1 - share) * places + share * instead)[None])[0]

    def flaw(self, places: Array, free: Free) -> str:
        """Why a trajectory ``(T, 2)`` cannot be driven: it is not finite, leaps, hits a wall, or turns too fast.

        Empty if it can.
        """
        if not np.isfinite(places).all():
            return "not finite"
        if (np.linalg.norm(np.diff(places, axis=0), axis=-1) > self.leap).any():
            return "leap"
        if not free(places[:-1], places[1:]).all():
            return "wall"
        return "turn" if _turn(places) > self.turn else ""


def _state(name: str, values: Array, sizes: tuple[int, ...]) -> Array:
    """What a plan begins or ends with, checked (`ContractError`)."""
    found = np.asarray(values, float)
    if found.ndim != 1 or len(found) not in sizes:
        needed = "(2,) in m, or (4,) with the velocity in m/s" if 4 in sizes else "(2,) in m"
        raise ContractError(f"the {name} has shape {found.shape}, a plan needs {needed}")
    if not np.isfinite(found).all():
        raise ContractError(f"the {name} is {found.tolist()}, not finite; check where it comes from")
    return found


def _largest(trajectories: Sequence[Array], stride: int, order: int) -> float:
    """Largest difference of an order between positions ``stride`` apart, but for the few that are larger."""
    found = [
        np.linalg.norm(np.diff(place[first::stride], order, axis=0), axis=-1)
        for place in trajectories
        for first in range(min(stride, max(0, len(place) - order * stride)))
    ]
    return float(np.quantile(np.concatenate(found), USUAL))


def _turn(places: Array) -> float:
    """Largest change in m of the step from one position of a trajectory ``(T, 2)`` to the next."""
    return float(np.linalg.norm(np.diff(places, 2, axis=0), axis=-1).max(initial=0.0))
