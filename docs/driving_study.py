"""Studies of the driving heads that are no closed loop: forks, streaming intents, weights of guidance.

    python docs/driving_study.py forks --goalflow models/driving_goalflow.kfb --intent models/driving_intent.kfb
    python docs/driving_study.py streaming --intent models/driving_intent.kfb
    python docs/driving_study.py weights --intent models/driving_intent.kfb

Each writes JSON into docs/results. Choices were made on seeds from 500,000, reports begin at 0.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro

from envs.driving import DrivingEnv
from envs.evaluate import paired_difference, wilson
from envs.experts.driving import Expert
from envs.metrics.tracker import sampled
from kinoflow.console import progress_bar
from kinoflow.driving_plans import ON_ROUTE, SAMPLES, Case, Plans, cases, sweep, valid
from policies.chunk import Chunk
from policies.files import replace_file
from policies.goalflow import GoalFlow
from policies.head import COMMITTED, HELD
from policies.intent import StreamingIntent
from policies.load import load_trained
from policies.maneuver import INTENTS, Maneuvers
from policies.policy import Policy
from policies.spec import Array

RESULTS = Path(__file__).parent / "results"
SWEPT = (
    *("keep accelerate", "keep hold", "keep decelerate", "keep stop"),
    *("turn-left hold", "turn-right hold", "turn-left decelerate", "turn-right decelerate"),
)
NOISE = {"car": 0.2, "paths": 0.2, "others": 0.3, "raster": 8.0}  # standard deviations, SI or grey levels
SECONDS = 6.0  # of a drive that intents are read along
SETTLED = 5  # steps of 0.2 s that a real change lasts at least
FIRM = 3  # steps in a row after which an intent that is told is no flicker


@dataclass(frozen=True)
class Forks:
    """Whether plans part at a fork, and whether any goes between the ways.

    Args:
        goalflow: Policy with goals.
        intent: Policy with intents.
        scenes: Forks to look at from the first seed on; those count whose ways part within a plan.
        seed: First seed.
        out: File for the result.
    """

    goalflow: str
    intent: str
    scenes: int = 400
    seed: int = 0
    out: Path = RESULTS / "driving_forks.json"


@dataclass(frozen=True)
class Streaming:
    """How often an intent flips under sensor noise, and how soon it follows a real change.

    Args:
        intent: Policy with intents.
        scenes: Drives from the first seed on.
        seed: First seed.
        stays: Log-odds of the commitment to compare with the first ones; 0 has no memory.
        out: File for the result.
    """

    intent: str
    scenes: int = 120
    seed: int = 0
    stays: tuple[float, ...] = (0.0, 2.0, 4.5, 6.0)
    out: Path = RESULTS / "driving_streaming.json"


@dataclass(frozen=True)
class Weights:
    """Faithfulness and validity by weight of guidance of a single chunk, and as the policy chooses among several.

    Args:
        intent: Policy with intents.
        weights: Of guidance, at all steps and, where there are several, at the first one only.
        steps: Denoising steps.
        scenes: From the first seed on.
        seed: First seed.
        out: File for the result.
    """

    intent: str
    weights: tuple[float, ...] = (1.0, 1.25, 1.35, 1.5, 2.0)
    steps: tuple[int, ...] = (1, 2)
    scenes: int = 60
    seed: int = 0
    out: Path = RESULTS / "driving_weights.json"


class Candidates(NamedTuple):
    """All chunks of a plan with goals, the one without a goal last.

    Args:
        chunks: ``(C, H, A)``, SI units.
        goals: ``(C, 3)`` in the frame of the car; the last one stands for none.
        rating: ``(C,)`` by which one is chosen.
    """

    chunks: Array
    goals: Array
    rating: Array


def candidates(policy: Policy, here: Case, goal: Array | None = None) -> Candidates:
    """What a policy with goals chooses from at the begin of a scene, toward a given goal ``(3,)`` or its own ones."""
    head, spec = policy.head, policy.spec
    assert isinstance(head, GoalFlow)
    observation = {f.name: torch.from_numpy(here.observation[f.name])[None] for f in spec.observations}
    with torch.inference_mode():
        encoded = head.encode(head.digest(policy.normaliser(observation)))
        if goal is not None:
            encoded = head.toward(encoded, torch.from_numpy(goal)[None])
        noise = torch.from_numpy(here.noise(spec))[None]
        nothing = torch.zeros(1, spec.horizon, spec.action.dim)
        chunks, rating = policy.candidates(encoded, noise, nothing, nothing[..., 0])
        return Candidates(head.restored(chunks[0]).numpy(), encoded.goals[0].numpy(), rating[0].numpy())


def ways_taken(plans: Plans, here: Case, chunks: Array) -> Array:
    """Which way of a fork each chunk ends on, -1 for none: ``(P,)``."""
    ends = sampled(plans.poses(chunks), plans.policy.spec.dt, here.env.pose, SAMPLES)[:, -1, :2]
    apart = np.stack([np.linalg.norm(route[:, None] - ends, axis=-1).min(0) for route in here.env.scene.routes])
    return np.where(apart.min(0) < ON_ROUTE, apart.argmin(0), -1)


def expert_drives(here: Case, horizon: int) -> tuple[Array, Array]:
    """Chunks ``(N, H, A)`` of an expert on each way of a fork, and where they end, in the car's frame ``(N, 3)``."""
    chunks, ends = [], []
    for way in range(len(here.env.scene.routes)):
        env = DrivingEnv()
        env.reset(options={"scene": replace(here.env.scene, chosen=way)})
        begin, expert = env.pose.copy(), Expert(env)
        chunks.append([])
        for _ in range(horizon):
            chunks[-1].append(expert.command())
            env.step(chunks[-1][-1])
        cos, sin = np.cos(begin[2]), np.sin(begin[2])
        place = (env.pose[:2] - begin[:2]) @ np.array([[cos, -sin], [sin, cos]])
        ends.append(np.r_[place, env.pose[2] - begin[2]])
    return np.array(chunks, np.float32), np.array(ends, np.float32)


