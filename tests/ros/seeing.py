"""A bundle that sees: a small FlowDiT that was never trained, with actions that drive ahead whatever it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from policies.export import export
from policies.flowdit import Config, FlowDiT
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import Spec

HORIZON = 16
AHEAD, SPREAD = 0.3, 0.05  # m/s, and how far what it says may change that


def write(path: Path, contract: Spec) -> Path:
    """Write the bundle for an environment's contract."""
    spec = dataclasses.replace(contract, history=2, horizon=HORIZON)
    torch.manual_seed(0)
    head = FlowDiT(spec, Config(width=32, depth=1, heads=2, encoder_depth=1))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # away from the zero-initialised output
    normaliser = Normaliser.identity(spec)
    normaliser.action_offset[0] = AHEAD
    normaliser.action_scale *= SPREAD
    export(Policy(head, normaliser, steps=1).eval(), path, provenance={"embodiment": "wheeled"})
    return path
