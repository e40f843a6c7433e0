from collections.abc import Callable

import pytest
import torch
from analytic import Gaussian, Mixture, independent_gaussian, smooth_gaussian
from torch import Tensor

from policies.flow import Estimate, Field, Found, best_of, rollover, sde, solve, straight, uniform

PLAN = smooth_gaussian(4)
TARGET = PLAN.mean + torch.linspace(-1, 1, 4)[:, None]
SEARCHES = {"best_of": best_of, "rollover": rollover}


def near(data: Tensor) -> Tensor:
    return -((data - TARGET) ** 2).sum((1, 2))


def start(seed: int = 0, horizon: int = 4) -> Tensor:
    return torch.randn(1, horizon, 1, generator=draw(seed), dtype=torch.float64)


def draw(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counted:
    """A field that counts how many chunks it was asked about."""

    def __init__(self, field: Field) -> None:
        self.field, self.evaluations = field, 0

    def __call__(self, x: Tensor, t: Tensor) -> Estimate:
        self.evaluations += len(x)
        return self.field(x, t)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("budget", [5, 11, 30])
def test_a_search_stays_within_its_budget_and_reports_what_it_found(
    search: Callable[..., Found], steps: int, budget: int
) -> None:
    for grid in (uniform(steps), tuple(0.1 + 0.9 * time for time in uniform(steps))):
        field = Counted(PLAN.field)
        found = search(field, near, start(), grid, draw(), budget)
        assert found.evaluations == field.evaluations <= budget
        assert found.chunk.shape == (1, 4, 1) and near(found.chunk).item() == found.reward


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_the_smallest_budget_is_one_plain_sample(search: Callable[..., Found]) -> None:
    found = search(PLAN.field, near, start(), uniform(6), draw(), 6)
    torch.testing.assert_close(found.chunk, solve(sde(PLAN.field, draw()), start(), uniform(6)), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="a budget of 5 evaluations does not last for 6 steps"):
        search(PLAN.field, near, start(), uniform(6), draw(), 5)


def test_what_a_step_does_not_need_rolls_over_to_the_next() -> None:
    def run(rewards: Callable[[int], float]) -> tuple[int, list[float]]:
        times: list[float] = []

        def field(x: Tensor, t: Tensor) -> Estimate:
            times.append(t.item())
            return PLAN.field(x, t)

        found = rollover(field, lambda _: torch.tensor([rewards(len(times))]), start(), uniform(5), draw(), 21)
        return found.evaluations, times

    assert run(lambda call: float(call)) == (5, list(uniform(5)[:-1]))  # every first candidate is better
    spent, times = run(lambda call: -float(call))  # none ever is: each step spends its share
    assert spent == 21 and [times.count(time) for time in uniform(5)[:-1]] == [1, 5, 5, 5, 5]
    spent, times = run(lambda call: float(call) if call <= 3 else -float(call))  # two easy steps, then hard ones
    assert spent == 21 and [times.count(time) for time in uniform(5)[:-1]] == [1, 1, 1, 13, 5]


def test_the_best_candidate_is_followed_when_none_is_better() -> None:
    rewards = iter([0.0, -3.0, -1.0, -2.0])
    chunks: list[Tensor] = []

    def reward(data: Tensor) -> Tensor:
        chunks.append(data)
        return torch.tensor([next(rewards)])

    found = rollover(PLAN.field, reward, start(), uniform(2), draw(), 4)
    assert found.reward == -1 and torch.equal(found.chunk, chunks[2])


def mean_reward(search: Callable[..., Found], field: Field, reward: Callable[[Tensor], Tensor], budget: int) -> Tensor:
    found = [search(field, reward, start(seed), uniform(8), draw(seed), budget).reward for seed in range(25)]
    return torch.tensor(found).mean()


MODES = Mixture(torch.tensor([0.7, 0.3]).double(), [independent_gaussian(mean, 0.1, 4) for mean in (-1, 1)])
TASKS = {"target": (PLAN.field, near), "mode": (MODES.field, lambda data: -((data - 1.2) ** 2).sum((1, 2)))}


@pytest.mark.parametrize(("field", "reward"), TASKS.values(), ids=TASKS)
def test_rollover_earns_more_than_best_of_and_that_more_than_a_sample(
    field: Field, reward: Callable[[Tensor], Tensor]
) -> None:
    plain = mean_reward(best_of, field, reward, 8)
    best, rolled = (mean_reward(search, field, reward, 48) for search in (best_of, rollover))
    assert rolled > best > plain


def test_rollover_beats_the_best_of_as_many_deterministic_samples() -> None:
    starts = torch.cat([start(seed) for seed in range(150)])
    ends = near(solve(straight(PLAN.field), starts, uniform(8))).view(25, 6).amax(1)
    assert mean_reward(rollover, PLAN.field, near, 48) > ends.mean()


def test_a_found_chunk_is_still_typical_of_the_data() -> None:
    distances = []
    for seed in range(25):
        chunk = rollover(PLAN.field, near, start(seed), uniform(8), draw(seed), 48).chunk
        offset = (chunk[0] - PLAN.mean).flatten()
        distances.append(offset @ torch.linalg.solve(PLAN.covariance, offset))
    wanted = (TARGET - PLAN.mean).flatten()
    assert torch.stack(distances).mean() < wanted @ torch.linalg.solve(PLAN.covariance, wanted)


def test_searches_repeat_with_their_generator_only() -> None:
    field: Field = Gaussian(PLAN.mean, PLAN.covariance).field
    for search in SEARCHES.values():
        once, again, other = (search(field, near, start(), uniform(5), draw(seed), 20).chunk for seed in (1, 1, 2))
        assert torch.equal(once, again) and not torch.equal(once, other)
