"""A policy that sees pictures drives: what reaches it, what it is told, and that nobody tells it where the goal is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.drive import PolicyDriver
from envs.pictures import unavailable
from envs.video_nav import VideoNavEnv
from kinoflow.run import RunConfig, run
from policies.bundle import Bundle
from policies.runtime.worker import InlineWorker, Request
from policies.spec import Array, ContractError
from ros_nodes.pictures import write_video
from ros_nodes.simulation import VIDEO_NAV, Eyes

pytestmark = pytest.mark.skipif(unavailable() != "", reason=unavailable())
ROS_MISSING = "needs the ROS 2 wheels: pip install 'kinoflow[ros]'"
SEED, PATIENCE_S = 0, 90.0
ATTEMPTS = 3
LATE = ("is older than the limit", "the newest", "position unknown")  # what stops a robot on a busy machine
SEEN = {"/odom", "/camera/image_raw", "/goal_video", "/instruction"}
SHOWN = {"/odom", "/pose", "/clock", "/camera/image_raw", "/diagnostics"}


class Recorder(InlineWorker):
    """Takes note of everything that a policy is asked."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.asked: list[bytes] = []

    def submit(self, request: Request) -> int:
        arrays = (*request.observation.values(), request.noise, request.committed, request.hold)
        self.asked.append(b"".join(array.tobytes() for array in arrays))
        return super().submit(request)


def driven(bundle: Bundle, goal: Array | None) -> tuple[list[bytes], list[bytes]]:
    """What the policy was asked and what the robot was commanded in one second of simulated time."""
    env = VideoNavEnv("wheeled", step_hz=50)
    observation, _ = env.reset(seed=SEED)
    if goal is not None:
        env.goal = goal
    worker, commands = Recorder(bundle), []
    driver = PolicyDriver(worker, seed=3)
    for _ in range(50):
        command = driver.command(observation, env.time)
        observation, *_ = env.step(env.rest if command is None else command)
        commands.append(observation["twist"].tobytes() + (b"" if command is None else command.tobytes()))
    env.close()
    return worker.asked, commands


def test_where_the_goal_is_changes_no_bit_of_what_a_policy_sees_and_says(seeing_bundle: Path) -> None:
    bundle = Bundle.load(seeing_bundle)
    asked, commands = driven(bundle, None)
    assert len(asked) == 10 and len({*asked}) == 10 and len({*commands}) > 40  # the robot moves and sees it
    assert (asked, commands) == driven(bundle, np.array([-3.0, 2.0, 0.0]))
    assert not {"goal", "goal_pose", "scan"} & {feature.name for feature in bundle.spec.observations}


def test_pictures_are_those_of_the_environment() -> None:
    env, shown = VideoNavEnv("wheeled", step_hz=50), []
    env.reset(seed=SEED)
    eyes = Eyes("wheeled", SEED, lambda picture, when: shown.append((picture, when)))
    for step in range(11):
        observation, *_ = env.step(np.array([0.5, 0, 0.3]))
        if step in (4, 9):  # pictures of the environment are taken ten times a second
            eyes.look(env.data.qpos.copy(), step)
            while not shown or shown[-1][1] != step:
                eyes.check()
                time.sleep(0.01)
            np.testing.assert_array_equal(shown[-1][0], observation["camera"])
    assert len(shown) == 2 and not np.array_equal(shown[0][0], shown[1][0])
    eyes.close()
    eyes.close()
    env.close()


def assert_report(report: dict[str, Any]) -> None:
    assert report["env"] == VIDEO_NAV and report["instruction"].startswith("Stop at the red box")
    assert not report["success"]
    assert (report["falls"], report["collisions"], report["language_errors"]) == (0, 0, 0)
    assert report["commands"] > 0 and report["rate_hz"] > report["plan_rate_hz"]
    assert report["deadline_misses"] >= 0 and report["arrived"] is False
    for name in ("inference_ms", "delay_ms"):
        assert 0 <= report[name]["p50"] <= report[name]["max"]


def assert_undisturbed(report: dict[str, Any]) -> None:
    assert report["ended"] == "the time is over" and report["guard"]["fault"] is None and report["plan_rate_hz"] > 0
    path = np.array(report["path"])[:, 1:]
    assert np.linalg.norm(path[-1] - path[0]) > 0.03


def test_nodes_drive_by_what_the_robot_sees(seeing_bundle: Path) -> None:
    pytest.importorskip("rclpy", reason=ROS_MISSING)
    for _ in range(ATTEMPTS):
        report = run(RunConfig(seeing_bundle, VIDEO_NAV, seconds=4), lambda *state: None)
        assert report["mode"] == "ros2" and report["received_hz"] > 0
        assert_report(report)
        if not any(late in report["ended"] for late in LATE):
            assert_undisturbed(report)
            break


def test_same_thing_in_this_process(seeing_bundle: Path) -> None:
    report = run(RunConfig(seeing_bundle, VIDEO_NAV, seconds=3, in_process=True), lambda *state: None)
    assert report["mode"] == "in-process"
    assert_report(report)
    assert_undisturbed(report)


def test_what_does_not_fit_is_refused_before_anything_starts(seeing_bundle: Path, bundle: Path) -> None:
    for config, message in (
        (RunConfig(seeing_bundle), "observation 'camera'"),
        (RunConfig(bundle, VIDEO_NAV), "observation 'goal'"),
        (RunConfig(seeing_bundle, VIDEO_NAV, goals=2), "goals is 2, a goal video shows the way to 1"),
    ):
        with pytest.raises(ContractError, match=message):
            run(config, lambda *state: None)