def parting(seeds: Sequence[int], horizon_s: float) -> list[int]:
    """Seeds of forks whose ways have parted where a car at its speed is at the end of a plan."""
    env, found = DrivingEnv("fork"), []
    for seed in seeds:
        env.reset(seed=seed)
        found += [seed] if parted(env, horizon_s) else []
    return found


def parted(env: DrivingEnv, horizon_s: float) -> bool:
    """Whether the ways of a fork have parted where a car at its speed is at the end of a plan."""
    begin = int(np.linalg.norm(env.scene.routes[0] - env.pose[:2], axis=-1).argmin())
    end = begin + round(horizon_s * env.scene.speed)
    one, other = (route[min(end, len(route) - 1)] for route in env.scene.routes)
    return bool(np.linalg.norm(one - other) > 2 * ON_ROUTE)


def forks(options: Forks) -> dict[str, Any]:
    """Rates over forks that lie within the horizon of a plan."""
    with progress_bar("forks") as progress:
        scenes = cases(parting(range(options.seed, options.seed + options.scenes), 4.0), progress, "fork")
    report: dict[str, Any] = {"forks": len(scenes)}
    for steps in (1, 2, 5):
        report[f"goalflow_{steps}"] = _goal_rates(load_trained(f"{options.goalflow}@{steps}"), scenes)
    for steps in (1, 2, 5):
        report[f"intent_{steps}"] = _intent_rates(f"{options.intent}@{steps}", scenes)
    return report


def _goal_rates(policy: Policy, scenes: Sequence[Case]) -> dict[str, Any]:
    plans, chosen, conditioned = Plans(policy), [], []
    for here in scenes:
        chunks = candidates(policy, here).chunks
        fine, way = valid(plans.score(here, chunks)), ways_taken(plans, here, chunks)
        chosen_fine, chosen_way = _chosen(plans, here)
        chosen.append(
            {
                "both_ways_covered": bool((fine[:-1] & (way[:-1] == 0)).any() and (fine[:-1] & (way[:-1] == 1)).any()),
                "chosen_valid": chosen_fine,
                "chosen_on_a_way": chosen_way,
                "without_goal_valid": bool(fine[-1]),
                "without_goal_on_a_way": bool(way[-1] >= 0),
            }
        )
        expert, goals = expert_drives(here, policy.spec.horizon)
        best = valid(plans.score(here, expert))
        for side, goal in enumerate(goals):
            found = candidates(policy, here, goal)
            fine, way = valid(plans.score(here, found.chunks)), ways_taken(plans, here, found.chunks)
            taken = int(found.rating.argmax())
            conditioned.append(
                {
                    "expert_valid": bool(best[side]),
                    "with_goal_valid": bool(fine[taken]),
                    "with_goal_on_its_way": bool(way[taken] == side),
                    "with_goal_one_chunk_valid": bool(fine[0]),
                    "with_goal_one_chunk_on_its_way": bool(way[0] == side),
                }
            )
    return _rates(chosen) | _rates(conditioned)


