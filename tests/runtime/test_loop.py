from __future__ import annotations

import sys
import threading
import time

import pytest

from policies.runtime.loop import Loop, Percentiles

PERIOD = 1 / 64  # exact in binary, so the statistics below are exact


class FakeClock:
    """Time that passes only in sleeps and ticks; ``oversleep`` maps the index of a sleep to a delay."""

    def __init__(self, oversleep: dict[int, float] | None = None) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []
        self._oversleep = oversleep or {}

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self._oversleep.get(len(self.sleeps), 0.0)
        self.sleeps.append(seconds)


def run(clock: FakeClock, work: list[float]) -> tuple[Loop, list[float]]:
    """Run one tick per entry of ``work``, which takes that many seconds; return the loop and the begins of ticks."""
    begins: list[float] = []

    def tick(now: float) -> None:
        assert now == clock.now
        begins.append(now - 100.0)
        clock.now += work[len(begins) - 1]
        if len(begins) == len(work):
            loop.stop()

    loop = Loop(PERIOD, tick, clock=clock, sleep=clock.sleep)
    loop.start()
    loop.join()
    return loop, begins


def test_punctual_loop_stays_on_the_grid() -> None:
    loop, begins = run(FakeClock(), [PERIOD / 4] * 1000)
    assert begins == [k * PERIOD for k in range(1000)]
    report = loop.report()
    assert report.rate_hz == 64
    assert report.period_ms == Percentiles(*[1e3 * PERIOD] * 3)
    assert report.lateness_ms == Percentiles(0, 0, 0)
    assert report.tick_ms == Percentiles(*[1e3 * PERIOD / 4] * 3)
    assert (report.deadline_misses, report.commands) == (0, 1000)


def test_long_tick_skips_grid_points_without_a_burst() -> None:
    loop, begins = run(FakeClock(), [0.0, 2.5 * PERIOD, 0.0, 0.0])
    assert begins == [0, PERIOD, 4 * PERIOD, 5 * PERIOD]
    report = loop.report()
    assert report.deadline_misses == 2
    assert report.period_ms.max == 3e3 * PERIOD
    assert report.lateness_ms.max == 0


def test_tick_that_ends_on_the_next_deadline_misses_nothing() -> None:
    loop, begins = run(FakeClock(), [PERIOD] * 4)
    assert begins == [0, PERIOD, 2 * PERIOD, 3 * PERIOD]
    assert loop.report().deadline_misses == 0


def test_lateness_is_measured_against_the_deadline_and_does_not_accumulate() -> None:
    late = 1 / 128  # 7.8 ms
    loop, begins = run(FakeClock(dict.fromkeys(range(9), late)), [0.0] * 10)
    assert begins == [0.0] + [k * PERIOD + late for k in range(1, 10)]
    report = loop.report()
    assert report.period_ms.p50 == 1e3 * PERIOD
    assert report.lateness_ms.p50 == report.lateness_ms.max == 1e3 * late
    assert report.deadline_misses == 0


def test_late_ticks_count_as_misses() -> None:
    clock = FakeClock({0: 0.0101, 2: 0.0099, 4: 1.5 * PERIOD})
    loop, _ = run(clock, [0.0] * 8)
    assert loop.report().deadline_misses == 3  # one of 10.1 ms, one of 23 ms, and the grid point it ran over


def test_percentiles_cover_the_ring_and_counts_the_whole_run() -> None:
    loop, _ = run(FakeClock({10: 0.5}), [0.0] * 9000)
    report = loop.report()
    assert report.commands == 9000
    assert report.deadline_misses == 32
    assert report.lateness_ms.max == 0 and report.rate_hz == 64


def test_report_of_a_loop_that_has_not_run_is_zero() -> None:
    report = Loop(PERIOD, lambda now: None).report()
    assert report.rate_hz == 0 and report.period_ms == Percentiles(0, 0, 0) and report.commands == 0


def test_error_stops_the_loop_calls_back_and_is_raised() -> None:
    calls: list[tuple[str, Exception]] = []

    def tick(now: float) -> None:
        raise ArithmeticError("no command")

    def on_error(error: Exception) -> None:
        calls.append((threading.current_thread().name, error))

    loop = Loop(PERIOD, tick, on_error=on_error)
    loop.start()
    with pytest.raises(ArithmeticError, match="no command"):
        loop.join()
    with pytest.raises(ArithmeticError, match="no command"):
        loop.stop()
    assert not loop.running and loop.report().commands == 0
    assert [(name, str(error)) for name, error in calls] == [("control-loop", "no command")]


def test_scheduling_says_what_the_thread_got() -> None:
    loop = Loop(PERIOD, lambda now: None)
    assert loop.scheduling == "not started"
    loop.start()
    loop.stop()
    assert loop.scheduling.startswith(("SCHED_FIFO", "default: "))


def test_switch_interval_is_short_while_any_loop_runs() -> None:
    usual = sys.getswitchinterval()
    loops = [Loop(PERIOD, lambda now: None) for _ in range(2)]
    for loop in loops:
        loop.start()
    while any(loop.report().commands == 0 for loop in loops):
        time.sleep(1e-3)
    assert sys.getswitchinterval() < usual / 2
    loops[0].stop()
    assert sys.getswitchinterval() < usual / 2
    loops[1].stop()
    assert sys.getswitchinterval() == usual


def test_real_clock_never_gives_more_ticks_than_grid_points() -> None:
    begins: list[float] = []
    loop = Loop(0.005, begins.append)
    before = time.monotonic()
    loop.start()
    while len(begins) < 40:
        time.sleep(0.01)
    loop.stop()
    assert len(begins) <= (begins[-1] - before) / 0.005 + 1
    assert begins == sorted(begins)
    assert loop.report().lateness_ms.p50 >= 0


@pytest.mark.parametrize("period", [0.0, -1.0, float("nan")])
def test_period_must_be_positive(period: float) -> None:
    with pytest.raises(ValueError, match="period_s"):
        Loop(period, lambda now: None)
