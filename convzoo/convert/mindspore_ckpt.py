"""The records of a MindSpore `.ckpt` file: a bounded reader and a writer of its protobuf, without MindSpore.

    message Checkpoint  { repeated Value value = 1; }
    message Value       { required string tag = 1; oneof { TensorProto tensor = 2; MapTensorProto maptensor = 3; } }
    message TensorProto { repeated int64 dims = 1; required string tensor_type = 2; required bytes tensor_content = 3; }

A tensor of more than 512 MiB is several neighbouring records with one tag, each declaring the whole shape. Files saved
with crc_check end in `crc_num` and ten bytes, the CRC-32 of what precedes. Nothing that the file declares is
believed: a length must lie within its parent, dims must give exactly the bytes that are there.
"""

import binascii
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convzoo.errors import ConvzooError

DTYPES = {
    "Int8": torch.int8,       "UInt8": torch.uint8,     "Int16": torch.int16,     "UInt16": torch.uint16,
    "Int32": torch.int32,     "UInt32": torch.uint32,   "Int64": torch.int64,     "UInt64": torch.uint64,
    "Float16": torch.float16, "Float32": torch.float32, "Float64": torch.float64, "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
}  # fmt: skip
TEXT = "str"  # UTF-32 text that some trainings append
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_RECORDS, MAX_NAME_BYTES, MAX_DIMS = 100_000, 1024, 8
SLICE_BYTES = 512 << 20
VARINT, DELIMITED = 0, 2  # wire types
CRC_MARK, CRC_BYTES = b"crc_num", 10


@dataclass
class Record:
    """One parameter: its shape, MindSpore's name of its data type and where its bytes lie, in pieces."""

    dims: tuple[int, ...]
    dtype: str
    content: list[np.ndarray]

    @property
    def num_bytes(self) -> int:
        return sum(len(piece) for piece in self.content)

    def tensor(self) -> Tensor:
        """Return the values, copied, because protobuf aligns nothing."""
        joined = self.content[0].copy() if len(self.content) == 1 else np.concatenate(self.content)
        return torch.from_numpy(joined).view(DTYPES[self.dtype]).view(self.dims)


def read_records(data: np.ndarray, where: str) -> dict[str, Record]:
    """Read the records of a checkpoint, by name.

    Args:
        data: the file, uint8 [N].
        where: the file, for messages.
    Raises:
        ConvzooError: with the first thing that is wrong.
    """
    records: dict[str, Record] = {}
    last = None
    try:
        data = _without_crc(data)
        for number, (field, value) in enumerate(_fields(data, "the file")):
            if number >= MAX_RECORDS:
                raise ConvzooError(f"more than {MAX_RECORDS} records")
            if field != 1 or isinstance(value, int):
                raise ConvzooError(f"field {field} is not one of a MindSpore checkpoint")
            name, record = _value(value)
            if name != last and name in records:
                raise ConvzooError(f"'{name}' stands there twice")
            if name == last:
                if (record.dims, record.dtype) != (records[name].dims, records[name].dtype):
                    raise ConvzooError(f"'{name}': its parts differ in shape or type")
                records[name].content += record.content
            else:
                if last is not None:
                    _check(last, records[last])
                records[name] = record
            last = name
        if last is None:
            raise ConvzooError("no parameters in it")
        _check(last, records[last])
    except ConvzooError as error:
        raise ConvzooError(f"{where}: not a whole MindSpore checkpoint: {error}") from None
    return records


def write_records(tensors: Mapping[str, Tensor], crc: bool = False) -> bytes:
    """Write named tensors as a MindSpore checkpoint. Raises ConvzooError for a data type MindSpore does not have."""
    parts = []
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise ConvzooError(f"'{name}': MindSpore has no data type {str(tensor.dtype).removeprefix('torch.')}")
        dims = b"".join(_varint(1 << 3 | VARINT) + _varint(size) for size in tensor.shape)
        about = dims + _bytes(2, NAMES[tensor.dtype].encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, max(1, len(content)), SLICE_BYTES):
            piece = content[start : start + SLICE_BYTES]
            lead = about + _lead(3, len(piece))
            tag = _bytes(1, name.encode())
            value = tag + _lead(2, len(lead) + len(piece)) + lead
            parts += [_lead(1, len(value) + len(piece)), value, piece.data]
    if crc:
        total = 0
        for part in parts:
            total = binascii.crc32(part, total)
        parts.append(CRC_MARK + total.to_bytes(CRC_BYTES, "big"))
    return b"".join(parts)


