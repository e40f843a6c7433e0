"""Planners put to work in simulated places: train one, drive along its plans, compare it with simpler ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch

from envs.collect import processes
from envs.drive import Driver, Row, Scripted, StandingStill, run_episode
from envs.evaluate import SHARD, STANDING_STILL, compared, summary
from envs.experts.maze import DRIVERS
from envs.maze import ACCELERATION, SPEED, MazeEnv, PuckMazeEnv
from envs.maze_data import EPISODES, wander
from envs.maze_nav import MazeNavEnv
from envs.world import make
from planners.edges import Joints
from planners.search import NoRoute, Route
from planners.track import AccelerationTracker, Curve, Follower, Tracker, TwistTracker, VelocityTracker
from planners.train_trajectory import TrajectoryRecipe, TrajectoryTrainer, trimmed
from planners.xdiffuser import Planned, Sampler, XDiffuser
from policies.checks import at_least, check_seed
from policies.files import prepare_folder
from policies.nets.unet1d import GROUPS
from policies.spec import Array, ContractError

TRAINING_SEED = 1_000_000  # first of the seeds that data are recorded with
MODELS = Path(__file__).resolve().parent.parent / "models"
TOUCHES, KEEPS = 0.5, 0.95  # radii that plans keep from walls, where touching them does no harm and where it does
LEVELS = 3  # of the network: each but the first halves pieces, which are multiples of 4
LOST, PATIENCE_S = 1.5, 0.5  # radii of the robot off its plan from which it is doubted, and for how long
TASKS = 5  # of every maze of OGBench
SIMPLE = ("expert", "straight line", STANDING_STILL)
Method = Literal["xdiffuser", "graph", "smooth graph", "unguided"]


@dataclass(frozen=True)
class PlannerRecipe:
    """What to train a planner on.

    Args:
        env: Gymnasium id of a maze.
        out: Directory of the run.
        data: How its robot has wandered through it: "stitch" or "explore".
        episodes: How often.
        nodes: Of the graph.
        room: Seed of the maze, where there is more than one.
        training: Of the model.
    """

    env: str
    out: Path
    data: str = "stitch"
    episodes: int = EPISODES
    nodes: int = 1000
    room: int = 0
    training: TrajectoryRecipe = field(default_factory=TrajectoryRecipe)


def maze(env: str, **options: Any) -> Any:
    """A maze by its Gymnasium id.

    Raises:
        ContractError: There is no such environment, or it is no maze.
    """
    world = make(env, options)
    if not isinstance(world, MazeEnv | MazeNavEnv):
        known = sorted(name for name in gymnasium.registry if name.startswith("kinoflow/") and "Maze" in name)
        raise ContractError(f"{env} is no maze, so nothing can be planned there; choose one of {', '.join(known)}")
    return world


def check(recipe: PlannerRecipe) -> None:
    """Refuse a recipe that could only fail later (`ContractError`), or whose ``out`` cannot be written (`OSError`)."""
    training = recipe.training
    at_least(2, nodes=recipe.nodes)
    ones = {name: getattr(training, name) for name in ("steps", "batch", "stride", "report_every")}
    at_least(1, episodes=recipe.episodes, **ones)
    at_least(0, warmup=training.warmup)
    check_seed(training.seed)
    check_seed(recipe.room, "room")
    widths = training.widths
    if not 1 <= len(widths) <= LEVELS or any(width < 1 or width % GROUPS for width in widths):
        raise ContractError(f"widths are {widths}; give 1 to {LEVELS} positive multiples of {GROUPS}")
    if not 0 <= training.ema < 1:
        raise ContractError(f"ema is {training.ema}, it has to be at least 0 and less than 1")
    if not 0 < training.learning_rate < math.inf:
        raise ContractError(f"learning_rate is {training.learning_rate}, it has to be positive and finite")
    maze(recipe.env).close()
    prepare_folder(recipe.out)


def train(recipe: PlannerRecipe, resume: bool, progress: Callable[[int, int, str], None]) -> Path:
    """Record data, train a model and build a graph; returns the planner's file.

    Args:
        recipe: What to do.
        resume: Continue an interrupted training.
        progress: Called with (step, steps in all, a short text).

    Raises:
        ContractError: Something in the recipe cannot work, or there is a run already, or none to resume.
        OSError: The directory of the run cannot be written.
    """
    check(recipe)
    env = maze(recipe.env)
    env.reset(seed=recipe.room)
    seed = TRAINING_SEED + recipe.training.seed
    recording = wander(env, recipe.data, np.random.default_rng(seed), recipe.episodes)
    env.close()
    places = [trimmed(states)[:, :2] for states in recording.trajectories]
    if recipe.nodes > (states := sum(map(len, places))):
        raise ContractError(f"nodes is {recipe.nodes}, the data have {states} states; ask for fewer or more --episodes")
    trainer = TrajectoryTrainer(recipe.out, recipe.training, places, resume)
    model = trainer.run(lambda entry: progress(int(entry["step"]), recipe.training.steps, f"loss {entry['loss']:.3f}"))
    rng = np.random.default_rng(recipe.training.seed)
    origin = {"env": recipe.env, "room": recipe.room, "data": recipe.data, "episodes": recipe.episodes, "seed": seed}
    stride = recipe.training.stride
    planner = XDiffuser.build(places, model, stride, recording.step_s, rng, recipe.nodes, origin)
    planner.save(recipe.out / "planner.kfp")
    return recipe.out / "planner.kfp"


def shipped(env: str) -> Path:
    """The file of the planner that ships for an environment, which need not exist."""
    return MODELS / f"{env.rpartition('/')[2].removesuffix('-v0').lower().replace('-', '_')}.kfp"


def load(file: Path, env: str, room: int | None = None) -> XDiffuser:
    """Read a planner that was made for an environment.

    Args:
        file: Of the planner.
        env: Gymnasium id.
        room: Seed of the maze, where there is more than one.

    Raises:
        FileNotFoundError: There is none.
        ContractError: It was made for another, or for another maze.
    """
    if file == shipped(env) and not file.exists():
        raise FileNotFoundError(
            f"no planner ships for {env}; give --planner FILE, or train one: kinoflow train xdiffuser --env {env} "
            "--out DIRECTORY"
        )
    planner = XDiffuser.load(file)
    planner.require(env, room, str(file))
    return planner


def free_in(env: Any) -> Callable[[Array, Array], Array]:
    """Whether the robot of an environment can go straight between points, judged by the map as it is now."""
    place = env if hasattr(env, "segment_free") else env.maze
    harmless = isinstance(env, MazeEnv) and not isinstance(env, PuckMazeEnv)
    margin = (TOUCHES if harmless else KEEPS) * radius_of(env)
    return lambda start, end: place.segment_free(start, end, margin)


def radius_of(env: Any) -> float:
    """Of the robot of an environment, in m."""
    return env.body.radius if hasattr(env, "body") else env.radius


def tracker_for(env: Any) -> Tracker:
    """A tracker for what the robot of an environment takes as commands."""
    if isinstance(env, PuckMazeEnv):
        return AccelerationTracker(1.5, ACCELERATION)
    action = env.contract.action
    if action.names == ("vx", "vy", "wz"):
        return TwistTracker(1.5, 1.8, np.array(action.low), np.array(action.high))
    return VelocityTracker(5.0, SPEED)


def robot_state(env: Any) -> Array:
    """What planner and tracker need to know of a robot: its state in a maze, x, y and yaw in a room."""
    return np.asarray(env.pose)[[0, 1, 3]] if len(env.pose) > 2 else env.state


class PlanDriver:
    """Drives one episode along plans, and plans again when it is lost or at the end of a plan.

    Args:
        planner: Plans.
        method: Whether the way through the graph guides a denoising, is followed itself, as it is or smoothed, or only
            says how long the trajectory of an unguided denoising is.
        env: Which the robot is in.
        seed: Of the noise.
        sampler: How to denoise.
    """

    def __init__(self, planner: XDiffuser, method: Method, env: Any, seed: int, sampler: Sampler) -> None:
        self.plans: list[Planned] = []
        """Of the method that is checked, in the order they were made."""
        self.refusal = ""
        """Why there is no plan; empty if there is one."""
        self.follower: Follower | None = None
        self._planner, self._method, self._env, self._sampler = planner, method, env, sampler
        self._generator = torch.Generator().manual_seed(seed)
        self._tracker, self._free = tracker_for(env), free_in(env)

    def command(self, observation: Mapping[str, Array], now: float) -> Array | None:
        """The command of the tracker; none where there is no plan."""
        state = robot_state(self._env)
        if self.follower is None or self.follower.lost or self.follower.over:
            self._plan(state)
        if self.follower is None:
            return None
        reference = self.follower.advance(state[:2], self._env.step_dt)
        return self._tracker.command(state, reference)

    def _plan(self, state: Array) -> None:
        moving = len(state) == 4  # robots without inertia begin a plan at once
        try:
            route = self._route(state if moving else state[:2])
        except NoRoute as refusal:
            self.refusal = str(refusal)  # the old plan, if any, is better than nothing
            return
        curve = Curve(route, self._planner.step_s, state[2:] if moving else None)
        self.refusal = ""
        self.follower = Follower(curve, LOST * radius_of(self._env), PATIENCE_S)

    def _route(self, start: Array) -> Route:
        planner, goal = self._planner, self._env.goal[:2]
        if self._method == "xdiffuser":
            self.plans.append(planner.plan(start, goal, self._free, self._generator, self._sampler))
            return self.plans[-1].route
        way = planner.way(start, goal, Joints(valid=self._free))
        if self._method != "unguided":
            return planner.even(way) if self._method == "smooth graph" else way
        return planner.unguided(way, start, goal, self._generator, self._sampler)


@dataclass(frozen=True)
class PlanEvaluation:
    """What to evaluate planners on.

    Args:
        env: Gymnasium id of a maze.
        planner: File of a planner; by default that which ships for the environment.
        tasks: "all", or the number of one.
        episodes: Per task.
        seed: First seed; the same for every driver.
        sampler: How trajectories are denoised.
        workers: Processes.
    """

    env: str = "kinoflow/Maze-giant-v0"
    planner: Path | None = None
    tasks: str = "all"
    episodes: int = 20
    seed: int = 0
    sampler: Sampler = field(default_factory=Sampler)
    workers: int = 2

    def check(self) -> None:
        """Refuse what cannot be evaluated (`ContractError`)."""
        at_least(1, episodes=self.episodes, workers=self.workers)
        check_seed(self.seed)
        known = ["all", *map(str, range(1, TASKS + 1))]
        if self.tasks not in known:
            raise ContractError(f"tasks is '{self.tasks}'; choose one of {', '.join(known)}")

    @property
    def file(self) -> Path:
        """Of the planner."""
        return self.planner or shipped(self.env)

    @property
    def seeds(self) -> range:
        """Of the episodes; environments turn consecutive ones into all tasks in turn."""
        return range(self.seed, self.seed + self.episodes * (TASKS if self.tasks == "all" else 1))

    def make(self) -> Any:
        """The environment."""
        return maze(self.env) if self.tasks == "all" else maze(self.env, task=int(self.tasks))


METHODS: tuple[Method, ...] = ("xdiffuser", "graph", "smooth graph", "unguided")


def evaluate(
    config: PlanEvaluation, progress: Callable[[int, int], None], names: Sequence[str] = (*METHODS, *SIMPLE)
) -> dict[str, Any]:
    """Drive the same episodes along plans of every kind, and with what needs none.

    Args:
        config: What to evaluate.
        progress: Called with (episodes done, episodes in all).
        names: Drivers; the first is reported on, the rest compared with it.

    Returns:
        A report for ``json.dump``, as of `envs.evaluate.evaluate`, with the times of planning.

    Raises:
        FileNotFoundError: There is no planner for the environment.
        ContractError: The planner was made for another, or something in the configuration cannot be.
    """
    config.check()
    if not hasattr(maze(config.env), "task"):
        raise ContractError(
            f"{config.env} has another maze for every seed; planners are evaluated where there are tasks"
        )
    load(config.file, config.env)
    rows: dict[str, list[Row]] = {name: [] for name in names}
    plans: list[dict[str, Any]] = []
    refusals: list[str] = []
    shards = [config.seeds[first : first + SHARD] for first in range(0, len(config.seeds), SHARD)]
    with processes(config.workers) as pool:
        jobs = {pool.submit(_run_shard, name, shard, config): name for name in names for shard in shards}
        for job in as_completed(jobs):
            new, made, refused = job.result()
            rows[jobs[job]] += new
            plans += made
            refusals += refused if jobs[job] == names[0] else []
            progress(sum(map(len, rows.values())), len(names) * len(config.seeds))
    ordered = {name: sorted(of_name, key=lambda row: row.seed) for name, of_name in rows.items()}
    first, *others = names
    report = {"env": config.env, "policy": first, "episodes": len(config.seeds), "seed": config.seed}
    report |= {"tasks": config.tasks, "planning": planning_of(plans, refusals), **summary(ordered[first])}
    report["baselines"] = {
        name: summary(ordered[name]) | {"difference": compared(ordered[first], ordered[name])} for name in others
    }
    report["rows"] = {name: [row.to_json() for row in ordered[name]] for name in names}
    return report


def _run_shard(name: str, seeds: range, config: PlanEvaluation) -> tuple[list[Row], list[dict[str, Any]], list[str]]:
    """Rows of the episodes, what their plans took, and why episodes ended without a plan, where they did."""
    torch.set_num_threads(1)
    env, planner = config.make(), load(config.file, config.env)
    rows, plans, refusals = [], [], []
    for seed in seeds:
        env.reset(seed=seed)
        driver = _driver(name, planner, env, seed, config)
        rows.append(run_episode(env, driver, seed))
        plans += [_timing(plan, index) for index, plan in enumerate(getattr(driver, "plans", []))]
        refusals += [refusal] if (refusal := getattr(driver, "refusal", "")) else []
    env.close()
    return rows, plans, refusals


def _driver(name: str, planner: XDiffuser, env: Any, seed: int, config: PlanEvaluation) -> Driver:
    if name in METHODS:
        return PlanDriver(planner, name, env, seed, config.sampler)
    return StandingStill() if name == STANDING_STILL else Scripted(DRIVERS[name](env))


def _timing(plan: Planned, index: int) -> dict[str, Any]:
    return {"first": index == 0, "s": plan.search_s + plan.denoise_s, "origin": plan.origin, "pieces": plan.pieces}


def planning_of(plans: Sequence[Mapping[str, Any]], refusals: Sequence[str]) -> dict[str, Any]:
    """Percentiles of the seconds per plan, how often denoising had to be helped, and in how many episodes it was
    refused at last."""
    found: dict[str, Any] = {}
    for name, first in (("first", True), ("again", False)):
        spent = [plan["s"] for plan in plans if plan["first"] == first]
        if spent:
            p50, p95 = np.quantile(spent, (0.5, 0.95))
            found[name] = {"plans": len(spent), "p50_s": round(float(p50), 4), "p95_s": round(float(p95), 4)}
    origins = [plan["origin"] for plan in plans]
    found["origins"] = {origin: origins.count(origin) for origin in sorted({*origins})}
    return found | ({"refused": {"episodes": len(refusals), "first": refusals[0]}} if refusals else {})
