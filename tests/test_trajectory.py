"""The model of short pieces of trajectories, and its training."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from planners.train_trajectory import TrajectoryRecipe, TrajectoryTrainer, config_for, trimmed
from policies.spec import Array, ContractError
from policies.training import STATE
from policies.trajectory import CLEANEST, Ends, TrajectoryConfig, TrajectoryModel

CONFIG = TrajectoryConfig((10.0, 5.0), 20.0, widths=(16, 16, 16))
RECIPE = TrajectoryRecipe(steps=12, batch=16, warmup=2, report_every=4)


def model(seed: int = 0) -> TrajectoryModel:
    torch.manual_seed(seed)
    return TrajectoryModel(CONFIG).eval()


def ends(batch: int, horizon: int = 12) -> Ends:
    return Ends(torch.rand(batch, horizon, 2), *torch.zeros(1, batch, horizon, 1), torch.rand(batch, horizon, 2),
                torch.zeros(batch, horizon, 1))  # fmt: skip


def circles(count: int = 12, length: int = 120) -> list[Array]:
    """Trajectories that never rest."""
    angles = np.linspace(0, 6, length)
    return [
        np.stack([8 * np.cos(angles + k), (2 + k / 4) * np.sin(angles + k)], -1).astype(np.float32)
        for k in range(count)
    ]


def test_units_go_there_and_back() -> None:
    places = torch.rand(3, 8, 2) * 30
    torch.testing.assert_close(model().restore(model().normal(places)), places)
    assert model().normal(torch.tensor([30.0, 5.0])).tolist() == [1.0, 0.0]


def test_the_estimate_mixes_to_x_and_holds_what_is_given() -> None:
    given = torch.zeros(4, 12, 1)
    given[:, 0] = given[:, -1] = 1
    known = ends(4)._replace(given=given)
    x, t = torch.randn(4, 12, 2), torch.tensor([0.0, 0.3, 0.7, 0.95])
    data, noise = model().estimate(x, t, known)
    mixed = t[:, None, None] * data + (1 - t[:, None, None]) * noise
    torch.testing.assert_close(mixed, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(data[:, [0, -1]], known.places[:, [0, -1]])


def test_what_is_not_given_or_shared_does_not_matter_and_what_is_does() -> None:
    x, t, known = torch.randn(2, 12, 2), torch.full((2,), 0.5), ends(2)
    base = model().estimate(x, t, known).data
    other = known._replace(places=known.places + 1, beside=known.beside + 1)
    torch.testing.assert_close(model().estimate(x, t, other).data, base)
    flags = torch.zeros(2, 12, 1)
    flags[:, :4] = 1
    for part in ("given", "shared"):
        changed = [model().estimate(x, t, one._replace(**{part: flags})).data[:, 6:] for one in (known, other)]
        assert (changed[0] - changed[1]).abs().max() > 1e-4


def test_with_hardly_any_noise_the_data_are_x() -> None:
    x = torch.rand(2, 12, 2)
    t = torch.full((2,), 1 / (1 + CLEANEST))
    assert (model().estimate(x * t[:, None, None], t, ends(2)).data - x).abs().max() < 10 * CLEANEST


def test_the_grid_rises_to_one() -> None:
    for steps in (1, 2, 8):
        grid = model().grid(steps)
        assert len(grid) == steps + 1 and grid[-1] == 1 and (np.diff(grid) > 0).all()


def test_pieces_of_every_length_fit() -> None:
    for horizon in (8, 12, 16, 20):
        assert (
            model().estimate(torch.randn(1, horizon, 2), torch.tensor([0.5]), ends(1, horizon)).data.shape[1] == horizon
        )


def test_the_loss_is_reproducible_and_falls() -> None:
    network = model().train()
    pieces = network.normal(torch.from_numpy(np.stack(circles())[:, :80:4]))
    losses = [network.loss(pieces, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert losses[0] == losses[1]
    optimiser, generator = torch.optim.AdamW(network.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(60):
        optimiser.zero_grad()
        network.loss(pieces, generator).backward()
        optimiser.step()
    assert network.loss(pieces, torch.Generator().manual_seed(1)) < 0.7 * losses[0]


def test_trimmed_cuts_the_rest_and_nothing_else() -> None:
    way = np.stack([np.arange(20.0), np.zeros(20)], -1)
    rested = np.concatenate([way, np.repeat(way[-1:], 30, 0) + np.random.default_rng(0).normal(0, 0.1, (30, 2))])
    assert 19 <= len(trimmed(rested)) <= 21 and len(trimmed(way)) == 20
    assert len(trimmed(np.zeros((9, 2)))) == 1


def test_units_span_the_longer_axis() -> None:
    config = config_for([np.array([[0.0, 2.0], [10.0, 4.0]])])
    assert config.centre == (5.0, 3.0) and config.scale == 5.0


def run(
    out: Path, resume: bool = False, stop_at: int | None = None, recipe: TrajectoryRecipe = RECIPE
) -> TrajectoryModel:
    def progress(entry: dict[str, float]) -> None:
        if entry["step"] == stop_at:
            raise KeyboardInterrupt

    return TrajectoryTrainer(out, recipe, circles(), resume).run(progress)


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole").state_dict()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=8)
    resumed = run(tmp_path / "cut", resume=True).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="start without --resume"):
        run(tmp_path / "new", resume=True)
    run(tmp_path / "old")
    with pytest.raises(ContractError, match="continue it with --resume"):
        run(tmp_path / "old")
    with pytest.raises(ContractError, match="recipe was"):
        run(tmp_path / "old", resume=True, recipe=replace(RECIPE, steps=16))
    with pytest.raises(ContractError, match="no trajectory moves for 77 steps"):
        TrajectoryTrainer(tmp_path / "short", RECIPE, [path[:50] for path in circles()])


def test_ctrl_c_saves_the_step_that_it_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole").state_dict()
    handler = signal.getsignal(signal.SIGINT)  # in the background it is ignored
    steps, loss = [], TrajectoryModel.loss

    def interrupted(self: TrajectoryModel, pieces: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        steps.append(len(steps))
        if len(steps) == 2:  # before anything was saved
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, pieces, generator)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrajectoryModel, "loss", interrupted)
        run(tmp_path / "cut")
    resumed = run(tmp_path / "cut", resume=True).state_dict()
    assert len(steps) == 2 and all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_trains_in_any_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=run, args=(tmp_path,))
    thread.start()
    thread.join()
    assert (tmp_path / STATE).exists()


@pytest.mark.parametrize("cut", [0, 7, 1000, -10])
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    run(tmp_path)
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:cut])
    with pytest.raises(ContractError, match=f"{tmp_path / STATE} is damaged .*train again without --resume"):
        run(tmp_path, resume=True)


def test_positions_of_any_precision_are_taken_and_what_is_none_is_refused(tmp_path: Path) -> None:
    exact = [path.astype(float) for path in circles()]
    TrajectoryTrainer(tmp_path / "exact", replace(RECIPE, steps=1), exact).run(lambda entry: None)
    bad = [path.copy() for path in circles()]
    bad[3][5, 1] = np.inf
    for trajectories, message in (
        (bad, "trajectory 3 has a state that is not finite"),
        ([np.zeros((9, 4))], r"\(9, 4\), not \(T, 2\)"),
        ([np.zeros(9)], r"\(9,\), not \(T, 2\)"),
        ([], "no state"),
        ([np.zeros((0, 2))] * 2, "no state"),
    ):
        with pytest.raises(ContractError, match=message):
            TrajectoryTrainer(tmp_path / "bad", RECIPE, trajectories)
