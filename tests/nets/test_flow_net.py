"""The optical flow network learns the motion of textures, knows its errors and survives export."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from policies.nets.flow import COARSE, SIDE, FlowNet, Matching, flow_loss

WIDTH, STEPS = 16, 60


def fresh(width: int = WIDTH) -> FlowNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FlowNet(width)


def shifted(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of smooth random pictures, the second shifted by up to 8 px, and their flow."""
    side = SIDE + 32
    layers = [
        contrast * functional.interpolate(torch.rand(size, 3, n, n, generator=generator), (side, side), mode="bicubic")
        for contrast, n in ((0.6, 8), (0.4, 32))
    ]
    shift = 16 * torch.rand(size, 2, generator=generator) - 8
    grid = functional.affine_grid(torch.eye(2, 3).expand(size, -1, -1), (size, 3, side, side), align_corners=False)
    grid = grid[:, 16:-16, 16:-16]
    first, second = (
        functional.grid_sample(sum(layers, torch.zeros(())), grid - move, align_corners=False).clamp(0, 1)
        for move in (0.0, shift[:, None, None] * (2 / side))
    )
    return first, second, shift[:, :, None, None].expand(-1, -1, 24, 24)


@pytest.fixture(scope="module")
def trained() -> FlowNet:
    network, generator = fresh(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(network.parameters(), 4e-3)
    for _ in range(STEPS):
        first, second, truth = shifted(4, generator)
        optimiser.zero_grad()
        flow_loss(*network(first, second), truth).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    return network.eval()


@pytest.mark.parametrize("width", [16, 32])
def test_shapes_and_size(width: int) -> None:
    network = fresh(width)
    flow, confidence = network(*torch.rand(2, 3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    assert flow.shape == (3, 2, 24, 24) and confidence.shape == (3, 1, 24, 24)
    assert confidence.min() > 0 and confidence.max() < 1
    assert sum(parameter.numel() for parameter in network.parameters()) < 500_000


def test_matching_finds_whole_cells_and_stays_inside_the_picture() -> None:
    features = torch.randn(1, 32, COARSE, COARSE, generator=torch.Generator().manual_seed(0))
    match = Matching(COARSE, 2)
    torch.nn.init.constant_(match.sharpness, 100.0)
    chances, flow = match(features, features.roll((1, -2), (2, 3)))  # one down, two to the left
    torch.testing.assert_close(
        flow[:, :, :-1, 2:], torch.tensor([-2.0, 1.0])[:, None, None].expand_as(flow[:, :, 1:, 2:])
    )
    torch.testing.assert_close(chances.sum(1), torch.ones(1, COARSE, COARSE))
    assert (chances.reshape(5, 5, COARSE, COARSE)[:2, :, 0] == 0).all()  # there is nothing above the first row


def test_it_learns_the_motion_of_textures(trained: FlowNet) -> None:
    first, second, truth = shifted(16, torch.Generator().manual_seed(1))
    with torch.no_grad():
        flow, _ = trained(first, second)
    assert (flow - truth).norm(dim=1).mean() < 0.5 * truth.norm(dim=1).mean()


def test_confidence_is_about_as_high_as_the_errors_justify(trained: FlowNet) -> None:
    first, second, truth = shifted(16, torch.Generator().manual_seed(2))
    with torch.no_grad():
        flow, confidence = trained(first, second)
    expected = (1 - confidence) / confidence
    assert 0.5 < expected.mean() / (flow - truth).norm(dim=1).mean() < 2


def test_the_best_confidence_is_the_one_that_expects_the_error() -> None:
    truth = torch.zeros(1, 2, 24, 24)
    predicted = truth + torch.tensor([3.0, 4.0])[:, None, None]
    losses = {
        b: flow_loss(predicted, torch.full((1, 1, 24, 24), 1 / (1 + b)), truth) for b in (1.0, 4.0, 5.0, 6.0, 20.0)
    }
    assert min(losses, key=lambda b: float(losses[b])) == 5.0


def test_confidence_does_not_move_the_flow() -> None:
    truth = torch.zeros(1, 2, 24, 24)
    predicted = torch.ones(1, 2, 24, 24, requires_grad=True)
    gradients = [
        torch.autograd.grad(flow_loss(predicted, torch.full((1, 1, 24, 24), c), truth), predicted)[0]
        for c in (0.1, 0.9)
    ]
    assert torch.equal(*gradients) and (gradients[0] > 0).all()


def test_gradients_reach_every_parameter() -> None:
    network, generator = fresh(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(2):  # the last convolutions begin as zero
        optimiser.zero_grad()
        first, second, truth = shifted(2, generator)
        flow_loss(*network(first, second), truth).backward()
        optimiser.step()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_onnx_computes_the_same(trained: FlowNet) -> None:
    first, second, _ = shifted(2, torch.Generator().manual_seed(3))
    program = torch.onnx.export(trained, (first, second), dynamo=True, verbose=False, input_names=["first", "second"])
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {"first": first.numpy(), "second": second.numpy()})
    with torch.no_grad():
        expected = trained.eval()(first, second)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-3, atol=1e-3)
