"""Small optical flow network: matching from coarse to fine, as in PWC-Net (Sun et al., arXiv 1709.02371).

At each of two levels a cell is compared with its neighbourhood in the other picture. Where it probably went is a mean
over that neighbourhood, which needs no training to be sensible; convolutions mend it from there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 96  # px of the pictures
FINE, COARSE = SIDE // 4, SIDE // 8  # cells per side of the two levels
FINE_RADIUS, COARSE_RADIUS = 3, 4  # cells a match may lie away: 12 px and, before that, 32 px
LOGIT_LIMIT = 5.0  # expected errors between 0.007 px and 150 px


class Matching(nn.Module):
    """Similarity of each cell to the cells around it in another feature map.

    Args:
        side: Cells per side.
        radius: Largest distance in cells, along each axis.
    """

    index: Tensor
    outside: Tensor
    offsets: Tensor

    def __init__(self, side: int, radius: int) -> None:
        super().__init__()
        span, cells = torch.arange(-radius, radius + 1), torch.arange(side * side)
        down, right = (offset.flatten() for offset in torch.meshgrid(span, span, indexing="ij"))
        row, column = (cells // side)[:, None] + down, (cells % side)[:, None] + right
        inside = (row.clamp(0, side - 1) == row) & (column.clamp(0, side - 1) == column)
        self.register_buffer("index", torch.where(inside, row * side + column, 0)[None], persistent=False)
        self.register_buffer("outside", torch.where(inside, 0.0, -1e4)[None], persistent=False)
        self.register_buffer("offsets", torch.stack([right, down], -1).float(), persistent=False)
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Compare two feature maps ``(B, C, side, side)``.

        Returns:
            The chances ``(B, K, side, side)`` that a cell went to each of its K neighbours, and the mean displacement
            ``(B, 2, side, side)`` in cells, right and down.
        """
        batch, _, side, _ = first.shape
        common = 0.5 * (first + second).mean((2, 3), keepdim=True)  # what all cells share tells none of them
        one, other = (functional.normalize((features - common).flatten(2)) for features in (first, second))
        every = one.mT @ other
        near = every.gather(2, self.index.expand(batch, -1, -1))
        chances = (self.sharpness * near + self.outside).softmax(-1)
        return _picture(chances, side), _picture(chances @ self.offsets, side)


def _picture(cells: Tensor, side: int) -> Tensor:
    """Reshape ``(B, side * side, C)`` to ``(B, C, side, side)``."""
    return cells.mT.unflatten(2, (side, side))


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def _mender(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Convolutions that begin as zero: at first the match is all there is."""
    last = _conv(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # it has a bias
    return nn.Sequential(_conv(inputs, hidden), nn.ReLU(), _conv(hidden, hidden), nn.ReLU(), last)


class FlowNet(nn.Module):
    """Maps two pictures to the flow between them and how far it can be trusted.

    Args:
        width: Channels of the fine level, a multiple of 8; the coarse level has twice as many.
    """

    grid: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            _conv(3, width // 2, 2, 5), nn.ReLU(), _conv(width // 2, width, 2), nn.GroupNorm(4, width), nn.ReLU()
        )
        self.coarse = nn.Sequential(
            _conv(width, 2 * width, 2), nn.GroupNorm(4, 2 * width), nn.ReLU(), _conv(2 * width, 2 * width)
        )
        self.detail, self.context = _conv(width, width), nn.Conv2d(2 * width, width, 1)
        self.match_coarse, self.match_fine = Matching(COARSE, COARSE_RADIUS), Matching(FINE, FINE_RADIUS)
        coarse, fine = (2 * radius + 1 for radius in (COARSE_RADIUS, FINE_RADIUS))
        self.mend_coarse = _mender(coarse**2 + 2 * width + 2, 2 * width, 2)
        self.mend_fine = _mender(fine**2 + width + 2, width, 3)
        self.register_buffer("grid", _sampling_grid(), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate the flow from ``first`` to ``second``, ``(B, 3, 96, 96)`` in [0, 1].

        Returns:
            flow ``(B, 2, 24, 24)``, mean of each cell in px of the full picture, right and down; and confidence
            ``(B, 1, 24, 24)`` in (0, 1), which is 1 / (1 + b) where an error of b px is to be expected.
        """
        fine = self.fine(2 * torch.cat([first, second]) - 1)
        coarse = self.coarse(fine)
        fine = self.detail(fine) + functional.interpolate(self.context(coarse), scale_factor=2.0)
        (one, two), (one_coarse, two_coarse) = fine.chunk(2), coarse.chunk(2)
        flow = self._refine(self.match_coarse, self.mend_coarse, one_coarse, two_coarse)[:, :2]
        flow = 2 * functional.interpolate(flow, scale_factor=2.0, mode="bilinear")
        mended = self._refine(self.match_fine, self.mend_fine, one, self._warp(two, flow)).float()
        return 4 * (flow + mended[:, :2]), mended[:, 2:].clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid()

    def _refine(self, match: nn.Module, mend: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        """Flow in cells, and what else the mender says."""
        chances, flow = match(first, second)
        mended = mend(torch.cat([chances, first, flow], 1))
        return torch.cat([flow + mended[:, :2], mended[:, 2:]], 1)

    def _warp(self, features: Tensor, flow: Tensor) -> Tensor:
        """Fetch each cell from where the flow in cells says it went."""
        there = self.grid + flow.permute(0, 2, 3, 1) * (2 / FINE)
        return functional.grid_sample(features, there, padding_mode="border", align_corners=False)


def _sampling_grid() -> Tensor:
    """Places ``(1, 24, 24, 2)`` of the fine cells as `grid_sample` counts them, -1 to 1 across the picture."""
    along = (2 * torch.arange(FINE) + 1) / FINE - 1
    down, right = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([right, down], -1)[None]


def flow_loss(predicted: Tensor, confidence: Tensor, truth: Tensor, share: Tensor | None = None) -> Tensor:
    """End-point error, plus the negative log-likelihood that the confidence gives to it (a Laplace distribution).

    The second part does not move the flow: otherwise it would settle for being wrong where it is unsure.

    Args:
        predicted: ``(B, 2, 24, 24)`` px.
        confidence: ``(B, 1, 24, 24)`` in (0, 1).
        truth: Like ``predicted``.
        share: ``(B, 1, 24, 24)`` in [0, 1], how much each cell counts; all alike by default.
    """
    error = ((predicted - truth).square().sum(1, keepdim=True) + 1e-4).sqrt()
    share = torch.ones_like(error) if share is None else share
    scale = (1 - confidence) / confidence
    return (share * (error + error.detach() / scale + scale.log())).sum() / share.sum().clamp_min(1)
