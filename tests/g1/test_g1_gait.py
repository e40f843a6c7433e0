import numpy as np
import pytest

from envs.g1.assets import available, policy_path
from envs.g1.gait import STANDING_POSE, Gait
from policies.spec import Array


@pytest.fixture
def gait() -> Gait:
    if reason := available():
        pytest.skip(reason)
    return Gait(policy_path())


def targets(gait: Gait, command: tuple[float, float, float], steps: int) -> Array:
    """Joint targets of a robot that hangs motionless in its standing pose."""
    still, down = np.zeros(3), np.array([0.0, 0.0, -1.0])
    return np.array([gait.targets(np.array(command), still, down, STANDING_POSE, np.zeros(29)) for _ in range(steps)])


def test_metadata_names_29_joints_with_their_gains(gait: Gait) -> None:
    assert len(gait.joints) == len(gait.stiffness) == len(gait.damping) == len(STANDING_POSE) == 29
    assert gait.joints[3] == "left_knee_joint" and STANDING_POSE[3] == 0.669


def test_standing_settles_to_constant_targets_near_the_pose(gait: Gait) -> None:
    rows = targets(gait, (0, 0, 0), 100)
    np.testing.assert_allclose(rows[-1], rows[-2], atol=1e-3)
    np.testing.assert_allclose(rows[-1], STANDING_POSE, atol=0.5)


def test_walking_repeats_every_second(gait: Gait) -> None:
    rows = targets(gait, (0.5, 0, 0), 200)
    assert np.ptp(rows[150:], axis=0).max() > 0.1
    np.testing.assert_allclose(rows[150:200], rows[100:150], atol=0.02)


def test_left_and_right_leg_alternate(gait: Gait) -> None:
    knees = targets(gait, (0.5, 0, 0), 200)[150:, [3, 9]]
    left, right = knees.T - knees.mean(0)[:, None]
    assert np.corrcoef(left, np.roll(right, 25))[0, 1] > 0.8


def test_reset_repeats_the_walk_exactly(gait: Gait) -> None:
    first = targets(gait, (0.5, 0, 0), 30)
    gait.reset()
    np.testing.assert_array_equal(targets(gait, (0.5, 0, 0), 30), first)
