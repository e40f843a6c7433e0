"""What is asked of numbers that people type, at the border: later they only fail where nobody knows what they were."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from policies.spec import ContractError

LAST_SEED = 2**32 - 1


def at_least(least: int, **values: int) -> None:
    """Refuse values, given by their names, that are less than a whole number (`ContractError`)."""
    for name, value in values.items():
        if not value >= least:
            raise ContractError(f"{name} is {value}, it has to be at least {least}")


def check_seed(seed: int, name: str = "seed") -> None:
    """Refuse a seed that not every generator takes (`ContractError`)."""
    if not 0 <= seed <= LAST_SEED:
        raise ContractError(f"{name} is {seed}; choose one from 0 to {LAST_SEED}")


def require_finite(config: Any) -> None:
    """Refuse a dataclass with a number that is not finite (`ContractError`)."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ContractError(f"{field.name} is {value}, a finite number is needed")


def require_positive(config: Any, *names: str) -> None:
    """Refuse a dataclass in which one of these is not positive (`ContractError`)."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ContractError(f"{name} is {getattr(config, name)}, it has to be positive")
