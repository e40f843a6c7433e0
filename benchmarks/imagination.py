"""Does checking and asking again give better goal videos? Single shot against the loop, judged by the simulator.

Run: python -m benchmarks.imagination --json docs/results/imagination.json

A task is a room of kinoflow/VideoNav-v0 and its instruction. Videos come from a generator that spoils a known share of
them. The validator that steers the loop sees pictures only; the judge sees the poses they were rendered from, what was
done to them afterwards and the true room, and no measurement of the validator.

The wording of a request changes nothing for this generator, so what is measured is checking and trying again, not
prompts. It also means that the videos of a task are the same for every way to choose among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.progress import track

from benchmarks.entry import check, run
from envs.evaluate import paired_difference, wilson
from envs.imagination import ClippingImagination, MujocoImagination, Rendered, StrayingImagination
from envs.video_nav import CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH, VideoNavEnv
from planners.generators import DegradedImagination, Made
from planners.imagination import Orchestrator, Request, Verdict, Video, attempt_seed
from planners.memory import Memory
from planners.prompt import RulePolicy
from planners.validate import FlowValidator, tally
from policies.egomotion import Camera
from policies.files import replace_file
from policies.spec import Array

SEED = 600_000  # first room of the report; choices are made on rooms from 610,000
KINDS = ("teleport", "wall_clip", "frozen", "wrong_turn", "horizon", "flicker")
SHARE = 0.5  # of the attempts get one of these, all alike often
ATTEMPTS, FRAMES, ACCEPT = 5, 64, 0.8  # as `kinoflow imagine`, which makes 61 pictures

# What the judge lets pass.
HASTE = 1.5  # times the limits of the robot; a camera that is faster has jumped
STILL = 3  # pictures from one place are a film that stands
UPRIGHT = np.radians(5)  # a walking robot nods by 3 degrees
DARK = 0.9  # of the brightness of the room
LIGHT = "light"  # says nothing about the way

ASIDE, TURNED = 0.1, np.radians(5)  # m and rad, how far a photo of the goal is off the pose to stop at

SINGLE, RANDOM, JUDGE = "single shot", "accepting at random", "judge as validator"
LOOP, PHOTO = "loop", "loop with photo"
DIFFERENCES = ((LOOP, SINGLE), (LOOP, RANDOM), (PHOTO, SINGLE), (PHOTO, LOOP))

Truth = tuple[str, tuple[str, ...]]  # the label of a video and what the judge objects to


def judge(made: Made, env: VideoNavEnv) -> tuple[str, ...]:
    """What is wrong with a video of the room by the truth about its pictures, nothing if it is good.

    Returns:
        Out of ``"jump"`` (faster than the robot), ``"frozen"``, ``"mirrored"``, ``"tilt"``, ``"collision"`` (nearer to
        something than the radius of the robot), ``"place"`` (ends further from where to stop than the environment
        lets pass) and ``"light"`` (darker than the room).
    """
    edit, origin = made.edit, cast(Rendered, made.origin)
    poses = origin.poses[edit.source]
    focal = Camera(env.picture_size, float(CAMERA_FOVY), CAMERA_HEIGHT, float(CAMERA_PITCH)).focal
    steps = np.diff(poses, axis=0)
    fast = _fast(steps, origin.rate_hz, env)
    found = {
        "jump": fast.any(),
        "frozen": _longest(~steps.any(1)) + 1 >= STILL,
        "mirrored": edit.mirrored.any(),
        "tilt": (np.arctan(np.abs(edit.down) / focal) > UPRIGHT).any(),
        "collision": _nearest(poses, fast, env) < env.body.radius,
        "place": np.linalg.norm((poses[-1] - env.stop_pose)[:3]) > env.radius,
        LIGHT: (edit.gain < DARK).any(),
    }
    return tuple(name for name, wrong in found.items() if wrong)


def _fast(steps: Array, rate_hz: float, env: VideoNavEnv) -> Array:
    """Which steps ``(T - 1, 4)`` from picture to picture are more than the robot can do."""
    limit = dict(zip(env.body.action.names, env.body.action.high, strict=True))
    speed = np.linalg.norm(steps[:, :3], axis=1) * rate_hz
    turn = np.abs((steps[:, 3] + np.pi) % (2 * np.pi) - np.pi) * rate_hz
    return (speed > HASTE * limit["vx"]) | (turn > HASTE * limit["wz"])


def _longest(flags: Array) -> int:
    """Length of the longest run of flags that are set."""
    edges = np.flatnonzero(np.diff(np.r_[False, flags, False]))
    return int(max((edges[1::2] - edges[::2]), default=0))


def _nearest(poses: Array, fast: Array, env: VideoNavEnv) -> float:
    """Least distance to walls and objects on the way, which nobody knows for the steps that are jumps."""
    share = np.linspace(0, 1, 10)[:, None, None]
    between = poses[:-1, :2] + share * np.diff(poses[:, :2], axis=0)
    points = np.concatenate([poses[:, :2], between[:, ~fast].reshape(-1, 2)])
    return float(env.room.clearance(points).min())


class Witness:
    """Passes the videos of an unreliable generator on and keeps the truth about each, by seed, for itself."""

    def __init__(self, generator: DegradedImagination, env: VideoNavEnv) -> None:
        self._generator, self._env = generator, env
        self.truths: dict[int, Truth] = {}

    def generate(self, request: Request, seed: int) -> Video:
        """Make a video and judge it."""
        made = self._generator.make(request, seed)
        self.truths[seed] = made.fault, judge(made, self._env)
        return replace(made.video, provenance="rendered")  # that it is degraded would be a hint


def witness(env: VideoNavEnv, kinds: Sequence[str] = KINDS, share: float = SHARE) -> Witness:
    """The generator of the benchmark for the room that an environment is in."""
    others = {"wall_clip": ClippingImagination(env), "wrong_turn": StrayingImagination(env)}
    return Witness(DegradedImagination(MujocoImagination(env), kinds, share, others), env)


def validators(env: VideoNavEnv) -> dict[str, FlowValidator]:
    """The validator of `kinoflow imagine`, and one that also has a photo of the goal."""
    camera = Camera(env.picture_size, float(CAMERA_FOVY), CAMERA_HEIGHT, float(CAMERA_PITCH))
    return {LOOP: FlowValidator(camera), PHOTO: FlowValidator(camera, end_picture=photo(env))}


def photo(env: VideoNavEnv) -> Array:
    """A picture ``(3, S, S)`` taken about where the robot has to stop, as a user would give one."""
    rng, pose = np.random.default_rng([env.np_random_seed, 1]), env.stop_pose.copy()
    angle = rng.uniform(-np.pi, np.pi)
    pose[:2] += ASIDE * np.array([np.cos(angle), np.sin(angle)])
    pose[3] += rng.uniform(-TURNED, TURNED)
    return env.film(pose[None])[0]


def run_task(env: VideoNavEnv) -> dict[str, Any]:
    """Run the loops on the task that an environment is in; attempts that they did not need are judged too."""
    source, seed = witness(env), env.np_random_seed
    row: dict[str, Any] = {"seed": seed, "instruction": env.instruction, "loops": {}}
    for name, validator in validators(env).items():
        loop = Orchestrator(source, validator, RulePolicy(), Memory(), ATTEMPTS, ACCEPT, FRAMES)
        trace = loop.run(env.instruction, seed)
        scores = [round(attempt.verdict.score, 3) for attempt in trace.attempts]
        row["loops"][name] = {"scores": scores, "kept": trace.best, "accepted": trace.accepted}
    seeds = [attempt_seed(seed, attempt) for attempt in range(ATTEMPTS)]
    for number in seeds:
        if number not in source.truths:
            source.generate(Request(env.instruction, frames=FRAMES), number)
    truths = [source.truths[number] for number in seeds]
    return row | {"faults": [fault for fault, _ in truths], "objections": [[*objections] for _, objections in truths]}


def verdicts_of(env: VideoNavEnv) -> dict[str, tuple[Verdict, bool]]:
    """By fault (``""`` for none), the verdict with a photo on one video, and whether the judge objects to it."""
    request, validator, found = Request(env.instruction, frames=FRAMES), validators(env)[PHOTO], {}
    for index, kind in enumerate(("", *KINDS)):
        source = witness(env, [kind] if kind else KINDS, float(bool(kind)))
        number = attempt_seed(env.np_random_seed, ATTEMPTS + index)
        found[kind] = validator.score(source.generate(request, number), request), bool(source.truths[number][1])
    return found


def measure(tasks: int, seed: int = SEED, progress: Callable[[range], Iterable[int]] = iter) -> dict[str, Any]:
    """Run everything.

    Args:
        tasks: Rooms.
        seed: Of the first one.
        progress: Wraps the seeds that are run through.

    Returns:
        Plain JSON values: ``arms`` with the success of each way to choose a video, ``differences`` between them over
        the same tasks, ``loops`` with what the loops did, ``validators`` with precision and recall, and the ``tasks``.
    """
    torch.set_num_threads(1)
    env, rows, found = VideoNavEnv("wheeled"), [], []
    try:
        for number in progress(range(seed, seed + tasks)):
            env.reset(seed=number)
            rows.append(run_task(env))
            found.append(verdicts_of(env))
    finally:
        env.close()
    settings = {"seed": seed, "share": SHARE, "attempts": ATTEMPTS, "frames": FRAMES, "accept": ACCEPT}
    return {**settings, **_arms(rows), "validators": _validators(found), "tasks": rows}


def _arms(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Success of every way to choose among the videos of a task, and what the loops did."""
    loops = {name: _loop(rows, name) for name in (LOOP, PHOTO)}
    rate = loops[LOOP]["accepted"] / loops[LOOP]["videos"]
    good, right_way = _chosen(rows, rate), _chosen(rows, rate, LIGHT)
    return {
        "arms": {name: {"success": _rate(good[name]), "right_way": _rate(right_way[name])["mean"]} for name in good},
        "differences": {
            f"{one} minus {other}": paired_difference(good[one], good[other]) for one, other in DIFFERENCES
        },
        "loops": loops,
    }


