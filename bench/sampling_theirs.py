"""How long transformers' `generate` takes for many continuations of one long prompt, with random weights on a GPU.

    python bench/sampling_theirs.py configs/models/qwen3-vl-8b-instruct.json 16384 16 128

A process of its own, so that its memory is free again afterwards.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

BRANCHES, TOKENS = 16, 128


def in_a_process(config: Path, length: int, branches: int = BRANCHES, tokens: int = TOKENS) -> dict:
    """What `measure` finds, or why it finds nothing."""
    command = [sys.executable, __file__, *map(str, (config, length, branches, tokens))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(facts: dict, length: int, branches: int, tokens: int, device: str) -> dict:
    """Seconds for all continuations. They are written together, or in as few parts as memory allows."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**facts), dtype=torch.bfloat16).eval()
        ids = torch.randint(32, 256, (1, length))
    options = {"do_sample": True, "top_k": 0, "pad_token_id": 0, "eos_token_id": None}

    def write(ids: torch.Tensor, count: int, tokens: int) -> None:
        with torch.no_grad():
            mask = torch.ones_like(ids)
            written = model.generate(
                ids, attention_mask=mask, num_return_sequences=count, max_new_tokens=tokens, **options
            )
        assert written.shape == (count, ids.shape[1] + tokens)

    write(ids[:, :128], branches, 4)
    together = branches
    while True:
        start = time.perf_counter()
        try:
            for _ in range(branches // together):
                write(ids, together, tokens)
            return {"seconds": time.perf_counter() - start, "together": together, "tokens": tokens, "length": length}
        except torch.OutOfMemoryError:
            if together == 1:
                raise
            together //= 2
            torch.cuda.empty_cache()


def main() -> None:
    """Runs the command line."""
    import torch

    config, *sizes = sys.argv[1:]
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    print(json.dumps(measure(json.loads(Path(config).read_text()), *map(int, sizes), "cuda")))


if __name__ == "__main__":
    main()
