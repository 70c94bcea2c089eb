"""The process in which decord decodes, run as a script: it may hang or crash without taking anything else with it.

Requests come as tuples over an inherited connection: `("open", source)` answers the number of frames,
`("read", indices)` the frames. What goes wrong is answered as text.
"""

import ctypes
import io
import signal
import sys
from multiprocessing.connection import Connection


def main(descriptor: int) -> None:
    """Answers requests until the connection closes."""
    # A worker that spins inside decord would outlive a killed parent.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        decord, broken = None, f"cannot be imported: {error}".splitlines()[0]
    else:
        decord.logging.set_level(decord.logging.QUIET)
    connection, reader = Connection(descriptor), None
    while True:
        try:
            kind, value = connection.recv()
        except EOFError:
            return
        try:
            if decord is None:
                answer = broken
            elif kind == "open":
                source = io.BytesIO(value) if isinstance(value, bytes) else value
                reader = decord.VideoReader(source, num_threads=1)
                answer = len(reader)
            else:
                answer = reader.get_batch(value).asnumpy()
        except Exception as error:  # decord raises its own kind for everything
            answer = (str(error).strip().splitlines() or [type(error).__name__])[0]
        connection.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
