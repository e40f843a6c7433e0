"""Plans in a process of its own, so that planning never holds up the loop that drives. No torch on the asking side.

The newest request wins: one that has not begun is dropped for it, and the answer to one that has is never handed out.
Nobody who asks waits for the pipe, because a thread of its own writes into it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from planners.occupancy import OccupancyMap
from planners.search import NoRoute, Route
from policies.runtime.worker import WorkerError, describe, end_with_parent, one_numeric_thread
from policies.spec import Array, ContractError

if TYPE_CHECKING:
    from planners.xdiffuser import XDiffuser

NICE = 5  # a plan can wait, commands cannot
FAILED = "error"


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Args:
        request: Its number.
        route: The plan, in steps; None if it is refused.
        refusal: ``reason`` of a `NoRoute`, or ``"error"``; empty for a plan.
        message: The same in words.
        origin: See `planners.xdiffuser.Planned`, empty if refused.
        pieces: As well.
        search_s: As well.
        denoise_s: As well.
    """

    request: int
    route: Route | None = None
    refusal: str = ""
    message: str = ""
    origin: str = ""
    pieces: int = 0
    search_s: float = 0.0
    denoise_s: float = 0.0


class _Greeting(NamedTuple):
    error: str
    step_s: float = 0.0


class _Request(NamedTuple):
    number: int
    start: Array
    goal: Array
    area: OccupancyMap | None  # None: as in the request before


class PlannerProcess:
    """A planner in a process that ends with `close`, with its parent, or by itself when it cannot load the file.

    Used by one thread, but for `close`. The starting program needs the usual ``if __name__ == "__main__"`` guard.

    Args:
        file: Of the planner, see `planners.xdiffuser.XDiffuser`.
    """

    def __init__(self, file: Path) -> None:
        self.step_s = 0.0
        """Seconds per step of a route, known once ready."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(file, theirs), name="kinoflow-planner", daemon=True)
        with one_numeric_thread():
            self._process.start()
        theirs.close()
        self._failure, self._ready, self._greeted = "", False, threading.Event()
        self._closed, self._number = False, 0
        self._asked: _Request | None = None
        self._wake, self._answer = threading.Condition(), Answer(0)
        for target in (self._write, self._read):
            threading.Thread(target=target, name="planner-pipe", daemon=True).start()

    def __enter__(self) -> PlannerProcess:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return not self._closed and self._process.is_alive()

    @property
    def ready(self) -> bool:
        """Whether the planner is loaded."""
        return self._ready

    @property
    def failure(self) -> str:
        """Why it could not be loaded; empty if it was, or if that is not known yet."""
        return self._failure

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the planner is loaded.

        Raises:
            WorkerError: It cannot be loaded, the process died, or the time is over.
        """
        if not self._greeted.wait(timeout_s):
            raise WorkerError(f"the planner was not ready within {timeout_s} s; give it more time or close it")
        if self._failure:
            raise WorkerError(self._failure)

    def request(self, start: Array, goal: Array, area: OccupancyMap) -> int:
        """Ask for a plan, without waiting, and return the number of the request.

        Args:
            start: Where the robot is, and how fast if it has inertia: ``(2,)`` or ``(4,)`` in m and m/s.
            goal: Position ``(2,)`` in m.
            area: Where the robot can be. What follows from it is kept as long as it is the same object.

        Raises:
            ContractError: The area is no map. What else does not fit is answered with a refusal.
        """
        if not isinstance(area, OccupancyMap):
            raise ContractError(f"the area is {area!r}, not an OccupancyMap; every request brings one")
        with self._wake:
            self._number += 1
            self._asked = _Request(self._number, np.array(start, np.float32), np.array(goal, float), area)
            self._wake.notify()
            return self._number

    def newest(self) -> Answer | None:
        """The answer to the newest request, once, None when there is none yet. Does not wait."""
        answer = self._answer
        if answer.request == 0 or answer.request != self._number:
            return None
        self._answer = Answer(0)
        return answer

    def close(self) -> None:
        """End the process, which holds nothing that is worth waiting for. May be called again."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._process.kill()
        self._process.join()

    def _write(self) -> None:
        sent: OccupancyMap | None = None
        with contextlib.suppress(OSError):  # the process has ended, which `alive` tells
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._asked is not None or self._closed)
                    asked, self._asked = self._asked, None
                if asked is None:
                    return
                self._connection.send(asked._replace(area=None) if asked.area is sent else asked)
                sent = asked.area

    def _read(self) -> None:
        try:
            greeting: _Greeting = self._connection.recv()
            self._failure, self.step_s = greeting
            self._ready = not greeting.error
            self._greeted.set()
            while True:
                self._answer = self._connection.recv()
        except (EOFError, OSError):
            if not self._greeted.is_set():
                self._failure = "the planner process died while it loaded the planner; see its output"
                self._greeted.set()


def _serve(file: Path, connection: Connection) -> None:
    """Main function of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.nice(NICE)
    try:
        from planners.xdiffuser import XDiffuser

        planner = XDiffuser.load(file)
    except Exception as error:
        connection.send(_Greeting(f"{file} is not loaded: {describe(error)}"))
        return
    connection.send(_Greeting("", planner.step_s))
    area, present = None, None
    while True:
        asked: _Request = connection.recv()
        given = asked.area
        while connection.poll():  # the newest wins, but none of the maps on the way is lost
            asked = connection.recv()
            given = asked.area or given
        if given is not None:
            area, present = given, None
        assert area is not None  # the first request brings one
        try:
            present = present or replace(planner, graph=area.closed_in(planner.graph))
            answer = _answer(present, asked, area)
        except Exception as error:  # whatever was asked for, the next request may be sound
            answer = Answer(asked.number, refusal=FAILED, message=describe(error))
        connection.send(answer)


def _answer(planner: XDiffuser, asked: _Request, area: OccupancyMap) -> Answer:
    import torch

    generator = torch.Generator().manual_seed(asked.number)
    try:
        planned = planner.plan(asked.start, asked.goal, area.leaving(asked.start[:2]).free, generator)
    except NoRoute as refusal:
        return Answer(asked.number, refusal=refusal.reason, message=str(refusal))
    times = planned.search_s, planned.denoise_s
    return Answer(asked.number, planned.route, "", "", planned.origin, planned.pieces, *times)
