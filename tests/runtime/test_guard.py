from __future__ import annotations

import numpy as np
import pytest

from policies.runtime.guard import Guard, GuardLimits
from policies.spec import ContractError

LIMITS = GuardLimits(low=(-0.3, -0.2, -0.7), high=(0.6, 0.2, 0.7), acceleration=(1.0, 0.5, 2.0), jerk=(10.0, 5.0, 20.0))
FENCED = GuardLimits((-1.0,), (1.0,), (1.0,), (10.0,), geofence=(-2.0, 2.0, -1.0, 1.0))
DT = 0.02


def random_limits(rng: np.random.Generator) -> GuardLimits:
    def positive(low: float, high: float) -> tuple[float, ...]:
        return tuple(rng.uniform(low, high, 3))

    low = tuple(-value for value in positive(0.0, 1.0))
    return GuardLimits(low, positive(0.0, 1.0), positive(0.1, 5.0), positive(0.5, 50.0), timeout_s=1.0)


def random_command(rng: np.random.Generator, previous: np.ndarray) -> np.ndarray | None:
    kind = rng.integers(6)
    if kind == 0:
        return None
    if kind == 1:
        return np.zeros(3)
    if kind == 2:
        return rng.choice([-1e6, 1e6, 1e-7, 0.3], 3)
    return previous if kind < 5 else rng.normal(0, 1, 3)


def assert_within(limits: GuardLimits, outputs: np.ndarray, times: np.ndarray) -> None:
    """Check velocity, acceleration and jerk of ``(N, 3)`` float32 outputs by finite differences."""
    step = np.diff(times)[:, None]
    outputs = outputs.astype(np.float64)
    acceleration = np.diff(outputs, axis=0) / step
    jerk = np.diff(acceleration, axis=0, prepend=np.zeros((1, 3))) / step
    rounding = 1.2e-7 / step
    before = np.vstack([rounding[:1], rounding[:-1]])
    low, high = np.array(limits.low, np.float32), np.array(limits.high, np.float32)
    assert (outputs >= low).all() and (outputs <= high).all()
    assert (np.abs(acceleration) <= np.array(limits.acceleration) + rounding).all()
    assert (np.abs(jerk) <= np.array(limits.jerk) + (rounding + before) / step).all()


def drive(guard: Guard, command: np.ndarray | None, start: float, seconds: float) -> np.ndarray:
    """Send one command at every tick; return the outputs."""
    times = start + DT * np.arange(round(seconds / DT))
    return np.stack([guard.filter(command, t, t) for t in times])


