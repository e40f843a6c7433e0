"""kinoflow import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from envs.world import make
from kinoflow.console import show
from policies.foreign.convert import import_checkpoint
from policies.spec import ContractError, Spec


def command(
    source: tyro.conf.Positional[str],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    env: str | None = None,
    rename: tuple[str, ...] = (),
    trust: bool = False,
    json: bool = False,
) -> None:
    """Read a checkpoint of LeRobot, robomimic or diffusion_policy once and write it into a run directory.

    Args:
        source: lerobot:DIRECTORY, robomimic:FILE.pth or diffusion_policy:FILE.ckpt.
        out: Directory to write; kinoflow eval, compose and export take it.
        env: Gymnasium id of the environment the policy is for; states the units, frames and rate.
        rename: Names as CHECKPOINT=ENVIRONMENT; ENVIRONMENT may be a+b where a vector is to be taken apart.
        trust: Open a pickled file (.pth, .ckpt).
        json: Print JSON.
    """
    show({"out": str(out), **import_checkpoint(source, out, _contract(env), _pairs(rename), trust)}, json)


def _contract(env: str | None) -> Spec | None:
    if env is None:
        return None
    world = make(env, {})
    world.close()
    return world.contract


def _pairs(rename: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in rename]
    for text, (name, _, target) in zip(rename, pairs, strict=True):
        if not name or not target:
            raise ContractError(f"--rename {text}: give it as CHECKPOINT=ENVIRONMENT")
    return {name: target for name, _, target in pairs}
