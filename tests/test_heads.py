"""What every head has to do. Heads are discovered: a new file in policies/ is tested without being listed."""

import pkgutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import policies
from policies.composition import Composition
from policies.head import Head, find_head, head_name
from policies.norm import Normaliser
from policies.policy import Policy
from policies.senses import GOAL_PATH, VIDEO_PATH
from policies.spec import ActionSpec, ContractError, Feature, Spec

SPEC = Spec(
    (Feature("goal", (2,), "m", "base_link"), Feature("scan", (72,), "m", "base_link")),
    ActionSpec(("vx", "vy", "wz"), ("m/s", "m/s", "rad/s"), "base_link", (-0.3, -0.2, -0.7), (0.6, 0.2, 0.7)),
    10.0,
    2,
    16,
)
PICTURES = {
    "goal_path": GOAL_PATH,
    "video_path": VIDEO_PATH,
    "goal_video": Feature("goal_video", (16, 3, 32, 32), "1", "head_camera", "uint8", constant=True),
    "instruction": Feature("instruction", (16,), "1", "text", "uint8", constant=True),
}


def discovered() -> list[type[Head]]:
    heads = []
    for module in pkgutil.iter_modules(policies.__path__):
        try:
            heads.append(find_head(module.name))
        except ValueError:
            continue  # not a head's file
    return [head for head in heads if head is not Composition]  # a composition needs parents: test_composition


HEADS = discovered()


def contract(head: type[Head]) -> Spec:
    """The usual contract, and what the head needs beside it."""
    try:
        head(SPEC, head.Config())
    except ContractError:
        return replace(SPEC, observations=(*SPEC.observations, *PICTURES.values()))
    return SPEC


def make(head: type[Head], seed: int = 0) -> Head:
    torch.manual_seed(seed)
    made = head(contract(head), head.Config())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # away from the zero-initialised output
    return made.eval()


def batch(head: type[Head], size: int, seed: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    generator, spec = torch.Generator().manual_seed(seed), contract(head)

    def draw(feature: Feature) -> Tensor:
        shape = (size, spec.samples(feature), *feature.shape)
        if feature.dtype == "uint8":
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return torch.rand(shape, generator=generator) * 2 - 1

    observation = {feature.name: draw(feature) for feature in spec.observations}
    return observation, torch.rand(size, SPEC.horizon, SPEC.action.dim, generator=generator) * 2 - 1


def test_there_is_a_head() -> None:
    assert "FlowDiT" in [head.__name__ for head in HEADS]


@pytest.mark.parametrize("kind", HEADS)
def test_estimate_has_the_shape_of_the_chunk_and_mixes_to_it_unless_clipped(kind: type[Head]) -> None:
    observation, x = batch(kind, 5)
    t = torch.linspace(0.1, 0.9, 5)
    data, noise = make(kind).bind(observation)(x, t)
    assert data.shape == noise.shape == x.shape
    mixed = t[:, None, None] * data + (1 - t[:, None, None]) * noise
    free = data.abs() != 1
    assert free.any()
    torch.testing.assert_close(mixed[free], x[free], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", HEADS)
def test_one_sample_alone_equals_the_same_sample_in_a_batch(kind: type[Head]) -> None:
    head, (observation, x), t = make(kind), batch(kind, 4), torch.full((4,), 0.3)
    together = head.bind(observation)(x, t).data[2:3]
    alone = head.bind({name: value[2:3] for name, value in observation.items()})(x[2:3], t[2:3]).data
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", [feature.name for feature in SPEC.observations])
def test_every_observation_matters(kind: type[Head], name: str) -> None:
    head, (observation, x), t = make(kind), batch(kind, 2), torch.full((2,), 0.3)
    changed = observation | {name: -observation[name]}
    assert (head.bind(observation)(x, t).noise - head.bind(changed)(x, t).noise).abs().max() > 1e-4


@pytest.mark.parametrize("kind", HEADS)
def test_the_loss_is_reproducible_and_falls_on_64_samples(kind: type[Head]) -> None:
    torch.manual_seed(0)
    head, (observation, actions) = kind(contract(kind), kind.Config()), batch(kind, 64)
    head.prepare(Normaliser.identity(contract(kind)), actions)
    if "remaining" in kind.labels:
        observation["remaining"] = torch.linspace(0, 5, 64)
    losses = [head.loss(observation, actions, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert losses[0] == losses[1]
    optimiser, generator = torch.optim.AdamW(head.parameters(), 1e-3), torch.Generator().manual_seed(0)
    for _ in range(40):
        optimiser.zero_grad()
        head.loss(observation, actions, generator).backward()
        optimiser.step()
    assert head.loss(observation, actions, torch.Generator().manual_seed(7)) < 0.8 * losses[0]


@pytest.mark.parametrize("kind", HEADS)
def test_a_saved_policy_plans_the_same_chunk(kind: type[Head], tmp_path: Path) -> None:
    policy, (observation, noise) = (
        Policy(make(kind), Normaliser.identity(contract(kind)), steps=3).eval(),
        batch(kind, 1),
    )
    policy.save(tmp_path)
    again = Policy.load(tmp_path)
    inputs = observation, noise, torch.zeros_like(noise), torch.zeros(1, SPEC.horizon)
    assert torch.equal(policy.plan(*inputs).actions, again.plan(*inputs).actions)


@pytest.mark.parametrize("kind", HEADS)
def test_a_plan_keeps_what_is_held_and_the_limits(kind: type[Head]) -> None:
    policy, (observation, noise) = Policy(make(kind), Normaliser.identity(contract(kind))).eval(), batch(kind, 1)
    committed, hold = torch.full_like(noise, 0.1), torch.zeros(1, SPEC.horizon)
    hold[:, :4] = 1
    chunk = policy.plan(observation, 3 * noise, committed, hold).actions
    torch.testing.assert_close(chunk[:, :4], committed[:, :4], atol=1e-5, rtol=0)
    assert (chunk >= torch.tensor(SPEC.action.low) - 1e-6).all()
    assert (chunk <= torch.tensor(SPEC.action.high) + 1e-6).all()


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_found_by_the_name_it_is_saved_under(kind: type[Head]) -> None:
    assert find_head(head_name(make(kind))) is kind


@pytest.mark.parametrize("name", ["nosuchhead", "spec", "motion_head", "policies.flowdit:Nothing"])
def test_an_unknown_head_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"nosuchhead|policies\.(spec|motion_head|flowdit)"):
        find_head(name)


def test_missing_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"holds no policy"):
        Policy.load(tmp_path)
    kind = find_head("flowdit")
    Policy(kind(SPEC, kind.Config(width=32)), Normaliser.identity(SPEC)).save(tmp_path)
    settings = (tmp_path / "policy.json").read_text().replace('"width": 32', '"width": 64')
    (tmp_path / "policy.json").write_text(settings)
    with pytest.raises(ContractError, match="does not fit"):
        Policy.load(tmp_path)


def test_at_least_one_denoising_step() -> None:
    kind = find_head("flowdit")
    with pytest.raises(ValueError, match="steps=0"):
        Policy(kind(SPEC, kind.Config(width=32)), Normaliser.identity(SPEC), steps=0)
