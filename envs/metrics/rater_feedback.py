"""The rater feedback score of the Waymo Open Dataset's end-to-end driving challenge (arXiv 2510.26125)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.metrics.scene import FARTHEST, FASTEST, checked
from policies.spec import Array, ContractError

WAYPOINTS, RATE = 20, 4.0  # samples, Hz
RATERS = 3  # that count
JUDGED = (11, 19)  # samples at 3 s and 5 s
LATERAL = (1.0, 1.8)  # m at those times, at high speed
LONGITUDINAL = 4.0  # times as much
SLOW, FAST, SLOW_SCALE = 1.4, 11.0, 0.5  # m/s; tolerances at low speed are smaller
DECAY = 0.1  # of the label per tolerance beyond the first one
FLOOR = 4.0  # score of a plan that no rater's trajectory is near to
LARGEST_LABEL = 10.0


def rater_feedback_score(
    plans: Array, raters: Sequence[Array], labels: Array, speed: float, probabilities: Array | None = None
) -> Array:
    """How well plans agree with trajectories that people have rated, in [0, 10].

    At 3 s and at 5 s a plan gets the best label among the raters' trajectories, reduced by a factor of ten per
    tolerance that it is off beyond the first one; each time has its own best. The score is the mean of the two times,
    and 4 at least unless one trajectory is within the tolerance at both: a bad label counts where it was given.

    Args:
        plans: ``(P, 20, 2)`` x, y of the car at 4 Hz from 0.25 s on, in m, in its frame at t=0.
        raters: ``(N, 2)`` each, likewise. The first three count; shorter ones stay at their last point, and of longer
            ones the first 20 samples count.
        labels: One per rater, in [0, 10].
        speed: At t=0, m/s.
        probabilities: ``(P,)`` of the plans, which are then scored together; their sum is 1.

    Returns:
        ``(P,)`` scores, or ``()`` the expected one if there are probabilities.

    Raises:
        ContractError: Names what does not fit.
    """
    plans = checked("plans", plans, (None, WAYPOINTS, 2), FARTHEST)
    trajectories = _rated(raters)
    values = checked("labels", labels, (len(raters),), LARGEST_LABEL)[: len(trajectories)]
    if (values < 0).any():
        raise ContractError(f"labels reach {values.min():g}, allowed is [0, {LARGEST_LABEL:g}]; leave out missing ones")
    speed = float(checked("speed", speed, (), FASTEST))
    scale = np.clip(SLOW_SCALE + (1 - SLOW_SCALE) * (speed - SLOW) / (FAST - SLOW), SLOW_SCALE, 1)
    tolerance = scale * np.array(LATERAL)

    ahead = _directions(trajectories)[:, JUDGED]
    left = np.stack([-ahead[..., 1], ahead[..., 0]], -1)
    offset = plans[:, None, JUDGED] - trajectories[:, JUDGED]
    along, across = np.abs((offset * ahead).sum(-1)), np.abs((offset * left).sum(-1))
    distance = np.maximum(along / (LONGITUDINAL * tolerance), across / tolerance)  # (P, raters, 2)
    # A waypoint at its tolerance is within, whatever the frame: products of cosines are off in the last digits.
    excess = np.maximum(distance - 1, 0) * (distance > 1 + 1e-12)
    score = (values[:, None] * DECAY**excess).max(1).mean(-1)
    near = (excess == 0).all(-1).any(-1)
    score = np.where(near, score, np.maximum(score, FLOOR))
    return score if probabilities is None else score @ _shares(probabilities, len(plans))


def _rated(raters: Sequence[Array]) -> Array:
    """The trajectories ``(R, 20, 2)`` that count."""
    if not len(raters):
        raise ContractError("raters are 0 trajectories, needed is 1 at least; leave this scene out")
    result = np.empty((min(len(raters), RATERS), WAYPOINTS, 2))
    for index in range(len(result)):
        trajectory = checked(f"rater {index}", raters[index], (None, 2), FARTHEST)
        if not len(trajectory):
            raise ContractError(f"rater {index} has 0 waypoints, needed is 1 at least; leave it out")
        count = min(len(trajectory), WAYPOINTS)
        result[index, :count], result[index, count:] = trajectory[:count], trajectory[count - 1]
    return result


def _directions(trajectories: Array) -> Array:
    """Unit vectors ``(R, 20, 2)`` of driving: those of the last step that was one, forward before the first."""
    steps = np.diff(trajectories, axis=1, prepend=0.0)
    length = np.linalg.norm(steps, axis=-1, keepdims=True)
    directions = np.empty_like(steps)
    last = np.broadcast_to([1.0, 0.0], steps[:, 0].shape)
    for index in range(steps.shape[1]):
        moved = length[:, index] > 0
        last = np.where(moved, steps[:, index] / np.where(moved, length[:, index], 1.0), last)
        directions[:, index] = last
    return directions


def _shares(probabilities: Array, count: int) -> Array:
    """Probabilities ``(P,)`` that add up to 1."""
    shares = checked("probabilities", probabilities, (count,), 1 + 1e-6)
    if (shares < 0).any() or abs(shares.sum() - 1) > 1e-3:
        raise ContractError(
            f"probabilities are {shares.min():g} at least and add up to {shares.sum():g}, needed are 0 and 1; "
            "normalise them"
        )
    return shares / shares.sum()
