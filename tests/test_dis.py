"""Dense inverse search finds known motions of synthetic textures."""

import cv2
import numpy as np
import pytest

from policies.dis import dis_flow
from policies.spec import Array

SIDE, MARGIN = 96, 32


def texture(seed: int) -> Array:
    """Smooth random picture ``(3, H, W)`` larger than what is seen of it."""
    rng, side = np.random.default_rng(seed), SIDE + 2 * MARGIN
    layers = [cv2.resize(rng.uniform(0, 1, (n, n, 3)), (side, side), interpolation=cv2.INTER_CUBIC) for n in (10, 40)]
    return np.clip(255 * (0.6 * layers[0] + 0.4 * layers[1]), 0, 255).astype(np.uint8).transpose(2, 0, 1)


def pair(matrix: Array, seed: int) -> tuple[Array, Array, Array]:
    """Two pictures and the exact flow ``(2, H, W)`` between them under an affine map (2, 3) about their middle."""
    whole = texture(seed)
    middle = (whole.shape[-1] - 1) / 2
    about = matrix.copy()
    about[:, 2] += middle - matrix[:, :2] @ [middle, middle]
    moved = cv2.warpAffine(whole.transpose(1, 2, 0), about, whole.shape[1:], flags=cv2.INTER_CUBIC).transpose(2, 0, 1)
    rows, columns = np.mgrid[: whole.shape[1], : whole.shape[2]]
    places = np.stack([columns, rows, np.ones_like(rows)]).astype(float)
    flow = np.einsum("ij,jhw->ihw", about, places) - places[:2]
    window = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    return whole[window], moved[window], flow[window]


def affine(right: float, down: float, turn: float = 0.0, scale: float = 1.0) -> Array:
    cosine, sine = scale * np.cos(turn), scale * np.sin(turn)
    return np.array([[cosine, -sine, right], [sine, cosine, down]])


@pytest.mark.parametrize(
    "matrix",
    [affine(3, 0), affine(-2.5, 4.25), affine(0, 0, 0.05), affine(6, 1, -0.03, 1.04)],
    ids=["right", "oblique", "turn", "all"],
)
def test_known_motion_is_found(matrix: Array) -> None:
    errors, distances = [], []
    for seed in range(3):
        first, second, truth = pair(matrix, seed)
        errors.append(np.linalg.norm(dis_flow(first, second) - truth, axis=0).mean())
        distances.append(np.linalg.norm(truth, axis=0).mean())
    assert np.mean(errors) < 0.1 * np.mean(distances)


def test_nothing_moves_in_the_same_picture() -> None:
    flow = dis_flow(texture(0), texture(0))
    assert flow.shape == (2, *texture(0).shape[1:]) and flow.dtype == np.float32 and abs(flow).max() < 0.05


@pytest.mark.parametrize("second", [np.zeros((3, 96, 64), np.uint8), np.zeros((3, 96, 96), np.float32)])
def test_pictures_that_do_not_fit_are_refused(second: Array) -> None:
    with pytest.raises(ValueError, match=r"two uint8 pictures of the same shape \(3, H, W\)"):
        dis_flow(np.zeros((3, 96, 96), np.uint8), second)
