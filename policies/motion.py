"""Where velocity commands lead: planar poses of a chunk, in the frame of the robot at its begin."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.spec import ActionSpec, ContractError, Spec

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
