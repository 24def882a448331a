"""Which OpenGL the simulator draws with where there is no screen: EGL, else OSMesa."""

import ctypes
import os

from jaxvla.errors import ConfigError

VARIABLE = "MUJOCO_GL"
_EGL, _OSMESA = ("libEGL.so.1", "libEGL.so"), ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
_MEND = "install one of them, on Debian: apt-get install libegl1 libgl1-mesa-dri, or apt-get install libosmesa6"


def choose_graphics() -> str:
    """Sets MUJOCO_GL for this process where it is not set, and gives it; call it before mujoco is imported.

    Libraries are tried through ctypes, since PyOpenGL keeps to the first that it was loaded with.

    Raises:
        ConfigError: there is neither EGL with a device nor OSMesa.
    """
    if not os.environ.get(VARIABLE):
        os.environ[VARIABLE] = _find()
    return os.environ[VARIABLE]


def _find() -> str:
    egl = _library(_EGL)
    if egl is not None and _egl_devices(egl):
        return "egl"
    if _library(_OSMESA) is not None:
        return "osmesa"
    reason = "no libOSMesa, and " + ("no libEGL" if egl is None else "EGL has no device")
    raise ConfigError(f"Meta-World cannot draw, for there is {reason}: {_MEND}")


def _library(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _egl_devices(egl: ctypes.CDLL) -> int:
    """How many devices EGL can draw on; software counts."""
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0
