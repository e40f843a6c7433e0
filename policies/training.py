"""What every trainer does: take steps, and continue an interrupted run exactly where it was."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from policies.files import replace_file
from policies.spec import ContractError

STATE = "state.safetensors"


class Schedule(Protocol):
    """What every recipe says."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Training:
    """All that changes while a network is trained.

    Args:
        out: Directory of the run.
        recipe: How long and how fast to train.
        networks: What is trained, then, if wanted, its running average; by what their tensors' names begin with.
        ema: Decay of the average.
        adamw: Settings of the optimiser.
    """

    def __init__(
        self, out: Path, recipe: Schedule, networks: Mapping[str, nn.Module], ema: float = 0.0, **adamw: Any
    ) -> None:
        self._out, self._recipe, self._networks, self._ema = out, recipe, networks, ema
        weights: list[list[Tensor]] = [[*network.parameters()] for network in networks.values()]
        self._weights, *self._averages = weights
        self._optimiser = torch.optim.AdamW(self._weights, recipe.learning_rate, **adamw)
        self.step, self.generator = 0, torch.Generator().manual_seed(recipe.seed)

    @property
    def rate(self) -> float:
        """Learning rate of the step: linear warm-up, then cosine decay to 1 %."""
        recipe = self._recipe
        if self.step < recipe.warmup:
            return recipe.learning_rate * self.step / recipe.warmup
        done = (self.step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)

    def advance(self, loss: Tensor) -> float:
        """Take one step and return the loss, which must be finite (`FloatingPointError`)."""
        self.step += 1
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimiser.step()
        keep = min(self._ema, self.step / (self.step + 9))  # a young average must forget the random start
        for average in self._averages:
            torch._foreach_lerp_(average, [weight.detach() for weight in self._weights], 1 - keep)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {self.step}; lower --learning-rate")
        return value

    def enter(self, about: Mapping[str, str], resume: bool) -> None:
        """Continue a run about the same, or see that there is none yet (`ContractError`)."""
        if resume != (self._out / STATE).exists():
            remedy = "start without --resume" if resume else "continue it with --resume or choose another --out"
            raise ContractError(f"{self._out} holds {'no' if resume else 'a'} run already; {remedy}")
        if resume:
            with self._intact(), safe_open(self._out / STATE, "pt") as file:
                past = {name: file.metadata()[name] for name in about}
            self.load(past, about)

    def save(self, about: dict[str, str] | None = None, **more: Tensor) -> None:
        """Write everything to the directory in one step."""
        parts = {name: network.state_dict() for name, network in self._networks.items()}
        parts |= {f"optimiser.{index}": self._optimiser.state[weight] for index, weight in enumerate(self._weights)}
        state = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        state |= {"step": torch.tensor(self.step), "generator": self.generator.get_state(), **more}
        self._out.mkdir(parents=True, exist_ok=True)
        replace_file(self._out / STATE, save(state, about))

    def load(self, past: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take over what was saved, and return it, unless the run was about something else (`ContractError`)."""
        for name, value in past.items():
            if value != present[name]:
                raise ContractError(f"cannot resume {self._out}: {name} was {value}, now it is {present[name]}")
        with self._intact():
            state = load_file(self._out / STATE)
            self.step = int(state["step"])
            self.generator.set_state(state["generator"])
            for name, network in self._networks.items():
                network.load_state_dict(_under(f"{name}.", state))
        for index, weight in enumerate(self._weights):
            self._optimiser.state[weight] = _under(f"optimiser.{index}.", state)
        return state

    @contextmanager
    def _intact(self) -> Iterator[None]:
        """Names the file that what is read inside comes from, and the remedy, if it is damaged (`ContractError`)."""
        try:
            yield
        except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
            path = self._out / STATE
            raise ContractError(f"{path} is damaged ({error}); delete it and train again without --resume") from error


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Inside Ctrl-C only sets the event, so that a step is taken whole and can be saved; who looks at it raises."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone may have handlers, and gets Ctrl-C
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds what is made inside: torch initialises layers from its global generator only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
