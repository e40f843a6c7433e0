"""A composition whose parents run beside each other plans what it plans in torch."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from parents import diffusion, flow, request

from policies.archive import BundleError
from policies.bundle import GRAPH, Bundle
from policies.composition import compose
from policies.export import export
from policies.flow import tail_weights
from policies.manifest import Parent
from policies.policy import Policy
from policies.runtime.blend import share
from policies.runtime.ensemble import Ensemble

CASES = {
    "flow and diffusion, cooler": lambda: cooler(compose([flow(), diffusion()], [0.6, 0.4])),
    "other units, extents and histories": lambda: compose(
        [flow(0, past=2, horizon=6, history=1), flow(2, horizon=12, history=3, scale=1.5, offset=0.25)], [0.6, 0.4]
    ),
    "nested, three parents": lambda: compose(
        [compose([flow(0), flow(2)], [0.5, 0.5]), diffusion(1, scale=1.5)], [0.8, 0.2]
    ),
}


def cooler(policy: Policy) -> Policy:
    return Policy(policy.head, policy.normaliser, policy.steps, temperature=0.7).eval()


@pytest.mark.parametrize("name", CASES)
def test_the_sampler_in_numpy_is_the_one_in_torch(tmp_path: Path, name: str) -> None:
    policy = CASES[name]()
    report = export(policy, tmp_path / "both.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "both.kfb")
    assert isinstance(bundle._policy, Ensemble) and GRAPH not in bundle.manifest.parts
    assert bundle.manifest.sampler.temperature == policy.temperature
    assert report.max_error < 1e-5 and report.nodes > 0
    rng = np.random.default_rng(0)
    for seed in range(4):
        observation, noise, committed, hold = request(policy.spec, seed)
        committed[:] = rng.uniform(-3, 3, committed.shape)
        hold[:] = [np.zeros_like(hold), rng.random(hold.shape), np.arange(len(hold)) < 3, np.ones_like(hold)][seed]
        expected = policy.act(observation, noise, committed, hold)
        np.testing.assert_allclose(bundle.act(observation, noise, committed, hold), expected, atol=1e-5)
        assert bundle.disagreement == pytest.approx(policy.disagreement, abs=1e-5)
    assert bundle.disagreement > 0 and bundle.warning == ""


def test_a_parent_that_computes_no_numbers_is_named(tmp_path: Path) -> None:
    wild = flow(2)
    with torch.no_grad():
        for parameter in wild.head.parameters():
            parameter.mul_(1e30)  # finite, but what it computes is not
    with pytest.raises(BundleError, match=r"parent_1 \(FlowDiT\) is left out since .* its estimate is not finite"):
        export(compose([flow(), wild], [0.6, 0.4]), tmp_path / "both.kfb", provenance={})


def test_time_embeddings_are_tables() -> None:
    from policies.graphs import policy_graphs

    graphs, consensus = policy_graphs(compose([flow(), diffusion()], [0.6, 0.4]))
    assert consensus is not None and [parent.history for parent in consensus.parents] == [2, 2]
    assert list(graphs) == [f"parent_{k}/{part}.onnx" for k in (0, 1) for part in ("encode", "estimate")]
    for name in ("parent_0/estimate.onnx", "parent_1/estimate.onnx"):
        operations = {node.op_type for node in graphs[name].graph.node}
        assert not {"Sin", "Cos"} & operations and "Gather" in operations
        assert [value.name for value in graphs[name].graph.input][-2:] == ["x", "step"]


@pytest.mark.parametrize("level", ["action", "alone"])
def test_what_cannot_be_divided_stays_one_graph(tmp_path: Path, level: str) -> None:
    parents = [flow(0, steps=1), flow(2, steps=1)]
    policy = compose(parents[:1], [1.0]) if level == "alone" else compose(parents, [0.5, 0.5], level="action")
    export(policy, tmp_path / "both.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "both.kfb")
    assert bundle.manifest.consensus is None and GRAPH in bundle.manifest.parts and bundle.warning == ""
    np.testing.assert_allclose(bundle.act(*request(policy.spec)), policy.act(*request(policy.spec)), atol=1e-4)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (0.9, -0.85, 0.95), (-0.3, 1.2, 0.1)])
def test_the_sharing_in_numpy_is_the_one_in_torch(weights: tuple[float, ...]) -> None:
    """Whoever is absent, action by action, weights of both signs included."""
    windows, horizon = [(0, 7), (1, 8), (0, 9)], 9
    rows = zip(windows, tail_weights(weights, windows, horizon), strict=True)
    parents = [Parent("", (), 1, *window, tuple(map(tuple, given.tolist()))) for window, given in rows]
    checked = 0
    for present in itertools.product((True, False), repeat=3):
        shares = share(parents, present)
        for step in range(horizon):
            plans = [here and b <= step < b + n for here, (b, n) in zip(present, windows, strict=True)]
            if any(plan and weight > 0 for plan, weight in zip(plans, weights, strict=True)):
                expected = torch.cat(tail_weights(weights, [(0, int(plan)) for plan in plans], 1))[:, 0]
                assert shares is not None
                np.testing.assert_allclose(shares.weights[:, 0, step, 0], expected, atol=1e-6)
                checked += 1
    assert checked > 2 * horizon


def test_shares_of_those_who_are_there_are_those_of_a_smaller_composition() -> None:
    """Leaving a parent out at run time is leaving it out of the composition, action by action."""
    from policies.graphs import consensus_of

    parents = [flow(0, past=2, horizon=6), flow(2, horizon=12), flow(3)]
    whole, weights = compose(parents, [0.5, 0.3, 0.2]), [0.5, 0.3, 0.2]
    consensus = consensus_of(whole, whole.head)  # type: ignore[arg-type]
    for absent in range(3):
        rest = [index for index in range(3) if index != absent]
        total = sum(weights[index] for index in rest)
        smaller = compose([parents[index] for index in rest], [weights[index] / total for index in rest])
        shares = share(consensus.parents, [index != absent for index in range(3)])
        assert shares is not None and not shares.weights[absent].any()
        begin = whole.spec.past - smaller.spec.past
        length = smaller.spec.past + smaller.spec.horizon
        expected = smaller.head.weights.numpy()  # type: ignore[union-attr, operator]
        np.testing.assert_allclose(shares.weights[rest, 0, begin : begin + length], expected, atol=1e-6)
