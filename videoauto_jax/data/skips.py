"""The record of samples that could not be used."""

import json
import logging
from pathlib import Path

log = logging.getLogger(__name__)


class SkipLog:
    """Appends to a JSON-lines file; an event that a resumed run meets again is not written again.

    Attributes:
        path: the file, or None to write nothing.
    """

    def __init__(self, path: str | Path | None):
        self.path = Path(path) if path is not None else None
        self._known = {_key(event) for event in self._read()}

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

    def _read(self) -> list[dict]:
        if self.path is None or not self.path.exists():
            return []
        events = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return [event for event in events if isinstance(event, dict)]


def _key(event: dict) -> tuple:
    return event.get("epoch"), event.get("position"), event.get("id")
