"""Scenes as real media files: H.264 in MP4 and PNG, made by a pool of processes.

A file is whole or absent, so an interrupted world is finished by making what is missing.
"""

import dataclasses
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import av
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from videoauto_jax.cli.quickstart.scene import FRAMES_PER_SECOND, make_scene, render, render_still
from videoauto_jax.errors import MediaError

_AT_ONCE = 16  # files a process makes before it reports


@dataclasses.dataclass(frozen=True)
class MediaFile:
    """A file to make: the video of a scene, or a still of one of its seconds."""

    path: Path
    seed: int
    second: int | None = None


def make_files(
    files: Sequence[MediaFile], *, size: int, workers: int, report: Callable[[int, int], None] | None = None
) -> None:
    """Makes the files that do not exist yet. The same file has the same bytes wherever and whenever it is made.

    Args:
        size: side of the pictures in pixels, even.
        workers: processes; 0 makes them in this one.
        report: told how many of all files are there.

    Raises:
        OSError: a file cannot be written; the files made so far stay.
        MediaError: a process died.
    """
    for folder in {file.path.parent for file in files}:
        folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not file.path.exists()]
    chunks = [missing[i : i + _AT_ONCE] for i in range(0, len(missing), _AT_ONCE)]
    done = len(files) - len(missing)
    for made in _finished(chunks, size, workers):
        done += made
        if report:
            report(done, len(files))


def write_video(path: Path, frames: UInt8[ndarray, "T H W 3"], fps: int = FRAMES_PER_SECOND) -> None:
    """Writes frames as H.264 (yuv420p, CRF 18)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1  # the processes are the parallelism
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    _write(path, buffer.getvalue())


def write_image(path: Path, picture: UInt8[ndarray, "H W 3"]) -> None:
    """Writes a picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    _write(path, buffer.getvalue())


def _finished(chunks: list[list[MediaFile]], size: int, workers: int):
    """Makes the chunks and yields the size of each that is done."""
    if workers == 0 or len(chunks) <= 1:
        yield from (_make(chunk, size) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")  # the parent may run jax, whose threads do not survive a fork
    pool = ProcessPoolExecutor(min(workers, len(chunks)), context, initializer=_obey_parent)
    try:
        for future in as_completed([pool.submit(_make, chunk, size) for chunk in chunks]):
            yield future.result()
    except BrokenProcessPool as error:
        fix = "Free some memory and run the same command again"
        raise MediaError("a process that makes videos died", fix=fix) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _make(files: Sequence[MediaFile], size: int) -> int:
    for file in files:
        scene = make_scene(file.seed)
        if file.second is None:
            write_video(file.path, render(scene, size))
        else:
            write_image(file.path, render_still(scene, file.second, size))
    return len(files)


def _write(path: Path, content: bytes) -> None:
    # Not files.write_atomic: syncing thousands of files that can be made again costs more than making them.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _obey_parent() -> None:
    """Ctrl-C is the parent's to handle; a parent that dies takes its workers along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _leave_with(parent) -> None:
    parent.join()
    os._exit(1)
