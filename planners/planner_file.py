"""The file of a planner (.kfp): one archive of weights at half precision, graph, units, and SHA-256 of both parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from planners.edges import Straight
from planners.graph import StateGraph
from policies.archive import PLANNER, BundleError, holds, pack, unpack
from policies.files import replace_file
from policies.manifest import MANIFEST as BUNDLE
from policies.spec import Array
from policies.trajectory import TrajectoryModel, config_of

MANIFEST, WEIGHTS, GRAPH = PLANNER, "weights.safetensors", "graph.npz"
SPEEDS = "speeds"  # beside the weights
FORMAT = 1
UNITS = ("stride", "leap", "turn", "step_s")


class Contents(NamedTuple):
    """What is in the file.

    Args:
        graph: See `planners.xdiffuser.XDiffuser`.
        model: As well.
        speeds: As well.
        units: By name those of `UNITS`.
        origin: Where data and model come from.
    """

    graph: StateGraph
    model: TrajectoryModel
    speeds: Array
    units: dict[str, Any]
    origin: Mapping[str, Any]


def write(path: Path, contents: Contents) -> None:
    """Write a planner, in one step.

    Raises:
        OSError: The file cannot be written.
    """
    graph, model, speeds, units, origin = contents
    weights = {name: value.half() for name, value in model.state_dict().items()}
    parts = {
        WEIGHTS: save({**weights, SPEEDS: torch.as_tensor(speeds, dtype=torch.float16)}),
        GRAPH: graph.to_bytes(),
    }
    manifest = {
        "format": FORMAT,
        "model": model.settings,
        "speed": graph.cost.speed if isinstance(graph.cost, Straight) else None,
        **units,
        "origin": dict(origin),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()},
    }
    replace_file(path, pack({MANIFEST: json.dumps(manifest, indent=2).encode(), **parts}))


def read(path: Path) -> Contents:
    """Read a planner.

    Raises:
        FileNotFoundError: There is no such file.
        BundleError: It is damaged or no planner.
    """
    if path.is_dir():
        raise BundleError(f"{path} is a directory, not a planner; give the file, for example {path / 'planner.kfp'}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no planner {path}; train one with `kinoflow train xdiffuser`")
    if holds(path, BUNDLE):
        raise BundleError(f"{path} is a policy bundle, not a planner; `kinoflow eval {path}` evaluates it")
    try:
        parts = unpack(path, lambda read: (MANIFEST, WEIGHTS, GRAPH))
        manifest = json.loads(parts[MANIFEST])
        for name in (WEIGHTS, GRAPH):
            if hashlib.sha256(parts[name]).hexdigest() != manifest["sha256"][name]:
                raise BundleError(f"{name} was changed")
        if manifest["format"] != FORMAT:
            raise BundleError(f"its format is {manifest['format']}, this version reads {FORMAT}: train it again")
        model = TrajectoryModel(config_of(manifest["model"]))
        weights = {name: value.float() for name, value in load(parts[WEIGHTS]).items()}
        speeds = weights.pop(SPEEDS).numpy()
        model.load_state_dict(weights)
        graph = StateGraph.from_bytes(parts[GRAPH], Straight(manifest["speed"]), str(path))
        units = {name: manifest[name] for name in UNITS}
        return Contents(graph, model.eval(), speeds, units, manifest["origin"])
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).removesuffix("; copy the bundle again")
        raise BundleError(f"{path} is no planner or is damaged ({reason}); copy the planner again") from error