class Operator:
    """Starts the three nodes and tells them what a person would."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        from ros_nodes.session import Monitor, Nodes

        self.nodes, self.folder = Nodes(folder), folder
        ages = {f"max_age_{name}_s": 1.0 for name in ("odom", "scan", "camera")} | {"max_age_chunk_s": 2.0}
        self.nodes.start("sim_node", {"env": VIDEO_NAV, "seed": SEED})
        self.nodes.start("guard_node", {})
        self.nodes.start("policy_node", {"bundle": str(bundle), "goal": str(folder / "missing.mp4"), **ages})
        self.monitor = Monitor(self.nodes.check)

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *error: object) -> None:
        self.monitor.__exit__(*error)
        self.nodes.close()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        self.monitor.until(condition, PATIENCE_S, what)

    def says(self, text: str) -> None:
        """Wait until the policy node reports a text."""
        self.until(lambda: text in self.monitor.status("policy_node").text, f"'{text}'")

    def stops(self, reason: str) -> None:
        """Wait until the guard has latched a reason."""
        self.until(lambda: reason in str(self.monitor.status("guard_node").values.get("fault")), "latched fault")

    def topics(self, ask: Callable[[str, str], list[tuple[str, list[str]]]], name: str, known: set[str]) -> set[str]:
        """The topics of a node, once these are discovered: that takes each node its time."""
        from rclpy.node import NodeNameNonExistentError

        def discovered() -> set[str]:
            try:
                return {topic for topic, _ in ask(name, "/")}
            except NodeNameNonExistentError:
                return set()

        self.until(lambda: known <= discovered(), f"topics of {name}")
        return discovered()

    def set_texts(self, **values: str) -> None:
        """Set parameters of the policy node."""
        from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
        from rcl_interfaces.srv import SetParameters

        texts = ((k, ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=v)) for k, v in values.items())
        request = SetParameters.Request(parameters=[Parameter(name=name, value=text) for name, text in texts])
        assert all(
            one.successful for one in self.monitor.call(SetParameters, "policy_node/set_parameters", request).results
        )

    def drives(self) -> bool:
        """Whether the robot moves; resets the guard: every refusal was a stop, and a busy machine makes others."""
        from std_srvs.srv import Trigger

        if self.monitor.status("guard_node").values.get("fault"):
            assert self.monitor.call(Trigger, "guard_node/reset", Trigger.Request()).success
            self.monitor.spin(0.2)
        return bool(self.monitor.commands) and float(np.hypot(*self.monitor.commands[-1][1:3])) > 0.15


def film(folder: Path, name: str, seed: int) -> str:
    frames = np.random.default_rng(seed).integers(0, 256, (20, 3, 64, 64), np.uint8)
    write_video(folder / name, frames)
    return str(folder / name)


def test_goals_are_told_refused_and_replaced(seeing_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason=ROS_MISSING)
    from std_msgs.msg import String

    from ros_nodes import shared
    from ros_nodes.session import private_domain

    with private_domain(tmp_path), Operator(tmp_path, seeing_bundle) as operator:
        monitor = operator.monitor
        video = monitor.node.create_publisher(String, "goal_video", shared.LATCHED)
        sentence = monitor.node.create_publisher(String, "instruction", shared.LATCHED)
        operator.says("unconfigured")
        for change, reason in (
            ({}, "missing.mp4': no such file on this machine"),
            ({"goal": film(tmp_path, "first.mp4", 1), "instruction": "x" * 97}, "at most 96 fit"),
            ({"instruction": "", "embodiment": "boat"}, "embodiment is 'boat'"),
        ):
            operator.set_texts(**change)
            assert not monitor.transition("configure", PATIENCE_S)
            operator.says(reason)
        operator.set_texts(embodiment="wheeled")
        assert monitor.transition("configure", PATIENCE_S) and monitor.transition("activate")
        operator.says("no instruction yet")
        node = monitor.node
        asked = operator.topics(node.get_subscriber_names_and_types_by_node, "policy_node", SEEN)
        assert asked == SEEN  # no goal point, no scan, no map
        assert "/goal_pose" not in operator.topics(node.get_publisher_names_and_types_by_node, "sim_node", SHOWN)

        sentence.publish(String(data="Stop at the red box."))
        operator.says("commanding")
        operator.until(operator.drives, "motion")
        values = monitor.status("policy_node").values
        assert {*values["input_age_s"]} == {"goal_video", "instruction", "embodiment", "odom", "camera"}
        operator.until(lambda: monitor.status("policy_node").values["plan_rate_hz"] > 0, "plans")
        assert values["arrived"] is False and "goal" not in monitor.status("sim_node").values

        for publisher, bad, reason, good in (
            (video, str(tmp_path / "none.mp4"), "none.mp4': no such file", film(tmp_path, "second.mp4", 2)),
            (sentence, "", "the instruction is empty; say where to stop", "Stop at the blue door."),
        ):
            publisher.publish(String(data=bad))
            operator.says(reason)
            operator.stops(reason)
            operator.until(lambda: not any(monitor.commands[-1][1:]), "rest")
            publisher.publish(String(data=good))
            operator.says("commanding")
            operator.until(operator.drives, "motion")
