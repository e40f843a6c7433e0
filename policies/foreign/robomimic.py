"""Diffusion policies trained with robomimic (0.5 and later), read from a checkpoint without robomimic.

Its observation encoder and its U-Net compute what LeRobot's do, so the head is the same. diffusion_policy takes the
encoder from robomimic and shares what is here. Measured against robomimic 0.5
(``tests/parity/robomimic_reference.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policies.foreign import unet, vision
from policies.foreign.lerobot import UNLIMITED, Config, DiffusionPolicy, take, under
from policies.foreign.pickles import Checkpoint, entry, plain
from policies.norm import ACTION, Normaliser
from policies.policy import Policy
from policies.spec import ActionSpec, ContractError, Feature, Spec

POSE_DELTA = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper_close")
"""Components of robosuite's operational space controller with a gripper, as our environments name them."""

USUAL = {
    "steps_offset": 0,
    "timestep_spacing": "leading",
    "set_alpha_to_one": True,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "thresholding": False,
}
"""Settings of a noise scheduler that decide which levels it visits and how it ends, as `Schedule` does it."""

Size = tuple[int, int]


def load(path: Path) -> Policy:
    """Read a diffusion policy of robomimic; the averaged weights where there are any.

    The policy samples deterministically (DDIM) at the noise levels the checkpoint's own sampler visits. Units and
    frames are not stated there; the rate is the control frequency of the simulator it was trained in.

    Args:
        path: ``.pth`` file.

    Raises:
        ContractError: Another algorithm, an unsupported part, which is named, or a damaged file.
    """
    file = Checkpoint(path)
    algorithm = entry(file.root, "algo_name")
    if algorithm != "diffusion_policy":
        raise ContractError(f"{path} holds a '{algorithm}' policy, only 'diffusion_policy' samples a flow; train one")
    model = entry(file.root, "model")
    return build(file.root, file.tensors(model.get("ema") or entry(model, "nets"), "policy."))


