"""The CUDA device of this machine, asked from the driver itself, so that building a plan needs no CUDA package."""

from __future__ import annotations

import ctypes

from engine.contract.errors import BackendUnavailableError
from engine.contract.plans import Device, power_mode

DRIVER = "libcuda.so.1"
NAME_BYTES = 256
# https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html, CUdevice_attribute
CAPABILITY_MAJOR, CAPABILITY_MINOR, MULTIPROCESSORS = 75, 76, 16


def current_device() -> Device:
    """The first visible device, which TensorRT builds on (``CUDA_VISIBLE_DEVICES`` picks another one).

    Raises:
        BackendUnavailableError: there is no driver or no device.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise BackendUnavailableError(f"no CUDA driver on this machine: {error}") from error
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(NAME_BYTES)
    _call(driver, "cuInit", 0)
    _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    _call(driver, "cuDeviceGetName", name, NAME_BYTES, device)
    found = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR, MULTIPROCESSORS):
        value = ctypes.c_int()
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        found.append(value.value)
    major, minor, multiprocessors = found
    return Device(
        name=name.value.decode(),
        compute_capability=10 * major + minor,
        multiprocessors=multiprocessors,
        power_mode=power_mode(),
    )


def _call(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    status = getattr(driver, function)(*arguments)
    if status:
        raise BackendUnavailableError(f"no usable CUDA device: {function} returned CUresult {status}")
