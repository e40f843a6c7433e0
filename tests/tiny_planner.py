"""A planner for the maze of a seed whose model has learned nothing, so that its plans are the ways of its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from envs.maze_data import wander
from envs.maze_nav import MazeNavEnv
from planners.train_trajectory import TrajectoryRecipe, config_for, trimmed
from planners.xdiffuser import XDiffuser
from policies.trajectory import TrajectoryModel


def write(path: Path, seed: int) -> Path:
    """Write the planner and return its path."""
    env, rng = MazeNavEnv(), np.random.default_rng(0)
    env.reset(seed=seed)
    recording = wander(env, "stitch", rng, 300)
    trajectories = [trimmed(states) for states in recording.trajectories]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TrajectoryModel(config_for(trajectories))
    XDiffuser.build(trajectories, model, TrajectoryRecipe().stride, recording.step_s, rng).save(path)
    return path
