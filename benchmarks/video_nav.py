"""What does a policy on kinoflow/VideoNav-v0 listen to, and what does its flow constraint do?

Conditions, all on the same rooms: told to stop at the landmark on the way or at the last one; told with the sentence of
another room; shown the video of another room; pushed. Beside them, at every fifth chunk: what the mirrored world would
get, how far the chunk leads off the way of the video (``policies.route.misalignment`` to the true way), and whether it
keeps the limits of the contract.

Run: python -m benchmarks.video_nav BUNDLE --embodiment wheeled --json docs/results/video_nav_wheeled.json
"""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.progress import track

from envs.collect import drivers, processes
from envs.drive import Driver, PolicyDriver, Row, Scripted, run_episode
from envs.evaluate import SHARD, paired_difference, summary, wilson
from envs.world import make
from policies.files import replace_file
from policies.load import load_policy
from policies.route import misalignment, travelled
from policies.runtime.worker import InlineWorker
from policies.spec import Array, ChunkPolicy, Observation

ENV = "kinoflow/VideoNav-v0"
PUSH = 0.5  # m/s
PROBE_EVERY = 5  # chunks
CLEAR = 0.1  # of the command range: smaller turns have no clear sign


@dataclass(frozen=True)
class Condition:
    """How an episode differs from the usual one.

    Args:
        instruction: ``"first"`` or ``"last"``, as drawn by the seed if empty.
        sentence: Take the sentence of another room.
        video: Take the goal video of another room.
        push: Velocity of pushes in m/s.
        driver: A scripted driver instead of the policy.
    """

    instruction: str = ""
    sentence: bool = False
    video: bool = False
    push: float = 0.0
    driver: str = ""


CONDITIONS = {
    "first": Condition("first"),
    "last": Condition("last"),
    "first, sentence of another room": Condition("first", sentence=True),
    "last, sentence of another room": Condition("last", sentence=True),
    "video of another room": Condition(video=True),
    "pushed": Condition(push=PUSH),
    "pushed, replay": Condition(push=PUSH, driver="replay"),
}


@dataclass
class Probe:
    """What single chunks showed: mirrored turns, misalignment in px, changes in shares of the limit."""

    turns: list[list[float]] = field(default_factory=list)
    off_px: list[float] = field(default_factory=list)
    change: list[float] = field(default_factory=list)


class Observed:
    """A policy that is shown something else, and watched."""

    def __init__(self, policy: ChunkPolicy, probe: Probe) -> None:
        self.spec, self._policy, self._probe = policy.spec, policy, probe
        self.shown: dict[str, Array] = {}
        self.way: Callable[[], Array] = lambda: np.zeros((2, 3))
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        seen = {**observation, **self.shown}
        chunk = self._policy.act(seen, noise, committed, hold)
        self._calls += 1
        if self._calls % PROBE_EVERY == 0:
            self._note(chunk, seen, noise, hold)
        return chunk

    def _note(self, chunk: Array, seen: Observation, noise: Array, hold: Array) -> None:
        action, free = self.spec.action, np.zeros_like(hold)
        usual = self._policy.act(seen, noise, chunk, free)
        mirror = np.array([-1.0 if name in ("vy", "wz") else 1.0 for name in action.names], np.float32)
        flipped = {name: _mirrored(name, value, mirror) for name, value in seen.items()}
        other = self._policy.act(flipped, noise * mirror, chunk, free)
        self._probe.turns.append([float(each[:, -1].mean() / action.high[-1]) for each in (usual, other)])
        poses = travelled(torch.from_numpy(usual)[None], action.names, self.spec.dt)
        off = misalignment(poses, torch.from_numpy(self.way())[None].float())
        self._probe.off_px.append(float(off.mean()))
        limits = np.array(action.acceleration or np.full(action.dim, np.inf)) * self.spec.dt
        self._probe.change.append(float((np.abs(np.diff(usual, axis=0)) / limits).max()))


def _mirrored(name: str, value: Array, mirror: Array) -> Array:
    if name == "twist":
        return value * mirror
    return np.ascontiguousarray(value[..., ::-1]) if name in ("camera", "goal_video") else value


