"""The noise schedule of a diffusion checkpoint: its table, what its network predicts and how its sampler walks."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.flow import (
    Field,
    clip,
    ddpm,
    from_data,
    from_noise,
    from_velocity,
    reschedule,
    squared_cosine_betas,
)
from policies.flow.path import Network
from policies.spec import ContractError

PREDICTIONS = {"epsilon": from_noise, "sample": from_data, "v_prediction": from_velocity}


def betas(name: str, levels: int, first: float, last: float) -> Tensor:
    """Variances ``(levels,)`` added per noise level, float32 as the networks were trained with.

    Args:
        name: ``squaredcos_cap_v2``, ``linear`` or ``scaled_linear``.
        levels: Number of noise levels, T.
        first: Variance of the least noisy level (``beta_start``); the squared cosine has its own.
        last: Variance of the noisiest level (``beta_end``).

    Raises:
        ContractError: The table is unknown.
    """
    if name == "squaredcos_cap_v2":
        return squared_cosine_betas(levels).float()
    power = {"linear": 1.0, "scaled_linear": 0.5}.get(name)
    if power is None:
        raise ContractError(
            f"noise table '{name}' is unknown; known are 'squaredcos_cap_v2', 'linear' and 'scaled_linear'"
        )
    return (torch.linspace(first**power, last**power, levels, dtype=torch.float64) ** (1 / power)).float()


class Schedule:
    """How a diffusion network is asked and sampled.

    Args:
        betas: ``(T,)`` variance table.
        prediction: What the network predicts: ``epsilon``, ``sample`` or ``v_prediction``.
        clip: Bound of the data estimate in normal units (``clip_sample_range``); None does not clip.

    Raises:
        ContractError: The prediction is unknown.
    """

    def __init__(self, betas: Tensor, prediction: str, clip: float | None) -> None:
        if prediction not in PREDICTIONS:
            raise ContractError(f"prediction '{prediction}' is unknown; known are {list(PREDICTIONS)}")
        self.levels, self.prediction, self.clip = len(betas), prediction, clip
        # Computed here, once: a table that is computed while a graph is traced does not export.
        self.path = ddpm(betas)

    def field(self, network: Network) -> Field:
        """Field on the linear path of a network on native chunks ``(B, H, A)`` and integer noise levels ``(B,)``."""
        field = reschedule(PREDICTIONS[self.prediction](network, self.path), self.path)
        return field if self.clip is None else clip(field, -self.clip, self.clip)

    def grid(self, steps: int) -> tuple[float, ...]:
        """Times on the linear path that a sampler with ``steps`` steps visits: every (T // steps)-th level, then data.

        Raises:
            ContractError: There are fewer levels than steps.
        """
        if not 1 <= steps <= self.levels:
            raise ContractError(
                f"steps={steps}: the checkpoint has {self.levels} noise levels; take 1 to as many steps"
            )
        visited = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (self.levels // steps)
        return (*self.path.level(visited).tolist(), 1.0)
