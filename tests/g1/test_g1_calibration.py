import numpy as np
import pytest

from envs.g1.calibration import RESPONSE, STAND_STILL_BELOW, policy_command
from envs.g1.walker import G1Body


def test_response_is_monotone_and_covers_the_command_range() -> None:
    for (asked, delivered), low, high in zip(RESPONSE, G1Body.action.low, G1Body.action.high, strict=True):
        assert (np.diff(asked) > 0).all() and (np.diff(delivered) > 0).all()
        assert delivered[0] <= low and high <= delivered[-1]
        assert asked[0] >= -1 and asked[-1] <= 1


def test_inverse_asks_for_what_delivers_the_command() -> None:
    command = np.array([0.35, -0.12, 0.4])
    asked = policy_command(command)
    delivered = [np.interp(value, *pair) for value, pair in zip(asked, RESPONSE, strict=True)]
    np.testing.assert_allclose(delivered, command, atol=1e-9)


@pytest.mark.parametrize("axis", range(3))
def test_only_commands_small_on_every_axis_stand_still(axis: int) -> None:
    command = 0.99 * STAND_STILL_BELOW
    assert (policy_command(command) == 0).all()
    command[axis] *= -1.1
    assert (policy_command(command) != 0).any()


def test_velocities_out_of_reach_give_the_end_of_the_response() -> None:
    np.testing.assert_array_equal(policy_command(np.array([5.0, 5.0, 5.0])), [pair[0][-1] for pair in RESPONSE])
