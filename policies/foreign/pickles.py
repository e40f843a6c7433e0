"""Reading pickled torch files without running them.

A pickle is a program. Here nothing it names is ever imported or called: every class and function becomes an inert
`Record` of its name, arguments and state, and a name outside a short list is refused. Tensors, arrays and
configurations are then read out of the records. Only the import of foreign checkpoints uses this module.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

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


MISREAD = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading a record of an unexpected form raises."""


class Record(dict[Any, Any]):
    """Stands for an object of a pickle: the name of its class, its arguments, its items and its state."""

    name: ClassVar[str] = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, program: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(program))
        self._path = path
        self._classes: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str, /) -> type[Record]:
        full = f"{module}.{name}"
        if not KNOWN.fullmatch(full):
            raise ContractError(
                f"{self._path} wants to run '{full}', which no such checkpoint needs; nothing was run. Do not use it"
            )
        return self._classes.setdefault(full, type("Record", (Record,), {"name": full}))

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
                self.root: Any = _Unpickler(file.read(f"{prefix}data.pkl"), path).load()
            except ContractError:
                raise
            except Exception as error:  # a damaged pickle can fail in any way
                raise ContractError(f"{path} is damaged: {error!r}; copy it again") from error

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
    except (*MISREAD, RecursionError) as error:
        raise ContractError(f"a value of the checkpoint is not plain data: {error!r}") from error


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if type(value) is dict or _name(value) == "collections.OrderedDict":
        return {key: _plain(item) for key, item in value.items()}
    if _name(value) == "omegaconf.dictconfig.DictConfig" or _name(value) == "omegaconf.listconfig.ListConfig":
        return _plain(value.state["_content"])
    if _name(value).startswith("omegaconf.nodes."):
        return _plain(value.state["_val"])
    return _array(value).tolist()


def _name(value: Any) -> str:
    return value.name if isinstance(value, Record) else ""


def _array(value: Any) -> np.ndarray:
    """Read a numpy array or scalar off its record."""
    if _name(value).endswith("._reconstruct"):
        _, shape, dtype, fortran, data = value.state
    elif _name(value).endswith(".scalar"):
        (dtype, data), shape, fortran = value.arguments, (), False
    else:
        raise TypeError(f"'{_name(value) or type(value).__name__}'")
    flat = np.frombuffer(_bytes(data), _dtype(dtype))
    return flat.reshape(shape, order="F" if fortran else "C")


def _dtype(record: Record) -> np.dtype:
    code, order = record.arguments[0], record.state[1]
    if not re.fullmatch(r"[fiu][1248]|b1", code) or order not in ("<", "|"):
        raise TypeError(f"numpy type {order}{code}")
    return np.dtype(code)


def _bytes(value: Any) -> bytes:
    if _name(value) == "_codecs.encode" and value.arguments[1:] == ("latin1",):  # pickle protocol 2 has no bytes
        return value.arguments[0].encode("latin1")
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} in place of bytes")
    return value


def _tensor(file: zipfile.ZipFile, folder: str, value: Any) -> Tensor:
    if _name(value) == "torch._utils._rebuild_parameter":
        value = value.arguments[0]
    if _name(value) != "torch._utils._rebuild_tensor_v2":
        raise TypeError(f"'{_name(value) or type(value).__name__}' is no tensor")
    (_, storage, key, _, _), offset, size, stride = value.arguments[:4]
    data, dtype = bytearray(file.read(f"{folder}data/{key}")), DTYPES[storage.name]
    if not math.prod(size):
        return torch.empty(size, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).as_strided(size, stride, offset).clone()
