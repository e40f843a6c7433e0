"""Bundles that hold several numbers of steps: what they promise, what they take, what is refused."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import pytest
import test_export_goal
from test_export import draw, make_policy
from tiny_bundle import flipped, parts

from policies.archive import BundleError
from policies.bundle import GOLDEN, GRAPH, Bundle, CurvePoint, Sampler
from policies.composition import compose
from policies.export import ExportReport, export
from policies.load import LOADER
from policies.manifest import check_curve, variant
from policies.runtime.any_step import AnyStep
from policies.runtime.worker import InferenceWorker, Request, Result
from policies.spec import Array

STEPS = (4, 1, 2)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export(make_policy(), tmp_path_factory.mktemp("steps") / "steps.kfb", provenance={}, steps=STEPS)


def request(seed: int) -> tuple[dict[str, Array], Array, Array, Array]:
    observation, noise, committed = draw(seed)
    return observation, noise, committed, np.zeros(len(noise), np.float32)


def test_every_number_of_steps_plans_like_the_policy(report: ExportReport) -> None:
    bundle, policy = Bundle.load(report.path), make_policy().eval()
    bundle.warm_up(1)
    assert bundle.manifest.sampler.steps == 4
    for time_left_s, steps in ((math.inf, 4), (1e6, 4), (0.0, 1)):
        bundle.time_left_s = time_left_s
        np.testing.assert_allclose(bundle.act(*request(1)), policy.with_steps(steps).act(*request(1)), atol=1e-5)
        assert bundle.steps == steps
    assert isinstance(bundle._policy, AnyStep)
    two = bundle._policy.networks[2].act(*request(1))
    np.testing.assert_allclose(two, policy.with_steps(2).act(*request(1)), atol=1e-5)


def test_the_manifest_says_what_each_costs_and_gives(report: ExportReport) -> None:
    bundle = Bundle.load(report.path)
    curve = bundle.manifest.curve
    assert curve == report.curve and [point.steps for point in curve] == [1, 2, 4]
    assert curve[0].deviation > curve[1].deviation > curve[2].deviation == 0
    assert all(0 < point.p50_ms <= point.p99_ms for point in curve)
    assert curve[-1].p50_ms == bundle.manifest.latency.p50_ms
    assert bundle.manifest.graphs == (GRAPH, "policy@1.onnx", "policy@2.onnx")
    assert "  1 steps: " in bundle.describe() and f"{curve[0].deviation:.3f} from the most steps" in bundle.describe()


def test_one_number_of_steps_makes_the_same_bundle_as_ever(tmp_path: Path) -> None:
    export(make_policy(), tmp_path / "two.kfb", provenance={}, steps=(2,))
    manifest = Bundle.load(tmp_path / "two.kfb").manifest
    assert manifest.sampler.steps == 2 and manifest.curve == () and manifest.graphs == (GRAPH,)
    assert b"curve" not in parts(tmp_path / "two.kfb")["manifest.json"]


def test_damage_of_any_graph_or_pair_is_found(report: ExportReport, tmp_path: Path) -> None:
    assert {variant(GRAPH, 1), variant(GOLDEN, 1)} < parts(report.path).keys()
    for content in flipped(report.path):
        (tmp_path / "damaged.kfb").write_bytes(content)
        with pytest.raises(BundleError):
            Bundle.load(tmp_path / "damaged.kfb")


def test_a_graph_that_computes_something_else_is_refused_by_name(
    report: ExportReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Bundle.load(report.path)._policy
    assert isinstance(policy, AnyStep)
    policy.networks[2] = policy.networks[1]
    monkeypatch.setattr("policies.bundle.open_graphs", lambda *_: policy)
    with pytest.raises(BundleError, match=r"golden@2\.npz: golden pair: actions differ by"):
        Bundle.load(report.path)


@pytest.mark.parametrize("steps", [(2, 1, 4), (1, 1, 4), (0, 4), (1, 2)])
def test_a_curve_that_does_not_rise_to_the_most_steps_is_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match=r"must rise to the sampler's 4"):
        check_curve([CurvePoint(n, 1.0, 1.0, 0.0) for n in steps], Sampler(4, (), 1.0))


def test_a_composition_has_one_number_of_steps(tmp_path: Path) -> None:
    policy = make_policy().eval()
    with pytest.raises(BundleError, match="a composition has one number of steps"):
        export(compose([policy, policy], [0.5, 0.5]), tmp_path / "sum.kfb", provenance={}, steps=(1, 2))


def test_weights_are_counted_once_per_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(value.nbytes for value in make_policy().state_dict().values())
    monkeypatch.setattr("policies.export.LIMIT", 4 * size - 1)
    with pytest.raises(BundleError, match="holds 4 times"):
        export(make_policy(), tmp_path / "large.kfb", provenance={}, steps=STEPS)


def test_the_goal_is_encoded_once_for_all(tmp_path: Path) -> None:
    export(test_export_goal.policy(), tmp_path / "goal.kfb", provenance={}, steps=(1, 2))
    bundle = Bundle.load(tmp_path / "goal.kfb")
    assert isinstance(bundle._policy, AnyStep)
    few, most = (bundle._policy.networks[steps] for steps in (1, 2))
    assert few._goal is most._goal is not None
    bundle.act(*test_export_goal.request(goal=1))
    digest = few._goal._digest
    bundle.time_left_s = 0.0
    actions = bundle.act(*test_export_goal.request(goal=1))
    assert few._goal._digest is digest and bundle.steps == 1
    reference = test_export_goal.policy().with_steps(1).act(*test_export_goal.request(goal=1))
    np.testing.assert_allclose(actions, reference, atol=1e-5)


def answer(worker: InferenceWorker, time_left_s: float) -> Result:
    worker.submit(dataclasses.replace(Request(1.0, *request(1)), time_left_s=time_left_s))
    while (result := worker.latest()) is None:
        time.sleep(1e-3)
    return result


def test_the_deadline_reaches_the_inference_process(report: ExportReport) -> None:
    policy = make_policy().eval()
    with InferenceWorker(str(report.path), LOADER, policy.spec, warm_up=1) as worker:
        worker.wait_ready()
        for time_left_s, steps, missed in ((math.inf, 4, False), (1e6, 4, False), (0.0, 1, True)):
            result = answer(worker, time_left_s)
            assert (result.steps, result.missed, result.error) == (steps, missed, "")
            np.testing.assert_allclose(result.actions, policy.with_steps(steps).act(*request(1)), atol=1e-5)


def test_a_bundle_with_one_number_of_steps_misses_by_the_same_rule(tmp_path: Path) -> None:
    export(make_policy(), tmp_path / "three.kfb", provenance={})
    with InferenceWorker(str(tmp_path / "three.kfb"), LOADER, make_policy().spec, warm_up=1) as worker:
        worker.wait_ready()
        for time_left_s, missed in ((1e6, False), (0.0, True)):
            result = answer(worker, time_left_s)
            assert (result.steps, result.missed) == (3, missed)
