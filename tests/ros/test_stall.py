"""A parent of a composed policy that stalls: the robot drives on with the other one, and the node says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")

import composed
from chain import RELAY, Chain, Probe

from envs.nav import NavEnv
from ros_nodes.session import Nodes, private_domain
from ros_nodes.shared import WARNING


class Patient(Chain):
    """A chain that is not about the age of the inputs: a parent that stalls takes a core from the simulator."""

    def start_policy(self) -> None:
        ages = {"max_age_odom_s": 1.0, "max_age_scan_s": 1.0, "max_age_chunk_s": 2.0}
        self.nodes.start("policy_node", {"bundle": str(self.bundle), "autostart": True, **ages}, {"scan": RELAY})


def test_the_robot_drives_on_with_the_other_parent(tmp_path: Path, seed: int) -> None:
    bundle = composed.write(tmp_path / "composed.kfb", NavEnv("wheeled").contract)
    with private_domain(tmp_path), Nodes(tmp_path) as nodes, Probe() as probe:
        chain = Patient(tmp_path, nodes, probe, bundle, seed)
        chain.drive()

        def emptied(scan: Any) -> Any:
            changed = type(scan)(**{name: getattr(scan, name) for name in scan.get_fields_and_field_types()})
            changed.ranges = [float("inf")] * len(scan.ranges)
            return changed

        probe.disturb = emptied
        chain.until(lambda: probe.status("policy_node").level == WARNING, "warning")
        status = probe.status("policy_node")
        assert status.text.startswith("parent_1 is left out since ") and "no answer within" in status.text
        assert "parent_0" not in status.text
        before = status.values["commands"]
        chain.until(lambda: probe.status("policy_node").values["commands"] > before + 25, "commands beside the warning")
        assert probe.status("policy_node").values["warning"].startswith("parent_1 is left out since ")
        assert probe.status("guard_node").values["fault"] is None and probe.speed() > 0.1
        assert nodes.output("policy_node").count("parent_1 is left out") == 1

        probe.disturb = lambda scan: scan
        chain.until(lambda: probe.status("policy_node").text == "commanding", "return of the parent")
        assert probe.status("policy_node").values["warning"] == ""
        assert probe.status("guard_node").values["fault"] is None and probe.status("policy_node").values["stops"] == 0
