"""The indices of many files: built once, by all cores, kept beside the files, and mapped."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from jaxvla.data.conversion.workers import Job, Result, completed
from jaxvla.data.files import reading
from jaxvla.data.formats import sidecar
from jaxvla.data.formats.index import VERSION, Index
from jaxvla.data.formats.mapping import let_go_of, map_file

# So many bytes of files are indexed by several processes: below, their start takes longer than they save.
_MANY_BYTES = 1 << 30


def open_indices(
    paths: Sequence[str], build: Callable[[str], Index], options: str = "", variant: str = ""
) -> list[Index]:
    """The index of each file: read from beside it, or built and kept there where it is missing or out of date.

    Each is kept as soon as it is built, so that after an interruption the others alone are built. Gigabytes are shared
    between processes. What is kept is mapped, so that the arrays of all files together take no memory.

    Args:
        paths: data files.
        build: makes a file's index from the file; picklable.
        options: what the result of `build` depends on beside the file.
        variant: what indices are called that lie beside those without it.

    Raises:
        DataError: a file that cannot be read, or whatever `build` finds.
    """
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(min(8, cores)) as pool:
        found = dict(zip(paths, pool.map(lambda path: _find_index(path, options, variant), paths)))
    missing = {path: os.stat(path).st_size for path, index in found.items() if index is None}
    total = sum(missing.values())
    run = _completed_in_processes if total >= _MANY_BYTES and cores > 1 else _completed_in_threads
    job = functools.partial(_build_index, build=build, options=options, variant=variant)
    bar = tqdm(total=total, desc="indexing", unit="B", unit_scale=True, delay=1.0, leave=False)
    # Closed at once, that an interruption does not wait for files that are not begun.
    with bar, contextlib.closing(run(job, missing, max(1, min(cores, len(missing))))) as built:
        for path, index in built:
            found[path] = index or _find_index(path, options, variant) or build(path)
            bar.update(missing[path])
    return [found[path] for path in paths]


def _find_index(path: str, options: str, variant: str) -> Index | None:
    """The index that is kept of a file, if there is one."""
    with reading(path):
        stamp = sidecar.fingerprint([path], VERSION, options)
        return sidecar.find(_beside(path, variant), lambda kept: _read_index(kept, stamp))


def _read_index(path: pathlib.Path, stamp: str) -> Index | None:
    with open(path, "rb") as file:
        content = map_file(file)
    index = Index.loads(content, stamp)
    let_go_of(content)  # what the checksum went through is not used yet
    return index


def _build_index(path: str, build: Callable[[str], Index], options: str, variant: str) -> tuple[str, Index | None]:
    """Builds the index of a file and says which; gives it where it cannot be kept."""
    with reading(path):
        stamp = sidecar.fingerprint([path], VERSION, options)
        index = build(path)
        content = index.dumps(stamp)
        kept = sidecar.keep(_beside(path, variant), lambda file: file.write(content))
        return path, None if kept else index


def _beside(path: str, variant: str) -> pathlib.Path:
    return pathlib.Path(f"{path}.{variant}.index" if variant else f"{path}.index")


_completed_in_processes = functools.partial(completed, mend="start again, which goes on here, with fewer cores")


def _completed_in_threads(function: Callable[[Job], Result], jobs: Iterable[Job], num_threads: int) -> Iterator[Result]:
    """`completed` in threads of this process: they wait for the disk together, and start at once."""
    pool = ThreadPoolExecutor(min(8, num_threads))
    try:
        yield from pool.map(function, jobs)
    finally:
        pool.shutdown(cancel_futures=True)