@pytest.mark.parametrize("seed", range(40))
def test_limits_hold_for_any_commands_at_any_tick_times(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limits = random_limits(rng)
    guard = Guard(limits)
    command: np.ndarray = np.zeros(3)
    times = np.cumsum(rng.choice([0.005, 0.02, 0.02, 0.021, 0.1, 0.19], 400))
    outputs = []
    for now in times:
        wanted = random_command(rng, command) if rng.random() < 0.2 else command
        outputs.append(guard.filter(wanted, now, now))
        command = np.zeros(3) if wanted is None else wanted
    assert guard.fault is None
    assert_within(limits, np.stack(outputs), times)


@pytest.mark.parametrize("seed", range(20))
def test_faults_stop_at_once_and_limits_hold_between_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    guard, times, outputs = Guard(LIMITS), [], []
    for tick in range(600):
        now = tick * DT
        event = rng.random()
        if guard.fault is not None and event < 0.1:
            guard.reset()
            times, outputs = [now - DT], [np.zeros(3, np.float32)]
        command = rng.normal(0, 1, 3)
        if event > 0.99:
            command[rng.integers(3)] = rng.choice([np.nan, np.inf, -np.inf])
        if 0.98 < event < 0.985:
            guard.estop()
        output = guard.filter(command, now, now)
        assert np.isfinite(output).all()
        if guard.fault is not None:
            assert not output.any()
            continue
        times.append(now)
        outputs.append(output)
        if len(times) > 2:
            assert_within(LIMITS, np.stack(outputs), np.array(times))
    assert guard.interventions["non_finite"] + guard.interventions["estop"] > 0


def test_constant_target_is_reached_exactly_without_overshoot() -> None:
    for target in ([0.6, 0.2, 0.7], [-0.3, -0.2, -0.7], [0.1, -0.001, 0.33]):
        outputs = drive(Guard(LIMITS), np.array(target), 0.0, 2.0)
        final = np.array(target, np.float32)
        np.testing.assert_array_equal(outputs[-1], final)
        progress = outputs * np.sign(final)
        assert (progress <= np.abs(final)).all()
        assert (np.diff(progress, axis=0) >= 0).all()


def test_target_is_reached_as_fast_as_the_limits_allow() -> None:
    outputs = drive(Guard(LIMITS), np.array([0.6, 0.0, 0.0]), 0.0, 2.0)
    arrival = DT * np.argmax(outputs[:, 0] >= 0.6 - 1e-3)
    ideal = 0.6 / 1.0 + 1.0 / 10.0  # v / a + a / j
    assert ideal <= arrival + 2 * DT <= 1.25 * ideal


@pytest.mark.parametrize("seed", range(20))
def test_robot_stops_from_any_motion_and_then_rests(seed: int) -> None:
    rng = np.random.default_rng(seed)
    guard, times = Guard(LIMITS), np.arange(200) * DT
    for now in times[: rng.integers(5, 50)]:
        moving = guard.filter(rng.normal(0, 1, 3), now, now)
    stop = drive(guard, np.zeros(3), now + DT, 3.0)
    assert moving.any() and not stop[-1].any()
    assert not drive(guard, None, now + 10, 1.0).any()
    assert guard.fault is None


def test_waiting_is_silent() -> None:
    guard = Guard(LIMITS)
    assert not drive(guard, None, 0.0, 10.0).any()
    assert guard.waiting and guard.fault is None and not any(guard.interventions.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_command_stops_at_once_and_latches(value: float) -> None:
    guard = Guard(LIMITS)
    assert drive(guard, np.array([0.5, 0, 0]), 0.0, 1.0)[-1].any()
    assert not guard.filter(np.array([0.5, value, 0]), 1.0, 1.0).any()
    assert guard.fault is not None and guard.fault.startswith("non_finite")
    assert not drive(guard, np.array([0.5, 0, 0]), 1.02, 1.0).any()
    assert guard.interventions["non_finite"] == 1


def test_silence_while_moving_latches_at_the_timeout() -> None:
    guard, command = Guard(LIMITS), np.array([0.5, 0.0, 0.0])
    drive(guard, command, 0.0, 1.0)
    stamp = 1.0 - DT
    assert guard.filter(command, stamp, stamp + 0.199).any()
    assert not guard.filter(command, stamp, stamp + 0.201).any()
    assert guard.fault is not None and guard.fault.startswith("stale") and "0.201 s" in guard.fault
    assert guard.interventions["stale"] == 1


def test_no_command_ramps_down_and_latches_when_it_lasts() -> None:
    guard = Guard(LIMITS)
    full = drive(guard, np.array([0.5, 0.0, 0.0]), 0.0, 1.0)[-1, 0]
    ramp = [guard.filter(None, 0.0, 1.0 + k * DT)[0] for k in range(9)]
    assert guard.fault is None and 0 < ramp[-1] < full
    guard.filter(None, 0.0, 1.2)
    assert guard.fault is not None and guard.fault.startswith("stale")


def test_silence_at_rest_is_no_fault_and_an_old_command_does_not_start_the_robot() -> None:
    guard = Guard(LIMITS)
    drive(guard, np.zeros(3), 0.0, 0.1)
    assert not guard.filter(np.zeros(3), 0.1, 5.0).any()
    assert not guard.filter(np.array([0.5, 0, 0]), 4.0, 5.02).any()
    assert guard.fault is None and guard.interventions["stale"] == 1


@pytest.mark.parametrize("stamp", [9.0, np.nan])
def test_stamp_of_another_clock_is_stale(stamp: float) -> None:
    guard = Guard(LIMITS)
    drive(guard, np.array([0.5, 0, 0]), 0.0, 1.0)
    assert not guard.filter(np.array([0.5, 0, 0]), stamp, 1.0).any()
    assert guard.fault is not None and guard.fault.startswith("stale")


def test_emergency_stop_latches_until_reset_and_keeps_the_first_reason() -> None:
    guard, command = Guard(LIMITS), np.array([0.5, 0.0, 0.0])
    drive(guard, command, 0.0, 1.0)
    guard.estop("button")
    guard.estop("second button")
    assert guard.fault == "estop: button"
    assert not drive(guard, command, 1.0, 1.0).any()
    guard.reset()
    assert guard.fault is None and guard.waiting
    assert not guard.filter(command, 1.5, 2.0).any()
    again = drive(guard, command, 2.02, 1.0)
    assert again[0, 0] <= 10 * DT**2 + 1e-6 and again[-1, 0] > 0.4
    assert guard.interventions["estop"] == 1


def test_emergency_stop_during_a_tick_holds() -> None:
    class Interrupted(Guard):
        def _slew(self, wanted: np.ndarray, elapsed: float) -> None:
            super()._slew(wanted, elapsed)
            if self._velocity[0] > 0.4:
                self.fault = "estop: from another thread"

    outputs = drive(Interrupted(LIMITS), np.array([0.5, 0.0, 0.0]), 0.0, 2.0)
    assert 0.3 < outputs.max() <= 0.4 and not outputs[-1].any()


def test_geofence_latches_outside_and_on_an_unknown_position() -> None:
    for pose in ([2.01, 0.0], [0.0, -1.01], [np.nan, 0.0]):
        guard = Guard(FENCED)
        for tick in range(50):
            moving = guard.filter(np.ones(1), tick * DT, tick * DT, pose=np.array([1.9, 0.9]))
        assert moving.any()
        assert not guard.filter(np.ones(1), 1.0, 1.0, pose=np.array(pose)).any()
        assert guard.fault is not None and guard.fault.startswith("geofence")
        assert guard.interventions["geofence"] == 1


def test_fenced_robot_without_a_pose_ramps_down_and_resumes() -> None:
    guard, pose = Guard(FENCED), np.zeros(3)
    assert not guard.filter(np.ones(1), 0.0, 0.0).any()
    speeds = []
    for tick in range(170):
        now = tick * DT
        speeds.append(float(guard.filter(np.ones(1), now, now, None if 50 <= tick < 130 else pose)[0]))
    assert speeds[49] > 0.5 and speeds[52] > 0.5 and speeds[129] == 0 and speeds[169] > 0.5
    assert guard.fault is None


def test_interventions_count_limited_commands_only() -> None:
    guard = Guard(LIMITS)
    drive(guard, np.array([0.5, 0, 0]), 0.0, 2.0)
    limited = guard.interventions["limited"]
    assert 0 < limited < 100
    drive(guard, np.array([0.5, 0, 0]), 2.0, 1.0)
    assert guard.interventions["limited"] == limited
    drive(guard, np.array([0.7, 0, 0]), 3.0, 1.0)
    assert guard.interventions["limited"] == limited + 50


def test_time_that_stands_still_or_jumps_is_harmless() -> None:
    guard, command = Guard(LIMITS), np.array([0.5, 0.0, 0.0])
    moving = drive(guard, command, 0.0, 0.3)[-1]
    np.testing.assert_array_equal(guard.filter(command, 0.28, 0.28), moving)
    np.testing.assert_array_equal(guard.filter(command, 0.2, 0.2), moving)
    after_stall = guard.filter(command, 60.0, 60.0)
    assert (np.abs(after_stall - moving) <= np.array(LIMITS.acceleration) * LIMITS.timeout_s + 1e-6).all()
    assert not guard.filter(command, 60.0, float("nan")).any()
    assert guard.fault is not None


def test_wrong_shape_and_unsafe_limits_are_refused() -> None:
    with pytest.raises(ContractError, match=r"shape \(2,\), the limits have \(3,\)"):
        Guard(LIMITS).filter(np.zeros(2), 0.0, 0.0)
    with pytest.raises(ValueError, match="must be finite and include 0"):
        GuardLimits((0.1,), (1.0,), (1.0,), (1.0,))
    with pytest.raises(ValueError, match="must be finite and include 0"):
        GuardLimits((float("nan"),), (1.0,), (1.0,), (1.0,))
    with pytest.raises(ValueError, match="positive"):
        GuardLimits((-1.0,), (1.0,), (0.0,), (1.0,))
    with pytest.raises(ValueError, match="length"):
        GuardLimits((-1.0,), (1.0, 1.0), (1.0,), (1.0,))


def test_a_robot_that_moves_already_is_not_braked_first() -> None:
    guard = Guard(LIMITS, np.array([0.5, 0.0, 0.3]))
    outputs = np.array([guard.filter(np.array([0.5, 0.0, 0.3]), DT * k, DT * k) for k in range(10)])
    np.testing.assert_allclose(outputs, np.tile([0.5, 0.0, 0.3], (10, 1)), atol=1e-6)
    assert guard.interventions["limited"] == 0
