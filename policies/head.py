"""A head turns observations into a Field over action chunks. A new head is one file with one class and its Config."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from policies.flow import Estimate, Field, matching_loss, uniform, uniform_times
from policies.norm import Normaliser
from policies.spec import Spec

COMMITTED, HELD = "committed", "held"


class Head(nn.Module, ABC):
    """An action head. Everything it sees and returns is in normal units; see `policies.norm`.

    A subclass sets `Config` to a frozen dataclass of hyper-parameters with defaults, takes ``(spec, config)`` and
    writes `encode` and `estimate`. Whoever encodes an observation digests it first.
    """

    Config: ClassVar[type]
    labels: ClassVar[tuple[str, ...]] = ()
    """Labels of the episodes that `loss` gets beside the observation, see `policies.spec.Feature`, in their units.

    ``"remaining"`` is known everywhere: seconds to the end of the demonstration, ``(B,)``.
    """
    one_step: ClassVar[bool] = False
    """Whether the head only knows how to jump from noise to data, so that there is no field in between."""

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__()
        self.spec, self.config = spec, config

    usual: ClassVar[Mapping[str, Any]] = {}
    """Settings of `policies.train.Recipe` that are customary for this head, where they differ from the defaults."""
    demonstrator: ClassVar[str] = "expert"
    """Who shall be recorded to train it, where an environment knows that one, see `envs.collect.demonstrators`."""
    candidates: int = 1
    """Chunks that are denoised beside each other, of which the one that `rating` prefers is taken."""
    noise_scale: float = 1.0
    """Standard deviation of the noise that chunks start from."""
    remembers: ClassVar[bool] = False
    """Whether `encode` also gets ``COMMITTED`` ``(B, H, A)``, the actions being executed, and ``HELD`` ``(B,)``, which
    is 0 where nothing is, or only zeros."""

    def prepare(self, normaliser: Normaliser, chunks: Tensor) -> None:
        """Take note of what normal units stand for and what experts do, ``(N, H, A)`` in SI units; before training."""

    def digest(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace what is constant by what the network makes of it, once per goal, so that `encode` need not.

        The rest of the observation passes unchanged and does not count: a bundle digests the constant features alone,
        in a graph of their own. By default everything passes.

        Args:
            observation: ``{name: (B, T_obs, *shape)}``, constant features ``(B, 1, *shape)``; or these only.
        """
        return dict(observation)

    @abstractmethod
    def encode(self, observation: Mapping[str, Tensor]) -> Any:
        """Encode an observation that `digest` returned, once per chunk, into whatever `estimate` needs."""

    @abstractmethod
    def estimate(self, x: Tensor, t: Tensor, context: Any) -> Estimate:
        """Estimate data and noise of noisy chunks ``x`` (B, past + H, A) at times ``t`` (B,) on the linear path."""

    def until(self, context: Any, t: Tensor) -> Any:
        """The context of steps that end at times ``t`` (B,); a head that has learnt velocities alone needs no other."""
        return context

    def given(self, context: Any, actions: Tensor, known: Tensor) -> Any:
        """The context of chunks that are known in part, of which `policies.flow.hold` alone takes care by default.

        Args:
            context: Of `encode` or `propose`.
            actions: ``(B, past + H, A)``.
            known: ``(B, past + H)`` boolean.
        """
        return context

    def begins(self, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Which of the actions ``(B, past + H, A)`` are given in training, ``(B, past + H)``; by default none."""
        return torch.zeros(actions.shape[:2], dtype=torch.bool)

    def begun(self, context: Any, actions: Tensor, generator: torch.Generator) -> Any:
        """The context of expert chunks ``(B, past + H, A)`` of which some begins are given, in training."""
        return self.given(context, actions, self.begins(actions, generator))

    def grid(self, steps: int) -> tuple[float, ...]:
        """The ``steps + 1`` increasing times on the linear path at which sampling looks at the field; the last is 1.

        A field that knows nothing of pure noise begins later, on the standard deviation that normal data have there.
        """
        return uniform(steps)

    def loss(self, observation: Mapping[str, Tensor], actions: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar training loss for expert chunks ``actions`` (B, H, A)."""
        noise = self.noise_scale * torch.randn(actions.shape, generator=generator)
        times = uniform_times(len(actions), generator)
        context = self.begun(self.encode(self.digest(observation)), actions, generator)
        return matching_loss(self.field(context), actions, noise, times)

    def propose(self, context: Any) -> Any:
        """The context of `candidates` chunks per row, those of a row behind one another."""
        return context

    def rating(self, chunks: Tensor, context: Any) -> Tensor:
        """How good chunks ``(B, candidates, H, A)`` are that follow from a context of `encode`: ``(B, candidates)``."""
        return chunks.new_zeros(chunks.shape[:2])

    def disagreement(self, context: Any) -> Tensor | None:
        """How far apart the parents of a composition were, ``(B,)``; None for a head that is on its own."""
        return None

    def arrival(self, context: Any) -> Tensor | None:
        """Probability ``(B,)`` that the robot is where it shall stop; None for a head that does not say."""
        return None

    def bind(self, observation: Mapping[str, Tensor]) -> Field:
        """Fix the observation: digest and encode it once and return the field over chunks."""
        return self.field(self.encode(self.digest(observation)))

    def field(self, context: Any) -> Field:
        """The field of a context: velocities, where steps end as they begin."""
        return lambda x, t: self.estimate(x, t, self.until(context, t))


def find_head(name: str) -> type[Head]:
    """Find a head class by name, ``"flowdit-video"`` for ``policies/flowdit_video.py`` or ``"package.module:Class"``.

    Raises:
        ValueError: There is no such module or it defines no head.
    """
    module_name, _, class_name = name.partition(":")
    if not class_name and "." not in module_name:
        module_name = f"policies.{module_name.replace('-', '_')}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"no head '{name}': {error}; heads are files in policies/, e.g. 'flowdit'") from error
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, Head)
        and member.__module__ == module.__name__
        and not inspect.isabstract(member)
    ]
    chosen = [member for member in found if not class_name or member.__name__ == class_name]
    if not chosen:
        raise ValueError(f"{module_name} defines no head {class_name or ''}; it has {[c.__name__ for c in found]}")
    return chosen[0]


def head_name(head: Head) -> str:
    """The name `find_head` finds this head's class by."""
    return f"{type(head).__module__}:{type(head).__name__}"
