import numpy as np
import pytest
import torch

from policies.norm import ACTION, Normaliser
from policies.spec import ActionSpec, ContractError, Feature, Spec

SPEC = Spec(
    (Feature("goal", (2,), "m", "base_link"), Feature("flag", (1,), "1", "base_link")),
    ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-0.3, -1.0), (0.6, 1.0)),
    10.0,
    1,
    4,
)
SAMPLES = {"goal": np.array([[-2.0, 0.0], [4.0, 1.0], [1.0, 0.5]]), "flag": np.ones((3, 1))}


def test_data_span_minus_one_to_one() -> None:
    normal = Normaliser.fit(SPEC, SAMPLES).normalise("goal", torch.tensor(SAMPLES["goal"]))
    assert normal.amin(0).tolist() == [-1, -1]
    assert normal.amax(0).tolist() == [1, 1]


def test_actions_use_the_limits_of_the_contract() -> None:
    normaliser = Normaliser.fit(SPEC, SAMPLES)
    torch.testing.assert_close(normaliser.normalise(ACTION, torch.tensor([0.6, -1.0])), torch.tensor([1.0, -1.0]))


def test_restoring_undoes_normalising() -> None:
    normaliser, value = Normaliser.fit(SPEC, SAMPLES), torch.randn(5, 3, 2)
    torch.testing.assert_close(normaliser.restore("goal", normaliser.normalise("goal", value)), value)


def test_a_constant_feature_keeps_its_unit() -> None:
    normaliser = Normaliser.fit(SPEC, SAMPLES)
    assert normaliser.normalise("flag", torch.tensor([3.0])).item() == 2.0


def test_keys_are_strict() -> None:
    normaliser = Normaliser.fit(SPEC, SAMPLES)
    with pytest.raises(ContractError, match="goal"):
        normaliser({"goal": torch.zeros(1, 2)})
    with pytest.raises(ContractError, match="speed"):
        normaliser.normalise("speed", torch.zeros(1))
    with pytest.raises(ContractError, match="flag"):
        Normaliser.fit(SPEC, {"goal": SAMPLES["goal"]})


def test_statistics_travel_with_the_weights() -> None:
    fitted, blank = Normaliser.fit(SPEC, SAMPLES), Normaliser.identity(SPEC)
    blank.load_state_dict(fitted.state_dict())
    assert blank.statistics() == fitted.statistics()
