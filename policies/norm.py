"""Normalisation, in one place: SI units outside, roughly [-1, 1] inside a policy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from policies.spec import Array, ContractError, Spec

ACTION = "action"


class Normaliser(nn.Module):
    """Affine map per feature element, ``normal = (value - offset) / scale``; it is saved with the weights.

    Pictures and texts, whose bytes have no unit, pass unchanged.

    Args:
        offset: ``{name: (*shape)}`` in the feature's unit.
        scale: ``{name: (*shape)}`` in the feature's unit, positive.
    """

    def __init__(self, offset: Mapping[str, Tensor], scale: Mapping[str, Tensor]) -> None:
        super().__init__()
        if set(offset) != set(scale):
            raise ContractError(f"offsets are given for {sorted(offset)} but scales for {sorted(scale)}")
        self.names = tuple(sorted(offset))
        for name in self.names:
            self.register_buffer(f"{name}_offset", offset[name].float())
            self.register_buffer(f"{name}_scale", scale[name].float())

    @classmethod
    def fit(cls, spec: Spec, observations: Mapping[str, Array]) -> Normaliser:
        """Fit offsets and scales so that the data span [-1, 1]; actions use the limits of the contract.

        Args:
            spec: Contract that names the features.
            observations: ``{name: (N, *shape)}`` samples in SI units.

        Raises:
            ContractError: A feature of the contract has no samples, or there are samples of an unknown feature.
        """
        names = {feature.name for feature in spec.observations}
        numbers = {feature.name for feature in spec.observations if feature.dtype == "float32"}
        if set(observations) != names:
            raise ContractError(f"samples are given for {sorted(observations)}, the contract has {sorted(names)}")
        low = {name: torch.as_tensor(np.min(observations[name], 0)) for name in numbers}
        high = {name: torch.as_tensor(np.max(observations[name], 0)) for name in numbers}
        low[ACTION], high[ACTION] = torch.tensor(spec.action.low), torch.tensor(spec.action.high)
        offset = {name: (low[name] + high[name]) / 2 for name in low}
        # A constant element keeps its unit: dividing by its range would blow up any later deviation.
        scale = {name: torch.where(high[name] > low[name], (high[name] - low[name]) / 2, 1.0) for name in low}
        return cls(offset, scale)

    @classmethod
    def identity(cls, spec: Spec) -> Normaliser:
        """A normaliser with the contract's shapes that changes nothing, to be filled from a checkpoint."""
        numbers = [feature for feature in spec.observations if feature.dtype == "float32"]
        shapes = {feature.name: feature.shape for feature in numbers} | {ACTION: (spec.action.dim,)}
        return cls({k: torch.zeros(v) for k, v in shapes.items()}, {k: torch.ones(v) for k, v in shapes.items()})

    def normalise(self, name: str, value: Tensor) -> Tensor:
        """Map values in SI units to normal units."""
        offset, scale = self.statistics_of(name)
        return (value - offset) / scale

    def restore(self, name: str, value: Tensor) -> Tensor:
        """Map normal units back to SI units."""
        offset, scale = self.statistics_of(name)
        return value * scale + offset

    def forward(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalise a whole observation.

        Raises:
            ContractError: A feature is missing or unknown.
        """
        numbers = {name for name, value in observation.items() if value.dtype != torch.uint8}
        if numbers != set(self.names) - {ACTION}:
            raise ContractError(
                f"got features {sorted(observation)}, the policy needs {sorted(set(self.names) - {ACTION})}"
            )
        return {name: self.normalise(name, value) if name in numbers else value for name, value in observation.items()}

    def statistics(self) -> dict[str, dict[str, list[float]]]:
        """Offsets and scales as plain lists."""
        return {
            name: {
                "offset": self.statistics_of(name)[0].flatten().tolist(),
                "scale": self.statistics_of(name)[1].flatten().tolist(),
            }
            for name in self.names
        }

    def statistics_of(self, name: str) -> tuple[Tensor, Tensor]:
        """Offset and scale of one feature."""
        if name not in self.names:
            raise ContractError(f"no normalisation for feature '{name}'; known are {list(self.names)}")
        return getattr(self, f"{name}_offset"), getattr(self, f"{name}_scale")
