"""Where velocity commands lead: planar poses of a chunk, in the frame of the robot at its begin."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from policies.flow import LINEAR, Field
from policies.spec import ActionSpec, ContractError, Spec

PRECISION = 0.025  # of the longest way: how far away from where it should lead a chunk counts as wrong
PLACES = 0.5  # weight of where chunks lead beside what they are
AHEAD, ASIDE, TURNING = ("vx", "speed"), ("vy",), ("wz", "yaw_rate")


def require_horizon(spec: Spec) -> None:
    """Refuse a contract whose chunks have nothing to compare within (`ContractError`)."""
    if spec.horizon < 2:
        raise ContractError(f"horizon is {spec.horizon}; a chunk that leads somewhere has 2 actions at least")


class Motion:
    """Integrates chunks of velocity commands.

    Args:
        action: Contract of the commands.
        dt: Seconds between two of them.

    Raises:
        ContractError: They are no planar velocities.
    """

    def __init__(self, action: ActionSpec, dt: float) -> None:
        def column(names: tuple[str, ...]) -> int | None:
            return next((index for index, name in enumerate(action.names) if name in names), None)

        self._ahead, self._aside, self._turning = map(column, (AHEAD, ASIDE, TURNING))
        if self._ahead is None or self._turning is None:
            raise ContractError(
                f"commands {action.names} do not say where they lead; needed are one of {AHEAD} and one of {TURNING}"
            )
        self.dt, self.fastest = dt, action.high[self._ahead]

    def poses(self, actions: Tensor) -> Tensor:
        """Poses ``(..., H, 3)`` x, y in m and heading in rad after each of the actions ``(..., H, A)`` in SI units."""
        turned = self.dt * actions[..., self._turning]
        heading = turned.cumsum(-1)
        middle = heading - turned / 2  # exact to second order, and for the straight line
        cos, sin = middle.cos(), middle.sin()
        ahead = actions[..., self._ahead]
        aside = torch.zeros_like(ahead) if self._aside is None else actions[..., self._aside]
        steps = self.dt * torch.stack([cos * ahead - sin * aside, sin * ahead + cos * aside], -1)
        return torch.cat([steps.cumsum(-2), heading[..., None]], -1)

    def matching_loss(
        self, field: Field, data: Tensor, noise: Tensor, t: Tensor, restored: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Flow matching, and how far what is estimated leads away from where the data lead.

        Small errors of a yaw rate add up to metres, which the mean squared error of velocities hardly knows. Places are
        compared by a pseudo-Huber distance in units of `PRECISION`.

        Args:
            field, data, noise, t: See `policies.flow.matching_loss`.
            restored: From normal to SI units.
        """
        estimate = field(LINEAR.at(data, noise, t), t)
        matching = (estimate.velocity - (data - noise)).square().mean()
        apart = (self.poses(restored(estimate.data)) - self.poses(restored(data)))[..., :2]
        unit = PRECISION * self.fastest * self.dt * data.shape[-2]
        return matching + PLACES * ((1 + apart.square().sum(-1) / unit**2).sqrt() - 1).mean()
