"""Settings of the C library's allocator for processes that train on a CPU.

A step takes and gives back tensors of many megabytes. By default glibc returns them to the operating system, which
clears every page again in the next step: up to a quarter of a step's time on a small network.
"""

from __future__ import annotations

_KEPT = str(1 << 30)  # bytes
# glibc reads these when a process starts; other allocators ignore them.
ALLOCATOR_DEFAULTS = {
    "MALLOC_ARENA_MAX": "1",  # arenas of other threads, as that of the training thread, have heaps of 64 MiB only
    "MALLOC_MMAP_THRESHOLD_": _KEPT,  # a tensor below that size is taken from the heap
    "MALLOC_TRIM_THRESHOLD_": _KEPT,  # unused memory that stays with the process
}
