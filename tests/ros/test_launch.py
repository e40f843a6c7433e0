"""Launch files are parsed everywhere and executed where ROS 2's launch package is."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from envs.nav import BODIES
from policies.runtime.guard import GuardLimits

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
FILES = sorted(LAUNCH.glob("*.launch.py"))
EXPECTED = {"embodiment", "namespace", "params_file", "use_sim_time", "autostart", "log_level"}
POLICY, PLANNER = {"bundle", "goal", "instruction"}, {"planner"}


def constants(tree: ast.Module, name: str) -> Any:
    """Value of a constant at the top of a module."""
    return next(
        ast.literal_eval(item.value)
        for item in tree.body
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name) and item.targets[0].id == name
    )


def parameters(embodiment: str) -> Any:
    """Content of a parameter file."""
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which comes with the ROS 2 wheels")
    return yaml.safe_load((LAUNCH / "params" / f"{embodiment}.yaml").read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_launch_file_is_typed_and_every_argument_is_described(file: Path) -> None:
    tree = ast.parse(file.read_text())
    functions = {item.name: item for item in tree.body if isinstance(item, ast.FunctionDef)}
    main = functions["generate_launch_description"]
    assert isinstance(main.returns, ast.Name) and main.returns.id == "LaunchDescription"
    arguments = constants(tree, "ARGUMENTS")
    assert set(arguments) >= EXPECTED | (PLANNER if file.name == "plan.launch.py" else POLICY)
    assert all(len(description) > 15 for _, description in arguments.values())
    used = {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "LaunchConfiguration"
        if isinstance(call.args[0], ast.Constant)
    }
    assert used <= set(arguments)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_topics_are_relative_and_nodes_exist(file: Path) -> None:
    tree = ast.parse(file.read_text())
    nodes = {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "_node"
        if isinstance(call.args[0], ast.Constant)
    }
    assert "guard_node" in nodes and len(nodes & {"policy_node", "planner_node"}) == 1
    assert all((LAUNCH.parent / "ros_nodes" / f"{node!s}.py").is_file() for node in nodes)
    defaults = [default for default, _ in constants(tree, "ARGUMENTS").values() if default]
    texts = {item.value for item in ast.walk(tree) if isinstance(item, ast.Constant)}
    assert not texts & {"/cmd_vel", "/odom", "/scan", "/map"} and not any(
        default.startswith("/") for default in defaults
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_arguments_that_are_handed_on_are_parameters_of_their_node(file: Path) -> None:
    pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")
    from ros_nodes.guard_node import GuardSettings
    from ros_nodes.planner_node import PlannerSettings
    from ros_nodes.policy_node import PolicySettings
    from ros_nodes.sim_node import SimSettings

    settings = {
        "guard_node": GuardSettings,
        "planner_node": PlannerSettings,
        "policy_node": PolicySettings,
        "sim_node": SimSettings,
    }
    handed = {
        call.args[0].value: {keyword.arg for keyword in call.keywords}
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "_node"
        if isinstance(call.args[0], ast.Constant)
    }
    for node, names in handed.items():
        assert names <= {field.name for field in dataclasses.fields(settings[node])}
    for node, own in (("policy_node", POLICY), ("planner_node", PLANNER)):
        assert handed.get(node, own | {"embodiment", "autostart"}) == own | {"embodiment", "autostart"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_launch_description_is_built(file: Path) -> None:
    pytest.importorskip("launch_ros", reason="needs a ROS 2 distribution: launch files have no wheels")
    spec = importlib.util.spec_from_file_location(file.stem.replace(".", "_"), file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(module.generate_launch_description().entities) >= len(module.ARGUMENTS) + 2


def test_launch_folder_does_not_shadow_the_package_of_ros() -> None:
    assert FILES and not (LAUNCH / "__init__.py").exists()


@pytest.mark.parametrize("embodiment", sorted(BODIES))
def test_parameter_file_has_the_limits_of_the_embodiment(embodiment: str) -> None:
    module = {"g1": "envs.g1.walker"}.get(embodiment)
    body = importlib.import_module(module).G1Body if module else BODIES[embodiment](False)
    action = body.action
    limits = GuardLimits.of(action)
    nodes = ("guard_node", "policy_node", "planner_node")
    guard, policy, planner = (parameters(embodiment)[f"/**/{node}"]["ros__parameters"] for node in nodes)
    assert guard["names"] == policy["names"] == planner["names"] == list(action.names)
    for name in ("low", "high", "acceleration", "jerk"):
        assert guard[name] == pytest.approx(getattr(limits, name)), name
    assert (planner["low"], planner["high"], planner["radius_m"]) == (guard["low"], guard["high"], body.radius)
    assert guard["geofence"] == policy["geofence"] == planner["geofence"] and len(guard["geofence"]) == 4


@pytest.mark.parametrize("embodiment", sorted(BODIES))
def test_parameter_files_name_every_parameter_that_a_robot_may_need(embodiment: str) -> None:
    pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")
    from ros_nodes.guard_node import GuardSettings
    from ros_nodes.planner_node import PlannerSettings
    from ros_nodes.policy_node import PolicySettings

    content = parameters(embodiment)
    launched = POLICY | PLANNER | {"embodiment", "autostart", "seed", "start_latched"}
    nodes = {"guard_node": GuardSettings, "policy_node": PolicySettings, "planner_node": PlannerSettings}
    for node, settings in nodes.items():
        names = {field.name for field in dataclasses.fields(settings)} - launched
        assert set(content[f"/**/{node}"]["ros__parameters"]) == names
