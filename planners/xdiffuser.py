"""XDiffuser: a way through a graph guides one denoising of a long trajectory (arXiv 2605.16863).

The trajectory is composed of overlapping pieces that are denoised together, each told the noisy ends of those beside
it, the first one the start and the last one the goal; where they overlap their estimates are averaged. Waypoints of the
way pull what is near them in time. Where the published system descends the gradient of that pull, its proximal step is
taken here, which is stable for any strength.

The graph has chosen the corridor, so that few samples and few steps do. What comes out is checked for walls and for
leaps; what does not pass is denoised again with more time or a narrower window, and at last the way itself is taken.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from scipy.spatial import KDTree
from torch import Tensor

from planners.edges import GraphError, Joints, Straight
from planners.graph import StateGraph
from planners.search import Route, downsampled, shortest_path
from policies.archive import BundleError, pack, unpack
from policies.files import replace_file
from policies.flow import Estimate, Field, solve, straight, toward
from policies.flow.guide import certain
from policies.spec import Array
from policies.trajectory import Ends, TrajectoryModel, config_of

MANIFEST, WEIGHTS, GRAPH = "planner.json", "weights.safetensors", "graph.npz"
SPEEDS = "speeds"  # beside the weights
FORMAT = 1  # of the file
NEAR = 64  # states that say how fast the trajectories are near a node
SLOWER = 1.08  # times the duration of a plan that leapt, for the next attempt
SPLICE = 8  # positions over which a trajectory fades into the way beside a wall
USUAL, LENIENT = (
    0.9999,
    1.2,
)  # quantile of the steps of the data, times this, beyond which a plan leaps or turns too fast
SMOOTHING, FIXED = 10.0, 1e4  # weights of third differences and of the ends
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


class Pieces(NamedTuple):
    """How a trajectory is cut into pieces that overlap.

    Args:
        first: The first state of each ``(K,)``.
        horizon: States of each.
    """

    first: Array
    horizon: int

    @property
    def total(self) -> int:
        """States of the trajectory."""
        return int(self.first[-1]) + self.horizon

    def overlaps(self) -> Array:
        """States that neighbours share ``(K - 1,)``."""
        return self.horizon - np.diff(self.first)


class Planned(NamedTuple):
    """A plan and how it came about.

    Args:
        route: Positions and when to be there, in steps.
        way: The way through the graph that guided it.
        origin: Whether it is denoised; denoised, but with more time, a narrower window or parts of the way after
            something did not pass, or with a turn that is too fast; or the way itself because nothing was free.
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
    """

    graph: StateGraph
    model: TrajectoryModel
    speeds: Array
    stride: int
    leap: float
    turn: float
    step_s: float
    origin: Mapping[str, Any] = field(default_factory=dict)

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
        """
        moves = np.concatenate([np.linalg.norm(np.diff(place, axis=0), axis=-1) for place in trajectories])
        graph = StateGraph.from_trajectories(trajectories, nodes, rng, Straight(float(np.median(moves))))
        places = np.concatenate([place[:-1] for place in trajectories])
        speeds = moves[KDTree(places).query(graph.nodes, min(NEAR, len(places)))[1]].mean(-1)
        leap, turn = (LENIENT * _largest(trajectories, stride, order) for order in (1, 2))
        return cls(graph, model, speeds, stride, leap, turn, step_s, origin or {})

    def save(self, path: Path) -> None:
        """Write the planner to one file, in one step; weights at half precision.

        Raises:
            OSError: The file cannot be written.
        """
        weights = {name: value.half() for name, value in self.model.state_dict().items()}
        parts = {
            WEIGHTS: save({**weights, SPEEDS: torch.as_tensor(self.speeds, dtype=torch.float16)}),
            GRAPH: self.graph.to_bytes(),
        }
        manifest = {
            "format": FORMAT,
            "model": self.model.settings,
            "speed": self.graph.cost.speed if isinstance(self.graph.cost, Straight) else None,
            **{name: getattr(self, name) for name in ("stride", "leap", "turn", "step_s")},
            "origin": dict(self.origin),
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()},
        }
        replace_file(path, pack({MANIFEST: json.dumps(manifest, indent=2).encode(), **parts}))

    @classmethod
    def load(cls, path: Path) -> XDiffuser:
        """Read a planner.

        Raises:
            FileNotFoundError: There is no such file.
            BundleError: It is damaged or no planner.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no planner {path}; train one with `kinoflow train xdiffuser`")
        parts = unpack(path, lambda read: (MANIFEST, WEIGHTS, GRAPH))
        try:
            manifest = json.loads(parts[MANIFEST])
            for name, digest in manifest["sha256"].items():
                if hashlib.sha256(parts[name]).hexdigest() != digest:
                    raise BundleError(f"{name} of {path} was changed; copy the planner again")
            if manifest["format"] != FORMAT:
                raise BundleError(f"{path} has format {manifest['format']}, not {FORMAT}; train the planner again")
            model = TrajectoryModel(config_of(manifest["model"]))
            weights = {name: value.float() for name, value in load(parts[WEIGHTS]).items()}
            speeds = weights.pop(SPEEDS).numpy()
            model.load_state_dict(weights)
            graph = StateGraph.from_bytes(parts[GRAPH], Straight(manifest["speed"]), str(path))
            units = {name: manifest[name] for name in ("stride", "leap", "turn", "step_s", "origin")}
        except (KeyError, TypeError, RuntimeError, SafetensorError, GraphError, json.JSONDecodeError) as error:
            raise BundleError(f"{path} is no planner or is damaged ({error}); copy it again") from error
        return cls(graph, model.eval(), speeds, **units)

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
        """
        sampler = sampler or Sampler()
        begin = time.perf_counter()
        way = self.way(start, goal, joints or Joints(valid=free))
        middle = time.perf_counter()
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
        wanted = max(2, 1 + round(way.cost / self.stride))
        (least, most), longest = self.model.config.overlap, self.model.config.horizon
        for horizon in range(longest, 7, -4):
            count = 1 if wanted <= horizon else 1 + -(-(wanted - horizon) // (horizon - least))
            shortest = count * horizon - (count - 1) * most
            if wanted >= shortest - (0 if count > 1 else 3):
                break
        total = max(wanted, shortest)
        return Pieces(np.rint(np.linspace(0, total - horizon, count)).astype(int), horizon)

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
        model, before = self.model, int(len(start) > 2)
        field = self._composed(start, goal, pieces, sampler.samples)
        if np.isfinite(sampler.pull):
            field = toward(field, *self._pull(way, pieces, sampler, before))
        field = _agreeing(field, pieces)
        grid = model.grid(sampler.steps)
        shape = (sampler.samples * len(pieces.first), pieces.horizon, 2)
        noise = torch.randn(shape, generator=generator) * float(np.hypot(grid[0], 1 - grid[0]))
        found = _joined(solve(straight(field), noise, grid), pieces)
        return smoothed(model.restore(found).numpy()[:, before:])

    def _composed(self, start: Array, goal: Array, pieces: Pieces, samples: int) -> Field:
        """Field over all pieces of all samples, ``(samples * K, H, 2)``, in which each sees those beside it."""
        model, count, horizon = self.model, len(pieces.first), pieces.horizon
        places, given, shared = torch.zeros(count, horizon, 2), *torch.zeros(2, count, horizon, 1)
        begin = np.asarray(start, np.float32)[None, :2]
        if len(start) > 2:  # where it came from says how fast it is
            begin = np.concatenate([begin - self.stride * self.step_s * np.asarray(start)[None, 2:4], begin])
        for piece, row, known in ((0, slice(len(begin)), begin), (-1, slice(-1, None), np.asarray(goal)[None])):
            places[piece, row] = model.normal(torch.as_tensor(known, dtype=torch.float32))
            given[piece, row] = 1
        for index, overlap in enumerate(pieces.overlaps()):
            shared[index, horizon - overlap :] = shared[index + 1, :overlap] = 1
        places, given, shared = (part.repeat(samples, 1, 1) for part in (places, given, shared))

        def field(x: Tensor, t: Tensor) -> Estimate:
            return model.estimate(x, t, Ends(places, given, _beside(x, pieces), shared))

        return field

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
        rows = pieces.first[:, None] + np.arange(pieces.horizon)
        wanted = self.model.normal(torch.as_tensor(target[rows], dtype=torch.float32))
        strength = torch.as_tensor(precision[rows], dtype=torch.float32)
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


def smoothed(places: Array) -> Array:
    """Trajectories ``(samples, T, 2)`` whose steps change evenly, with the same ends.

    A network is off by centimetres, here and there. That is nothing beside a maze, but to a robot with inertia a jump
    of them within a stride is more than it can follow. Least squared third differences, as in Whittaker's smoother.
    """
    count = places.shape[1]
    third = np.diff(np.eye(count), 3, axis=0)
    weights = np.ones(count)
    weights[[0, -1]] = FIXED
    system = np.diag(weights) + SMOOTHING * third.T @ third
    return np.linalg.solve(system, weights[:, None] * places).astype(np.float32)


def _largest(trajectories: Sequence[Array], stride: int, order: int) -> float:
    """Largest difference of an order between positions ``stride`` apart, but for the few that are larger."""
    found = [
        np.linalg.norm(np.diff(place[first::stride], order, axis=0), axis=-1)
        for place in trajectories
        for first in range(min(stride, max(0, len(place) - order * stride)))
    ]
    return float(np.quantile(np.concatenate(found), USUAL))


def _beside(x: Tensor, pieces: Pieces) -> Tensor:
    """What the pieces ``(samples * K, H, D)`` beside each one have where they overlap with it."""
    count, horizon = len(pieces.first), pieces.horizon
    own = x.reshape(-1, count, *x.shape[1:])
    other = torch.zeros_like(own)
    for index, overlap in enumerate(pieces.overlaps()):
        other[:, index, horizon - overlap :] = own[:, index + 1, :overlap]
        other[:, index + 1, :overlap] = own[:, index, horizon - overlap :]
    return other.reshape(x.shape)


def _joined(x: Tensor, pieces: Pieces) -> Tensor:
    """Trajectories ``(samples, T, D)`` of pieces ``(samples * K, H, D)``; in overlaps one fades into the next."""
    own = x.reshape(-1, len(pieces.first), *x.shape[1:])
    weights = torch.ones(len(pieces.first), pieces.horizon, 1)
    for index, overlap in enumerate(pieces.overlaps()):
        rising = torch.arange(1, overlap + 1)[:, None] / (overlap + 1)
        weights[index + 1, :overlap] *= rising
        weights[index, pieces.horizon - overlap :] *= rising.flip(0)
    whole, total = torch.zeros(len(own), pieces.total, x.shape[-1]), torch.zeros(pieces.total, 1)
    for index, first in enumerate(pieces.first):
        whole[:, first : first + pieces.horizon] += weights[index] * own[:, index]
        total[first : first + pieces.horizon] += weights[index]
    return whole / total


def _agreeing(field: Field, pieces: Pieces) -> Field:
    """The field whose estimates are the same wherever pieces overlap."""
    rows = torch.as_tensor(pieces.first[:, None] + np.arange(pieces.horizon))

    def agreed(x: Tensor, t: Tensor) -> Estimate:
        data = _joined(field(x, t).data, pieces)[:, rows].flatten(0, 1)
        return certain(data)(x, t)

    return agreed


def _turn(places: Array) -> float:
    """Largest change in m of the step from one position of a trajectory ``(T, 2)`` to the next."""
    return float(np.linalg.norm(np.diff(places, 2, axis=0), axis=-1).max(initial=0.0))
