"""Simulated worlds as Gymnasium environments: ``import envs`` registers every environment file of this package."""

import importlib
import os
import pkgutil
import sys
from ctypes.util import find_library

# MuJoCo reads this while it loads. Its default needs a display, and with a library that is missing it does not load.
if sys.platform == "linux" and not {"DISPLAY", "MUJOCO_GL"} & os.environ.keys() and find_library("EGL"):
    os.environ["MUJOCO_GL"] = "egl"
# Pictures of this size are drawn faster by one thread than by many that wait for each other on a busy machine.
os.environ.setdefault("LP_NUM_THREADS", "0")

for _module in pkgutil.iter_modules(__path__):
    if not _module.ispkg:
        importlib.import_module(f"{__name__}.{_module.name}")
