"""What pyproject.toml cannot say: the files by which ROS 2 finds the package.

The rest is in pyproject.toml. It is repeated from there where setuptools does not read that file itself: in the build
folder of ``colcon build --symlink-install``, and in setuptools before 61, as in ROS 2 Humble.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import setuptools

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent
SHARE = "share/kinoflow"


def metadata() -> dict[str, Any]:
    """Name, version, packages and commands, unless setuptools has read them."""
    if Path("pyproject.toml").is_file() and int(setuptools.__version__.split(".")[0]) >= 61:
        return {}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    commands = [f"{name} = {target}" for name, target in project["scripts"].items()]
    return {
        "name": project["name"],
        "version": project["version"],
        "packages": settings["tool"]["setuptools"]["packages"],
        "entry_points": {"console_scripts": commands},
    }


def files(pattern: str) -> list[str]:
    """Paths that match a pattern, relative to this file."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


distribution = setuptools.setup(
    **metadata(),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/kinoflow"]),
        (SHARE, ["package.xml"]),
        (f"{SHARE}/launch", files("launch/*.launch.py")),
        (f"{SHARE}/params", files("launch/params/*.yaml")),
    ],
)
for owner in (distribution, distribution.metadata):
    if hasattr(owner, "python_requires"):  # colcon reads the attributes back as Python literals, so no objects
        owner.python_requires = str(owner.python_requires or "")
