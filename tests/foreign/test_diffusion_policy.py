"""Checkpoints of diffusion_policy: what the original answers (tests/parity), and what is refused."""

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
from policies.foreign.diffusion_policy import build, load
from policies.foreign.pickles import Checkpoint, plain
from policies.norm import ACTION
from policies.policy import Policy
from policies.spec import ContractError

REFERENCE = Path(__file__).parent / "reference/diffusion_policy"
STATE, PICTURE = REFERENCE / "state", REFERENCE / "picture"
VARIANTS = json.loads((STATE / "variants.json").read_text())


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The checkpoint's settings with some of the policy's changed."""
    found = plain(Checkpoint(folder / "latest.ckpt").root["cfg"])
    changes = {k: found["policy"][k] | v if isinstance(v, dict) else v for k, v in changes.items()}
    return found | {"policy": found["policy"] | changes}


def tensors(folder: Path) -> dict[str, Tensor]:
    file = Checkpoint(folder / "latest.ckpt")
    return file.tensors(file.root["state_dicts"]["ema_model"])


def observation(policy: Policy, answers: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The reference's observations, which are stored in 255ths."""
    names = {feature.name: feature.name if feature.name in answers else "obs" for feature in policy.spec.observations}
    return {ours: (answers[theirs] / 255).numpy() for ours, theirs in names.items()}


def plan(policy: Policy, answers: dict[str, Tensor]) -> Tensor:
    """The chunk for the reference's noise, nothing held."""
    spec = policy.spec
    noise = answers["noise"][0, 0, : spec.past + spec.horizon].numpy()
    free = np.zeros((spec.horizon, spec.action.dim), np.float32), np.zeros(spec.horizon, np.float32)
    return torch.from_numpy(policy.act(observation(policy, answers), noise, *free))


@torch.inference_mode()
def ancestral(policy: Policy, answers: dict[str, Tensor]) -> Tensor:
    """The same chunk by DDPM's sampler, with the reference's fresh noise."""
    spec = policy.spec
    batch = {name: torch.from_numpy(value)[None] for name, value in observation(policy, answers).items()}
    field = policy.head.bind(policy.normaliser(batch))
    first, *fresh = answers["noise"][:, :, : spec.past + spec.horizon]
    remaining, begin = iter(fresh), policy.grid[0]
    start = first * (begin**2 + (1 - begin) ** 2) ** 0.5
    actions = solve(sde(consistent(field), lambda _: next(remaining)), start, policy.grid)[0, spec.past :]
    return policy.normaliser.restore(ACTION, actions)


def agree(ours: Tensor, theirs: Tensor) -> None:
    size = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours / size, theirs / size, rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", range(len(VARIANTS)), ids=str)
def test_the_chunk_is_that_of_the_original(index: int) -> None:
    variant, answers = VARIANTS[index], load_file(STATE / "answers.safetensors")
    policy = build(settings(STATE, **variant), tensors(STATE))
    straight = "DDIM" in variant.get("noise_scheduler", {}).get("_target_", "")
    actions = (plan if straight else ancestral)(policy, answers)
    agree(actions, answers[f"actions_{index}"][policy.spec.past :])


def test_images_are_seen_as_the_original_sees_them() -> None:
    variants = json.loads((PICTURE / "variants.json").read_text())
    stored, answers = tensors(PICTURE), load_file(PICTURE / "answers.safetensors")
    drawn = random_weights({name: tuple(value.shape) for name, value in stored.items()})
    fixed = ("temperature", "scale", "offset")
    kept = {k: v if k.endswith(fixed) else torch.from_numpy(drawn[k]) for k, v in stored.items()}
    policy = build(settings(PICTURE, **variants[0]), kept)
    assert [feature.name for feature in policy.spec.observations] == ["image", "agent_pos"]
    agree(plan(policy, answers), answers["actions_0"][policy.spec.past :])


def test_the_contract_says_what_the_checkpoint_says() -> None:
    policy = load(STATE / "latest.ckpt")
    (vector,) = policy.spec.observations
    assert (vector.name, vector.shape) == ("object+robot0_eef_pos+robot0_eef_quat+robot0_gripper_qpos", (19,))
    assert (policy.spec.history, policy.spec.past, policy.spec.horizon, policy.spec.rate_hz) == (2, 1, 15, 0)
    assert policy.spec.action.names == ("",) * 7
    assert policy.steps == 5


@pytest.mark.parametrize(
    ("change", "past", "horizon"),
    [({}, 1, 15), ({"oa_step_convention": False}, 2, 14), ({"pred_action_steps_only": True}, 0, 8)],
)
def test_the_chunk_begins_where_the_original_executes_it(change: dict[str, Any], past: int, horizon: int) -> None:
    spec = build(settings(STATE, **change), tensors(STATE)).spec
    assert (spec.past, spec.horizon) == (past, horizon)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_target_": "x.DiffusionTransformerLowdimPolicy"}, "policy is DiffusionTransformerLowdimPolicy"),
        ({"obs_as_global_cond": False, "obs_as_local_cond": True}, "obs_as_local_cond is True"),
        ({"obs_as_global_cond": False}, "obs_as_global_cond is False"),
        ({"noise_scheduler": {"_target_": "diffusers.PNDMScheduler"}}, "noise_scheduler is PNDMScheduler"),
        ({"noise_scheduler": {"thresholding": True}}, "thresholding is True"),
        ({"noise_scheduler": {"timestep_spacing": "trailing"}}, "timestep_spacing is 'trailing'"),
        ({"noise_scheduler": {"set_alpha_to_one": False}}, "set_alpha_to_one is False"),
        ({"noise_scheduler": {"rescale_betas_zero_snr": True}}, "rescale_betas_zero_snr is True"),
        ({"horizon": "${horizon}"}, r"refer to '\$\{horizon\}'; save the checkpoint after OmegaConf.resolve"),
        ({"obs_dim": 20}, "normaliser has 19 scales and 19 offsets for 'obs'"),
        ({"n_obs_steps": 1}, "weights do not fit"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        build(settings(STATE, **change), tensors(STATE))


def test_other_observations_are_refused() -> None:
    changed = settings(PICTURE)
    changed["policy"]["shape_meta"]["obs"]["image"]["type"] = "depth"
    with pytest.raises(ContractError, match=r"observations {'image': 'depth'}"):
        build(changed, tensors(PICTURE))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ContractError, match="no 'state_dicts'"):
        load(tmp_path / "other.ckpt")
