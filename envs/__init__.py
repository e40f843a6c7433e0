"""Simulated worlds as Gymnasium environments: ``import envs`` registers every environment file of this package."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    if not _module.ispkg:
        importlib.import_module(f"{__name__}.{_module.name}")
