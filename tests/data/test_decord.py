"""decord behind its watchdog: the same frames where it can be trusted, one clear error where it cannot."""

from fractions import Fraction

import av
import numpy as np
import pytest

from videoauto_jax.data import decord_reader
from videoauto_jax.data.decord_reader import DecordReader
from videoauto_jax.data.processor import load_processor
from videoauto_jax.data.video import read_frames
from videoauto_jax.errors import ConfigError, MediaError

CLIPS = {
    "h264.mp4": {},
    "matroska.mkv": {"fps": Fraction(30000, 1001)},
    "fragmented.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "vp9.webm": {"codec": "libvpx-vp9", "size": (128, 96)},
    "turned.mp4": {"size": (96, 64), "rotation": 90},
}


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_pyav(name, tmp_path, write_clip):
    path = write_clip(tmp_path / name, **CLIPS[name])
    wanted = [50, 3, 3, 27, 0, 59, 1, 2, 4, 5]
    with DecordReader(path) as reader:
        found = reader.read(wanted)
    for frame, expected in zip(found, read_frames(path, wanted)):
        np.testing.assert_array_equal(frame, expected)


def test_bytes_and_transform(tmp_path, write_clip, frame_number):
    data = write_clip(tmp_path / "a.mp4").read_bytes()
    assert DecordReader(data).read([7, 40], lambda frame: frame_number(frame)) == [7, 40]


def test_frames_hidden_by_an_edit_list_are_refused(tmp_path, write_clip):
    source, cut = write_clip(tmp_path / "full.mp4", frames=100, gop=30), tmp_path / "cut.mp4"
    with av.open(str(source)) as full, av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = full.streams.video[0]
        copy, start = out.add_stream_from_template(stream), int(Fraction(50, 30) / stream.time_base)
        full.seek(start, stream=stream)
        for packet in full.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                out.mux(packet)
    with pytest.raises(MediaError, match=r"decord counts \d+ frames of 50 .*cut\.mp4.*video_reader=pyav"):
        DecordReader(cut).read([0, 1])


def test_what_decord_cannot_decode_is_named(tmp_path, write_clip):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("no AV1 encoder")
    path = write_clip(tmp_path / "av1.mp4", codec="libsvtav1", size=(128, 96))
    with pytest.raises(MediaError, match=r"decord: .*av1\.mp4.*video_reader=pyav"):
        DecordReader(path).read([0])


def test_a_worker_that_hangs_or_dies_is_replaced(tmp_path, write_clip, monkeypatch):
    path = write_clip(tmp_path / "a.mp4")
    DecordReader(path).read([0])
    monkeypatch.setattr(decord_reader, "TIMEOUT_S", 0.0)
    with pytest.raises(MediaError, match=r"did not answer in 0 s .*a\.mp4"):
        DecordReader(path).read(range(60))
    monkeypatch.undo()
    assert len(DecordReader(path).read([0, 1])) == 2
    decord_reader._WORKER._process.kill()
    decord_reader._WORKER._process.wait()
    with pytest.raises(MediaError, match="did not answer"):
        DecordReader(path).read([0])
    assert len(DecordReader(path).read([0, 1])) == 2


def test_the_processor_takes_either_reader(qwen_folder, tmp_path, write_clip):
    video = {"type": "video", "video": str(write_clip(tmp_path / "a.mp4")), "nframes": 4, "max_pixels": 4096}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": "?"}]}]
    one, other = (load_processor(qwen_folder, video_reader=name).encode(messages) for name in ("pyav", "decord"))
    np.testing.assert_array_equal(one.vision.patches, other.vision.patches)
    with pytest.raises(ConfigError, match="video_reader='opencv' .*pyav, decord"):
        load_processor(qwen_folder, video_reader="opencv")


def test_decord_that_cannot_be_imported_is_named(tmp_path, write_clip, monkeypatch):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "decord.py").write_text("raise ImportError('no decord here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
    decord_reader._WORKER.stop()
    try:
        with pytest.raises(MediaError, match=r"decord: cannot be imported: no decord here.*video_reader=pyav"):
            DecordReader(write_clip(tmp_path / "a.mp4")).read([0])
    finally:
        decord_reader._WORKER.stop()
