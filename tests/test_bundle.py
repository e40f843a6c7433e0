"""Bundles: what is exported is what runs, and every damaged file is refused by name."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import resource
import stat
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from policies.archive import LIMIT, BundleError, pack
from policies.bundle import GOLDEN, GRAPH, MANIFEST, Bundle, Latency, Manifest, Sampler, is_si, write_bundle
from policies.chunk import hold_weights
from policies.export import ExportReport, export
from policies.flow import Estimate, from_velocity
from policies.head import Head
from policies.network import graph_inputs, graph_outputs
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import ActionSpec, Array, ContractError, Feature, Spec

STEPS, WIDTH = 3, 192
SPEC = Spec(
    observations=(
        Feature("pose", (3,), "m, rad", "odom"),
        Feature("grid", (2, 4), "1", "base_link"),
    ),
    action=ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-1.0, -2.0), (1.0, 2.0)),
    rate_hz=10.0,
    history=2,
    horizon=8,
)

Members = dict[str, bytes]


@dataclass(frozen=True)
class Config:
    """Chance of dropout, and whether the head draws noise of its own."""

    dropout: float = 0.5
    random: bool = False


class TinyHead(Head):
    """Small head with all that makes an export go wrong: batch normalisation, dropout, a time embedding."""

    Config = Config
    config: Config

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config)
        size = spec.history * sum(math.prod(feature.shape) for feature in spec.observations)
        self.context = nn.Sequential(nn.Linear(size, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(config.dropout))
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.inside, self.outside = nn.Linear(spec.action.dim, WIDTH), nn.Linear(WIDTH, spec.action.dim)

    def encode(self, observation: Mapping[str, Tensor]) -> Tensor:
        flat = [observation[feature.name].flatten(1) for feature in self.spec.observations]
        return self.context(torch.cat(flat, -1))

    def estimate(self, x: Tensor, t: Tensor, context: Tensor) -> Estimate:
        angles = t[:, None] * torch.arange(1, WIDTH // 2 + 1)
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        velocity = self.outside(torch.tanh(self.inside(x) + (context + time)[:, None]))
        return from_velocity(x, t, velocity + torch.rand_like(x) if self.config.random else velocity)


def make_policy(config: Config | None = None) -> Policy:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    samples = {f.name: rng.normal(3, 5, (200, *f.shape)).astype(np.float32) for f in SPEC.observations}
    policy = Policy(TinyHead(SPEC, config or Config()), Normaliser.fit(SPEC, samples), STEPS)
    for _ in range(20):  # batch normalisation needs statistics that differ from its initial ones
        policy.head.encode({name: torch.randn(32, SPEC.history, *value.shape[1:]) for name, value in samples.items()})
    return policy


def draw(seed: int) -> tuple[dict[str, Array], Array, Array]:
    rng = np.random.default_rng(seed)
    observation = {f.name: rng.normal(3, 3, (SPEC.history, *f.shape)).astype(np.float32) for f in SPEC.observations}
    chunk = (SPEC.horizon, SPEC.action.dim)
    return observation, rng.standard_normal(chunk, np.float32), rng.uniform(-1, 1, chunk).astype(np.float32)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy()


@pytest.fixture(scope="module")
def report(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    torch.set_num_threads(1)
    provenance = {"recipe": "tiny", "dataset": "sha256:0", "seeds": [0]}
    return export(policy, tmp_path_factory.mktemp("bundle") / "tiny.kfb", provenance=provenance)


@pytest.fixture(scope="module")
def bundle(report: ExportReport) -> Bundle:
    return Bundle.load(report.path)


@pytest.fixture
def members(report: ExportReport) -> Members:
    with zipfile.ZipFile(report.path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sealed(members: Members, **changes: Any) -> Members:
    """A bundle whose hashes are right, so that only its content can be wrong."""
    manifest = Manifest.from_bytes(members[MANIFEST])
    hashes = Manifest.from_bytes(members[MANIFEST]).parts | {
        part: __import__("hashlib").sha256(members[part]).hexdigest() for part in (GRAPH, GOLDEN)
    }
    return members | {MANIFEST: dataclasses.replace(manifest, **{"parts": hashes, **changes}).to_bytes()}
