"""Single plans in driving scenes: what they score, whether they follow an intent, how they part at a fork.

A scene is recorded while the expert drives it; then every plan that a policy makes at its begin is tracked and scored
against what the others did, as NAVSIM does it: nobody reacts to the plan. Kinematic, like the whole environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.driving import DrivingEnv
from envs.evaluate import wilson
from envs.experts.driving import Expert
from envs.metrics import PdmScore, ScoredScene, pdm_score, rater_feedback_score
from envs.metrics.tracker import sampled
from envs.traffic import BRAKING, THRUST, TICK, Paths
from policies.maneuver import INTENTS, Maneuvers, allowed
from policies.motion import Motion
from policies.policy import Policy
from policies.spec import Array, ContractError, Spec

SAMPLES = 41  # of a scored plan, 4 s
RATED = 5.0  # s
PROFILES = (("accelerate", 1.4), ("hold", 1.0), ("decelerate", 0.5), ("stop", 0.0))  # and shares of the speed to reach
CAUTION = 0.7  # share of the speed limit of the second rater
LABELS = (10.0, 7.0, 4.0)  # the expert, the expert at lower speed, braking
ON_ROUTE = 2.0  # m beside the nearest way at a fork


class Case(NamedTuple):
    """One scene at its begin.

    Args:
        seed: It was drawn by.
        env: As it was reset.
        observation: ``{name: (1, ...)}`` that the policy sees.
        scored: What plans are scored against.
        raters: ``(20, 2)`` trajectories at 4 Hz, in the frame of the car.
        feasible: Intents that some drive along a way follows without leaving the road or hitting anybody.
    """

    seed: int
    env: DrivingEnv
    observation: dict[str, Array]
    scored: ScoredScene
    raters: list[Array]
    feasible: list[int]

    def noise(self, spec: Spec) -> Array:
        """Standard normal noise ``(past + H, A)``, other in every scene but the same for every policy."""
        return np.random.default_rng((1, self.seed)).standard_normal(spec.noise_shape).astype(np.float32)


def case(seed: int, kind: str | None = None) -> Case:
    """Record a scene."""
    env = DrivingEnv(kind, step_hz=1 / TICK)
    observation, _ = env.reset(seed=seed)
    drive = _driven(env, 1.0)
    scored = env.scored_scene()
    raters = [drive]
    for share in (CAUTION, 0.0):
        env.reset(seed=seed)
        raters.append(_driven(env, share))
    env.reset(seed=seed)
    seen = {name: value[None] for name, value in observation.items()}
    return Case(seed, env, seen, scored, raters, _feasible(env, scored))


def _driven(env: DrivingEnv, share: float) -> Array:
    """The trajectory of an expert that takes a share of the speed limit for it; the scene is left as it ended."""
    expert = Expert(env, share)
    while env.time < RATED - 1e-9:
        env.step(expert.command())
    start, poses = env.history[0][0][:3], np.stack([car[:3] for car, *_ in env.history])
    moments = np.arange(1, round(4 * RATED) + 1) / 4
    places = np.stack([np.interp(moments, TICK * np.arange(len(poses)), poses[:, axis]) for axis in (0, 1)], -1)
    cos, sin = np.cos(start[2]), np.sin(start[2])
    return (places - start[:2]) @ np.array([[cos, -sin], [sin, cos]])


def _feasible(env: DrivingEnv, scored: ScoredScene) -> list[int]:
    """Intents of drives along all ways with a few speed profiles, as far as these are valid."""
    drives, labels = [], []
    dt = env.contract.dt
    maneuvers = Maneuvers(env.contract.action, dt)
    for route in env.scene.routes:
        path = Paths([route])
        begin = int(np.linalg.norm(route - env.pose[:2], axis=-1).argmin())
        for _, share in PROFILES:
            speeds, moments = [env.scene.speed], round(RATED / TICK)
            for _ in range(moments):
                change = np.clip(share * env.scene.speed - speeds[-1], -1.5 * BRAKING * TICK, THRUST * TICK)
                speeds.append(max(0.0, speeds[-1] + change))
            places = begin + np.cumsum(np.r_[0.0, speeds[1:]]) * TICK
            points, ahead = path.at(np.zeros(len(places), int), places)
            heading = np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0]))
            drives.append(np.column_stack([points, heading])[:SAMPLES])
            every = round(dt / TICK)
            turned = np.diff(heading[::every]) / dt
            chunk = np.stack([np.array(speeds)[every::every][: len(turned)], turned], -1)
            labels.append(int(maneuvers.labels(torch.from_numpy(chunk.astype(np.float32)))))
    score = pdm_score(np.stack(drives), scored)
    valid = score.no_collision * score.drivable_area == 1
    return sorted({label for label, fine in zip(labels, valid, strict=True) if fine})


@dataclass
class Plans:
    """Plans that a policy makes in scenes.

    Args:
        policy: To try; its head may be any whose chunks are speeds and yaw rates.
    """

    policy: Policy
    maneuvers: Maneuvers = field(init=False)
    _motion: Motion = field(init=False)

    def __post_init__(self) -> None:
        action, dt = self.policy.spec.action, self.policy.spec.dt
        self.policy.spec.require(DrivingEnv.contract)
        if self.policy.spec.horizon * dt < (SAMPLES - 1) * TICK - 1e-9:
            raise ContractError(
                f"a plan of {self.policy.spec.horizon * dt:g} s cannot be scored, {(SAMPLES - 1) * TICK:g} s are "
                "needed; train with a longer --horizon"
            )
        self.maneuvers, self._motion = Maneuvers(action, dt), Motion(action, dt)

    def act(self, case: Case) -> Array:
        """The chunk ``(H, A)`` at the begin of a scene."""
        spec = self.policy.spec
        chunk = np.zeros((spec.horizon, spec.action.dim), np.float32)
        seen = {f.name: case.observation[f.name].repeat(spec.samples(f), 0) for f in spec.observations}
        return self.policy.act(seen, case.noise(spec), chunk, np.zeros(spec.horizon, np.float32))

    def poses(self, chunks: Array) -> Array:
        """Where chunks ``(P, H, A)`` lead, in the frame of the car: ``(P, H, 3)``."""
        return self._motion.poses(torch.from_numpy(np.asarray(chunks, np.float32))).numpy()

    def score(self, case: Case, chunks: Array) -> PdmScore:
        """The PDM scores of chunks ``(P, H, A)``."""
        return pdm_score(sampled(self.poses(chunks), self.policy.spec.dt, case.env.pose, SAMPLES), case.scored)

    def rated(self, case: Case, chunks: Array) -> Array:
        """The rater feedback scores ``(P,)`` of chunks ``(P, H, A)``."""
        poses, dt = self.poses(chunks), self.policy.spec.dt
        poses = poses[:, : round(RATED / dt)]
        moments, known = np.arange(1, 21) / 4, dt * np.arange(poses.shape[1] + 1)
        points = np.pad(poses[..., :2], ((0, 0), (1, 0), (0, 0)))
        onward = points[:, -1:] + (points[:, -1:] - points[:, -2:-1]) * (RATED / dt + 1 - poses.shape[1])
        known, points = np.r_[known, RATED + dt], np.concatenate([points, onward], 1)
        places = np.stack([[np.interp(moments, known, plan[:, axis]) for axis in (0, 1)] for plan in points])
        return rater_feedback_score(places.swapaxes(1, 2), case.raters, np.array(LABELS), case.env.scene.speed)


def valid(score: PdmScore) -> Array:
    """Whether plans hit nobody and stay on the road ``(P,)``."""
    return score.no_collision * score.drivable_area == 1


def score_plans(policy: Policy, seeds: Sequence[int], progress: Callable[[int, int], None]) -> dict[str, Any]:
    """PDM score, rater feedback score and validity of the first plan in scenes.

    Args:
        policy: To try.
        seeds: Of the scenes.
        progress: Called with (scenes done, scenes in all).
    """
    plans, rows = Plans(policy), []
    for index, seed in enumerate(seeds):
        here = case(seed)
        chunk = plans.act(here)[None]
        score = plans.score(here, chunk)
        terms = {name: float(getattr(score, name)[0]) for name in ("no_collision", "drivable_area", "progress")}
        terms |= {"time_to_collision": float(score.time_to_collision[0]), "comfort": float(score.comfort[0])}
        rows.append({"pdm": float(score.total[0]), **terms, "rfs": float(plans.rated(here, chunk)[0])})
        progress(index + 1, len(seeds))
    fine = sum(row["no_collision"] * row["drivable_area"] == 1 for row in rows)
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {"scenes": len(rows), **means, "valid": wilson(fine, len(rows))}


def cases(seeds: Sequence[int], progress: Callable[[int, int], None], kind: str | None = None) -> list[Case]:
    """Record the scenes of some seeds; progress is called with (scenes done, scenes in all)."""
    found = []
    for seed in seeds:
        found.append(case(seed, kind))
        progress(len(found), len(seeds))
    return found


def sweep(followers: Mapping[str, Plans], scenes: Sequence[Case]) -> dict[str, Any]:
    """Command intents in scenes where they can be followed, and where they cannot.

    Args:
        followers: Policies that follow commands, by these, see `policies.maneuver.allowed`.
        scenes: Where.

    Returns:
        Rates over all pairs of scene and command, and how often which of `INTENTS` was done where a command could be
        followed.
    """
    masks = {intent: np.array(allowed(intent)) for intent in followers}
    confusion = {intent: np.zeros(len(INTENTS), int) for intent in followers}
    rates: dict[str, list[bool]] = {"faithful": [], "valid": [], "faithful_and_valid": [], "valid_where_infeasible": []}
    for here in scenes:
        for intent, plans in followers.items():
            chunk = plans.act(here)[None]
            label = int(plans.maneuvers.labels(torch.from_numpy(chunk))[0])
            fine, same = bool(valid(plans.score(here, chunk))[0]), bool(masks[intent][label])
            if not masks[intent][here.feasible].any():
                rates["valid_where_infeasible"].append(fine)
                continue
            confusion[intent][label] += 1
            for name, found in (("faithful", same), ("valid", fine), ("faithful_and_valid", same and fine)):
                rates[name].append(found)
    report = {name: {**wilson(sum(found), len(found)), "pairs": len(found)} for name, found in rates.items() if found}
    counts = {intent: row.tolist() for intent, row in confusion.items()}
    return {"scenes": len(scenes), **report, "intents": INTENTS, "confusion": counts}
