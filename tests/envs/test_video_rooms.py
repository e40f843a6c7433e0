import envs  # isort: skip (chooses the OpenGL library before MuJoCo loads)  # noqa: F401
import mujoco
import numpy as np
import pytest

from envs.rooms import HALF_SIZE
from envs.video_rooms import (
    COLOURS,
    CURVATURE,
    DOOR,
    KINDS,
    STEP,
    Landmark,
    Look,
    VideoRoom,
    resampled,
    rounded,
    sample_video_room,
)

SAMPLES = [sample_video_room(np.random.default_rng(seed)) for seed in range(30)]
samples = pytest.mark.parametrize(("room", "walk"), SAMPLES[:10])


def furnished(*landmarks: Landmark) -> VideoRoom:
    footprints = tuple(item.footprint for item in landmarks if item.kind != DOOR)
    nowhere = (0.0, 0.0, 0.0)
    return VideoRoom(footprints, nowhere, nowhere, landmarks, Look.sample(np.random.default_rng(0)))


def compiled(room: VideoRoom) -> tuple[mujoco.MjModel, mujoco.MjData]:
    spec = mujoco.MjSpec()
    room.add_to(spec)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def test_rooms_have_landmarks_that_can_be_told_apart() -> None:
    for room, _ in SAMPLES:
        doors = [item for item in room.landmarks if item.kind == DOOR]
        assert 2 <= len(doors) <= 4
        assert 5 <= len(room.landmarks) - len(doors) <= 9
        names = [item.name for item in room.landmarks]
        assert len(set(names)) == len(names)
        assert all(item.colour in COLOURS and item.kind in (*KINDS, DOOR) for item in room.landmarks)
        assert all(max(abs(door.x), abs(door.y)) == pytest.approx(HALF_SIZE) for door in doors)


def test_the_walk_ends_in_front_of_a_landmark_and_faces_it() -> None:
    for room, walk in SAMPLES:
        end = walk.path[-1]
        assert 0.8 <= walk.final.footprint.distance(end[:2]) <= 1.0
        assert abs(walk.final.bearing(end)) < np.radians(20)
        assert room.sees(end, walk.final)


def test_the_walk_passes_another_object_that_it_saw() -> None:
    for room, walk in SAMPLES:
        distance = walk.passed.footprint.distance(walk.path[:, :2])
        assert walk.passed not in (walk.final, *(item for item in room.landmarks if item.kind == DOOR))
        assert distance.min() <= 1.4
        assert 0.35 <= distance.argmin() / (len(walk.path) - 1) <= 0.75
        near, first, last = distance < distance.min() + 0.1, *sorted((int(distance.argmin()), walk.middle))
        assert near[first : last + 1].all(), "it is on the stretch beside the object"
        ahead, behind = (int(np.argmin(part)) for part in (near[walk.middle :], near[walk.middle :: -1]))
        assert abs(ahead - behind) <= 1, "and in its middle"
        assert any(room.sees(pose, walk.passed) for pose in walk.path[: walk.middle])
        assert np.linalg.norm(walk.path[walk.middle, :2] - walk.path[-1, :2]) > 1.0, "the places to stop are apart"


def test_a_robot_can_follow_the_walk() -> None:
    for room, walk in SAMPLES:
        steps = np.diff(walk.path[:, :2], axis=0)
        length = np.linalg.norm(steps, axis=1)
        assert 3 <= length.sum() <= 8
        np.testing.assert_allclose(length, STEP, rtol=0.03)
        assert np.abs(np.diff(walk.path[:, 2])).max() <= CURVATURE * STEP
        assert room.clearance(walk.path[:, :2]).min() > 0.5
        heading = np.arctan2(steps[:, 1], steps[:, 0])
        assert np.cos(heading - walk.path[:-1, 2]).min() > 0.99, "it faces where it goes"


def test_the_robot_starts_near_the_first_pose() -> None:
    offsets = np.array([np.array(room.start) - walk.path[0] for room, walk in SAMPLES])
    assert np.linalg.norm(offsets[:, :2], axis=1).max() <= 0.15
    assert np.abs(offsets[:, 2]).max() <= np.radians(10)
    assert offsets.std(0).min() > 0.03


