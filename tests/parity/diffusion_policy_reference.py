"""Write what the real diffusion_policy answers.

Runs in an environment of its own that has diffusion_policy (first used with commit 5ba07ac, robomimic 0.2.0, diffusers
0.35.1), from this folder:
PYTHONPATH=../foreign python diffusion_policy_reference.py ../foreign/reference/diffusion_policy
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import diffusion_policy
import hydra
import numpy as np
import torch
from diffusion_policy.model.common.normalizer import LinearNormalizer, SingleFieldLinearNormalizer
from diffusion_policy.workspace.base_workspace import BaseWorkspace
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from random_weights import random_weights
from safetensors.torch import save_file

LEVELS, STEPS = 40, 5
SMALL = [f"policy.noise_scheduler.num_train_timesteps={LEVELS}", f"policy.num_inference_steps={STEPS}"]
STATE = [
    "task=lift_lowdim",
    "policy.model.cond_predict_scale=False",
    *("policy.model.down_dims=[16,16]", "policy.model.kernel_size=3", "policy.model.diffusion_step_embed_dim=8"),
]
PICTURE = [
    "task=pusht_image",
    "task.shape_meta.obs.image.shape=[3,52,50]",
    "policy.crop_shape=[43,45]",  # odd margins: the rounding of the crop shows
    *("policy.down_dims=[16,16]", "policy.kernel_size=3", "policy.diffusion_step_embed_dim=8"),
]
CASES = {
    "state": ("train_diffusion_unet_lowdim_workspace", STATE),
    "picture": ("train_diffusion_unet_hybrid_workspace", PICTURE),
}
DDIM = {"_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler", "set_alpha_to_one": True, "steps_offset": 0}
SAMPLERS = [
    {"noise_scheduler": {**sampler, "prediction_type": prediction, "clip_sample": clipped}}
    for sampler in (DDIM, {})
    for prediction in ("epsilon", "sample")
    for clipped in (True, False)
]
CHUNKS = [{"oa_step_convention": False}, {"pred_action_steps_only": True}]


class Workspace(BaseWorkspace):
    """What its training scripts save."""

    include_keys = ("global_step", "epoch")

    def __init__(self, cfg: DictConfig, model: torch.nn.Module, average: torch.nn.Module) -> None:
        super().__init__(cfg, output_dir="outputs")
        self.model, self.ema_model, self.global_step, self.epoch = model, average, 7, 1
        self.optimizer = hydra.utils.instantiate(cfg.optimizer, params=model.parameters())


def configuration(name: str, overrides: list[str]) -> DictConfig:
    """Its own settings, resolved as its training script does, but for sizes."""
    OmegaConf.register_new_resolver("eval", eval, replace=True)
    OmegaConf.register_new_resolver("now", lambda text: text, replace=True)
    folder = str(Path(diffusion_policy.__path__[0], "config").resolve())
    with initialize_config_dir(folder, version_base=None):
        config = compose(name, overrides + SMALL)
    OmegaConf.resolve(config)
    return config


def varied(config: DictConfig, variant: dict[str, Any]) -> DictConfig:
    """Settings with some of the policy's changed."""
    changed = copy.deepcopy(config)
    OmegaConf.set_struct(changed, False)
    if variant.get("noise_scheduler", {}).get("_target_"):
        changed.policy.noise_scheduler.pop("variance_type")
    changed.policy = OmegaConf.merge(changed.policy, variant)
    return changed


def instantiate(config: DictConfig, prefix: str) -> torch.nn.Module:
    """Make a policy with reproducible weights and a normaliser that was fitted to something."""
    policy = hydra.utils.instantiate(config.policy).eval()
    policy.set_normalizer(normaliser(config))
    state = policy.state_dict()
    drawn = random_weights({prefix + name: tuple(value.shape) for name, value in state.items()})
    fixed = ("temperature", "pos_x", "pos_y")
    kept = {
        k: v if k.endswith(fixed) or k.startswith("normalizer") else torch.from_numpy(drawn[prefix + k])
        for k, v in state.items()
    }
    policy.load_state_dict(kept)
    return policy


def shapes(config: DictConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the observations."""
    if "shape_meta" in config.policy:
        return {name: tuple(item.shape) for name, item in config.policy.shape_meta.obs.items()}
    return {"obs": (config.policy.obs_dim,)}


def normaliser(config: DictConfig) -> LinearNormalizer:
    """As its datasets make them: images from [0, 1] to [-1, 1], the rest from its range."""
    random, made = np.random.RandomState(1), LinearNormalizer()
    dim = config.task.shape_meta.action.shape[0] if "shape_meta" in config.task else config.action_dim
    for name, shape in {**shapes(config), "action": (dim,)}.items():
        if len(shape) == 3:
            made[name] = SingleFieldLinearNormalizer.create_manual(
                scale=np.array([2], np.float32), offset=np.array([-1], np.float32), input_stats_dict={}
            )
        else:
            values = random.standard_normal((50, *shape)).astype(np.float32)
            values[:, 0] = 0.3  # an element that never changes
            made[name] = SingleFieldLinearNormalizer.create_fit(values)
    return made


def answer(policy: torch.nn.Module, values: dict[str, torch.Tensor], samples: torch.Tensor) -> torch.Tensor:
    """Actions of the whole chunk ``(past + H, A)``, for observations in 255ths and given standard normal samples."""
    remaining, original = iter(samples), torch.randn
    torch.randn = lambda *shape, size=None, **_: next(remaining)[:, : (size or shape[0])[1]].clone()
    with torch.no_grad():
        actions = policy.predict_action({name: value[None] / 255 for name, value in values.items()})["action_pred"]
    torch.randn = original
    return actions[0].contiguous()


def collapse(module: torch.nn.Module) -> None:
    """Take the numbers out of a network, but not their names and shapes."""
    nothing = torch.zeros(1)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if not name.startswith("normalizer") and not name.endswith("temperature"):
            value.data = nothing.as_strided(value.shape, [0] * value.dim())


def write(name: str, folder: Path, variants: list[dict[str, Any]]) -> None:
    """Write one case: a checkpoint, the settings of its variants, inputs and answers."""
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration(*CASES[name])
    random = np.random.RandomState(3)
    values = {
        key: torch.from_numpy(random.randint(0, 256, (config.n_obs_steps, *shape)).astype(np.uint8))
        for key, shape in shapes(config).items()
    }
    average = instantiate(config, "")
    dim = average.action_dim
    samples = torch.from_numpy(random.standard_normal((LEVELS + 1, 1, config.horizon, dim)).astype(np.float32))
    answers = {}
    for index, variant in enumerate(variants):
        policy = instantiate(varied(config, variant), "")
        answers[f"actions_{index}"] = answer(policy, values, samples)
        print(name, variant, answers[f"actions_{index}"].abs().max().item())
    model = instantiate(config, "model.")
    collapse(model)  # nobody asks the present weights, only the averaged ones
    if name == "picture":
        collapse(average)
    Workspace(config, model, average).save_checkpoint(folder / "latest.ckpt", use_thread=False)
    save_file(values | {"noise": samples} | answers, folder / "answers.safetensors")
    (folder / "variants.json").write_text(json.dumps(variants, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    write("state", root / "state", SAMPLERS + CHUNKS)
    write("picture", root / "picture", SAMPLERS[:1])
