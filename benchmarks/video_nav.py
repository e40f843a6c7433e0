"""What does a policy on kinoflow/VideoNav-v0 listen to, and what does its flow constraint do?

Conditions, all on the same rooms: told to stop at the landmark on the way or at the last one; told with the sentence of
another room; shown the video of another room; pushed on the way to the last one, where replaying the video is not at a
disadvantage. Beside them: whether chunks keep the limits of the contract, and for every fifth what the mirrored world
would get and how far it leads off the way of the video (``policies.route.misalignment`` to the true way). The same
watching compares policies trained with and without the flow constraint.

Run: python -m benchmarks.video_nav listening BUNDLE --json docs/results/video_nav_listening.json
     python -m benchmarks.video_nav constraint ON OFF --json docs/results/video_nav_constraint.json
"""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.progress import track

from envs.collect import drivers, processes
from envs.drive import Driver, PolicyDriver, Row, Scripted, run_episode
from envs.evaluate import SHARD, paired_difference, summary, wilson
from envs.nav import Embodiment
from envs.world import make
from policies.files import replace_file
from policies.load import load_policy
from policies.route import misalignment, travelled
from policies.runtime.worker import InlineWorker
from policies.spec import Array, ChunkPolicy, Observation

ENV = "kinoflow/VideoNav-v0"
PUSH = 0.5  # m/s
PROBE_EVERY = 5  # chunks
CLEAR = 0.1  # of the command range: smaller velocities have no clear sign
LEFT = ("vy", "wz")  # what changes its sign in a mirror


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
    "last, pushed": Condition("last", push=PUSH),
    "last, pushed, replay": Condition("last", push=PUSH, driver="replay"),
}


@dataclass
class Probe:
    """What single chunks showed: velocities to the left as they are and in the mirror, by `LEFT` and in shares of the
    command range; misalignment in px; changes in shares of the limit."""

    left: list[list[list[float]]] = field(default_factory=list)
    off_px: list[float] = field(default_factory=list)
    change: list[float] = field(default_factory=list)


Drive = tuple[Row, Probe]


class Observed:
    """A policy that is shown something else, and watched.

    Args:
        policy: The policy.
        mirror: The same once more, for the mirrored world: each keeps what it read of a goal.
    """

    def __init__(self, policy: ChunkPolicy, mirror: ChunkPolicy) -> None:
        self.spec, self.probe, self._policy, self._mirror = policy.spec, Probe(), policy, mirror
        self.shown: dict[str, Array] = {}
        self.way: Callable[[], Array] = lambda: np.zeros((2, 3))
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        seen = {**observation, **self.shown}
        chunk = self._policy.act(seen, noise, committed, hold)
        limits = np.array(self.spec.action.acceleration or np.full(chunk.shape[1], np.inf)) * self.spec.dt
        self.probe.change.append(float((np.abs(np.diff(chunk, axis=0)) / limits).max()))
        self._calls += 1
        if self._calls % PROBE_EVERY == 0:
            self._note(chunk, seen, noise, hold)
        return chunk

    def _note(self, chunk: Array, seen: Observation, noise: Array, hold: Array) -> None:
        action, free = self.spec.action, np.zeros_like(hold)
        usual = self._policy.act(seen, noise, chunk, free)
        mirror = np.array([-1.0 if name in LEFT else 1.0 for name in action.names], np.float32)
        flipped = {name: _mirrored(name, value, mirror) for name, value in seen.items()}
        other = self._mirror.act(flipped, noise * mirror, chunk, free)
        columns = [(action.names.index(name), action.high[action.names.index(name)]) for name in LEFT]
        both = [[float(chunk[:, k].mean() / most) for chunk in (usual, other)] for k, most in columns]
        self.probe.left.append(both)
        poses = travelled(torch.from_numpy(usual)[None], action.names, self.spec.dt)
        off = misalignment(poses, torch.from_numpy(self.way())[None].float())
        self.probe.off_px.append(float(off.mean()))


def _mirrored(name: str, value: Array, mirror: Array) -> Array:
    if name == "twist":
        return value * mirror
    return np.ascontiguousarray(value[..., ::-1]) if name in ("camera", "goal_video") else value


def listening(
    bundle: tyro.conf.Positional[Path],
    json: Path,
    embodiment: Embodiment = "wheeled",
    episodes: int = 100,
    seed: int = 0,
) -> None:
    """Drive the same rooms under every condition.

    Args:
        bundle: Policy bundle (.kfb).
        json: Result to write.
        embodiment: Robot.
        episodes: Rooms per condition.
        seed: First seed.
    """
    drives = [(bundle, condition) for condition in CONDITIONS.values()]
    found = dict(zip(CONDITIONS, _driven(drives, embodiment, range(seed, seed + episodes)), strict=True))
    result = {"bundle": bundle.name, "embodiment": embodiment, "episodes": episodes, "seed": seed}
    _write(json, result | report(found))


def constraint(
    on: tyro.conf.Positional[Path],
    off: tyro.conf.Positional[Path],
    json: Path,
    embodiment: Embodiment = "wheeled",
    episodes: int = 100,
    seed: int = 0,
) -> None:
    """Drive the same rooms with two policies, one trained with the flow constraint and one without.

    Args:
        on: Bundle or run trained with it.
        off: The same, trained with ``--constraint 0``.
        json: Result to write.
        embodiment: Robot.
        episodes: Rooms.
        seed: First seed.
    """
    drives = [(on, Condition()), (off, Condition())]
    found = dict(zip(("on", "off"), _driven(drives, embodiment, range(seed, seed + episodes)), strict=True))
    result = {"on": on.name, "off": off.name, "embodiment": embodiment, "episodes": episodes, "seed": seed}
    _write(json, result | effect(found))


