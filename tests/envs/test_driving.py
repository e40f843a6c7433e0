"""Driving: traffic that reacts, what the car sees, what ends an episode and how it is scored."""

from typing import Any

import numpy as np
import pytest

from envs.drive import Episode, Scripted
from envs.driving import DrivingEnv
from envs.experts.driving import DRIVERS
from envs.metrics.tracker import SPEED
from envs.roads import KINDS, Lane, RoadUser, Scene, line
from envs.scenes import MOST, sample_scene, turned
from envs.traffic import TICK, Traffic, box_corners, overlap
from policies.raster import BACK, PIXEL, PIXELS


def road(*others: RoadUser, speed: float = 8.0) -> Scene:
    way = line(160, (-20, 0, 0))
    return Scene("straight", (Lane(way),), (way,), (way,), 0, True, (0.0, 0.0, 0.0), speed, 10.0, tuple(others))


def vehicle(place: float, speed: float, limit: float, lane: float = 0.0) -> RoadUser:
    return RoadUser(line(300, (-100, lane, 0)), 100 + place, speed, limit, (4.5, 1.9), "vehicle")


def drive(env: DrivingEnv, command: Any, seconds: float) -> dict[str, Any]:
    for _ in range(round(seconds / env.step_dt)):
        *_, info = env.step(np.asarray(command, np.float32))
    return info


def begun(scene: Scene) -> DrivingEnv:
    env = DrivingEnv(step_hz=10.0)
    env.reset(seed=0, options={"scene": scene})
    return env


def test_the_car_reaches_the_speed_and_yaw_rate_it_is_told() -> None:
    env = begun(road())
    drive(env, [5.0, 0.0], 4)
    assert env.traffic.car[0, SPEED] == pytest.approx(5.0, abs=0.05)
    wide = Lane(line(300, (-100, 0, 0)), width=200.0)
    env = begun(Scene("straight", (wide,), (wide.centre,), (wide.centre,), 0, True, (0, 0, 0), 5.0, 10.0, ()))
    drive(env, [5.0, 0.3], 3)
    before = env.pose[2]
    drive(env, [5.0, 0.3], 1)
    assert env.pose[2] - before == pytest.approx(0.3, abs=0.01)


def test_a_car_that_is_told_to_go_backwards_stands() -> None:
    env = begun(road(speed=2.0))
    drive(env, [-3.0, 0.0], 4)
    assert env.traffic.car[0, SPEED] == 0


def test_traffic_keeps_its_distance_from_the_car_ahead() -> None:
    traffic = Traffic([road(vehicle(-25, 10.0, 10.0), speed=0.0)])
    for _ in range(150):
        traffic.step(np.zeros((1, 2)))
    assert traffic.speed[0, 0] < 0.05
    front = traffic.centre[0, 0, 0] + 4.5 / 2
    assert -6 < front < -1.127  # the rear bumper of the car
    assert not traffic.collided[0]


def test_people_stop_for_a_car_in_their_way() -> None:
    person = RoadUser(line(30, (0.0, -6.0, np.pi / 2)), 0.0, 1.2, 1.2, (0.6, 0.6), "pedestrian")
    traffic = Traffic([road(person, speed=0.0)])
    for _ in range(100):
        traffic.step(np.zeros((1, 2)))
    assert not traffic.collided[0]
    assert -4 < traffic.centre[0, 0, 1] < -1.2


def test_scenes_go_on_together_as_they_do_alone() -> None:
    scenes = [sample_scene(np.random.default_rng(seed)) for seed in range(4)]
    together, alone = Traffic(scenes), [Traffic([scene]) for scene in scenes]
    commands = np.array([[6.0, 0.05]] * 4)
    for _ in range(30):
        together.step(commands)
        for part in alone:
            part.step(commands[:1])
    for row, part in enumerate(alone):
        np.testing.assert_allclose(together.car[row], part.car[0], atol=1e-9)
        np.testing.assert_allclose(together.place[row], part.place[0], atol=1e-9)


def test_a_collision_ends_the_episode_and_costs_the_score() -> None:
    env = begun(road(vehicle(30, 0.0, 0.0)))
    ended = False
    while not ended:
        _, reward, ended, _, info = env.step(np.array([8.0, 0.0], np.float32))
    assert info["collision"]
    assert reward <= 0
    assert env.metrics["pdm"] == env.metrics["no_collision"] == 0


