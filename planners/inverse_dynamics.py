"""A tracker that has learned from recordings which command leads where, for robots whose model nobody knows.

XDiffuser (arXiv 2605.16863) executes its plans by such a network: from the state of the robot and where it shall be a
little later to the command. Where the model is known, `planners.track` needs no training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from planners.track import Reference
from policies.files import replace_file
from policies.spec import Array, ContractError
from policies.training import seeded

WIDTH, BATCH, RATE = 64, 256, 3e-3


class InverseDynamics(nn.Module):
    """Commands ``(2,)`` of robots with states ``(4,)``: position in m, velocity in m/s.

    Args:
        lead_s: How much later the place is that a command shall lead to, in seconds.
        limit: Largest command per component.
    """

    _scale: Tensor

    def __init__(self, lead_s: float, limit: float) -> None:
        super().__init__()
        self.lead_s, self.limit = lead_s, limit
        self.network = nn.Sequential(
            nn.Linear(4, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 2)
        )
        self.register_buffer("_scale", torch.ones(4))

    def forward(self, velocity: Tensor, offset: Tensor) -> Tensor:
        """Commands ``(B, 2)`` for velocities ``(B, 2)`` in m/s and places ``(B, 2)`` in m from the robot."""
        drift = offset - self.lead_s * velocity  # what doing nothing leaves to do
        return self.limit * self.network(torch.cat([velocity, drift], -1) / self._scale)

    @classmethod
    def train_on(
        cls,
        trajectories: Sequence[Array],
        commands: Sequence[Array],
        lead: int,
        step_s: float,
        limit: float,
        seed: int = 0,
        steps: int = 1500,
    ) -> InverseDynamics:
        """Learn from recordings; a few seconds.

        Args:
            trajectories: States ``(T, 4)``, one per step.
            commands: What was commanded in each of them ``(T, 2)``, or all but the last ``(T - 1, 2)``.
            lead: Steps from a command to the place that it shall lead to.
            step_s: Seconds per step.
            limit: Largest command per component.
            seed: Of weights and batches.
            steps: Optimiser steps.

        Raises:
            ContractError: Shapes do not fit together, or no recording is longer than the lead.
        """
        velocity, offset, command = _examples(trajectories, commands, lead)
        with seeded(seed):
            model = cls(lead * step_s, limit)
        drift = offset - model.lead_s * velocity
        model._scale.copy_(torch.cat([velocity, drift], -1).std(0).clamp(min=1e-6))
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(model.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            rows = torch.randint(len(command), (BATCH,), generator=generator)
            loss = ((model(velocity[rows], offset[rows]) - command[rows]) / limit).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        return model.eval()

    @torch.inference_mode()
    def command(self, state: Array, reference: Reference) -> Array:
        """The command ``(2,)`` for a robot in a state ``(4,)``, see `planners.track.Tracker`."""
        lead = self.lead_s
        place = reference.position + lead * reference.velocity + lead**2 / 2 * reference.acceleration
        values = np.stack([state[2:4], place - state[:2]]).astype(np.float32)
        found = self(*torch.from_numpy(values[:, None]))[0].numpy()
        return np.clip(found, -self.limit, self.limit).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write the network to a file in one step.

        Raises:
            OSError: The file cannot be written.
        """
        settings = json.dumps({"lead_s": self.lead_s, "limit": self.limit})
        replace_file(path, save(self.state_dict(), {"inverse_dynamics": settings}))

    @classmethod
    def load(cls, path: Path) -> InverseDynamics:
        """Read a network.

        Raises:
            ContractError: The file is damaged or holds something else.
        """
        try:
            with safe_open(path, "pt") as file:
                model = cls(**json.loads((file.metadata() or {})["inverse_dynamics"]))
            model.load_state_dict(load_file(path))
        except (KeyError, TypeError, RuntimeError, ValueError, SafetensorError) as error:
            raise ContractError(f"{path} holds no inverse dynamics ({error}); train them again") from error
        return model.eval()


def _examples(trajectories: Sequence[Array], commands: Sequence[Array], lead: int) -> tuple[Tensor, Tensor, Tensor]:
    """Velocities, offsets a lead later and commands, ``(N, 2)`` each."""
    found = []
    for states, given in zip(trajectories, commands, strict=True):
        if states.ndim != 2 or states.shape[1] != 4 or given.shape[1:] != (2,) or len(given) < len(states) - 1:
            raise ContractError(f"states {states.shape} and commands {given.shape} are not (T, 4) and (T, 2)")
        if len(states) > lead:
            places = states[lead:, :2] - states[:-lead, :2]
            found.append(np.concatenate([states[:-lead, 2:], places, given[: len(states) - lead]], 1))
    if not found:
        raise ContractError(f"no recording is longer than {lead} steps; record longer ones or shorten the lead")
    velocity, offset, command = torch.from_numpy(np.concatenate(found).astype(np.float32)).split(2, 1)
    return velocity, offset, command
