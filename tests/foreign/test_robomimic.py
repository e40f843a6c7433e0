"""robomimic checkpoints: what the real robomimic answers (tests/parity), and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_weights import random_weights
from safetensors.torch import load_file
from torch import Tensor

from policies.flow import consistent, sde, solve
from policies.foreign.pickles import Checkpoint
from policies.foreign.robomimic import build, load
from policies.norm import ACTION
from policies.policy import Policy
from policies.spec import ContractError

REFERENCE = Path(__file__).parent / "reference/robomimic"
STATE, CAMERAS = REFERENCE / "state", REFERENCE / "cameras"
VARIANTS = json.loads((STATE / "variants.json").read_text())


def observation(policy: Policy, answers: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The reference's raw observations as our contract wants them: images as (C, H, W) in [0, 1]."""
    seen = {feature.name: answers[feature.name].numpy() for feature in policy.spec.observations}
    return {k: np.moveaxis(v, -1, 1) / np.float32(255) if v.dtype == np.uint8 else v for k, v in seen.items()}


def plan(policy: Policy, answers: dict[str, Tensor]) -> Tensor:
    """The chunk for the reference's noise, nothing held."""
    spec = policy.spec
    free = np.zeros((spec.horizon, spec.action.dim), np.float32), np.zeros(spec.horizon, np.float32)
    return torch.from_numpy(policy.act(observation(policy, answers), answers["noise"][0, 0].numpy(), *free))


@torch.inference_mode()
def ancestral(policy: Policy, answers: dict[str, Tensor]) -> Tensor:
    """The same chunk by DDPM's sampler, with the reference's fresh noise."""
    batch = {name: torch.from_numpy(value)[None] for name, value in observation(policy, answers).items()}
    field = policy.head.bind(policy.normaliser(batch))
    first, *fresh = answers["noise"]
    remaining, begin = iter(fresh), policy.grid[0]
    start = first * (begin**2 + (1 - begin) ** 2) ** 0.5
    actions = solve(sde(consistent(field), lambda _: next(remaining)), start, policy.grid)[0, policy.spec.past :]
    return policy.normaliser.restore(ACTION, actions)


def with_settings(file: Checkpoint, change: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with some settings, given by dotted paths, changed."""
    settings = json.loads(file.root["config"])
    for path, value in change.items():
        *folders, name = path.split(".")
        place = settings
        for folder in folders:
            place = place[folder]
        place[name] = value
    return file.root | {"config": json.dumps(settings)}


def agree(ours: Tensor, theirs: Tensor) -> None:
    size = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours / size, theirs / size, rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", range(len(VARIANTS)), ids=str)
def test_the_chunk_is_that_of_robomimic(index: int) -> None:
    file, answers = Checkpoint(STATE / "model.pth"), load_file(STATE / "answers.safetensors")
    variant = dict(VARIANTS[index])
    sampler = variant.pop("sampler")
    changes = {f"algo.{name}.enabled": name == sampler for name in ("ddim", "ddpm")}
    changes |= {f"algo.{sampler}.{name}": value for name, value in variant.items()}
    steps = 20 if sampler == "ddpm" else 5
    changes |= {f"algo.{sampler}.num_train_timesteps": 20, f"algo.{sampler}.num_inference_timesteps": steps}
    policy = build(with_settings(file, changes), file.tensors(file.root["model"]["ema"], "policy."))
    agree((plan if sampler == "ddim" else ancestral)(policy, answers), answers[f"actions_{index}"])


def test_images_are_seen_as_robomimic_sees_them() -> None:
    file, answers = Checkpoint(CAMERAS / "model.pth"), load_file(CAMERAS / "answers.safetensors")
    tensors = file.tensors(file.root["model"]["ema"])
    drawn = random_weights({name: tuple(value.shape) for name, value in tensors.items()})
    kept = {k: v if k.endswith("temperature") else torch.from_numpy(drawn[k]) for k, v in tensors.items()}
    policy = build(file.root, {name.removeprefix("policy."): value for name, value in kept.items()})
    assert [feature.shape for feature in policy.spec.observations] == [(3, 52, 50), (4,), (3, 52, 50)]
    agree(plan(policy, answers), answers["actions_0"])


def test_the_contract_says_what_the_checkpoint_says() -> None:
    policy = load(STATE / "model.pth")
    spec = policy.spec
    assert [(feature.name, feature.shape, feature.unit) for feature in spec.observations] == [
        ("object", (4,), ""),
        ("robot0_eef_pos", (3,), ""),
    ]
    assert spec.action.names == ("dx", "dy", "dz", "drx", "dry", "drz", "gripper_close")
    assert (spec.rate_hz, spec.history, spec.past, spec.horizon) == (20.0, 2, 1, 15)
    assert policy.steps == 5
    assert policy.normaliser.restore(ACTION, -torch.ones(7)).tolist() == pytest.approx(spec.action.low)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algo.unet.enabled": False}, "algo.unet.enabled is False"),
        ({"observation.modalities.goal.low_dim": ["object"]}, "observation.modalities.goal is \\['object'\\]"),
        ({"observation.modalities.obs.depth": ["near"]}, "other than low_dim and rgb is \\['near'\\]"),
        ({"observation.encoder.rgb.core_kwargs.backbone_class": "R3MConv"}, "backbone_class is 'R3MConv'"),
        ({"observation.encoder.rgb.obs_randomizer_kwargs.crop_height": 45}, "robomimic rounds its odd margin down"),
        ({"train.action_config.actions.format": "rot_6d"}, "actions.format is 'rot_6d'"),
        ({"algo.ddim.steps_offset": 1}, "steps_offset is 1"),
        ({"algo.ddim.timestep_spacing": "trailing"}, "timestep_spacing is 'trailing', only 'leading'"),
        ({"algo.ddim.set_alpha_to_one": False}, "set_alpha_to_one is False"),
        ({"algo.ddim.rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        ({"algo.ddim.beta_schedule": "sigmoid"}, "noise table 'sigmoid'"),
        ({"algo.ddim.prediction_type": "score"}, "prediction 'score'"),
        ({"algo.horizon": {}}, "no 'algo.horizon.observation_horizon'"),
        ({"algo.horizon.observation_horizon": 3}, "weights do not fit"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    file = Checkpoint(CAMERAS / "model.pth")
    with pytest.raises(ContractError, match=message):
        build(with_settings(file, change), file.tensors(file.root["model"]["ema"], "policy."))


def test_another_algorithm_is_refused(tmp_path: Path) -> None:
    torch.save({"algo_name": "bc", "model": {}}, tmp_path / "bc.pth")
    with pytest.raises(ContractError, match="holds a 'bc' policy"):
        load(tmp_path / "bc.pth")


def test_another_network_is_refused(tmp_path: Path) -> None:
    file = Checkpoint(STATE / "model.pth")
    with pytest.raises(ContractError, match=r"there is no 'unet\.down_modules"):
        build(file.root, {"mlp.weight": torch.zeros(2)})