def _intent_rates(path: str, scenes: Sequence[Case]) -> dict[str, Any]:
    """What comes of commanding what an expert does on each way, where these intents are not the same."""
    free, rows = Plans(load_trained(f"{path}@guidance=0@candidates=1")), []
    following = {intent: Plans(load_trained(f"{path}@intent={intent}")) for intent in INTENTS}
    for here in scenes:
        experts, _ = expert_drives(here, free.policy.spec.horizon)
        labels = free.maneuvers.labels(torch.from_numpy(experts)).tolist()
        if labels[0] == labels[1]:
            continue
        alone = free.act(here)[None]
        for way, label in enumerate(labels):
            plans = following[INTENTS[label]]
            chunk = plans.act(here)[None]
            done = int(plans.maneuvers.labels(torch.from_numpy(chunk))[0])
            rows.append(
                {
                    "faithful": done == label,
                    "valid": bool(valid(plans.score(here, chunk))[0]),
                    "on_the_commanded_way": bool(ways_taken(plans, here, chunk)[0] == way),
                    "without_intent_valid": bool(valid(free.score(here, alone))[0]),
                    "without_intent_on_a_way": bool(ways_taken(free, here, alone)[0] >= 0),
                }
            )
    return _rates(rows) | {"pairs": len(rows)}


def _chosen(plans: Plans, here: Case) -> tuple[bool, bool]:
    chunk = plans.act(here)[None]
    return bool(valid(plans.score(here, chunk))[0]), bool(ways_taken(plans, here, chunk)[0] >= 0)


def _rates(rows: Sequence[Mapping[str, bool]]) -> dict[str, Any]:
    return {name: wilson(sum(bool(row[name]) for row in rows), len(rows)) for name in rows[0]}


def streaming(options: Streaming) -> dict[str, Any]:
    """Flips per minute and reaction times along drives of the expert, read with sensor noise."""
    policies = {stay: load_trained(f"{options.intent}@stay={stay}") for stay in options.stays}
    flips: dict[float, list[float]] = {stay: [] for stay in options.stays}
    delays: dict[float, list[list[int]]] = {stay: [] for stay in options.stays}
    real = true_flips = 0
    with progress_bar("drives") as progress:
        for seed in range(options.seed, options.seed + options.scenes):
            seen, truth = drive(seed, next(iter(policies.values())))
            changes = lasting(truth)
            real += len(changes)
            true_flips += int((np.diff(truth) != 0).sum())
            for stay, policy in policies.items():
                told = read(policy, seen, seed)
                flips[stay].append(float((np.diff(told) != 0).sum()))
                delays[stay] += [[reaction(told, truth, change, steps) for steps in (1, FIRM)] for change in changes]
            progress(seed - options.seed + 1, options.scenes)
    minutes, dt = options.scenes * SECONDS / 60, DrivingEnv.contract.dt
    reactions = {stay: dt * np.mean(found, axis=0) for stay, found in delays.items()}
    firm = {stay: [dt * steps for _, steps in found] for stay, found in delays.items()}
    return {
        "drives": options.scenes,
        "real_changes": real,
        "expert_flips_per_minute": round(true_flips / minutes, 1),
        "stay": {
            str(stay): {
                "flips_per_minute": round(sum(flips[stay]) / minutes, 1),
                "mean_reaction_s": round(float(reactions[stay][0]), 2),
                "mean_firm_reaction_s": round(float(reactions[stay][1]), 2),
                "later_s": paired_difference(firm[stay], firm[options.stays[0]]),
            }
            for stay in options.stays
        },
    }


def drive(seed: int, policy: Policy) -> tuple[list[dict[str, Array]], Array]:
    """Observations along a drive of the expert at the rate of the policy, and what it does from each on."""
    env, spec = DrivingEnv(), policy.spec
    observation, _ = env.reset(seed=seed)
    expert = Expert(env)
    seen, commands = [], []
    while env.time < SECONDS + spec.horizon * spec.dt:
        seen.append(observation)
        commands.append(expert.command())
        observation, *_ = env.step(commands[-1])
    count = round(SECONDS / spec.dt)
    windows = np.stack([commands[index : index + spec.horizon] for index in range(count)])
    return seen[:count], Maneuvers(spec.action, spec.dt).labels(torch.from_numpy(windows)).numpy()


