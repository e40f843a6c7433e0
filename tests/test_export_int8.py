"""Bundles that compute in 8 bits: they plan as before, and only where that is faster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_bundle import parts

import policies.export
from envs.collect import CollectConfig, collect
from envs.episodes import EpisodeFile, read_episodes
from kinoflow.cli import call
from policies.archive import BundleError
from policies.backend import ONNX_RUNTIME, OPENVINO, installed
from policies.bundle import GOAL, GRAPH, Bundle
from policies.composition import compose
from policies.export import ExportReport, export
from policies.load import load_trained
from policies.manifest import ROUNDED_TOLERANCE, TOLERANCE
from policies.quantise import QUALITY, Choice, Way, recorded, ways
from policies.spec import ContractError, Spec

BUNDLE = Path(__file__).parents[1] / "models/nav_flowdit.kfb"


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> EpisodeFile:
    path = tmp_path_factory.mktemp("data") / "nav.hdf5"
    collect(CollectConfig(path, episodes=20, workers=1), lambda done, total: None)
    return read_episodes(path)


def exported(way: Way, path: Path, episodes: EpisodeFile) -> ExportReport:
    """Of a bundle that is computed in this way, whatever would be faster here."""

    def insisted(graphs: Mapping[str, bytes], spec: Spec, *others: object) -> Choice:
        return Choice(way, ways(graphs, spec, episodes)[way], {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies.export, "fastest", insisted)
        return export(load_trained(str(BUNDLE)), path, provenance={}, steps=(1, 4), calibration=episodes)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, episodes: EpisodeFile) -> ExportReport:
    return exported(Way("int8 dynamic"), tmp_path_factory.mktemp("int8") / "int8.kfb", episodes)


def test_plans_stay_what_they_were(report: ExportReport, episodes: EpisodeFile) -> None:
    rounded, exact = Bundle.load(report.path), Bundle.load(BUNDLE)
    requests = recorded(exact.spec, episodes, True, 16)
    differences = np.array([rounded.act(*asked) - exact.act(*asked) for asked in requests])
    assert 0 < np.sqrt(np.square(differences).mean()) < QUALITY
    held = np.array([asked.hold for asked in requests]) == 1
    assert held.any() and np.abs(differences[held]).max() < 1e-5, "what is being executed stays exactly"


def test_weights_are_bytes_but_for_narrow_products(report: ExportReport) -> None:
    bundle = Bundle.load(report.path)
    assert bundle.manifest.numbers == "int8 dynamic" and "int8 dynamic" in bundle.describe()
    assert TOLERANCE < report.max_error < ROUNDED_TOLERANCE == bundle.manifest.tolerance
    assert Bundle.load(BUNDLE).manifest.tolerance == TOLERANCE
    for name in (GRAPH, "policy@1.onnx"):
        kinds = [node.op_type for node in graph(report.path, name).graph.node]
        assert kinds.count("MatMulInteger") > 10
    weights = {tensor.name: tensor for tensor in graph(report.path, GRAPH).graph.initializer}
    exact = [
        tensor for tensor in weights.values() if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
    ]
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights.values())
    assert min(min(t.dims) for t in exact if max(t.dims) >= 96) <= 2, "actions come in and go out as they are"


@pytest.mark.parametrize("quality", [QUALITY, 0.0])
def test_the_fastest_that_keeps_the_plans_is_chosen(
    quality: float, tmp_path: Path, episodes: EpisodeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policies.quantise.QUALITY", quality)
    report = export(load_trained(f"{BUNDLE}@1"), tmp_path / "x.kfb", provenance={}, calibration=episodes)
    exact, rounded = Way("float32"), [Way("int8 dynamic"), Way("int8 static")]
    other = [Way("float32", OPENVINO), Way("int8 static", OPENVINO)] if OPENVINO in installed() else []
    assert report.choice and [*report.choice.trials] == [exact, *rounded, *other]
    good = {way: trial.p50_ms for way, trial in report.choice.trials.items() if trial.deviation <= quality}
    assert report.choice.way == min(good, key=lambda way: good[way])
    assert good.keys() >= {exact, *rounded, *other} if quality else exact in good and not good.keys() & {*rounded}
    bundle = Bundle.load(report.path)
    assert (bundle.manifest.numbers or "float32", bundle.backend) == report.choice.way


@pytest.fixture(scope="module")
def in_openvino(tmp_path_factory: pytest.TempPathFactory, episodes: EpisodeFile) -> ExportReport:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'kinoflow[openvino]'")
    return exported(Way("int8 static", OPENVINO), tmp_path_factory.mktemp("openvino") / "openvino.kfb", episodes)


def test_another_back_end_plans_the_same(in_openvino: ExportReport, episodes: EpisodeFile) -> None:
    bundle, exact = Bundle.load(in_openvino.path), Bundle.load(BUNDLE)
    assert bundle.backend == OPENVINO and "int8 static in OpenVINO" in bundle.describe()
    requests = recorded(exact.spec, episodes, True, 16)
    plans = [bundle.act(*asked) for asked in requests]
    assert 0 < np.sqrt(np.mean([np.square(exact.act(*a) - p) for a, p in zip(requests, plans, strict=True)])) < QUALITY
    again = [bundle.act(*asked) for asked in requests]
    np.testing.assert_array_equal(plans, again)  # a plan is the caller's, later ones do not change it


def test_a_signal_is_handled_after_it_has_computed(in_openvino: ExportReport) -> None:
    script = """
