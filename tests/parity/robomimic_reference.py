"""Write what the real robomimic answers for small diffusion policies.

Runs in an environment of its own that has robomimic (first used with commit d309eae, torch 2.13.0, diffusers 0.11.1):
PYTHONPATH=tests/foreign python tests/parity/robomimic_reference.py tests/foreign/reference/robomimic
"""

from __future__ import annotations

import functools
import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import robomimic.models.diffusion_policy_nets as networks
import robomimic.utils.file_utils as files
import robomimic.utils.obs_utils as observations
import torch
from random_weights import random_weights
from robomimic.algo import algo_factory
from robomimic.algo.algo import RolloutPolicy
from robomimic.config import config_factory
from robomimic.utils.train_utils import save_model
from safetensors.torch import save_file

HISTORY, HORIZON, ACTION_DIM = 2, 16, 7
LEVELS, STEPS = 20, 5
LOW_DIM = {"object": (4,), "robot0_eef_pos": (3,)}
IMAGE = (52, 50, 3)
STATE = {"low_dim": sorted(LOW_DIM)}
CAMERAS = {"low_dim": ["object"], "rgb": ["robot0_eye_in_hand_image", "agentview_image"]}
SIMULATOR = {
    "env_name": "Lift",
    "env_version": "1.5.1",
    "type": 1,
    "env_kwargs": {
        "control_freq": 20,
        "controller_configs": {
            "type": "BASIC",
            "body_parts": {"right": {"type": "OSC_POSE", "input_type": "delta", "output_max": [0.05] * 3 + [0.5] * 3}},
        },
    },
}
# With DDIM, the diffusers that robomimic pins takes a predicted sample for noise: not something to agree with.
SAMPLERS = [
    ("ddim", {"clip_sample": True}),
    ("ddim", {"clip_sample": False}),
    ("ddpm", {"clip_sample": True}),
    ("ddpm", {"clip_sample": False}),
    ("ddpm", {"clip_sample": True, "prediction_type": "sample"}),
    ("ddpm", {"clip_sample": False, "prediction_type": "sample"}),
]


def configuration(modalities: dict[str, list[str]], sampler: str, options: dict[str, Any]) -> Any:
    """robomimic's own defaults, but for sizes."""
    config = config_factory("diffusion_policy")
    with config.unlocked():
        for kind in ("low_dim", "rgb"):
            config.observation.modalities.obs[kind] = modalities.get(kind, [])
        rgb = config.observation.encoder.rgb
        rgb.core_kwargs.backbone_class, rgb.core_kwargs.pool_class = "ResNet18Conv", "SpatialSoftmax"
        rgb.core_kwargs.pool_kwargs = {"num_kp": 6, "temperature": 0.7}
        rgb.core_kwargs.feature_dimension = 12
        rgb.obs_randomizer_class = "CropRandomizer"
        rgb.obs_randomizer_kwargs = {"crop_height": 43, "crop_width": 46, "num_crops": 1, "pos_enc": False}
        horizon = config.algo.horizon
        horizon.observation_horizon, horizon.prediction_horizon = HISTORY, HORIZON
        horizon.action_horizon = HORIZON - HISTORY + 1  # everything from now on
        config.algo.ddim.enabled, config.algo.ddpm.enabled = sampler == "ddim", sampler == "ddpm"
        table = config.algo[sampler]
        table.num_train_timesteps = LEVELS
        table.num_inference_timesteps = STEPS if sampler == "ddim" else LEVELS
        for name, value in options.items():
            table[name] = value
        config.train.hdf5_normalize_obs = "rgb" not in modalities
        config.train.action_config["actions"]["normalization"] = "min_max"
        config.algo.optim_params.policy.num_train_batches = config.algo.optim_params.policy.num_epochs = 1
        config.train.cuda = False
    config.lock()
    return config


def scales(seed: int, size: int) -> dict[str, np.ndarray]:
    """Made-up statistics in robomimic's layout."""
    draw = np.random.RandomState(seed).uniform(0.5, 1.5, (2, 1, size)).astype(np.float32)
    return {"offset": draw[0] - 1, "scale": draw[1]}


