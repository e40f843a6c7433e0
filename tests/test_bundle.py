"""Bundle files: written in one step, read and run without torch."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import SPEC, draw, expected, make_golden, parts, write

from policies.archive import BundleError
from policies.bundle import GOLDEN, GRAPH, MANIFEST, Bundle, Latency
from policies.manifest import is_si
from policies.spec import ContractError, Feature


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny.kfb"
    write(path)
    return path


@pytest.fixture
def bundle(path: Path) -> Bundle:
    return Bundle.load(path)


# Reading


def test_a_bundle_can_be_read_with_zip_and_json_alone(path: Path) -> None:
    members = parts(path)
    data = json.loads(members[MANIFEST])
    assert data["inputs"] == {
        "pose": [1, 2, 3],
        "grid": [1, 2, 2, 4],
        "noise": [1, 8, 2],
        "committed": [1, 8, 2],
        "hold": [1, 8],
    }
    assert data["spec"]["action"]["units"] == ["m/s", "rad/s"]
    assert set(np.load(io.BytesIO(members[GOLDEN]))) == {*data["inputs"], "actions", "disagreement", "arrival"}


def test_running_a_bundle_imports_no_torch(path: Path) -> None:
    code = f"""
import sys
import numpy as np
from policies.bundle import Bundle
bundle = Bundle.load({str(path)!r})
spec = bundle.spec
observation = {{f.name: np.zeros((spec.history, *f.shape), np.float32) for f in spec.observations}}
zeros = np.zeros((spec.horizon, spec.action.dim), np.float32)
assert np.isfinite(bundle.act(observation, zeros, zeros, zeros[:, 0])).all()
print(sorted({{"torch", "onnxscript"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Acting


def test_act_computes_the_graph_and_keeps_earlier_chunks(bundle: Bundle) -> None:
    first = bundle.act(*draw(1))
    kept = first.copy()
    second = bundle.act(*draw(2))
    np.testing.assert_array_equal(first, kept)
    for actions, seed in ((first, 1), (second, 2)):
        assert actions.shape == (8, 2) and actions.dtype == np.float32
        np.testing.assert_allclose(actions, expected(*draw(seed)), atol=1e-6)


def test_act_takes_double_precision(bundle: Bundle) -> None:
    observation, *rest = draw(1)
    doubles = {name: value.astype(np.float64) for name, value in observation.items()}
    actions = bundle.act(doubles, *(value.astype(np.float64) for value in rest))
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, bundle.act(*draw(1)))


def test_act_names_what_does_not_fit(bundle: Bundle) -> None:
    observation, noise, committed, hold = draw(1)
    with pytest.raises(ContractError, match="'pose' has shape"):
        bundle.act(observation | {"pose": observation["pose"][:1]}, noise, committed, hold)
    with pytest.raises(ContractError, match="observation has keys"):
        bundle.act(observation | {"noise": noise}, noise, committed, hold)
    with pytest.raises(ContractError, match=r"'noise' has shape \(7, 2\), the policy needs \(8, 2\)"):
        bundle.act(observation, noise[1:], committed, hold)
    with pytest.raises(ContractError, match="'committed' has shape"):
        bundle.act(observation, noise, committed[0], hold)
    with pytest.raises(ContractError, match="'hold' has shape"):
        bundle.act(observation, noise, committed, hold[:, None])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_act_refuses_actions_that_are_not_finite(bundle: Bundle, bad: float) -> None:
    observation, noise, committed, hold = draw(1)
    with pytest.raises(ContractError, match="not finite"):
        bundle.act(observation, noise, np.full_like(committed, bad), hold)
    np.testing.assert_allclose(bundle.act(*draw(1)), expected(*draw(1)), atol=1e-6)


def test_latency_measures_every_call(bundle: Bundle) -> None:
    bundle.warm_up(2)
    seconds = bundle.latency(7)
    assert seconds.shape == (7,) and (seconds > 0).all()
    summary = Latency.of(np.array([0.001, 0.002, 0.003]), threads=2)
    assert summary.p50_ms == pytest.approx(2) and 2.9 < summary.p99_ms <= 3
    assert summary.threads == 2 and summary.cpu


def test_describe_names_features_units_frames_and_limits(bundle: Bundle) -> None:
    text = bundle.describe()
    for part in (
        "policies.tiny:Tiny, 8 actions at 10 Hz",
        "pose (2, 3) [m, rad] in odom",
        "wz -2 .. 2 [rad/s] in base_link",
    ):
        assert part in text


# Writing


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name) for name in ("a.kfb", "b.kfb"))
    assert (tmp_path / "a.kfb").read_bytes() == (tmp_path / "b.kfb").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.kfb") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert first == second == Bundle.load(tmp_path / "a.kfb").manifest


def test_a_write_that_fails_half_way_keeps_the_old_bundle(tmp_path: Path) -> None:
    path = tmp_path / "policy.kfb"
    write(path)
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, hard))  # no room for the second half
    try:
        with pytest.raises(OSError, match="too large"):
            write(path, provenance={"seed": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
    write(path, provenance={"seed": 2})
    assert Bundle.load(path).manifest.provenance == {"seed": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provenance": {"folder": Path("data")}}, "not JSON serializable"),
        ({"max_error": math.nan}, "finite numbers"),
        ({"spec": dataclasses.replace(SPEC, rate_hz=0.0)}, "rate_hz is 0.0"),
        ({"spec": dataclasses.replace(SPEC, horizon=4)}, "graph input 'noise'"),
        ({"spec": dataclasses.replace(SPEC, observations=(Feature("hold", (3,), "m", "odom"),))}, "rename"),
        ({"graphs": {GRAPH: b"onnx"}}, "does not load in ONNX Runtime"),
        ({"golden": make_golden() | {"actions": np.zeros((1, 8, 2), np.float32)}}, "golden pair: actions differ"),
    ],
)
def test_what_would_not_load_is_never_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "policy.kfb", **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unit", ["1", "m", "rad/s", "m/s^2", "N*m", "kg*m^2/s^2", "m/s, rad/s", "m,rad"])
def test_si_units(unit: str) -> None:
    assert is_si(unit)


@pytest.mark.parametrize("unit", ["", "deg", "mm", "km/h", "cm", "rpm", "px", "m/", "m^", "m s", "m^2.5", "g", "inch"])
def test_units_that_are_not_si(unit: str) -> None:
    assert not is_si(unit)
