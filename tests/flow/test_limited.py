"""Limits on value and rate at every denoising step."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from policies.flow import Field, certain, limited, solve, straight, uniform
from policies.spec import Array

BOX = torch.ones(2, dtype=torch.float64)
STEP = torch.tensor([0.3, 0.1], dtype=torch.float64)


def keeping(chunk: Tensor, known: Tensor | None = None, count: int = 0) -> Field:
    """The limited field that is sure of a chunk; so many actions at the beginning are known."""
    mask = (torch.arange(chunk.shape[1]) < count).expand(chunk.shape[:2])
    held = chunk if known is None else known
    return limited(certain(chunk), -BOX.to(chunk), BOX.to(chunk), STEP.to(chunk), held, mask)


def kept(chunk: Tensor, known: Tensor | None = None, count: int = 0) -> Tensor:
    return keeping(chunk, known, count)(torch.zeros_like(chunk), torch.zeros(len(chunk))).data


def best_deviation(values: Array, step: float) -> float:
    """Smallest largest deviation of a chunk within the limits from given values, by linear programming."""
    n = len(values)
    eye, ones = np.eye(n), np.ones((n, 1))
    change = np.diff(eye, axis=0)
    rows = np.block([[eye, -ones], [-eye, -ones], [change, np.zeros((n - 1, 1))], [-change, np.zeros((n - 1, 1))]])
    bounds = np.concatenate([values, -values, np.full(2 * n - 2, step)])
    cost = np.append(np.zeros(n), 1.0)
    return float(linprog(cost, rows, bounds, bounds=[(-1, 1)] * n + [(0, None)]).fun)


@pytest.mark.parametrize("size", [0.2, 3.0])
def test_chunks_keep_both_limits_and_deviate_as_little_as_possible(size: float) -> None:
    chunk = size * torch.randn(5, 9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = kept(chunk)
    assert found.abs().max() <= 1 + 1e-12
    assert (found.diff(dim=1).abs() <= STEP + 1e-12).all()
    for row in range(5):
        for axis in range(2):
            wanted = chunk[row, :, axis].clamp(-1, 1)
            deviation = float((found[row, :, axis] - wanted).abs().max())
            assert deviation == pytest.approx(best_deviation(wanted.numpy(), float(STEP[axis])), abs=1e-6)


def test_what_is_within_the_limits_stays() -> None:
    chunk = torch.linspace(-0.5, 0.2, 8, dtype=torch.float64)[None, :, None].expand(1, 8, 2)
    torch.testing.assert_close(kept(chunk), chunk)


def test_what_is_known_stays_and_the_rest_is_near_it() -> None:
    generator = torch.Generator().manual_seed(0)
    chunk = 3 * torch.randn(5, 9, 2, generator=generator, dtype=torch.float64)
    known = kept(3 * torch.randn(5, 9, 2, generator=generator, dtype=torch.float64))
    found = kept(chunk, known, count=3)
    torch.testing.assert_close(found[:, :3], known[:, :3])
    assert (found.diff(dim=1).abs() <= STEP + 1e-12).all() and not torch.allclose(found[:, 3:], known[:, 3:])
    near = kept(known, known, count=3)
    torch.testing.assert_close(near, known)


def test_a_sampled_chunk_is_within_the_limits() -> None:
    target = torch.tensor([-1.0, 1.0] * 4)[None, :, None].expand(1, 8, 2)
    field = keeping(target)
    found = solve(straight(field), torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(1)), uniform(4))
    assert (found.diff(dim=1).abs() <= STEP + 1e-6).all()
