"""The contract of a policy: what it observes, what it commands, in which units, frames and at which rate.

Environments state it, heads are trained against it, bundles carry it and nodes refuse to run on a mismatch.
This module needs numpy only, so a robot can read a bundle without torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Array = np.ndarray
Observation = Mapping[str, Array]

UNSTATED = ""
"""Unit, frame or name that a foreign checkpoint does not tell; an unstated rate is 0."""


def stated(value: Any) -> bool:
    """Whether a contract says something here, see `UNSTATED`."""
    parts = value if isinstance(value, tuple) else (value,)
    return not parts or any(part not in (UNSTATED, 0.0) for part in parts)


class ContractError(ValueError):
    """Something does not fit the contract; the message names the feature, both values and the remedy."""


@dataclass(frozen=True)
class Feature:
    """One named observation.

    Args:
        name: Key in the observation dictionary.
        shape: Shape of one sample, without batch and history.
        unit: SI unit of every element, for example ``"m"``.
        frame: REP-105 frame the values are expressed in, for example ``"base_link"``.
        dtype: ``"float32"``, or ``"uint8"`` for pictures and the bytes of a text.
        constant: Given once with the goal and the same until the next one: it has no history.
        label: Known in recorded episodes only: training may use it, a policy never sees it.
    """

    name: str
    shape: tuple[int, ...]
    unit: str
    frame: str
    dtype: Literal["float32", "uint8"] = "float32"
    constant: bool = False
    label: bool = False


@dataclass(frozen=True)
class ActionSpec:
    """The command vector.

    Args:
        names: One name per component, in order.
        units: One SI unit per component.
        frame: REP-105 frame of the command.
        low: Smallest commanded value per component.
        high: Largest commanded value per component.
        acceleration: Largest change of a component per second; chunks keep it at every denoising step. Empty where
            there is no such limit.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    frame: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    acceleration: tuple[float, ...] = ()

    @property
    def dim(self) -> int:
        return len(self.names)

    def clip(self, actions: Array) -> Array:
        """Clip ``(..., A)`` actions to the commanded range."""
        return np.clip(actions, np.array(self.low, np.float32), np.array(self.high, np.float32))


@dataclass(frozen=True)
class Spec:
    """Everything two components have to agree on before one drives the other.

    Args:
        observations: Named observations, in the order of the network's inputs.
        action: The command vector.
        rate_hz: Rate of the actions within a chunk, in Hz.
        history: Number of past observations the policy sees, T_obs; the newest comes last.
        horizon: Number of actions in one chunk, H.
        past: Actions the network plans in front of them, before the newest observation, and the policy leaves out.
            Chunks of diffusion_policy and LeRobot begin at the first observation: there it is T_obs - 1.
    """

    observations: tuple[Feature, ...]
    action: ActionSpec
    rate_hz: float
    history: int
    horizon: int
    past: int = 0

    @property
    def dt(self) -> float:
        """Seconds between two actions of a chunk."""
        return 1.0 / self.rate_hz

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape of the sample a chunk starts from: all actions the network plans."""
        return (self.past + self.horizon, self.action.dim)

    def samples(self, feature: Feature) -> int:
        """Number of samples of a feature the policy sees: T_obs, 1 of one that is constant."""
        return 1 if feature.constant else self.history

    def check(self, observation: Observation) -> None:
        """Check one observation with history, every array shaped ``(T_obs, *shape)``, ``(1, *shape)`` if constant.

        Raises:
            ContractError: A key is missing or unknown, a shape or type differs, or a value is not finite.
        """
        expected = {feature.name for feature in self.observations}
        if set(observation) != expected:
            raise ContractError(f"observation has keys {sorted(observation)}, the policy needs {sorted(expected)}")
        for feature in self.observations:
            value = observation[feature.name]
            samples = self.samples(feature)
            shape = (samples, *feature.shape)
            if value.shape != shape:
                raise ContractError(
                    f"observation '{feature.name}' has shape {value.shape}, the policy needs {shape} "
                    f"({samples} samples of {feature.shape}, newest last)"
                )
            if feature.dtype == "uint8":
                if value.dtype != np.uint8:
                    raise ContractError(
                        f"observation '{feature.name}' is {value.dtype}, the policy needs uint8: values 0 to 255"
                    )
            elif not np.isfinite(value).all():
                raise ContractError(f"observation '{feature.name}' is not finite; check the sensor that provides it")

    def require(self, other: Spec) -> None:
        """Require that ``other``, for example an environment's contract, offers exactly what this policy expects.

        History and horizon belong to the policy alone and are not compared. What a foreign policy does not state is
        taken from the other side, shapes are always compared.

        Raises:
            ContractError: Names the first feature that differs, with both values.
        """
        offered = {feature.name: feature for feature in other.observations}
        for feature in self.observations:
            found = offered.get(feature.name)
            if found is None or _differs(feature, found, "shape", "unit", "frame", "dtype", "constant"):
                raise ContractError(
                    f"observation '{feature.name}': the policy expects {feature}, "
                    f"the other side offers {found}; use the environment it was trained in"
                )
        same = self.action.dim == other.action.dim
        field = _differs(self.action, other.action, *_MEANING) if same else "names"
        if field:
            mine, theirs = getattr(self.action, field), getattr(other.action, field)
            raise ContractError(
                f"action {field}: the policy commands {mine}, the other side takes {theirs}; "
                "choose the embodiment the policy was trained for"
            )
        if stated(self.rate_hz) and self.rate_hz != other.rate_hz:
            raise ContractError(f"rate_hz: the policy plans at {self.rate_hz}, the other side expects {other.rate_hz}")

    def to_json(self) -> dict[str, Any]:
        """Return plain containers for ``json.dump``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spec:
        """Rebuild a spec written by `to_json`.

        Raises:
            ContractError: A field is missing or unknown.
        """
        try:
            observations = tuple(Feature(**{**item, "shape": tuple(item["shape"])}) for item in data["observations"])
            values = {key: tuple(value) for key, value in data["action"].items() if key != "frame"}
            action = ActionSpec(frame=data["action"]["frame"], **values)
            rest = {key: data[key] for key in ("rate_hz", "history", "horizon")} | {"past": data.get("past", 0)}
        except (KeyError, TypeError) as error:
            raise ContractError(f"not a policy contract: {error}") from error
        return cls(observations, action, **rest)


_MEANING = ("names", "units", "frame")


def _differs(mine: Any, theirs: Any, *fields: str) -> str:
    """Name the first field that ``mine`` states and ``theirs`` contradicts, empty if there is none."""
    pairs = ((field, getattr(mine, field), getattr(theirs, field)) for field in fields)
    return next((field for field, one, other in pairs if stated(one) and one != other), "")


class ChunkPolicy(Protocol):
    """What evaluation, the runtime and the nodes drive: a torch `Policy` and a torch-free `Bundle` both are one."""

    @property
    def spec(self) -> Spec: ...

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        """Plan one chunk.

        Args:
            observation: Arrays shaped ``(T_obs, *shape)``, newest sample last, SI units.
            noise: Standard normal sample the chunk starts from, ``spec.noise_shape``.
            committed: ``(H, A)`` actions of the previous chunk on this chunk's time grid, SI units.
            hold: ``(H,)`` weights in [0, 1]; 1 keeps the committed action, 0 ignores it.

        Returns:
            ``(H, A)`` float32 actions in SI units; action k is meant for ``k * spec.dt`` after the newest observation.
        """
        ...
