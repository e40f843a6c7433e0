"""Pickled files are read and never run."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.foreign.pickles import Checkpoint, entry, plain
from policies.spec import ContractError

REFERENCE = Path(__file__).parent / "reference"


class Call:
    """Pickles as a call: whoever loads it the usual way makes it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def program(path: Path, code: bytes) -> Path:
    """A file as torch writes it, around a hand-made pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", code)
    return path


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, r"posix\.system"), (builtins.eval, r"(builtins|__builtin__)\.eval")],
)
@pytest.mark.parametrize(
    "hide",
    [
        lambda call: call,
        lambda call: {"model": [1, {"deep": (call,)}]},
        lambda call: collections.OrderedDict(weight=call),
        lambda call: {call: 1},
        lambda call: Call(collections.OrderedDict, [("weight", call)]),
    ],
    ids=["alone", "nested", "in a dictionary", "as a key", "as an argument"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_would_run_is_refused_by_name(
    tmp_path: Path, hide: Callable[[Any], Any], function: Callable[..., Any], name: str, protocol: int
) -> None:
    mark = tmp_path / "ran"
    command = f"open({str(mark)!r}, 'w')" if function is builtins.eval else f"touch {mark}"
    path = saved(tmp_path / "evil.pth", hide(Call(function, command)), pickle_protocol=protocol)
    with pytest.raises(ContractError, match=f"'{name}'"):
        Checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file would have run"


@pytest.mark.parametrize(
    "code",
    [
        b"ccollections\nOrderedDict.fromkeys\n.",
        b"(S'touch ran'\nios\nsystem\n.",
        b"cpolicies.foreign.pickles\nos\n.",
        b"cnumpy\nload\n.",
        b"ctorch\nload\n.",
        b"comegaconf.dictconfig\nsys.modules\n.",
    ],
)
def test_no_name_outside_the_list_is_looked_up(tmp_path: Path, code: bytes) -> None:
    with pytest.raises(ContractError, match="nothing was run"):
        Checkpoint(program(tmp_path / "evil.pth", code))


def test_records_cannot_be_changed_for_the_next_file(tmp_path: Path) -> None:
    # BUILD with a pair of states sets attributes: here on the stand-in itself.
    attack = b"ccollections\nOrderedDict\n(N}S'__new__'\ncbuiltins\ndict\nstb."
    with pytest.raises(ContractError, match="damaged"):
        Checkpoint(program(tmp_path / "evil.pth", attack))
    good = saved(tmp_path / "good.pth", collections.OrderedDict(a=1))
    assert plain(Checkpoint(good).root) == {"a": 1}


def test_tensors_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    wanted = {
        "net.weight": base.reshape(4, 6),
        "net.view": base.reshape(4, 6).t()[1:, ::2],
        "net.parameter": torch.nn.Parameter(torch.randn(3)),
        "net.scalar": torch.tensor(7),
        "net.empty": torch.empty(0, 3),
        "net.half": torch.ones(2).half(),
        "net.brain": torch.ones(2).bfloat16(),
        "net.mask": torch.tensor([True, False]),
        "other": torch.zeros(1),
    }
    file = Checkpoint(saved(tmp_path / "model.pth", {"state": wanted}))
    found = file.tensors(file.root["state"], "net.")
    assert set(found) == {name.removeprefix("net.") for name in wanted if name != "other"}
    for name, value in found.items():
        assert value.dtype == wanted[f"net.{name}"].dtype
        assert torch.equal(value, wanted[f"net.{name}"])


def test_numbers_and_settings_are_read_as_plain_values(tmp_path: Path) -> None:
    values = {
        "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "bytes": np.array([1, 255], np.uint8),
        "scalar": np.float64(0.5),
        "flag": np.bool_(True),
        "nested": collections.OrderedDict(a=(1, None, "x")),
    }
    wanted = {
        "array": [[0, 1, 2], [3, 4, 5]],
        "bytes": [1, 255],
        "scalar": 0.5,
        "flag": True,
        "nested": {"a": [1, None, "x"]},
    }
    for protocol in (2, 4):
        assert plain(Checkpoint(saved(tmp_path / "x.pth", values, pickle_protocol=protocol)).root) == wanted


def test_settings_of_omegaconf_are_read_without_it() -> None:
    root = Checkpoint(REFERENCE / "diffusion_policy/state/latest.ckpt").root
    settings = plain(root["cfg"])
    assert entry(settings, "policy.model.down_dims") == [16, 16]
    assert entry(settings, "task.obs_keys") == ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    with pytest.raises(ContractError, match=r"no 'policy\.model\.depth'"):
        entry(settings, "policy.model.depth")


def test_pickles_inside_a_pickle_stay_closed() -> None:
    pickles = Checkpoint(REFERENCE / "diffusion_policy/state/latest.ckpt").root["pickles"]
    assert set(pickles) == {"global_step", "epoch", "_output_dir"}
    with pytest.raises(ContractError, match=r"_codecs\.encode"):
        plain(pickles["epoch"])


@pytest.mark.parametrize("value", [torch.zeros(2), dict, np.array(["text"]), np.array([{}], object)])
def test_what_is_no_plain_value_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ContractError, match="not plain data"):
        plain(Checkpoint(saved(tmp_path / "x.pth", {"value": value})).root)


def test_a_structure_without_end_is_refused(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ContractError, match="RecursionError"):
        plain(Checkpoint(saved(tmp_path / "x.pth", endless)).root)


def test_files_of_old_torch_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pth", {"a": 1}, _use_new_zipfile_serialization=False)
    with pytest.raises(ContractError, match=r"saved again with torch\.save"):
        Checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"N.")
    for name, message in (("plain.pkl", "no torch file"), ("some.zip", "did not write"), ("bomb.pth", "did not write")):
        with pytest.raises(ContractError, match=message):
            Checkpoint(tmp_path / name)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-4], lambda data: None])
def test_missing_numbers_are_noticed(tmp_path: Path, damage: Callable[[bytes], bytes | None]) -> None:
    whole = saved(tmp_path / "model.pth", {"weight": torch.arange(8.0)})
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "damaged.pth", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            changed = damage(data) if name.endswith("data/0") else data
            if changed is not None:
                target.writestr(name, changed)
    file = Checkpoint(tmp_path / "damaged.pth")
    with pytest.raises(ContractError, match="is damaged"):
        file.tensors(file.root)


def test_changed_numbers_are_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pth", {"weight": torch.arange(8.0)})
    numbers = np.arange(8, dtype=np.float32).tobytes()
    path.write_bytes(path.read_bytes().replace(numbers, numbers[::-1]))
    file = Checkpoint(path)
    with pytest.raises(ContractError, match=r"a tensor in '' is damaged.*CRC"):
        file.tensors(file.root)


def test_a_cut_program_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="damaged"):
        Checkpoint(program(tmp_path / "cut.pth", pickle.dumps({"a": [1, 2]}, 2)[:-4]))


def test_numbers_of_another_byte_order_are_refused(tmp_path: Path) -> None:
    shutil.copy(saved(tmp_path / "x.pth", {"a": 1}), tmp_path / "big.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as source, zipfile.ZipFile(tmp_path / "big.pth", "w") as target:
        for name in source.namelist():
            target.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    with pytest.raises(ContractError, match="big-endian"):
        Checkpoint(tmp_path / "big.pth")
