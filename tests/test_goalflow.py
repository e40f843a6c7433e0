"""GoalFlow: its vocabulary, its choice among goals and chunks, guidance and fallback."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.bundle import Bundle
from policies.composition import compose
from policies.export import export
from policies.flow import Estimate
from policies.goalflow import AROUND, Config, GoalFlow, Goals
from policies.golden import DRAWS, case, clearness, draw
from policies.head import COMMITTED, HELD
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import ActionSpec, ContractError, Feature, Spec

SPEC = Spec(
    (Feature("goal", (2,), "m", "base_link"), Feature("scan", (72,), "m", "base_link")),
    ActionSpec(("vx", "vy", "wz"), ("m/s", "m/s", "rad/s"), "base_link", (-0.3, -0.2, -0.7), (0.6, 0.2, 0.7)),
    10.0,
    1,
    16,
)
SMALL = Config(width=32, depth=2, heads=2, encoder_depth=1, goals=32, candidates=6)


def head(config: Config = SMALL, seed: int = 0) -> GoalFlow:
    torch.manual_seed(seed)
    made = GoalFlow(SPEC, config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def observation(batch: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    goal, scan = torch.rand(batch, 1, 2, generator=generator), 2 + torch.rand(batch, 1, 72, generator=generator)
    return {"goal": goal, "scan": scan}


def test_the_vocabulary_has_staying_first_and_no_goal_twice() -> None:
    made = head()
    assert made.goals[0].tolist() == [0, 0, 0]
    apart = torch.cdist(made._flat(made.goals), made._flat(made.goals)).fill_diagonal_(1)
    assert apart.min() > 1e-3
    assert made.spacing > 0


def test_experts_move_the_vocabulary_to_where_they_go() -> None:
    made, chunks = head(), torch.zeros(200, 16, 3)
    chunks[:, :, 0] = torch.linspace(0.3, 0.6, 200)[:, None]
    made.prepare(Normaliser.identity(SPEC), chunks)
    near = (made.goals[:, 1].abs() < 0.02) & (made.goals[:, 0] > 0.4) & (made.goals[:, 0] < 1.0)
    assert near.sum() > 16
    assert made.reach == pytest.approx(0.96, abs=0.05)


def test_candidates_have_goals_apart_and_the_best_first() -> None:
    made = head()
    context = made.encode(observation(3))
    picked = made._pick(made._scores(context.tokens)[0])
    goals = made._flat(made.goals)[picked[:, :-1]]
    assert (torch.cdist(goals, goals) + torch.eye(5)).min() >= SMALL.apart * made.spacing * 0.999
    assert (context.score[:, :-1].diff(dim=-1) <= 0).all()


def test_goals_are_refined_among_those_that_mean_the_same() -> None:
    made = head()
    flat = made._flat(made.goals)
    first = 5
    near = made._near()
    score = torch.full((1, 32), -5.0)
    score[0, first] = 0.0
    picked = torch.full((1, 6), first)
    alone = made._refined(picked, torch.where(near[first] > 0, score, 3.0))[0, 0]  # what is far never counts
    apart = (made._flat(alone[None]) - flat[first]).norm()
    assert apart <= SMALL.apart * made.spacing
    score[0] = torch.where(near[first] > 0, 0.0, -5.0)
    mean = made._flat(made._refined(picked, score))[0, 0, :2]
    torch.testing.assert_close(mean, flat[near[first] > 0].mean(0)[:2], atol=0.05, rtol=0.05)


def test_every_candidate_is_conditioned_on_its_own_goal() -> None:
    made = head()
    context = made.encode(observation())
    proposed = made.propose(context)
    x, t = torch.zeros(6, 16, 3), torch.zeros(6)
    together = made.estimate(x, t, proposed).data
    assert torch.cdist(together.flatten(1), together.flatten(1)).fill_diagonal_(1).min() > 1e-5
    alone = made.estimate(x[:1], t[:1], context).data
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


def test_guidance_exaggerates_the_goal_and_is_linear_in_its_weight() -> None:
    made, x, t = head(), torch.zeros(1, 16, 3), torch.zeros(1)
    found = {}
    for weight in (0.0, 1.0, 2.0):
        made.config = replace(SMALL, guidance=weight)
        found[weight] = made.estimate(x, t, made.encode(observation())).data
    assert (found[2.0] - found[1.0]).abs().max() > 1e-5
    torch.testing.assert_close(found[2.0], 2 * found[1.0] - found[0.0], atol=1e-5, rtol=1e-4)


def rated(made: GoalFlow, chunks: torch.Tensor, **changed: torch.Tensor) -> torch.Tensor:
    context: Goals = made.encode(observation())._replace(**changed)
    return made.rating(chunks, context)[0]


def test_the_rating_prefers_chunks_that_reach_their_goals_and_have_room() -> None:
    made = head()
    level = {
        "goals": torch.zeros(1, 6, 3),  # all want to stay
        "score": torch.zeros(1, 6),
        "admissible": torch.tensor([True]),
    }
    chunks = torch.zeros(1, 6, 16, 3)
    chunks[0, 1, :, 0] = 0.1
    chunks[0, 2, :, 0] = 0.3
    chunks[0, 3, :, 0] = 3.0  # into what the scan sees
    score = rated(made, chunks, **level)
    assert score[0] > score[1] > score[2] > score[3]
    assert score[-1] < -1e3  # the one without a goal is not needed


def test_the_rating_prefers_what_changes_the_chunk_being_executed_least() -> None:
    made, chunks = head(), torch.zeros(1, 6, 16, 3)
    executing = {COMMITTED: 0.1 * torch.ones(1, 16, 3), HELD: torch.ones(1)}
    before = rated(made, chunks)
    assert not torch.equal(before, rated(made, chunks, observation=observation() | executing))
    none = {**executing, HELD: torch.zeros(1)}
    torch.testing.assert_close(before, rated(made, chunks, observation=observation() | none))
    change = before - rated(made, chunks, observation=observation() | executing)
    torch.testing.assert_close(change[:-1], torch.full((5,), SMALL.comfort * 0.01), atol=1e-5, rtol=1e-3)


def test_without_an_admissible_goal_the_chunk_without_a_goal_is_taken() -> None:
    made = head()
    chunks = torch.rand(1, 6, 16, 3, generator=torch.Generator().manual_seed(0))
    context = made.encode(observation())._replace(admissible=torch.tensor([False]))
    assert made.rating(chunks, context).argmax(-1).tolist() == [5]


def test_toward_a_given_goal_candidates_lie_around_it() -> None:
    made, goal = head(), torch.tensor([[1.0, 0.5, 0.3], [0.4, -0.2, -1.0]])
    context = made.toward(made.encode(observation(2)), goal)
    torch.testing.assert_close(context.goals[:, 0], goal)
    away = (context.goals[:, :-1, :2] - goal[:, None, :2]).norm(dim=-1) / made.spacing
    assert away[:, 1:].min() > 0.1 and away.max() < 1.01 * torch.tensor(AROUND).norm()
    torch.testing.assert_close(context.score[:, :-1], -SMALL.reached * away, atol=1e-5, rtol=1e-4)
    along = torch.stack([goal[:, 2].cos(), goal[:, 2].sin()], -1)[:, None]
    ahead = ((context.goals[:, :-1, :2] - goal[:, None, :2]) * along).sum(-1) / made.spacing
    assert (away.square() - ahead.square()).max() < 1.01 * AROUND[1] ** 2 < ahead.square().max()
    x, t = torch.zeros(2, 16, 3), torch.zeros(2)
    alone = made.estimate(x, t, context).data
    together = made.estimate(x.repeat_interleave(6, 0), t.repeat_interleave(6), made.propose(context)).data
    torch.testing.assert_close(together[::6], alone, atol=1e-5, rtol=1e-5)
    few = head(replace(SMALL, candidates=2))
    assert few.toward(few.encode(observation(2)), goal).goals[:, 0].tolist() == goal.tolist()
    single = head(replace(SMALL, candidates=1))
    with pytest.raises(ContractError, match="a single candidate plans without goals"):
        single.toward(single.encode(observation(2)), goal)


def test_a_single_candidate_plans_without_a_goal() -> None:
    made = head(replace(SMALL, candidates=1))
    x, t = torch.zeros(1, 16, 3), torch.zeros(1)
    context = made.propose(made.encode(observation()))
    found = made.estimate(x, t, context).data
    changed = made.estimate(x, t, context._replace(goals=context.goals + 1)).data
    torch.testing.assert_close(found, changed)
    all_six = head().eval()
    context = all_six.propose(all_six.encode(observation()))
    last = all_six.estimate(x.repeat(6, 1, 1), t.repeat(6), context).data[-1:]
    torch.testing.assert_close(found, last)


def test_a_standing_robot_and_equal_candidates_rate_finite() -> None:
    made = head()
    score = rated(made, torch.zeros(1, 6, 16, 3))
    assert score.isfinite().all()


def test_the_chosen_chunk_leaves_the_bundle_as_it_leaves_torch(tmp_path: Path) -> None:
    policy = Policy(head(), Normaliser.identity(SPEC), steps=1).eval()
    export(policy, tmp_path / "goal.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "goal.kfb")
    generator = torch.Generator().manual_seed(1)
    seen = {name: value[0].numpy() for name, value in observation().items()}
    noise = torch.randn(16, 3, generator=generator).numpy()
    inputs = seen, noise, 0 * noise, 0 * noise[:, 0]
    assert abs(bundle.act(*inputs) - policy.act(*inputs)).max() < 1e-4


def test_candidates_start_from_noise_of_their_own() -> None:
    policy = Policy(head(), Normaliser.identity(SPEC), steps=1).eval()
    policy.head.estimate = lambda x, t, context: Estimate(x, x)  # type: ignore[method-assign]
    noise, nothing = torch.randn(2, 16, 3), torch.zeros(2, 16, 3)
    chunks = policy.candidates(policy.encode(observation(2), nothing), noise, nothing, nothing[..., 0]).chunks
    signs = chunks / (SMALL.sigma * noise[:, None])
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
    torch.testing.assert_close(signs[:, 0], torch.ones_like(signs[:, 0]))
    torch.testing.assert_close(signs[0, ..., 0] @ signs[0, ..., 0].T, 16 * torch.eye(6), atol=1e-4, rtol=0)


def test_the_inputs_an_export_is_compared_on_leave_the_clearest_choice() -> None:
    policy, hold = Policy(head(), Normaliser.identity(SPEC), steps=1).eval(), np.zeros(16, np.float32)
    compared = case(policy, np.random.default_rng(0), hold)
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        draws = [draw(policy, rng, hold) for _ in range(DRAWS)]
        margins = [clearness(policy, drawn) for drawn in draws]
    best = draws[int(np.argmax(margins))]
    assert len(set(margins)) == DRAWS and min(margins) >= 0
    np.testing.assert_array_equal(compared["noise"], best["noise"])


def test_a_composition_of_fields_is_refused_and_one_of_chunks_is_not() -> None:
    parents = [Policy(head(seed=seed), Normaliser.identity(SPEC), steps=1).eval() for seed in (0, 1)]
    with pytest.raises(ContractError, match=r"noise of size 0\.1"):
        compose(parents, [0.5, 0.5])
    assert compose(parents, [0.5, 0.5], level="action").spec.horizon == 16


def test_the_noise_is_as_small_as_in_training() -> None:
    policy = Policy(head(), Normaliser.identity(SPEC), steps=2)
    noise = torch.ones(1, 16, 3)
    torch.testing.assert_close(policy.start(noise), SMALL.sigma * noise)
