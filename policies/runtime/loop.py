"""A control loop on absolute deadlines, with statistics that are measured against them."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from policies.spec import Array

_RING = 8192  # ticks the percentiles look back: 164 s at 50 Hz
_MARGIN = 16
_LATE_S = 0.010
_PRIORITY = 50
_SWITCH_INTERVAL_S = 0.0005  # the default of 5 ms is what a busy Python thread would add to every tick


class Percentiles(NamedTuple):
    """Median, 99th percentile and maximum; zeros without data."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Array) -> Percentiles:
        """Summarise ``(N,)`` values."""
        return cls(*(float(np.quantile(values, q)) if len(values) else 0.0 for q in (0.5, 0.99, 1.0)))


@dataclass(frozen=True)
class LoopReport:
    """What a loop achieved. Rate and percentiles cover the last 8192 ticks, the counts the whole run.

    Args:
        rate_hz: Achieved rate in Hz.
        period_ms: Time between the begins of two ticks, in ms.
        lateness_ms: Begin of a tick after its deadline, in ms.
        tick_ms: Time spent inside a tick, in ms.
        deadline_misses: Ticks more than 10 ms late, plus grid points that were skipped.
        commands: Completed ticks.
    """

    rate_hz: float
    period_ms: Percentiles
    lateness_ms: Percentiles
    tick_ms: Percentiles
    deadline_misses: int
    commands: int


class Loop:
    """Calls ``tick(now)`` from a dedicated thread on the grid ``start + k * period_s``.

    A tick that runs over its period skips grid points instead of catching up in a burst. The thread runs under
    SCHED_FIFO where the system allows it; `scheduling` says what it got and why.

    Args:
        period_s: Seconds between two deadlines.
        tick: Called with the time on ``clock`` at which it begins.
        on_error: Called from the loop's thread with an exception of ``tick``: send the stop command here.
        clock: Monotonic time in seconds.
        sleep: Waits for the given seconds.
    """

    def __init__(
        self,
        period_s: float,
        tick: Callable[[float], None],
        on_error: Callable[[Exception], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not period_s > 0:
            raise ValueError(f"period_s is {period_s}, a positive time in seconds is needed")
        self.scheduling = "not started"
        self._period_s, self._tick, self._on_error, self._clock, self._sleep = period_s, tick, on_error, clock, sleep
        self._starts, self._lateness, self._durations = np.zeros((3, _RING))
        self._commands = self._misses = 0
        self._stopping = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="control-loop", daemon=True)

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread; a loop runs once."""
        self._thread.start()

    def stop(self) -> None:
        """Let no further tick begin and wait for the thread; from inside a tick it does not wait.

        Raises:
            Exception: Whatever the tick raised.
        """
        self._stopping = True
        if threading.current_thread() is not self._thread:
            self.join()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the thread to end.

        Raises:
            Exception: Whatever the tick raised.
        """
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error

    def report(self) -> LoopReport:
        """Return the statistics so far; callable while the loop runs."""
        count = self._commands
        # The oldest slots are left out: the loop may be writing into them.
        recent = np.arange(max(0, count - _RING + _MARGIN), count) % _RING
        periods = np.diff(self._starts[recent])
        return LoopReport(
            rate_hz=float(1 / periods.mean()) if len(periods) else 0.0,
            period_ms=Percentiles.of(1e3 * periods),
            lateness_ms=Percentiles.of(1e3 * self._lateness[recent]),
            tick_ms=Percentiles.of(1e3 * self._durations[recent]),
            deadline_misses=self._misses,
            commands=count,
        )

    def _run(self) -> None:
        self.scheduling = _request_fifo()
        with _short_switch_interval():
            try:
                self._ticks()
            except Exception as error:
                self._error = error
                if self._on_error is not None:
                    self._on_error(error)

    def _ticks(self) -> None:
        start, index = self._clock(), 0
        while not self._stopping:
            deadline = start + index * self._period_s
            self._wait(deadline)
            if self._stopping:
                return
            begin = self._clock()
            self._tick(begin)
            end = self._clock()
            passed = max(1, math.ceil((end - deadline) / self._period_s))
            self._note(begin, begin - deadline, end - begin, skipped=passed - 1)
            index += passed

    def _wait(self, deadline: float) -> None:
        remaining = deadline - self._clock()
        if remaining > 0:
            self._sleep(remaining)

    def _note(self, begin: float, lateness: float, duration: float, skipped: int) -> None:
        slot = self._commands % _RING
        self._starts[slot], self._lateness[slot], self._durations[slot] = begin, lateness, duration
        self._misses += skipped + (lateness > _LATE_S)
        self._commands += 1


def _request_fifo() -> str:
    """Put the calling thread under SCHED_FIFO; return what it got, in words. Its children stay at normal priority."""
    if not hasattr(os, "SCHED_FIFO"):
        return "default: this system has no SCHED_FIFO"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
    except OSError as error:
        return f"default: SCHED_FIFO refused ({error.strerror}); grant CAP_SYS_NICE or an rtprio limit of {_PRIORITY}"
    return f"SCHED_FIFO {_PRIORITY}"


class _SwitchInterval:
    """Counts its users, because several loops of one process share one interpreter setting."""

    lock = threading.Lock()
    users = 0
    usual = 0.0


@contextlib.contextmanager
def _short_switch_interval() -> Iterator[None]:
    with _SwitchInterval.lock:
        if _SwitchInterval.users == 0:
            _SwitchInterval.usual = sys.getswitchinterval()
            sys.setswitchinterval(_SWITCH_INTERVAL_S)
        _SwitchInterval.users += 1
    try:
        yield
    finally:
        with _SwitchInterval.lock:
            _SwitchInterval.users -= 1
            if _SwitchInterval.users == 0:
                sys.setswitchinterval(_SwitchInterval.usual)
