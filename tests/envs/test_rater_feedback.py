"""The rater feedback score: its definition by hand, in plain loops, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest

from envs.metrics import rater_feedback_score
from policies.spec import Array, ContractError


def straight(speed: float, count: int = 20) -> Array:
    return np.stack([speed * 0.25 * np.arange(1, count + 1), np.zeros(count)], -1)


def slow_score(plan: Array, raters: list[Array], labels: list[float], speed: float) -> float:
    scale = min(1.0, max(0.5, 0.5 + 0.5 * (speed - 1.4) / 9.6))
    total, within = 0.0, [[False, False] for _ in raters[:3]]
    for moment, (index, lateral) in enumerate(((11, 1.0), (19, 1.8))):
        best = 0.0
        for which, rater in enumerate(raters[:3]):
            points = [np.zeros(2), *rater[:20]]
            while len(points) < 21:
                points.append(points[-1])
            direction = np.array([1.0, 0.0])
            for k in range(1, index + 2):
                step = points[k] - points[k - 1]
                if np.linalg.norm(step) > 0:
                    direction = step / np.linalg.norm(step)
            off = plan[index] - points[index + 1]
            along, across = abs(off @ direction), abs(off[1] * direction[0] - off[0] * direction[1])
            d = max(along / (4 * scale * lateral), across / (scale * lateral))
            within[which][moment] = d <= 1
            best = max(best, labels[which] * 0.1 ** max(d - 1, 0))
        total += best / 2
    return total if any(all(both) for both in within) else max(4.0, total)


def test_it_is_that_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = rng.integers(1, 5)
        raters = []
        for _ in range(count):
            steps = rng.normal([rng.uniform(0, 3), 0], 0.5, (rng.integers(1, 24), 2))
            steps[rng.random(len(steps)) < 0.3] = 0
            raters.append(np.cumsum(steps, 0))
        labels = rng.uniform(0, 10, count).tolist()
        plans = np.cumsum(rng.normal([1.5, 0], 0.4, (6, 20, 2)), 1)
        longest = np.concatenate([raters[0], np.repeat(raters[0][-1:], 20, 0)])[:20]
        plans[:4] = longest + rng.normal(0, 1, (4, 1, 2))
        speed = rng.uniform(0, 15)
        expected = [slow_score(plan, raters, labels, speed) for plan in plans]
        np.testing.assert_allclose(rater_feedback_score(plans, raters, np.array(labels), speed), expected, atol=1e-6)


@pytest.mark.parametrize(("speed", "lateral"), [(0.0, (0.5, 0.9)), (1.4, (0.5, 0.9)), (11.0, (1.0, 1.8)),
                                                (30.0, (1.0, 1.8)), (6.2, (0.75, 1.35))])  # fmt: skip
@pytest.mark.parametrize("moment", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_thresholds(speed: float, lateral: tuple[float, float], moment: int, axis: int) -> None:
    rater, index = straight(5.0), (11, 19)[moment]
    threshold = lateral[moment] * (4 if axis == 0 else 1)
    plans = np.repeat(rater[None], 3, 0)
    plans[:, index, axis] += threshold * np.array([0.999, -1.001, 2])
    score = rater_feedback_score(plans, [rater], np.array([10.0]), speed)
    np.testing.assert_allclose(score, [10, 5 + 5 * 0.1**0.001, 5 + 5 * 0.1], atol=1e-9)


def test_only_three_and_five_seconds_count() -> None:
    rater = straight(5.0)
    plan = rater + 50.0
    plan[[11, 19]] = rater[[11, 19]]
    assert rater_feedback_score(plan[None], [rater], np.array([7.0]), 5.0)[0] == 7


def test_the_floor_spares_who_is_near_to_nobody_and_only_them() -> None:
    rater = straight(5.0)
    plans = np.stack([rater, rater + np.array([0, 1.9]), rater + np.array([0, 30])])
    inside, outside, far = rater_feedback_score(plans, [rater], np.array([2.0]), 11.0)
    assert inside == 2 and outside == 4 and far == 4
    plans = np.repeat(rater[None], 2, 0)
    plans[:, 19, 1] += [0.0, 100.0]
    np.testing.assert_allclose(rater_feedback_score(plans, [rater], np.array([10.0]), 11.0), [10, 5])
    np.testing.assert_allclose(rater_feedback_score(plans, [rater], np.array([6.0]), 11.0), [6, 4])


def test_each_time_has_its_own_best_rater() -> None:
    first, second = straight(5.0), straight(8.0)
    plan = first.copy()
    plan[19] = second[19]
    # Within the first at 3 s and within the second at 5 s, but within neither at both: the floor applies.
    assert rater_feedback_score(plan[None], [first, second], np.array([9.0, 5.0]), 11.0)[0] == pytest.approx(7, abs=0.1)
    assert rater_feedback_score(plan[None], [first, second], np.array([1.0, 2.0]), 11.0)[0] == 4
    # A better label nearby is worth more than a worse one exactly there.
    near = [first, first + np.array([0, 1.5])]
    assert rater_feedback_score(first[None], near, np.array([1.0, 10.0]), 11.0)[0] == pytest.approx(
        (10 * 0.1**0.5 + 10) / 2
    )


def test_fewer_more_and_short_raters() -> None:
    rater, plan = straight(5.0), straight(5.0)[None]
    assert rater_feedback_score(plan, [rater], np.array([6.0]), 5.0) == 6
    assert rater_feedback_score(plan, [rater] * 2, np.array([6.0, 7.0]), 5.0) == 7
    assert rater_feedback_score(plan, [rater] * 4, np.array([6.0, 7.0, 5.0, 10.0]), 5.0) == 7
    stopped = np.concatenate([rater[:8], np.repeat(rater[7:8], 12, 0)])
    assert rater_feedback_score(stopped[None], [rater[:8]], np.array([9.0]), 5.0) == 9
    assert rater_feedback_score(plan, [straight(5.0, 25)], np.array([9.0]), 5.0) == 9


def test_a_rater_that_stands_keeps_its_direction() -> None:
    up = np.concatenate([np.stack([np.zeros(8), np.arange(1.0, 9)], -1), np.tile([[0.0, 8.0]], (12, 1))])
    along, across = up + np.array([0, 3.9]), up + np.array([3.9, 0])
    score = rater_feedback_score(np.stack([along, across]), [up], np.array([10.0]), 11.0)
    assert score[0] == 10 and score[1] < 5
    still = np.zeros((20, 2))
    along, across = still + np.array([3.9, 0]), still + np.array([0, 3.9])
    score = rater_feedback_score(np.stack([along, across]), [still], np.array([10.0]), 11.0)
    assert score[0] == 10 and score[1] < 5


def test_several_plans_are_weighed() -> None:
    rater = straight(5.0)
    plans = np.stack([rater, rater + 100])
    score = rater_feedback_score(plans, [rater], np.array([9.0]), 5.0, np.array([0.25, 0.75]))
    assert score.shape == () and score == pytest.approx(0.25 * 9 + 0.75 * 4)


def test_scores_stay_in_range_and_do_not_depend_on_the_side() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        raters = [np.cumsum(rng.normal([1, 0], 0.5, (20, 2)), 0) for _ in range(3)]
        labels, plans = rng.uniform(0, 10, 3), np.cumsum(rng.normal([1, 0], 0.6, (30, 20, 2)), 1)
        score = rater_feedback_score(plans, raters, labels, 4.0)
        assert (score >= 0).all() and (score <= labels.max().clip(4)).all()
        mirror = np.array([1.0, -1.0])
        other = rater_feedback_score(plans * mirror, [rater * mirror for rater in raters], labels, 4.0)
        np.testing.assert_allclose(score, other, atol=1e-9)
        better = rater_feedback_score(plans, raters, np.minimum(labels + 1, 10), 4.0)
        assert (better >= score - 1e-9).all()


def test_what_does_not_fit_is_refused() -> None:
    rater, plan, label = straight(5.0), straight(5.0)[None], np.array([5.0])
    with pytest.raises(ContractError, match=r"plans has shape \(1, 19, 2\)"):
        rater_feedback_score(plan[:, :19], [rater], label, 5.0)
    with pytest.raises(ContractError, match="raters are 0"):
        rater_feedback_score(plan, [], np.zeros(0), 5.0)
    with pytest.raises(ContractError, match="rater 0 has 0 waypoints"):
        rater_feedback_score(plan, [rater[:0]], label, 5.0)
    with pytest.raises(ContractError, match="labels has shape"):
        rater_feedback_score(plan, [rater], np.array([5.0, 6.0]), 5.0)
    with pytest.raises(ContractError, match="labels reach -1"):
        rater_feedback_score(plan, [rater], np.array([-1.0]), 5.0)
    with pytest.raises(ContractError, match="labels reaches 11"):
        rater_feedback_score(plan, [rater], np.array([11.0]), 5.0)
    with pytest.raises(ContractError, match="speed is not finite"):
        rater_feedback_score(plan, [rater], label, float("nan"))
    with pytest.raises(ContractError, match="normalise"):
        rater_feedback_score(plan, [rater], label, 5.0, np.array([0.5]))
