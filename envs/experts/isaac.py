"""Demonstrator and baselines for kinoflow/IsaacVideoNav-v0: those of kinoflow/VideoNav-v0."""

from envs.experts.video_nav import DRIVERS

__all__ = ["DRIVERS"]
