"""Image encoders of diffusion policies: ResNet-18 (arXiv 1512.03385) and spatial softmax (arXiv 1509.06113).

Tensor names are torchvision's, which this project does not need. Projects that cut the network into a ``Sequential``
store numbers instead; see `renamed`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from policies.spec import ContractError

CHANNELS = 512


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a ResNet that was cut into a ``Sequential`` of its children the names of `ResNet18`.

    Args:
        weights: Tensors of the backbone alone, named ``0.weight`` ... ``7.1.bn2.bias``.
    """
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    parts = {name: name.partition(".") for name in weights}
    return {children.get(head, head) + dot + tail: weights[name] for name, (head, dot, tail) in parts.items()}


def _norm(channels: int, grouped: bool) -> nn.Module:
    return nn.GroupNorm(channels // 16, channels) if grouped else nn.BatchNorm2d(channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, over ``(B, inputs, H, W)``."""

    def __init__(self, inputs: int, outputs: int, stride: int, grouped: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = _norm(outputs, grouped)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = _norm(outputs, grouped)
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs, grouped)]
        self.downsample = nn.Sequential(*(shortcut if stride > 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(hidden)) + self.downsample(x)).relu()


class ResNet18(nn.Module):
    """Feature map of a ResNet-18, ``(B, channels, H, W)`` to ``(B, 512, ceil(H / 32), ceil(W / 32))``.

    torchvision's whole network ends in an average pooling: ``net(images).mean((2, 3))``.

    Args:
        channels: Channels of the image.
        grouped: Group normalisation in groups of 16 channels as in arXiv 2303.04137; else batch normalisation.
    """

    def __init__(self, channels: int = 3, grouped: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = _norm(64, grouped)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._layer(64, 64, 1, grouped)
        self.layer2 = self._layer(64, 128, 2, grouped)
        self.layer3 = self._layer(128, 256, 2, grouped)
        self.layer4 = self._layer(256, CHANNELS, 2, grouped)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(images)).relu())
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    @staticmethod
    def _layer(inputs: int, outputs: int, stride: int, grouped: bool) -> nn.Sequential:
        return nn.Sequential(
            ResidualBlock(inputs, outputs, stride, grouped), ResidualBlock(outputs, outputs, 1, grouped)
        )


class SpatialSoftmax(nn.Module):
    """Expected image position of each keypoint, ``(B, channels, H, W)`` to ``(B, keypoints, 2)`` as (x, y) in [-1, 1].

    The position grid follows from the size of the map, so it is no tensor of the checkpoint: drop ``pos_grid``,
    ``pos_x`` and ``pos_y``. A softmax temperature other than 1 is the same as dividing ``nets`` by it.

    Args:
        channels: Channels of the feature map.
        keypoints: Channels after a 1x1 convolution, ``nets``.
    """

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)

    def forward(self, features: Tensor) -> Tensor:
        attention = self.nets(features).flatten(2).softmax(-1)
        x, y = (torch.linspace(-1, 1, size, dtype=torch.float64) for size in (features.shape[3], features.shape[2]))
        grid = torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], -1)
        return attention @ grid.to(attention)


def centre_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the middle out of ``(..., H, W)`` images; an odd margin is rounded as torchvision does (half to even).

    Raises:
        ContractError: The image is smaller than the crop.
    """
    margins = [have - want for have, want in zip(images.shape[-2:], size, strict=True)]
    if min(margins) < 0:
        raise ContractError(
            f"images of {tuple(images.shape[-2:])} are smaller than the crop {tuple(size)}; "
            "give images of the size the checkpoint was trained with"
        )
    top, left = (round(margin / 2) for margin in margins)
    return images[..., top : top + size[0], left : left + size[1]]
