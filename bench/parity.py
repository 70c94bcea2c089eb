"""The largest difference between our logits and those of transformers' torch classes, for every family and prompt.

    python bench/parity.py [--result bench/results/parity.json]

On the tiny random checkpoints and prompts of tests/models/test_qwen_vl.py, float32 everywhere.
"""

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def module(path: str):
    """A test module, imported by its file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def measure(family: str, folder: Path, cases, conventions: tuple[str, ...]) -> dict:
    import jax
    import numpy as np
    import torch

    from videoauto_jax.data.processor import load_processor
    from videoauto_jax.data.visuals import load_visual
    from videoauto_jax.data.windows import token_rows
    from videoauto_jax.models.hf import load_model

    ours, theirs = load_model(folder, dtype="float32"), cases.theirs(folder)
    found = {}
    for convention in conventions:
        processor = load_processor(folder, position_convention=convention)
        batch = np.asarray(cases.forward(ours, processor(list(cases.CASES.values()))))
        for name, row in zip(cases.CASES, batch):
            inputs = cases.torch_inputs(cases.CASES[name], processor)
            if convention == "upstream":  # transformers 5 numbers videos of Qwen2.5-VL otherwise: give it the positions
                positions = processor.encode(cases.CASES[name]).positions
                inputs["position_ids"] = torch.tensor(positions)[:, None].long()
            expected = cases.their_logits(theirs, inputs)
            found[f"{name}, {convention} positions"] = float(np.abs(row[: len(expected)] - expected).max())
    settings = load_processor(folder).settings
    visual = load_visual(cases.CASES["video"][0]["content"][0], settings)
    with torch.no_grad():
        tower = theirs.model.visual(cases.pixel_values(visual, settings), torch.tensor([visual.grid]))
    features = jax.jit(lambda model, vision: model.encode_vision(vision))(ours, visual.vision)
    found["vision tower"] = float(np.abs(features.last - tower.last_hidden_state.numpy()).max())
    merged = ours.merge_vision(features).slots[token_rows(visual.grid, settings.window)]
    found["merger"] = float(np.abs(merged - tower.pooler_output.numpy()).max())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results" / "parity.json")
    arguments = parser.parse_args()
    conftest, cases = module("tests/conftest.py"), module("tests/models/test_qwen_vl.py")
    result = {"date": time.strftime("%Y-%m-%d"), "command": "python bench/parity.py"}
    for family in conftest.FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            conftest.write_checkpoint(Path(folder), family)
            result[family] = measure(family, Path(folder), cases, ("upstream", "hf"))
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
