"""The record of samples that could not be used: left out before the first draw, or skipped when they were drawn."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from videoauto_jax.files import write_atomic

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A sample that is not even drawn: its id, the path of its visual, and why."""

    id: str
    media: str | None
    reason: str


def left_out_earlier(path: str | Path) -> list[LeftOut] | None:
    """What a run left out when it began, by its log; None if it has not begun."""
    if not Path(path).exists():
        return None
    return [
        LeftOut(event["id"], event.get("media"), event.get("reason", ""))
        for event in _read(Path(path))
        if event.get("epoch", 0) is None and "id" in event
    ]


class SkipLog:
    """A JSON-lines file; an event that a resumed run meets again is not written again.

    Args:
        path: the file, or None to write nothing.
        left_out: what was left out before the first draw. The file begins with them, all of them or none, for a run
            that is taken up reads them there; a file that begins with others is begun anew.
    """

    def __init__(self, path: str | Path | None, left_out: Sequence[LeftOut] = ()):
        self.path = Path(path) if path is not None else None
        if self.path is not None and left_out_earlier(self.path) != list(left_out):
            self._begin(left_out)
        self._known = {_key(event) for event in _read(self.path)} if self.path is not None else set()

    def add(self, event: dict) -> None:
        """Writes one event: a JSON object with at least `epoch`, `position` and `id`.

        What cannot be written (full disk) is reported and ends nothing.
        """
        if self.path is None or _key(event) in self._known:
            return
        self._known.add(_key(event))
        try:
            self._write(event)
        except OSError as error:
            log.warning("a skipped sample was not written to %s: %s", self.path, error)

    def _begin(self, left_out: Sequence[LeftOut]) -> None:
        nowhere = {"epoch": None, "position": None}
        events = [nowhere | dataclasses.asdict(one) | {"substitute": None} for one in left_out]
        try:
            write_atomic(self.path, "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events))
        except OSError as error:
            log.warning("samples that are left out were not written to %s: %s", self.path, error)

    def _write(self, event: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._torn_line_end() + json.dumps(event, ensure_ascii=False) + "\n")

    def _torn_line_end(self) -> str:
        # A process killed while writing leaves half a line; it must not swallow the next one.
        if not self.path.exists() or self.path.stat().st_size == 0:
            return ""
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return "" if file.read(1) == b"\n" else "\n"


def _read(path: Path) -> list[dict]:
    """The whole events of a log."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [event for event in events if isinstance(event, dict)]


def _key(event: dict) -> tuple:
    return event.get("epoch"), event.get("position"), event.get("id")
