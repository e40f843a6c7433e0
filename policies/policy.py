"""A policy: a trained head, its normaliser and its sampler. It is what is evaluated, exported and launched."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from policies.files import replace_file
from policies.flow import hold, solve, straight, uniform
from policies.head import Head, find_head, head_name
from policies.norm import ACTION, Normaliser
from policies.spec import Array, ContractError, Observation, Spec

WEIGHTS, SETTINGS = "policy.safetensors", "policy.json"


class Policy(nn.Module):
    """Plans action chunks in SI units.

    Args:
        head: Action head; works in normal units.
        normaliser: Maps between the two.
        steps: Denoising steps on a uniform time grid.
        temperature: Scale of the start noise; below 1 chunks are less diverse and more typical.
    """

    def __init__(self, head: Head, normaliser: Normaliser, steps: int = 4, temperature: float = 1.0) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps={steps}: sampling needs at least one step")
        self.head, self.normaliser, self.steps, self.temperature = head, normaliser, steps, temperature

    @property
    def spec(self) -> Spec:
        """The contract the head was built for."""
        return self.head.spec

    def plan(self, observation: Mapping[str, Tensor], noise: Tensor, committed: Tensor, hold_weights: Tensor) -> Tensor:
        """Plan a batch of chunks; this is the graph that is exported.

        Args:
            observation: ``{name: (B, T_obs, *shape)}``, SI units.
            noise: ``(B, H, A)`` standard normal sample.
            committed: ``(B, H, A)`` actions to hold on to, SI units.
            hold_weights: ``(B, H)`` in [0, 1].

        Returns:
            ``(B, H, A)`` actions in SI units, within the limits of the contract.
        """
        field = self.head.bind(self.normaliser(observation))
        field = hold(field, self.normaliser.normalise(ACTION, committed), hold_weights)
        actions = self.normaliser.restore(ACTION, solve(straight(field), self.temperature * noise, uniform(self.steps)))
        low, high = (
            torch.tensor(bound, device=noise.device) for bound in (self.spec.action.low, self.spec.action.high)
        )
        return torch.minimum(torch.maximum(actions, low), high)

    @torch.inference_mode()
    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        """Plan one chunk from numpy arrays; see `policies.spec.ChunkPolicy`.

        Raises:
            ContractError: The observation does not fit the contract.
        """
        self.spec.check(observation)
        batch = {name: torch.from_numpy(np.float32(value))[None] for name, value in observation.items()}
        rest = (torch.from_numpy(np.float32(value))[None] for value in (noise, committed, hold))
        return self.plan(batch, *rest)[0].numpy()

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON) into ``folder``, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "head": head_name(self.head),
            "config": dataclasses.asdict(self.head.config),
            "spec": self.spec.to_json(),
            "steps": self.steps,
            "temperature": self.temperature,
        }
        replace_file(folder / WEIGHTS, save(self.state_dict()))
        replace_file(folder / SETTINGS, json.dumps(settings, indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> Policy:
        """Read a policy written by `save`.

        Raises:
            ContractError: A file is missing or the weights do not fit the settings.
        """
        try:
            settings = json.loads((folder / SETTINGS).read_text())
            weights = load_file(folder / WEIGHTS)
        except FileNotFoundError as error:
            raise ContractError(f"{folder} holds no policy: {error.filename} is missing; train one first") from error
        spec, head = Spec.from_json(settings["spec"]), find_head(settings["head"])
        sampler = {key: settings[key] for key in ("steps", "temperature")}
        policy = cls(head(spec, head.Config(**settings["config"])), Normaliser.identity(spec), **sampler)
        try:
            policy.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise ContractError(f"{folder / WEIGHTS} does not fit {SETTINGS}: {error}") from error
        return policy.eval()
