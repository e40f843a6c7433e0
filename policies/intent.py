"""Streaming intent: a scene is read in four steps, the last one an intent, which guides a flow in two steps.

No weight of guidance suits every scene: a weak one is not obeyed, a strong one leaves the road. Several are tried, and
of those that do what is intended by rule the one with the most room is taken.

After arXiv 2605.12622, which has no public code: its published parts are the chain perceive, predict, judge, plan, an
index of 20 intents, classifier-free guidance by the intent, two denoising steps, and a memory of the previous
commitment. That memory is the chunk that is being executed: what it does by rule counts as evidence for doing so again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies import flowdit
from policies.checks import require_finite, require_positive
from policies.flow import Estimate, cfg, residual_cfg
from policies.ground import AHEAD
from policies.maneuver import INTENTS, LENGTHWAYS, Maneuvers, allowed
from policies.motion_head import MotionHead
from policies.nets.dit import Context, CrossBlock, DiT
from policies.spec import ContractError, Spec

CONFLICT = ("clear", "later", "soon")
WAYS = tuple("+".join(ways) or "none" for n in range(4) for ways in itertools.combinations(("left", "on", "right"), n))
STEPS = {"perceive": AHEAD, "predict": CONFLICT, "judge": WAYS, "plan": INTENTS}
"""The steps of the reasoning and what each may say: what is first ahead; whether going on straight ends in a conflict,
and in which half of the horizon; which ways are open; what to do."""
READING = 0.1  # weight of what the reasoning is trained on, beside the flow
PROBE = 0.6  # of the largest yaw rate, to try the ways left and right
SOON = 0.4  # s, after which what is left of a chunk shall still be what was intended: it is what will be remembered
NEVER = 1e3


@dataclass(frozen=True)
class Config(flowdit.Config):
    """Size of the transformer, and how intents are used.

    Args:
        intent: To follow instead of the own one, see `policies.maneuver.allowed`; empty for the own one.
        refuse: Least probability of what is commanded; below, the own intent is followed.
        candidates: Chunks per plan, guided by equal shares of ``guidance`` up to the whole.
        guidance: Weight of the intent; 1 is none and 0 ignores it. Where there is one candidate, few steps break plans
            above 1.5.
        guide: ``"full"`` compares with the field without intent; ``"residual"`` with the chunk being executed, which
            costs nothing. ``"learnt"`` knows what "full" does, without a second field, for weights up to that which it
            was distilled with.
        guided: Time up to which guidance acts: 0.5 is the first of two steps.
        stay: Log-odds by which another intent has to be likelier before the commitment is given up, half for each
            of its two parts; 0 has no memory.
        drop: Share of training samples without an intent.
        sigma: Standard deviation of the start noise.
        faithful: What it is worth that a candidate does what is intended, beside the log of its admissibility.
    """

    intent: str = ""
    refuse: float = 0.001
    candidates: int = 16
    guidance: float = 2.0
    guide: Literal["full", "residual", "learnt"] = "full"
    guided: float = 1.0
    stay: float = 4.5
    drop: float = 0.15
    sigma: float = 0.1
    faithful: float = 8.0

    def __post_init__(self) -> None:
        require_positive(self, "candidates", "sigma")
        require_finite(self)
        if self.guide not in ("full", "residual", "learnt"):
            raise ContractError(f"guide is '{self.guide}'; choose full or residual, or distil for learnt")
        allowed(self.intent)  # refuses what there is not


class Commitment(NamedTuple):
    """What the denoising steps of a chunk share.

    Args:
        chosen: Of the transformer, with the intent.
        free: Of the transformer, without.
        reading: ``(B, 4)`` what each of `STEPS` said.
        committed: ``(B, H, A)`` the chunk being executed, in normal units.
        held: ``(B,)`` whether there is one.
        weight: ``(B,)`` of guidance.
        observation: What was observed.
    """

    chosen: Context
    free: Context
    reading: Tensor
    committed: Tensor
    held: Tensor
    weight: Tensor
    observation: Mapping[str, Tensor]


class StreamingIntent(MotionHead):
    """Velocity field over chunks, guided by an intent that is inferred from the scene and carried over time."""

    Config = Config
    demonstrator = "varied"
    usual: ClassVar[Mapping[str, Any]] = {"history": 1, "sample_steps": 2, "temperature": 1.0}

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        width = config.width
        self.maneuvers = Maneuvers(spec.action, spec.dt)
        self.questions = nn.Parameter(0.02 * torch.randn(len(STEPS), width))
        self.answers = nn.ModuleList(nn.Embedding(len(words), width) for words in STEPS.values())
        self.reader = CrossBlock(width, config.heads)
        self.words = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(w))) for w in STEPS.values())
        self.intents = nn.Embedding(len(INTENTS) + 1, width)  # the last one stands for none

    def transformer(self, weights: bool = False) -> DiT:
        return super().transformer(weights or self.config.guide == "learnt")

    def as_student(self, ends: bool) -> Any:
        config = super().as_student(ends)
        return dataclasses.replace(config, guide="learnt") if config.guide == "full" else config

    def encode(self, observation: Mapping[str, Tensor]) -> Commitment:
        tokens, (committed, held) = self.scene(observation), self.executing(observation)
        evidence = self._evidence(committed, held)
        reading, _ = self.read(tokens, decide=lambda logits: self._decided(logits + evidence))
        none = torch.full_like(reading[:, -1], len(INTENTS))
        chosen = self._context(tokens, reading[:, -1])
        free = self._context(tokens, none) if self.config.guide == "full" else chosen
        weight = self.config.guidance * tokens.new_ones(len(tokens))
        return Commitment(chosen, free, reading, committed, held, weight, observation)

    def propose(self, context: Commitment) -> Any:
        count = self.candidates
        shares = torch.arange(1, count + 1, device=context.weight.device) / count
        return context._replace(
            chosen=_repeated(context.chosen, count),
            free=_repeated(context.free, count),
            committed=context.committed.repeat_interleave(count, 0),
            held=context.held.repeat_interleave(count, 0),
            weight=(context.weight[:, None] * shares).flatten(),
        )

    def rating(self, chunks: Tensor, context: Commitment) -> Tensor:
        """Whether chunks do what is intended, now and in what is soon left of them, and their room."""
        restored = self.restored(chunks)
        gone = min(round(SOON / self.spec.dt), self.spec.horizon - 1)
        left = torch.cat([restored[:, :, gone:], restored[:, :, -1:].expand(-1, -1, gone, -1)], 2)
        done = torch.stack([self.maneuvers.labels(part) for part in (restored, left)]) == context.reading[:, -1:]
        room = self.admissible(context.observation, self.motion.poses(restored))
        return self.config.faithful * done.float().mean(0) + room

    def _evidence(self, committed: Tensor, held: Tensor) -> Tensor:
        """Log-odds ``(B, 20)`` of each intent from what is being done."""
        count, now = len(LENGTHWAYS), self.maneuvers.labels(self.restored(committed))[:, None]
        intents = torch.arange(len(INTENTS), device=now.device)
        same = (intents // count == now // count).float() + (intents % count == now % count).float()
        return self.config.stay / 2 * same * (held > 0)[:, None]

    def _decided(self, logits: Tensor) -> Tensor:
        """The logits ``(B, 20)`` of what is commanded only, unless that is out of the question here."""
        commanded = torch.tensor(allowed(self.config.intent), device=logits.device)
        likely = (logits.softmax(-1) * commanded).sum(-1, keepdim=True) >= self.config.refuse
        return torch.where(commanded | ~likely, logits, -NEVER)

    def read(
        self,
        tokens: Tensor,
        said: Tensor | None = None,
        decide: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> tuple[Tensor, list[Tensor]]:
        """Answer one question after the other, each knowing the answers before.

        Args:
            tokens: ``(B, N, width)`` of the scene.
            said: ``(B, 4)`` true answers to the questions before, while training; its own ones by default.
            decide: What to make of the logits ``(B, 20)`` of the intents before the largest is taken.

        Returns:
            Answers ``(B, 4)`` and the logits of each question.
        """
        thought = tokens.new_zeros(len(tokens), 1, tokens.shape[-1])
        logits, answers = [], []
        for index, (words, answer) in enumerate(zip(self.words, self.answers, strict=True)):
            thought = self.reader(thought + self.questions[index], tokens)
            found = words(thought[:, 0])
            logits.append(decide(found) if index == len(STEPS) - 1 else found)
            answers.append(logits[-1].argmax(-1) if said is None else said[:, index])
            thought = thought + answer(answers[-1])[:, None]
        return torch.stack(answers, 1), logits

    def in_words(self, reading: Tensor) -> list[dict[str, str]]:
        """Readings ``(B, 4)`` as text."""
        return [
            {step: words[int(answer)] for (step, words), answer in zip(STEPS.items(), row, strict=True)}
            for row in reading
        ]

    def facts(self, observation: Mapping[str, Tensor], actions: Tensor) -> Tensor:
        """True answers ``(B, 4)``: by rule from what is observed, and from what the expert does, in SI units."""
        horizon, spec = self.spec.horizon, self.spec
        steady = actions[:, :1].expand(-1, horizon, -1)
        room = [
            self.ground.clearance(observation, self.motion.poses(part)[:, None], self.motion.dt)[:, 0]
            for part in (steady[:, : horizon // 2], steady)
        ]
        soon, later = (part < 0 for part in room)
        turning = torch.tensor([name in ("wz", "yaw_rate") for name in spec.action.names], device=actions.device)
        most = PROBE * turning * torch.tensor(spec.action.high, device=actions.device)
        ways = torch.stack([self.motion.poses(torch.where(turning, side * most, steady)) for side in (1, 0, -1)], 1)
        free = self.ground.clearance(observation, ways[:, :, : horizon // 2], self.motion.dt) > 0
        names = [
            "+".join(w for w, is_free in zip(("left", "on", "right"), code, strict=True) if is_free) or "none"
            for code in itertools.product((False, True), repeat=3)
        ]
        order = torch.tensor([WAYS.index(name) for name in names], device=actions.device)
        judged = order[(free * torch.tensor([4, 2, 1], device=free.device)).sum(-1)]
        conflict = torch.where(soon, 2, torch.where(later, 1, 0))
        return torch.stack([self.ground.ahead(observation), conflict, judged, self.maneuvers.labels(actions)], 1)

    def _context(self, tokens: Tensor, intent: Tensor) -> Context:
        return self.dit.context(torch.cat([tokens, self.intents(intent)[:, None]], 1))

    def estimate(self, x: Tensor, t: Tensor, context: Commitment) -> Estimate:
        config = self.config
        if config.guide == "learnt":
            return self.velocities(self.dit.guided(context.chosen, context.weight))(x, t)
        field = self.velocities(context.chosen)
        if config.guidance == 1 and config.candidates == 1:
            return field(x, t)
        weight = torch.where(t < config.guided, context.weight, 1.0)
        if config.guide == "residual":
            weight = torch.where(context.held > 0, weight, 1.0)
            return residual_cfg(field, context.committed, weight[:, None, None])(x, t)
        return cfg(field, self.velocities(context.free), weight[:, None, None])(x, t)

    def loss(self, observation: Mapping[str, Tensor], actions: Tensor, generator: torch.Generator) -> Tensor:
        tokens = self.scene(self.digest(observation))
        facts = self.facts(observation, self.restored(actions))
        _, logits = self.read(tokens, facts)
        reading = sum(functional.cross_entropy(found, facts[:, index]) for index, found in enumerate(logits))
        dropped = torch.rand(len(actions), generator=generator) < self.config.drop
        context = self._context(tokens, torch.where(dropped, len(INTENTS), facts[:, -1]))
        return self.chunk_loss(context, actions, generator) + READING * reading


def _repeated(context: Context, count: int) -> Context:
    """What `count` chunks per row share with each other, those of a row behind one another."""
    keys, values = (tensor.repeat_interleave(count, 1) for tensor in (context.keys, context.values))
    return Context(keys, values, context.modulation.repeat_interleave(count, 0))
