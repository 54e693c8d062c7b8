"""The overlapped loop on the embedded default, made tiny: its order, staleness, equality with the plain loop.

`local` samples when it is asked, so every batch but the first is one update old, and all of it repeats.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from g2rpo_fast import train
from g2rpo_fast.assemble import Parts, assemble
from g2rpo_fast.console import Console
from g2rpo_fast.gather import sample
from g2rpo_fast.metrics import read_metrics
from g2rpo_fast.overlap import run_ahead, step_ahead
from g2rpo_fast.rollout.groups import plain_asks
from g2rpo_fast.rollout.sampled import SampledBatch
from g2rpo_fast.step_metrics import staleness_metrics
from g2rpo_fast.types import Completion, EngineError, Prompt, Rollout
from runs import quiet, tiny_config, without_times

TRUNCATED = {"importance": "token_truncate"}
STILL = {"controller": "fixed"}


def config_of(directory, *, ahead: int, **sections):
    run = {"ahead": ahead} | sections.pop("run", {})
    return tiny_config(directory, run=run, **({"objective": TRUNCATED} | sections))


class Wrapped:
    """A real engine; notes what it is asked."""

    def __init__(self, engine) -> None:
        self.engine, self.events = engine, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def generate(self, requests, sampling, report=None):
        self.events.append("generate")
        return self.engine.generate(requests, sampling, report)

    def submit(self, requests, sampling, report=None):
        self.events.append("submit")
        collect = self.engine.submit(requests, sampling, report)
        return lambda: self.events.append("collect") or collect()

    def sync(self, version):
        self.events.append(f"sync {version}")
        self.engine.sync(version)

    def release(self):
        self.events.append("release")


class Late(Wrapped):
    """Samples when the batch is collected, on the weights of that moment: nothing is stale."""

    def submit(self, requests, sampling, report=None):
        def collect():
            self.engine.sync(self.version + 1)
            return self.engine.generate(requests, sampling, report)

        return collect

    version = 0

    def sync(self, version):
        self.version = version
        self.engine.sync(version)


def wrapped(parts: Parts, kind):
    engine = kind(parts.engine)
    return replace(parts, engine=engine, sampler=replace(parts.sampler, engine=engine)), engine


def finished(parts: Parts):
    """(records, weights) after all steps of the overlapped loop."""
    run_ahead(parts, parts.state, Console(parts, quiet))
    records = without_times(read_metrics(parts.directory / "metrics.jsonl"))
    return records, [p.detach().clone() for p in parts.learner.model.parameters()]


def test_batch_is_asked_before_the_update_and_collected_before_the_sync(tmp_path):
    config = config_of(tmp_path / "run", ahead=1, evaluate={"every": 3, "profile_prompts": 0})
    parts, engine = wrapped(assemble(config, quiet), Wrapped)
    run_ahead(parts, parts.state, Console(parts, quiet))
    assert engine.events == [
        *("generate", "submit", "collect", "sync 1"),
        *("submit", "collect", "sync 2"),
        *("submit", "collect", "sync 3", "generate"),  # evaluation
        *("sync 4", "generate"),
    ]


def test_every_batch_but_the_first_is_one_update_old(tmp_path):
    train(config_of(tmp_path / "run", ahead=1), show=quiet)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")[1:]
    assert [r["rollout/staleness"] for r in records] == [0, 1, 1, 1]
    assert [r["rollout/staleness_max"] for r in records] == [0, 1, 1, 1]
    # On its own weights the engine differs by rounding; one update makes it another policy.
    assert records[0]["mismatch/max_abs"] < 1e-4
    assert all(r["mismatch/max_abs"] > 1e-3 for r in records[1:])
    assert all(0.5 < r["mismatch/ess_raw"] <= r["mismatch/ess"] < 1 for r in records[1:])
    # Guidance follows the controller one step later.
    assert records[0]["guidance/length"] == records[1]["guidance/length"] == 16


def test_first_step_is_that_of_the_plain_loop(tmp_path):
    for ahead in (0, 1):
        train(config_of(tmp_path / str(ahead), ahead=ahead, run={"steps": 2}), show=quiet)
    plain, overlapped = (without_times(read_metrics(tmp_path / a / "metrics.jsonl")) for a in "01")
    assert plain[:2] == overlapped[:2]
    assert plain[2] != overlapped[2]


def test_a_schedule_reaches_its_end_at_the_last_step(tmp_path):
    sections = {"guidance": {"controller": "linear", "length_init": 16, "length_final": 4, "reserve": 8}}
    runs = [train(config_of(tmp_path / str(n), ahead=n, **sections), show=quiet) for n in (0, 1)]
    plain, ahead = ([r["guidance/length"] for r in read_metrics(run.metrics_path)[1:]] for run in runs)
    assert plain == ahead == [16, 12, 8, 4]


def test_without_staleness_the_overlapped_loop_is_the_plain_one(tmp_path):
    result = train(config_of(tmp_path / "plain", ahead=0, guidance=STILL), show=quiet)
    want = without_times(read_metrics(result.metrics_path))
    assert len(want) == 5
    parts, _ = wrapped(assemble(config_of(tmp_path / "late", ahead=1, guidance=STILL), quiet), Late)
    records, weights = finished(parts)
    assert records == want[1:]
    assert all(r["rollout/staleness_max"] == 0 for r in records)
    plain = assemble(config_of(tmp_path / "plain", ahead=0, guidance=STILL), quiet)
    assert plain.state.step == 4
    for got, wanted in zip(weights, plain.learner.model.parameters(), strict=True):
        assert torch.equal(got, wanted)


class Failing(Wrapped):
    """Loses the batch that is collected at the third step."""

    def submit(self, requests, sampling, report=None):
        collect = self.engine.submit(requests, sampling, report)
        self.events.append("submit")

        def lose():
            if len(self.events) == 3:
                raise EngineError("generate, step 3: gone")
            return collect()

        return lose

    def generate(self, requests, sampling, report=None):
        return self.engine.generate(requests, sampling, report)

    def sync(self, version):
        self.engine.sync(version)


def test_engine_failure_keeps_the_update_that_was_done(tmp_path):
    config = config_of(tmp_path / "run", ahead=1, checkpoint={"every": 100}, evaluate={"every": 0})
    parts, _ = wrapped(assemble(config, quiet), Failing)
    with pytest.raises(EngineError, match="step 3"):
        run_ahead(parts, parts.state, Console(parts, quiet))
    again = assemble(config, quiet)
    assert (again.state.step, again.state.weight_version, again.sampled) == (3, 3, None)
    for got, wanted in zip(again.learner.model.parameters(), parts.learner.model.parameters(), strict=True):
        assert torch.equal(got, wanted)
    records, _ = finished(again)
    assert [r["step"] for r in records] == [1, 2, 4]
    assert records[-1]["rollout/staleness"] == 0


def test_checkpoint_holds_the_next_batch(tmp_path):
    config = config_of(tmp_path / "run", ahead=1, evaluate={"every": 0}, checkpoint={"every": 1})
    parts = assemble(config, quiet)
    state, following = step_ahead(parts, parts.state, None, Console(parts, quiet))
    again = assemble(config, quiet)
    assert again.sampled is not None
    assert following is not None
    assert again.state == state
    assert_same_batch(again.sampled, following)
    assert sum(len(ask.given_ids) for ask in following.asks) == 4 * 2 * 16
    # It comes from the weights before the update: those after it sample otherwise.
    later = sample(parts, state).completions
    assert any(one.token_ids != c.token_ids for one, c in zip(following.completions, later, strict=True))


def assert_same_batch(got: SampledBatch, wanted: SampledBatch) -> None:
    arrays = got.to_arrays()
    for name, value in wanted.to_arrays().items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)
    assert (got.asks, got.num_prompts, got.notes) == (wanted.asks, wanted.num_prompts, wanted.notes)
    for one, other in zip(got.completions, wanted.completions, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logp.tobytes() == other.logp.tobytes()
        assert (one.finish_reason, one.weight_version) == (other.finish_reason, other.weight_version)


def test_sampled_batch_survives_as_arrays():
    def completion(ids: tuple[int, ...], versions, reason) -> Completion:
        logp = np.linspace(-3, -0.1, len(ids), dtype=np.float32)
        return Completion(
            token_ids=ids, logp=logp, finish_reason=reason, weight_version=4, token_versions=versions
        )

    prompts = [Prompt(id=f"train:{i}", text="", token_ids=(1, 2, i), answer="") for i in range(3)]
    asks = plain_asks(prompts[:2], [1, 2], max_tokens=8)
    asks[1] = replace(asks[1], given_ids=(4, 9), given_in_loss=True, sampling_prompt_ids=(8,), round=1)
    asks[2] = replace(asks[2], training_prompt_ids=(), hint_level=0.5, source="target", max_tokens=3)
    batch = SampledBatch(
        asks=asks,
        num_prompts=2,
        completions=[
            completion((5, 6), np.array([4, 5], np.int32), "stop"),
            completion((), None, "length"),
            completion((7,), None, "length"),
        ],
        notes={"guidance/length": 2.5},
    )
    again = SampledBatch.from_arrays(batch.to_arrays(), prompts[::-1])
    assert again is not None
    assert_same_batch(again, batch)
    versions = [c.token_versions for c in again.completions]
    assert [list(v) for v in versions if v is not None] == [[4, 5], [], [4]]
    assert SampledBatch.from_arrays(batch.to_arrays(), prompts[1:]) is None  # sampled again
    assert SampledBatch.from_arrays({"group_size_P": np.zeros(1)}, prompts) is None


def test_staleness_counts_each_tokens_own_weights():
    blank = Prompt(id="t:0", text="", token_ids=(1,), answer="")

    def rollout(sampled: int, version: int, versions: list[int] | None) -> Rollout:
        return Rollout(
            prompt=blank, group=0, member=0, training_prompt_ids=(1,), sampling_prompt_ids=(1,),
            response_ids=(2,) * (sampled + 1), guidance_len=1, loss_mask=np.ones(sampled + 1, np.bool_),
            rollout_logp=np.zeros(sampled + 1, np.float32), text="", finish_reason="stop",
            weight_version=version,
            token_versions=None if versions is None else np.asarray(versions, np.int32),
        )  # fmt: skip

    # Guidance tokens are nobody's: lags 2, 1, 1 and 3.
    metrics = staleness_metrics([rollout(3, 5, [5, 6, 6]), rollout(1, 4, None), rollout(0, 0, None)], 7)
    assert metrics == {"rollout/staleness": 7 / 4, "rollout/staleness_max": 3.0}
    assert all(np.isnan(v) for v in staleness_metrics([rollout(0, 0, None)], 7).values())


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": {"importance": "none"}}, r"objective.importance: wanted weights, .* run.ahead = 1"),
        ({"run": {"ahead": 2}}, "run.ahead: wanted 0 or 1, got 2"),
        (
            {"rollout": {"engine": "vllm"}, "vllm": {"sleep": "kv"}},
            "vllm.sleep: wanted off with run.ahead = 1",
        ),
    ],
)
def test_settings_that_clash_are_refused(sections, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, ahead=1, **sections)
