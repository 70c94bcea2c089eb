"""The stream: same prompts whatever the workers, the interruptions and the damage."""

import errno
import json
import os
import sys
from unittest import mock

import cloudpickle
import numpy as np
import pytest

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.order import epoch_order
from videoauto_jax.data.skips import LeftOut, SkipLog, left_out_earlier
from videoauto_jax.data.stream import PromptStream, StreamConfig
from videoauto_jax.errors import CheckpointError, ConfigError, DataError, MediaError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file


class Encoder:
    """Encodes text `n` to n + 1 tokens; `bad` texts are damaged media, `deadly` ones kill the process."""

    def __init__(self, bad=(), deadly=()):
        self.bad, self.deadly = set(bad), set(deadly)

    def encode(self, messages):
        number = int(messages[-1]["content"])
        if number in self.bad:
            raise MediaError("cannot be decoded", where=f"{number}.mp4")
        if number in self.deadly:
            os._exit(11)
        tokens = np.full(number + 1, number, np.int32)
        return Encoded(tokens, np.stack([tokens] * 3), np.full_like(tokens, -1), None, number + 1, str(number))


def samples(count):
    return [Sample([{"role": "user", "content": str(n)}], n, "math", "fake", f"fake/{n}") for n in range(count)]


def stream(count=11, encoder=None, *, host=(0, 1), skip_log=None, **config):
    """The stream of one process of several, which nobody answers: it gives that process's part of each batch."""
    config = StreamConfig(**{"batch_size": 4, "seed": 7, "workers": 0} | config)
    index, processes = ({"return_value": number} for number in host)
    with mock.patch("jax.process_index", **index), mock.patch("jax.process_count", **processes):
        return PromptStream(samples(count), encoder or Encoder(), config, skip_log=skip_log)


def take(source, batches):
    """The indices of the next batches, after checking that index, sample and tokens belong together."""
    found = []
    for _ in range(batches):
        batch = next(source)
        for index, sample, encoded in batch:
            assert sample.answer == index and encoded.token_ids.tolist() == [index] * (index + 1)
        found.append([index for index, *_ in batch])
    return found


