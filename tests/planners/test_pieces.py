"""Pieces of trajectories: how they are cut, see each other and are joined again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from planners.pieces import Pieces, agreeing, beside, joined, smoothed
from policies.flow import Estimate


@pytest.mark.parametrize("wanted", [2, 6, 16, 19, 20, 21, 26, 28, 33, 61, 151])
def test_pieces_cover_what_is_wanted_with_overlaps_that_the_model_knows(wanted: int) -> None:
    pieces = Pieces.cut(wanted, 20, (4, 10))
    assert pieces.first[0] == 0 and pieces.horizon % 4 == 0 and pieces.horizon <= 20
    assert pieces.total == max(wanted, 8) or wanted <= pieces.total <= wanted + 3
    if len(pieces.first) > 1:
        assert pieces.overlaps().min() >= 4 and pieces.overlaps().max() <= 10


def cut(whole: torch.Tensor, pieces: Pieces) -> torch.Tensor:
    return whole[:, torch.as_tensor(pieces.rows)].flatten(0, 1)


def test_what_is_cut_and_joined_is_as_before_and_neighbours_see_each_other() -> None:
    pieces = Pieces(np.array([0, 7, 14]), 12)
    whole = torch.randn(2, 26, 2)
    x = cut(whole, pieces)
    torch.testing.assert_close(joined(x, pieces), whole)
    seen = beside(x, pieces)
    torch.testing.assert_close(seen[0, 7:], x[1, :5])
    torch.testing.assert_close(seen[4, :5], x[3, 7:])
    assert not seen[0, :7].any() and not seen[2, 5:].any()


def test_estimates_agree_where_pieces_overlap() -> None:
    pieces, x = Pieces(np.array([0, 8]), 12), torch.randn(2, 12, 2)
    field = agreeing(lambda x, t: Estimate(x.sin(), x.cos()), pieces)
    data, noise = field(x, torch.full((2,), 0.4))
    torch.testing.assert_close(data[0, 8:], data[1, :4])
    torch.testing.assert_close(0.4 * data + 0.6 * noise, x)
    torch.testing.assert_close(data[0, :8], x[0, :8].sin())


def test_smoothing_keeps_ends_and_takes_jumps_away() -> None:
    rng = np.random.default_rng(0)
    curve = np.stack([np.linspace(0, 9, 40), np.sin(np.linspace(0, 3, 40))], -1)
    noisy = (curve + rng.normal(0, 0.05, curve.shape))[None]
    smooth = smoothed(noisy)[0]
    np.testing.assert_allclose(smooth[[0, -1]], noisy[0, [0, -1]], atol=1e-3)
    assert np.abs(np.diff(smooth, 3, axis=0)).max() < 0.2 * np.abs(np.diff(noisy[0], 3, axis=0)).max()
    assert np.abs(smooth - curve).mean() < np.abs(noisy[0] - curve).mean()
    np.testing.assert_allclose(smoothed(curve[None, :3]), curve[None, :3], atol=1e-6)
