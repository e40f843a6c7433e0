"""Intents by rule: what a chunk does sideways and lengthways. The same labels supervise, command and verify."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from policies.motion import Motion
from policies.spec import ActionSpec, ContractError

SIDEWAYS = ("keep", "change-left", "change-right", "turn-left", "turn-right")
LENGTHWAYS = ("hold", "accelerate", "decelerate", "stop")
INTENTS = tuple(f"{sideways} {lengthways}" for sideways in SIDEWAYS for lengthways in LENGTHWAYS)
TURN, STRAIGHT = math.radians(30), math.radians(15)
ROAD_SPEED = 3.0  # m/s, from which a robot is a car
LEFT, RIGHT = ("change-left", "turn-left"), ("change-right", "turn-right")
FAMILIES = {"left": LEFT, "right": RIGHT, "pass-left": LEFT, "pass-right": RIGHT, "follow": ("keep",)}
"""Names for sideways intents of which any will do: of cars, and of robots that pass something or follow their way."""


class Limits(NamedTuple):
    """From where on something counts.

    Args:
        aside: m beside the line of the begin that change it.
        change: m/s of speed that are an acceleration.
        slow: m/s at the end below which it stops.
        short: m below which it stands.
    """

    aside: float
    change: float
    slow: float
    short: float


CAR, ROBOT = Limits(1.75, 1.5, 0.5, 1.0), Limits(0.25, 0.15, 0.05, 0.1)


class Maneuvers:
    """Labels chunks.

    Args:
        action: Contract of the commands.
        dt: Seconds between two of them.
    """

    def __init__(self, action: ActionSpec, dt: float) -> None:
        self._motion = Motion(action, dt)
        self._limits = CAR if self._motion.fastest > ROAD_SPEED else ROBOT

    def labels(self, actions: Tensor) -> Tensor:
        """Index into `INTENTS` of chunks ``(..., H, A)`` in SI units: ``(...)``."""
        limits, poses = self._limits, self._motion.poses(actions)
        moved = poses[..., :2].diff(dim=-2, prepend=torch.zeros_like(poses[..., :1, :2])).norm(dim=-1)
        speed, length = moved / self._motion.dt, moved.sum(-1)
        turned, aside = poses[..., -1, 2], poses[..., -1, 1]
        shifts = (turned.abs() < STRAIGHT) & (aside.abs() >= limits.aside)
        sideways = torch.where(shifts, torch.where(aside > 0, 1, 2), 0)
        sideways = torch.where(turned.abs() >= TURN, torch.where(turned > 0, 3, 4), sideways)
        change = speed[..., -1] - speed[..., 0]
        lengthways = torch.where(change >= limits.change, 1, torch.where(change <= -limits.change, 2, 0))
        stops = (speed[..., -1] < limits.slow) | (length < limits.short)
        return sideways * len(LENGTHWAYS) + torch.where(stops, 3, lengthways)


def allowed(intent: str) -> list[bool]:
    """Which of `INTENTS` a command allows.

    Args:
        intent: Parts of an intent, ``"stop"``, ``"turn-left"``, ``"left"``, ``"keep accelerate"``; empty for any.

    Raises:
        ContractError: There is no such part, or two of them contradict each other.
    """
    parts = [set(FAMILIES.get(part, (part,))) for part in intent.split()]
    known = {*SIDEWAYS, *LENGTHWAYS, *FAMILIES}
    if unknown := [part for part in intent.split() if part not in known]:
        raise ContractError(f"there is no intent '{unknown[0]}'; combine {', '.join(sorted(known))}")
    fitting = [all(part & {*name.split()} for part in parts) for name in INTENTS]
    if not any(fitting):
        raise ContractError(f"nothing is '{intent}' at once; give one sideways and one lengthways part at most")
    return fitting
