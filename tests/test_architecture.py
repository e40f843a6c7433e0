"""Imports point one way, optional packages stay in the file that adapts them, and nothing slow happens at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kinoflow", "ros_nodes", "planners", "policies", "envs", "benchmarks")
MAY_IMPORT = {
    "policies": {"policies"},
    "envs": {"envs", "policies"},
    "planners": {"planners", "policies"},
    "ros_nodes": {"ros_nodes", "planners", "envs", "policies"},
    "kinoflow": {"kinoflow", "ros_nodes", "planners", "envs", "policies", "benchmarks"},
    "benchmarks": {"benchmarks", "planners", "envs", "policies"},
}
TORCH_FREE = (
    "policies/spec.py",
    "policies/chunk.py",
    "policies/bundle.py",
    "policies/manifest.py",
    "policies/network.py",
    "policies/archive.py",
    "policies/senses.py",
    "policies/dis.py",
    "policies/pickles.py",
)
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path, module_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if module_level else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        if name.split(".")[0] in PACKAGES:
            assert name.split(".")[0] in MAY_IMPORT[package], f"{path} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_special_packages_stay_where_they_belong(path: Path) -> None:
    place, roots = path.relative_to(ROOT).as_posix(), {name.split(".")[0] for name in imported(path, module_level=True)}
    assert not roots & {"robomimic", "robosuite", "lerobot", "isaacsim", "metadrive"}
    if not place.startswith("ros_nodes/"):
        assert "rclpy" not in roots
    if place.startswith("policies/runtime/") or place in TORCH_FREE:
        assert "torch" not in roots
    if place.startswith("envs/"):
        assert not [name for name in imported(path) if name in ("torch", "policies.policy", "policies.train")]
    if place.startswith(("policies/flow/", "policies/nets/")):
        assert not {name for name in imported(path) if name.startswith("policies")} - {
            name for name in imported(path) if name.startswith(("policies.flow", "policies.nets"))
        }


@pytest.mark.parametrize(
    "code", ["import kinoflow", "import kinoflow; kinoflow.Bundle; import policies.runtime.worker"]
)
def test_importing_needs_no_torch(code: str) -> None:
    check = f"{code}; import sys; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_launch_is_no_package() -> None:
    assert not (ROOT / "launch" / "__init__.py").exists(), "it would shadow ROS 2's own launch package"
