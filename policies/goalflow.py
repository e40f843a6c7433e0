"""GoalFlow: goal points of a vocabulary are scored, each draws a chunk by flow matching, the best chunk is taken.

After arXiv 2503.05689. Where the published system averages its best goals, which lies between the ways of a fork, every
candidate has a goal of its own here. Chunks are velocities rather than poses, so that each can be driven; where one
leads, `policies.motion` says. Goals are dropped per sample, so that guidance has an unconditional field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies import flowdit
from policies.checks import require_finite, require_positive
from policies.flow import Estimate, cfg
from policies.flowdit import fourier
from policies.motion_head import MotionHead
from policies.nets.dit import Context, CrossBlock
from policies.norm import Normaliser
from policies.spec import ContractError, Spec

LEVER = 0.1  # of the reach: how far apart goals are that differ by a rad of heading
LIKELY = 0.5  # probability from which a goal counts as admissible
TAKEN = 1e3  # less score for goals that are out of the question
ASIDE = 0.25  # spacings beside a goal, within which others mean the same way
AROUND = (2.0, 0.5)  # spacings before and behind a given goal, and to its sides, within which chunks may end
SHADOW = 1e4  # score that decides for the chunk without a goal, or against it
SCORES = 0.1  # weight of what the goal scorer is trained on, beside the flow
DRAWN = 4096  # constant commands that the vocabulary picks from


@dataclass(frozen=True)
class Config(flowdit.Config):
    """Size of the transformer, and how goals are used.

    Args:
        goals: Size of the vocabulary.
        scorer_depth: Attention blocks of the goal scorer.
        candidates: Chunks per plan, the last one without a goal; 1 plans without goals and scores none.
        apart: Least distance between the goals of candidates, in spacings of the vocabulary.
        drop: Share of training samples without a goal; 1 trains a head without goals.
        guidance: Weight of the goal in classifier-free guidance; 1 is none, and spares half of the evaluations.
        sigma: Standard deviation of the start noise.
        admissible: Weight of admissibility, of goals and of chunks, beside the likelihood of the goal.
        reached: Weight of the distance in spacings between the end of a chunk and its goal.
        progress: Weight of the length of a chunk, in reaches.
        comfort: Weight of the mean squared change from the chunk being executed, in normal units.
    """

    goals: int = 128
    scorer_depth: int = 1
    candidates: int = 16
    apart: float = 1.5
    drop: float = 0.15
    guidance: float = 1.0
    sigma: float = 0.1
    admissible: float = 4.0
    reached: float = 0.1
    progress: float = 0.0
    comfort: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "goals", "candidates", "apart", "sigma")
        require_finite(self)


class Goals(NamedTuple):
    """What the chunks of an observation share.

    Args:
        context: Of the transformer, for the best goal.
        free: Without one, if there is guidance.
        tokens: ``(B, N, width)`` of the scene.
        goals: ``(B, candidates, 3)`` poses of the candidates' goals, best first; the last one stands for none.
        score: ``(B, candidates)`` log likelihood of the goals, and of their admissibility.
        admissible: ``(B,)`` whether one of them is.
        observation: What was observed.
    """

    context: Context
    free: Context
    tokens: Tensor
    goals: Tensor
    score: Tensor
    admissible: Tensor
    observation: Mapping[str, Tensor]


class GoalFlow(MotionHead):
    """Velocity field over chunks, conditioned on a scene and on where the chunk shall end."""

    Config = Config
    usual: ClassVar[Mapping[str, Any]] = {"history": 1, "sample_steps": 1, "temperature": 1.0}
    goals: Tensor
    reach: Tensor
    spacing: Tensor

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        width = config.width
        self.embed = nn.Sequential(nn.Linear(4 * (1 + 2 * config.octaves), width), nn.GELU(), nn.Linear(width, width))
        self.nowhere = nn.Parameter(0.02 * torch.randn(width))
        self.scorer = nn.ModuleList(CrossBlock(width, config.heads) for _ in range(config.scorer_depth))
        self.verdict = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))
        self.register_buffer("goals", torch.zeros(config.goals, 3))
        self.register_buffer("reach", torch.ones(()))
        self.register_buffer("spacing", torch.ones(()))
        self._choose_goals(torch.zeros(0, spec.horizon, spec.action.dim))

    def prepare(self, normaliser: Normaliser, chunks: Tensor) -> None:
        super().prepare(normaliser, chunks)
        self._choose_goals(chunks)

    def _choose_goals(self, chunks: Tensor) -> None:
        """The vocabulary: to stay, means of where experts went, and where constant commands lead."""
        low, high = torch.tensor(self.spec.action.low), torch.tensor(self.spec.action.high)
        generator = torch.Generator().manual_seed(0)
        drawn = low + (high - low) * torch.rand(DRAWN, 1, self.spec.action.dim, generator=generator)
        steady = self.motion.poses(drawn.expand(-1, self.spec.horizon, -1))[:, -1]
        gone = self.motion.poses(chunks)[:, -1]
        self.reach.copy_((gone if len(gone) else steady)[:, :2].norm(dim=-1).quantile(0.95).clamp(min=0.1))
        stay, count = torch.zeros(1, 3), len(self.goals)
        means = _means(self._flat(gone), 3 * count // 4) if len(gone) > count else torch.zeros(0, 4)
        chosen = _spread(torch.cat([self._flat(stay), means]), self._flat(steady), count)
        self.goals.copy_(torch.cat([chosen[:, :2], torch.atan2(chosen[:, 3:], chosen[:, 2:3])], -1))
        apart = torch.cdist(self._flat(self.goals), self._flat(self.goals)).fill_diagonal_(torch.inf)
        self.spacing.copy_(apart.amin(-1).median().clamp(min=1e-3))

    def _flat(self, poses: Tensor) -> Tensor:
        """Poses ``(..., 3)`` as points ``(..., 4)`` whose distance in m counts the heading too."""
        lever, heading = LEVER * self.reach, poses[..., 2:]
        return torch.cat([poses[..., :2], lever * heading.cos(), lever * heading.sin()], -1)

    def as_student(self, ends: bool) -> Any:
        """Settings of a student; what it learns is guided already."""
        return dataclasses.replace(super().as_student(ends), guidance=1.0)

    def encode(self, observation: Mapping[str, Tensor]) -> Goals:
        tokens = self.scene(observation)
        if self.candidates == 1:
            none, free = tokens.new_zeros(len(tokens), 1), self._free(tokens)
            return Goals(free, free, tokens, none[..., None].expand(-1, -1, 3), none, none[:, 0] > 0, observation)
        likely, admissible = self._scores(tokens)
        score = likely.log_softmax(-1) + self.config.admissible * functional.logsigmoid(admissible)
        picked = self._pick(score)
        best = admissible.gather(1, picked).amax(-1).sigmoid()
        goals = self._refined(picked, score)
        context = self._context(tokens, self._embedded(goals[:, 0]))
        free = context if self.config.guidance == 1 else self._free(tokens)
        return Goals(context, free, tokens, goals, score.gather(1, picked), best >= LIKELY, observation)

    def _scores(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, K)`` of how likely and how admissible each goal is, given a scene ``(B, N, width)``."""
        goals = self._embedded(self.goals).expand(len(tokens), -1, -1)
        for block in self.scorer:
            goals = block(goals, tokens)
        likely, admissible = self.verdict(goals).unbind(-1)
        return likely, admissible

    def _embedded(self, goals: Tensor) -> Tensor:
        """Goals ``(..., 3)`` as tokens ``(..., width)``."""
        place, heading = goals[..., :2] / (2 * self.reach), goals[..., 2:]
        return self.embed(fourier(torch.cat([place, heading.cos(), heading.sin()], -1), self.config.octaves))

    def _free(self, tokens: Tensor) -> Context:
        return self._context(tokens, self.nowhere.expand(len(tokens), -1))

    def _context(self, tokens: Tensor, goal: Tensor) -> Context:
        return self.dit.context(torch.cat([tokens, goal[:, None]], 1))

    def _pick(self, score: Tensor) -> Tensor:
        """The best goals ``(B, candidates)`` that are apart from each other, by their scores ``(B, K)``."""
        near, picked = self._near(), []
        for _ in range(self.candidates):
            picked.append(score.argmax(-1))
            score = score - TAKEN * near[picked[-1]]  # once all are taken, the best again
        return torch.stack(picked, -1)

    def _near(self) -> Tensor:
        """Whether goals ``(K, K)`` are so near that they mean the same: 1 or 0."""
        flat, radius = self._flat(self.goals), self.config.apart * self.spacing
        return ((flat[:, None] - flat).square().sum(-1) <= radius**2).to(flat.dtype)

    def _refined(self, picked: Tensor, score: Tensor) -> Tensor:
        """Goals ``(B, candidates, 3)``: means of those near the picked ones by their scores, finer than the vocabulary.

        Only nearer and farther ones on the same way are averaged, none beside it: there may be an obstacle between.
        """
        heading, offset = self.goals[:, 2, None], self.goals[:, None, :2] - self.goals[:, :2]
        aside = heading.cos() * offset[..., 1].mT - heading.sin() * offset[..., 0].mT
        same = self._near() * (aside.abs() <= ASIDE * self.spacing)
        share = (score[:, None] - TAKEN * (1 - same[picked])).softmax(-1)
        mean = share @ self._flat(self.goals)
        return torch.cat([mean[..., :2], torch.atan2(mean[..., 3:], mean[..., 2:3])], -1)

    def toward(self, context: Goals, goal: Tensor) -> Goals:
        """What chunks share that are to end at given goals ``(B, 3)``, poses in the frame of the robot.

        The goals of the candidates lie around, so that `rating` finds one with room if there is none to the point.

        Raises:
            ContractError: The head has a single candidate, which plans without goals.
        """
        if self.candidates == 1:
            raise ContractError("a single candidate plans without goals; use a head with more, such as @candidates=16")
        count, device = self.candidates - 2, goal.device
        along = AROUND[0] * torch.linspace(-1, 1, count, device=device)
        aside = AROUND[1] * (torch.arange(count, device=device) % 3 - 1)
        ahead, left = self.spacing * functional.pad(torch.stack([along, aside]), (1, 1))  # none moves the first one
        cos, sin = goal[:, 2:].cos(), goal[:, 2:].sin()
        x, y = goal[:, :1] + cos * ahead - sin * left, goal[:, 1:2] + sin * ahead + cos * left
        goals = torch.stack([x, y, goal[:, 2:].expand_as(x)], -1)
        score = -self.config.reached * torch.stack([along, aside]).norm(dim=0)
        return context._replace(
            context=self._context(context.tokens, self._embedded(goal)),
            goals=goals,
            score=functional.pad(score, (1, 1)).expand(len(goal), -1),
            admissible=torch.ones_like(context.admissible),
        )

    def propose(self, context: Goals) -> Any:
        wanted = self._embedded(context.goals)
        wanted = torch.cat([wanted[:, :-1], self.nowhere.expand_as(wanted[:, -1:])], 1).flatten(0, 1)
        tokens = context.tokens.repeat_interleave(self.candidates, 0)
        chosen = self._context(tokens, wanted)
        free = chosen if self.config.guidance == 1 else self._free(tokens)
        return context._replace(context=chosen, free=free, tokens=tokens)

    def estimate(self, x: Tensor, t: Tensor, context: Goals) -> Estimate:
        field = self.velocities(context.context)
        if self.config.guidance != 1:
            field = cfg(field, self.velocities(context.free), self.config.guidance)
        return field(x, t)

    def rating(self, chunks: Tensor, context: Goals) -> Tensor:
        """Goals, whether they are reached, room, length, comfort."""
        config = self.config
        poses = self.motion.poses(self.restored(chunks))
        missed = (self._flat(poses[:, :, -1]) - self._flat(context.goals)).norm(dim=-1) / self.spacing
        admissible = self.admissible(context.observation, poses)
        length = poses[..., :2].diff(dim=2).norm(dim=-1).sum(-1) / self.reach
        committed, held = self.executing(context.observation)
        changed = held[:, None] * (chunks - committed[:, None]).square().mean((2, 3))
        score = context.score - config.reached * missed + config.admissible * admissible
        score = score + config.progress * length - config.comfort * changed
        shadow = torch.where(context.admissible, -SHADOW, SHADOW)
        return torch.cat([score[:, :-1], shadow[:, None]], 1)

    def loss(self, observation: Mapping[str, Tensor], actions: Tensor, generator: torch.Generator) -> Tensor:
        tokens = self.scene(self.digest(observation))
        end = self.motion.poses(self.restored(actions))[:, -1]
        away = (self._flat(end)[:, None] - self._flat(self.goals)).square().sum(-1) / self.spacing**2
        wanted = self._embedded(self.goals[away.argmin(-1)])
        dropped = torch.rand(len(actions), 1, generator=generator) < self.config.drop
        context = self._context(tokens, torch.where(dropped, self.nowhere, wanted))
        loss = self.chunk_loss(context, actions, generator)
        return loss if self.config.drop >= 1 else loss + SCORES * self._score_loss(tokens, observation, away)

    def _score_loss(self, tokens: Tensor, observation: Mapping[str, Tensor], away: Tensor) -> Tensor:
        """Of the goal scorer, where experts end so far from each goal, squared and in spacings ``(B, K)``."""
        likely, admissible = self._scores(tokens)
        free = self.ground.margin(observation, self.goals.expand(len(away), -1, -1)) > 0
        loss = -(away.neg().softmax(-1) * likely.log_softmax(-1)).sum(-1).mean()
        return loss + functional.binary_cross_entropy_with_logits(admissible, free.to(admissible.dtype))


def _means(points: Tensor, count: int) -> Tensor:
    """Means ``(count, D)`` of clusters of points ``(N, D)``."""
    from scipy.cluster.vq import kmeans2

    centres, _ = kmeans2(points.double().numpy(), count, minit="++", seed=0)
    return torch.from_numpy(centres).to(points.dtype)


def _spread(chosen: Tensor, points: Tensor, count: int) -> Tensor:
    """Points ``(count, D)``: those chosen already, and others of ``points`` as far from all of them as can be."""
    while len(chosen) < count:
        apart = torch.cdist(points, chosen).amin(-1)
        chosen = torch.cat([chosen, points[apart.argmax()][None]])
    return chosen
