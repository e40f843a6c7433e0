"""Reads a goal: at which frame of a video does a sentence say to stop?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, log_softmax

from policies.nets.dit import EncoderBlock
from policies.nets.text import TextEncoder
from policies.nets.vision import VisualEncoder

MATCHING = 64  # width in which what is said is compared with what is seen
FAR = 3.0  # m, that count as one
WORDS = 32  # that labels can tell apart, at most
SIDE_WEIGHT = 3.0  # of the squared error of a tangent beside a cross-entropy


class Reading(NamedTuple):
    """What was read.

    Args:
        stop: ``(B, F)`` logits of the frame to stop at.
        columns: ``(B, F, C + 1)`` logits of the column of each frame, left to right, in which the thing to stop at is;
            the last one is for not being in sight.
        side: ``(B, F)`` tangent of its bearing, positive to the left, where it is in sight.
        words: ``(B, WORDS)`` logits of the words that name it, in whatever order the labels have.
    """

    stop: Tensor
    columns: Tensor
    side: Tensor
    words: Tensor


class GoalReader(nn.Module):
    """Looks for the thing that a sentence says to stop at in every frame of a video, and follows it through time.

    The sentence becomes a query that is compared with all visual tokens of a frame, or finds none in sight. The lines
    of sight that come of it, frame by frame, are what attention over the frames decides on, beside what the sentence
    itself says of when to stop.

    Args:
        encoder: Of the pictures.
        frames: Pictures of a video F.
        length: Bytes of a sentence with its padding.
        width: Token width.
        depth: Attention blocks over the frames.
        heads: Attention heads.
    """

    def __init__(
        self, encoder: VisualEncoder, frames: int, length: int, width: int = 96, depth: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        self.frames = frames
        self.encoder, self.text = encoder, TextEncoder(length, width, heads=heads)
        self.seen = nn.Sequential(nn.ReLU(), nn.Linear(encoder.width, MATCHING))
        self.question = nn.Parameter(0.5 * torch.randn(width))
        self.key, self.query = nn.Linear(width, width), nn.Linear(width, MATCHING)
        self.absent = nn.Parameter(torch.full((1,), 3.0))
        self.side, self.words = nn.Linear(encoder.tokens + 1 + MATCHING, 1), nn.Linear(width, WORDS)
        inputs = math.isqrt(encoder.tokens) + 9
        self.line = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))
        self.sentence = nn.Linear(width, frames)
        self.position = nn.Parameter(0.5 * torch.randn(1, frames, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.outlet = nn.Linear(width, 1)

    def forward(self, video: Tensor, text: Tensor, path: Tensor) -> Reading:
        """Read goals.

        Args:
            video: ``(n, F, 3, S, S)`` uint8; one video may come with several sentences that follow each other.
            text: ``(B, length)`` uint8.
            path: ``(n, F, 3)`` x, y in m and yaw in rad where the frames were taken, seen from the first one.
        """
        columns, side, said = self.look(video, text)
        path = path.repeat_interleave(len(text) // len(path), 0) if len(text) != len(path) else path
        return Reading(self.decide(columns, side, said, path), columns, side, self.words(said))

    def look(self, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`Reading.columns`, `Reading.side` and what is said, ``(B, width)``."""
        seen = self.seen(self.encoder(video.flatten(0, 1))).unflatten(0, video.shape[:2])
        seen = seen.repeat_interleave(len(text) // len(video), 0) if len(text) != len(video) else seen
        said = self._said(text)
        match = torch.einsum("bd,bftd->bft", self.query(said), seen) / math.sqrt(MATCHING)
        where = torch.cat([match, self.absent.expand(*match.shape[:2], 1)], -1).softmax(-1)
        what = torch.einsum("bft,bftd->bfd", where[..., :-1], seen)
        return self._columns(match), self.side(torch.cat([where, what], -1))[..., 0], said

    def decide(self, columns: Tensor, side: Tensor, said: Tensor, path: Tensor) -> Tensor:
        """`Reading.stop` from what `look` returned and the path of the video, ``(B, F, 3)``.

        What is said stays out of the tokens: it is the same for all frames and would drown what differs.
        """
        chances = columns.softmax(-1)
        seen, place, yaw = 1 - chances[..., -1:], path[..., :2] / FAR, path[..., 2:]
        sight = yaw + side[..., None].atan()
        across = place[..., 1:] * sight.cos() - place[..., :1] * sight.sin()  # how far the line passes the first frame
        line = torch.cat([side[..., None], sight.cos(), sight.sin(), across], -1) * seen
        tokens = self.line(torch.cat([chances, line, place, yaw.cos(), yaw.sin()], -1)) + self.position
        return self.outlet(self.blocks(tokens))[..., 0] + self.sentence(said)

    def _said(self, text: Tensor) -> Tensor:
        tokens = self.text(text)
        attention = (self.key(tokens) @ self.question / math.sqrt(len(self.question))).softmax(-1)
        return torch.einsum("bn,bnd->bd", attention, tokens)

    def _columns(self, match: Tensor) -> Tensor:
        side = math.isqrt(match.shape[-1])  # a token of the whole picture, where there is one, comes first
        columns = match[..., -(side**2) :].unflatten(-1, (side, side)).logsumexp(-2)
        return torch.cat([columns, self.absent.expand(*columns.shape[:2], 1)], -1)


def stop_loss(logits: Tensor, frame: Tensor) -> Tensor:
    """Cross-entropy of logits ``(B, F)`` against where to stop ``(B,)``, a number of frames that need not be whole."""
    last = logits.shape[1] - 1
    before = frame.floor().clamp(0, last - 1)
    share = (frame - before).clamp(0, 1)
    chances = log_softmax(logits.float(), -1)
    at, behind = (chances.gather(1, (before.long() + k)[:, None])[:, 0] for k in (0, 1))
    return -((1 - share) * at + share * behind).mean()


def sight_loss(found: Reading, bearing: Tensor, fov: float) -> Tensor:
    """Cross-entropy of the columns in which something is seen, and squared error of where exactly.

    Args:
        found: What was read.
        bearing: ``(B, F)`` rad to the left; out of sight beyond half the field of view.
        fov: Horizontal field of view in rad.
    """
    columns = found.columns.shape[-1] - 1
    seen = bearing.abs() < fov / 2
    side = torch.where(seen, bearing, 0.0).tan()
    place = (0.5 - 0.5 * side / math.tan(fov / 2)) * columns
    column = torch.where(seen, place.long().clamp(0, columns - 1), columns)
    missing = torch.where(seen, found.side.float() - side, 0.0).square().sum() / seen.sum().clamp_min(1)
    return cross_entropy(found.columns.float().flatten(0, 1), column.flatten()) + SIDE_WEIGHT * missing


def word_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Binary cross-entropy of `Reading.words` against the words ``(B, N)`` that name the thing to stop at, summed."""
    given = logits[:, : words.shape[-1]].float()
    return binary_cross_entropy_with_logits(given, words, reduction="none").sum(-1).mean()