def test_the_straight_way_is_often_blocked() -> None:
    narrow = [room.clearance(np.linspace(w.path[0, :2], w.path[-1, :2], 50)).min() < 0.25 for room, w in SAMPLES]
    assert np.mean(narrow) >= 0.5


def test_the_generator_alone_decides() -> None:
    room, walk = sample_video_room(np.random.default_rng(3))
    np.testing.assert_array_equal(walk.path, SAMPLES[3][1].path)
    assert room.landmarks == SAMPLES[3][0].landmarks
    np.testing.assert_array_equal(room.look.tint, SAMPLES[3][0].look.tint)
    assert len({room.look.brightness for room, _ in SAMPLES}) == len(SAMPLES)


def test_one_landmark_hides_another() -> None:
    near, far = Landmark("box", "red", 1.5, 0.0), Landmark("ball", "blue", 3.0, 0.0)
    left = Landmark("cone", "green", 2.0, 2.0)
    room = furnished(near, far, left, Landmark(DOOR, "white", HALF_SIZE, 0.0, np.pi))
    seen = {item.name for item in room.landmarks if room.sees(np.zeros(3), item)}
    assert seen == {"red box"}, "the ball and the door are behind the box, the cone is too far to the left"
    assert room.sees(np.array([0.0, 0.0, np.pi / 4]), left)


def test_bearings_are_to_the_left() -> None:
    pose = np.array([1.0, 0.0, np.pi / 2])
    assert Landmark("box", "red", 0.0, 0.0).bearing(pose) == pytest.approx(np.pi / 2)
    assert Landmark("box", "red", 2.0, 1.0).bearing(pose) == pytest.approx(-np.pi / 4)


def test_what_is_in_front_of_a_door() -> None:
    door = Landmark(DOOR, "red", -HALF_SIZE, 1.0, 0.0, half=0.5, height=2.0)
    offsets = np.array([[0.9, 0.0], [0.9, 0.4], [0.9, 0.7], [0.5, 0.0], [1.2, 0.0]])
    assert door.in_front(offsets + np.array([door.x, door.y])).tolist() == [True, True, False, False, False]


def test_rounding_keeps_the_ends_and_cuts_the_corner() -> None:
    corner = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0]])
    line = rounded(corner)
    np.testing.assert_allclose(line[0], corner[0], atol=1e-9)
    assert np.linalg.norm(line[-1] - corner[-1]) < 2 * STEP
    assert 0.1 < np.linalg.norm(line - corner[1], axis=1).min() < 0.4
    np.testing.assert_allclose(np.linalg.norm(np.diff(line, axis=0), axis=1), STEP, rtol=0.02)


def test_resampling_is_uniform() -> None:
    points = resampled(np.array([[0.0, 0.0], [0.2, 0.0], [0.2, 1.0]]))
    np.testing.assert_allclose(np.linalg.norm(np.diff(points, axis=0), axis=1), STEP)


@samples
def test_everything_stands_where_the_map_says(room: VideoRoom, walk: object) -> None:
    model, data = compiled(room)
    for index, item in enumerate(room.landmarks):
        geom = model.geom(f"landmark{index}")
        np.testing.assert_allclose(data.geom(geom.id).xpos[:2], (item.x, item.y), atol=1e-6)
        assert bool(geom.contype) == (item.kind != DOOR), "objects are solid, doors are part of the wall"
        if item.kind in ("box", "cylinder"):
            hit, above, down = np.zeros(1, np.int32), np.array([item.x, item.y, 2.5]), np.array([0, 0, -1.0])
            assert mujoco.mj_ray(model, data, above, down, None, 1, -1, hit, None) == pytest.approx(2.5 - item.height)
            assert hit[0] == geom.id


def test_walls_and_ceiling_close_the_room() -> None:
    room = furnished(Landmark("box", "red", 3.0, 3.0), Landmark("box", "blue", -3.0, -3.0))
    model, data = compiled(room)
    for direction, distance in (((1, 0, 0), 5), ((-1, 0, 0), 5), ((0, 1, 0), 5), ((0, -1, 0), 5), ((0, 0, 1), 1.8)):
        hit = np.zeros(1, np.int32)
        ray = mujoco.mj_ray(model, data, np.array([0, 0, 1.0]), np.array(direction, float), None, 1, -1, hit, None)
        assert ray == pytest.approx(distance)
        assert model.geom(hit[0]).group[0] == 1
