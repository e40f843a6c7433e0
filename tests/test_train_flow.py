"""Training of the flow network learns, and continues after an interruption as if there had been none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from policies.learned_flow import learned_flow
from policies.spec import Array, ContractError
from policies.train_flow import FlowRecipe, FlowTrainer

RECIPE = FlowRecipe(steps=6, batch=4, warmup=2, report_every=3)
SHIFT = 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shifted(seed: int, count: int = 8) -> dict[str, Array]:
    """Pairs of coarse noise, the second moved by whole pixels."""
    rng = np.random.default_rng(seed)
    moved = rng.integers(-SHIFT, SHIFT + 1, (count, 2))
    whole = rng.integers(0, 256, (count, 3, 28, 28), np.uint8).repeat(4, 2).repeat(4, 3)
    first = whole[:, :, SHIFT:-SHIFT, SHIFT:-SHIFT]
    second = [
        picture[:, SHIFT - y : SHIFT - y + 96, SHIFT - x : SHIFT - x + 96]
        for picture, (x, y) in zip(whole, moved, strict=True)
    ]
    flow = np.broadcast_to(moved[:, :, None, None], (count, 2, 24, 24)).astype(np.float32)
    return {"first": first, "second": np.stack(second), "flow": flow, "share": np.ones((count, 24, 24), np.float32)}


def train(out: Path, recipe: FlowRecipe, steps: int | None = None, resume: bool = False) -> list[dict[str, float]]:
    """Train, up to an interruption if there is one."""
    trainer, entries = FlowTrainer(out, recipe, shifted(0), shifted(1), resume), []

    def progress(entry: dict[str, float]) -> None:
        entries.append(entry)
        if entry["step"] == steps:
            raise KeyboardInterrupt

    if steps is None:
        trainer.run(progress)
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(progress)
    return entries


def test_a_few_steps_lower_the_loss(tmp_path: Path) -> None:
    entries = train(tmp_path, replace(RECIPE, steps=40, report_every=10))
    assert [entry["step"] for entry in entries] == [10, 20, 30, 40]
    assert entries[-1]["loss"] < 0.8 * entries[0]["loss"]
    assert entries[-1]["valid_px"] < np.linalg.norm(shifted(1)["flow"], axis=1).mean()


def test_an_interrupted_run_continues_exactly(tmp_path: Path) -> None:
    train(tmp_path / "whole", RECIPE)
    train(tmp_path / "cut", RECIPE, steps=3)
    train(tmp_path / "cut", RECIPE, resume=True)
    whole, cut = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_run_is_neither_overwritten_nor_continued_with_something_else(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="holds no run already; start without --resume"):
        train(tmp_path, RECIPE, resume=True)
    train(tmp_path, RECIPE, steps=3)
    with pytest.raises(ContractError, match="holds a run already; continue it with --resume"):
        train(tmp_path, RECIPE)
    with pytest.raises(ContractError, match=r"recipe was .*\"steps\": 6.*, now it is .*\"steps\": 7"):
        train(tmp_path, replace(RECIPE, steps=7), resume=True)
    with pytest.raises(ContractError, match="pairs was"):
        FlowTrainer(tmp_path, RECIPE, shifted(2), shifted(1), resume=True)


def test_cells_without_flow_teach_nothing(tmp_path: Path) -> None:
    pairs = shifted(0)
    pairs["share"][:, :, 12:], pairs["share"][:, :, :12] = 0, 0.5
    wrong = {**pairs, "flow": np.where(pairs["share"][:, None] > 0, pairs["flow"], 1e4).astype(np.float32)}
    losses = []
    for name, data in (("right", pairs), ("wrong", wrong)):
        FlowTrainer(tmp_path / name, RECIPE, data, data).run(
            lambda entry: losses.append((entry["loss"], entry["valid_px"]))
        )
    assert losses[:2] == losses[2:]


def test_the_trained_network_is_used_by_its_path(tmp_path: Path) -> None:
    train(tmp_path, RECIPE)
    pairs = shifted(1)
    flow = learned_flow(pairs["first"][0], pairs["second"][0], tmp_path / "flow_net.safetensors")
    assert flow.shape == (2, 96, 96) and flow.dtype == np.float32 and np.isfinite(flow).all()
