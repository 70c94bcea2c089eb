"""Exact frames from real files: many containers, odd timestamps, rotation, damage."""

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from videoauto_jax.data.video import VideoReader, probe, read_frames
from videoauto_jax.errors import MediaError

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
CLIPS = {
    "h264.mp4": {},
    "no_reorder.mp4": {"options": {"bf": "0"}},
    "one_gop.mp4": {"gop": 250, "fps": Fraction(30000, 1001)},
    "intra.mp4": {"gop": 1},
    "fragmented.mp4": {"container": FRAGMENTED},
    "matroska.mkv": {"fps": Fraction(30000, 1001)},
    "dts_only.avi": {},
    "transport.ts": {},
    "raw.h264": {"fps": 25},
    "vp9.webm": {"codec": "libvpx-vp9", "size": (128, 96)},
    "hevc.mp4": {"codec": "libx265", "size": (128, 96), "options": {"x265-params": "log-level=none"}},
    "av1.mp4": {"codec": "libsvtav1", "size": (128, 96)},
}


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_exact(name, tmp_path, write_clip, frame_number):
    options = CLIPS[name]
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"no encoder {options['codec']}")
    path = write_clip(tmp_path / name, **options)
    info = probe(path)
    assert info.frames == 60
    assert info.fps == pytest.approx(float(options.get("fps", 30)), abs=1e-9)
    assert (info.height, info.width) == options.get("size", (64, 64))[::-1]
    for wanted in (range(60), [50, 3, 3, 27, 0], [59]):
        frames = read_frames(path, wanted)
        assert frames.dtype == np.uint8
        assert [frame_number(frame) for frame in frames] == list(wanted)


def test_frames_that_nothing_needs_are_not_decoded(tmp_path, write_clip):
    path = write_clip(tmp_path / "pyramid.mp4", gop=60, seed=0, options={"b_strategy": "0", "sc_threshold": "0"})
    whole = read_frames(path, range(60))
    with VideoReader(path) as reader:
        decoded, real = [], reader._advance
        reader._advance = lambda: decoded.append(1) or real()
        for wanted in ([0, 7, 14, 27, 59], [8, 9, 10, 58]):  # the decoder has left out the second ones when it is asked
            np.testing.assert_array_equal(reader.read(wanted), whole[wanted])
    assert 10 < len(decoded) < 100  # of 120


@pytest.mark.parametrize("container", ["mp4", "mkv"])  # Matroska does not tell the decoding time of the first frames
def test_variable_frame_rate(container, tmp_path, write_clip, frame_number):
    pts = np.cumsum(np.random.default_rng(0).integers(20, 80, 60))
    path = write_clip(tmp_path / f"vfr.{container}", pts=pts.tolist())
    with VideoReader(path) as reader:
        assert [frame_number(frame) for frame in reader.read([1, 30, 59])] == [1, 30, 59]
        assert reader.info.fps == 60 / reader.info.duration
        # Up to the start of the last frame the time is known; how long that is shown, the container chooses.
        assert 0 < reader.info.duration - (pts[-1] - pts[0]) / 1000 < 0.081


def test_an_edit_list_hides_frames(tmp_path, write_clip, frame_number):
    source, cut = write_clip(tmp_path / "full.mp4", frames=100, gop=30), tmp_path / "cut.mp4"
    with av.open(str(source)) as full, av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = full.streams.video[0]
        copy, start = out.add_stream_from_template(stream), int(Fraction(50, 30) / stream.time_base)
        full.seek(start, stream=stream)
        for packet in full.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                out.mux(packet)
    frames = read_frames(cut, range(probe(cut).frames))
    assert [frame_number(frame) for frame in frames] == list(range(50, 100))
    assert [frame_number(frame) for frame in read_frames(cut, [30, 2, 40])] == [80, 52, 90]


@pytest.mark.parametrize(("degrees", "edge"), [(90, "left"), (180, "bottom"), (270, "right"), (-90, "right")])
def test_rotation_is_applied(degrees, edge, tmp_path, write_clip):
    path = write_clip(tmp_path / "turned.mp4", frames=4, size=(96, 64), rotation=degrees)
    info, frame = probe(path), read_frames(path, [0])[0].astype(int)
    assert frame.shape[:2] == (info.height, info.width) == ((64, 96) if degrees == 180 else (96, 64))
    blue = frame[..., 2] - frame[..., 0]
    edges = {"left": blue[:, 4], "right": blue[:, -5], "bottom": blue[-5], "top": blue[4]}
    assert max(edges, key=lambda name: edges[name].mean()) == edge


@pytest.mark.parametrize(
    ("name", "container"),
    [
        ("faststart.mp4", {"movflags": "faststart"}),
        ("fragmented.mp4", FRAGMENTED),
        ("matroska.mkv", {}),
        ("dts.avi", {}),
    ],
)
@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_a_truncated_file_gives_the_frames_before_the_cut(name, container, kept, tmp_path, write_clip):
    path = write_clip(tmp_path / name, size=(128, 96), container=container, seed=0)
    whole, data = read_frames(path, range(60)), path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    info = probe(path)
    assert 60 * kept - 6 <= info.frames < 60
    np.testing.assert_array_equal(read_frames(path, range(info.frames)), whole[: info.frames])
    assert info.duration == pytest.approx(info.frames / 30, abs=0.01)


def test_damage_in_the_middle(tmp_path, write_clip):
    path = write_clip(tmp_path / "damaged.mp4", size=(128, 96), container={"movflags": "faststart"}, seed=0)
    whole, data = read_frames(path, range(60)), bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(data)
    frames = read_frames(path, range(60))
    same = [np.array_equal(a, b) for a, b in zip(frames, whole)]
    assert len(frames) == 60
    assert sum(same) >= 55
    assert all(same[:26])
    assert all(same[-20:])
    data[half:] = bytes(len(data) - half)
    path.write_bytes(data)
    with VideoReader(path) as reader:
        frames = reader.read(range(60))
        assert len(frames) == reader.info.frames < 35
        np.testing.assert_array_equal(frames[:26], whole[:26])


def test_bytes_and_transform(tmp_path, write_clip, frame_number):
    data = write_clip(tmp_path / "a.mp4").read_bytes()
    with VideoReader(data, threads=2) as reader:
        assert [int(mean) for mean in reader.read([0, 255 % 60], lambda frame: frame_number(frame))] == [0, 15]
        with pytest.raises(MediaError, match="frame 60 of 60 does not exist"):
            reader.read([60])


def test_what_is_no_video_is_named(tmp_path, write_clip):
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    contents = {
        "empty.mp4": b"",
        "garbage.mp4": np.random.default_rng(0).bytes(5000),
        "no_index.mp4": whole[: len(whole) // 2],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=rf"not a readable video.*{name}.*ffmpeg"):
            probe(tmp_path / name)
    with pytest.raises(MediaError, match="video not found .*missing.mp4"):
        probe(str(tmp_path / "missing.mp4"))
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with pytest.raises(MediaError, match="no picture track .*sound.mp4"):
        probe(tmp_path / "sound.mp4")


def test_memory_is_flat_over_a_thousand_opens(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mp4", frames=4, size=(160, 120), seed=0)  # a frame kept each time would be 57 MB
    code = f"""
import os
from videoauto_jax.data.video import read_frames
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
for opened in range(1000):
    read_frames({str(path)!r}, [0, 2])
    if opened == 100:
        before = resident()
print(resident() - before, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, threads, files = map(float, done.stdout.split())
    assert grown < 8 and threads < 40 and files < 20, (grown, threads, files)
