"""The shared U-Net: the tensor names of the other two projects, its published size, what it refuses."""

import pytest
import torch

from policies.foreign.unet import ConditionalUNet1d, renamed
from policies.spec import ContractError


def test_the_names_of_diffusion_policy_and_robomimic_are_translated_and_ours_kept() -> None:
    ours = ConditionalUNet1d(2, 5, (8, 16, 24), 8).state_dict()
    table = {"conv1.": "blocks.0.", "conv2.": "blocks.1."}
    theirs = {}
    for name, value in ours.items():
        new = name
        for mine, other in table.items():
            new = new.replace(mine, other)
        parts = new.split(".")
        if parts[0] in ("down_modules", "up_modules") and parts[2] == "2":
            parts.insert(3, "conv")
        theirs[".".join(parts)] = value
    assert "down_modules.0.2.conv.weight" in theirs and "mid_modules.1.blocks.0.block.1.bias" in theirs
    for names in (theirs, ours):
        assert {name: value.data_ptr() for name, value in renamed(names).items()} == {
            name: value.data_ptr() for name, value in ours.items()
        }


def test_the_usual_network_has_its_published_size() -> None:
    with torch.device("meta"):
        network = ConditionalUNet1d(2, 132, (512, 1024, 2048), 128)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(251e6, rel=0.01)


@pytest.mark.parametrize("scaled", [True, False])
def test_one_sample_alone_equals_the_same_sample_in_a_batch(scaled: bool) -> None:
    torch.manual_seed(0)
    network, generator = ConditionalUNet1d(2, 5, (8, 16), 8, scaled=scaled), torch.Generator().manual_seed(0)
    x, condition = torch.randn(3, 8, 2, generator=generator), torch.randn(3, 5, generator=generator)
    level = torch.tensor([0, 50, 99])
    with torch.inference_mode():
        together = network(x, level, condition)
        alone = network(x[1:2], level[1:2], condition[1:2])
    torch.testing.assert_close(alone[0], together[1], rtol=1e-5, atol=1e-5)


def test_a_chunk_it_cannot_halve_is_refused() -> None:
    network = ConditionalUNet1d(2, 5, (8, 16, 24), 8)
    with pytest.raises(ContractError, match="horizon 10 is no multiple of 4"):
        network(torch.zeros(1, 10, 2), torch.zeros(1, dtype=torch.long), torch.zeros(1, 5))
