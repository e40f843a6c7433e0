"""The conditional U-Net: shape, size and what its output depends on."""

import pytest
import torch
from torch import Tensor

from policies.nets.unet1d import UNet1d

ACTION_DIM, CONDITION_DIM, WIDTHS = 3, 5, (16, 24, 32)


def make() -> UNet1d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet1d(ACTION_DIM, CONDITION_DIM, WIDTHS)


def inputs(batch: int, horizon: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, horizon, ACTION_DIM, generator=generator)
    return x, torch.rand(batch, generator=generator), torch.randn(batch, CONDITION_DIM, generator=generator)


@pytest.mark.parametrize("widths", [(8,), (8, 16), (16, 24, 32), (8, 8, 8, 16)])
@pytest.mark.parametrize("horizon", [8, 16, 32])
def test_the_output_is_shaped_like_the_chunk(widths: tuple[int, ...], horizon: int) -> None:
    x, t, condition = inputs(2, horizon)
    assert UNet1d(ACTION_DIM, CONDITION_DIM, widths)(x, t, condition).shape == x.shape


def test_a_horizon_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon 10 is no multiple of 4"):
        make()(*inputs(1, horizon=10))


@pytest.mark.parametrize("action_dim", [3, 10])
def test_the_default_has_the_usual_size(action_dim: int) -> None:
    with torch.device("meta"):
        network = UNet1d(action_dim, 150)
    assert 60e6 < sum(parameter.numel() for parameter in network.parameters()) < 70e6


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    network, (x, t, condition) = make().eval(), inputs(4)
    together = network(x, t, condition)
    for i in range(4):
        alone = network(x[i : i + 1], t[i : i + 1], condition[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_from_the_first_step() -> None:
    network, (x, t, condition) = make(), inputs(4)
    network(x, t, condition).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_output_depends_on_chunk_time_and_condition(which: int) -> None:
    network, values = make(), [value.requires_grad_() for value in inputs(1)]
    (gradient,) = torch.autograd.grad(network(*values)[0, 7].sum(), values[which])
    assert (gradient != 0).all()  # also: one action sees the whole chunk


def test_it_survives_export() -> None:
    network, values = make().eval(), inputs(1)
    exported = torch.export.export(network, values).module()
    torch.testing.assert_close(exported(*values), network(*values))
