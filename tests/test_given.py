"""Chunks whose begin is given: what is executed while they are inferred."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from policies.diffusion import Config as DiffusionConfig
from policies.diffusion import Diffusion
from policies.export import export
from policies.flowdit import Config, DiTHead, FlowDiT
from policies.head import Head
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import ActionSpec, ContractError, Feature, Spec
from tests.test_goalflow import SPEC as DRIVING
from tests.test_goalflow import observation
from tests.test_intent import head as intent_head

HORIZON = 6
SPEC = Spec(
    (Feature("goal", (2,), "m", "base_link"),),
    ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-1.0, -1.0), (1.0, 1.0)),
    10.0,
    1,
    HORIZON,
)
SMALL = Config(width=32, depth=1, heads=2, given=3)


def experts(count: int, generator: torch.Generator) -> Tensor:
    """Chunks that go on as they begin, at one of two speeds, whatever is seen."""
    side = 1.6 * torch.randint(2, (count, 1, 1), generator=generator) - 0.8
    return side.expand(-1, HORIZON, 2)


@pytest.fixture(scope="module")
def trained() -> Head:
    torch.manual_seed(0)
    head, generator = FlowDiT(SPEC, SMALL), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(head.parameters(), 3e-3)
    for _ in range(300):
        optimiser.zero_grad()
        head.loss({"goal": torch.zeros(128, 1, 2)}, experts(128, generator), generator).backward()
        optimiser.step()
    return head.eval()


def continued(head: Head, known: int, steps: int = 2) -> Tensor:
    """Chunks of many noises whose first actions are 0.8 (the first half of them) or -0.8."""
    policy, count = Policy(head, Normaliser.identity(SPEC), steps).eval(), 200
    noise = torch.randn(count, HORIZON, 2, generator=torch.Generator().manual_seed(1))
    committed = torch.where(torch.arange(count) < count // 2, 0.8, -0.8)[:, None, None].expand(-1, HORIZON, 2)
    weights = (torch.arange(HORIZON) < known).float().expand(count, -1)
    with torch.inference_mode():
        return policy.plan({"goal": torch.zeros(count, 1, 2)}, noise, committed * weights[..., None], weights).actions


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("known", [1, 3])
def test_what_follows_goes_on_as_it_was_begun(trained: Head, known: int, steps: int) -> None:
    chunks, sides = continued(trained, known, steps), torch.tensor([0.8, -0.8]).repeat_interleave(100)
    assert torch.equal(chunks[:, :known], sides[:, None, None].expand(-1, known, 2))
    assert (chunks[:, known:] - sides[:, None, None]).abs().mean() < 0.25


def test_without_it_chunks_follow_hardly(trained: Head) -> None:
    unaware = FlowDiT(SPEC, replace(SMALL, given=0))
    unaware.load_state_dict({name: weight for name, weight in trained.state_dict().items() if "is_known" not in name})
    sides = torch.tensor([0.8, -0.8]).repeat_interleave(100)[:, None, None]
    apart = [(continued(head, 1)[:, 1:] - sides).abs().mean() for head in (trained, unaware.eval())]
    assert apart[0] < 0.3 * apart[1]


def test_nothing_given_is_as_before(trained: Head) -> None:
    chunks = continued(trained, 0, 10)
    assert 0.35 < (chunks[:, 0, 0] > 0).float().mean() < 0.65
    assert (chunks.abs() - 0.8).abs().mean() < 0.2


def test_as_many_actions_are_given_in_training_as_a_delay_may_take(trained: Head) -> None:
    actions, generator = torch.zeros(400, HORIZON, 2), torch.Generator().manual_seed(0)
    known = trained.begins(actions, generator)
    assert sorted({*known.sum(1).tolist()}) == [0, 1, 2, 3]
    assert (known.int().diff(dim=1) <= 0).all()  # from the first one on
    assert not FlowDiT(SPEC, replace(SMALL, given=0)).begins(actions, generator).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlowDiT(SPEC, SMALL),
        lambda: Diffusion(SPEC, DiffusionConfig(width=32, depth=1, heads=2, given=3)),
        lambda: intent_head(given=3),
    ],
    ids=["flowdit", "diffusion", "intent"],
)
def test_every_head_on_the_transformer_learns_what_it_is_for(make: Callable[[], DiTHead]) -> None:
    head = make().train()
    seen = {"goal": torch.zeros(8, 1, 2)} if head.spec is not DRIVING else observation(8)
    actions = 0.1 * torch.randn(8, *head.spec.noise_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.02)
    head.loss(seen, actions, torch.Generator().manual_seed(0)).backward()
    grad = head.dit.is_known.grad
    assert grad is not None and grad.abs().max() > 0


def test_a_bundle_does_so_too(trained: Head, tmp_path: Path) -> None:
    policy = Policy(trained, Normaliser.identity(SPEC), 2).eval()
    assert export(policy, tmp_path / "given.kfb", provenance={}).max_error < 1e-4


def test_fewer_actions_than_none_are_refused() -> None:
    with pytest.raises(ContractError, match="given is -1, it has to be at least 0"):
        FlowDiT(SPEC, replace(SMALL, given=-1))
