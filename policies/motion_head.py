"""What heads share whose chunks are velocities in the plane: units, where a chunk leads, and how much room it has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from policies.flow import uniform_times
from policies.flowdit import FlowDiT
from policies.ground import ground_of
from policies.head import COMMITTED, HELD
from policies.motion import Motion, require_horizon
from policies.nets.dit import Context
from policies.norm import ACTION, Normaliser
from policies.spec import Spec

SOFT = 0.3  # m of room over which a chunk becomes admissible


class MotionHead(FlowDiT):
    """Velocity field over chunks that lead somewhere; a subclass says under which condition.

    Args:
        spec: Contract; its actions are planar velocities.
        config: Hyper-parameters, among them ``sigma``, the standard deviation of the start noise, and ``candidates``.
    """

    remembers = True
    offset: Tensor
    scale: Tensor

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        require_horizon(spec)
        self.noise_scale = config.sigma
        self.motion, self.ground = Motion(spec.action, spec.dt), ground_of(spec)
        self.register_buffer("offset", torch.zeros(spec.action.dim))
        self.register_buffer("scale", torch.ones(spec.action.dim))

    @property
    def candidates(self) -> int:  # type: ignore[override]
        """Chunks per plan."""
        return self.config.candidates

    def prepare(self, normaliser: Normaliser, chunks: Tensor) -> None:
        self.ground.prepare(normaliser)
        for buffer, value in zip((self.offset, self.scale), normaliser.statistics_of(ACTION), strict=True):
            buffer.copy_(value)

    def restored(self, chunks: Tensor) -> Tensor:
        """Chunks in SI units."""
        return chunks * self.scale + self.offset

    def executing(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The chunk ``(B, H, A)`` being executed, in normal units, and 1 where there is one, ``(B,)``."""
        batch = max(len(values) for values in observation.values())
        nothing = self.scale.new_zeros(batch, self.spec.horizon, self.spec.action.dim)
        return observation.get(COMMITTED, nothing), observation.get(HELD, nothing[:, 0, 0])

    def admissible(self, observation: Mapping[str, Tensor], poses: Tensor) -> Tensor:
        """Log of how admissible paths ``(B, N, H, 3)`` are by the room along them, ``(B, N)``."""
        return functional.logsigmoid(self.ground.clearance(observation, poses, self.motion.dt) / SOFT)

    @abstractmethod
    def loss(self, observation: Mapping[str, Tensor], actions: Tensor, generator: torch.Generator) -> Tensor: ...

    def chunk_loss(self, context: Context, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of chunks ``(B, H, A)`` under a condition, see `policies.motion.Motion.matching_loss`."""
        noise = self.noise_scale * torch.randn(actions.shape, generator=generator)
        times = uniform_times(len(actions), generator)
        field = self.velocities(self.begun(context, actions, generator))
        return self.motion.matching_loss(field, actions, noise, times, self.restored)
