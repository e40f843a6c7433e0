"""Import of a foreign checkpoint: once, into a run directory like those of training, which holds no pickle."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from policies.bundle import SETTINGS
from policies.files import replace_file
from policies.norm import ACTION, Normaliser
from policies.policy import Policy
from policies.spec import ContractError, Feature, Spec

KINDS = {"lerobot": "DIRECTORY", "robomimic": "FILE.pth", "diffusion_policy": "FILE.ckpt"}
PICKLED = ("robomimic", "diffusion_policy")


def import_checkpoint(
    source: str,
    out: Path,
    contract: Spec | None = None,
    rename: Mapping[str, str] | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Read a checkpoint of another project and write its policy, with where it came from, into a run directory.

    Args:
        source: ``lerobot:DIRECTORY``, ``robomimic:FILE.pth`` or ``diffusion_policy:FILE.ckpt``.
        out: Directory for policy.safetensors, policy.json and run.json.
        contract: Contract of the environment the policy is for, which states the units, frames and rate.
        rename: Names of the contract by names of the checkpoint; ``"a+b"`` takes a vector apart.
        trust: The file may be opened although it is a pickle.

    Returns:
        What run.json holds.

    Raises:
        ContractError: The source is of no known kind, not trusted, cannot be reproduced or does not fit the contract,
            or there is a policy in ``out`` already.
    """
    if (out / SETTINGS).exists():
        raise ContractError(f"{out} holds a policy already; give another directory or remove this one")
    kind, path = _located(source, trust)
    policy = importlib.import_module(f"policies.foreign.{kind}").load(path)
    policy = adapted(policy, rename or {}, contract)
    run = {
        "source": kind,
        "path": str(path),
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(path)},
        "kinoflow": importlib.metadata.version("kinoflow"),
        "parameters": sum(parameter.numel() for parameter in policy.head.parameters()),
        "rename": dict(rename or {}),
    }
    policy.save(out)
    replace_file(out / "run.json", json.dumps(run, indent=2).encode())
    return run


def adapted(policy: Policy, rename: Mapping[str, str], contract: Spec | None) -> Policy:
    """Give a policy the names of an environment and, with its contract, the units, frames and rate.

    Args:
        policy: As its checkpoint describes it.
        rename: Names of the contract by names of the checkpoint; ``"a+b"`` takes a vector apart.
        contract: Contract of the environment.

    Raises:
        ContractError: Names a feature that is unknown or of another shape on the other side.
    """
    features = policy.spec.observations
    unknown = set(rename) - {feature.name for feature in features}
    if unknown:
        has = [feature.name for feature in features]
        raise ContractError(f"cannot rename {sorted(unknown)}: the checkpoint observes {has}")
    parts = {f.name: _parts(f, rename.get(f.name, f.name), contract) for f in features}
    names = [part.name for group in parts.values() for part in group]
    if len(set(names)) < len(names):
        raise ContractError(f"two features would be called the same: {names}; rename one of them")
    spec = replace(policy.spec, observations=tuple(part for group in parts.values() for part in group))
    head = type(policy.head)(_stated(spec, contract) if contract else spec, policy.head.config)
    head.load_state_dict(policy.head.state_dict())
    return Policy(head, _split(policy.normaliser, parts), policy.steps, policy.temperature).eval()


def _located(source: str, trust: bool) -> tuple[str, Path]:
    """Kind and place of a source that may be opened."""
    kind, _, name = source.partition(":")
    if kind not in KINDS or not name:
        known = ", ".join(f"{kind}:{path}" for kind, path in KINDS.items())
        raise ContractError(f"source '{source}' is of no known kind; give one of {known}")
    if kind in PICKLED and not trust:
        raise ContractError(
            f"{name} is a pickle, a program that usual loaders run. Here nothing in it is run, but it decides what the "
            "robot does: import it with --trust if you know where it is from"
        )
    if not Path(name).exists():
        raise ContractError(f"there is no {name}; give {kind}:{KINDS[kind]}")
    return kind, Path(name)


def _stated(spec: Spec, contract: Spec) -> Spec:
    """What the checkpoint commands, as the environment states it."""
    if contract.action.dim != spec.action.dim:
        raise ContractError(
            f"the checkpoint commands {spec.action.dim} numbers, the environment takes {contract.action.dim} "
            f"{contract.action.names}; choose the environment it was trained in"
        )
    if any(spec.action.names) and spec.action.names != contract.action.names:
        raise ContractError(
            f"the checkpoint commands {spec.action.names}, the environment takes {contract.action.names}; "
            "choose the environment it was trained in"
        )
    if spec.rate_hz not in (0, contract.rate_hz):
        raise ContractError(
            f"rate_hz: the checkpoint was trained at {spec.rate_hz}, the environment runs at {contract.rate_hz}; "
            "choose the environment it was trained in"
        )
    return replace(spec, action=contract.action, rate_hz=contract.rate_hz)


def _parts(feature: Feature, names: str, contract: Spec | None) -> tuple[Feature, ...]:
    """Features of the contract that a feature of the checkpoint stands for."""
    if contract is None:
        return (replace(feature, name=names),)  # its parts have no sizes yet
    offered = {item.name: item for item in contract.observations}
    wanted = names.split("+")
    missing = [name for name in wanted if name not in offered]
    if missing:
        raise ContractError(
            f"the checkpoint observes '{feature.name}', but the environment offers no {missing}, only "
            f"{sorted(offered)}; name it with --rename {feature.name}=NAME or choose another environment"
        )
    found = tuple(offered[name] for name in wanted)
    size = sum(math.prod(item.shape) for item in found)
    fits = found[0].shape == feature.shape if len(found) == 1 else feature.shape == (size,)
    if not fits:
        raise ContractError(
            f"'{feature.name}' has shape {feature.shape} in the checkpoint, but the environment's "
            f"{'+'.join(wanted)} has {[item.shape for item in found]}; choose the environment it was trained in"
        )
    return found


def _split(normaliser: Normaliser, parts: Mapping[str, tuple[Feature, ...]]) -> Normaliser:
    """The same numbers under the names of the parts."""
    tensors: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for kind, values in zip(("offset", "scale"), tensors, strict=True):
        values[ACTION] = normaliser.get_buffer(f"{ACTION}_{kind}")
        for name, features in parts.items():
            flat = normaliser.get_buffer(f"{name}_{kind}").flatten()
            pieces = flat.split([math.prod(feature.shape) for feature in features])
            values.update({f.name: piece.reshape(f.shape) for f, piece in zip(features, pieces, strict=True)})
    return Normaliser(*tensors)


def _files(path: Path) -> Iterator[Path]:
    yield from sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