import os, signal, sys
from policies.bundle import Bundle
first, second = (Bundle.load(sys.argv[1]) for _ in range(2))
del first, second
signal.signal(signal.SIGINT, lambda number, frame: sys.exit(7))
os.kill(os.getpid(), signal.SIGINT)
"""
    assert subprocess.run([sys.executable, "-c", script, str(in_openvino.path)]).returncode == 7


def test_without_it_onnx_runtime_computes(
    in_openvino: ExportReport, episodes: EpisodeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Bundle.load(in_openvino.path)
    monkeypatch.setattr("policies.bundle.installed", lambda: [ONNX_RUNTIME])
    bundle = Bundle.load(in_openvino.path)
    assert bundle.backend == ONNX_RUNTIME
    assert "in ONNX Runtime (OpenVINO, in which it was faster, is not installed)" in bundle.describe()
    for asked in recorded(bundle.spec, episodes, True, 4):
        np.testing.assert_allclose(bundle.act(*asked), there.act(*asked), atol=ROUNDED_TOLERANCE)


def test_a_goal_is_digested_in_float32(tmp_path: Path) -> None:
    data = tmp_path / "driving.hdf5"
    collect(CollectConfig(data, "kinoflow/Driving-v0", episodes=5, workers=1), lambda done, total: None)
    driving = BUNDLE.with_name("videonav_wheeled.kfb")
    spec, content = Bundle.load(driving).manifest.spec, parts(driving)
    with pytest.raises(ContractError, match="give some that the policy could be trained on"):
        ways({GOAL: content[GOAL], GRAPH: content[GRAPH]}, spec, read_episodes(data))


def test_refusals_name_the_remedy(episodes: EpisodeFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, out = load_trained(str(BUNDLE)), tmp_path / "x.kfb"
    with pytest.raises(BundleError, match="export it in float32"):
        export(compose([policy, policy], [0.5, 0.5]), out, provenance={}, calibration=episodes)
    for options, remedy in (
        (["--calibrate", "nowhere.hdf5"], "add --int8"),
        (["--int8", "--calibrate", "nowhere.hdf5"], "nowhere.hdf5"),
        (["--int8"], "give others with --calibrate FILE"),
    ):
        assert call("export", [str(BUNDLE), "-o", str(out), *options]) == 1
        assert remedy in capsys.readouterr().err
    assert not out.exists()


def graph(bundle: Path, name: str) -> onnx.ModelProto:
    return onnx.load_model_from_string(parts(bundle)[name])
