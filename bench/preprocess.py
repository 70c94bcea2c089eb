"""Video to model inputs: ours against qwen-vl-utils with transformers' processor, on one core, in turns.

    python bench/preprocess.py [--result bench/results/preprocess.json]

A 60 s 1080p H.264 clip at 30 frames per second under the paper's training budget (2 frames per second, 4096 tokens in
all). `video`: the file through qwen-vl-utils (decord) and the video processor. `frames`: the same 120 frames as JPEG
files, which qwen-vl-utils opens and resizes as images. Needs torch, torchvision, qwen-vl-utils and requests beside this
package. Every turn is a process of its own, bound to one core; what is stated is the median of the turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TURNS = 3
SECONDS, RATE, SIZE = 60, 30, (1920, 1080)

COMMON = """
import json, os, sys, time
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
clip, frames, folder, patch = *sys.argv[1:4], int(sys.argv[4])
area = (2 * patch) ** 2
budget = {"min_pixels": 16 * area, "max_pixels": 768 * area, "total_pixels": 4096 * area, "max_frames": 256, "fps": 2.0}
def chat(video, **more):
    return [{"role": "user", "content": [{"type": "video", "video": video, **budget, **more},
                                         {"type": "text", "text": "What happens?"}]}]
def timed(make):
    make()
    start = time.perf_counter(); made = make(); return time.perf_counter() - start, made
"""
OURS = (
    COMMON
    + """
from videoauto_jax.data.processor import load_processor
processor = load_processor(folder, cache_bytes=0)
seconds, inputs = timed(lambda: processor([chat(clip)]))
print(json.dumps([seconds, int((inputs.vision.segment_ids > 0).sum())]))
"""
)
THEIRS = (
    COMMON
    + """
import torch
lib = torch.library.Library("torchvision", "DEF")  # lets PyPI's torchvision import beside a CPU build of torch
for op in ("nms", "qnms"):
    lib.define(op + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.set_num_threads(1)
os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"
from pathlib import Path
from qwen_vl_utils import process_vision_info
from transformers import AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
tokenizer = AutoTokenizer.from_pretrained(folder)
kinds = (Qwen3VLProcessor, Qwen3VLVideoProcessor) if patch == 16 else (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor)
options = {"patch_size": patch}
processor = kinds[0](image_processor=Qwen2VLImageProcessor(**options), tokenizer=tokenizer,
                     video_processor=kinds[1](**options), chat_template=tokenizer.chat_template)
def run(messages):
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images, videos, more = process_vision_info(messages, return_video_kwargs=True, return_video_metadata=True,
                                               image_patch_size=patch)
    pixels, metadata = zip(*videos)
    return processor(text=[text], videos=list(pixels), video_metadata=list(metadata), do_resize=False,
                     do_sample_frames=False, return_tensors="pt")
paths = [str(path) for path in sorted(Path(frames).iterdir())]
messages = chat(clip) if sys.argv[5] == "video" else chat(paths, sample_fps=2.0)
seconds, inputs = timed(lambda: run(messages))
print(json.dumps([seconds, len(inputs["pixel_values_videos"])]))
"""
)


def write_clip(path: Path, frames: Path) -> None:
    """Moving shapes over noise that changes slowly; the frames that 2 per second sample, as JPEG files."""
    import av
    import numpy as np
    from PIL import Image

    from videoauto_jax.data.vision import plan_video

    wanted = set(plan_video(SECONDS * RATE, float(RATE), SIZE[1], SIZE[0], {"fps": 2.0, "max_frames": 256}).indices)
    rng, (width, height) = np.random.default_rng(0), SIZE
    ground = np.kron(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    frames.mkdir()
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23"}
        for i in range(SECONDS * RATE):
            picture = np.roll(ground, 4 * i, axis=1)
            picture[300:700, (11 * i) % 1500 : (11 * i) % 1500 + 400] = (i % 256, 80, 200)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            if i in wanted:
                Image.fromarray(picture).save(frames / f"{i:05}.jpg", quality=95)
        file.mux(stream.encode())


def run(code: str, *arguments: object) -> tuple[float, int]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def measure(folder: Path, conftest) -> dict:
    clip, frames, result = folder / "clip.mp4", folder / "frames", {}
    write_clip(clip, frames)
    for family, patch in (("qwen2_5_vl", 14), ("qwen3_vl", 16)):
        checkpoint = folder / family
        checkpoint.mkdir()
        conftest.write_checkpoint(checkpoint, family)
        shared = clip, frames, checkpoint, patch
        turns = [
            (run(OURS, *shared), run(THEIRS, *shared, "video"), run(THEIRS, *shared, "frames")) for _ in range(TURNS)
        ]
        seconds = [statistics.median(turn[i][0] for turn in turns) for i in range(3)]
        result[family] = {
            "ours_seconds": seconds[0],
            "theirs_video_seconds": seconds[1],
            "theirs_frames_seconds": seconds[2],
            "theirs_video_over_ours": seconds[1] / seconds[0],
            "theirs_frames_over_ours": seconds[2] / seconds[0],
            "patches": [count for _, count in turns[0]],
        }
    return result


def main() -> None:
    import importlib.util

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "preprocess.json")
    arguments = parser.parse_args()
    spec = importlib.util.spec_from_file_location("conftest", Path(__file__).parents[1] / "tests" / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), conftest)
    result = {"date": time.strftime("%Y-%m-%d"), "command": "python bench/preprocess.py", "turns": TURNS, **result}
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
