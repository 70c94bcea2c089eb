"""safetensors files of a folder, read a few rows at a time and written one tensor at a time.

A file is an 8-byte length, a JSON header with dtype, shape and place of every tensor, and their bytes. Mapping it into
memory would make all of it count as this process's own sooner or later; plain reads keep nothing.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from videoauto_jax.errors import ModelError
from videoauto_jax.models.config import read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_AGAIN = "Download this file again"


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        file: the safetensors file.
        offset: of its first byte in the file.
    """

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self, start: int = 0, stop: int | None = None) -> Shaped[ndarray, "..."]:
        """Rows `start` … `stop` along the first axis (all of a scalar); a new array that nothing else refers to."""
        rows = self.shape[0] if self.shape else 1
        stop = rows if stop is None else stop
        row = math.prod(self.shape[1:])
        flat = np.fromfile(
            self.file, self.dtype, (stop - start) * row, offset=self.offset + start * row * self.dtype.itemsize
        )
        if flat.size != (stop - start) * row:
            raise ModelError("the file ends within a tensor", where=self.file, fix=_AGAIN)
        return flat.reshape((stop - start, *self.shape[1:]) if self.shape else ())


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor in the files that the folder's index names, or else in `model.safetensors`, or else in all its
    safetensors files. Of a tensor that is in several files the index says which one counts.

    Raises:
        ModelError: there are no such files, or one is missing, broken, truncated or of an unsupported dtype; or two of
            them hold the same tensor and no index tells which one counts.
    """
    index = read_json(folder / INDEX)
    places = {} if index is None else _places(index, folder / INDEX)
    names = set(places.values()) or {file.name for file in folder.glob("*.safetensors")}
    names = {SINGLE} if index is None and SINGLE in names else names
    if not names:
        raise ModelError("no safetensors files", where=folder, fix="Download the model's weights into this folder")
    found: dict[str, StoredTensor] = {}
    for name in sorted(names):
        if not (folder / name).is_file():
            raise ModelError(f"{INDEX} names a file that is missing", where=folder / name, fix="Download it")
        for key, tensor in _read_header(folder / name).items():
            before = found.get(key, tensor).file.name
            if before != name and places.get(key) not in (before, name):
                fix = f"Remove the file that is not of this model, or download {INDEX}"
                raise ModelError(f"{key} is in {before} and in {name}", where=folder, fix=fix)
            if before == name or places[key] == name:
                found[key] = tensor
    return found


def _places(index: dict, where: Path) -> dict[str, str]:
    """The file of each tensor as an index has it."""
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError("no weight_map of tensors to files", where=where, fix=_AGAIN)
    return names


def _read_header(file: Path) -> dict[str, StoredTensor]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise ModelError("unreadable weights: the file is truncated", where=file, fix=_AGAIN)
        try:
            header = json.loads(opened.read(length))
            return {
                key: _stored(file, facts, 8 + length, size) for key, facts in header.items() if key != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"unreadable weights: {error}", where=file, fix=_AGAIN) from None


def _stored(file: Path, facts: dict, start: int, size: int) -> StoredTensor:
    if facts["dtype"] not in _DTYPES:
        fix = f"Use weights of one of {', '.join(_DTYPES)}"
        raise ModelError(f"unsupported dtype {facts['dtype']} of weights", where=file, fix=fix)
    dtype, shape, (first, last) = np.dtype(_DTYPES[facts["dtype"]]), tuple(facts["shape"]), facts["data_offsets"]
    if start + last > size:
        raise ModelError("unreadable weights: the file is truncated", where=file, fix=_AGAIN)
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's size is not that of its shape")
    return StoredTensor(file, dtype, shape, start + first)


def fingerprint(folder: Path) -> str:
    """Tells checkpoints apart without reading all of them: a digest of names, sizes and 1 MiB of every weights file."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
            for sixteenth in range(16):
                opened.seek(sixteenth * size // 16)
                digest.update(opened.read(2**16))
    return digest.hexdigest()[:32]


Written = tuple[str, tuple[int, ...], np.dtype, Callable[[], ndarray]]
"""Key, shape, dtype and maker of a tensor to write."""


def write_file(path: Path, tensors: Iterable[Written]) -> None:
    """Writes one safetensors file, making one tensor at a time; it appears under its name when it is whole.

    In a job of several processes all make the tensors, whose parts they hold, and the first one writes.
    """
    if jax.process_index():
        for _, _, _, make in tensors:
            make()
        return
    header, offset, tensors = {"__metadata__": {"format": "pt"}}, 0, list(tensors)
    for key, shape, dtype, _ in tensors:
        end = offset + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, shape, dtype, make in tensors:
                array = np.ascontiguousarray(make(), dtype).reshape(shape)
                file.write(array.view(np.uint8).data if array.ndim else array.tobytes())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
