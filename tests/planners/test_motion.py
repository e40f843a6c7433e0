import math

import numpy as np
import pytest
from textured_room import CAMERA, RATE_HZ, TexturedRoom, _draw, _rays, _texture

from planners.imagination import ImaginationError, Request, Video
from planners.motion import SIDE, correlation, measure, squared, warped


@pytest.fixture(scope="module")
def walk() -> Video:
    return TexturedRoom(contrast=0.8, bob=False).generate(Request("x", frames=24), 41)


def test_speed_and_turning_are_those_of_the_camera(walk: Video) -> None:
    path = TexturedRoom(contrast=0.8, bob=False)._path(24, np.random.default_rng(41))
    motion = measure(walk.frames, RATE_HZ, CAMERA)
    step = np.diff(path, axis=0) * RATE_HZ
    speed, turning = np.hypot(step[:, 0], step[:, 1]), step[:, 3]
    known = (motion.agreement > 0.05) & ~motion.still
    assert known.sum() >= 15
    assert np.abs(motion.twist[known, 0] - speed[known]).max() < 0.2 * speed.max()
    assert np.abs(motion.twist[known, 1]).max() < 0.1 and np.abs(motion.twist[known, 2] - turning[known]).max() < 0.05
    assert motion.still[-3:].all() and not motion.still[5:15].any()


def test_larger_pictures_give_the_same(walk: Video) -> None:
    large = measure(walk.frames[4:8].repeat(2, 2).repeat(2, 3), RATE_HZ, CAMERA)
    small = measure(walk.frames[4:8], RATE_HZ, CAMERA)
    np.testing.assert_allclose(large.twist, small.twist, atol=0.05)


def test_a_moved_horizon_is_measured_in_rows(walk: Video) -> None:
    pair = walk.frames[8:10].copy()
    pair[1] = np.roll(pair[1], 12, axis=1)
    motion = measure(pair, RATE_HZ, CAMERA)
    assert motion.rows[0] == pytest.approx(12, abs=1) and motion.shifted[0] > 0.3


def test_a_tilted_camera_is_measured_in_angles() -> None:
    poses = [np.array([0, 0, CAMERA.height, 0, CAMERA.pitch + nod]) for nod in (0.0, 0.1)]
    room = [(np.array([-3.0, -3.0, 0.0]), np.array([4.0, 3.0, 2.6]))]
    textures, rays = [_texture(np.random.default_rng(k), 0.8) for k in range(8)], _rays((SIDE, SIDE))
    drawn = [_draw(pose, rays, room, textures) for pose in poses]
    pair = np.stack(drawn).reshape(2, SIDE, SIDE, 3).transpose(0, 3, 1, 2).clip(0, 255).astype(np.uint8)
    motion = measure(pair, RATE_HZ, CAMERA)
    assert motion.tilt[0] == pytest.approx(0.1, rel=0.15)
    assert np.abs(motion.twist[0, :2]).max() < 0.1 and abs(motion.twist[0, 2]) < 0.1


def test_brightness_is_told_from_motion(walk: Video) -> None:
    pair = walk.frames[8:10].copy()
    plain = measure(pair, RATE_HZ, CAMERA)
    pair[1] = (pair[1] * 0.8).astype(np.uint8)
    dark = measure(pair, RATE_HZ, CAMERA)
    assert dark.brightness[0] == pytest.approx(math.log(0.8), abs=0.02) and abs(plain.brightness[0]) < 0.01
    assert dark.mismatch[0] < 0.05


def test_pictures_without_content_give_numbers() -> None:
    motion = measure(np.zeros((3, 3, SIDE, SIDE), np.uint8), 10.0, CAMERA)
    values = [
        motion.size,
        motion.mismatch,
        motion.agreement,
        motion.twist,
        motion.brightness,
        motion.jump,
        motion.shifted,
    ]
    assert all(np.isfinite(value).all() for value in values) and motion.still.all()
    assert (motion.shifted <= 0.3).all()


def test_oblong_pictures_are_refused() -> None:
    with pytest.raises(ImaginationError, match="48 x 96"):
        squared(np.zeros((2, 3, 48, 96), np.uint8))


def test_warping_brings_back_what_a_shift_took_away() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (3, 20, 20), np.uint8)
    flow = np.stack([np.full((20, 20), 3.0, np.float32), np.full((20, 20), -2.0, np.float32)])
    seen, back = warped(np.roll(picture, (-2, 3), (1, 2)), flow)
    assert seen[2:, :17].all() and not seen[:2].any() and not seen[:, 17:].any()
    np.testing.assert_array_equal(back[:, seen], picture[:, seen])


def test_correlation_of_what_does_not_vary_is_no_objection() -> None:
    assert correlation(np.zeros(5), np.arange(5.0)) == 1 and correlation(np.zeros(0), np.zeros(0)) == 1
    assert correlation(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1)
