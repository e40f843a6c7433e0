"""The diffusion transformer: shape, start as zero, caching of the condition."""

import pytest
import torch
from torch import Tensor, nn

from policies.nets.dit import Context, DiT, EncoderBlock, attend, sinusoidal, split_heads

HORIZON, ACTION_DIM, WIDTH, DEPTH, HEADS, TOKENS = 6, 3, 16, 2, 4, 5


class Conditioned(nn.Module):
    """Encoder and transformer together, as a head uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = EncoderBlock(WIDTH, HEADS)
        self.dit = DiT(HORIZON, ACTION_DIM, WIDTH, DEPTH, HEADS)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.dit(x, t, self.context(tokens))

    def context(self, tokens: Tensor) -> Context:
        return self.dit.context(self.encoder(tokens))


def fresh() -> Conditioned:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Conditioned()


def awake() -> Conditioned:
    """A network without the zeros of its initialisation, which would hide everything behind them."""
    network, generator = fresh(), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, HORIZON, ACTION_DIM, generator=generator)
    return x, torch.rand(batch, generator=generator), torch.randn(batch, TOKENS, WIDTH, generator=generator)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_shapes(batch: int, tokens: int) -> None:
    network, (x, t, condition) = awake(), inputs(batch)
    context = network.context(condition[:, :tokens])
    assert context.keys.shape == context.values.shape == (DEPTH, batch, HEADS, tokens, WIDTH // HEADS)
    assert context.modulation.shape == (batch, 1, 9, WIDTH)
    assert network.dit(x, t, context).shape == x.shape


def test_a_fresh_network_predicts_zero() -> None:
    assert (fresh()(*inputs(3)) == 0).all()


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    network, (x, t, tokens) = awake(), inputs(4)
    together = network(x, t, tokens)
    for i in range(4):
        alone = network(x[i : i + 1], t[i : i + 1], tokens[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_a_cached_context_serves_every_step() -> None:
    network, (x, _, tokens) = awake(), inputs(2)
    cached = network.context(tokens)
    for time in (0.0, 0.25, 0.5, 0.75):
        t = torch.full((2,), time)
        assert torch.equal(network.dit(x, t, cached), network(x, t, tokens))
        x = x + 0.25 * network.dit(x, t, cached)


def test_one_observation_serves_a_batch_of_chunks() -> None:
    network, (x, t, tokens) = awake(), inputs(4)
    one = network.context(tokens[:1])
    shared = Context(one.keys.expand(-1, 4, -1, -1, -1), one.values.expand(-1, 4, -1, -1, -1), one.modulation)
    torch.testing.assert_close(network.dit(x, t, shared), network(x, t, tokens[:1].expand(4, -1, -1)))


def test_gradients_reach_every_parameter_once_the_zeros_have_moved() -> None:
    network, (x, t, tokens) = fresh(), inputs(8)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    # The outlet moves first, then the gates behind it, then the branches behind those.
    for _ in range(3):
        optimiser.zero_grad()
        (network(x, t, tokens) - x).square().mean().backward()
        optimiser.step()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_output_depends_on_chunk_time_and_condition(which: int) -> None:
    network, values = awake(), [value.requires_grad_() for value in inputs(1)]
    (gradient,) = torch.autograd.grad(network(*values)[0, 3].sum(), values[which])
    assert (gradient != 0).all()  # also: one action sees the whole chunk


def test_condition_tokens_are_a_set() -> None:
    network, (x, t, tokens) = awake(), inputs(2)
    torch.testing.assert_close(network(x, t, tokens.flip(1)), network(x, t, tokens), rtol=1e-4, atol=1e-5)


def test_attention_averages_values_by_similarity() -> None:
    queries, keys, values = (split_heads(inputs(1)[2] + shift, HEADS) for shift in (0.0, 0.5, 1.0))
    weights = (queries @ keys.mT / (WIDTH // HEADS) ** 0.5).softmax(-1)
    expected = torch.cat(list((weights @ values)[0]), -1)[None]
    torch.testing.assert_close(attend(queries, keys, values), expected)


def test_time_embeddings_tell_close_times_apart() -> None:
    embedded = sinusoidal(torch.linspace(0, 1, 101), WIDTH)
    assert embedded.shape == (101, WIDTH) and embedded.abs().max() <= 1
    distances = torch.cdist(embedded, embedded) + 9 * torch.eye(101)
    assert distances.min() > 0.1


def test_without_blocks_that_do_nothing_the_transformer_is_the_same() -> None:
    torch.manual_seed(0)
    whole = DiT(HORIZON, ACTION_DIM, WIDTH, 4, HEADS, ends=True)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        for block in (whole.blocks[1], whole.blocks[2]):
            for layer in (block.out, block.cross_out, block.mlp[2]):
                nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    half = DiT(HORIZON, ACTION_DIM, WIDTH, 2, HEADS, ends=True)
    half.load_state_dict(whole.shallower(2))
    x, t, tokens = inputs(3)

    def velocity(dit: DiT) -> Tensor:
        return dit(x, t, dit.until(dit.context(tokens), t))

    torch.testing.assert_close(velocity(half), velocity(whole))
    assert all(torch.equal(weight, whole.state_dict()[name]) for name, weight in whole.shallower(4).items())
