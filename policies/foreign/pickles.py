"""Reading pickled torch files without running them.

Tensors, arrays and configurations are read out of the inert records of `policies.pickles`. Only the import of foreign
checkpoints uses this module.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.pickles import MISREAD, Unpickler, as_bytes, name_of
from policies.spec import ContractError

KNOWN = re.compile(
    r"collections\.(OrderedDict|defaultdict|Counter)|torch\._utils\._rebuild_(tensor_v2|parameter)|torch\.(\w+Storage|Size)"
    r"|torch\.storage\.UntypedStorage|numpy\.(_?core\.multiarray\.(_reconstruct|scalar)|ndarray|dtype)|_codecs\.encode"
    r"|omegaconf\.(base|dictconfig|listconfig|nodes)\.\w+|typing\.(Any|Dict|List|Tuple|Union|Optional)"
    r"|(builtins|__builtin__)\.(bool|bytes|dict|float|int|list|object|set|str|tuple)|dill\._dill\._load_type"
)
"""What torch, numpy and OmegaConf write into a checkpoint. None of it is run either."""

DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


class _Unpickler(Unpickler):
    known, kind, remedy = KNOWN, "such checkpoint", "Do not use it"

    def persistent_load(self, pid: Any, /) -> Any:
        return pid


class Checkpoint:
    """A torch file, read without running it.

    Args:
        path: File written by ``torch.save``, with pickle or dill.

    Raises:
        ContractError: It is no such file, it is damaged, or it names something no checkpoint needs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as (file, prefix):
            if f"{prefix}byteorder" in file.namelist() and file.read(f"{prefix}byteorder") != b"little":
                raise ContractError(f"{path} is big-endian; save it again on a little-endian machine")
            try:
                program = io.BytesIO(file.read(f"{prefix}data.pkl"))
            except Exception as error:  # a damaged archive can fail in any way
                raise ContractError(f"{path} is damaged: {error!r}; copy it again") from error
            self.root: Any = _Unpickler(program, f"{path} (data.pkl)").load()

    def tensors(self, values: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
        """Read the tensors whose names begin with ``prefix``, which is taken off.

        Raises:
            ContractError: A value is no tensor, or its data are missing.
        """
        with self._open() as (file, folder):
            chosen = {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
            try:
                return {name: _tensor(file, folder, value) for name, value in chosen.items()}
            except (*MISREAD, RuntimeError, zipfile.BadZipFile) as error:
                raise ContractError(
                    f"{self.path}: a tensor in '{prefix}' is damaged: {error!r}; copy it again"
                ) from error

    @contextmanager
    def _open(self) -> Iterator[tuple[zipfile.ZipFile, str]]:
        try:
            with zipfile.ZipFile(self.path) as file:
                programs = [name for name in file.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
                if len(programs) != 1 or any(item.compress_type != zipfile.ZIP_STORED for item in file.infolist()):
                    raise ContractError(f"{self.path} is a ZIP file, but torch.save did not write it")
                yield file, programs[0].removesuffix("data.pkl")
        except zipfile.BadZipFile as error:
            raise ContractError(
                f"{self.path} is no torch file of today's format ({error}); files of torch before 1.6 have to be "
                "loaded where they come from and saved again with torch.save"
            ) from error


def entry(tree: Any, path: str) -> Any:
    """Look up ``"a.b.c"`` in nested dictionaries.

    Raises:
        ContractError: It is not there.
    """
    found = tree
    for key in path.split("."):
        if not isinstance(found, dict) or key not in found:
            raise ContractError(f"the checkpoint has no '{path}'; it is not of the kind it was given as, or too old")
        found = found[key]
    return found


def plain(value: Any) -> Any:
    """Turn containers, OmegaConf nodes and numpy arrays into values that JSON can hold.

    Raises:
        ContractError: There is something else, such as a class or a tensor.
    """
    try:
        return _plain(value)
    except MISREAD as error:
        raise ContractError(f"a value of the checkpoint is not plain data: {error!r}") from error


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if type(value) is dict or name_of(value) == "collections.OrderedDict":
        return {key: _plain(item) for key, item in value.items()}
    if name_of(value) == "omegaconf.dictconfig.DictConfig" or name_of(value) == "omegaconf.listconfig.ListConfig":
        return _plain(value.state["_content"])
    if name_of(value).startswith("omegaconf.nodes."):
        return _plain(value.state["_val"])
    return _array(value).tolist()


def _array(value: Any) -> np.ndarray:
    """Read a numpy array or scalar off its record."""
    if name_of(value).endswith("._reconstruct"):
        _, shape, dtype, fortran, data = value.state
    elif name_of(value).endswith(".scalar"):
        (dtype, data), shape, fortran = value.arguments, (), False
    else:
        raise TypeError(f"'{name_of(value)}'")
    code, order = dtype.arguments[0], dtype.state[1]
    if not re.fullmatch(r"[fiu][1248]|b1", code) or order not in ("<", "|"):
        raise TypeError(f"numpy type {order}{code}")
    return np.frombuffer(as_bytes(data), np.dtype(code)).reshape(shape, order="F" if fortran else "C")


def _tensor(file: zipfile.ZipFile, folder: str, value: Any) -> Tensor:
    if name_of(value) == "torch._utils._rebuild_parameter":
        value = value.arguments[0]
    if name_of(value) != "torch._utils._rebuild_tensor_v2":
        raise TypeError(f"'{name_of(value)}' is no tensor")
    (_, storage, key, _, _), offset, size, stride = value.arguments[:4]
    data, dtype = bytearray(file.read(f"{folder}data/{key}")), DTYPES[storage.name]
    if not math.prod(size):
        return torch.empty(size, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).as_strided(size, stride, offset).clone()
