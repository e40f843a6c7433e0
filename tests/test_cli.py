"""The command line as its users meet it: real processes, real files."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kinoflow.cli import COMMANDS, call

PLANNER = Path(__file__).parent.parent / "models" / "mazenav.kfp"


def kinoflow(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kinoflow", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=280)


def test_help_lists_every_command() -> None:
    result = kinoflow("--help")
    assert result.returncode == 0
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = kinoflow(command, "--help")
    assert result.returncode == 0, result.stderr
    assert f"usage: kinoflow {command}" in result.stdout


def test_an_unknown_command_is_refused() -> None:
    result = kinoflow("fly")
    assert result.returncode == 1
    assert "unknown command 'fly'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "flowdit", "--data", "none.hdf5", "--out", "run"), "kinoflow collect --out none.hdf5"),
        (("train", "nosuchhead", "--data", "x", "--out", "y"), "no head 'nosuchhead'"),
        (("export", "none", "-o", "x.kfb"), "no policy at none"),
        (("eval", "none.kfb", "--episodes", "1"), "no policy at none.kfb"),
        (("eval", "--no-baselines"), "give a policy"),
        (("eval", "--env", "Nowhere-v0"), "no environment 'Nowhere-v0'; choose one of kinoflow/"),
        (("data", "none.hdf5"), "no episode file"),
        (("bench", "none.kfb"), "no such file"),
        (("bench", "none.kfb", "--peers"), "no such file"),
        (("bench", "none.kfb", "--lerobot", "python"), "add --peers"),
        (("bench",), "0 bundles; give one, or several without --peers"),
        (("bench", "a.kfb", "b.kfb", "--peers"), "2 bundles --peers; give one"),
        (("bench", str(PLANNER)), "this is a planner; use kinoflow eval xdiffuser --planner"),
        (("run", "none.kfb"), "no such file"),
    ],
)
def test_bad_input_is_one_line_that_names_the_remedy(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = kinoflow(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_from_episodes_to_an_evaluated_bundle(tmp_path: Path) -> None:
    def step(*arguments: str) -> dict:
        result = kinoflow(*arguments, "--json", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    collected = step("collect", "--out", "nav.hdf5", "--episodes", "25")
    assert step("data", "nav.hdf5")["steps"] == collected["steps"]
    small = ["--width", "32", "--depth", "1", "--heads", "2", "--batch", "32", "--rollouts", "2"]
    trained = step("train", "flowdit", "--data", "nav.hdf5", "--out", "run", "--steps", "30", *small)
    assert trained["step"] == 30
    exported = step("export", "run", "-o", "policy.kfb")
    assert exported["max_error"] <= 1e-4
    assert step("export", "policy.kfb", "-o", "new/again.kfb")["max_error"] == exported["max_error"], "of a bundle"
    report = step("eval", "policy.kfb", "run", "--episodes", "2", "--out", "report")
    assert report["baselines"]["run"]["difference"]["success"]["mean"] == 0, "a bundle does what its run directory does"
    assert report["baselines"]["expert"]["success"]["mean"] == 1.0
    assert (tmp_path / "report/paths.png").exists()


@pytest.mark.parametrize(("command", "kept"), [("collect", True), ("compose", False), ("eval", False)])
def test_an_interrupted_command_says_what_is_kept(
    command: str, kept: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"kinoflow.commands.{command}")

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "command", interrupted)
    assert call(command, []) == 130
    error = capsys.readouterr().err
    assert "interrupted" in error and ("what was finished is kept" in error) == kept


def test_shadowed_packages_stop_the_import(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/__init__.py").touch()
    result = subprocess.run([sys.executable, "-c", "import kinoflow"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"'envs' of kinoflow is shadowed by {tmp_path / 'envs'}" in result.stderr
    assert "python -P" in result.stderr
