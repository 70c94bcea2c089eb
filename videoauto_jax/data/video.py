"""Reading exact frames of a video with PyAV.

A demux pass without decoding lists the presentation timestamps (pts) of every frame and keyframe; frame *i* is the
*i*-th smallest. Reading seeks to the last keyframe at or before a frame and decodes up to it. That stays exact for
variable frame rates, reordered frames, fragmented files and edit lists, where counting frames or trusting the container
does not. Of H.264, frames that nobody asked for and no other frame refers to (nal_ref_idc 0) are not decoded.
"""

import bisect
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from numpy import ndarray

from videoauto_jax.errors import MediaError

# Decoding this many frames that nobody asked for is still cheaper than a seek.
_SEEK_GAP = 8
_FIX = "Check that the file is complete, or convert it: ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p -an OUT.mp4"


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Facts of a video's picture track.

    Attributes:
        frames: frames that can be shown; those behind damage are not counted.
        fps: frames divided by duration.
        height, width: pixels, after rotation.
        duration: seconds from the first frame to the end of the last one.
    """

    frames: int
    fps: float
    height: int
    width: int
    duration: float


def probe(source: str | Path | bytes) -> VideoInfo:
    """Facts of a video, decoding one frame of it (and its end, if it looks damaged).

    Raises:
        MediaError: as `VideoReader`.
    """
    with VideoReader(source) as reader:
        return reader.info


def read_frames(source: str | Path | bytes, indices: Sequence[int]) -> UInt8[ndarray, "T H W 3"]:
    """RGB frames by index, in the order asked for.

    Of a damaged file all frames before the damage are returned: the result may then be shorter than `indices`.

    Raises:
        MediaError: as `VideoReader`, or an index is out of range.
    """
    with VideoReader(source) as reader:
        return np.stack(reader.read(indices))


class VideoReader:
    """An open video. Use it in a `with` block: an unclosed container keeps its memory and threads.

    Args:
        source: a path or the bytes of a file.
        threads: decoding threads; 1 is fastest for small videos and in data workers.

    Raises:
        MediaError: the file is missing, is no video, has no picture track, or not one frame of it can be decoded.
    """

    def __init__(self, source: str | Path | bytes, threads: int = 1):
        self._source, self._threads = source, threads
        self._where = str(source)[:200] if isinstance(source, str | Path) else "video bytes"
        self._reformatter = VideoReformatter()
        self._container = self._frames = self._frame = self._at = None
        self._seek_way, self._wanted = 0, None
        try:
            self._open()
            self._index()
            self.info = self._inspect()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._frames = self._frame = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def read(
        self, indices: Sequence[int], transform: Callable[[ndarray], ndarray] | None = None
    ) -> list[UInt8[ndarray, "H W 3"]]:
        """RGB frames by index, each through `transform` as soon as it is decoded (so that large frames do not pile up).

        A frame lost to damage shows the one before it. If nothing behind it decodes either, reading stops there, the
        frames before the damage are returned, and `info.frames` shrinks to what the file really holds.
        """
        found: dict[int, ndarray | None] = {}
        for index in indices:
            if not 0 <= index < len(self._pts):
                raise self._error(f"frame {index} of {len(self._pts)} does not exist")
        self._want({self._pts[index] for index in indices})
        for index in sorted(set(indices)):
            frame = self._find(self._pts[index])
            if frame is None and self._exhausted:
                self._trim()
                break
            found[index] = frame if frame is None else self._rgb(frame, transform)
        # The frame before a lost one, or the first that decodes if there is none before.
        last = next((pixels for pixels in found.values() if pixels is not None), None)
        for index, pixels in found.items():
            last = found[index] = last if pixels is None else pixels
        if last is None:
            raise self._error("no frame can be decoded")
        return [found[index] for index in indices if index in found]

    def _open(self) -> None:
        source = self._source
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            raise self._error("a video is not on this machine", "Download it first")
        if isinstance(source, str):
            source = source.removeprefix("file://")
        try:
            self._container = av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))
        except (av.FFmpegError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise self._error("video not found", "Check the path and the recipe's media folder") from error
            raise self._error(f"not a readable video: {error.strerror}") from error
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise self._error("the file has no picture track", "Give a video, not a sound file")
        self._stream = streams[0]
        self._stream.codec_context.thread_count = self._threads
        if self._threads > 1:
            self._stream.thread_type = "AUTO"

    def _index(self) -> None:
        """Sorted pts of what is shown and of every keyframe, among them keyframes that an edit list hides."""
        shown, keys, durations, self._suspect = [], [], {}, False
        for packet in self._packets():
            if packet is None or not packet.size:
                continue
            if packet.is_corrupt:
                self._suspect = True
                continue
            if packet.is_keyframe:
                # Matroska states no order of decoding: that of its first frames may be unknown.
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if not packet.is_discard:
                shown.append(packet.pts)
                durations[packet.pts] = packet.duration or 0
        self._counted = self._unstamped() or None in shown or any(pts is None for pts, _ in keys)
        if self._counted:
            shown, keys, durations = range(len(shown)), [(0, 0)], {}
        self._keys = sorted(keys) or [(min(shown, default=0),) * 2]
        self._pts = sorted({pts for pts in shown if pts >= self._keys[0][0]})
        if not self._pts:
            raise self._error("the video holds no frame")
        self._suspect |= len(shown) < self._stream.frames
        self._last_duration = durations.get(self._pts[-1], 0)

    def _inspect(self) -> VideoInfo:
        self._find(self._pts[0])
        if self._frame is None:
            raise self._error("no frame can be decoded")
        self._size, self._interlaced = (self._frame.width, self._frame.height), self._frame.interlaced_frame
        self._turns = round(self._frame.rotation / 90) % 4
        if self._suspect and self._find(self._pts[-1]) is None and self._exhausted:
            self._trim()
        width, height = self._size if self._turns % 2 == 0 else self._size[::-1]
        duration = self._duration()
        return VideoInfo(len(self._pts), len(self._pts) / duration, height, width, duration)

    def _duration(self) -> float:
        """Seconds by the timestamps; by the container's rate where that agrees to within their rounding."""
        count, base = len(self._pts), self._stream.time_base or Fraction(1, 1000)
        rate = self._stream.average_rate or self._stream.guessed_rate
        if self._counted:
            return count / float(rate or 25)
        step = self._last_duration or (round((self._pts[-1] - self._pts[0]) / (count - 1)) if count > 1 else 0)
        duration = float((self._pts[-1] - self._pts[0] + step) * base)
        if rate and (duration <= 0 or abs(count / rate - duration) <= 1.5 * base):
            return float(count / rate)
        return duration if duration > 0 else 1.0

    def _unstamped(self) -> bool:
        """AVI states no order of display: reordered frames can only be numbered as they come out of the decoder."""
        return self._container.format.name == "avi" and self._stream.codec_context.has_b_frames

    def _want(self, wanted: set[int] | None) -> None:
        """From here on only frames at these pts are looked for; None stands for all."""
        if self._wanted is not None:
            self._at = None  # the decoder is ahead of what it has shown, and has left out what was not wanted before
        # Of the two fields of a frame only one bears its pts.
        leave_out = self._stream.codec_context.name == "h264" and not self._counted and not self._interlaced
        self._wanted = wanted if leave_out else None

    def _find(self, pts: int) -> av.VideoFrame | None:
        """The frame shown at `pts`, or None if it does not decode; `_exhausted` tells if no later one does either."""
        frame = self._seek(pts)
        if frame is None and self._wanted is not None:
            self._want(None)
            frame = self._seek(pts)
        return frame

    def _seek(self, pts: int) -> av.VideoFrame | None:
        key = max(bisect.bisect_right(self._keys, pts, key=lambda stamps: stamps[0]) - 1, 0)
        if self._at is None or self._at > pts or self._frames_between(self._at, self._keys[key][0]) > _SEEK_GAP:
            self._approach(key, pts)
        while self._at is not None and self._at < pts and self._advance():
            pass
        return self._frame if self._at == pts else None

    def _frames_between(self, a: int, b: int) -> int:
        return bisect.bisect_left(self._pts, b) - bisect.bisect_left(self._pts, a)

    def _approach(self, key: int, pts: int) -> None:
        """Starts decoding at a keyframe at or before `pts`, and takes its first frame.

        Demuxers seek by pts (Matroska) or by dts (MPEG-TS, MP4) and some land behind the keyframe asked for. The way
        that works in a file is kept for the rest of it; only reopening, the dearest, is not.
        """
        before = self._keys[max(key - 1, 0)]
        stamps = [*self._keys[key], min(before), None]
        for way in range(self._seek_way, len(stamps)):
            self._restart(stamps[way])
            if self._advance() and self._at <= pts:
                self._seek_way = min(way, len(stamps) - 2)
                return

    def _restart(self, stamp: int | None) -> None:
        """Goes to a keyframe, or by opening the file again to its beginning."""
        self._at, self._frame, self._exhausted = None, None, False
        try:
            if self._counted or stamp is None:
                raise ValueError
            self._container.seek(stamp, stream=self._stream)
        except (av.FFmpegError, ValueError):
            self._container.close()
            self._open()
        self._frames = self._decode()

    def _advance(self) -> bool:
        """Goes on to the next frame; at the end the last one stays current."""
        frame = next(self._frames, None)
        if frame is None:
            self._exhausted = True
            return False
        self._at, self._frame = frame
        return True

    def _decode(self) -> Iterator[tuple[int, av.VideoFrame]]:
        numbers = itertools.count()
        for packet in self._packets():
            needed = self._wanted is None or packet is None or packet.pts in self._wanted
            self._stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            try:
                frames = self._stream.codec_context.decode(packet)
            except av.FFmpegError:
                continue
            for frame in frames:
                pts = next(numbers) if self._counted else frame.pts
                if pts is not None:
                    yield pts, frame

    def _packets(self) -> Iterator[av.Packet | None]:
        """Packets of the picture track up to the end or the damage, then an empty one or None to flush the decoder."""
        try:
            yield from self._container.demux(self._stream)
        except av.FFmpegError:
            self._suspect = True
            yield None

    def _trim(self) -> None:
        """Forgets what lies behind the last frame that decodes."""
        count = 0 if self._at is None else bisect.bisect_right(self._pts, self._at)
        if not count:
            raise self._error("no frame can be decoded")
        self._pts, self._suspect, self._last_duration = self._pts[:count], False, 0
        if hasattr(self, "info"):
            duration = self._duration()
            self.info = dataclasses.replace(self.info, frames=count, fps=count / duration, duration=duration)

    def _rgb(self, frame: av.VideoFrame, transform: Callable | None) -> ndarray:
        plane = self._reformatter.reformat(frame, *self._size, format="rgb24", threads=1).planes[0]
        # The frame's own memory: beside a copy it would go back to the system each time, and fresh pages cost more
        # than the conversion that fills them.
        lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: self._size[1], : 3 * self._size[0]]
        pixels = lines.reshape(*self._size[::-1], 3)
        pixels = np.ascontiguousarray(np.rot90(pixels, self._turns)) if self._turns else pixels
        return pixels if transform is None else transform(pixels)

    def _error(self, what: str, fix: str = _FIX) -> MediaError:
        return MediaError(what, where=self._where, fix=fix)
