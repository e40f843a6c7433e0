"""Small untrained policies that are to be composed: a flow transformer and a diffusion U-Net."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from policies.flowdit import Config as FlowDiTConfig
from policies.flowdit import FlowDiT
from policies.norm import ACTION, Normaliser
from policies.policy import Policy
from policies.spec import ActionSpec, Array, Feature, Spec
from policies.unet import Config as UNetConfig
from policies.unet import UNet

POSE, CORNERS = Feature("pose", (4,), "m", "table"), Feature("corners", (6,), "m", "table")
ACTIONS = ActionSpec(("x", "y"), ("m", "m"), "table", (-50.0, -50.0), (50.0, 50.0))
SPEC = Spec((POSE,), ACTIONS, 10.0, history=2, horizon=8)


def policy(
    head: Any, config: Any, spec: Spec, seed: int, scale: Any = 2.0, offset: Any = 0.0, steps: int = 4
) -> Policy:
    """An untrained policy whose action normaliser has the given scale and offset."""
    torch.manual_seed(seed)
    network = head(spec, config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # away from the zero-initialised output
    normaliser = Normaliser.identity(spec)
    getattr(normaliser, f"{ACTION}_scale").copy_(torch.as_tensor(scale).expand(spec.action.dim))
    getattr(normaliser, f"{ACTION}_offset").copy_(torch.as_tensor(offset).expand(spec.action.dim))
    return Policy(network, normaliser, steps).eval()


def flow(seed: int = 0, **changes: Any) -> Policy:
    """A flow transformer; ``scale``, ``offset`` and ``steps`` go to `policy`, the rest changes the contract."""
    own = {key: changes.pop(key) for key in ("scale", "offset", "steps") if key in changes}
    return policy(FlowDiT, FlowDiTConfig(32, 1, 2, 1), dataclasses.replace(SPEC, **changes), seed, **own)


def diffusion(seed: int = 1, **changes: Any) -> Policy:
    """A diffusion U-Net that sees the corners, otherwise as `flow`."""
    own = {key: changes.pop(key) for key in ("scale", "offset", "steps") if key in changes}
    spec = dataclasses.replace(SPEC, observations=(CORNERS,), **changes)
    return policy(UNet, UNetConfig((8, 16)), spec, seed, **own)


def request(spec: Spec, seed: int = 0) -> tuple[dict[str, Array], Array, Array, Array]:
    """Arguments of `act` that hold on to nothing."""
    rng = np.random.default_rng(seed)
    observation = {f.name: rng.uniform(-1, 1, (spec.history, *f.shape)).astype(np.float32) for f in spec.observations}
    noise = rng.standard_normal(spec.noise_shape, dtype=np.float32)
    return observation, noise, np.zeros((spec.horizon, spec.action.dim), np.float32), np.zeros(spec.horizon, np.float32)


def seen_by(parent: Policy, observation: dict[str, Array]) -> dict[str, Array]:
    """What one parent sees of the observation of a composition."""
    return {f.name: observation[f.name][-parent.spec.history :] for f in parent.spec.observations}