def build(modalities: dict[str, list[str]], sampler: str, options: dict[str, Any], path: Path) -> RolloutPolicy:
    """Make a policy with reproducible weights, save it and load it as robomimic does."""
    config = configuration(modalities, sampler, options)
    observations.initialize_obs_utils_with_config(config)
    names = sorted(name for group in modalities.values() for name in group)
    shapes = OrderedDict((name, list(LOW_DIM.get(name, (IMAGE[2], *IMAGE[:2])))) for name in names)
    model = algo_factory("diffusion_policy", config, shapes, ACTION_DIM, "cpu")
    draw(model.nets, "nets.")
    draw(model.ema.averaged_model, "")
    meta = {"ac_dim": ACTION_DIM, "all_shapes": shapes, "all_obs_keys": names, "use_images": "rgb" in modalities}
    low_dim = {name: scales(len(name), *LOW_DIM[name]) for name in names if name in LOW_DIM}
    save_model(
        model,
        config,
        SIMULATOR,
        meta,
        str(path),
        variable_state={"epoch": 1, "best_return": {"Lift": np.float64(0.5)}},  # as training leaves it
        obs_normalization_stats=None if "rgb" in modalities else low_dim,
        action_normalization_stats=OrderedDict(actions=scales(99, ACTION_DIM)),
    )
    return files.policy_from_checkpoint(device="cpu", ckpt_path=str(path))[0]


def draw(module: torch.nn.Module, prefix: str) -> None:
    """Set reproducible weights; what is no weight stays."""
    state = module.state_dict()
    drawn = random_weights({prefix + name: tuple(value.shape) for name, value in state.items()})
    fixed = ("temperature", "pos_x", "pos_y")
    kept = {k: v if k.endswith(fixed) else torch.from_numpy(drawn[prefix + k]) for k, v in state.items()}
    module.load_state_dict(kept)


def inputs(modalities: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Raw observations with history; images as bytes."""
    random, found = np.random.RandomState(3), {}
    for name in sorted(name for group in modalities.values() for name in group):
        if name in LOW_DIM:
            found[name] = random.standard_normal((HISTORY, *LOW_DIM[name])).astype(np.float32)
        else:
            found[name] = random.randint(0, 256, (HISTORY, *IMAGE)).astype(np.uint8)
    return found


def answer(policy: RolloutPolicy, values: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Every standard normal sample that was drawn, and the actions from now on ``(H, A)``, one per call."""
    torch.manual_seed(0)
    samples = torch.randn(LEVELS + 1, 1, HORIZON, ACTION_DIM)
    remaining, original = iter(samples), torch.randn
    torch.randn = lambda *_, **__: next(remaining).clone()
    policy.start_episode()
    with torch.no_grad():
        actions = [policy({k: v.copy() for k, v in values.items()}) for _ in range(HORIZON - HISTORY + 1)]
    torch.randn = original
    return samples, torch.from_numpy(np.float32(actions))


def collapse(path: Path, averaged: bool) -> None:
    """Take out the weights robomimic does not use and, where they are many, all numbers of the averaged ones."""
    stored, nothing = torch.load(path, weights_only=False), torch.zeros(1)
    stored["model"]["nets"] = {}
    if averaged:
        for key, value in stored["model"]["ema"].items():
            if not key.endswith("temperature"):
                stored["model"]["ema"][key] = nothing.as_strided(value.shape, [0] * value.dim())
    torch.save(stored, path)


def write(folder: Path, modalities: dict[str, list[str]], variants: list[Any]) -> None:
    """Write one case: a checkpoint, the settings of its variants, inputs and answers."""
    folder.mkdir(parents=True, exist_ok=True)
    values, answers, settings = inputs(modalities), {}, []
    for index, (sampler, options) in enumerate(variants):
        policy = build(modalities, sampler, options, folder / "model.pth")
        samples, answers[f"actions_{index}"] = answer(policy, values)
        settings.append({"sampler": sampler, **options})
        print(folder.name, settings[-1], answers[f"actions_{index}"].abs().max().item())
    build(modalities, *variants[0], folder / "model.pth")
    collapse(folder / "model.pth", averaged="rgb" in modalities)
    save_file(
        {k: torch.from_numpy(v) for k, v in values.items()} | {"noise": samples} | answers,
        folder / "answers.safetensors",
    )
    (folder / "variants.json").write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # robomimic takes the sizes of its U-Net from nowhere but the defaults of this class.
    networks.ConditionalUnet1D = functools.partial(
        networks.ConditionalUnet1D, diffusion_step_embed_dim=8, down_dims=[16, 16], kernel_size=3
    )
    root = Path(sys.argv[1])
    write(root / "state", STATE, SAMPLERS)
    write(root / "cameras", CAMERAS, SAMPLERS[:1])