def build(root: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Policy:
    """Put a policy together from what a checkpoint holds, as `pickles` reads it, and the tensors of its networks."""
    settings = json.loads(entry(root, "config"))
    _refuse_unsupported(settings)
    shapes = {name: tuple(shape) for name, shape in plain(entry(root, "shape_metadata.all_shapes")).items()}
    seen = [name for names in entry(settings, "observation.modalities.obs").values() for name in names]
    features = tuple(Feature(name, shape, "", "") for name, shape in shapes.items() if name in seen)

    weights = head_weights(tensors, "noise_pred_net.", "obs_encoder.nets.obs.", features)
    crop = _crop(entry(settings, "observation.encoder.rgb"), features)
    sampler = entry(settings, "algo.ddpm" if entry(settings, "algo.ddpm.enabled") else "algo.ddim")
    config = Config(**sizes(weights), **noise_settings(sampler), crop_shape=crop)

    normaliser = _normaliser(root, settings, features)
    action, rate = _action(normaliser, config, plain(root.get("env_metadata") or {}))
    history, length = (entry(settings, f"algo.horizon.{name}_horizon") for name in ("observation", "prediction"))
    spec = Spec(features, action, rate, history, length - history + 1, past=history - 1)
    return Policy(filled(spec, config, weights), normaliser, entry(sampler, "num_inference_timesteps")).eval()


def noise_settings(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """Noise schedule from the settings of a diffusers scheduler, under the names of `Config`.

    Raises:
        ContractError: The scheduler does something `policies.foreign.schedule` does not.
    """
    for name, usual in USUAL.items():
        if sampler.get(name, usual) != usual:
            raise ContractError(f"noise scheduler: {name} is {sampler[name]!r}, only {usual!r} can be imported")
    names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
    optional = ("clip_sample", "clip_sample_range")
    entry(sampler, "num_train_timesteps"), entry(sampler, "beta_schedule")
    return {name: sampler[name] for name in (*names, *optional) if name in sampler}


def head_weights(
    tensors: Mapping[str, Tensor], network: str, encoder: str, features: Sequence[Feature]
) -> dict[str, Tensor]:
    """Name the tensors of a checkpoint as the head does.

    Args:
        tensors: All tensors of the policy.
        network: Prefix of the U-Net.
        encoder: Prefix of the observation encoder.
        features: Observed features.
    """
    rest = dict(tensors)
    weights = under("unet.", unet.renamed(take(rest, network)))
    for index, name in enumerate(images(features)):
        # The parts are stored twice, by name and as links of a chain: backbone, pool, flatten, linear layer.
        links = take(rest, f"{encoder}obs_nets.{name}.nets.")
        temperature = links.get("1.temperature", torch.ones(()))
        keypoints = {key: value / temperature for key, value in take(links, "1.nets.").items()}
        weights |= under(f"encoders.{index}.backbone.", vision.renamed(take(links, "0.nets.")))
        weights |= under(f"encoders.{index}.pool.nets.", keypoints)
        weights |= under(f"encoders.{index}.out.", take(links, "3."))
    return weights


def sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the networks, read off the tensors of a head, under the names of `Config`.

    Raises:
        ContractError: A tensor that every such head has is missing.
    """
    block = "unet.down_modules.{}.0.conv1.block.0.weight"
    try:
        first = weights[block.format(0)]
        found: dict[str, Any] = {
            "down_dims": tuple(
                len(weights[block.format(i)]) for i in range(len(weights)) if block.format(i) in weights
            ),
            "kernel_size": first.shape[2],
            "diffusion_step_embed_dim": weights["unet.diffusion_step_encoder.1.weight"].shape[1],
            "use_film_scale_modulation": len(weights["unet.down_modules.0.0.cond_encoder.1.bias"]) == 2 * len(first),
        }
        if any(name.startswith("encoders.") for name in weights):
            found["use_separate_rgb_encoder_per_camera"] = True
            found["spatial_softmax_num_keypoints"] = len(weights["encoders.0.pool.nets.weight"])
            found["use_group_norm"] = "encoders.0.backbone.bn1.running_mean" not in weights
    except KeyError as error:
        raise ContractError(f"the checkpoint's networks are of another kind: there is no {error}") from error
    return found


def filled(spec: Spec, config: Config, weights: Mapping[str, Tensor]) -> DiffusionPolicy:
    """Build the head and load its weights.

    Raises:
        ContractError: They do not fit.
    """
    head = DiffusionPolicy(spec, config)
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise ContractError(f"the checkpoint's weights do not fit its settings: {error}") from error
    return head


def images(features: Sequence[Feature]) -> dict[str, Size]:
    """Height and width of the images among ``features``, by name."""
    return {feature.name: feature.shape[1:] for feature in features if len(feature.shape) == 3}


def limits(normaliser: Normaliser, config: Config) -> dict[str, tuple[float, ...]]:
    """Smallest and largest action the sampler can reach."""
    offset, scale = (torch.tensor(normaliser.statistics()[ACTION][name]) for name in ("offset", "scale"))
    if config.bound is None:
        return {"low": (-UNLIMITED,) * len(offset), "high": (UNLIMITED,) * len(offset)}
    low, high = offset - config.bound * scale, offset + config.bound * scale
    return {"low": tuple(low.tolist()), "high": tuple(high.tolist())}


def _refuse_unsupported(settings: Mapping[str, Any]) -> None:
    """Refuse what the head has no part for, by name."""
    observed, goals = (entry(settings, f"observation.modalities.{kind}") for kind in ("obs", "goal"))
    rgb = entry(settings, "observation.encoder.rgb")
    core = rgb.get("core_kwargs") or {}
    others = [name for kind, names in observed.items() for name in names if kind not in ("low_dim", "rgb")]
    found = {
        "algo.unet.enabled": (entry(settings, "algo.unet.enabled"), True),
        "observation.modalities.goal": ([name for names in goals.values() for name in names], []),
        "observation.modalities.obs other than low_dim and rgb": (others, []),
        "observation.encoder.low_dim.core_class": (entry(settings, "observation.encoder.low_dim.core_class"), None),
    }
    if observed.get("rgb"):
        found |= {
            "observation.encoder.rgb.core_class": (rgb.get("core_class"), "VisualCore"),
            "core_kwargs.backbone_class": (core.get("backbone_class", "ResNet18Conv"), "ResNet18Conv"),
            "core_kwargs.pool_class": (core.get("pool_class", "SpatialSoftmax"), "SpatialSoftmax"),
        }
    for name, action in (entry(settings, "train").get("action_config") or {}).items():
        found[f"train.action_config.{name}.format"] = (action.get("format"), None)
    for name, (value, wanted) in found.items():
        if value != wanted:
            raise ContractError(f"{name} is {value!r}, only {wanted!r} can be imported; train such a policy")


def _crop(rgb: Mapping[str, Any], features: Sequence[Feature]) -> Size | None:
    """Size of the centre crop at test time."""
    stored = rgb.get("obs_randomizer_class"), rgb.get("obs_randomizer_kwargs")
    classes, options = (value if isinstance(value, list) else [value or {}] for value in stored)
    if "CropRandomizer" not in classes or not images(features):
        return None
    chosen = options[classes.index("CropRandomizer")]
    size = (chosen.get("crop_height", 76), chosen.get("crop_width", 76))
    for name, have in images(features).items():
        if any((a - b) // 2 != round((a - b) / 2) for a, b in zip(have, size, strict=True)):
            raise ContractError(
                f"the crop {size} of '{name}' {have} is not in the middle: robomimic rounds its odd margin down; "
                "train with an even margin"
            )
    return size


def _normaliser(root: Any, settings: Mapping[str, Any], features: Sequence[Feature]) -> Normaliser:
    """Offsets and scales as robomimic applies them; without statistics values stay as they are."""
    observed = plain(root.get("obs_normalization_stats") or {})
    actions = plain(root.get("action_normalization_stats") or {})
    if any(name in observed for name in images(features)):
        raise ContractError("images with train.hdf5_normalize_obs cannot be imported; train without it")
    parts = {}
    for kind, default in (("offset", 0.0), ("scale", 1.0)):
        parts[kind] = {
            feature.name: torch.tensor(entry(observed, f"{feature.name}.{kind}")).reshape(feature.shape)
            if observed and len(feature.shape) != 3
            else torch.full(feature.shape, default)
            for feature in features
        }
        keys = entry(settings, "train.action_keys") if actions else []
        stored = [torch.tensor(actions[key][kind]).flatten() for key in keys]
        default_action = torch.full((entry(root, "shape_metadata.ac_dim"),), default)
        parts[kind][ACTION] = torch.cat(stored) if stored else default_action
    return Normaliser(parts["offset"], parts["scale"])


def _action(normaliser: Normaliser, config: Config, simulator: Mapping[str, Any]) -> tuple[ActionSpec, float]:
    """Action and rate, as far as the settings of the simulator state them."""
    options = simulator.get("env_kwargs") or {}
    controller = options.get("controller_configs") or {}
    arm = (controller.get("body_parts") or {}).get("right", controller)
    reach = limits(normaliser, config)
    count = len(reach["low"])
    delta = arm.get("type") == "OSC_POSE" and arm.get("control_delta", arm.get("input_type") == "delta")
    names = POSE_DELTA if delta and count == len(POSE_DELTA) else ("",) * count
    return ActionSpec(names, ("",) * count, "", **reach), float(options.get("control_freq") or 0)
