"""What can be loaded by name, and what is said about the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from parents import flow

from kinoflow.cli import call
from policies.bundle import Bundle
from policies.load import describe_sum, load_policy, load_trained
from policies.spec import ContractError


@pytest.mark.parametrize("name", ["run@20", "(0.5*a + 0.5*b)", "mean(a)"])
def test_what_is_there_is_loaded_whatever_its_name_looks_like(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flow(steps=3).save(Path(name))
    assert load_trained(name).steps == 3
    assert load_trained(f"{name}@5").steps == 5


@pytest.mark.parametrize("weights", [[1 / 3, 2 / 3], [1 / 32, 31 / 32], [1.2345678, -0.2345678]])
def test_a_sum_keeps_its_weights(weights: list[float], tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a", "b")]
    for seed, name in enumerate(names):
        flow(seed).save(Path(name))
    composed = load_trained(describe_sum(names, weights))
    assert sorted(composed.head.config.weights) == sorted(weights)


def test_a_sum_may_be_longer_than_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow().save(Path("a"))
    assert load_policy(describe_sum(["a"] * 40, [1 / 40] * 40) + "@2").spec == flow().spec


@pytest.mark.parametrize("load", [load_policy, load_trained])
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("can.pth", "robomimic:{}/can.pth"),
        ("latest.ckpt", "diffusion_policy:{}/latest.ckpt"),
        ("robomimic:none.pth", "robomimic:none.pth"),
        ("diffusion_policy:best", "diffusion_policy:best"),
    ],
)
def test_pickles_are_sent_to_the_import(load: object, name: str, source: str, tmp_path: Path) -> None:
    path = name if ":" in name else str(tmp_path / name)
    (tmp_path / Path(name).name).write_bytes(b"PK")
    with pytest.raises(ContractError, match="is a pickle") as refused:
        load(path)  # type: ignore[operator]
    assert f"kinoflow import {source.format(tmp_path)} -o DIRECTORY --trust" in str(refused.value)


def test_what_can_be_loaded_can_be_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A saved policy, with a note where it is from or without, a bundle, which hands it on, and an expression."""
    monkeypatch.chdir(tmp_path)
    flow(0).save(Path("a"))
    flow(1).save(Path("b"))
    Path("a/run.json").write_text(json.dumps({"recipe": "secret"}))
    sources = {"b": {"policy": "b"}, "a": {"recipe": "secret"}, "out/a.kfb": {"recipe": "secret"}}
    sources |= {"(0.6*a + 0.4*out/b.kfb)": {"policy": "(0.6*a + 0.4*out/b.kfb)"}}
    for source, provenance in sources.items():
        target = Path("out", f"{Path(source).stem}.kfb") if source in ("a", "b") else Path("out", "again.kfb")
        assert call("export", [source, "-o", str(target), "--json"]) == 0, capsys.readouterr().err
        assert Bundle.load(target).manifest.provenance == provenance