def _loop(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    loops = [row["loops"][name] for row in rows]
    ends = [loop["accepted"] * len(loop["scores"]) for loop in loops]
    kept = [
        (row["faults"][loop["kept"]], row["objections"][loop["kept"]]) for row, loop in zip(rows, loops, strict=True)
    ]
    wrong = [fault or "none" for fault, objections in kept if objections]
    return {
        "videos": sum(len(loop["scores"]) for loop in loops),
        "accepted": sum(loop["accepted"] for loop in loops),
        "accepted_at": [ends.count(attempt) for attempt in range(1, ATTEMPTS + 1)],
        "wrong_choices": {fault: wrong.count(fault) for fault in sorted(set(wrong))},
    }


def _rate(values: Sequence[float]) -> dict[str, float]:
    """Mean with its interval; expectations have none."""
    counted = all(value in (0, 1) for value in values)
    return wilson(int(sum(values)), len(values)) if counted else {"mean": float(np.mean(values))}


def _chosen(rows: Sequence[Mapping[str, Any]], rate: float, pardoned: str = "") -> dict[str, list[float]]:
    """Whether the chosen video is good, by task, where the judge pardons an objection."""
    good = [[not set(objections) - {pardoned} for objections in row["objections"]] for row in rows]
    loops = {
        name: [float(truths[row["loops"][name]["kept"]]) for truths, row in zip(good, rows, strict=True)]
        for name in (LOOP, PHOTO)
    }
    random = [_random(truths, rate) for truths in good]
    return {
        SINGLE: [float(truths[0]) for truths in good],
        RANDOM: random,
        **loops,
        JUDGE: [float(any(t)) for t in good],
    }


def _random(good: Sequence[bool], rate: float) -> float:
    """Expected success of accepting each video with the same probability; who accepts none keeps any."""
    chances = [rate * (1 - rate) ** attempt for attempt in range(len(good))]
    return float(np.dot(chances, good) + (1 - sum(chances)) * np.mean(good))


def _validators(found: Sequence[Mapping[str, tuple[Verdict, bool]]]) -> dict[str, Any]:
    """Precision and recall with and without a photo, on the same videos."""
    full = {kind: [verdicts[kind][0] for verdicts in found] for kind in found[0]}
    bad = {kind: sum(verdicts[kind][1] for verdicts in found) for kind in found[0]}
    plain = {kind: [_without_photo(verdict) for verdict in verdicts] for kind, verdicts in full.items()}
    return {LOOP: _report(plain, bad), PHOTO: _report(full, bad)}


def _without_photo(verdict: Verdict) -> Verdict:
    """What the validator would have said, whose checks do not depend on each other."""
    checks = {name: score for name, score in verdict.checks.items() if name != "goal"}
    return Verdict(min(checks.values()), checks, ())


def _report(verdicts: Mapping[str, Sequence[Verdict]], bad: Mapping[str, int]) -> dict[str, Any]:
    """Counts for as many videos of every kind, and the precision where as many are faulty as in the loop.

    The share of the rejected has a Wilson interval; ``bad`` is how many the judge objects to.
    """
    report = tally(verdicts[""], {kind: verdicts[kind] for kind in KINDS}, ACCEPT)
    for kind, rates in {"": report["clean"], **report["faults"]}.items():
        rates |= {"bad": bad[kind], "interval": wilson(rates["rejected"], rates["videos"])}
    report["all"]["interval"] = wilson(report["all"]["rejected"], report["all"]["videos"])
    alarms = (1 - SHARE) * report["clean"]["rejected"] / report["clean"]["videos"]
    caught = SHARE * report["all"]["recall"]
    return report | {"precision_at_share": caught / (caught + alarms) if caught + alarms else None}


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure` as tables."""
    tasks, share = len(result["tasks"]), result["share"]
    lines = [f"{tasks} tasks, {share:.0%} of the videos faulty, judged by the simulator"]
    lines.append(f"  {'':<32}{'success':>24}{'right way':>12}")
    for name, arm in result["arms"].items():
        lines.append(f"  {name:<32}{_interval(arm['success']):>24}{arm['right_way']:12.3f}")
    lines += [f"  {name:<32}{_interval(gap):>24}" for name, gap in result["differences"].items()]
    for name, loop in result["loops"].items():
        lines.append(f"{name}: {loop['videos']} videos, accepted at attempt 1, 2, ...: {loop['accepted_at']}")
        lines.append(f"  faults of its wrong choices: {loop['wrong_choices']}")
    for name, report in result["validators"].items():
        lines += _table(f"validator of the {name}", report, share)
    return "\n".join(lines)


def _table(title: str, report: Mapping[str, Any], share: float) -> list[str]:
    lines = [f"{title:<34}{'rejected':>12}{'95 %':>16}{'precision':>12}{'bad by judge':>14}"]
    for name, rates in {"clean": report["clean"], **report["faults"], "all faults": report["all"]}.items():
        count, interval = f"{rates['rejected']} of {rates['videos']}", rates["interval"]
        span = f"[{interval['low']:.3f}, {interval['high']:.3f}]"
        lines.append(
            f"  {name:<32}{count:>12}{span:>16}{_number(rates.get('precision')):>12}{rates.get('bad', ''):>14}"
        )
    return [*lines, f"  precision where {share:.0%} are faulty: {_number(report['precision_at_share'])}"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(rate: Mapping[str, float | None]) -> str:
    if rate.get("low") is None:
        return f"{rate['mean']:.3f}"
    return f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"


def main(json: Path | None = None, tasks: int = 50, seed: int = SEED) -> None:
    """Compare a single shot with the loop, and count what the validator finds; about five minutes on one core.

    Args:
        json: Where to write the results.
        tasks: Rooms.
        seed: Of the first room.
    """
    check(json, seed, tasks=tasks)
    result = measure(tasks, seed, lambda seeds: track(seeds, "tasks"))
    print(as_text(result))
    if json:
        replace_file(json, (dumps(result) + "\n").encode())


if __name__ == "__main__":
    run(main)
