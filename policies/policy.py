"""A policy: a trained head, its normaliser and its sampler. It is what is evaluated, exported and launched."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import pad

from policies.bundle import SETTINGS, WEIGHTS, read_policy
from policies.files import replace_file
from policies.flow import Field, Found, Reward, hold, limited, rollover, solve, straight
from policies.head import COMMITTED, HELD, Head, find_head, head_name
from policies.norm import ACTION, Normaliser
from policies.spec import Array, ContractError, Observation, Spec

COPY_AGAIN = "copy it again, or run 'git lfs pull' if it is a pointer of Git LFS"


class Plan(NamedTuple):
    """A batch of chunks.

    Args:
        actions: ``(B, H, A)``, SI units, within the limits of the contract.
        disagreement: ``(B,)`` between the parents of a composition in normal units, 0 for a head that is on its own.
        arrival: ``(B,)`` probability that the robot is where it shall stop, 0 for a head that does not say.
    """

    actions: Tensor
    disagreement: Tensor
    arrival: Tensor


class Candidates(NamedTuple):
    """What a plan is chosen from.

    Args:
        chunks: ``(B, candidates, past + H, A)``, normal units.
        rating: ``(B, candidates)`` of the head; the best one is taken.
    """

    chunks: Tensor
    rating: Tensor


class Policy(nn.Module):
    """Plans action chunks in SI units.

    Args:
        head: Action head; works in normal units.
        normaliser: Maps between the two.
        steps: Denoising steps.
        temperature: Scale of the start noise; below 1 chunks are less diverse and more typical.
        grid: The ``steps + 1`` increasing times between which they go; the head's own by default.
    """

    def __init__(
        self,
        head: Head,
        normaliser: Normaliser,
        steps: int = 4,
        temperature: float = 1.0,
        grid: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps={steps}: sampling needs at least one step")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature={temperature}: it scales noise, so it is a number that is not negative")
        if grid is not None and (len(grid) != steps + 1 or sorted({*grid}) != [*grid]):
            raise ValueError(f"grid={grid}: {steps} steps go between {steps + 1} increasing times")
        self.head, self.normaliser, self.steps, self.temperature = head, normaliser, steps, temperature
        self.grid = head.grid(steps) if grid is None else tuple(grid)
        """Times on the linear path between which the steps go."""
        self.disagreement = 0.0
        """Between the parents of a composition at the newest chunk, in normal units."""
        self.arrivals: Array = np.zeros(1, np.float32)
        """Probability that the robot is where it shall stop, per request of the newest `act_batch`."""

    @property
    def arrival(self) -> float:
        """Probability that the robot is where it shall stop at the newest chunk; the largest of a batch."""
        return float(self.arrivals.max())

    @property
    def spec(self) -> Spec:
        """The contract the head was built for."""
        return self.head.spec

    def with_steps(self, steps: int) -> Policy:
        """The same policy with a number of denoising steps; they share their weights."""
        grid = self.grid if steps == self.steps else None
        return Policy(self.head, self.normaliser, steps, self.temperature, grid).eval()

    def plan(self, observation: Mapping[str, Tensor], noise: Tensor, committed: Tensor, hold_weights: Tensor) -> Plan:
        """Plan a batch of chunks.

        Args:
            observation: ``{name: (B, T_obs, *shape)}``, SI units.
            noise: ``(B, past + H, A)`` standard normal sample.
            committed: ``(B, H, A)`` actions to hold on to, SI units.
            hold_weights: ``(B, H)`` in [0, 1].
        """
        return self.plan_digested(self.head.digest(self.normaliser(observation)), noise, committed, hold_weights)

    def plan_digested(
        self, observation: Mapping[str, Tensor], noise: Tensor, committed: Tensor, hold_weights: Tensor
    ) -> Plan:
        """`plan` from an observation in normal units that the head's `digest` returned."""
        encoded = self.encode(observation, committed)
        chunks, rating = self.candidates(encoded, noise, committed, hold_weights)
        if self.head.candidates > 1:
            chunks = chunks.gather(1, rating.argmax(-1)[:, None, None, None].expand_as(chunks[:, :1]))
        actions = self._actions(chunks[:, 0])
        remarks = self.head.disagreement(encoded), self.head.arrival(encoded)
        return Plan(actions, *(actions.new_zeros(len(actions)) if remark is None else remark for remark in remarks))

    def encode(self, observation: Mapping[str, Tensor], committed: Tensor) -> Any:
        """What the head makes of an observation in normal units that its `digest` returned, and of what is executed."""
        if not self.head.remembers:
            return self.head.encode(observation)
        executing = (committed != 0).flatten(1).any(-1)  # where nothing is executed there are zeros
        memory = {COMMITTED: self.normaliser.normalise(ACTION, committed), HELD: executing.to(committed.dtype)}
        return self.head.encode({**observation, **memory})

    def candidates(self, encoded: Any, noise: Tensor, committed: Tensor, hold_weights: Tensor) -> Candidates:
        """The chunks that follow from `encode`; other arguments as for `plan`."""
        past, head, count = self.spec.past, self.head, self.head.candidates
        context, committed = head.propose(encoded), self.normaliser.normalise(ACTION, committed)
        if count > 1:
            noise = _signed(noise, count)
            committed, hold_weights = (x.repeat_interleave(count, 0) for x in (committed, hold_weights))
        committed, weights = pad(committed, (0, 0, past, 0)), pad(hold_weights, (past, 0))
        context = head.given(context, committed, weights >= 1)

        def step(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            ending = head.until(context, t)
            field = hold(lambda x, t: head.estimate(x, t, ending), committed, weights)
            return straight(self._limited(field, committed, weights >= 1))(x, s, t)

        chunks = solve(step, self.start(noise), self.grid).unflatten(0, (-1, count))
        return Candidates(chunks, head.rating(chunks[:, :, past:], encoded))

    def _limited(self, field: Field, committed: Tensor, held: Tensor) -> Field:
        """Keep the limits of the contract at every denoising step, where it limits accelerations."""
        action = self.spec.action
        if not action.acceleration:
            return field
        limits = (action.low, action.high, action.acceleration)
        least, most, rate = (torch.tensor(values, device=committed.device) for values in limits)
        low, high = (self.normaliser.normalise(ACTION, bound) for bound in (least, most))
        step = rate * self.spec.dt * (high - low) / (most - least)
        return limited(field, low, high, step, committed, held)

    def bind(self, observation: Mapping[str, Tensor]) -> Field:
        """Fix an observation in SI units and return the field over normal chunks."""
        return self.head.bind(self.normaliser(observation))

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        """Plan one chunk from numpy arrays; see `policies.spec.ChunkPolicy`.

        Raises:
            ContractError: The observation does not fit the contract.
        """
        return self.act_batch([(observation, noise, committed, hold)])[0]

    @torch.inference_mode()
    def act_batch(self, requests: Sequence[tuple[Observation, Array, Array, Array]]) -> Array:
        """Plan one chunk per request, arguments of `act` each, in one pass; returns ``(B, H, A)``.

        Raises:
            ContractError: An observation does not fit the contract.
        """
        for observation, *_ in requests:
            self.spec.check(observation)

        def stack(values: Iterable[Array]) -> Tensor:
            return _tensor(np.stack([*values]))

        observations, *rest = zip(*requests, strict=True)
        batch = {name: stack(seen[name] for seen in observations) for name in observations[0]}
        plan = self.plan(batch, *(stack(values) for values in rest))
        self.disagreement, self.arrivals = float(plan.disagreement.max()), plan.arrival.numpy()
        return plan.actions.numpy()

    @torch.inference_mode()
    def search(
        self, observation: Observation, noise: Array, reward: Reward, budget: int, generator: torch.Generator
    ) -> Found:
        """Plan one chunk that a reward prefers, for more evaluations of its field (RBF, arXiv 2503.19385).

        Args:
            observation: As for `act`.
            noise: As for `act`.
            reward: Function of actions ``(N, H, A)`` in SI units with values ``(N,)``; more is better.
            budget: Most evaluations of the field, at least one per step; one evaluates all parents of a composition.
            generator: Source of the noise that makes the candidates differ.

        Returns:
            The chunk ``(1, H, A)`` in SI units within the limits, its reward and the evaluations spent.

        Raises:
            ContractError: The observation does not fit the contract.
            ValueError: The budget does not allow a single chunk.
        """
        self.spec.check(observation)
        field = self.bind({name: _tensor(value)[None] for name, value in observation.items()})
        start = self.start(_tensor(noise)[None])
        found = rollover(field, lambda data: reward(self._actions(data)), start, self.grid, generator, budget)
        return found._replace(chunk=self._actions(found.chunk))

    def start(self, noise: Tensor) -> Tensor:
        """Scale standard normal noise by the temperature and to the size of noisy normal data where the grid begins."""
        return self.temperature * self.head.noise_scale * math.hypot(self.grid[0], 1 - self.grid[0]) * noise

    def _actions(self, data: Tensor) -> Tensor:
        """Turn normal chunks ``(B, past + H, A)`` into actions ``(B, H, A)`` within the limits of the contract."""
        actions = self.normaliser.restore(ACTION, data[:, self.spec.past :])
        low, high = (torch.tensor(bound, device=data.device) for bound in (self.spec.action.low, self.spec.action.high))
        return torch.minimum(torch.maximum(actions, low), high)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the weights, as plain JSON values."""
        own = self.grid == self.head.grid(self.steps)
        return {
            "head": head_name(self.head),
            "config": dataclasses.asdict(self.head.config),
            "spec": self.spec.to_json(),
            "steps": self.steps,
            "temperature": self.temperature,
            **({} if own else {"grid": self.grid}),
        }

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> Policy:
        """Build an untrained policy from `settings`."""
        spec, head = Spec.from_json(settings["spec"]), find_head(settings["head"])
        sampler = settings["steps"], settings["temperature"], settings.get("grid")
        return cls(head(spec, head.Config(**settings["config"])), Normaliser.identity(spec), *sampler)

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and settings (JSON) into ``folder``, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip((WEIGHTS, SETTINGS), self.to_bytes(), strict=True):
            replace_file(folder / name, content)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """Return the weights (safetensors) and the settings (JSON)."""
        return save(self.state_dict()), json.dumps(self.settings, indent=2).encode()

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read a policy from a folder written by `save`, or from a bundle.

        Raises:
            ContractError: A file is missing or damaged, or the weights do not fit the settings.
        """
        if path.is_file():
            return cls.from_bytes(*read_policy(path), str(path))
        try:
            weights, settings = ((path / name).read_bytes() for name in (WEIGHTS, SETTINGS))
        except FileNotFoundError as error:
            raise ContractError(f"{path} holds no policy: {error.filename} is missing; train one first") from error
        return cls.from_bytes(weights, settings, str(path))

    @classmethod
    def from_bytes(cls, weights: bytes, settings: bytes, owner: str) -> Policy:
        """Rebuild a policy from `to_bytes`; ``owner`` is named in errors.

        Raises:
            ContractError: One of the two is damaged, or they do not fit each other.
        """
        try:
            policy = cls.build(json.loads(settings))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ContractError(f"{SETTINGS} of {owner} cannot be read: {error!r}; {COPY_AGAIN}") from error
        try:
            policy.load_state_dict(load(weights), strict=True)
        except SafetensorError as error:
            raise ContractError(f"{WEIGHTS} of {owner} is damaged: {error}; {COPY_AGAIN}") from error
        except RuntimeError as error:
            raise ContractError(f"{WEIGHTS} of {owner} does not fit its {SETTINGS}: {error}") from error
        return policy.eval()


def _signed(noise: Tensor, count: int) -> Tensor:
    """So many noises of each ``(B, T, A)``: the same values with other signs, which leaves them white.

    The signs are the rows of Sylvester's matrix, whose sums, which decide where a chunk leads, have nothing in common.
    """
    common = torch.arange(count)[:, None] & torch.arange(noise.shape[1])
    odd = (common[..., None] & 2 ** torch.arange(count.bit_length()) > 0).sum(-1) % 2
    return ((1 - 2 * odd).to(noise)[..., None] * noise[:, None]).flatten(0, 1)


def _tensor(values: Array) -> Tensor:
    """A tensor of float32; bytes stay bytes."""
    return torch.from_numpy(values if values.dtype == np.uint8 else np.float32(values))
