"""Load whatever can drive: a bundle, a run directory, a foreign checkpoint, or a composition written as a sum."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.senses import sensing
from policies.spec import ChunkPolicy, ContractError

if TYPE_CHECKING:
    from policies.policy import Policy

LOADER = "policies.load:load_policy"  # by name, so that worker processes find it
FOREIGN = ("lerobot",)  # kinds that need no trust: nothing in them can be executed
ARCHITECTURE = ("heads", "ends")  # settings that make another network, though the weights would fit
TEMPERATURE = "temperature"
PICKLES = {".pth": "robomimic", ".ckpt": "diffusion_policy"}  # kinds that do, by the usual suffix of their files


def load_policy(path: str) -> ChunkPolicy:
    """Load a policy to drive with.

    Args:
        path: A bundle (needs no torch), a run directory of ``kinoflow train`` or ``kinoflow import``, a LeRobot
            checkpoint ``"lerobot:DIRECTORY"``, any of these with another number of denoising steps ``"PATH@20"``,
            another temperature ``"PATH@temperature=0.5"`` or another setting of its head ``"PATH@guidance=1.5"``, or
            a composition: ``"(0.6*PATH + 0.4*PATH)"`` at the level of scores, ``"mean(0.6*PATH + 0.4*PATH)"`` of
            finished chunks.

    Raises:
        ContractError: There is nothing of the kind, it is damaged, or it cannot be composed.
    """
    _refuse_pickle(path)
    if os.path.isfile(path):  # unlike that of a Path, this takes expressions that are too long for a name
        from policies.bundle import Bundle

        return Bundle.load(Path(path))
    return sensing(load_trained(path))


def load_trained(path: str) -> Policy:
    """Load a policy with its weights, to compose it, export it or train it further; takes what `load_policy` takes.

    Raises:
        ContractError: As `load_policy`.
    """
    from policies.policy import Policy

    _refuse_pickle(path)
    if os.path.exists(path):  # first: names may look like an expression
        return Policy.load(Path(path))
    stepped = re.fullmatch(r"(.+)@(\d+)", path)
    if stepped:
        return load_trained(stepped[1]).with_steps(int(stepped[2]))
    summed = re.fullmatch(r"(mean)?\((.+)\)", path)
    if summed:
        return _composed(summed[2], level="action" if summed[1] else "score")
    changed = re.fullmatch(r"(.+)@(\w+)=([^@]*)", path)
    if changed:
        return _changed(load_trained(changed[1]), changed[2], changed[3])
    kind, _, place = path.partition(":")
    if kind in FOREIGN:
        loaded: Policy = importlib.import_module(f"policies.foreign.{kind}").load(Path(place))
        return loaded
    raise ContractError(
        f"no policy at {path}; give a bundle (.kfb), a run directory of kinoflow train or import, or lerobot:DIRECTORY"
    )


def _changed(policy: Policy, name: str, text: str) -> Policy:
    """The policy at another temperature, or with another setting of its head that its weights do not depend on."""
    from policies.policy import Policy

    settings = policy.settings
    own = settings if name == TEMPERATURE else settings["config"]
    present = own.get(name)
    if not isinstance(present, (str, float, int)) or name in ARCHITECTURE:
        known = ", ".join([TEMPERATURE, *settings["config"]])
        raise ContractError(f"the policy has no setting '{name}' to change; it has {known}")
    try:
        own[name] = type(present)(text)
        changed = Policy.build(settings)
        changed.load_state_dict(policy.state_dict())
    except ValueError as error:
        raise ContractError(f"{name} is {present}, it cannot be '{text}': {error}") from error
    except RuntimeError as error:
        raise ContractError(f"the weights were trained with {name} {present}; train with {text} to have it") from error
    return changed.eval()


def _refuse_pickle(path: str) -> None:
    kind, _, place = path.rpartition(":")
    kind = kind or PICKLES.get(Path(place).suffix, "")
    if kind in PICKLES.values() and not os.path.isdir(path):
        raise ContractError(
            f"{path} is a pickle, a program that usual loaders run; read it once, with kinoflow import {kind}:{place} "
            "-o DIRECTORY --trust, and give that directory"
        )


def _composed(terms: str, level: Any) -> Policy:
    from policies.composition import compose

    parts = [term.partition("*") for term in terms.split(" + ")]
    try:
        weights = [float(weight) for weight, _, _ in parts]
    except ValueError as error:
        raise ContractError(f"'{terms}' is no sum like (0.6*runs/a + 0.4*runs/b): {error}") from error
    return compose([load_trained(name.strip()) for _, _, name in parts], weights, level=level)


def describe_sum(names: list[str], weights: list[float], level: str = "score") -> str:
    """Write a composition as `load_policy` reads it, with weights to the last digit."""
    text = " + ".join(f"{float(weight)!r}*{name}" for weight, name in zip(weights, names, strict=True))
    return f"{'mean' if level == 'action' else ''}({text})"
