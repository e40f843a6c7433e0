"""Drive a simulated robot: simulator, policy and guard."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "bundle": (None, "Path of the policy bundle (.kfb)"),
    "goal": ("", "Path of the goal video (.mp4), for policies that follow one"),
    "instruction": ("", "Sentence that says where to stop; by default that beside the goal video (.txt)"),
    "env": ("kinoflow/Nav-v0", "Environment: kinoflow/Nav-v0, or kinoflow/VideoNav-v0 for a robot with a camera"),
    "embodiment": ("wheeled", "Robot to simulate: wheeled, drone or g1"),
    "seed": ("0", "Seed of the room, the start and the first goal"),
    "namespace": ("", "Namespace of all nodes"),
    "params_file": (None, "Parameters of all nodes; by default those that belong to the embodiment"),
    "use_sim_time": ("false", "Take the time from /clock instead of the system"),
    "autostart": ("true", "Configure and activate the policy at the start"),
    "log_level": ("info", "Lowest level of messages that are logged"),
}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the three nodes; their topics are relative to the namespace."""
    parameters = [FindPackageShare("kinoflow"), "/params/", LaunchConfiguration("embodiment"), ".yaml"]
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
        if name != "params_file"
    ]
    arguments.append(
        DeclareLaunchArgument("params_file", default_value=parameters, description=ARGUMENTS["params_file"][1])
    )
    return LaunchDescription(
        [
            *arguments,
            _node("sim_node", env=str, embodiment=str, seed=int),
            _node("guard_node"),
            _node("policy_node", bundle=str, goal=str, instruction=str, embodiment=str, autostart=bool),
        ]
    )


def _node(name: str, **kinds: type) -> Node:
    """A node of this package with the parameter file and with arguments of the same name as its parameters."""
    kinds = {"use_sim_time": bool, **kinds}
    given = {key: ParameterValue(LaunchConfiguration(key), value_type=kind) for key, kind in kinds.items()}
    return Node(
        package="kinoflow",
        executable=name,
        name=name,
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), given],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
    )
