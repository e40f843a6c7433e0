"""A checkpoint of another project composes with a policy of our own: kinds, chunks, units and names differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from parents import policy, request, seen_by
from random_weights import random_weights
from safetensors.torch import save_file

import kinoflow
from policies.flowdit import Config, FlowDiT
from policies.norm import ACTION
from policies.policy import Policy
from policies.spec import ActionSpec, Feature, Spec

REFERENCE = Path(__file__).parent / "reference" / "lerobot" / "state"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as LeRobot saves it."""
    folder = shutil.copytree(REFERENCE, tmp_path_factory.mktemp("lerobot") / "state")
    shapes = json.loads((folder / "tensors.json").read_text())
    save_file({k: torch.from_numpy(v) for k, v in random_weights(shapes).items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def foreign(checkpoint: Path) -> Policy:
    loaded = kinoflow.load(f"lerobot:{checkpoint}")
    assert isinstance(loaded, Policy)
    return loaded


@pytest.fixture(scope="module")
def native(foreign: Policy) -> Policy:
    """A flow transformer of the same robot with half the action scale, a shorter chunk and a stated contract."""
    sample = foreign.spec.observations[0]
    names = tuple(f"a{index}" for index in range(foreign.spec.action.dim))
    action = ActionSpec(names, ("1",) * len(names), "table", (-1e3,) * len(names), (1e3,) * len(names))
    spec = Spec((Feature(sample.name, sample.shape, "1", "table"),), action, 10.0, history=1, horizon=4)
    made = policy(FlowDiT, Config(16, 1, 2, 1), spec, seed=0)
    for part, change in (("scale", 0.5), ("offset", 1.0)):
        buffer = getattr(made.normaliser, f"{ACTION}_{part}")
        buffer.copy_(change * getattr(foreign.normaliser, f"{ACTION}_{part}"))
    return made


def test_what_the_checkpoint_leaves_unstated_comes_from_the_other_parent(foreign: Policy, native: Policy) -> None:
    both = kinoflow.compose([native, foreign], weights=[0.6, 0.4])
    assert both.spec.action.names == native.spec.action.names and both.spec.rate_hz == 10.0
    assert (both.spec.past, both.spec.horizon) == (foreign.spec.past, foreign.spec.horizon)
    assert both.spec.observations[0] == native.spec.observations[0]
    observation, noise, committed, hold = request(both.spec)
    assert np.isfinite(both.act(observation, noise, committed, hold)).all()
    assert both.disagreement > 0


def test_nearly_all_weight_on_the_checkpoint_is_the_checkpoint(foreign: Policy, native: Policy) -> None:
    both = kinoflow.compose([native, foreign], weights=[1e-6, 1 - 1e-6], steps=foreign.steps)
    observation, noise, committed, hold = request(both.spec)
    alone = foreign.act(seen_by(foreign, observation), noise, committed, hold)
    np.testing.assert_allclose(both.act(observation, noise, committed, hold), alone, rtol=1e-3, atol=1e-3)
