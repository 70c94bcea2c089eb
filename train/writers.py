"""Writers of metrics: a JSONL file, TensorBoard, the terminal. Each has `write`, `rewind` and `close`."""

import hashlib
import json
import math
import os
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from videoauto_jax.errors import UsageError

# What the line on the terminal shows, in this order, where a run has it.
HEADLINE = (
    "loss",
    "reward",
    "rewards/accuracy_twice_boxed_reward1",
    "rewards/accuracy_twice_boxed_reward2",
    "rewards/format_twice_boxed_reward",
    "kl",
    "entropy",
    "clip_ratio/region_mean",
    "completions/mean_length",
    "frac_reward_zero_std",
    "grad_norm",
    "learning_rate",
)


class JsonlWriter:
    """One JSON object per line: `step`, `time` (seconds since 1970), then the metrics; NaN and infinities are null.

    Lines reach the operating system at once, so a killed process loses none. A line torn by a crash or a full disk is
    removed.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._keep(lambda record: True)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line, or nothing (`OSError`)."""
        record = {"step": int(step), "time": round(time.time(), 3)}
        record |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = (json.dumps(record) + "\n").encode()
        start = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError("the line was cut short")
        except OSError:
            self._file.truncate(start)
            raise

    def rewind(self, step: int) -> None:
        """Drops the lines of later steps."""
        self._keep(lambda record: record["step"] <= step)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _keep(self, wanted) -> None:
        old = self._path.read_bytes()
        new = b"".join(line for line in old.splitlines(keepends=True) if _is_whole(line) and wanted(json.loads(line)))
        if new == old:
            return
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(new)
        os.replace(temporary, self._path)
        self._file.close()
        self._file = self._path.open("ab", buffering=0)


class TensorBoardWriter:
    """Scalars for TensorBoard, which hides the events of later steps after a rewind."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer = None
        self._purge_step: int | None = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Queues the scalars and flushes them."""
        if self._writer is None:
            self._open()
        for name, value in values.items():
            if math.isfinite(value):  # TensorBoard would draw nothing and log a warning for each
                self._writer.add_scalar(name, value, int(step))
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Makes the next event file purge what came after `step`."""
        self.close()
        self._purge_step = step + 1

    def close(self) -> None:
        """Flushes and closes the event file; a later write opens another."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _open(self) -> None:
        from tensorboardX import SummaryWriter  # here because it loads protobuf, slowly, and can be switched off

        # Event files are named by the second: without the suffix a quick restart would overwrite its predecessor.
        suffix = f".{time.time_ns()}"
        self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step, filename_suffix=suffix)
        self._purge_step = None


class WandbWriter:
    """Weights & Biases; the run has the name of its folder, and a second start continues it.

    Raises:
        UsageError: the package wandb is not installed.
    """

    def __init__(self, folder: Path, project: str):
        try:
            import wandb  # here because it is optional
        except ImportError:
            fix = "Run `pip install wandb`, or leave wandb= out"
            raise UsageError("Weights & Biases is not installed", fix=fix) from None
        identity = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
        self._run = wandb.init(project=project, name=folder.name, id=identity, resume="allow", dir=str(folder))
        self._after = 0

    def write(self, step: int, values: dict[str, float]) -> None:
        """Queues the numbers; steps that an earlier start has logged already are not sent again."""
        if step > self._after:
            self._run.log({name: value for name, value in values.items() if math.isfinite(value)}, step=int(step))

    def rewind(self, step: int) -> None:
        """Nothing can be taken back: what was logged after `step` stays, and is the same when it comes again."""
        self._after = max(step, int(getattr(self._run, "step", 0) or 0) - 1)

    def close(self) -> None:
        """Uploads the rest."""
        self._run.finish()


class ConsoleWriter:
    """One line per step: the headline metrics, or all of them where a run has none of those."""

    def __init__(self, console: Console):
        self._console = console

    def write(self, step: int, values: dict[str, float]) -> None:
        """Prints the line."""
        shown = [name for name in HEADLINE if name in values] or list(values)
        line = Text(f"step {step:>6}", style="bold")
        for name in shown:
            line.append(f"  {name.rsplit('/', 1)[-1]} ", style="dim not bold")
            line.append(f"{values[name]:.4g}", style="not bold" if math.isfinite(values[name]) else "bold red")
        self._console.print(line, soft_wrap=True)

    def rewind(self, step: int) -> None:
        """Nothing: the terminal keeps what it shows."""

    def close(self) -> None:
        """Nothing to close."""


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line)["step"], int)
    except (ValueError, TypeError, LookupError):
        return False
