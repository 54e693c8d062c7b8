"""The parts of the engine process that need no vLLM: the channel, the batch's ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable

import numpy as np
import pytest

from g2rpo_fast.rollout.stop_text import StopText
from g2rpo_fast.rollout.vllm.batch import LOOK_EVERY, Batch
from g2rpo_fast.rollout.vllm.channel import WAIT_S, Channel, PeerDead
from g2rpo_fast.types import Request, Sampling


def pair() -> tuple[Channel, Channel]:
    ours, theirs = socket.socketpair()
    return Channel(ours), Channel(theirs)


def test_messages_of_any_size_arrive_whole() -> None:
    ours, theirs = pair()
    message = {"small": 1, "large": np.arange(3_000_000), "nested": [(1, "two")]}
    sender = threading.Thread(target=ours.send, args=(message,))
    sender.start()
    got = theirs.receive()
    sender.join()
    assert got["nested"] == message["nested"]
    assert (got["large"] == message["large"]).all()
    assert not theirs.readable
    ours.send("more")
    assert theirs.readable
    assert theirs.receive() == "more"


class Enough(Exception):
    """Somebody would not wait any longer."""


def test_whoever_waits_may_give_up_as_reader_and_writer() -> None:
    ours, theirs = pair()
    looks = []

    def waiting() -> None:
        looks.append(time.monotonic())
        if len(looks) % 2 == 0:
            raise Enough

    with pytest.raises(Enough):
        ours.receive(waiting)
    with pytest.raises(Enough):
        ours.send(bytes(50_000_000), waiting)
    assert len(looks) == 4
    assert 0.9 * WAIT_S <= looks[1] - looks[0] < 10
    theirs.close()


def test_a_slow_peer_is_waited_for() -> None:
    ours, theirs = pair()
    looks: list[int] = []

    def slowly() -> None:
        time.sleep(2.5 * WAIT_S)
        theirs.send(theirs.receive())

    peer = threading.Thread(target=slowly)
    peer.start()
    ours.send(bytes(10_000_000), lambda: looks.append(1))
    assert ours.receive(lambda: looks.append(2)) == bytes(10_000_000)
    peer.join()
    assert looks[:2] == [1, 1]


def test_a_peer_that_is_gone_is_noticed_at_once() -> None:
    ours, theirs = pair()
    theirs.close()
    began = time.monotonic()
    assert ours.readable
    with pytest.raises(PeerDead):
        ours.receive()
    with pytest.raises(PeerDead):
        ours.send("anything")
    assert time.monotonic() - began < 5


def test_half_a_message_and_then_death_is_death() -> None:
    end, theirs = socket.socketpair()
    theirs.sendall((100).to_bytes(8, "little") + b"half")
    theirs.close()
    with pytest.raises(PeerDead):
        Channel(end).receive()


def letters(ids: Iterable[int]) -> str:
    return "".join(chr(97 + i) for i in ids)


def batch_of(sampling: Sampling, num: int = 1) -> Batch:
    requests = {i: Request(prompt_ids=(1,), max_tokens=50, seed=i) for i in range(num)}
    return Batch(requests, sampling, StopText(sampling.stop_strings, letters))


def test_rows_keep_their_tokens_log_probabilities_and_versions() -> None:
    batch = batch_of(Sampling(), 2)
    assert not batch.add(0, [3], [-0.5], 7, ended=False)
    assert not batch.add(1, [4, 5], [-1.0, -1.5], 7, ended=False)
    assert batch.add(0, [6], [-0.25], 8, ended=True)
    assert batch.unfinished
    done = batch.take_finished()
    assert set(done) == {0}
    assert done[0].token_ids == (3, 6)
    assert done[0].logp.tolist() == [-0.5, -0.25]
    assert (done[0].weight_version, done[0].finish_reason) == (7, "length")
    assert done[0].token_versions is not None
    assert done[0].token_versions.tolist() == [7, 8]
    assert batch.take_finished() == {}
    assert batch.add(1, [9], [-2.0], 8, ended=True)
    assert not batch.unfinished


def test_a_stop_token_at_the_limit_is_a_stop() -> None:
    batch = batch_of(Sampling(stop_token_ids=(4,)))
    batch.add(0, [3, 4], [-1.0, -1.0], 0, ended=True)
    assert batch.take_finished()[0].finish_reason == "stop"


@pytest.mark.parametrize("stop_at", range(2, 11))
@pytest.mark.parametrize("step", [1, 3])
def test_a_row_ends_with_the_token_that_completes_a_stop_string(stop_at: int, step: int) -> None:
    ids = [0] * (stop_at - 2) + [23, 24] + [0] * (10 - stop_at)
    batch = batch_of(Sampling(stop_strings=("xyz", "xy")))
    given, done = 0, False
    while not done:
        new = ids[given : given + step]
        given += len(new)
        done = batch.add(0, new, [-1.0] * len(new), 0, ended=given == len(ids))
    completion = batch.take_finished()[0]
    assert completion.token_ids == tuple(ids[:stop_at])
    assert len(completion.logp) == stop_at
    assert completion.finish_reason == "stop"
    assert given - stop_at < LOOK_EVERY + step


@pytest.mark.parametrize(("guidance", "length"), [(0, 3), (2, 1), (None, 1)])
def test_a_stop_string_may_begin_in_the_guidance(guidance: int | None, length: int) -> None:
    request = Request(prompt_ids=(3, 23, 23), max_tokens=50, seed=0, guidance_len=guidance)
    sampling = Sampling(stop_strings=("xy",))
    batch = Batch({0: request}, sampling, StopText(sampling.stop_strings, letters))
    assert batch.add(0, [24, 23, 24, 0], [-1.0] * 4, 0, ended=False)
    completion = batch.take_finished()[0]
    assert (len(completion.token_ids), completion.finish_reason) == (length, "stop")


def test_a_stop_string_before_a_stop_token_wins() -> None:
    batch = batch_of(Sampling(stop_strings=("b",), stop_token_ids=(5,)))
    assert batch.add(0, [0, 1, 0, 5], [-1.0] * 4, 0, ended=True)
    assert batch.take_finished()[0].token_ids == (0, 1)
