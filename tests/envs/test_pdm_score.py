"""Every term of the PDM score at its threshold, and what is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from toy_roads import FRONT, HALF, box, drive, one, road, user

from envs.metrics import (
    EgoState,
    Lane,
    PdmScore,
    RoadUsers,
    Vehicle,
    pdm_score,
    score_states,
    two_stage_score,
)
from envs.metrics.tracker import Y
from policies.spec import Array, ContractError


def test_a_free_road_is_perfect() -> None:
    for version in (1, 2):
        score = score_states(drive(), road(), version=version)
        assert all(getattr(score, field.name)[0] == 1 for field in fields(PdmScore) if field.name != "progress_m")
        assert score.progress_m[0] == pytest.approx(20)


@pytest.mark.parametrize(("kind", "expected"), [("vehicle", 0), ("pedestrian", 0), ("bicycle", 0), ("static", 0.5)])
def test_what_stands_in_the_way_is_hit(kind: str, expected: float) -> None:
    reach = 20 + FRONT + 2
    assert one("no_collision", drive(), road(user(reach - 1e-6, kind=kind))) == expected
    assert one("no_collision", drive(), road(user(reach + 1e-6, kind=kind))) == 1


def test_a_stopped_car_is_not_at_fault() -> None:
    oncoming = road(user(20, speed=5, heading=np.pi))
    assert one("no_collision", drive(0.05), oncoming) == 1
    assert one("no_collision", drive(0.06), oncoming) == 0


def test_from_behind_only_what_stands_is_hit() -> None:
    backwards = drive(-2.0)
    for speed, expected in ((0.05, 0), (0.06, 1)):
        still = user(-7, speeds=np.full((1, 51), speed))
        assert one("no_collision", backwards, road(still)) == expected
    assert one("no_collision", backwards, road(user(-7, kind="static", speeds=np.full((1, 51), 9.0)))) == 0.5
    assert one("no_collision", drive(), road(user(-20, speed=15))) == 1


@pytest.mark.parametrize(("y", "expected"), [(0.0, 1), (1.0, 0)])
def test_from_the_side_it_matters_where_the_car_is(y: float, expected: float) -> None:
    from_right = user(5, -7, speed=4, heading=np.pi / 2)
    states = drive(5.0, y)
    drivable = [box(-60, 300, -20, 20)]
    assert one("no_collision", states, road(from_right, drivable=drivable)) == expected
    assert one("no_collision", states, road(from_right, drivable=[box(-60, 300, 0, 20)])) == 0, "off the road"
    wide = [Lane(box(-60, 300, -1.75, 5.25)), Lane(box(-60, 300, 1.75, 5.25))]
    assert one("no_collision", states, road(from_right, drivable=drivable, lanes=wide)) == 1, "one lane holds all"


def test_the_front_bumper_is_always_at_fault() -> None:
    assert one("no_collision", drive(), road(user(15, -4, speed=2, heading=np.pi / 2))) == 0
    assert one("time_to_collision", drive(), road(user(15, -4, speed=2, heading=np.pi / 2))) == 0


def test_the_first_contact_decides() -> None:
    # It runs into the car from behind, goes through it and then stands in front of it.
    x = np.minimum(-12 + 15 * np.arange(51) * 0.1, 15.0)
    through = RoadUsers(np.stack([x, 0 * x, 0 * x], -1)[None], np.array([[4.0, 2.0]]), ["vehicle"])
    assert one("no_collision", drive(), road(through)) == 1
    assert one("no_collision", drive(), road(replace(through, kinds=["static"]))) == 0.5


def test_a_road_user_that_stopped_has_stopped() -> None:
    x = np.minimum(-20 + 20 * np.arange(51) * 0.1, -9.0)
    parked = RoadUsers(np.stack([x, 0 * x, 0 * x], -1)[None], np.array([[4.0, 2.0]]), ["vehicle"])
    backwards = drive(-2.0)
    assert one("no_collision", backwards, road(parked)) == 0
    assert one("no_collision", backwards, road(parked), reference_quirks=True) == 1


def test_the_worst_of_several_counts_and_who_is_not_there_does_not() -> None:
    poses = np.zeros((2, 51, 3))
    poses[:, :, 0], poses[1, :, 1] = 15, 0.2
    both = RoadUsers(poses, np.full((2, 2), 2.0), ["static", "pedestrian"])
    assert one("no_collision", drive(), road(both)) == 0
    gone = RoadUsers(poses, np.full((2, 2), 2.0), ["static", "pedestrian"], valid=np.array([[True] * 51, [False] * 51]))
    assert one("no_collision", drive(), road(gone)) == 0.5


def test_what_is_known_for_a_while_only_goes_on() -> None:
    short = user(40, speed=-5)
    for known, expected in ((1, 1), (2, 0), (20, 0)):
        users = RoadUsers(np.asarray(short.poses)[:, :known], short.sizes, ["vehicle"])
        assert one("no_collision", drive(), road(users)) == expected
    left = RoadUsers(np.asarray(short.poses)[:, :20], short.sizes, ["vehicle"], np.arange(20)[None] < 19)
    assert one("no_collision", drive(), road(left)) == 1
    frozen = RoadUsers(np.asarray(short.poses)[:, :2], short.sizes, ["static"])
    assert one("no_collision", drive(), road(frozen)) == 1


def test_all_corners_stay_on_the_road() -> None:
    for y, expected in ((5.25 - HALF - 1e-6, 1), (5.25 - HALF + 1e-6, 0), (-1.75 + HALF - 1e-6, 0)):
        path = np.zeros(41)
        path[20] = y
        assert one("drivable_area", drive(5.0, path), road()) == expected


def test_a_seam_is_not_on_the_road() -> None:
    vehicle = Vehicle(width=2.0)
    halves = [box(-60, 300, -1.75, 1.0), box(-60, 300, 1.0, 5.25)]
    for y, expected in ((0.0, 0), (0.1, 1), (-0.1, 1)):
        assert one("drivable_area", drive(5.0, y), road(drivable=halves, vehicle=vehicle)) == expected


def test_without_drivable_areas_one_may_be_on_lanes_and_intersections() -> None:
    assert one("drivable_area", drive(), road(drivable=())) == 1
    assert one("drivable_area", drive(5.0, -3.5), road(drivable=())) == 0
    crossing = road(drivable=(), intersections=[box(-60, 300, -9, 9)])
    assert one("drivable_area", drive(5.0, -3.5), crossing) == 1


@pytest.mark.parametrize(("speed", "expected"), [(1.9, 1), (2.0, 0.5), (2.1, 0.5), (5.9, 0.5), (6.0, 0), (6.1, 0)])
def test_the_way_against_the_traffic(speed: float, expected: float) -> None:
    wrong = drive(speed, 3.5)
    for version in (1, 2):
        assert one("driving_direction", wrong, road(), version=version) == expected
    lane = [Lane(box(-60, 300, -1.75, 1.75)), Lane(box(-60, 300, 1.75, 5.25), on_route=False, intersection=True)]
    assert one("driving_direction", wrong, road(lanes=lane), version=1) == expected
    assert one("driving_direction", wrong, road(lanes=lane), version=2) == 1


def test_the_way_against_the_traffic_within_one_second_counts() -> None:
    path = np.where((np.arange(41) > 10) & (np.arange(41) <= 13), 3.5, 0.0)
    states = drive(5.0, path)
    states[..., Y] = 0.0
    apart = [Lane(box(-60, 5.25 + 1.461, -1.75, 1.75)), Lane(box(8.25 + 1.461, 300, -1.75, 1.75))]
    # From x=5.25 to 8.25 there is no lane: the samples that end there make 3 m.
    assert one("driving_direction", states, road(lanes=apart)) == 0.5
    assert one("driving_direction", drive(1.9, 3.5), road(), reference_quirks=True) == 0.5, "1.1 s"


def test_lane_keeping_needs_twenty_samples_in_a_row() -> None:
    def keeps(off: Array, y: float = 0.51, **changes: Any) -> float:
        return one("lane_keeping", drive(5.0, np.where(off, y, 0.0)), road(**changes), version=2)

    index = np.arange(41)
    assert keeps(index < 19) == 1
    assert keeps(index < 20) == 0
    assert keeps(index < 20, 0.4999) == 1
    assert keeps(index != 19) == 0
    assert keeps(index % 20 != 19) == 1
    crossing = [box(3.2, 7.2, -5, 5)]  # around the middle of the car at samples 4 to 11
    assert keeps((index < 12) | (index > 38), intersections=crossing) == 1
    assert keeps(index < 27, intersections=crossing) == 1, "27 samples, but 8 of them are in the intersection"
    assert keeps(index < 28, intersections=crossing) == 0, "those before and after it are in a row"
    assert one("lane_keeping", drive(5.0, 0.51), road(), version=1) == 1


def test_a_red_light_is_not_touched() -> None:
    for start, expected in ((24.048, 0), (24.05, 1)):
        scene = road(red_lights=[box(start, 60, -1.75, 1.75)])
        assert one("traffic_light", drive(), scene, version=2) == expected
        assert one("total", drive(), scene, version=2) == expected
        assert one("traffic_light", drive(), scene, version=1) == 1
    thin = road(red_lights=[box(10, 10.01, -9, 9)])
    assert one("traffic_light", drive(), thin, version=2) == 0, "no corner is ever in it"


@pytest.mark.parametrize(("gap", "first", "second"), [(53.04, 0, 1), (53.06, 1, 1), (44.05, 0, 1), (44.0, 0, 0)])
def test_time_to_collision_looks_less_far_in_version_2(gap: float, first: float, second: float) -> None:
    scene = road(user(gap + 2))
    assert one("time_to_collision", drive(10.0), scene, version=1) == first
    assert one("time_to_collision", drive(10.0), scene, version=2) == second
    if gap > 44.04:
        assert one("no_collision", drive(10.0), scene) == 1


def test_only_a_moving_car_has_a_time_to_collision() -> None:
    for speed, expected in ((0.004, 1), (0.006, 0)):
        assert one("time_to_collision", drive(speed), road(user(FRONT + 2))) == expected


def test_who_is_beside_counts_in_intersections_and_between_lanes() -> None:
    side = user(1.0, 3.0, speed=5)  # overlaps with nothing yet; the car is as wide as 1.1485 m to its left
    for scene, expected in (
        (road(user(1.0, 2.1, speed=5)), 1),
        (road(user(1.0, 2.1, speed=5), intersections=[box(-9, 30, -9, 9)]), 0),
        (road(side, intersections=[box(-9, 30, -9, 9)]), 1),
        (road(user(1.0, 2.1, speed=5), drivable=[box(-60, 300, -1, 9)]), 0),
    ):
        assert one("time_to_collision", drive(), scene) == expected
    assert one("time_to_collision", drive(5.0, 1.0), road(user(1.0, 3.1, speed=5))) == 0, "between two lanes"


def test_who_follows_is_ignored_unless_too_fast() -> None:
    assert one("time_to_collision", drive(2.0), road(user(-9, speed=5))) == 1
    assert one("time_to_collision", drive(), road(user(-20, speed=25))) == 0


def test_the_future_of_a_car_that_rolls_back_is_behind_it() -> None:
    scene = road(user(FRONT + 2.2))
    assert one("time_to_collision", drive(-2.0), scene) == 1
    assert one("time_to_collision", drive(-2.0), scene, reference_quirks=True) == 0


def test_progress_is_relative_to_the_best() -> None:
    scene = road(reference=40.0)
    assert one("progress", drive(), scene) == pytest.approx(0.5)
    assert one("progress", drive(), road(reference=15.0)) == 1
    assert one("progress", drive(-3.0), scene) == 0
    assert one("progress", drive(0.0), road(reference=5.0)) == 1
    assert one("progress", drive(0.0), road(reference=5.01)) == 0
    assert one("progress", drive(1.0), road(reference=0.0)) == 1


def test_progress_of_who_breaks_a_rule() -> None:
    off, half = drive(5.0, -3.5), road(user(25, kind="static"), reference=15.0)
    for version, quirks, expected in ((1, False, 1), (1, True, 0), (2, False, 1), (2, True, 1)):
        assert one("progress", off, road(), version=version, reference_quirks=quirks) == expected
    for version, quirks, share in ((1, False, 1), (1, True, 10 / 15), (2, True, 1)):
        score = score_states(drive(), half, version=version, reference_quirks=quirks)
        assert score.no_collision[0] == 0.5
        assert score.progress[0] == pytest.approx(share)


def test_totals_are_weighed_as_written() -> None:
    rng = np.random.default_rng(0)
    names = [field.name for field in fields(PdmScore)]
    terms = {name: rng.random(7) for name in names}
    score = PdmScore(**terms)
    nc, dac, ddc, tlc, ep, ttc, comfort, lk, ec, *_ = terms.values()
    np.testing.assert_allclose(score.combined(1), nc * dac * (5 * ep + 5 * ttc + 2 * comfort) / 12)
    second = nc * dac * ddc * tlc * (5 * ep + 5 * ttc + 2 * lk + 2 * comfort + 2 * ec) / 16
    np.testing.assert_allclose(score.combined(2), second)
    assert one("total", drive(), road(reference=40.0)) == pytest.approx((2.5 + 5 + 2) / 12)
    assert one("total", drive(5.0, 0.6), road(reference=40.0), version=2) == pytest.approx((2.5 + 5 + 4) / 16)


def test_what_the_human_fails_nobody_has_to_pass() -> None:
    human = score_states(drive(5.0, -3.5), road(), version=2)
    assert human.drivable_area[0] == 0
    states = np.concatenate([drive(5.0, -3.5), drive(5.0, -1.0)])
    excused = score_states(states, road(), version=2, human=human)
    assert (excused.drivable_area == 1).all() and excused.total[0] > 0
    np.testing.assert_allclose(excused.total, excused.combined(2))


def test_what_does_not_fit_is_refused() -> None:
    plan = drive()[..., :3]
    for values, scene, wanted in (
        (plan[0], road(), "plans has shape"),
        (plan[..., :2], road(), "plans has shape"),
        (plan[:, :4], road(), "4 samples"),
        (np.full_like(plan, np.nan), road(), "plans is not finite"),
        (plan * 1e9, road(), "plans reaches"),
    ):
        with pytest.raises(ContractError, match=wanted):
            pdm_score(values, scene)
    with pytest.raises(ContractError, match="version is 3"):
        pdm_score(plan, road(), version=3)
    with pytest.raises(ContractError, match="states has shape"):
        score_states(plan, road())


def users_with(**changes: Any) -> RoadUsers:
    given: dict[str, Any] = dict(poses=np.zeros((2, 5, 3)), sizes=np.ones((2, 2)), kinds=["vehicle"] * 2)
    return RoadUsers(**given | changes)


@pytest.mark.parametrize(
    ("wanted", "make"),
    [
        ("centreline is 0 m long", lambda: road(centreline=np.zeros((2, 2)))),
        ("centreline has shape", lambda: road(centreline=np.zeros((2, 3)))),
        ("lane 0 has 2 corners", lambda: road(lanes=[Lane(np.eye(2))])),
        ("lane 0 is no simple polygon", lambda: road(lanes=[Lane(np.array([[0, 0], [1, 1], [1, 0], [0, 1.0]]))])),
        ("drivable 1 is not finite", lambda: road(drivable=[box(0, 1, 0, 1), np.full((3, 2), np.inf)])),
        ("lanes and drivable are empty", lambda: road(lanes=[], drivable=[])),
        ("speed_limit is 0", lambda: road(speed_limit=0.0)),
        ("reference is -1", lambda: road(reference=-1.0)),
        ("history has shape", lambda: road(history=np.zeros((5, 7)))),
        ("ego speed reaches 200", lambda: EgoState(0, 0, 0, 200)),
        ("ego steering reaches", lambda: EgoState(0, 0, 0, 1, 0, 2)),
        ("ego x is not finite", lambda: EgoState(np.nan, 0, 0, 1)),
        ("poses has shape", lambda: users_with(poses=np.zeros((2, 5, 2)))),
        ("poses is not finite", lambda: users_with(poses=np.full((2, 5, 3), np.nan))),
        ("poses have 0 samples", lambda: users_with(poses=np.zeros((2, 0, 3)))),
        ("sizes has shape", lambda: users_with(sizes=np.ones((1, 2)))),
        ("sizes reach 0", lambda: users_with(sizes=np.zeros((2, 2)))),
        ("kinds are .*tram", lambda: users_with(kinds=["vehicle", "tram"])),
        ("kinds are", lambda: users_with(kinds=["vehicle"])),
        ("valid has shape", lambda: users_with(valid=np.ones((2, 4), bool))),
        ("speeds have shape", lambda: users_with(speeds=np.ones((2, 5, 1)))),
    ],
)
def test_impossible_scenes_are_refused(wanted: str, make: Any) -> None:
    with pytest.raises(ContractError, match=wanted):
        make()


def test_what_is_not_valid_is_not_read() -> None:
    poses = np.zeros((1, 3, 3))
    poses[0, 1] = np.nan
    users = users_with(poses=poses, sizes=np.ones((1, 2)), kinds=["vehicle"], valid=np.array([[True, False, True]]))
    assert np.isfinite(users.poses).all() and (users.speeds == 0).all()  # type: ignore[union-attr]


def test_the_second_stage_counts_where_the_first_one_ends() -> None:
    first, second = np.array([0.8, 0.5]), np.array([[1.0, 0.2], [0.4, 0.4]])
    near_the_first = two_stage_score(first, second, np.array([[0.0, 9.0], [3.0, 1.0]]))
    np.testing.assert_allclose(near_the_first, [0.8, 0.2], atol=1e-6)
    between = two_stage_score(first[:1], second[:1], np.array([[0.1, 0.3]]))
    weights = np.exp(-np.array([0.01, 0.09]) / 0.2)
    np.testing.assert_allclose(between, 0.8 * (weights @ second[0]) / weights.sum(), atol=1e-12)
    far = two_stage_score(first[:1], second[:1], np.array([[500.0, 500.0]]))
    np.testing.assert_allclose(far, 0.8 * 0.6)


@pytest.mark.parametrize(
    ("first", "second", "apart", "message"),
    [
        ([0.5], [[]], [[]], "second has no scenes"),
        ([0.5], [[0.5]], [[-1.0]], "must not be negative"),
        ([0.5], [[0.5, 0.5]], [[1.0]], "apart has shape"),
        ([1.5], [[0.5]], [[1.0]], "first"),
        ([0.5], [[np.nan]], [[1.0]], "second"),
    ],
)
def test_two_stages_that_do_not_fit_are_refused(first: Any, second: Any, apart: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        two_stage_score(np.array(first), np.array(second), np.array(apart))
