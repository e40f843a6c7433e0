import shutil
import sys
from pathlib import Path

import pytest

from envs.g1 import assets


def test_installed_files_are_found_and_verified() -> None:
    if reason := assets.available():
        pytest.skip(reason)
    assert assets.model_path().name == "g1.xml"
    assert assets.policy_path().name == "fastsac_g1_29dof.onnx"


def test_packages_are_located_without_importing_them() -> None:
    assets.available()
    assert "mjlab" not in sys.modules and "holosoma_inference" not in sys.modules


def test_missing_packages_are_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(assets.OVERRIDE, raising=False)
    monkeypatch.setattr(sys, "path", [])
    reason = assets.available()
    assert reason is not None
    assert "mjlab" in reason and "pip install --no-deps --require-hashes -r requirements-g1.txt" in reason


def test_folder_of_the_environment_variable_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := assets.available():
        pytest.skip(reason)
    shutil.copy(assets.policy_path(), tmp_path)
    (tmp_path / assets.MODEL_FILE).write_text("<mujoco/>")
    monkeypatch.setenv(assets.OVERRIDE, str(tmp_path))
    assert assets.model_path() == tmp_path / assets.MODEL_FILE
    assert assets.policy_path() == tmp_path / assets.POLICY_FILE


def test_folder_without_the_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.OVERRIDE, str(tmp_path))
    with pytest.raises(assets.AssetError, match=assets.OVERRIDE) as error:
        assets.model_path()
    assert str(tmp_path / assets.MODEL_FILE) in str(error.value)


def test_another_policy_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / assets.POLICY_FILE).write_bytes(b"another policy")
    monkeypatch.setenv(assets.OVERRIDE, str(tmp_path))
    with pytest.raises(assets.AssetError, match=assets.POLICY_FILE) as error:
        assets.policy_path()
    assert assets.POLICY_SHA256 in str(error.value)


def test_requirements_pin_every_package_by_hash() -> None:
    lines = (Path(assets.__file__).parents[2] / "requirements-g1.txt").read_text().splitlines()
    pins = [line for line in lines if "==" in line]
    hashes = [line for line in lines if "--hash=sha256:" in line and not line.startswith("#")]
    assert [pin.split("==")[0] for pin in pins] == ["mjlab", "holosoma-inference"]
    assert len(hashes) == len(pins)
