"""Exported policies compute what torch computes, from one folded graph."""

from __future__ import annotations

import copy
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from policies.archive import BundleError
from policies.bundle import GRAPH, Bundle
from policies.chunk import hold_weights
from policies.export import ExportReport, export
from policies.flow import Estimate, from_velocity
from policies.golden import compare, holds
from policies.head import Head
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import ActionSpec, Array, Feature, Spec

STEPS, WIDTH = 3, 192
SPEC = Spec(
    observations=(
        Feature("pose", (3,), "m, rad", "odom"),
        Feature("grid", (2, 4), "1", "base_link"),
    ),
    action=ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-1.0, -2.0), (1.0, 2.0)),
    rate_hz=10.0,
    history=2,
    horizon=8,
)


@dataclass(frozen=True)
class TinyConfig:
    """Chance of dropout, and whether the head draws noise of its own."""

    dropout: float = 0.5
    random: bool = False


class TinyHead(Head):
    """Small head with all that makes an export go wrong: batch normalisation, dropout, a time embedding."""

    Config = TinyConfig
    config: TinyConfig

    def __init__(self, spec: Spec, config: TinyConfig) -> None:
        super().__init__(spec, config)
        size = spec.history * sum(math.prod(feature.shape) for feature in spec.observations)
        self.context = nn.Sequential(nn.Linear(size, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(config.dropout))
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.inside, self.outside = nn.Linear(spec.action.dim, WIDTH), nn.Linear(WIDTH, spec.action.dim)

    def encode(self, observation: Mapping[str, Tensor]) -> Tensor:
        flat = [observation[feature.name].flatten(1) for feature in self.spec.observations]
        return self.context(torch.cat(flat, -1))

    def estimate(self, x: Tensor, t: Tensor, context: Tensor) -> Estimate:
        angles = t[:, None] * torch.arange(1, WIDTH // 2 + 1)
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        velocity = self.outside(torch.tanh(self.inside(x) + (context + time)[:, None]))
        if self.config.random:
            velocity = velocity + torch.rand_like(x)
        return from_velocity(lambda x, t: velocity)(x, t)


def make_policy(config: TinyConfig | None = None) -> Policy:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    samples = {f.name: rng.normal(3, 5, (200, *f.shape)).astype(np.float32) for f in SPEC.observations}
    policy = Policy(TinyHead(SPEC, config or TinyConfig()), Normaliser.fit(SPEC, samples), STEPS)
    for _ in range(20):  # batch normalisation needs statistics that differ from its initial ones
        policy.head.encode({name: torch.randn(32, SPEC.history, *value.shape[1:]) for name, value in samples.items()})
    return policy


def draw(seed: int) -> tuple[dict[str, Array], Array, Array]:
    rng = np.random.default_rng(seed)
    observation = {f.name: rng.normal(3, 3, (SPEC.history, *f.shape)).astype(np.float32) for f in SPEC.observations}
    chunk = (SPEC.horizon, SPEC.action.dim)
    return observation, rng.standard_normal(chunk, np.float32), rng.uniform(-1, 1, chunk).astype(np.float32)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy()


@pytest.fixture(scope="module")
def report(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    torch.set_num_threads(1)
    provenance = {"recipe": "tiny", "dataset": "sha256:0", "seeds": [0]}
    return export(policy, tmp_path_factory.mktemp("bundle") / "tiny.kfb", provenance=provenance)


@pytest.fixture(scope="module")
def bundle(report: ExportReport) -> Bundle:
    return Bundle.load(report.path)


@pytest.fixture(scope="module")
def graph(report: ExportReport) -> bytes:
    with zipfile.ZipFile(report.path) as archive:
        return archive.read(GRAPH)


@pytest.mark.parametrize("frozen", [0, 3, 8])
def test_a_loaded_bundle_plans_like_the_policy(policy: Policy, bundle: Bundle, frozen: int) -> None:
    reference, hold = copy.deepcopy(policy).eval(), hold_weights(SPEC.horizon, frozen, soft=frozen % 2)
    for seed in range(5):
        observation, noise, committed = draw(seed)
        actions = bundle.act(observation, noise, committed, hold)
        expected = reference.act(observation, noise, committed, hold)
        assert actions.shape == (SPEC.horizon, SPEC.action.dim) and actions.dtype == np.float32
        np.testing.assert_allclose(actions, expected, atol=1e-5)
        np.testing.assert_allclose(actions[:frozen], committed[:frozen], atol=1e-5)


def test_an_export_leaves_the_policy_as_it_is(policy: Policy, report: ExportReport) -> None:
    fresh = make_policy()
    assert all(module.training for module in policy.modules())
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(policy.state_dict()[name], value)


def test_the_report_and_the_manifest_agree(bundle: Bundle, report: ExportReport, policy: Policy) -> None:
    manifest = bundle.manifest
    assert manifest.spec == SPEC
    assert manifest.sampler.steps == STEPS and len(manifest.sampler.grid) == STEPS + 1
    assert manifest.normalisation["statistics"] == policy.normaliser.statistics()
    assert manifest.provenance["recipe"] == "tiny"
    assert (manifest.latency, manifest.max_error) == (report.latency, report.max_error)
    assert report.size == report.path.stat().st_size
    assert 0 < report.latency.p50_ms <= report.latency.p99_ms and report.max_error < 1e-5


def test_time_embeddings_are_folded_into_constants(graph: bytes, report: ExportReport) -> None:
    operations = [node.op_type for node in onnx.load_model_from_string(graph).graph.node]
    assert not {"Sin", "Cos", "Sigmoid"} & set(operations)
    # One layer encodes the observation and two remain of every step; the two of the time embedding are constants.
    assert operations.count("Gemm") + operations.count("MatMul") == 1 + 2 * STEPS
    assert len(operations) == report.nodes


def test_the_graph_names_no_file_of_the_exporting_machine(graph: bytes) -> None:
    assert str(Path.cwd()).encode() not in graph
    assert b"site-packages" not in graph and b"test_bundle" not in graph


def test_the_comparison_holds_on_to_some_actions_and_leaves_dropout_out(bundle: Bundle, report: ExportReport) -> None:
    held = np.stack(holds(SPEC.horizon))
    assert not held[0].any() and held[-1].all() and ((held > 0) & (held < 1)).any()
    training = make_policy().train()
    assert training.head.training
    golden, error = compare(training, bundle._policy)
    assert error == report.max_error and 0 < golden["hold"].mean() < 1


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.head.get_parameter("outside.bias")[0] = math.nan
    with pytest.raises(BundleError, match=r"head\.outside\.bias is not finite; training diverged"):
        export(policy, tmp_path / "nan.kfb", provenance={})


def test_a_policy_too_large_for_a_bundle_is_refused_before_it_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    size = sum(value.nbytes for value in policy.state_dict().values())
    monkeypatch.setattr("policies.export.LIMIT", 2 * size - 1)
    monkeypatch.setattr("policies.export.policy_graphs", None)
    with pytest.raises(BundleError, match=f"has {size} bytes of weights, .* its limit is {2 * size - 1}"):
        export(policy, tmp_path / "large.kfb", provenance={})


def test_an_export_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="ONNX Runtime differs from torch by"):
        export(make_policy(TinyConfig(random=True)), tmp_path / "random.kfb", provenance={})
    assert not list(tmp_path.iterdir())