def lasting(truth: Array) -> list[int]:
    """Steps at which what is done changes, from something that lasted to something that lasts."""
    return [
        step
        for step in range(SETTLED, len(truth) - SETTLED)
        if truth[step] != truth[step - 1]
        and (truth[step : step + SETTLED] == truth[step]).all()
        and (truth[step - SETTLED : step] == truth[step - 1]).all()
    ]


def reaction(told: Array, truth: Array, change: int, steps: int) -> int:
    """Steps until the new intent is told, for so many steps in a row, at most until the end; none if foreseen."""
    runs = np.lib.stride_tricks.sliding_window_view(told[change:] == truth[change], steps).all(-1)
    return int(runs.argmax() if runs.any() else len(told) - change)


def read(policy: Policy, seen: Sequence[Mapping[str, Array]], seed: int) -> Array:
    """Intents told along noisy observations, each plan being executed until the next."""
    head, spec, rng = policy.head, policy.spec, np.random.default_rng(seed)
    assert isinstance(head, StreamingIntent)
    executing: Chunk | None = None
    told = []
    for index, clean in enumerate(seen):
        noisy = {name: noised(name, value, rng)[None] for name, value in clean.items()}
        now, hold = index * spec.dt, np.zeros(spec.horizon, np.float32)
        committed = np.zeros((spec.horizon, spec.action.dim), np.float32)
        if executing is not None:
            committed, hold[0] = executing.shifted(now), 1.0
        observation = policy.normaliser({name: torch.from_numpy(value)[None] for name, value in noisy.items()})
        memory = {COMMITTED: policy.normaliser.normalise("action", torch.from_numpy(committed)[None])}
        with torch.inference_mode():
            told.append(int(head.encode(observation | memory | {HELD: torch.tensor(hold[:1])}).reading[0, -1]))
        noise = rng.standard_normal(spec.noise_shape).astype(np.float32)
        executing = Chunk(policy.act(noisy, noise, committed, hold), now, spec.dt)
    return np.array(told)


def noised(name: str, value: Array, rng: np.random.Generator) -> Array:
    """An observation as a worse sensor would give it; what is absent stays so."""
    size = NOISE.get(name, 0.0)
    moved = value + size * rng.standard_normal(value.shape) * (value != 0)
    return np.clip(moved, 0, 255).astype(np.uint8) if value.dtype == np.uint8 else moved.astype(np.float32)


def weights(options: Weights) -> dict[str, Any]:
    """Rates by weight, number of steps and schedule."""
    with progress_bar("scenes") as progress:
        scenes = cases(range(options.seed, options.seed + options.scenes), progress)
    settings = {f"steps_{steps}_candidates": f"@{steps}" for steps in options.steps}
    for steps, weight in itertools.product(options.steps, options.weights):
        single = f"@{steps}@candidates=1@guidance={weight}"
        settings[f"steps_{steps}_weight_{weight}_all"] = single
        if steps > 1 and weight > 1:
            between = 0.5 / steps  # a time between the first step and the second
            settings[f"steps_{steps}_weight_{weight}_first"] = f"{single}@guided={between}"
    report: dict[str, Any] = {"scenes": options.scenes}
    kept = ("faithful", "valid", "faithful_and_valid", "valid_where_infeasible")
    with progress_bar("settings") as progress:
        for done, (name, setting) in enumerate(settings.items()):
            path = options.intent + setting
            found = sweep({intent: Plans(load_trained(f"{path}@intent={intent}")) for intent in SWEPT}, scenes)
            report[name] = {rate: found[rate] for rate in kept}
            progress(done + 1, len(settings))
    return report


def main() -> None:
    """Run one study and write its result."""
    options: Any = tyro.cli(
        Annotated[Forks, tyro.conf.subcommand("forks")]  # type: ignore[arg-type]
        | Annotated[Streaming, tyro.conf.subcommand("streaming")]
        | Annotated[Weights, tyro.conf.subcommand("weights")],
        description=__doc__,
    )
    study: Any = {Forks: forks, Streaming: streaming, Weights: weights}[type(options)]
    report = study(options)
    replace_file(options.out, json.dumps(report, indent=2).encode())
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
