"""What is asked of numbers that people type, at the border: later they only fail where nobody knows what they were."""

from __future__ import annotations

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
