"""Demonstrator and baseline for kinoflow/MazeNav-v0: those of kinoflow/Nav-v0."""

from __future__ import annotations

from envs.experts.nav import NavExpert, StraightLine
from envs.maze_nav import MazeNavEnv
from policies.spec import Array


class MazeExpert(NavExpert):
    """Demonstrator: that of Nav-v0, which plans anew when a door has moved."""

    def __init__(self, env: MazeNavEnv) -> None:
        super().__init__(env)
        self._room = env.room

    def _aim(self, position: Array) -> Array:
        if self._room is not self._env.room:
            self._room, self._routes = self._env.room, None
        return super()._aim(position)


DRIVERS = {"expert": MazeExpert, "straight line": StraightLine}