def main(
    bundle: tyro.conf.Positional[Path], json: Path, embodiment: str = "wheeled", episodes: int = 100, seed: int = 0
) -> None:
    """Drive the same rooms under every condition.

    Args:
        bundle: Policy bundle (.kfb).
        json: Result to write.
        embodiment: Robot.
        episodes: Rooms per condition.
        seed: First seed.
    """
    shards = [
        (name, range(first, min(first + SHARD, seed + episodes)))
        for name in CONDITIONS
        for first in range(seed, seed + episodes, SHARD)
    ]
    rows: dict[str, list[Row]] = {name: [] for name in CONDITIONS}
    probe = Probe()
    with processes(2) as pool:
        jobs = pool.map(partial(_drive, str(bundle), embodiment), shards)
        for (name, _), (part, seen) in track(zip(shards, jobs, strict=True), "shards", len(shards)):
            rows[name] += part
            if name in ("first", "last"):
                for noted in ("turns", "off_px", "change"):
                    getattr(probe, noted).extend(getattr(seen, noted))
    result = {"bundle": bundle.name, "embodiment": embodiment, "episodes": episodes, "seed": seed}
    result |= report(rows, probe)
    replace_file(json, json_format.dumps(result, indent=1).encode())
    print(json_format.dumps({key: value for key, value in result.items() if key != "conditions"}, indent=1))


def report(rows: dict[str, list[Row]], probe: Probe) -> dict[str, Any]:
    """Rates per condition, what the sentence decides, what mirroring does, and what the chunks are like."""
    turns = np.array(probe.turns)
    clear = np.abs(turns[:, 0]) > CLEAR
    pushed, replay = ([float(row.success) for row in rows[name]] for name in ("pushed", "pushed, replay"))
    return {
        "conditions": {name: summary(part) for name, part in rows.items()},
        "stopped where told": _told(rows["first"] + rows["last"]),
        "stopped where told, sentence of another room": _told(
            [row for name, part in rows.items() if name.endswith("sentence of another room") for row in part]
        ),
        "pushed, policy - replay": paired_difference(pushed, replay),
        "mirrored": {
            "chunks that turn": int(clear.sum()),
            "turn the other way": float((turns[clear, 0] * turns[clear, 1] < 0).mean()),
            "correlation": float(np.corrcoef(turns.T)[0, 1]),
        },
        "misalignment_px": {"mean": float(np.mean(probe.off_px)), "median": float(np.median(probe.off_px))},
        "largest_change": {
            "share_of_limit": float(np.max(probe.change)),
            "chunks_beyond": float((np.array(probe.change) > 1 + 1e-4).mean()),
        },
        "rows": {name: [row.to_json() for row in part] for name, part in rows.items()},
    }


def _told(rows: list[Row]) -> dict[str, Any]:
    """Of the episodes that rest at one of the two places, how many do at the right one."""
    right, wrong = sum(row.success for row in rows), sum(row.metrics["stopped_at_other"] > 0 for row in rows)
    return wilson(right, right + wrong) | {"of": right + wrong}


def _drive(bundle: str, embodiment: str, shard: tuple[str, range]) -> tuple[list[Row], Probe]:
    name, seeds = shard
    condition, probe, rows = CONDITIONS[name], Probe(), []
    env = make(ENV, {"embodiment": embodiment}, commands=True, push=condition.push)
    policy = Observed(load_policy(bundle), probe)
    for seed in seeds:
        policy.shown = _of_another_room(env, seed, condition)
        env.reset(seed=seed, options={"instruction": condition.instruction} if condition.instruction else {})
        policy.way = partial(_way, env)
        driver: Driver = PolicyDriver(InlineWorker(policy), seed)
        if condition.driver:
            driver = Scripted(drivers(env)[condition.driver](env))
        rows.append(run_episode(env, driver, seed))
    env.close()
    return rows, probe


def _of_another_room(env: Any, seed: int, condition: Condition) -> dict[str, Array]:
    wanted = [name for name, asked in (("instruction", condition.sentence), ("goal_video", condition.video)) if asked]
    if not wanted:
        return {}
    observation, _ = env.reset(seed=seed + 50_000)
    return {name: observation[name][None] for name in wanted}


def _way(env: Any) -> Array:
    """True poses of the frames of the goal video up to where to stop, ``(N, 3)``, seen from the robot."""
    stop = np.linalg.norm(env.frame_poses[:, :2] - env.stops[env.active][:2], axis=1).argmin()
    poses, pose = env.frame_poses[: max(2, stop + 1)], env.pose
    cos, sin = np.cos(pose[3]), np.sin(pose[3])
    x, y = (poses[:, :2] - pose[:2]).T
    return np.stack([cos * x + sin * y, cos * y - sin * x, poses[:, 2] - pose[3]], -1)


if __name__ == "__main__":
    tyro.cli(main)
