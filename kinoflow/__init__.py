"""kinoflow: train flow action heads in simulators and run them on robots over ROS 2.

The public names load on first use, so ``import kinoflow`` is fast and needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "policies.load:load_policy",
    "compose": "policies.composition:compose",
    "Bundle": "policies.bundle:Bundle",
    "Policy": "policies.policy:Policy",
    "Spec": "policies.spec:Spec",
    "ContractError": "policies.spec:ContractError",
    "evaluate": "envs.evaluate:evaluate",
    "collect": "envs.collect:collect",
    "Trainer": "policies.train:Trainer",
    "Recipe": "policies.train:Recipe",
    "export": "policies.export:export",
}

__all__ = ["__version__", *_PUBLIC]


def shadowed() -> dict[str, str]:
    """Packages of this distribution that Python would take from elsewhere: ``{name: offending path}``."""
    root = Path(__file__).resolve().parent.parent
    found = {}
    for name in ("policies", "envs", "ros_nodes", "benchmarks"):
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or []) if spec else []
        place = Path(places[0]).resolve() if places else None
        if place is None or place.parent != root:
            found[name] = str(place or (spec.origin if spec else "nowhere"))
    return found


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kinoflow' has no attribute '{name}'; it has {sorted(_PUBLIC)}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)


for _name, _path in shadowed().items():
    raise ImportError(
        f"the package '{_name}' of kinoflow is shadowed by {_path}; start Python from another directory, "
        "use 'python -P', or give kinoflow an environment of its own"
    )