def test_leaving_the_road_ends_the_episode() -> None:
    env = begun(road())
    info = drive(env, [8.0, 0.5], 2)
    assert info["off_road"]
    assert env.failed
    assert env.metrics["drivable_area"] == 0


def test_to_go_far_enough_is_a_success() -> None:
    env = begun(road())
    steps, ended = 0, False
    while not ended:
        _, _, ended, _, info = env.step(np.array([8.0, 0.0], np.float32))
        steps += 1
    assert info["success"]
    assert steps * TICK == pytest.approx(70 / 8, abs=0.3)
    assert env.metrics["pdm"] > 0.9


def test_only_the_commanded_route_counts() -> None:
    scene = next(s for s in (sample_scene(np.random.default_rng(i), "four-way") for i in range(50)) if s.chosen == 1)
    other = Scene(**{**vars(scene), "chosen": 0, "others": ()})
    env = begun(other)
    straight = begun(Scene(**{**vars(scene), "others": ()}))
    expert = DRIVERS["expert"](straight)
    for _ in range(130):
        command = expert.command()
        straight.step(command)
        env.step(command)
    assert straight.progress > env.progress + 20


def test_the_raster_shows_the_edge_of_the_road_and_others_where_they_are() -> None:
    env = begun(road(vehicle(20, 5.0, 5.0)))
    edge, now, later = env.observe()["raster"]
    row, column = PIXELS - 1 - round(BACK / PIXEL), PIXELS // 2
    assert edge[row, column] > 160  # the lane is 5 m wide: 2.5 m to its edge are 208
    assert edge[row, column + 5] < 60
    assert now[row - 20, column] == 255
    assert now[row, column] == 0
    assert later[row - 28, column] == 255  # 7.5 m on


def test_others_are_listed_nearest_first_in_the_frame_of_the_car() -> None:
    env = begun(road(vehicle(40, 5.0, 5.0), vehicle(20, 3.0, 3.0)))
    table = env.observe()["others"]
    assert table.shape == (MOST, 8)
    assert table[0] == pytest.approx([20, 0, 1, 0, 3, 4.5, 1.9, 0], abs=1e-3)
    assert table[1, 0] == pytest.approx(40, abs=1e-3)
    assert not table[2:].any()


def test_what_is_observed_does_not_depend_on_where_north_is() -> None:
    env, northern = (DrivingEnv() for _ in range(2))
    for seed in range(5):
        scene = sample_scene(np.random.default_rng(seed))
        env.reset(seed=0, options={"scene": scene})
        northern.reset(seed=0, options={"scene": turned(scene, 1.1)})
        one, other = env.observe(), northern.observe()
        for name in ("car", "command", "paths", "others"):
            np.testing.assert_allclose(one[name], other[name], atol=1e-3, err_msg=name)
        assert np.abs(one["raster"].astype(int) - other["raster"]).mean() < 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_reaches_the_end_of_most_scenes_of_every_kind(kind: str) -> None:
    env, reached = DrivingEnv(kind), 0
    for seed in range(4):
        env.reset(seed=seed)
        expert, ended = DRIVERS["expert"](env), False
        while not ended:
            _, _, terminated, truncated, info = env.step(expert.command())
            ended = terminated or truncated
        reached += bool(info["success"])
    assert reached >= 3


def test_an_episode_begins_at_the_speed_of_the_car() -> None:
    env = begun(road(speed=8.0))
    episode = Episode(env, Scripted(DRIVERS["constant velocity"](env)), 0)
    for index in range(10):
        episode.tick(index * env.step_dt)
    assert env.traffic.car[0, SPEED] == pytest.approx(8.0, abs=0.01)


def test_rectangles_overlap_unless_a_side_parts_them() -> None:
    size = np.array([4.0, 2.0])
    one = box_corners(np.zeros(3), size)
    for pose, expected in (
        ([3.9, 0, 0], True),
        ([4.1, 0, 0], False),
        ([3.4, 0, np.pi / 2], False),
        ([2.9, 0, 1.57], True),
    ):
        assert overlap(one, box_corners(np.array(pose, float), size)) == expected


def test_a_rate_that_is_no_multiple_of_the_tick_is_refused() -> None:
    with pytest.raises(ValueError, match="step_hz=3"):
        DrivingEnv(step_hz=3.0)


def test_pictures_can_be_drawn_without_opengl() -> None:
    env = DrivingEnv(render_mode="rgb_array")
    env.reset(seed=3)
    picture = env.render()
    assert picture.shape == (480, 480, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3
