"""The doctor, on the machine the tests run on."""

from pathlib import Path

import pytest

from kinoflow.doctor import (
    OPTIONAL,
    REQUIRED,
    Answer,
    Finding,
    allows,
    as_text,
    dependencies,
    examine,
    g1,
    in_python,
    needs,
    rendering,
    ros_conflict,
)


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return examine()


def test_every_topic_appears_once(findings: list[Finding]) -> None:
    assert [finding.topic for finding in findings] == [*REQUIRED, *OPTIONAL]
    assert [finding.optional for finding in findings] == [False] * len(REQUIRED) + [True] * len(OPTIONAL)


def test_what_is_not_well_has_a_remedy(findings: list[Finding]) -> None:
    for finding in findings:
        assert finding.found and bool(finding.remedy) != finding.ok, finding


def test_no_check_breaks_here(findings: list[Finding]) -> None:
    assert not [finding for finding in findings if "the check failed" in finding.found]


def test_what_the_tests_themselves_need_is_well(findings: list[Finding]) -> None:
    well = {finding.topic for finding in findings if finding.ok}
    assert {"python", "import names", "torch", "mujoco"} <= well


def test_the_text_has_every_finding_and_every_remedy(findings: list[Finding]) -> None:
    text = as_text(findings)
    assert all(finding.topic in text and finding.found in text and finding.remedy in text for finding in findings)


def test_a_broken_check_is_reported_and_the_others_answer() -> None:
    def broken() -> Answer:
        raise OSError("libGL.so.1 is not there")

    found = examine({"first": broken, "second": lambda: Answer(True, "well", "unused")}, {"third": broken})
    assert [finding.ok for finding in found] == [False, True, False]
    assert "OSError: libGL.so.1 is not there" in found[0].found and found[0].remedy
    assert found[1] == Finding("second", True, "well", "")
    lines = as_text(found).splitlines()
    assert [line.split()[0] for line in lines] == ["problem", "remedy:", "ok", "optional", "remedy:", "1"]
    assert lines[-1] == "1 problems, 1 optional things missing"


@pytest.mark.parametrize(
    ("needed", "version", "expected"),
    [
        (">=2.6,<3", "2.13.0+cpu", True),
        ("<3,>=2.6", "2.5.1", False),
        ("<3.9,>=3.8", "3.8.1", True),
        ("<3.9,>=3.8", "3.9.0", False),
        (">=3.8", "3.10", True),
        ("==7.1.6", "7.1.6", True),
        (">=1.1", "1", False),
        ("", "0.1", True),
    ],
)
def test_versions_are_compared_as_numbers(needed: str, version: str, expected: bool) -> None:
    assert allows(needed, version) is expected


def test_the_dependencies_are_those_of_the_core() -> None:
    names = [name for name, _, _ in dependencies()]
    assert {"torch", "gymnasium", "mujoco", "onnxruntime"} <= {*names} and not {"pytest", "ros-jazzy-rclpy"} & {*names}
    assert (
        needs("gymnasium").startswith(("<", ">"))
        and needs("mujoco") == dict((name, needed) for name, needed, _ in dependencies())["mujoco"]
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print(1); print('two')", (True, "two")),
        ("raise ValueError('no display')", (False, "ValueError: no display")),
        ("import os; os._exit(3)", (False, "exit status 3")),
        ("import os; os.kill(os.getpid(), 9)", (False, "exit status -9")),
        ("import os; print(os.environ['EXTRA'])", (True, "given")),
    ],
)
def test_another_python_may_fail_in_any_way(code: str, expected: tuple[bool, str]) -> None:
    assert in_python(code, EXTRA="given") == expected


def test_an_unusable_opengl_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "paper")
    ok, found, remedy = rendering()
    assert not ok and ("MUJOCO_GL=paper" in found or "no picture" in found) and "export MUJOCO_GL=" in remedy


def test_a_sourced_ros_beside_wheels_is_a_conflict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "ros_rolling_rclpy-1.0.dist-info"
    wheel.mkdir()
    (wheel / "METADATA").write_text("Metadata-Version: 2.1\nName: ros-rolling-rclpy\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    assert ros_conflict().ok
    monkeypatch.setenv("ROS_DISTRO", "humble")
    ok, found, remedy = ros_conflict()
    assert not ok and "humble" in found and "rolling" in found and remedy


def test_missing_g1_files_come_with_their_own_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("G1_MODEL_PATH", str(tmp_path))
    ok, found, remedy = g1()
    assert not ok and str(tmp_path) in found and "unset G1_MODEL_PATH" in remedy
