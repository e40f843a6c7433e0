"""Image encoders of foreign policies: names, sizes, the crop and the positions a spatial softmax finds."""

import pytest
import torch

from policies.foreign.vision import ResNet18, SpatialSoftmax, centre_crop, renamed
from policies.spec import ContractError


def test_tensor_names_and_size_are_torchvisions() -> None:
    with torch.device("meta"):
        weights = ResNet18(grouped=False).state_dict()
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.1.weight", "layer4.1.bn2.bias"} <= set(weights)
    assert "layer1.0.downsample.0.weight" not in weights
    # torchvision's 11,689,512 parameters without the classifier's 513,000
    trained = [value for name, value in weights.items() if "running" not in name and "num_batches" not in name]
    assert sum(value.numel() for value in trained) == 11_176_512


def test_a_network_cut_into_a_sequential_is_renamed() -> None:
    network = ResNet18()
    children = [network.conv1, network.bn1, torch.nn.ReLU(), network.maxpool]
    layers = [network.layer1, network.layer2, network.layer3, network.layer4]
    cut = torch.nn.Sequential(*children, *layers)
    assert set(renamed(cut.state_dict())) == set(network.state_dict())
    assert renamed(cut.state_dict())["layer3.0.conv1.weight"].data_ptr() == network.layer3[0].conv1.weight.data_ptr()


@pytest.mark.parametrize("size", [(33, 64), (76, 84), (65, 97)])
def test_the_map_is_a_thirty_second_of_the_image_rounded_up(size: tuple[int, int]) -> None:
    height, width = (-(-side // 32) for side in size)
    with torch.inference_mode():
        assert ResNet18(channels=1)(torch.zeros(1, 1, *size)).shape == (1, 512, height, width)


def test_a_keypoint_is_where_its_channel_is_bright() -> None:
    pool, features = SpatialSoftmax(2, 2), torch.zeros(1, 2, 3, 5)
    features[0, 0, 2, 1], features[0, 1, 0, 4] = 100, 100
    with torch.no_grad():
        pool.nets.weight.copy_(torch.eye(2)[..., None, None])
        pool.nets.bias.zero_()
        torch.testing.assert_close(pool(features), torch.tensor([[[-0.5, 1.0], [1.0, -1.0]]]))
        assert pool(torch.zeros(1, 2, 3, 5)).abs().max() < 1e-6


@pytest.mark.parametrize(("size", "first"), [((4, 4), [2, 3]), ((7, 6), [0, 2]), ((5, 9), [2, 0]), ((8, 10), [0, 0])])
def test_the_crop_is_the_middle_and_rounds_half_margins_to_even(size: tuple[int, int], first: list[int]) -> None:
    image = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij"))
    cropped = centre_crop(image, size)
    assert cropped.shape == (2, *size) and cropped[:, 0, 0].tolist() == first


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ContractError, match=r"\(8, 10\) are smaller than the crop \(9, 9\)"):
        centre_crop(torch.zeros(1, 8, 10), (9, 9))
