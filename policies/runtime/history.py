"""The past observations a policy sees. numpy only."""

from __future__ import annotations

import numpy as np

from policies.spec import Array, ContractError, Observation, Spec

_SLOTS_PER_STEP = 8  # samples kept per policy step; a faster sensor replaces its newest sample


class History:
    """Collects single observations into the ``(T_obs, *shape)`` arrays of a policy.

    Sensors may be faster than the policy: the window picks the samples nearest to ``newest - k * spec.dt``, the spacing
    the policy was trained with. Where the past is shorter than the window its first sample is repeated.

    Args:
        spec: Contract of the policy.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        length = (spec.history - 1) * _SLOTS_PER_STEP + 2
        self._stamps = np.zeros(length)
        self._samples = {f.name: np.zeros((length, *f.shape), f.dtype) for f in spec.observations if not f.constant}
        self._window = {f.name: np.zeros((spec.samples(f), *f.shape), f.dtype) for f in spec.observations}
        self._offsets = np.arange(1 - spec.history, 1) * spec.dt
        self.clear()

    @property
    def newest(self) -> float | None:
        """Stamp of the newest observation in seconds, None when there is none."""
        return None if self._empty else float(self._stamps[self._index])

    def clear(self) -> None:
        """Forget all observations, for a new episode or goal."""
        self._empty = True
        self._index = 0

    def add(self, observation: Observation, stamp: float) -> bool:
        """Add one observation.

        Args:
            observation: Arrays shaped as the features of the contract, without history.
            stamp: Time of the measurement in seconds.

        Returns:
            False when the observation is not newer than the newest one and was dropped.

        Raises:
            ContractError: A key is missing or unknown, a shape differs, or the stamp is not finite.
        """
        self._check(observation, stamp)
        if not self._empty and stamp <= self._stamps[self._index]:
            return False
        where = self._slot()
        self._stamps[where] = stamp
        for name, window in self._window.items():
            if name in self._samples:
                self._samples[name][where] = observation[name]
            else:
                window[0] = observation[name]
        self._empty = False
        return True

    def window(self) -> dict[str, Array]:
        """Return ``(T_obs, *shape)`` arrays, newest sample last; they are reused by the next call.

        Raises:
            ContractError: No observation was added yet.
        """
        if self._empty:
            raise ContractError(f"history has 0 observations, the policy needs {self._spec.history}; add one first")
        wanted = self._stamps[self._index] + self._offsets
        chosen = np.abs(self._stamps[None] - wanted[:, None]).argmin(axis=1)
        for name, samples in self._samples.items():
            np.take(samples, chosen, axis=0, out=self._window[name])
        return self._window

    def _slot(self) -> int | slice:
        if self._empty:
            return slice(None)
        if self._stamps[self._index] - self._stamps[self._index - 1] >= self._spec.dt / _SLOTS_PER_STEP:
            self._index = (self._index + 1) % len(self._stamps)
        return self._index

    def _check(self, observation: Observation, stamp: float) -> None:
        if not np.isfinite(stamp):
            raise ContractError(f"observation stamp is {stamp}, a finite time in seconds is needed; check the sensor")
        if set(observation) != set(self._window):
            raise ContractError(f"observation has keys {sorted(observation)}, the policy needs {sorted(self._window)}")
        for feature in self._spec.observations:
            shape = np.shape(observation[feature.name])
            if shape != feature.shape:
                raise ContractError(
                    f"observation '{feature.name}' has shape {shape}, one sample has {feature.shape}; "
                    "add single samples without history"
                )
