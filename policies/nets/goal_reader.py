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
SIDE_WEIGHT = 3.0  # of the squared error of a tangent, or of the logarithm of a distance, beside a cross-entropy
NEAREST, FARTHEST = 0.3, 8.0  # m, limits of a distance
BEARING_NOISE, DISTANCE_NOISE = 0.05, 0.15  # rad, and relative to the distance
OUTLIER = 3.0  # standard deviations
ROUNDS = 3  # of weighing the lines of sight
RIDGE = 1e-3  # 1 / m^2, keeps what is not seen at all in the middle of the path


class Sight(NamedTuple):
    """Where the thing to stop at is seen in each frame, and what was said.

    Args:
        columns: ``(B, F, C + 1)`` logits of the column of each frame, left to right, in which it is; the last one is
            for not being in sight.
        side: ``(B, F)`` tangent of its bearing, positive to the left, where it is in sight.
        distance: ``(B, F)`` logarithm of its distance in m, where it is in sight.
        said: ``(B, width)``.
    """

    columns: Tensor
    side: Tensor
    distance: Tensor
    said: Tensor


class Reading(NamedTuple):
    """What was read.

    Args:
        stop: ``(B, F)`` logits of the frame to stop at.
        sight: Of the thing to stop at.
        words: ``(B, WORDS)`` logits of the words that name it, in whatever order the labels have.
    """

    stop: Tensor
    sight: Sight
    words: Tensor


