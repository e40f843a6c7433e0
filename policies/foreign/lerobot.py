"""Diffusion policies trained with LeRobot (its ``diffusion`` type), read from a checkpoint directory without LeRobot.

A directory holds ``config.json`` and ``model.safetensors``. The statistics of the normalisation lie beside them in
``policy_preprocessor.json`` and ``policy_postprocessor.json`` with one safetensors file each; before LeRobot 0.4 they
were tensors of the model. Measured against LeRobot 0.4.4 (``tests/parity/lerobot.sh``): the same noise gives the same
chunk to 1e-5 of its size with the DDIM sampler, and with the DDPM sampler for the same fresh noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from policies.flow import Estimate
from policies.foreign import vision
from policies.foreign.schedule import Schedule, betas
from policies.foreign.unet import ConditionalUNet1d
from policies.head import Head
from policies.norm import ACTION, Normaliser
from policies.policy import COPY_AGAIN, Policy
from policies.spec import UNSTATED, ActionSpec, ContractError, Feature, Spec

CONFIG, MODEL, TRAINING = "config.json", "model.safetensors", "train_config.json"
NAMES = {"observation.state": "agent_pos", "observation.image": "pixels"}
RANGES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
# Processor steps that leave the values as they are: they move, batch and rename.
HARMLESS = ("rename_observations_processor", "to_batch_processor", "device_processor")
BEFORE = "policy_preprocessor.json", "normalizer_processor"
AFTER = "policy_postprocessor.json", "unnormalizer_processor"
EPSILON = 1e-8  # LeRobot adds it to every standard deviation
UNLIMITED = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Config:
    """The settings of LeRobot's ``config.json`` that decide what its network and its sampler do, under its names.

    Args:
        down_dims: Channels per level of the U-Net.
        kernel_size: Length of its convolutions.
        n_groups: Groups of its normalisation.
        diffusion_step_embed_dim: Size of the embedding of the noise level.
        use_film_scale_modulation: Whether the observation scales as well as shifts.
        resize_shape: Size ``(H, W)`` images are scaled to first.
        crop_shape: Size ``(H, W)`` that is cut out of their middle.
        use_group_norm: Group instead of batch normalisation in the image encoder.
        spatial_softmax_num_keypoints: Keypoints per image.
        use_separate_rgb_encoder_per_camera: One image encoder per camera instead of one for all.
        num_train_timesteps: Noise levels, T.
        beta_schedule: Noise table, see `policies.foreign.schedule.betas`.
        beta_start: Variance of the least noisy level.
        beta_end: Variance of the noisiest level.
        prediction_type: What the network predicts.
        clip_sample: Whether the data estimate is clipped.
        clip_sample_range: Bound of the clipping, in normal units.
    """

    down_dims: tuple[int, ...] = (512, 1024, 2048)
    kernel_size: int = 5
    n_groups: int = 8
    diffusion_step_embed_dim: int = 128
    use_film_scale_modulation: bool = True
    resize_shape: tuple[int, int] | None = None
    crop_shape: tuple[int, int] | None = None
    use_group_norm: bool = True
    spatial_softmax_num_keypoints: int = 32
    use_separate_rgb_encoder_per_camera: bool = False
    num_train_timesteps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0

    @property
    def bound(self) -> float | None:
        """Largest normal value of the data estimate; None where it is not clipped."""
        return self.clip_sample_range if self.clip_sample else None


class ImageEncoder(nn.Module):
    """Image ``(B, C, H, W)`` to the positions of its keypoints and their combinations, ``(B, 2 * keypoints)``."""

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        self.resize, self.crop = config.resize_shape, config.crop_shape
        keypoints = config.spatial_softmax_num_keypoints
        self.backbone = vision.ResNet18(channels, config.use_group_norm)
        self.pool = vision.SpatialSoftmax(vision.CHANNELS, keypoints)
        self.out = nn.Linear(2 * keypoints, 2 * keypoints)

    def forward(self, images: Tensor) -> Tensor:
        if self.resize is not None:
            images = interpolate(images, tuple(self.resize), mode="bilinear", antialias=True)
        if self.crop is not None:
            images = vision.centre_crop(images, self.crop)
        return self.out(self.pool(self.backbone(images)).flatten(1)).relu()


class DiffusionPolicy(Head):
    """LeRobot's diffusion policy: the observation history conditions a U-Net over the chunk (arXiv 2303.04137)."""

    Config = Config

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        cameras = [feature.shape[0] for feature in spec.observations if _is_image(feature.shape)]
        encoders = cameras if config.use_separate_rgb_encoder_per_camera else cameras[:1]
        self.encoders = nn.ModuleList(ImageEncoder(channels, config) for channels in encoders)
        numbers = sum(math.prod(feature.shape) for feature in spec.observations if not _is_image(feature.shape))
        condition = numbers + 2 * config.spatial_softmax_num_keypoints * len(cameras)
        self.unet = ConditionalUNet1d(
            spec.action.dim,
            spec.history * condition,
            tuple(config.down_dims),
            config.diffusion_step_embed_dim,
            config.kernel_size,
            config.n_groups,
            config.use_film_scale_modulation,
        )
        table = betas(config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end)
        self.schedule = Schedule(table, config.prediction_type, config.bound)

    def encode(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Condition ``(B, C)``: the features of one time step after another, each step in the order of the contract."""
        parts, cameras = [], 0
        for feature in self.spec.observations:
            value = observation[feature.name]
            if _is_image(feature.shape):
                encoder = self.encoders[cameras % len(self.encoders)]
                value, cameras = encoder(value.flatten(0, 1)).unflatten(0, value.shape[:2]), cameras + 1
            parts.append(value.flatten(2))
        return torch.cat(parts, -1).flatten(1)

    def estimate(self, x: Tensor, t: Tensor, context: Tensor) -> Estimate:
        return self.schedule.field(lambda x, k: self.unet(x, k, context))(x, t)

    def grid(self, steps: int) -> tuple[float, ...]:
        """The noise levels LeRobot's samplers visit in as many steps, then the data."""
        return self.schedule.grid(steps)


def load(path: Path) -> Policy:
    """Read a LeRobot checkpoint directory (``pretrained_model``).

    The policy samples deterministically (DDIM), with as many steps as the checkpoint states; checkpoints that state the
    DDPM sampler visit the same levels. The contract leaves unstated what the checkpoint does not say: units and frames
    are empty, and so are the names of the action's components; the rate is 0 without ``train_config.json``.

    Args:
        path: Directory with ``config.json`` and ``model.safetensors``.

    Raises:
        ContractError: A file, a tensor or a statistic is missing or left over, or the checkpoint is of a kind that
            cannot be reproduced; the message names it and the remedy.
    """
    stored = _read(path / CONFIG, _json)
    if stored.get("type") != "diffusion":
        raise ContractError(
            f"{path / CONFIG}: the policy type is {stored.get('type')!r}, only 'diffusion' can be read; "
            "checkpoints without a type were saved before LeRobot 0.2 and have to be loaded and saved by a newer one"
        )
    try:
        return _build(path, stored, _read(path / MODEL, load_file))
    except KeyError as error:
        raise ContractError(f"{path} lacks the setting {error}; load and save it with LeRobot 0.3 or newer") from error
    except (AttributeError, IndexError, TypeError) as error:
        raise ContractError(f"{path} has a setting of another kind than LeRobot's: {error}; {COPY_AGAIN}") from error


class Scaling(NamedTuple):
    """``normal = (value - offset) / scale`` of one feature; ``constant`` marks the elements that never changed."""

    offset: Tensor
    scale: Tensor
    constant: Tensor


@dataclass(frozen=True)
class Statistics:
    """What a checkpoint knows of its training data.

    Args:
        source: File the statistics are from.
        modes: Kind of normalisation per type of feature.
        values: Tensors named ``feature.statistic``.
    """

    source: Path
    modes: Mapping[str, str]
    values: Mapping[str, Tensor]

    def scaling(self, key: str, kind: str, shape: tuple[int, ...]) -> Scaling:
        """Scaling of a feature; types of features without a mode stay as they are.

        Raises:
            ContractError: The mode is unknown or its statistics are missing.
        """
        mode = self.modes.get(kind, "IDENTITY")
        if mode == "IDENTITY":
            return Scaling(torch.zeros(shape), torch.ones(shape), torch.zeros(shape, dtype=torch.bool))
        if mode == "MEAN_STD":
            mean, deviation = self._pair(key, shape, ("mean", "std"))
            return Scaling(mean, deviation + EPSILON, torch.zeros(shape, dtype=torch.bool))
        if mode not in RANGES:
            raise ContractError(f"{self.source}: normalisation {mode} of '{key}' is unknown; known are {list(RANGES)}")
        low, high = self._pair(key, shape, RANGES[mode])
        # LeRobot maps a constant to -1 and divides any deviation by 1e-8; here the element keeps its unit.
        constant = high == low
        scale = torch.where(constant, 1.0, (high - low) / 2)
        return Scaling(low + scale, scale, constant)

    def _pair(self, key: str, shape: tuple[int, ...], names: tuple[str, str]) -> list[Tensor]:
        found = [self.values.get(f"{key}.{name}", torch.tensor(math.inf)).float() for name in names]
        if not all(value.isfinite().all() for value in found):
            raise ContractError(
                f"{self.source} has no {names[0]} and {names[1]} of '{key}', without which it cannot be normalised; "
                "take the statistics from the training run, LeRobot saves them with the checkpoint"
            )
        return [value.expand(shape).clone() for value in found]


def _build(path: Path, stored: Mapping[str, Any], weights: dict[str, Tensor]) -> Policy:
    """Put a policy together; takes the tensors it knows out of ``weights``."""
    config = Config(**{field.name: stored[field.name] for field in fields(Config) if field.name in stored})
    inputs, dim = _inputs(stored), stored["output_features"][ACTION]["shape"][0]
    if any(_is_image(shape) for _, shape in inputs.values()) and stored["vision_backbone"] != "resnet18":
        raise ContractError(f"vision_backbone '{stored['vision_backbone']}' cannot be read, only 'resnet18'")
    before, after = _in_model(path / MODEL, stored, weights) or (_processor(path, *BEFORE), _processor(path, *AFTER))
    scalings = {_name(key): before.scaling(key, kind, shape) for key, (kind, shape) in inputs.items()}
    scalings[ACTION] = after.scaling(ACTION, "ACTION", (dim,))
    past = stored["n_obs_steps"] - 1
    spec = Spec(
        tuple(Feature(_name(key), shape, UNSTATED, UNSTATED) for key, (_, shape) in inputs.items()),
        _action(scalings[ACTION], config.bound),
        _rate(path),
        past + 1,
        stored["horizon"] - past,
        past,
    )
    head = DiffusionPolicy(spec, config)
    try:
        head.load_state_dict(_tensors(weights, head))
    except RuntimeError as error:
        raise ContractError(f"{path / MODEL} does not fit {CONFIG}; take both from one checkpoint: {error}") from error
    normaliser = Normaliser(*({name: part[i] for name, part in scalings.items()} for i in (0, 1)))
    return Policy(head, normaliser, stored["num_inference_steps"] or config.num_train_timesteps).eval()


def _inputs(stored: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of the features the network sees, in its order: state, images, state of the environment."""
    features = {key: (item["type"], tuple(item["shape"])) for key, item in stored["input_features"].items()}
    unknown = {key: kind for key, (kind, _) in features.items() if kind not in ("STATE", "VISUAL", "ENV")}
    if unknown:
        raise ContractError(f"{CONFIG} has input features of types a diffusion policy does not see: {unknown}")
    ordered = {key: value for kind in ("STATE", "VISUAL", "ENV") for key, value in features.items() if value[0] == kind}
    # Its network ignores every state but this one.
    used = {key: value for key, value in ordered.items() if value[0] != "STATE" or key == "observation.state"}
    if len({_name(key) for key in used}) < len(used):
        raise ContractError(f"input features {sorted(used)} are not told apart by their last part; rename one of them")
    return used


def _name(key: str) -> str:
    """Our name of a LeRobot feature: the environments' for the usual ones, else the last part of its own."""
    return NAMES.get(key, key.rpartition(".")[2])


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3


def _action(scaling: Scaling, bound: float | None) -> ActionSpec:
    """The command: nameless components, limited to what the sampler can reach; constant components stay constant."""
    offset, scale, constant = scaling
    value = offset - scale
    if bound is None:
        low, high = torch.full_like(offset, -UNLIMITED), torch.full_like(offset, UNLIMITED)
    else:
        low, high = offset - bound * scale, offset + bound * scale
    limits = (tuple(torch.where(constant, value, limit).tolist()) for limit in (low, high))
    return ActionSpec((UNSTATED,) * len(offset), (UNSTATED,) * len(offset), UNSTATED, *limits)


def _rate(path: Path) -> float:
    """Rate in Hz the training run evaluated at; 0 if unstated."""
    if not (path / TRAINING).exists():
        return 0.0
    return float((_read(path / TRAINING, _json).get("env") or {}).get("fps", 0))


def _in_model(
    file: Path, stored: Mapping[str, Any], weights: dict[str, Tensor]
) -> tuple[Statistics, Statistics] | None:
    """Take the statistics of checkpoints before LeRobot 0.4 out of the model's tensors; None if it has none."""
    take(weights, "normalize_targets.")
    found = take(weights, "normalize_inputs.buffer_"), take(weights, "unnormalize_outputs.buffer_")
    if not any(found):
        return None
    keys = {key.replace(".", "_"): key for key in (*stored["input_features"], *stored["output_features"])}
    named = ({f"{keys[n.partition('.')[0]]}.{n.partition('.')[2]}": v for n, v in part.items()} for part in found)
    before, after = (Statistics(file, stored["normalization_mapping"], part) for part in named)
    return before, after


def _processor(path: Path, name: str, step_name: str) -> Statistics:
    """Read the statistics beside the model, which LeRobot 0.4 and newer write."""
    steps = _read(path / name, _json)["steps"]
    chosen = [step for step in steps if step.get("registry_name") == step_name]
    others = [step.get("registry_name", step.get("class")) for step in steps if step not in chosen]
    if len(chosen) != 1 or set(others) - set(HARMLESS):
        raise ContractError(
            f"{path / name} has the steps {others} beside {len(chosen)} of '{step_name}'; "
            f"only one of that and {list(HARMLESS)} can be reproduced"
        )
    values = _read(path / chosen[0]["state_file"], load_file) if "state_file" in chosen[0] else {}
    return Statistics(path / name, chosen[0]["config"]["norm_map"], values)


def _tensors(weights: dict[str, Tensor], head: DiffusionPolicy) -> dict[str, Tensor]:
    """Rename the tensors of the network; what is left over keeps its name and is refused with it."""
    found: dict[str, Tensor] = {}
    for index in range(len(head.encoders)):
        number = f"{index}." if head.config.use_separate_rgb_encoder_per_camera else ""
        encoder = take(weights, f"diffusion.rgb_encoder.{number}")
        encoder.pop("pool.pos_grid", None)
        found |= under(f"encoders.{index}.backbone.", vision.renamed(take(encoder, "backbone.")))
        found |= under(f"encoders.{index}.", encoder)
    # torch.compile puts a module of its own around the network.
    unet = {name.removeprefix("_orig_mod."): value for name, value in take(weights, "diffusion.unet.").items()}
    return found | under("unet.", unet) | weights


def take(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors under a prefix out of ``weights`` and return them without it."""
    return {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}


def under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put tensors under a prefix."""
    return {prefix + name: value for name, value in weights.items()}


def _json(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
        raise TypeError(f"it holds a {type(found).__name__}")
    return found


def _read(file: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(file)
    except FileNotFoundError as error:
        raise ContractError(f"{file} is missing; give the whole checkpoint directory ('pretrained_model')") from error
    except (SafetensorError, TypeError, ValueError) as error:
        raise ContractError(f"{file} is damaged: {error}; {COPY_AGAIN}") from error
