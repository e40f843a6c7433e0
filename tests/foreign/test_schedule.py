"""Noise tables, sampling grids and prediction types of foreign diffusion models, against diffusers."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from policies.flow import solve, straight
from policies.foreign.schedule import Schedule, betas
from policies.spec import ContractError


@pytest.mark.parametrize("name", ["squaredcos_cap_v2", "linear", "scaled_linear"])
@pytest.mark.parametrize("levels", [50, 100, 1000])
def test_tables_are_those_of_diffusers(name: str, levels: int) -> None:
    theirs: Any = DDIMScheduler(levels, beta_start=0.0002, beta_end=0.03, beta_schedule=name)
    torch.testing.assert_close(betas(name, levels, 0.0002, 0.03), theirs.betas, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("levels", "steps"), [(100, 10), (100, 100), (100, 16), (100, 1), (50, 30), (1000, 7)])
def test_the_grid_visits_the_levels_of_diffusers_and_ends_in_the_data(levels: int, steps: int) -> None:
    theirs: Any = DDIMScheduler(levels, beta_schedule="squaredcos_cap_v2")
    theirs.set_timesteps(steps)
    schedule = Schedule(betas("squaredcos_cap_v2", levels, 0, 0), "epsilon", None)
    *grid, end = schedule.grid(steps)
    assert schedule.path.label(schedule.path.time(torch.tensor(grid))).tolist() == theirs.timesteps.tolist()
    assert end == 1


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("bound", [None, 0.6])
def test_a_schedule_reproduces_the_sampler_of_diffusers(prediction: str, bound: float | None) -> None:
    scheduler: Any = DDIMScheduler(
        100,
        beta_schedule="scaled_linear",
        beta_end=0.2,
        clip_sample=bound is not None,
        clip_sample_range=bound or 1.0,
        prediction_type=prediction,
    )
    scheduler.set_timesteps(20)
    native = start = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))

    def network(x: Tensor, k: Tensor) -> Tensor:
        assert k.dtype == torch.long
        return torch.tanh(x.roll(1, 1) + k[:, None, None] / 50)

    for k in scheduler.timesteps:
        native = scheduler.step(network(native, k.expand(4)), k, native).prev_sample
    schedule = Schedule(betas("scaled_linear", 100, 0.0001, 0.2), prediction, bound)
    grid = schedule.grid(20)
    ours = solve(straight(schedule.field(network)), start * (grid[0] ** 2 + (1 - grid[0]) ** 2) ** 0.5, grid)
    torch.testing.assert_close(ours, native, rtol=1e-5, atol=1e-5)


def test_what_is_unknown_or_impossible_is_refused() -> None:
    with pytest.raises(ContractError, match="'sigmoid' is unknown"):
        betas("sigmoid", 100, 0.0001, 0.02)
    table = betas("linear", 100, 0.0001, 0.02)
    with pytest.raises(ContractError, match="'flow' is unknown"):
        Schedule(table, "flow", None)
    for steps in (0, 101):
        with pytest.raises(ContractError, match=f"steps={steps}: the checkpoint has 100 noise levels"):
            Schedule(table, "epsilon", None).grid(steps)
