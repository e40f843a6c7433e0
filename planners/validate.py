"""Judges a first-person video by its pictures alone: no simulator, no poses, no labels.

What it can tell is whether a robot could have filmed this, and whether the last picture shows the right place. It
cannot tell whether the way is free or the instruction is followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planners.imagination import AnyVideo, Array, ImaginationError, Request, Verdict
from planners.motion import SIDE, Motion, correlation, measure, squared, warped
from policies.dis import dis_flow
from policies.egomotion import Camera

# Measure at which a check is fully met, and at which it is not met at all; linear in between.
RAMPS = {
    "length": (0.95, 0.6),  # of the pictures asked for
    "frozen": (0.1, 0.25),  # of the video
    "teleport": (np.log(20.0), np.log(60.0)),  # times the usual change, logarithm
    "horizon": (0.3, 0.5),  # correlation gained by moving the horizon
    "tilt": (0.08, 0.2),  # rad from one picture to the next
    "coherence": (0.1, 0.3),  # 1 - correlation
    "flicker": (0.04, 0.12),  # logarithm of a ratio of brightness
    "floor": (0.5, 0.1),  # of the pairs that move
    "speed": (1.3, 2.0),  # times the limit
    "turn": (1.3, 2.0),  # times the limit
    "forward": (0.3, -0.3),  # of the way
    "goal": (0.9, 0.5),  # correlation of the aligned pictures
}
AGREES = 0.05  # agreement from which the motion of the floor is taken for that of the robot
ABRUPT = 0.4  # of the usual motion, from which standing does not begin or end like that of a robot
OFFSET = 10.0  # px, of the end picture in one of 96: about 0.3 m or 10 degrees

Found = tuple[float, str]  # a measure, and what is wrong if it is bad


@dataclass(frozen=True)
class Limits:
    """What the robot can do: speed in m/s and yaw rate in rad/s."""

    speed: float = 0.6
    turn: float = 0.7


class FlowValidator:
    """Scores a video by its optical flow; the score is that of the worst check, as one fault spoils a goal.

    It needs pictures that are close to each other: about 0.1 m or 5 degrees apart. At 0.2 m it rejects good videos.

    Args:
        camera: The camera that the video pretends to be taken with. Its size does not matter.
        limits: Of the robot that has to follow.
        end_picture: ``(3, S, S)`` uint8 RGB of the goal, if there is one.
    """

    def __init__(self, camera: Camera, limits: Limits | None = None, end_picture: Array | None = None) -> None:
        self._camera, self._limits = camera, limits or Limits()
        self._end = None if end_picture is None else squared(end_picture[None])[0]

    def score(self, video: AnyVideo, request: Request) -> Verdict:
        """Measure a video; its reasons name the pictures, counted from 0."""
        motion = measure(video.frames, video.rate_hz, self._camera)
        found = {
            "length": _length(len(video.frames), request.frames),
            "frozen": _frozen(motion),
            "teleport": _teleport(motion),
            "horizon": _horizon(motion),
            "tilt": _tilt(motion),
            "coherence": _coherence(motion),
            "flicker": _flicker(motion),
            **_drive(motion, self._limits),
        }
        if self._end is not None:
            found["goal"] = _goal(squared(video.frames[-1:])[0], self._end)
        checks = {name: _ramp(measured, *RAMPS[name]) for name, (measured, _) in found.items()}
        reasons = tuple(f"{name}: {words}" for name, (_, words) in found.items() if checks[name] < 1)
        return Verdict(min(checks.values()), checks, reasons)


def _ramp(value: float, good: float, bad: float) -> float:
    return float(np.clip((value - bad) / (good - bad), 0, 1))


def _length(frames: int, wanted: int) -> Found:
    return min(frames / wanted, wanted / frames), f"{frames} pictures instead of {wanted}"


def _frozen(motion: Motion) -> Found:
    """Longest stretch that stands still and begins or ends at once; a robot slows down."""
    still, size = motion.still, motion.size
    if still.all():
        return 1.0, "the picture never moves"
    usual = ABRUPT * np.median(size[~still])
    edges = np.flatnonzero(np.diff(np.r_[False, still, False]))
    longest, begin = 0, 0
    for first, end in edges.reshape(-1, 2):
        abrupt = (first > 0 and size[first - 1] > usual) or (end < len(size) and size[end] > usual)
        if abrupt and end - first > longest:
            longest, begin = int(end - first), int(first)
    return longest / len(size), f"the picture stands still from {begin} to {begin + longest} without slowing down"


def _teleport(motion: Motion) -> Found:
    at = int(motion.jump.argmax())
    jump = float(motion.jump[at])
    return float(np.log(jump)), f"the scene jumps from picture {at} to {at + 1} ({jump:.0f} times the usual change)"


def _horizon(motion: Motion) -> Found:
    at = int(motion.shifted.argmax())
    share = 100 * motion.rows[at] / SIDE
    way = "down" if share > 0 else "up"
    return float(motion.shifted[at]), f"the horizon moves {way} by {abs(share):.0f} % from picture {at} to {at + 1}"


def _tilt(motion: Motion) -> Found:
    tilt = np.where(motion.agreement > AGREES, motion.tilt, 0)
    at = int(tilt.argmax())
    return float(tilt[at]), f"the camera tilts by {np.degrees(tilt[at]):.0f} degrees from picture {at} to {at + 1}"


def _coherence(motion: Motion) -> Found:
    """Pictures that boil: no motion makes one of the other, without any of them being a jump."""
    usual = float(np.median(motion.mismatch))
    return usual, f"the pictures do not show the same things (usual correlation {1 - usual:.2f} after motion)"


def _flicker(motion: Motion) -> Found:
    at = int(np.abs(motion.brightness).argmax())
    change = 100 * (np.exp(motion.brightness[at]) - 1)
    return abs(float(motion.brightness[at])), f"the brightness changes by {change:+.0f} % from picture {at} to {at + 1}"


def _drive(motion: Motion, limits: Limits) -> dict[str, Found]:
    """Checks of the motion of the robot, from the pairs in which the floor tells it."""
    moves = ~motion.still
    known = moves & (motion.agreement > AGREES)
    share = known.sum() / max(moves.sum(), 1) if moves.any() else 1.0
    found = {"floor": (float(share), f"only {100 * share:.0f} % of the moving pictures show a floor that moves as one")}
    twist = motion.twist[known] if known.any() else np.zeros((1, 3))
    speed, turn = np.percentile(np.hypot(twist[:, 0], twist[:, 1]), 90), np.percentile(np.abs(twist[:, 2]), 90)
    way = np.hypot(twist[:, 0], twist[:, 1]).sum()
    forward = twist[:, 0].sum() / way if way / max(len(twist), 1) > 0.05 else 1.0  # who turns on the spot goes nowhere
    return found | {
        "speed": (float(speed / limits.speed), f"the camera moves at {speed:.2f} m/s, the robot at {limits.speed} m/s"),
        "turn": (float(turn / limits.turn), f"the camera turns at {turn:.2f} rad/s, the robot at {limits.turn} rad/s"),
        "forward": (float(forward), "the camera moves backwards" if forward < 0 else "the camera hardly moves forward"),
    }


def _goal(last: Array, end: Array) -> Found:
    """How well the last picture shows the place of the end picture, seen from about the same spot."""
    flow = dis_flow(end, last)
    inside, back = warped(last, flow)
    similar = correlation(end[:, inside].astype(np.float32), back[:, inside].astype(np.float32))
    offset = float(np.median(np.hypot(*flow)))
    reached = similar if offset < OFFSET else similar * OFFSET / offset
    return reached, f"the last picture does not show the goal (similarity {similar:.2f}, {offset:.0f} px off)"


def tally(good: Sequence[Verdict], bad: Mapping[str, Sequence[Verdict]], accept: float = 0.8) -> dict[str, Any]:
    """Count what a validator said of good videos, and of bad ones by the name of their fault.

    Returns:
        A report for ``json.dump``: per fault its recall (rejected of all) and precision (of the rejected of this fault
        and the good ones, those of this fault: it depends on how many of each there are), with the numbers behind them
        and the checks that objected, and the same over all faults.
    """
    if not good or not bad or not all(bad.values()):
        raise ImaginationError("precision and recall need good videos and videos of every fault; one of them is empty")
    alarms = _rejected(good, accept)
    every = [verdict for verdicts in bad.values() for verdict in verdicts]
    return {
        "accept": accept,
        "clean": {"videos": len(good), "rejected": len(alarms), "objections": _objections(alarms, accept)},
        "faults": {name: _rates(verdicts, len(alarms), accept) for name, verdicts in bad.items()},
        "all": _rates(every, len(alarms), accept),
    }


def _rejected(verdicts: Sequence[Verdict], accept: float) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.score < accept]


def _rates(verdicts: Sequence[Verdict], alarms: int, accept: float) -> dict[str, Any]:
    rejected = _rejected(verdicts, accept)
    return {
        "videos": len(verdicts),
        "rejected": len(rejected),
        "recall": len(rejected) / len(verdicts),
        "precision": len(rejected) / (len(rejected) + alarms) if rejected or alarms else None,
        "objections": _objections(rejected, accept),
    }


def _objections(verdicts: Sequence[Verdict], accept: float) -> dict[str, int]:
    """In how many videos each check objected."""
    names = [name for verdict in verdicts for name, score in verdict.checks.items() if score < accept]
    return {name: names.count(name) for name in sorted(set(names))}
