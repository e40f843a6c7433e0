"""What the pictures of a first-person video tell about the motion of the camera, pair by pair."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch

from planners.imagination import Array, ImaginationError
from policies.dis import dis_flow
from policies.egomotion import NOISE_PX, Camera, floor_depth, jacobian, robust_twist_of

SIDE = 96  # px, pictures are measured at this size, at which the limits of the validator were set
CELLS = 24  # per side, of the grid on which the floor is fitted
BAND = 14  # rows above and below the horizon that are looked for in the next picture
ASIDE = 12  # columns by which they may move sideways
BOB = 3  # rows by which the horizon may move: 3 degrees, as when walking


@dataclass(frozen=True)
class Motion:
    """Measures of the T - 1 pairs of neighbouring pictures, each ``(T - 1,)`` unless noted.

    Args:
        size: 90th percentile of the optical flow in px of a picture `SIDE` wide.
        mismatch: 1 - correlation of a picture with the next one warped back by the flow; brightness does not matter.
        agreement: Share of the floor's pixels, the nearer the more weight, that move as a floor does; 0 to 1.
        twist: ``(T - 1, 3)`` vx, vy in m/s and wz in rad/s, from those pixels. Means nothing where few agree.
        tilt: Angle in rad by which the camera nodded and rolled from one picture to the next, from those pixels too.
        brightness: Logarithm of the ratio of brightness of what is seen in both pictures.
        rows: Rows by which the surroundings of the horizon moved down.
        shifted: By how much they fit better there than within `BOB` rows, as difference of correlations.
    """

    size: Array
    mismatch: Array
    agreement: Array
    twist: Array
    tilt: Array
    brightness: Array
    rows: Array
    shifted: Array

    @property
    def still(self) -> Array:
        """Pairs in which nothing moves."""
        return self.size < 0.15

    @property
    def jump(self) -> Array:
        """How many times more a pair differs from its neighbours than a continuous motion does.

        The product of three ratios to the median of the six nearest pairs: the pictures match less, they move more, and
        less of the floor moves as a floor does. Each of them alone also happens without a jump.
        """
        return _ratio(self.mismatch, 0.01) * _ratio(self.size, 2.0) / _ratio(self.agreement, 0.03)


def _ratio(values: Array, least: float) -> Array:
    """Each value by the median of its three neighbours on either side; ``least`` is added to both."""
    near = np.pad(values, 3, mode="reflect" if len(values) > 3 else "edge")
    windows = np.delete(np.lib.stride_tricks.sliding_window_view(near, 7), 3, axis=1)
    return (values + least) / (np.median(windows, axis=1) + least)


def measure(frames: Array, rate_hz: float, camera: Camera) -> Motion:
    """Measure a video.

    Args:
        frames: ``(T, 3, S, S)`` uint8 RGB.
        rate_hz: Pictures per second.
        camera: Field of view, height and pitch of the camera that is supposed to have taken it.
    """
    pictures, camera = squared(frames), replace(camera, size=SIDE)
    flows = np.stack([dis_flow(one, other) for one, other in itertools.pairwise(pictures)])
    rates, agreement = _floor_motion(flows, rate_hz, camera)
    rows = [_pair(*pair, flow, camera) for pair, flow in zip(itertools.pairwise(pictures), flows, strict=True)]
    size, mismatch, brightness, down, shifted = np.array(rows, float).T
    tilt = np.linalg.norm(rates[:, 3:], axis=1) / rate_hz
    return Motion(size, mismatch, agreement, rates[:, :3], tilt, brightness, down, shifted)


def squared(frames: Array) -> Array:
    """Scale ``(T, 3, S, S)`` pictures to `SIDE`."""
    import cv2

    height, width = frames.shape[2:]
    if height != width:
        raise ImaginationError(f"pictures have {height} x {width} pixels; the camera model is one of square pictures")
    if height == SIDE:
        return frames
    method = cv2.INTER_AREA if height > SIDE else cv2.INTER_LINEAR
    scaled = [
        cv2.resize(np.ascontiguousarray(picture.transpose(1, 2, 0)), (SIDE, SIDE), None, 0, 0, method)
        for picture in frames
    ]
    return np.stack(scaled).transpose(0, 3, 1, 2)


def _pair(one: Array, other: Array, flow: Array, camera: Camera) -> tuple[float, ...]:
    seen, back = warped(other, flow)
    before, after = grey(one)[seen], grey(back)[seen]
    brightness = np.log((after.mean() + 1) / (before.mean() + 1)) if seen.any() else 0.0
    return (
        float(np.percentile(np.hypot(*flow), 90)),
        1 - correlation(before, after),
        float(brightness),
        *_shift(grey(one), grey(other), camera),
    )


def _floor_motion(flows: Array, rate_hz: float, camera: Camera) -> tuple[Array, Array]:
    """Rates ``(N, 5)`` vx, vy, wz, nod, roll and agreement ``(N,)`` of N flows; who walks nods and rolls."""
    cells = flows.reshape(-1, 2, CELLS, SIDE // CELLS, CELLS, SIDE // CELLS).mean((3, 5))
    moved = torch.from_numpy(cells.astype(np.float64)).flatten(2).mT
    halfway = camera.places(CELLS) + 0.5 * moved
    depth = floor_depth(camera, halfway)
    prior = (depth.amin(-1, keepdim=True) / depth).clamp(0, 1)  # what is near is seldom hidden
    (x, y), focal = halfway.unbind(-1), camera.focal
    nod = torch.stack([x * y / focal, focal + y.square() / focal], -1)
    roll = torch.stack([y, -x], -1)
    relation = torch.cat([jacobian(camera, halfway, depth), torch.stack([nod, roll], -1)], -1)
    rates, trust = robust_twist_of(moved * rate_hz, relation, prior, NOISE_PX * rate_hz)
    return rates.numpy(), (trust.sum(-1) / prior.sum(-1).clamp_min(1e-9)).numpy()


def _shift(one: Array, other: Array, camera: Camera) -> tuple[float, float]:
    """Rows by which the surroundings of the horizon moved, and by how much they fit better there than near it."""
    import cv2

    horizon = round(SIDE / 2 - camera.focal * float(np.tan(camera.pitch)))
    top = min(max(horizon - BAND, 0), SIDE - 2 * BAND)
    band = one[top : top + 2 * BAND, ASIDE:-ASIDE]
    fits = cv2.matchTemplate(other, band, cv2.TM_CCOEFF_NORMED).max(1)
    near = fits[max(top - BOB, 0) : top + BOB + 1].max()
    return float(fits.argmax() - top), float(fits.max() - near)


def grey(picture: Array) -> Array:
    """``(3, H, W)`` to ``(H, W)`` float32 brightness, 0 to 255."""
    return np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), picture.astype(np.float32), 1)


def warped(picture: Array, flow: Array) -> tuple[Array, Array]:
    """Bring a picture back to where the flow started.

    Returns:
        ``(H, W)`` bool, what is inside the picture, and the ``(3, H, W)`` picture.
    """
    import cv2

    down, right = np.indices(flow.shape[1:], np.float32)
    x, y = right + flow[0], down + flow[1]
    content = cv2.remap(np.ascontiguousarray(picture.transpose(1, 2, 0)), x, y, cv2.INTER_LINEAR)
    return (x >= 0) & (x <= flow.shape[2] - 1) & (y >= 0) & (y <= flow.shape[1] - 1), content.transpose(2, 0, 1)


def correlation(one: Array, other: Array) -> float:
    """Pearson's, 1 where nothing varies."""
    first, second = one - one.mean() if one.size else one, other - other.mean() if other.size else other
    energy = float(np.sqrt((first * first).sum() * (second * second).sum()))
    return float((first * second).sum()) / energy if energy > 1e-3 * max(one.size, 1) else 1.0