def _without_crc(data: np.ndarray) -> np.ndarray:
    tail = data[-len(CRC_MARK) - CRC_BYTES :].tobytes()
    if not tail.startswith(CRC_MARK) or len(tail) < len(CRC_MARK) + CRC_BYTES:
        return data
    body = data[: -len(tail)]
    written = int.from_bytes(tail[len(CRC_MARK) :], "big")
    if binascii.crc32(body.data) != written:
        raise ConvzooError("damaged: its CRC-32 is not the one it was written with")
    return body


def _value(data: np.ndarray) -> tuple[str, Record]:
    name, record = None, None
    for field, value in _fields(data, "a record" if name is None else f"'{name}'"):
        if field == 1 and not isinstance(value, int):
            name = _text(value, MAX_NAME_BYTES, "a name")
        elif field == 2 and not isinstance(value, int):
            record = _tensor(value, f"'{name}'")
        elif field == 3:
            raise ConvzooError(f"'{name}' is a map parameter; no network here has one")
        else:
            raise ConvzooError(f"'{name}': field {field} is not one of a parameter")
    if not name or record is None:
        raise ConvzooError(f"a record without {'a name' if not name else 'values (' + repr(name) + ')'}")
    return name, record


def _tensor(data: np.ndarray, name: str) -> Record:
    dims: list[int] = []
    dtype, content = None, None
    for field, value in _fields(data, name):
        if field == 1:
            dims += [value] if isinstance(value, int) else _packed(value, name)
            if len(dims) > MAX_DIMS:
                raise ConvzooError(f"{name} has more than {MAX_DIMS} dimensions")
        elif field == 2 and not isinstance(value, int):
            dtype = _text(value, 32, f"the data type of {name}")
        elif field == 3 and not isinstance(value, int):
            content = value
        else:
            raise ConvzooError(f"{name}: field {field} is not one of a tensor")
    if dtype is None or content is None:
        raise ConvzooError(f"{name} has no {'data type' if dtype is None else 'values'}")
    if dtype not in DTYPES and dtype != TEXT:
        raise ConvzooError(f"{name}: unknown data type {dtype!r}")
    if any(size >= 1 << 40 for size in dims):
        raise ConvzooError(f"{name} declares the shape {dims}")
    return Record(() if dims == [0] and len(content) else tuple(dims), dtype, [content])


def _check(name: str, record: Record) -> None:
    if record.dtype == TEXT:
        return
    declared = math.prod(record.dims) * DTYPES[record.dtype].itemsize
    if declared != record.num_bytes:
        shape = list(record.dims)
        raise ConvzooError(f"'{name}' declares {shape} {record.dtype}, {declared} bytes, and holds {record.num_bytes}")


def _fields(data: np.ndarray, name: str) -> Iterator[tuple[int, int | np.ndarray]]:
    """Yield the fields of a message, (number, value): an int, or the bytes of a delimited one."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at, name)
        value, at = _read_varint(data, at, name)
        if key & 7 == VARINT:
            yield key >> 3, value
        elif key & 7 == DELIMITED:
            if value > len(data) - at:
                raise ConvzooError(f"{name} is cut off: {value} bytes declared, {len(data) - at} there")
            yield key >> 3, data[at : at + value]
            at += value
        else:
            raise ConvzooError(f"{name}: wire type {key & 7} does not occur in one")


def _read_varint(data: np.ndarray, at: int, name: str) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(data[at : at + 10].tolist()):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise ConvzooError(
        f"{name} is cut off within a number" if len(data) - at < 10 else f"{name}: a number of more than ten bytes"
    )


def _packed(data: np.ndarray, name: str) -> list[int]:
    values, at = [], 0
    while at < len(data) and len(values) <= MAX_DIMS:
        value, at = _read_varint(data, at, name)
        values.append(value)
    return values


def _text(data: np.ndarray, limit: int, name: str) -> str:
    if len(data) > limit:
        raise ConvzooError(f"{name} takes {len(data)} bytes, at most {limit} are allowed")
    try:
        return data.tobytes().decode()
    except UnicodeDecodeError:
        raise ConvzooError(f"{name} is not UTF-8 text") from None


def _varint(value: int) -> bytes:
    low = []
    while value > 127:
        low.append(value & 127 | 128)
        value >>= 7
    return bytes([*low, value])


def _lead(field: int, num_bytes: int) -> bytes:
    return _varint(field << 3 | DELIMITED) + _varint(num_bytes)


def _bytes(field: int, data: bytes) -> bytes:
    return _lead(field, len(data)) + data
