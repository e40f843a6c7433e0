"""A composition is a policy, and it is exactly what its parents say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parents import ACTIONS, CORNERS, POSE, diffusion, flow, request, seen_by

import kinoflow
from policies.bundle import Bundle
from policies.composition import Composition, compose
from policies.export import export
from policies.load import load_policy, load_trained
from policies.norm import ACTION
from policies.policy import Policy
from policies.spec import ContractError


def act(policy: Policy, seed: int = 0) -> np.ndarray:
    return policy.act(*request(policy.spec, seed))


def sampled(policy: Policy, steps: int, temperature: float) -> Policy:
    """The same policy with another sampler."""
    return Policy(policy.head, policy.normaliser, steps, temperature).eval()


def test_parents_of_both_kinds_and_with_their_own_observations_make_one_policy() -> None:
    both = compose([flow(), diffusion()], [0.6, 0.4])
    assert both.spec.observations == (POSE, CORNERS) and both.spec.action == ACTIONS
    assert both.grid[0] > 0, "the grid is on the noise levels of the diffusion parent"
    chunk = act(both)
    assert chunk.shape == (8, 2) and np.isfinite(chunk).all() and both.disagreement > 0


@pytest.mark.parametrize("parent", [flow, diffusion])
def test_one_hot_weights_return_the_parent_bit_for_bit(parent: Any) -> None:
    one, other = parent(), flow(seed=5)
    alone = compose([other, one], [0, 1])
    np.testing.assert_array_equal(act(alone), act(one))
    assert alone.disagreement == 0 and alone.spec == one.spec


def test_a_policy_composed_with_itself_is_itself() -> None:
    one = flow()
    np.testing.assert_allclose(act(compose([one, one], [0.3, 0.7])), act(one), atol=1e-5)


def test_the_order_of_the_parents_and_nesting_do_not_matter() -> None:
    a, b, c = flow(0), flow(2), flow(3)
    flat = act(compose([a, b, c], [0.5, 0.3, 0.2]))
    np.testing.assert_allclose(act(compose([c, a, b], [0.2, 0.5, 0.3])), flat, atol=1e-5)
    nested = compose([compose([a, b], [0.625, 0.375]), c], [0.8, 0.2])
    np.testing.assert_allclose(act(nested), flat, atol=1e-5)


def test_a_consensus_inside_another_becomes_its_parents() -> None:
    a, b, c = flow(0), flow(2), flow(3)
    nested = compose([compose([a, b], [0.625, 0.375]), c], [0.8, 0.2]).head
    assert isinstance(nested, Composition) and len(nested.policies) == 3
    assert nested.config.weights == pytest.approx((0.5, 0.3, 0.2))
    assert not any(isinstance(parent.head, Composition) for parent in nested.policies)


def test_a_consensus_of_different_extents_stays_one_parent() -> None:
    """Beyond the end of its shorter parent the other one speaks for both, which products of weights do not say."""
    inner = compose([flow(0, horizon=12), flow(2, horizon=8)], [0.5, 0.5])
    nested = compose([inner, flow(3, horizon=12)], [0.6, 0.4])
    assert isinstance(nested.head, Composition) and len(nested.head.policies) == 2
    assert isinstance(nested.head.policies[0].head, Composition)


def test_averaged_chunks_are_no_field_to_compose() -> None:
    averaged = compose([flow(0), flow(2)], [0.5, 0.5], level="action")
    with pytest.raises(ContractError, match=r"Composition averages finished chunks in one step.*level='action'"):
        compose([averaged, flow(3)], [0.5, 0.5])
    assert act(compose([averaged, flow(3)], [0.5, 0.5], level="action")).shape == (8, 2)


def test_the_estimate_is_the_weighted_sum_in_normal_units() -> None:
    a, b = flow(0), flow(2)
    both = compose([a, b], [0.7, 0.3])
    observation, noise, *_ = request(both.spec)
    batch = {name: torch.from_numpy(value)[None] for name, value in observation.items()}
    x, t = torch.from_numpy(noise)[None], torch.tensor([0.4])
    mixed = [0.7 * mine + 0.3 * theirs for mine, theirs in zip(a.bind(batch)(x, t), b.bind(batch)(x, t), strict=True)]
    for found, expected in zip(both.bind(batch)(x, t), mixed, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_beyond_the_end_of_a_shorter_parent_the_longer_one_goes_on_alone() -> None:
    long, short = flow(0, horizon=12), flow(2, horizon=8)
    both = compose([short, long], [0.5, 0.5])
    assert both.spec.horizon == 12
    observation, noise, *_ = request(both.spec)
    batch = {name: torch.from_numpy(value)[None] for name, value in observation.items()}
    x, t = torch.from_numpy(noise)[None], torch.tensor([0.4])
    found, alone = both.bind(batch)(x, t).data, long.bind(batch)(x, t).data
    torch.testing.assert_close(found[:, 8:], alone[:, 8:], atol=1e-6, rtol=0)
    mean = (alone[:, :8] + short.bind(batch)(x[:, :8], t).data) / 2
    torch.testing.assert_close(found[:, :8], mean, atol=1e-6, rtol=0)


def test_chunks_are_aligned_by_time_not_by_index() -> None:
    early, now = flow(0, past=2, horizon=6), flow(2)
    both = compose([early, now], [0.5, 0.5])
    assert (both.spec.past, both.spec.horizon) == (2, 8)
    observation, noise, *_ = request(both.spec)
    batch = {name: torch.from_numpy(value)[None] for name, value in observation.items()}
    x, t = torch.from_numpy(noise)[None], torch.tensor([0.4])
    found, first = both.bind(batch)(x, t).data, early.bind(batch)(x[:, :8], t).data
    torch.testing.assert_close(found[:, :2], first[:, :2], atol=1e-6, rtol=0)
    mean = (first[:, 2:] + now.bind(batch)(x[:, 2:], t).data[:, :6]) / 2
    torch.testing.assert_close(found[:, 2:8], mean, atol=1e-6, rtol=0)
    assert act(both).shape == (8, 2)


def test_each_parent_sees_its_own_history() -> None:
    long, short = flow(0, history=3), flow(2, history=1)
    both = compose([long, short], [0.5, 0.5])
    assert both.spec.history == 3
    observation, *rest = request(both.spec)
    changed = {"pose": observation["pose"] + np.array([[1.0], [0.0], [0.0]], np.float32)}
    assert np.abs(both.act(observation, *rest) - both.act(changed, *rest)).max() > 0
    x, t = torch.from_numpy(rest[0])[None], torch.tensor([0.4])

    def data(policy: Policy, seen: dict[str, np.ndarray]) -> torch.Tensor:
        return policy.bind({k: torch.from_numpy(v)[None] for k, v in seen_by(policy, seen).items()})(x, t).data

    by_both, by_long = (data(policy, changed) - data(policy, observation) for policy in (both, long))
    torch.testing.assert_close(by_both, by_long / 2, atol=1e-5, rtol=0)  # the other parent sees no change


def test_weights_per_step_and_component() -> None:
    a, b = flow(0), flow(2)
    weights = np.zeros((8, 2))
    weights[:4] = 1
    both = compose([a, b], [weights.tolist(), (1 - weights).tolist()])
    observation, noise, *_ = request(both.spec)
    batch = {name: torch.from_numpy(value)[None] for name, value in observation.items()}
    x, t = torch.from_numpy(noise)[None], torch.tensor([0.4])
    found = both.bind(batch)(x, t).data
    torch.testing.assert_close(found[:, :4], a.bind(batch)(x, t).data[:, :4])
    torch.testing.assert_close(found[:, 4:], b.bind(batch)(x, t).data[:, 4:])


@pytest.mark.parametrize("level", ["score", "action"])
def test_another_offset_of_the_normaliser_is_converted(level: Any) -> None:
    """In the units of the other parent a policy does what it does alone."""
    one, moved = flow(0), flow(2, offset=0.5)
    mine, theirs = compose([one, moved], [0.5, 0.5], level=level), compose([moved, one], [0.5, 0.5], level=level)
    np.testing.assert_allclose(act(mine), act(theirs), atol=1e-4)
    if level == "action":
        np.testing.assert_allclose(act(mine), (act(one) + act(moved)) / 2, atol=1e-5)


def test_units_of_a_parent_are_converted_exactly_at_every_time() -> None:
    """The field of a parent with another offset and one common scale, read in the units of the lead."""
    lead, other = flow(0), flow(2, scale=1.5, offset=0.25)
    both = compose([lead, other], [0.6, 0.4])
    observation, noise, *_ = request(both.spec)
    batch = {name: torch.from_numpy(value)[None] for name, value in observation.items()}
    x, t = torch.from_numpy(noise)[None], torch.tensor([0.4])
    factor, offset = 1.5 / 2, 0.25 / 2
    total = factor * 0.4 + 0.6
    own = other.bind(batch)((x - 0.4 * offset) / total, factor * t / total)
    expected = 0.6 * lead.bind(batch)(x, t).data + 0.4 * (factor * own.data + offset)
    torch.testing.assert_close(both.bind(batch)(x, t).data, expected, atol=1e-5, rtol=0)


def test_units_that_nearly_agree_are_converted_exactly_where_there_is_no_noise() -> None:
    factor = torch.tensor([1.0, 1.03])
    lead, other = flow(0), flow(2, scale=2 * factor)
    both = compose([lead, other], [0.6, 0.4])
    observation, noise, *_ = request(both.spec)
    batch = {name: torch.from_numpy(value)[None] for name, value in observation.items()}
    x, t = torch.from_numpy(noise)[None], torch.ones(1)
    expected = 0.6 * lead.bind(batch)(x, t).data + 0.4 * factor * other.bind(batch)(x / factor, t).data
    torch.testing.assert_close(both.bind(batch)(x, t).data, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_averaging_actions_is_the_mean_of_finished_chunks(temperature: float) -> None:
    a, b = sampled(flow(0), 4, temperature), diffusion(1, steps=5)
    both = compose([a, b], [0.5, 0.5], level="action")
    observation, *rest = request(both.spec)
    parts = [parent.act(seen_by(parent, observation), *rest) for parent in (a, b)]
    np.testing.assert_allclose(both.act(observation, *rest), np.mean(parts, 0), atol=1e-4)


def test_what_is_held_stays() -> None:
    both = compose([flow(), diffusion()], [0.5, 0.5])
    observation, noise, committed, hold = request(both.spec)
    committed[:], hold[:3] = 0.7, 1
    np.testing.assert_allclose(both.act(observation, noise, committed, hold)[:3], 0.7, atol=1e-5)


def test_a_batch_is_its_requests_one_by_one() -> None:
    both = compose([flow(), diffusion()], [0.5, 0.5])
    requests = [request(both.spec, seed) for seed in range(3)]
    together = both.act_batch(requests)
    for chunk, single in zip(together, requests, strict=True):
        np.testing.assert_allclose(both.act(*single), chunk, atol=1e-5)


def test_a_saved_composition_is_the_same_and_so_are_bundle_and_expression(tmp_path: Path) -> None:
    a, b = flow(), flow(seed=2, steps=2)
    both = compose([a, b], [0.6, 0.4])
    for name, policy in (("a", a), ("b", b), ("both", both)):
        policy.save(tmp_path / name)
    np.testing.assert_array_equal(act(load_trained(str(tmp_path / "both"))), act(both))
    np.testing.assert_array_equal(act(load_trained(f"(0.6*{tmp_path}/a + 0.4*{tmp_path}/b)")), act(both))
    averaged = load_trained(f"mean(0.6*{tmp_path}/a + 0.4*{tmp_path}/b)")
    np.testing.assert_array_equal(act(averaged), act(compose([a, b], [0.6, 0.4], level="action")))
    assert load_trained(f"(0.6*{tmp_path}/a + 0.4*{tmp_path}/b)@7").steps == 7
    export(both, tmp_path / "both.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "both.kfb")
    np.testing.assert_allclose(bundle.act(*request(both.spec)), act(both), atol=1e-4)
    assert bundle.disagreement == pytest.approx(both.disagreement, abs=1e-4) and bundle.disagreement > 0
    again = kinoflow.compose([kinoflow.load(str(tmp_path / "both.kfb")), a], weights=[0.5, 0.5])
    np.testing.assert_allclose(act(again), act(compose([both, a], [0.5, 0.5])), atol=1e-6)


def test_a_diffusion_parent_goes_into_a_bundle(tmp_path: Path) -> None:
    both = compose([flow(), diffusion()], [0.5, 0.5], steps=2)
    report = export(both, tmp_path / "both.kfb", provenance={})
    assert report.max_error < 1e-4
    assert load_policy(str(tmp_path / "both.kfb")).spec == both.spec


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.4], "have to sum to 1"),
        ([0, 0], "have to sum to 1"),
        ([float("nan"), 1.0], "sum to nan"),
        ([1.0], "2 policies but 1 weights"),
        ([[0.5] * 5, [0.5] * 5], r"has the shape \(5, 1\), the chunk of the composition has \(8, 2\); give a number"),
        ([[[0.5] * 3] * 8, [[0.5] * 3] * 8], r"has the shape \(8, 3\)"),
        ([[[[0.5]]], 0.5], r"has the shape \(1, 1, 1\)"),
        ([[0.5] * 5, [0.5] * 8], "weights: The size of tensor"),
        ([[0.5, [0.5]], 0.5], "weights: .*inhomogeneous"),
        (["half", 0.5], "weights: could not convert"),
    ],
)
def test_wrong_weights_are_refused(weights: list[Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        compose([flow(), flow(2)], weights)


def test_weights_may_be_arrays(tmp_path: Path) -> None:
    a, b = flow(0), flow(2)
    plain = act(compose([a, b], [[0.25] * 8, [0.75] * 8]))
    for one, other in ((np.full(8, 0.25), np.full(8, 0.75)), (np.float32(0.25), torch.full((8, 2), 0.75))):
        both = compose([a, b], [one, other])
        both.save(tmp_path)
        np.testing.assert_allclose(act(both), plain, atol=1e-6)
        np.testing.assert_array_equal(act(Policy.load(tmp_path)), act(both))


def test_negative_weights_push_away() -> None:
    """Classifier-free guidance as affine weights."""
    a, b = flow(0), flow(2)
    both = compose([a, b], [2.0, -1.0])
    observation, noise, *_ = request(both.spec)
    batch = {name: torch.from_numpy(value)[None] for name, value in observation.items()}
    x, t = torch.from_numpy(noise)[None], torch.tensor([0.4])
    expected = 2 * a.bind(batch)(x, t).data - b.bind(batch)(x, t).data
    torch.testing.assert_close(both.bind(batch)(x, t).data, expected, atol=1e-5, rtol=0)


def test_other_scales_per_component_are_refused_for_scores_and_averaged_as_actions() -> None:
    a, b = flow(0), flow(2, scale=[1.0, 2.0])
    with pytest.raises(ContractError, match="level='action'"):
        compose([a, b], [0.5, 0.5])
    averaged = compose([a, b], [0.5, 0.5], level="action")
    np.testing.assert_allclose(act(averaged), (act(a) + act(b)) / 2, atol=1e-5)


def test_a_head_that_jumps_is_composed_as_actions_only() -> None:
    a, b = flow(0), flow(2)
    type(b.head).one_step = True
    try:
        with pytest.raises(ContractError, match="one step"):
            compose([a, b], [0.5, 0.5])
        assert act(compose([a, b], [0.5, 0.5], level="action")).shape == (8, 2)
    finally:
        type(b.head).one_step = False


def test_the_composition_is_in_the_units_of_its_heaviest_parent() -> None:
    both = compose([flow(0, offset=1.0, steps=3), flow(2, steps=6)], [0.4, 0.6])
    assert both.steps == 6 and getattr(both.normaliser, f"{ACTION}_offset").tolist() == [0.0, 0.0]


def test_the_sampler_is_that_of_the_heaviest_also_where_it_is_a_consensus() -> None:
    inner = sampled(compose([flow(0, offset=1.0), flow(2)], [0.5, 0.5]), 7, 0.5)
    both = compose([inner, flow(3)], [0.6, 0.4])  # each parent of the consensus weighs less than the other policy
    assert isinstance(both.head, Composition) and len(both.head.policies) == 3
    assert (both.steps, both.temperature) == (7, 0.5)
    assert getattr(both.normaliser, f"{ACTION}_offset").tolist() == [1.0, 1.0]
    assert compose([inner, flow(3)], [0.6, 0.4], steps=2).steps == 2
    with pytest.raises(ValueError, match="steps=0: sampling needs at least one step"):
        compose([inner, flow(3)], [0.6, 0.4], steps=0)


def test_finished_chunks_have_no_steps_to_choose(tmp_path: Path) -> None:
    a, b = sampled(flow(0), 3, 0.5), flow(2)
    both = compose([a, b], [0.6, 0.4], level="action")
    assert (both.steps, both.temperature) == (1, 1.0) and [p.steps for p in both.head.policies] == [3, 4]  # type: ignore[union-attr]
    with pytest.raises(ContractError, match=r"steps=7: finished chunks are averaged in 1 step; .*A@7"):
        compose([a, b], [0.6, 0.4], level="action", steps=7)
    both.save(tmp_path / "both")
    with pytest.raises(ContractError, match="steps=20"):
        load_trained(f"{tmp_path}/both@20")
