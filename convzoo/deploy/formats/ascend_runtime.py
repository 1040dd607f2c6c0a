"""Run an .om file on an Ascend device through pyACL, the vendor's Python binding, which is part of CANN.

Calls, numbers and order: CANN's "pyACL" guide; every call's status is looked at.
"""

import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from convzoo.errors import ConvzooError

DTYPES = {0: np.float32, 1: np.float16, 2: np.int8, 3: np.int32, 4: np.uint8, 9: np.int64}
HUGE_FIRST, TO_DEVICE, TO_HOST = 0, 1, 2  # of memory
ALREADY_STARTED = 100002  # acl.init's answer the second time
Handle = Any  # Any: what acl's calls return, without types: addresses, descriptions, numbers


class AclSession:
    """An .om file on an Ascend device, by way of pyACL: buffers for each input and output are made once.

    Raises:
        ConvzooError: with the name of the call that failed and its number.
    """

    def __init__(self, acl: ModuleType, path: Path, device: int):
        self.acl, self.device = acl, device
        status = acl.init()
        if status not in (0, ALREADY_STARTED):
            raise ConvzooError(f"acl.init failed: error {status}")
        _done("rt.set_device", acl.rt.set_device(device))
        self.model = _done("mdl.load_from_file", acl.mdl.load_from_file(str(path)))
        self.about = acl.mdl.create_desc()
        _done("mdl.get_desc", acl.mdl.get_desc(self.about, self.model))
        count = acl.mdl.get_num_outputs(self.about)
        self.inputs, self.fed = self._buffers([acl.mdl.get_input_size_by_index(self.about, 0)])
        sizes = [acl.mdl.get_output_size_by_index(self.about, i) for i in range(count)]
        self.outputs, self.made = self._buffers(sizes)
        weakref.finalize(self, _release, acl, self.model, [place for place, _ in (*self.fed, *self.made)])

    def _buffers(self, sizes: list[int]) -> tuple[Handle, list[tuple[Handle, int]]]:
        data, made = self.acl.mdl.create_dataset(), []
        for size in sizes:
            made.append((_done("rt.malloc", self.acl.rt.malloc(size, HUGE_FIRST)), size))
            buffer = self.acl.create_data_buffer(*made[-1])
            _done("mdl.add_dataset_buffer", self.acl.mdl.add_dataset_buffer(data, buffer))
        return data, made

    def __call__(self, images: Tensor) -> list[np.ndarray]:
        acl = self.acl
        _done("rt.set_device", acl.rt.set_device(self.device))  # for this thread
        given, (place, size) = images.numpy().tobytes(), self.fed[0]
        if len(given) != size:
            raise ConvzooError(f"the file takes {size} bytes of pictures, not {len(given)}")
        _done("rt.memcpy", acl.rt.memcpy(place, size, acl.util.bytes_to_ptr(given), size, TO_DEVICE))
        _done("mdl.execute", acl.mdl.execute(self.model, self.inputs, self.outputs))
        return [self._output(i) for i in range(len(self.made))]

    def _output(self, i: int) -> np.ndarray:
        acl, (place, size) = self.acl, self.made[i]
        host = _done("rt.malloc_host", acl.rt.malloc_host(size))
        _done("rt.memcpy", acl.rt.memcpy(host, size, place, size, TO_HOST))
        dtype = DTYPES[acl.mdl.get_output_data_type(self.about, i)]
        shape = _done("mdl.get_output_dims", acl.mdl.get_output_dims(self.about, i))["dims"]
        values = np.frombuffer(acl.util.ptr_to_bytes(host, size), dtype)[: int(np.prod(shape))].reshape(shape)
        _done("rt.free_host", acl.rt.free_host(host))
        return values.astype(np.float32 if dtype is np.float16 else dtype)  # a copy: the bytes are read-only


def _release(acl: ModuleType, model: Handle, places: list[Handle]) -> None:
    acl.mdl.unload(model)
    for place in places:
        acl.rt.free(place)


def _done(what: str, answer: Handle) -> Handle:
    """Return what an acl call returned beside its status, of which anything but 0 is an error. Raises ConvzooError."""
    *values, status = answer if isinstance(answer, tuple) else (answer,)
    if status:
        raise ConvzooError(f"acl.{what} failed: error {status}")
    return values[0] if values else None