class GoalReader(nn.Module):
    """Looks for the thing that a sentence says to stop at in every frame of a video, and follows it through time.

    The sentence becomes a query that is compared with all visual tokens of a frame, or finds none in sight. The lines
    of sight that come of it, frame by frame, together say where in the room the thing is. Attention over the frames
    decides on that, beside what the sentence itself says of when to stop.

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
        inputs = encoder.tokens + 1 + MATCHING
        self.sight = nn.Sequential(nn.Linear(inputs, MATCHING), nn.GELU(), nn.Linear(MATCHING, 2))
        self.words = nn.Linear(width, WORDS)
        inputs = math.isqrt(encoder.tokens) + 11
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
        sight = self.look(video, text)
        path = path.repeat_interleave(len(text) // len(path), 0) if len(text) != len(path) else path
        return Reading(self.decide(sight, path), sight, self.words(sight.said))

    def look(self, video: Tensor, text: Tensor) -> Sight:
        """See what is said; takes what `forward` takes."""
        seen = self.seen(self.encoder(video.flatten(0, 1))).unflatten(0, video.shape[:2])
        seen = seen.repeat_interleave(len(text) // len(video), 0) if len(text) != len(video) else seen
        said = self._said(text)
        match = torch.einsum("bd,bftd->bft", self.query(said), seen) / math.sqrt(MATCHING)
        where = torch.cat([match, self.absent.expand(*match.shape[:2], 1)], -1).softmax(-1)
        what = torch.einsum("bft,bftd->bfd", where[..., :-1], seen)
        side, distance = self.sight(torch.cat([where, what], -1)).unbind(-1)
        return Sight(self._columns(match), side, distance, said)

    def decide(self, sight: Sight, path: Tensor) -> Tensor:
        """`Reading.stop` from what was seen and the path of the video, ``(B, F, 3)``.

        What is said stays out of the tokens: it is the same for all frames and would drown what differs.
        """
        columns, side, distance = (part.float() for part in sight[:3])
        chances, place, yaw = columns.softmax(-1), path[..., :2], path[..., 2:]
        seen, angle = 1 - chances[..., -1:], yaw + side[..., None].atan()
        ahead = torch.cat([angle.cos(), angle.sin()], -1)
        to = located(place, ahead, distance.exp().clamp(NEAREST, FARTHEST), seen[..., 0])[:, None] - place
        away = to.norm(dim=-1, keepdim=True)
        geometry = [seen * ahead, yaw.cos(), yaw.sin(), place / FAR, to / FAR, away - away.amin(1, keepdim=True), away]
        tokens = self.line(torch.cat([chances, *geometry], -1)) + self.position
        return self.outlet(self.blocks(tokens))[..., 0] + self.sentence(sight.said)

    def _said(self, text: Tensor) -> Tensor:
        tokens = self.text(text)
        attention = (self.key(tokens) @ self.question / math.sqrt(len(self.question))).softmax(-1)
        return torch.einsum("bn,bnd->bd", attention, tokens)

    def _columns(self, match: Tensor) -> Tensor:
        side = math.isqrt(match.shape[-1])  # a token of the whole picture, where there is one, comes first
        columns = match[..., -(side**2) :].unflatten(-1, (side, side)).logsumexp(-2)
        return torch.cat([columns, self.absent.expand(*columns.shape[:2], 1)], -1)


def located(place: Tensor, ahead: Tensor, distance: Tensor, seen: Tensor) -> Tensor:
    """Where lines of sight meet, ``(B, 2)`` m: least squares with less and less weight on those that miss the others.

    Args:
        place: ``(B, F, 2)`` m, where one looks from.
        ahead: ``(B, F, 2)`` unit vectors to where.
        distance: ``(B, F)`` m, how far away it seems.
        seen: ``(B, F)`` how sure it is that something is seen.
    """
    end, weight = place + distance[..., None] * ahead, seen.square()
    along = (DISTANCE_NOISE * distance) ** -2
    across = (BEARING_NOISE * distance) ** -2
    centre = place.mean(1)
    for _ in range(ROUNDS):
        on, off = (weight * along)[..., None], (weight * across)[..., None]
        # 2 x 2 normal equations by components: P = across * 1 + (along - across) * ahead ahead^T
        xx, xy, yy = ((on - off) * ahead[..., i : i + 1] * ahead[..., j : j + 1] for i, j in ((0, 0), (0, 1), (1, 1)))
        xx, yy = xx + off, yy + off
        x, y = (end - centre[:, None]).split(1, -1)
        right = torch.cat([xx * x + xy * y, xy * x + yy * y], -1).sum(1)
        a, b, d = ((part.sum(1) + RIDGE * one) for part, one in ((xx, 1), (xy, 0), (yy, 1)))
        solved = torch.cat([d * right[:, :1] - b * right[:, 1:], a * right[:, 1:] - b * right[:, :1]], -1)
        found = centre + solved / (a * d - b * b)
        off_by = end - found[:, None]
        forward = (off_by * ahead).sum(-1)
        sideways = off_by.square().sum(-1) - forward.square()
        error = along * forward.square() + across * sideways
        weight = seen.square() / (1 + error / OUTLIER**2) ** 2
    return found


def stop_loss(logits: Tensor, frame: Tensor) -> Tensor:
    """Cross-entropy of logits ``(B, F)`` against where to stop ``(B,)``, a number of frames that need not be whole."""
    last = logits.shape[1] - 1
    before = frame.floor().clamp(0, last - 1)
    share = (frame - before).clamp(0, 1)
    chances = log_softmax(logits.float(), -1)
    at, behind = (chances.gather(1, (before.long() + k)[:, None])[:, 0] for k in (0, 1))
    return -((1 - share) * at + share * behind).mean()


def sight_loss(found: Sight, true: Tensor, fov: float) -> Tensor:
    """Cross-entropy of the columns in which something is seen, and squared errors of where exactly and how far away.

    Args:
        found: What was seen.
        true: ``(B, F, 2)`` bearing in rad to the left, out of sight beyond half the field of view, and distance in m.
        fov: Horizontal field of view in rad.
    """
    bearing, distance = true.unbind(-1)
    columns = found.columns.shape[-1] - 1
    seen = bearing.abs() < fov / 2
    side = torch.where(seen, bearing, 0.0).tan()
    place = (0.5 - 0.5 * side / math.tan(fov / 2)) * columns
    column = torch.where(seen, place.long().clamp(0, columns - 1), columns)
    off = (found.side.float() - side).square() + (found.distance.float() - distance.log()).square()
    missing = torch.where(seen, off, 0.0).sum() / seen.sum().clamp_min(1)
    return cross_entropy(found.columns.float().flatten(0, 1), column.flatten()) + SIDE_WEIGHT * missing


def word_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Binary cross-entropy of `Reading.words` against the words ``(B, N)`` that name the thing to stop at, summed."""
    given = logits[:, : words.shape[-1]].float()
    return binary_cross_entropy_with_logits(given, words, reduction="none").sum(-1).mean()
