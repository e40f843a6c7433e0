"""Load whatever can drive: a bundle file or a run directory."""

from __future__ import annotations

from pathlib import Path

from policies.spec import ChunkPolicy, ContractError

LOADER = "policies.load:load_policy"  # by name, so that worker processes find it


def load_policy(path: str) -> ChunkPolicy:
    """Load a bundle (no torch needed) or the policy of a run directory.

    Raises:
        ContractError: There is neither, or it is damaged.
    """
    if Path(path).is_dir():
        from policies.policy import Policy

        return Policy.load(Path(path))
    if not Path(path).exists():
        raise ContractError(f"no policy at {path}; give a bundle (.kfb) or a run directory of kinoflow train")
    from policies.bundle import Bundle

    return Bundle.load(Path(path))
