"""The mathematics of flow and diffusion: fields, paths, steps, guides, composition and losses. Imports torch only."""

from policies.flow.compose import blend, disagreement, padded
from policies.flow.guide import certain, cfg, clip, descend, hold, pin, residual_cfg, toward
from policies.flow.loss import logit_normal_times, matching_loss, uniform_times
from policies.flow.path import (
    COSINE,
    LINEAR,
    Estimate,
    Field,
    Path,
    ddpm,
    from_data,
    from_noise,
    from_score,
    from_velocity,
    reschedule,
)
from policies.flow.solve import Step, heun, jump, sde, solve, straight, uniform

__all__ = [
    "COSINE",
    "LINEAR",
    "Estimate",
    "Field",
    "Path",
    "Step",
    "blend",
    "certain",
    "cfg",
    "clip",
    "ddpm",
    "descend",
    "disagreement",
    "from_data",
    "from_noise",
    "from_score",
    "from_velocity",
    "heun",
    "hold",
    "jump",
    "logit_normal_times",
    "matching_loss",
    "padded",
    "pin",
    "reschedule",
    "residual_cfg",
    "sde",
    "solve",
    "straight",
    "toward",
    "uniform",
    "uniform_times",
]
