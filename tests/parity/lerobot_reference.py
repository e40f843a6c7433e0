"""Write what the real LeRobot answers for small diffusion policies; `lerobot.sh` runs it in its own environment."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers.schedulers.scheduling_ddpm as ddpm
import numpy as np
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from random_weights import random_weights
from safetensors.torch import save_file

HISTORY, HORIZON, ACTION_DIM = 2, 8, 3
STEPS = 10
SMALL: dict[str, Any] = {
    "n_obs_steps": HISTORY,
    "horizon": HORIZON,
    "n_action_steps": HORIZON - HISTORY + 1,
    "down_dims": (16, 32),
    "diffusion_step_embed_dim": 16,
    "num_inference_steps": STEPS,
    "spatial_softmax_num_keypoints": 8,
    "device": "cpu",
}
STATE = {"observation.state": PolicyFeature(FeatureType.STATE, (3,))}
ENVIRONMENT = {"observation.environment_state": PolicyFeature(FeatureType.ENV, (4,))}
IMAGE = PolicyFeature(FeatureType.VISUAL, (3, 72, 76))
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "state": (
        2,
        {
            "input_features": STATE | ENVIRONMENT,
            "normalization_mapping": {
                "STATE": NormalizationMode.MIN_MAX,
                "ENV": NormalizationMode.MEAN_STD,
                "ACTION": NormalizationMode.MIN_MAX,
            },
        },
    ),
    "camera": (
        1,
        {
            "input_features": {"observation.image": IMAGE} | STATE,
            "crop_shape": (65, 67),  # odd margins: the rounding of the crop shows
            "use_group_norm": True,
            "pretrained_backbone_weights": None,
            "use_separate_rgb_encoder_per_camera": False,
            "use_film_scale_modulation": False,
        },
    ),
    "cameras": (
        1,
        {
            "input_features": {"observation.images.top": IMAGE, "observation.images.wrist": IMAGE}
            | STATE
            | ENVIRONMENT,
            "normalization_mapping": {
                "VISUAL": NormalizationMode.IDENTITY,
                "STATE": NormalizationMode.MEAN_STD,
                "ACTION": NormalizationMode.MEAN_STD,
            },
            "resize_shape": (48, 50),
            "crop_ratio": 0.9,
            "use_group_norm": False,
            "pretrained_backbone_weights": None,
            "use_separate_rgb_encoder_per_camera": True,
            "kernel_size": 3,
        },
    ),
}
SAMPLERS = [
    {"noise_scheduler_type": sampler, "prediction_type": prediction, "clip_sample": clipped}
    for sampler in ("DDIM", "DDPM")
    for prediction in ("epsilon", "sample")
    for clipped in (True, False)
]
FURTHER = [
    {"noise_scheduler_type": "DDIM", "num_inference_steps": None},
    {"noise_scheduler_type": "DDIM", "num_inference_steps": None, "prediction_type": "sample"},
    {"noise_scheduler_type": "DDIM", "num_inference_steps": 30, "clip_sample_range": 0.5},
    {"noise_scheduler_type": "DDIM", "beta_schedule": "linear", "num_train_timesteps": 60, "beta_end": 0.1},
    {"noise_scheduler_type": "DDPM", "beta_schedule": "scaled_linear", "beta_end": 0.1, "clip_sample": False},
]


def statistics(features: dict[str, PolicyFeature]) -> dict[str, dict[str, torch.Tensor]]:
    """Made-up statistics; the last element of state and action is constant."""
    found = {}
    for index, (name, feature) in enumerate(features.items()):
        shape = (feature.shape[0], 1, 1) if len(feature.shape) == 3 else feature.shape
        draw = np.random.RandomState(index).uniform(0.5, 1.5, (2, *shape)).astype(np.float32)
        low, high = torch.from_numpy(0.3 - draw[0]), torch.from_numpy(0.3 + draw[1])
        if name in ("observation.state", "action"):
            low[-1] = high[-1] = 0.7
        found[name] = {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4}
    return found


def inputs(batch: int, features: dict[str, PolicyFeature], stats: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Observations in their own units, within the statistics; images as bytes."""
    found = {}
    for index, (name, feature) in enumerate(features.items()):
        share = np.random.RandomState(100 + index).uniform(0, 1, (batch, HISTORY, *feature.shape)).astype(np.float32)
        if len(feature.shape) == 3:
            found[name] = torch.from_numpy((share * 255).astype(np.uint8))
        else:
            low, high = stats[name]["min"], stats[name]["max"]
            found[name] = low + torch.from_numpy(share) * (high - low)
    return found


@torch.no_grad()
def answer(policy: DiffusionPolicy, stats: Any, values: dict[str, torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
    """Actions ``(B, H, A)`` from raw observations: their processors, their network, their sampler."""
    before, after = make_diffusion_pre_post_processors(policy.config, stats)
    raw = {name: value / 255 if value.dtype == torch.uint8 else value for name, value in values.items()}
    steps = [before({name: value[:, k] for name, value in raw.items()}) for k in range(HISTORY)]
    batch = {name: torch.stack([step[name] for step in steps], 1) for name in raw}
    if policy.config.image_features:
        batch["observation.images"] = torch.stack([batch[name] for name in policy.config.image_features], -4)
    return after(policy.diffusion.generate_actions(batch, noise=noise))


def write(name: str, folder: Path, variants: list[dict[str, Any]]) -> None:
    """Write one case: LeRobot's own small files, the shapes of its tensors, inputs and answers."""
    batch, options = CASES[name]
    output = {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))}
    options = SMALL | options | {"output_features": output}
    stats = statistics(options["input_features"] | output)
    values = inputs(batch, options["input_features"], stats)
    random = np.random.RandomState(7)
    noise = torch.from_numpy(random.standard_normal((batch, HORIZON, ACTION_DIM)).astype(np.float32))
    draws = torch.from_numpy(random.standard_normal((STEPS, batch, HORIZON, ACTION_DIM)).astype(np.float32))
    answers = {}
    save(DiffusionPolicy(DiffusionConfig(**options)), stats, folder)
    for index, variant in enumerate(variants):
        policy = DiffusionPolicy(DiffusionConfig(**(options | variant))).eval()
        shapes = {key: tuple(value.shape) for key, value in policy.state_dict().items()}
        weights = {key: torch.from_numpy(value) for key, value in random_weights(shapes).items()}
        weights = {key: policy.state_dict()[key] if key.endswith("pos_grid") else weights[key] for key in weights}
        policy.load_state_dict(weights)
        remaining = iter(draws)
        ddpm.randn_tensor = lambda *_, remaining=remaining, **__: next(remaining)
        answers[f"actions_{index}"] = answer(policy, stats, values, noise.clone()).contiguous()
        print(name, variant, answers[f"actions_{index}"].abs().max().item())
    save_file(values | {"noise": noise, "draws": draws} | answers, folder / "answers.safetensors")
    (folder / "variants.json").write_text(json.dumps(variants, indent=1) + "\n")
    (folder / "tensors.json").write_text(json.dumps(shapes, separators=(",", ":")) + "\n")


def save(policy: DiffusionPolicy, stats: Any, folder: Path) -> None:
    """Let LeRobot save the policy and keep everything but the weights."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        policy.save_pretrained(scratch)
        for processor in make_diffusion_pre_post_processors(policy.config, stats):
            processor.save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            if file.name.startswith("policy_") or file.name == "config.json":
                shutil.copy(file, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    write("state", root / "state", SAMPLERS + FURTHER)
    write("camera", root / "camera", [SAMPLERS[0], SAMPLERS[7]])
    write("cameras", root / "cameras", [SAMPLERS[1]])
