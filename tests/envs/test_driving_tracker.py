"""The tracker and the bicycle against their definitions, written once more in plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from envs.metrics.tracker import (
    ACCELERATION,
    HEADING,
    LARGEST_STEERING,
    PACIFICA,
    SPEED,
    STEERING,
    YAW_ACCELERATION,
    YAW_RATE,
    Vehicle,
    X,
    Y,
    bicycle_step,
    fitted,
    look_ahead,
    lqr,
    sampled,
    track,
    wrapped,
)
from policies.spec import Array, ContractError

DT = 0.1


def random_plans(rng: np.random.Generator, count: int, samples: int = 41) -> Array:
    """Drives ``(count, samples, 3)`` with changing speed and curvature, anywhere and in any direction."""
    time = np.arange(samples) * DT
    speed = rng.uniform(0, 12, (count, 1)) + rng.normal(0, 1, (count, 1)) * time + rng.normal(0, 0.5, (count, 1))
    speed = np.maximum(speed, 0)
    curvature = rng.normal(0, 0.03, (count, 1)) + rng.normal(0, 0.02, (count, 1)) * np.sin(time)
    heading = rng.uniform(-np.pi, np.pi, (count, 1)) + np.cumsum(speed * curvature * DT, 1)
    x, y = (np.cumsum(speed * wave(heading) * DT, 1) for wave in (np.cos, np.sin))
    poses = np.stack([x, y, heading], -1)
    poses[..., :2] += rng.uniform(-50, 50, (count, 1, 2)) - poses[:, :1, :2]
    return poses


def random_starts(rng: np.random.Generator, plans: Array) -> Array:
    starts = np.zeros((len(plans), 8))
    starts[:, :3] = plans[:, 0] + rng.normal(0, [0.3, 0.3, 0.05], (len(plans), 3))
    starts[:, SPEED] = rng.uniform(0, 12, len(plans))
    starts[:, ACCELERATION], starts[:, STEERING] = rng.normal(0, 1, len(plans)), rng.normal(0, 0.1, len(plans))
    starts[:, YAW_RATE] = starts[:, SPEED] * np.tan(starts[:, STEERING]) / PACIFICA.wheelbase
    return starts


def slow_fit(plan: Array, quirks: bool) -> tuple[Array, Array]:
    count = len(plan) - 1
    rows, moved = np.zeros((2 * count, count)), np.zeros(2 * count)
    for i in range(count):
        for axis, part in enumerate((np.cos(plan[i, 2]), np.sin(plan[i, 2]))):
            moved[2 * i + axis] = plan[i + 1, axis] - plan[i, axis]
            rows[2 * i + axis, 0] = part * DT
            rows[2 * i + axis, 1 : i + 1] = part * DT**2
    rough = np.zeros((count - 2, count))
    for i in range(count - 2):
        rough[i, 1 + i] = -1
        if not quirks or i == count - 3:
            rough[i, 2 + i] = 1
    first = np.linalg.pinv(rows.T @ rows + 1e-4 * rough.T @ rough) @ rows.T @ moved
    speed = np.array([first[0] + DT * sum(first[1 : i + 1]) for i in range(count)])
    rows, turned = np.zeros((count, count)), np.zeros(count)
    for i in range(count):
        turned[i] = (plan[i + 1, 2] - plan[i, 2] + np.pi) % (2 * np.pi) - np.pi
        rows[i, 0] = speed[i] * DT
        rows[i, 1 : i + 1] = speed[i] * DT**2
    price = np.diag([1e-10] + [1e-2] * (count - 1))
    second = np.linalg.pinv(rows.T @ rows + price) @ rows.T @ turned
    return speed, np.array([second[0] + DT * sum(second[1 : i + 1]) for i in range(count)])


def slow_track(plan: Array, start: Array, quirks: bool) -> Array:
    speeds, curvatures = slow_fit(plan, quirks)
    base, last, states = PACIFICA.wheelbase, len(speeds) - 1, [start]
    for i in range(len(plan) - 1):
        x, y, h, v, a, delta, w, _ = states[-1]
        r = min(i + 10, last)
        window = [*curvatures[i:r], *([curvatures[r]] * (10 - (r - i)))]
        command, rate = -0.5 * (v - speeds[r]), 0.0
        if speeds[r] > 0.2 or v > 0.2:
            command = -10 * (v - speeds[r]) / 11
            error = np.array(
                [
                    -(x - plan[i, 0]) * np.sin(plan[i, 2]) + (y - plan[i, 1]) * np.cos(plan[i, 2]),
                    (h - plan[i, 2] + np.pi) % (2 * np.pi) - np.pi,
                    delta,
                ]
            )
            effect = np.zeros(3)
            for n in range(10):
                way = (v + n * command * DT) * DT
                step = np.array([[1, way, 0], [0, 1, way / base], [0, 0, 1]])
                error = step @ error - np.array([0, way * window[n], 0])
                effect = step @ effect + np.array([0, 0, DT])
            error[1:] = (error[1:] + np.pi) % (2 * np.pi) - np.pi
            price = np.diag([1.0, 10.0, 0.0])
            rate = -(effect @ price @ error) / (effect @ price @ effect + 1)
        a_next = a + 0.1 / 0.3 * (command - a)
        delta_next = np.clip(delta + 0.1 / 0.15 * DT * rate, -np.pi / 3, np.pi / 3)
        v_next = v + a_next * DT
        w_next = v_next * np.tan(delta_next) / base
        states.append(
            np.array(
                [
                    x + v * np.cos(h) * DT,
                    y + v * np.sin(h) * DT,
                    h + v * np.tan(delta) / base * DT,
                    v_next,
                    a_next,
                    delta_next,
                    w_next,
                    (w_next - w) / DT,
                ]
            )
        )
    return np.stack(states)


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize("samples", [5, 41, 60])
def test_tracking_is_that_of_plain_loops(quirks: bool, samples: int) -> None:
    rng = np.random.default_rng(samples)
    plans = random_plans(rng, 12, samples)
    starts = random_starts(rng, plans)
    speeds, curvatures = fitted(plans, reference_quirks=quirks)
    states = track(plans, starts, reference_quirks=quirks)
    for index, plan in enumerate(plans):
        speed, curvature = slow_fit(plan, quirks)
        np.testing.assert_allclose(speeds[index], speed, atol=1e-6)
        np.testing.assert_allclose(curvatures[index], curvature, atol=1e-6)
        np.testing.assert_allclose(states[index], slow_track(plan, starts[index], quirks), atol=1e-6)


def test_the_quirk_of_the_speed_fit_matters_and_is_small() -> None:
    plans = random_plans(np.random.default_rng(0), 30)
    starts = random_starts(np.random.default_rng(1), plans)
    apart = np.abs(track(plans, starts) - track(plans, starts, reference_quirks=True))[..., :4].max()
    assert 1e-4 < apart < 1.0


def test_a_steady_drive_is_fitted_exactly() -> None:
    time = np.arange(41) * DT
    radius, speed = 20.0, 8.0
    turned = speed * time / radius
    # The chord of a step is shorter than its arc; the fit explains the displacement along the heading at its begin.
    plan = np.stack([radius * np.sin(turned), radius * (1 - np.cos(turned)), turned], -1)[None]
    speeds, curvatures = fitted(plan)
    np.testing.assert_allclose(speeds, radius * np.sin(speed * DT / radius) / DT, atol=1e-6)
    np.testing.assert_allclose(curvatures[:, 1:-1], 1 / radius, rtol=1e-3)


def test_uniform_acceleration_has_no_jerk_to_pay_for() -> None:
    speed = 3 + 1.5 * np.arange(40) * DT
    plan = np.zeros((1, 41, 3))
    plan[0, 1:, 0] = np.cumsum(speed * DT)
    np.testing.assert_allclose(fitted(plan)[0][0], speed, atol=1e-8)
    assert np.abs(fitted(plan, reference_quirks=True)[0][0] - speed).max() > 1e-3


def test_standing_plans_have_finite_profiles() -> None:
    plan = np.zeros((3, 41, 3))
    plan[1, :, 2] = np.linspace(0, 1, 41)
    plan[2, :, 0] = 1e-9 * np.arange(41)
    speeds, curvatures = fitted(plan)
    assert np.isfinite(curvatures).all()
    np.testing.assert_allclose(speeds, 0, atol=1e-6)
    start = np.zeros(8)
    start[SPEED] = 5.0
    states = track(plan, start)
    assert np.isfinite(states).all()
    assert (np.abs(states[:, -1, SPEED]) < 0.3).all()


def test_profiles_are_held_beyond_their_end() -> None:
    speeds, curvatures = np.arange(40.0)[None], np.arange(40.0)[None] / 100
    speed, window = look_ahead(speeds, curvatures, 3)
    assert speed == 13
    np.testing.assert_allclose(window[0], np.arange(3, 13) / 100)
    speed, window = look_ahead(speeds, curvatures, 35)
    assert speed == 39
    np.testing.assert_allclose(window[0], np.minimum(np.arange(35, 45), 39) / 100)


def test_a_car_that_shall_stand_is_braked_gently_and_not_steered() -> None:
    states = np.zeros((3, 8))
    states[:, SPEED], states[:, Y] = (0.2, 0.21, 0.2), 1.0
    acceleration, rate = lqr(states, np.zeros((3, 3)), np.array([0.0, 0.0, 0.21]), np.zeros((3, 10)))
    np.testing.assert_allclose(acceleration, [-0.1, -10 * 0.21 / 11, 10 * 0.01 / 11])
    assert rate[0] == 0 and rate[1] < 0 and rate[2] < 0


def test_commands_do_not_depend_on_full_turns() -> None:
    rng = np.random.default_rng(0)
    plans = random_plans(rng, 5)
    starts = random_starts(rng, plans)
    turned = starts.copy()
    turned[:, HEADING] += 2 * np.pi
    profile = look_ahead(*fitted(plans), 0)
    np.testing.assert_allclose(lqr(starts, plans[:, 0], *profile), lqr(turned, plans[:, 0], *profile), atol=1e-9)
    np.testing.assert_allclose(wrapped(np.array([0.1, 2 * np.pi + 0.1, -7.0])), [0.1, 0.1, 2 * np.pi - 7.0])


def test_one_step_of_the_bicycle_by_hand() -> None:
    state = np.array([[1.0, 2.0, 0.0, 10.0, 0.5, 0.1, 0.0, 0.0]])
    after = bicycle_step(state, np.array([2.0]), np.array([0.3]))[0]
    assert after[X] == pytest.approx(2.0) and after[Y] == pytest.approx(2.0)
    assert after[HEADING] == pytest.approx(10 * np.tan(0.1) / 3.089 * 0.1)
    assert after[ACCELERATION] == pytest.approx(0.5 + 1.5 / 3)
    assert after[SPEED] == pytest.approx(10.1)
    assert after[STEERING] == pytest.approx(0.1 + 0.03 * 2 / 3)
    assert after[YAW_RATE] == pytest.approx(10.1 * np.tan(0.12) / 3.089)
    assert after[YAW_ACCELERATION] == pytest.approx(after[YAW_RATE] / 0.1)
    assert (state == [[1.0, 2.0, 0.0, 10.0, 0.5, 0.1, 0.0, 0.0]]).all(), "the state given is not changed"


def test_steering_is_limited() -> None:
    state = np.zeros((1, 8))
    for _ in range(50):
        state = bicycle_step(state, np.zeros(1), np.full(1, 5.0))
    assert state[0, STEERING] == LARGEST_STEERING


def test_single_steps_add_up_to_the_whole_track() -> None:
    rng = np.random.default_rng(3)
    plans = random_plans(rng, 4)
    starts, profiles = random_starts(rng, plans), fitted(plans)
    state = starts
    for step in range(40):
        command = lqr(state, plans[:, step], *look_ahead(*profiles, step))
        state = bicycle_step(state, *command)
    np.testing.assert_allclose(state, track(plans, starts)[:, -1])


def test_waypoints_become_samples() -> None:
    waypoints = np.zeros((1, 8, 3))
    waypoints[0, :, 0] = np.arange(1, 9) * 2.0
    waypoints[0, :, 2] = 0.1
    plan = sampled(waypoints, 0.5, np.array([10.0, 5.0, np.pi / 2]))[0]
    assert plan.shape == (41, 3)
    np.testing.assert_allclose(plan[:, 0], 10.0, atol=1e-9)
    np.testing.assert_allclose(plan[:, 1], 5 + np.arange(41) * 0.4)
    np.testing.assert_allclose(plan[[0, 1, 5], 2], np.pi / 2 + np.array([0, 0.02, 0.1]))
    with pytest.raises(ContractError, match=r"3\.5 s, the plan lasts 4 s"):
        sampled(waypoints[:, :7], 0.5, np.zeros(3))
    with pytest.raises(ContractError, match="shape"):
        sampled(waypoints[..., :2], 0.5, np.zeros(3))


def test_headings_of_waypoints_take_the_short_way() -> None:
    waypoints = np.zeros((1, 8, 3))
    waypoints[0, :, 2] = wrapped(np.arange(1, 9) * 1.0)
    np.testing.assert_allclose(sampled(waypoints, 0.5, np.zeros(3))[0, ::5, 2], np.arange(9.0), atol=1e-9)


def test_the_pacifica() -> None:
    assert PACIFICA.length == pytest.approx(5.176) and PACIFICA.ahead == pytest.approx(1.461)
    with pytest.raises(ContractError, match="wheelbase"):
        Vehicle(wheelbase=0)
