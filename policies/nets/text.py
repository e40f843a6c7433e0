"""Sentences to tokens, from their bytes: no vocabulary, no tokeniser, nothing to download."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.nets.dit import EncoderBlock

BYTES_PER_TOKEN = 4


class TextEncoder(nn.Module):
    """Convolutions over the bytes of a sentence, then attention; trained with the policy.

    Args:
        length: Bytes of a sentence with its padding, a multiple of 4.
        width: Width of a token D.
        depth: Attention blocks.
        heads: Attention heads.
    """

    def __init__(self, length: int, width: int, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        if length % BYTES_PER_TOKEN:
            raise ValueError(f"sentences of {length} bytes cannot be cut into tokens of {BYTES_PER_TOKEN}")
        self.length, self.tokens, self.width = length, length // BYTES_PER_TOKEN, width
        self.bytes = nn.Embedding(256, width // 2, padding_idx=0)
        self.body = nn.Sequential(
            nn.Conv1d(width // 2, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, stride=2, padding=2),
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, self.tokens, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))

    def forward(self, text: Tensor) -> Tensor:
        """Encode UTF-8 bytes ``(B, length)`` uint8, padded with 0, as tokens ``(B, length / 4, width)``."""
        features = self.body(self.bytes(text.long()).mT)
        return self.blocks(features.mT + self.position)
