"""The picture of a measurement: speed of causal attention, and of decoding, over length."""

from pathlib import Path

import matplotlib.pyplot as plt


def draw(results: dict, path: Path) -> None:
    """One panel per model and operation; useful TFLOP/s forward, share of the copy bandwidth for decoding."""
    kinds = {"7b-causal": "flops", "8b-causal": "flops", "7b-decode": "bytes", "8b-decode": "bytes"}
    figure, axes = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 3.5), constrained_layout=True)
    for axis, (kind, measure) in zip(axes, kinds.items()):
        lines: dict[str, list[tuple[int, float]]] = {}
        for record in results["cases"]:
            if not record["name"].startswith(kind) or "int8" in record["name"] or record["case"]["ragged"]:
                continue
            length = int(record["name"].split("-")[2].rstrip("k"))
            suffix = " fp8" if "float8" in record["name"] else ""
            scale = 1e12 if measure == "flops" else results["copy_bytes_per_second"]
            for name, seconds in record["seconds"].items():
                if not name.endswith("+grad"):
                    lines.setdefault(name + suffix, []).append((length, record[measure] / seconds / scale))
        for name, points in sorted(lines.items()):
            axis.plot(*zip(*sorted(points)), marker="o", label=name)
        axis.set(title=kind, xscale="log", xlabel="thousand tokens", ylim=(0, None))
        axis.set_ylabel("TFLOP/s forward" if measure == "flops" else "share of copy bandwidth")
        if lines:
            axis.legend(fontsize=8)
    figure.suptitle(results["device"])
    figure.savefig(path, dpi=120)
