"""Whether policies can be composed, and the contract of what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from policies.norm import ACTION, Normaliser
from policies.spec import ActionSpec, ContractError, Feature, Spec, stated

Units = tuple[tuple[float, ...], tuple[float, ...]]  # factor and offset per component of the action

SCALE_TOLERANCE = 0.05  # relative difference of action scales at which noise still means nearly the same


def agree(specs: Sequence[Spec]) -> Spec:
    """The contract of a composition: all observations, the longest history, the chunk that covers all chunks.

    What one contract leaves unstated is taken from another.

    Raises:
        ContractError: Names the first thing that contradicts, with both values and the remedy.
    """
    features: dict[str, Feature] = {}
    for feature in (feature for spec in specs for feature in spec.observations):
        known = features.get(feature.name, feature)
        features[feature.name] = _merge(f"observation '{feature.name}'", known, feature, RENAME)
    action = specs[0].action
    for spec in specs[1:]:
        _check_action(action, spec.action)
        action = _merge("action", action, dataclasses.replace(spec.action, low=action.low, high=action.high), OTHER)
    rates = sorted({spec.rate_hz for spec in specs} - {0.0})
    if len(rates) > 1:
        raise ContractError(f"rate_hz: the chunks are planned at {rates} Hz; train the parents at one rate")
    return Spec(
        tuple(features.values()),
        _narrowed(action, specs),
        rate_hz=rates[0] if rates else 0.0,
        history=max(spec.history for spec in specs),
        horizon=max(spec.horizon for spec in specs),
        past=max(spec.past for spec in specs),
    )


RENAME = "rename one of them when it is imported (--rename)"
OTHER = "only policies that command the same thing can be composed"


def _merge(owner: str, mine: Any, theirs: Any, remedy: str) -> Any:
    """Field by field the value that is stated."""
    merged = {}
    for field in dataclasses.fields(mine):
        one, other = getattr(mine, field.name), getattr(theirs, field.name)
        if stated(one) and stated(other) and one != other:
            raise ContractError(f"{owner}: {field.name} is {one} in one parent and {other} in another; {remedy}")
        merged[field.name] = one if stated(one) else other
    return dataclasses.replace(mine, **merged)


ROTATIONS = {"drx": "axis-angle", "rx": "axis-angle", "r6": "6d", "qx": "quaternion", "roll": "Euler angles"}


def _check_action(mine: ActionSpec, theirs: ActionSpec) -> None:
    """Name the usual reasons why two action spaces differ."""
    if mine.dim != theirs.dim:
        raise ContractError(f"one parent commands {mine.dim} components {mine.names}, another {theirs.dim}; {OTHER}")
    if not stated(mine.names) or not stated(theirs.names):
        return
    for one, other in zip(mine.names, theirs.names, strict=True):
        if one == other:
            continue
        if {one, other} == {"gripper_close", "gripper_open"}:
            raise ContractError(f"gripper sign: '{one}' against '{other}'; retrain or import one with the other sign")
        if one.removeprefix("d") == other.removeprefix("d"):
            raise ContractError(f"'{one}' against '{other}': one is a change, the other an absolute value; {OTHER}")
        kinds = [next((kind for key, kind in ROTATIONS.items() if name.startswith(key)), "") for name in (one, other)]
        if all(kinds) and kinds[0] != kinds[1]:
            raise ContractError(
                f"rotation: '{one}' is part of {kinds[0]}, '{other}' of {kinds[1]}; train with one representation"
            )
        raise ContractError(f"action: one parent commands '{one}' where another commands '{other}'; {OTHER}")


def _narrowed(action: ActionSpec, specs: Sequence[Spec]) -> ActionSpec:
    """The range that every parent commands."""
    low = tuple(max(values) for values in zip(*(spec.action.low for spec in specs), strict=True))
    high = tuple(min(values) for values in zip(*(spec.action.high for spec in specs), strict=True))
    if not all(a <= b for a, b in zip(low, high, strict=True)):
        raise ContractError(f"the ranges of the parents do not overlap: low {low}, high {high}; {OTHER}")
    return dataclasses.replace(action, low=low, high=high)


def shared_units(own: Normaliser, shared: Normaliser) -> Units | None:
    """How normal actions of one normaliser become those of another, ``factor * own + offset``; None if equal."""
    mine, theirs = own.statistics()[ACTION], shared.statistics()[ACTION]
    if mine == theirs:
        return None
    factor = tuple(a / b for a, b in zip(mine["scale"], theirs["scale"], strict=True))
    rows = zip(mine["offset"], theirs["offset"], theirs["scale"], strict=True)
    return factor, tuple((a - b) / scale for a, b, scale in rows)


def check_scales(units: Sequence[Units | None]) -> None:
    """Check that noise means the same to all parents.

    Differences of the offset and one common factor convert exactly. Different factors per component do not: noise
    that is round in one parent's units is not in another's.

    Raises:
        ContractError: The factors differ by more than `SCALE_TOLERANCE`.
    """
    for factor, _ in filter(None, units):
        if max(factor) / min(factor) > (1 + SCALE_TOLERANCE) ** 2:
            shown = ", ".join(f"{value:.3g}" for value in factor)
            raise ContractError(
                f"normaliser scale: the components of one parent's actions are scaled by {shown} against another's, "
                f"more than {SCALE_TOLERANCE:.0%} apart; train both with one normaliser, or compose finished chunks: "
                "level='action'"
            )
