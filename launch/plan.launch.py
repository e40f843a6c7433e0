"""Drive a robot that provides odometry along plans through a place that there is a map of: planner and guard."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "planner": (None, "Path of the planner, as `kinoflow train xdiffuser` writes it"),
    "embodiment": ("g1", "Robot that is driven: wheeled, drone or g1"),
    "namespace": ("", "Namespace of all nodes"),
    "params_file": (None, "Parameters of all nodes; by default those that belong to the embodiment"),
    "use_sim_time": ("false", "Take the time from /clock instead of the system"),
    "autostart": ("false", "Configure and activate the planner at the start"),
    "start_latched": ("true", "Start with the robot stopped until the guard's service ~/reset is called"),
    "log_level": ("info", "Lowest level of messages that are logged"),
    "cmd_vel": ("cmd_vel", "Topic on which the robot takes its commands, relative to the namespace"),
    "odom": ("odom", "Topic of its odometry, relative to the namespace"),
    "map": ("map", "Topic of the map (nav_msgs/OccupancyGrid, latched), relative to the namespace"),
}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the two nodes; their topics are relative to the namespace."""
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
            _node("guard_node", ("cmd_vel", "odom"), start_latched=bool),
            _node("planner_node", ("odom", "map"), planner=str, embodiment=str, autostart=bool),
        ]
    )


def _node(name: str, topics: tuple[str, ...], **kinds: type) -> Node:
    """A node of this package with the parameter file, remapped topics, and arguments named as its parameters."""
    kinds = {"use_sim_time": bool, **kinds}
    given = {key: ParameterValue(LaunchConfiguration(key), value_type=kind) for key, kind in kinds.items()}
    return Node(
        package="kinoflow",
        executable=name,
        name=name,
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), given],
        remappings=[(topic, LaunchConfiguration(topic)) for topic in topics],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
    )
