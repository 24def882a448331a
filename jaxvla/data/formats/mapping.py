"""Read-only maps of files that hold no descriptor open, and how a process lets go of the memory that they take.

Python's own mmap keeps a descriptor of each file, and a dataset has more files than a process may hold open.
"""

import ctypes
import os
import threading
import weakref
from typing import BinaryIO

_PROT_READ, _MAP_SHARED, _MADV_DONTNEED = 1, 1, 4  # of Linux and macOS alike
# So many bytes of mapped files may be in the memory of the process: of three million transitions. To let go of them
# costs a batch of 256 rows 15 ms of a core: little beside decoding its pictures, and much beside copying raw ones.
_MAPPED_BYTES = 256 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value

_maps: weakref.WeakValueDictionary[int, ctypes.Array] = weakref.WeakValueDictionary()  # by their addresses
_lock = threading.Lock()


def map_file(file: BinaryIO) -> memoryview:
    """A whole file; it is unmapped when nothing refers to it any more.

    Raises:
        OSError: it cannot be mapped, such as an empty one.
    """
    length = os.fstat(file.fileno()).st_size
    address = _libc.mmap(None, length, _PROT_READ, _MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), file.name)
    content = (ctypes.c_ubyte * length).from_address(address)
    # Not at the end of the process, where somebody may still read from it.
    weakref.finalize(content, _libc.munmap, address, length).atexit = False
    with _lock:
        _maps[address] = content
    return memoryview(content).cast("B").toreadonly()


def let_go() -> None:
    """Gives back the memory of what was read of mapped files, where that can be much; the system reads it again.

    Pages of a map count as the process's own as long as it does not let go of them.
    """
    if is_much():
        with _lock:
            maps = list(_maps.values())
        for content in maps:
            _libc.madvise(ctypes.addressof(content), len(content), _MADV_DONTNEED)


def let_go_of(content: memoryview) -> None:
    """`let_go` of one file that was mapped."""
    if is_much():
        _libc.madvise(ctypes.addressof(content.obj), len(content), _MADV_DONTNEED)


def is_much() -> bool:
    """Whether what is mapped is more than may be in the memory of the process."""
    with _lock:
        return sum(map(len, _maps.values())) > _MAPPED_BYTES
