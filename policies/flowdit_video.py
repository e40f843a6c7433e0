"""FlowDiT that follows a goal video and stops where a sentence says (after arXiv 2605.01477)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss

from policies import flowdit
from policies.flow import LINEAR, Estimate, uniform_times
from policies.flowdit import DiTHead, VectorTokens, fourier, repeated, tokens_of
from policies.nets.dit import Context, EncoderBlock
from policies.nets.goal_reader import GoalReader, Reading, sight_loss, stop_loss, word_loss
from policies.nets.vision import find_encoder
from policies.norm import ACTION, Normaliser
from policies.route import misalignment, travelled
from policies.senses import FOVY
from policies.spec import ContractError, Spec

VIDEO, SENTENCE, WAY, PATH, STOP = "goal_video", "instruction", "video_path", "goal_path", "stop"
TAUGHT = "stop_frame"
ARRIVED_S = 1.0  # before the end of a demonstration the robot is where it shall be
FEW_PX = 4.0  # of misalignment from which on it counts linearly


@dataclass(frozen=True)
class Config(flowdit.Config):
    """That of FlowDiT, the flow constraint and the visual encoder.

    Args:
        constraint: Weight of the flow constraint in the loss.
        encoder: Visual encoder of the goal video, see `policies.nets.vision.find_encoder`.
        encoder_weights: Its local checkpoint, where it has one.
    """

    width: int = 96
    depth: int = 3
    constraint: float = 0.1
    encoder: str = "tiny"
    encoder_weights: str = ""


class Conditions(NamedTuple):
    """What the denoising steps of one chunk share, and how sure it is that the robot has arrived, ``(B,)`` logits."""

    shared: Context
    arrival: Tensor


class FlowDiTVideo(DiTHead):
    """Velocity field over chunks, conditioned on the way of a goal video and on where along it to stop.

    `policies.nets.goal_reader.GoalReader` says at which frame to stop, once per goal. The senses ``video_path`` and
    ``goal_path`` say where the frames were taken, seen from the first one and from the robot. Each frame becomes a
    token of the latter and of whether to stop there; further features have tokens as in `policies.flowdit.FlowDiT`.

    The two are trained one after the other. Episodes whose features are the goal alone (``kinoflow collect --goals``)
    train the reader, with the labels ``stop_frame``, ``stop_sight`` and ``stop_words``. Demonstrations train the
    rest, which is told where to stop by the label ``stop_frame``, or by the reader where there is none. Their label
    ``action_mask`` leaves out components that a demonstrator could not command.
    """

    way_offset: Tensor
    way_scale: Tensor
    Config = Config
    labels = (TAUGHT, "stop_sight", "stop_words", "action_mask", "remaining")

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        features = {feature.name: feature for feature in spec.observations}
        if missing := {VIDEO, SENTENCE, WAY} - features.keys():
            raise ContractError(
                f"flowdit-video needs {sorted(missing)}; the policy would see {sorted(features)}; "
                f"add {WAY} and {PATH} with: kinoflow data FILE --sense {WAY} {PATH}"
            )
        video, sentence, way = (features.pop(name) for name in (VIDEO, SENTENCE, WAY))
        weights = Path(config.encoder_weights) if config.encoder_weights else None
        encoder = find_encoder(config.encoder, weights, video.shape[-1])
        self.reader = GoalReader(encoder, video.shape[0], sentence.shape[0])
        for part, start in (("offset", torch.zeros), ("scale", torch.ones)):
            self.register_buffer(f"way_{part}", start(way.shape))  # geometry needs metres
        self.drives = bool(features)
        if self.drives:
            if PATH not in features:
                raise ContractError(
                    f"flowdit-video needs the sense '{PATH}'; add it: kinoflow data FILE --sense {PATH}"
                )
            self._build(spec, config, features)

    def _build(self, spec: Spec, config: Any, features: dict[str, Any]) -> None:
        width, frames = config.width, features.pop(PATH).shape[0]
        inputs = (4 * spec.history + 2) * (1 + 2 * config.octaves)
        self.route = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, frames, width))
        self.place = VectorTokens(4, 1, width, 4, config.octaves)
        self.tokens = nn.ModuleDict({name: tokens_of(feature, spec, config) for name, feature in features.items()})
        self.encoder = nn.Sequential(*(EncoderBlock(width, config.heads) for _ in range(config.encoder_depth)))
        self.norm = nn.LayerNorm(width)
        self.arrived = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.dit = self.transformer()

    def prepare(self, normaliser: Normaliser, chunks: Tensor) -> None:
        self._normaliser = [normaliser]  # in a list: it is the policy's, not a part of this module
        offset, scale = normaliser.statistics_of(WAY)
        self.way_offset.copy_(offset)
        self.way_scale.copy_(scale)

    def digest(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rest = {name: value for name, value in observation.items() if name not in (VIDEO, SENTENCE, WAY)}
        if TAUGHT in observation:
            return {**rest, STOP: _around(observation[TAUGHT], self.reader.frames)}
        with torch.no_grad():
            return {**rest, STOP: chosen(self._read(observation).stop)}

    def _read(self, observation: Mapping[str, Tensor]) -> Reading:
        way = observation[WAY][:, 0] * self.way_scale + self.way_offset
        return self.reader(observation[VIDEO][:, 0], observation[SENTENCE][:, -1], way)

    def encode(self, observation: Mapping[str, Tensor]) -> Conditions:
        path = observation[PATH]
        batch = len(path)
        stop = repeated(observation[STOP], batch)
        others = [repeated(embed(observation[name]), batch) for name, embed in self.tokens.items()]
        tokens = torch.cat([self._route(path, stop), self._place(path, stop), *others], 1)
        tokens = self.norm(self.encoder(tokens))
        return Conditions(self.dit.context(tokens), self.arrived(tokens.mean(1))[:, 0])

    def _route(self, path: Tensor, stop: Tensor) -> Tensor:
        ahead = stop.flip(-1).cumsum(-1).flip(-1)  # how likely the robot shall come as far as a frame
        rows = torch.cat([path.transpose(1, 2).flatten(2), stop[..., None], ahead[..., None]], -1)
        return self.route(fourier(rows, self.config.octaves)) + self.position

    def _place(self, path: Tensor, stop: Tensor) -> Tensor:
        return self.place(torch.einsum("bf,bfd->bd", stop, path[:, -1])[:, None])

    def estimate(self, x: Tensor, t: Tensor, context: Conditions) -> Estimate:
        return self.velocities(context.shared)(x, t)

    def arrival(self, context: Conditions) -> Tensor:
        return context.arrival.sigmoid()

    def loss(self, observation: Mapping[str, Tensor], actions: Tensor, generator: torch.Generator) -> Tensor:
        """Flow matching, arrival, flow constraint, and the reader where there are labels for it."""
        if not self.drives:
            return self._reading_loss(observation)
        context = self.begun(self.encode(self.digest(observation)), actions, generator)
        noise, t = torch.randn(actions.shape, generator=generator), uniform_times(len(actions), generator)
        estimate = self.estimate(LINEAR.at(actions, noise, t), t, context)
        mask = observation.get("action_mask", torch.ones(actions.shape[-1]))
        mask = repeated(mask, len(actions))[:, None] if mask.ndim > 1 else mask
        matching = ((estimate.velocity - (actions - noise)) * mask).square().mean()
        arrived = (observation["remaining"] < ARRIVED_S).float()
        arrival = binary_cross_entropy_with_logits(context.arrival.float(), arrived)
        constraint = self._misalignment(observation, estimate.data) if self.config.constraint else 0.0
        return matching + 0.1 * arrival + self.config.constraint * constraint

    def _reading_loss(self, observation: Mapping[str, Tensor]) -> Tensor:
        found = self._read(observation)
        loss = stop_loss(found.stop, observation[TAUGHT][:, 0])
        loss = loss + sight_loss(found.sight, observation["stop_sight"], FOVY)
        return loss + word_loss(found.words, observation["stop_words"])

    def _misalignment(self, observation: Mapping[str, Tensor], data: Tensor) -> Tensor:
        """How far chunks lead off the way of the video, Huber loss in units of `FEW_PX`."""
        (normaliser,), action = self._normaliser, self.spec.action
        path = normaliser.restore(PATH, observation[PATH][:, -1].float())
        found = (path[..., 3] > 0).any(-1)
        poses = travelled(normaliser.restore(ACTION, data.float()), action.names, self.spec.dt)
        off = misalignment(poses, path[..., :3])[found] / FEW_PX
        return huber_loss(off, torch.zeros_like(off)) if len(off) else data.new_zeros(())


def chosen(logits: Tensor) -> Tensor:
    """Where to stop as weights ``(B, F)`` of two neighbouring frames, from logits ``(B, F)``.

    It is the mean around the likeliest frame: the mean of all would be a place between two candidates.
    """
    frames = torch.arange(logits.shape[-1], device=logits.device)
    best = logits.argmax(-1, keepdim=True)
    near = logits.masked_fill((frames - best).abs() > 1, -torch.inf).softmax(-1)
    return _around((near * frames).sum(-1, keepdim=True), logits.shape[-1])


def _around(frame: Tensor, frames: int) -> Tensor:
    return (1 - (torch.arange(frames, device=frame.device) - frame).abs()).clamp_min(0)
