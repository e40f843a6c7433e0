"""U-Net policies trained with diffusion_policy (arXiv 2303.04137), read from a checkpoint without its packages.

Low-dimensional policies and hybrid image policies, whose encoder is robomimic's, with the observation as global
condition. Measured against the original (``tests/parity/diffusion_policy_reference.py``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policies.foreign.lerobot import Config
from policies.foreign.pickles import Checkpoint, entry, plain
from policies.foreign.robomimic import filled, head_weights, limits, noise_settings, sizes
from policies.norm import ACTION, Normaliser
from policies.policy import Policy
from policies.spec import ActionSpec, ContractError, Feature, Spec

LOW_DIM, HYBRID = "DiffusionUnetLowdimPolicy", "DiffusionUnetHybridImagePolicy"
NORMALISER = "normalizer.params_dict."


def load(path: Path) -> Policy:
    """Read a policy of diffusion_policy; the averaged weights where there are any.

    The policy samples deterministically (DDIM) at the noise levels the checkpoint's own sampler visits. Units, frames,
    names of the action and the rate are not stated there. The observation vector of a low-dimensional policy is called
    by its parts where they are known, ``"object+robot0_eef_pos"``, otherwise ``"obs"``. An image policy that would see
    random crops at test time (without ``eval_fixed_crop``) sees the middle.

    Args:
        path: ``.ckpt`` file.

    Raises:
        ContractError: Another kind of policy, an unsupported part, which is named, or a damaged file.
    """
    file = Checkpoint(path)
    modules = entry(file.root, "state_dicts")
    return build(plain(entry(file.root, "cfg")), file.tensors(modules.get("ema_model") or entry(modules, "model")))


def build(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Policy:
    """Put a policy together from the settings and the tensors of a checkpoint."""
    policy = entry(settings, "policy")
    _refuse_unsupported(policy)
    hybrid = _class(policy) == HYBRID
    features = _image_features(policy) if hybrid else (_vector(settings),)
    dim = math.prod(entry(policy, "shape_meta.action.shape")) if hybrid else entry(policy, "action_dim")
    weights = head_weights(tensors, "model.", "obs_encoder.", features)
    sampler = entry(policy, "noise_scheduler")
    config = Config(
        **sizes(weights),
        **noise_settings(sampler),
        n_groups=(policy if hybrid else entry(policy, "model")).get("n_groups", 8),
        crop_shape=policy.get("crop_shape") and tuple(policy["crop_shape"]),
    )
    named = {feature.name if hybrid else "obs": feature for feature in features}
    normaliser = _normaliser(tensors, named, dim)
    action = ActionSpec(("",) * dim, ("",) * dim, "", **limits(normaliser, config))
    past, length = _chunk(policy, hybrid)
    spec = Spec(features, action, 0.0, entry(policy, "n_obs_steps"), length - past, past)
    steps = policy.get("num_inference_steps") or config.num_train_timesteps
    return Policy(filled(spec, config, weights), normaliser, steps).eval()


def _class(settings: Mapping[str, Any]) -> str:
    return str(entry(settings, "_target_")).rpartition(".")[2]


def _refuse_unsupported(policy: Mapping[str, Any]) -> None:
    """Refuse what the head has no part for, by name."""
    found = {
        "policy": (_class(policy), (LOW_DIM, HYBRID)),
        "noise_scheduler": (_class(entry(policy, "noise_scheduler")), ("DDPMScheduler", "DDIMScheduler")),
        "obs_as_local_cond": (bool(policy.get("obs_as_local_cond", False)), (False,)),
        "obs_as_global_cond": (policy.get("obs_as_global_cond", _class(policy) == HYBRID), (True,)),
    }
    for name, (value, wanted) in found.items():
        if value not in wanted:
            raise ContractError(f"{name} is {value}, only {' or '.join(map(str, wanted))} can be imported")
    text = json.dumps(policy)
    if "${" in text:
        reference = text[text.index("${") :].partition("}")[0]
        raise ContractError(f"the settings refer to '{reference}}}'; save the checkpoint after OmegaConf.resolve(cfg)")


def _image_features(policy: Mapping[str, Any]) -> tuple[Feature, ...]:
    observed = entry(policy, "shape_meta.obs")
    kinds = {name: item.get("type", "low_dim") for name, item in observed.items()}
    unknown = {name: kind for name, kind in kinds.items() if kind not in ("low_dim", "rgb")}
    if unknown:
        raise ContractError(f"observations {unknown} cannot be imported, only low_dim and rgb")
    return tuple(Feature(name, tuple(item["shape"]), "", "") for name, item in observed.items())


def _vector(settings: Mapping[str, Any]) -> Feature:
    """The observation of a low-dimensional policy, named by its parts where the task lists them."""
    parts = (settings.get("task") or {}).get("obs_keys") or ["obs"]
    return Feature("+".join(parts), (entry(settings, "policy.obs_dim"),), "", "")


def _chunk(policy: Mapping[str, Any], hybrid: bool) -> tuple[int, int]:
    """Actions before the first that is executed, and actions of the network in all."""
    if not hybrid and policy.get("pred_action_steps_only"):
        return 0, entry(policy, "n_action_steps")
    history = entry(policy, "n_obs_steps")
    # Without this convention an action belongs to the observation it leads to, one step later.
    same_step = hybrid or policy.get("oa_step_convention", False)
    return history - 1 if same_step else history, entry(policy, "horizon")


def _normaliser(tensors: Mapping[str, Tensor], features: Mapping[str, Feature], dim: int) -> Normaliser:
    """Turn ``value * scale + offset`` into the offsets and scales of features, which are given by their names there."""
    shapes = {key: (feature.name, feature.shape) for key, feature in features.items()} | {ACTION: (ACTION, (dim,))}
    offsets, scales = {}, {}
    for key, (name, shape) in shapes.items():
        scale, offset = (tensors.get(f"{NORMALISER}{key}.{part}", torch.empty(0)) for part in ("scale", "offset"))
        if {scale.numel(), offset.numel()} - {1, math.prod(shape)}:
            raise ContractError(
                f"the normaliser has {scale.numel()} scales and {offset.numel()} offsets for '{key}', whose shape is "
                f"{shape}; take a checkpoint of a training run, which fits them"
            )
        scales[name] = (1 / scale).expand(math.prod(shape)).reshape(shape)
        offsets[name] = (-offset / scale).expand(math.prod(shape)).reshape(shape)
    return Normaliser(offsets, scales)
