"""What colcon and ros2 run need to find the nodes."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_manifest_agrees_with_the_project() -> None:
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    assert manifest.get("format") == "3"
    for name in ("name", "version", "description"):
        assert (manifest.findtext(name) or "").startswith(PROJECT["project"][name][:20])
    assert manifest.findtext("export/build_type") == "ament_python"
    maintainer = manifest.find("maintainer")
    assert maintainer is not None and re.fullmatch(r"[\w.-]+@[\w-]+(\.[\w-]+)*\.[a-z]{2,}", maintainer.get("email", ""))


def test_every_imported_message_package_is_a_dependency() -> None:
    code = "".join(file.read_text() for file in (ROOT / "ros_nodes").glob("*.py"))
    used = set(re.findall(r"from (\w+)\.(?:msg|srv) import", code)) | {"rclpy", "launch", "launch_ros"}
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    assert used <= {item.text for item in manifest.findall("exec_depend")}


def test_scripts_go_where_ros2_run_looks() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings["develop"]["script_dir"] == settings["install"]["install_scripts"] == "$base/lib/kinoflow"
    assert (ROOT / "resource" / "kinoflow").read_text() == ""


@pytest.mark.parametrize("linked", [False, True], ids=["source", "symlink-install"])
def test_setup_gives_the_same_metadata_in_both_colcon_modes(tmp_path: Path, linked: bool) -> None:
    for name in ("setup.py", "setup.cfg", "package.xml", *(() if linked else ("pyproject.toml",))):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "README.md").write_text("")
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        (tmp_path / package.replace(".", "/")).mkdir(parents=True)
    code = (
        "from distutils.core import run_setup; d = run_setup('setup.py', ['--quiet'], stop_after='config');"
        "print([d.get_name(), d.get_version(), d.packages, [f for _, f in d.data_files], d.python_requires])"
    )
    command = [sys.executable, "-c", f"import setuptools; {code}"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    name, version, packages, files, requires = ast.literal_eval(found.splitlines()[-1])
    assert (name, version) == (PROJECT["project"]["name"], PROJECT["project"]["version"])
    assert packages == PROJECT["tool"]["setuptools"]["packages"] and isinstance(requires, str)
    data = {file for group in files for file in group}
    assert {"package.xml", "resource/kinoflow", "launch/sim.launch.py", "launch/params/g1.yaml"} <= data
    assert all((ROOT / file).is_file() for file in data)
