import numpy as np
import pytest

from policies.chunk import Chunk, hold_weights

RAMP = Chunk(np.arange(16, dtype=np.float32)[:, None] * [1.0, -2.0], start=5.0, dt=0.1)


@pytest.mark.parametrize(
    ("time", "expected"), [(5.0, 0.0), (5.05, 0.5), (5.1, 1.0), (6.5, 15.0), (4.0, 0.0), (9.0, 15.0)]
)
def test_actions_are_interpolated_in_time_and_kept_beyond_the_ends(time: float, expected: float) -> None:
    np.testing.assert_allclose(RAMP.at(time), [expected, -2 * expected], atol=1e-5)


def test_a_shifted_chunk_says_the_same_at_the_same_time() -> None:
    later = Chunk(RAMP.shifted(5.23), start=5.23, dt=0.1)
    for time in (5.23, 5.43, 6.03):
        np.testing.assert_allclose(later.at(time), RAMP.at(time), atol=1e-5)


def test_end_is_the_time_of_the_last_action() -> None:
    assert RAMP.end == pytest.approx(6.5)


def test_hold_weights_freeze_then_fade() -> None:
    np.testing.assert_allclose(hold_weights(6, 2, 3), [1, 1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_array_equal(hold_weights(4, 0, 0), 0)
    np.testing.assert_array_equal(hold_weights(4, 9, 2), 1)
