"""Whatever breaks, the robot stands within 0.3 s, the reason is latched, and an explicit reset lets it go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")

from chain import Chain, Probe

from ros_nodes.session import Nodes, private_domain


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, bundle: Path, seed: int) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("chain")
    with private_domain(folder), Nodes(folder) as nodes, Probe() as probe:
        yield Chain(folder, nodes, probe, bundle, seed)


@pytest.fixture
def chain(running: Chain) -> Chain:
    running.drive()
    return running


def test_robot_drives_towards_the_goal_and_the_nodes_report(chain: Chain) -> None:
    probe = chain.probe
    distance = probe.status("sim_node").values["distance"]
    chain.until(lambda: probe.status("sim_node").values["distance"] < distance - 0.3, "progress")
    values = probe.status("policy_node").values
    assert values["state"] == "active" and values["embodiment"] == "wheeled" and len(values["bundle_hash"]) == 12
    assert values["commands"] > 0 and values["rate_hz"] > 0 and values["scheduling"]
    for name in ("period_ms", "lateness_ms", "inference_ms", "chunk_age_ms", "delay_ms"):
        assert set(values[name]) == {"p50", "p99", "max"}
    assert set(values["input_age_s"]) == {"goal", "odom", "scan"}
    guard = probe.status("guard_node").values
    assert guard["fault"] is None and guard["interventions"]["stale"] == 0
    commands = np.array([values for _, values in probe.commands])
    limits = np.array([[-0.3, -0.2, -0.7], [0.6, 0.2, 0.7]], np.float32)
    assert (commands >= limits[0]).all() and (commands <= limits[1]).all()


def test_scan_stops(chain: Chain) -> None:
    chain.probe.disturb = lambda scan: None
    chain.until(lambda: chain.probe.disturbed, "lost scan")
    chain.assert_stopped(chain.probe.disturbed or 0.0, "policy: scan is older than the limit of 0.25 s")
    assert chain.probe.status("policy_node").text.startswith("scan is older")


def test_scan_is_not_a_number(chain: Chain) -> None:
    def poison(scan: Any) -> Any:
        changed = type(scan)(**{name: getattr(scan, name) for name in scan.get_fields_and_field_types()})
        changed.ranges[3] = float("nan")
        return changed

    chain.probe.disturb = poison
    chain.until(lambda: chain.probe.disturbed, "poisoned scan")
    chain.assert_stopped(chain.probe.disturbed or 0.0, "policy: scan has 1 beams that are not a number")


def test_goal_outside_the_map(chain: Chain) -> None:
    chain.probe.send_goal(np.array([7.0, 0.0, 0.0]))
    chain.assert_stopped(time.monotonic(), "is outside the fence")


def test_inference_process_is_killed(chain: Chain) -> None:
    os.kill(chain.probe.status("policy_node").values["inference_pid"], signal.SIGKILL)
    chain.assert_stopped(time.monotonic(), "policy: the inference process has ended")
    chain.until(lambda: chain.state() == "unconfigured", "error state")
    assert "inference process has ended" in chain.probe.status("policy_node").text


def test_policy_process_is_killed(chain: Chain) -> None:
    inference = chain.probe.status("policy_node").values["inference_pid"]
    process = chain.nodes.processes["policy_node"]
    process.kill()
    chain.assert_stopped(time.monotonic(), "stale: the newest command is")
    process.wait()
    chain.until(lambda: not Path(f"/proc/{inference}").exists(), "end of inference")
    chain.start_policy()


def test_emergency_stop_holds_until_released_and_reset(chain: Chain) -> None:
    chain.probe.press(True)
    chain.assert_stopped(time.monotonic(), "estop: topic 'estop'")
    refused = chain.probe.trigger("reset")
    assert not refused.success and "release it" in refused.message
    chain.probe.press(False)
    chain.until(lambda: not chain.probe.status("guard_node").values["estop_pressed"], "release")
    assert chain.probe.speed() == 0
    chain.drive()
    assert chain.probe.trigger("estop").success
    chain.assert_stopped(time.monotonic(), "estop: service 'estop'")


def test_corrupt_bundle_is_refused_and_the_node_stays_unconfigured(chain: Chain) -> None:
    probe, content = chain.probe, chain.original.read_bytes()
    damaged = bytearray(content)
    damaged[content.index(b'"digest"') + 15] ^= 255
    chain.bundle.write_bytes(damaged)
    probe.spin(0.5)
    assert probe.speed() > 0.1  # what is loaded is not affected
    assert probe.transition("deactivate") and probe.speed() == 0
    assert probe.transition("cleanup")
    assert not probe.transition("configure")
    chain.until(lambda: probe.status("policy_node").level == 2, "refusal")
    assert chain.state() == "unconfigured" and str(chain.bundle) in probe.status("policy_node").text
    chain.until(lambda: probe.status("guard_node").values.get("fault"), "latched fault")
    assert probe.speed() == 0 and "not configured" in probe.status("guard_node").values["fault"]
    chain.bundle.write_bytes(content)
    assert probe.trigger("reset").success


def test_parameters_are_fixed_while_configured_and_another_robot_is_refused(chain: Chain) -> None:
    probe = chain.probe
    refused = probe.set_parameter("names", ["vx", "vy", "vz", "wz"])
    assert not refused.successful and "clean it up" in refused.reason
    assert probe.transition("deactivate") and probe.transition("cleanup")
    assert probe.set_parameter("names", ["vx", "vy", "vz", "wz"]).successful
    assert not probe.transition("configure")
    chain.until(lambda: probe.status("policy_node").level == 2, "refusal")
    assert "observation 'goal'" in probe.status("policy_node").text
    assert probe.set_parameter("names", ["vx", "vy", "wz"]).successful


def test_interrupted_policy_brings_the_robot_to_rest_without_a_fault(chain: Chain) -> None:
    assert chain.nodes.end("policy_node") == 0
    chain.probe.spin(0.5)
    assert chain.probe.speed() == 0
    assert chain.probe.status("guard_node").values["fault"] is None
    chain.start_policy()


def test_interrupted_guard_leaves_the_robot_at_rest_and_a_restarted_one_keeps_it_there(chain: Chain) -> None:
    assert chain.nodes.end("guard_node") == 0
    chain.probe.spin(0.2)
    assert not chain.probe.commands[-1][1].any()
    chain.nodes.start("guard_node", {"start_latched": True})
    chain.until(lambda: "has started" in str(chain.probe.status("guard_node").values.get("fault")), "latched fault")
    chain.until(lambda: chain.probe.status("policy_node").text == "commanding", "commands")
    chain.probe.spin(0.5)
    assert chain.probe.speed() == 0
    chain.drive()