def expected(count, seed, epochs, batch):
    orders = [epoch_order(count, seed, epoch).tolist() for epoch in range(epochs)]
    return [order[k : k + batch] for order in orders for k in range(0, count - batch + 1, batch)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_is_that_of_the_seed(workers):
    with stream(workers=workers, epochs=3) as source:
        assert [[index for index, *_ in batch] for batch in source] == expected(11, 7, 3, 4)
        assert len(source) == 2 and source.state()["epoch"] == 3


def test_resume_crosses_workers_and_hosts():
    whole = expected(11, 7, 3, 4)
    with stream(workers=2) as source:
        assert take(source, 3) == whole[:3]  # into the second epoch
        state = json.loads(json.dumps(source.state()))
    assert state["epoch"] == 1 and state["next_index"] == 4
    with stream(workers=1) as source:
        source.restore(state)
        assert take(source, 2) == whole[3:5]
        source.restore(state)  # also a stream in use
        assert take(source, 1) == whole[3:4]
    parts = [stream(host=(host, 2)) for host in range(2)]
    for part in parts:
        part.restore(state)
        assert part.state() == state
    left, right = (take(part, 3) for part in parts)
    assert [a + b for a, b in zip(left, right)] == whole[3:6]


def test_damage_changes_nothing_that_follows(tmp_path):
    clean = expected(11, 7, 2, 4)
    bad = clean[0][1]
    found = {}
    for workers in (0, 2):
        log = tmp_path / f"skipped{workers}.jsonl"
        with stream(encoder=Encoder(bad=[bad]), workers=workers, skip_log=log) as source:
            found[workers] = take(source, 4)
            assert source.skipped == sum(batch.count(bad) for batch in clean)
        events = [json.loads(line) for line in log.read_text().splitlines()]
        assert events[0] == {
            **{"epoch": 0, "position": 1, "id": f"fake/{bad}", "media": None},
            **{"reason": f"MediaError: cannot be decoded ({bad}.mp4)", "substitute": f"fake/{found[workers][0][1]}"},
        }
    assert found[0] == found[2]
    for batch, undisturbed in zip(found[0], clean):
        assert len(batch) == 4 and bad not in batch
        assert all(a == b for a, b in zip(batch, undisturbed) if b != bad)


def test_resumed_run_writes_no_event_twice(tmp_path):
    log = tmp_path / "skipped.jsonl"
    for batches in (1, 4):  # killed after one batch, then from the start
        take(stream(encoder=Encoder(bad=[1, 2]), skip_log=log), batches)
        with log.open("a") as file:
            file.write('{"epoch": 0, "posi')  # the kill tore a line
    events = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    keys = [(event["epoch"], event["position"], event["id"]) for event in events]
    once = tmp_path / "once.jsonl"
    take(stream(encoder=Encoder(bad=[1, 2]), skip_log=once), 4)
    assert len(set(keys)) == len(keys) and events == [json.loads(line) for line in once.read_text().splitlines()]


def test_samples_left_out_beforehand_begin_the_log(tmp_path):
    log, out = tmp_path / "skipped.jsonl", [LeftOut("fake/11", "a.mp4", "its media do not exist")]
    assert left_out_earlier(log) is None

    def source():
        config = StreamConfig(batch_size=4, seed=7, workers=0)
        return PromptStream(samples(11), Encoder(bad=[1, 2]), config, skip_log=log, left_out=out)

    one = source()
    take(one, 4)
    written = log.read_text()
    first, *others = map(json.loads, written.splitlines())
    assert first["id"] == "fake/11" and first["epoch"] is None and len(others) == one.skipped > 0
    assert left_out_earlier(log) == out
    again = source()
    again.restore(one.state())
    assert (again.left_out, again.skipped) == (1, one.skipped) and log.read_text() == written
    SkipLog(log)  # a run that leaves nothing out begins anew
    assert log.read_text() == "" and left_out_earlier(log) == []


def test_sample_that_kills_its_worker_is_skipped(tmp_path):
    clean = expected(11, 7, 1, 4)
    deadly = clean[0][0]
    log, encoder = tmp_path / "skipped.jsonl", Encoder(deadly=[deadly])
    with stream(encoder=encoder, workers=1, epochs=1, skip_log=log) as source:
        found = take(source, 2)
    assert found[0][0] != deadly and found[0][1:] == clean[0][1:] and found[1] == clean[1]
    (event,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert event["id"] == f"fake/{deadly}" and event["reason"] == "its worker process died"


def test_long_prompts_are_skipped_by_name(tmp_path):
    source = stream(max_prompt_tokens=8, skip_log=tmp_path / "skipped.jsonl")
    assert max(max(batch) for batch in take(source, 6)) == 7
    assert "max_prompt_tokens is 8" in (tmp_path / "skipped.jsonl").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_everywhere_is_an_error(workers):
    with (
        stream(encoder=Encoder(bad=range(11)), workers=workers) as source,
        pytest.raises(DataError, match="samples in a row could not be encoded.*cannot be decoded.*Check data_path"),
    ):
        next(source)


def test_a_full_disk_ends_nothing(caplog, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SkipLog, "_write", full)
    source = stream(encoder=Encoder(bad=[0, 1, 2, 3]), skip_log=tmp_path / "skipped.jsonl")
    assert len(take(source, 2)) == 2
    assert "was not written to" in caplog.text and "No space left" in caplog.text


def test_impossible_arithmetic_is_refused():
    with pytest.raises(ConfigError, match="3 samples do not fill one batch of 4"):
        stream(3)
    with pytest.raises(ConfigError, match="batch of 4 .*3 processes"):
        stream(host=(0, 3))
    with pytest.raises(ConfigError, match="workers=-1"):
        stream(workers=-1)


def test_foreign_state_is_refused():
    state = stream().state()
    with pytest.raises(CheckpointError, match="samples differ"):
        stream(12).restore(state)
    with pytest.raises(CheckpointError, match="seed differ"):
        stream(seed=8).restore(state)
    with pytest.raises(CheckpointError, match="batch size"):
        stream(batch_size=3).restore(state | {"next_index": 4})
    with pytest.raises(CheckpointError, match="position"):
        stream().restore({key: state[key] for key in ("samples", "seed")})
