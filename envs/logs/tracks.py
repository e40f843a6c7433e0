"""What the formats have in common: poses at other times, and the kinds of road users."""

from __future__ import annotations

import numpy as np
import shapely

from envs.metrics.tracker import STEP
from policies.spec import Array

SEAM = 0.15  # m by which lanes are widened to close the gaps between them
BACK = 0.1  # m of it that are taken off again


def interpolated(times: Array, poses: Array, valid: Array, wanted: Array, gap: float) -> tuple[Array, Array]:
    """Poses at other times, linearly interpolated; headings take the shorter way.

    Args:
        times: ``(T,)`` s, increasing.
        poses: ``(K, T, 3)`` x, y, heading.
        valid: ``(K, T)`` whether one is known.
        wanted: ``(N,)`` s.
        gap: Longest time in s between two known poses that is bridged.

    Returns:
        ``(K, N, 3)`` poses, 0 where they are not known, and ``(K, N)`` whether they are.
    """
    result, known = np.zeros((len(poses), len(wanted), 3)), np.zeros((len(poses), len(wanted)), bool)
    for row, (track, there) in enumerate(zip(poses, valid, strict=True)):
        if not there.any():
            continue
        when, where = times[there], track[there]
        where = np.concatenate([where[:, :2], np.unwrap(where[:, 2])[:, None]], 1)
        after = np.clip(np.searchsorted(when, wanted - 1e-6), 0, len(when) - 1)
        before = np.where(np.abs(when[after] - wanted) < 1e-6, after, np.maximum(after - 1, 0))
        within = (wanted > when[0] - 1e-6) & (wanted < when[-1] + 1e-6)
        known[row] = within & (when[after] - when[before] <= gap + 1e-6)
        for axis in range(3):
            result[row, :, axis] = np.interp(wanted, when, where[:, axis])
    return np.where(known[..., None], result, 0.0), known


def sample_times(start: float, end: float) -> Array:
    """Times ``(N,)`` in s at 10 Hz from one moment on up to another."""
    return start + STEP * np.arange(int((end - start) / STEP + 1e-6) + 1)


def repaired(corners: Array) -> shapely.Polygon | None:
    """The largest part of the area inside some corners ``(N, 2+)`` in m; None if they have none."""
    if len(corners) < 3 or not np.isfinite(corners).all():
        return None
    return largest(shapely.Polygon(corners[:, :2]).buffer(0))


def largest(area: shapely.Geometry) -> shapely.Polygon | None:
    """The largest polygon of an area, None if there is none."""
    parts = [part for part in shapely.get_parts(area) if isinstance(part, shapely.Polygon) and part.area > 0]
    return max(parts, key=lambda part: part.area, default=None)


def seamless(areas: list[shapely.Polygon]) -> list[shapely.Polygon]:
    """The same ground in as few polygons as possible.

    A corner of a car on the seam of two polygons is in neither, and maps leave gaps there.
    """
    ground = shapely.union_all([area.buffer(SEAM) for area in areas]).buffer(-BACK)
    return [part for part in shapely.get_parts(ground) if isinstance(part, shapely.Polygon) and part.area > 0]
