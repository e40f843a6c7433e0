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

from planners.edges import GraphError, Straight
from planners.graph import StateGraph
from policies.archive import BundleError, pack, unpack
from policies.files import replace_file
from policies.spec import Array
from policies.trajectory import TrajectoryModel, config_of

MANIFEST, WEIGHTS, GRAPH = "planner.json", "weights.safetensors", "graph.npz"
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
    if not path.is_file():
        raise FileNotFoundError(f"there is no planner {path}; train one with `kinoflow train xdiffuser`")
    parts = unpack(path, lambda read: (MANIFEST, WEIGHTS, GRAPH))
    try:
        manifest = json.loads(parts[MANIFEST])
        for name, digest in manifest["sha256"].items():
            if hashlib.sha256(parts[name]).hexdigest() != digest:
                raise BundleError(f"{name} of {path} was changed; copy the planner again")
        if manifest["format"] != FORMAT:
            raise BundleError(f"{path} has format {manifest['format']}, not {FORMAT}; train the planner again")
        model = TrajectoryModel(config_of(manifest["model"]))
        weights = {name: value.float() for name, value in load(parts[WEIGHTS]).items()}
        speeds = weights.pop(SPEEDS).numpy()
        model.load_state_dict(weights)
        graph = StateGraph.from_bytes(parts[GRAPH], Straight(manifest["speed"]), str(path))
        units = {name: manifest[name] for name in UNITS}
        return Contents(graph, model.eval(), speeds, units, manifest["origin"])
    except (KeyError, TypeError, RuntimeError, SafetensorError, GraphError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} is no planner or is damaged ({error}); copy it again") from error
