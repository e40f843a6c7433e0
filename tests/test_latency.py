"""The latency benchmark, with a small bundle and a small U-Net."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.latency import as_text, compare, make_arms, measure
from policies.export import export
from policies.flowdit import Config, FlowDiT
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import ActionSpec, Feature, Spec

SPEC = Spec(
    (Feature("pose", (3,), "m", "odom"), Feature("scan", (2, 4), "m", "base_link")),
    ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-1.0, -2.0), (1.0, 2.0)),
    rate_hz=10.0,
    history=2,
    horizon=8,
)
CONFIG = Config(width=32, depth=1, heads=2, encoder_depth=1)
WIDTHS, ROUNDS = (8, 16), 3


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(FlowDiT(SPEC, CONFIG), Normaliser.identity(SPEC), steps=3).eval()


@pytest.fixture(scope="module")
def bundle(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "small.kfb"
    export(policy, path, provenance={})
    return path


@pytest.fixture(scope="module")
def result(bundle: Path) -> dict[str, Any]:
    return measure(bundle, lambda *_: None, WIDTHS, ROUNDS)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_every_arm_is_measured(result: dict[str, Any], policy: Policy) -> None:
    arms = result["arms"]
    assert list(arms) == ["bundle", "torch", "unet"]
    assert all(0 < arm["p50_ms"] <= arm["p99_ms"] for arm in arms.values())
    assert [arm["steps"] for arm in arms.values()] == [3, 3, 10]
    assert arms["bundle"]["parameters"] == arms["torch"]["parameters"] == size(policy.head)
    assert all(arm["chunks"] % ROUNDS == 0 for arm in arms.values())


def test_ratios_are_those_of_the_medians(result: dict[str, Any]) -> None:
    assert set(result["ratios"]) == set(result["ranges"]) == set(result["cpu_ratios"])
    for peer in ("unet", "torch"):
        name = f"{peer}_over_bundle"
        expected = result["arms"][peer]["p50_ms"] / result["arms"]["bundle"]["p50_ms"]
        assert result["ratios"][name] == pytest.approx(expected)
        low, high = result["ranges"][name]
        assert 0 < low <= high and result["cpu_ratios"][name] > 0


def test_the_result_is_json_and_the_text_names_every_arm(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    text = as_text(result)
    assert result["cpu"] in text
    assert all(arm["what"] in text for arm in result["arms"].values()) and all(
        name in text for name in result["ratios"]
    )


def test_bundles_take_turns_with_each_other(bundle: Path, policy: Policy, tmp_path: Path) -> None:
    export(policy.with_steps(40), tmp_path / "slow.kfb", provenance={})
    found = compare([bundle, tmp_path / "slow.kfb"], lambda *_: None, ROUNDS)
    quick, slow = found["arms"].values()
    assert [*found["arms"]] == [str(bundle), str(tmp_path / "slow.kfb")] and json.loads(json.dumps(found)) == found
    assert quick["p50_ms"] < slow["p50_ms"] and (quick["steps"], slow["steps"]) == (3, 40)
    assert all(arm["what"] in as_text(found) for arm in found["arms"].values())


def test_progress_ends_and_the_thread_count_comes_back(bundle: Path) -> None:
    usual, done = torch.get_num_threads(), []
    torch.set_num_threads(2)
    measure(bundle, lambda *now: done.append((*now, torch.get_num_threads())), WIDTHS, rounds=1)
    after = torch.get_num_threads()
    torch.set_num_threads(usual)
    assert done == [(0, 1, "", 1), (1, 1, "", 1)] and after == 2


def test_the_torch_arm_is_the_bundles_head(bundle: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    acting: list[Policy] = []
    monkeypatch.setattr(Policy, "act", lambda self, *_: acting.append(self))
    make_arms(bundle, WIDTHS)["torch"].call()
    [rebuilt] = acting
    assert isinstance(rebuilt.head, FlowDiT)
    assert (rebuilt.head.config, rebuilt.spec, rebuilt.steps) == (CONFIG, SPEC, policy.steps)
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(rebuilt.parameters(), policy.parameters(), strict=True)
    )
