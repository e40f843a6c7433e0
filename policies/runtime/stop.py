"""Decides that a robot has arrived, from what a policy says about it with every chunk."""

from __future__ import annotations

ENTER, LEAVE = 0.6, 0.4
CHUNKS = 3


class StopLatch:
    """Engages after `CHUNKS` sure chunks in a row and then stays engaged until the next goal.

    A chunk is sure from `ENTER` on. One below `LEAVE` makes the row begin again, one in between neither counts nor
    breaks it: a single doubt does not make the robot drive through its goal, nor a single slip stop it on its way.
    """

    def __init__(self) -> None:
        self._sure = 0

    @property
    def held(self) -> bool:
        """Whether the robot has arrived and shall rest."""
        return self._sure >= CHUNKS

    def update(self, arrival: float) -> None:
        """Take note of the probability in [0, 1] that came with a new chunk."""
        if self.held:
            return
        if arrival >= ENTER:
            self._sure += 1
        elif not arrival >= LEAVE:  # also what is not a number
            self._sure = 0

    def clear(self) -> None:
        """Let go, for a new goal."""
        self._sure = 0
