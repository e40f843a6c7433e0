"""Where the robot model and the walking policy of the Unitree G1 lie on this machine. Neither ships with kinoflow."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

MODEL_FILE = "g1.xml"
POLICY_FILE = "fastsac_g1_29dof.onnx"
POLICY_SHA256 = "8346fd90778439395922a8c7256f24125ae84b8dea949128bac9e23c02bc7717"
OVERRIDE = "G1_MODEL_PATH"
REMEDY = "run: pip install --no-deps --require-hashes -r requirements-g1.txt"


class AssetError(RuntimeError):
    """A file of the G1 is missing or is not the one kinoflow was tested with; the message names it and the remedy."""


def model_path() -> Path:
    """Return the MuJoCo model: ``G1_MODEL_PATH/g1.xml``, else the one in the mjlab package (which is not imported).

    Raises:
        AssetError: There is no such file.
    """
    return _locate(MODEL_FILE, "mjlab", "asset_zoo/robots/unitree_g1/xmls")


def policy_path() -> Path:
    """Return the walking policy: the one under ``G1_MODEL_PATH``, else the one in the holosoma_inference package.

    Raises:
        AssetError: There is no such file, or its SHA-256 is not `POLICY_SHA256`.
    """
    path = _locate(POLICY_FILE, "holosoma_inference", "models/loco/g1_29dof")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != POLICY_SHA256:
        raise AssetError(f"G1 walking policy {path} has SHA-256 {digest}, expected {POLICY_SHA256}; {REMEDY}")
    return path


def available() -> str | None:
    """Return why the G1 cannot be used here, or None when it can."""
    try:
        model_path()
        policy_path()
    except AssetError as error:
        return str(error)
    return None


def _locate(name: str, package: str, inside: str) -> Path:
    folder = os.environ.get(OVERRIDE)
    path = Path(folder) / name if folder else _package_folder(package, name) / inside / name
    if not path.is_file():
        remedy = f"put it there, or unset {OVERRIDE} and {REMEDY}" if folder else REMEDY
        raise AssetError(f"G1 asset '{name}' is not at {path}; {remedy}")
    return path


def _package_folder(package: str, name: str) -> Path:
    """Find an installed package without importing it: its own dependencies are not installed."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise AssetError(f"G1 asset '{name}' is missing: package {package} is not installed; {REMEDY}")
    return Path(found.submodule_search_locations[0])
