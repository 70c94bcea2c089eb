"""Errors a user can act on: what happened, where, and what to do about it."""

import errno

_REMEDIES = {
    errno.ENOSPC: "Free some space and run the same command again",
    errno.EDQUOT: "Free some space and run the same command again",
    errno.EACCES: "Change its permissions or name another place",
    errno.EPERM: "Change its permissions or name another place",
    errno.EROFS: "Name a place that can be written",
    errno.ENOENT: "Check the path",
}


class VideoAutoError(Exception):
    """A failure with one clear line: `what`, then ` (where)`, then `: fix`. Verbs print it without a traceback.

    Attributes:
        exit_status: the process's exit status when a verb ends with this error (1 failure, 2 usage).
    """

    exit_status = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None):
        self.what, self.where, self.fix = what, where, fix
        place = f" ({where})" if where is not None else ""
        remedy = f". {fix}" if fix else ""
        super().__init__(f"{what}{place}{remedy}")

    def __reduce__(self):
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[VideoAutoError], what: str, where: object, fix: str | None) -> VideoAutoError:
    return kind(what, where=where, fix=fix)


class UsageError(VideoAutoError):
    """A wrong verb, argument or combination of arguments."""

    exit_status = 2


class ConfigError(UsageError):
    """A recipe that does not parse: unknown key, wrong type, impossible arithmetic."""


class DataError(VideoAutoError):
    """An annotation that cannot be used: broken line, missing field, unknown problem type."""


class MediaError(VideoAutoError):
    """An image or video that cannot be read or does not fit its budget."""


class ModelError(VideoAutoError):
    """A checkpoint folder that is not, or not entirely, a model we know."""


class CheckpointError(VideoAutoError):
    """A training checkpoint that cannot be written or restored."""


class TrainingError(VideoAutoError):
    """A run that cannot go on: gradients that stay non-finite."""


class BackendError(VideoAutoError):
    """A named attention backend that does not exist or cannot serve the call."""


def explain(error: Exception) -> tuple[int, str]:
    """The exit status and the one line that an error ends with."""
    if isinstance(error, VideoAutoError):
        return error.exit_status, _one_line(error)
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        place = f" ({error.filename})" if error.filename else ""
        what = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror).lower()
        return 1, f"{what}{place}. {_REMEDIES[error.errno]}"
    what = f"{type(error).__name__}: {_one_line(error)}".rstrip(" .:")
    return 1, f"{what if len(what) <= 300 else f'{what[:297]}...'}. Run with --debug for the traceback"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