def _write(path: Path, result: dict[str, Any]) -> None:
    replace_file(path, (json_format.dumps(result, indent=1) + "\n").encode())
    print(json_format.dumps({name: value for name, value in result.items() if name != "rows"}, indent=1))


def _driven(drives: list[tuple[Path, Condition]], embodiment: Embodiment, seeds: range) -> list[list[Drive]]:
    """Drive the same rooms with every policy and condition."""
    shards = [
        (str(path), embodiment, condition, part)
        for path, condition in drives
        for part in (seeds[first : first + SHARD] for first in range(0, len(seeds), SHARD))
    ]
    with processes(2) as pool:
        parts = list(track(pool.map(_drive, shards), "shards", len(shards)))
    per_drive = len(shards) // len(drives)
    return [list(chain(*parts[first : first + per_drive])) for first in range(0, len(parts), per_drive)]


def report(found: dict[str, list[Drive]]) -> dict[str, Any]:
    """Rates per condition, what the sentence decides, what mirroring does, and what the chunks are like."""
    rows = {name: [row for row, _ in drives] for name, drives in found.items()}
    probes = [probe for name in ("first", "last") for _, probe in found[name]]
    left = np.array([both for probe in probes for both in probe.left])
    pushed, replay = ([float(row.success) for row in rows[f"last, pushed{name}"]] for name in ("", ", replay"))
    both = sum(first.success and last.success for first, last in zip(rows["first"], rows["last"], strict=True))
    return {
        "conditions": {name: summary(part) for name, part in rows.items()},
        "stopped where told": _told(rows["first"] + rows["last"]),
        "both sentences of a room": wilson(both, len(rows["first"])),
        "stopped where told, sentence of another room": _told(
            [row for name, part in rows.items() if name.endswith("sentence of another room") for row in part]
        ),
        "pushed, policy - replay": paired_difference(pushed, replay),
        "mirrored": {name: _flipped(left[:, index]) for index, name in enumerate(LEFT)},
        **_followed(probes),
        "rows": {name: [row.to_json() for row in part] for name, part in rows.items()},
    }


def effect(found: dict[str, list[Drive]]) -> dict[str, Any]:
    """What the policies of `constraint` do, and their paired differences."""
    success, off_px = (
        {name: [value(drive) for drive in drives] for name, drives in found.items()}
        for value in (lambda drive: float(drive[0].success), lambda drive: float(np.mean(drive[1].off_px)))
    )
    return {
        "policies": {
            name: summary([row for row, _ in drives]) | _followed([probe for _, probe in drives])
            for name, drives in found.items()
        },
        "on - off": {
            "success": paired_difference(success["on"], success["off"]),
            "misalignment_px": paired_difference(off_px["on"], off_px["off"]),
        },
        "rows": {name: [row.to_json() for row, _ in drives] for name, drives in found.items()},
    }


def _flipped(pairs: Array) -> dict[str, Any]:
    """How often velocities ``(N, 2)`` that are clear have the other sign in the mirror."""
    clear = np.abs(pairs[:, 0]) > CLEAR
    opposite = pairs[clear, 0] * pairs[clear, 1] < 0
    return {
        "clear": int(clear.sum()),
        "opposite": float(opposite.mean()),
        "correlation": float(np.corrcoef(pairs.T)[0, 1]),
    }


def _followed(probes: list[Probe]) -> dict[str, Any]:
    """How far chunks lead off the way of the video, and whether they keep the limits."""
    off_px, change = (np.concatenate([getattr(probe, name) for probe in probes]) for name in ("off_px", "change"))
    return {
        "misalignment_px": {"mean": float(off_px.mean()), "median": float(np.median(off_px))},
        "largest_change": {
            "share_of_limit": float(change.max()),
            "chunks_beyond": float((change > 1 + 1e-4).mean()),
        },
    }


def _told(rows: list[Row]) -> dict[str, Any]:
    """How many episodes rest where the sentence says, how many at the other place, and which share of both is right."""
    right, wrong = sum(row.success for row in rows), sum(row.metrics["stopped_at_other"] > 0 for row in rows)
    return {**wilson(right, len(rows)), "at the other place": wrong, "of those at either": wilson(right, right + wrong)}


def _drive(shard: tuple[str, Embodiment, Condition, range]) -> list[Drive]:
    path, embodiment, condition, seeds = shard
    env = make(ENV, {"embodiment": embodiment}, commands=True, push=condition.push)
    policy = Observed(load_policy(path), load_policy(path))
    drives = []
    for seed in seeds:
        policy.probe, policy.shown = Probe(), _of_another_room(env, seed, condition)
        env.reset(seed=seed, options={"instruction": condition.instruction} if condition.instruction else {})
        policy.way = partial(_way, env)
        driver: Driver = PolicyDriver(InlineWorker(policy), seed)
        if condition.driver:
            driver = Scripted(drivers(env)[condition.driver](env))
        drives.append((run_episode(env, driver, seed), policy.probe))
    env.close()
    return drives


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
    tyro.extras.subcommand_cli_from_dict({"listening": listening, "constraint": constraint})
