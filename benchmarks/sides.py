"""One side of a comparison, in a process of its own so that its peak memory is its own.

    python benchmarks/sides.py NAME '{"prompt": 64, "steps": 3}'

prints {"seconds": [...], "cpu_seconds": [...], "base_mib": ..., "peak_mib": ...}: one warm-up step, then the
measured ones. All sides: one thread, float32, the same tiny Qwen3 (2 layers, 0.4M parameters).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROUP, COMPLETION, PROMPTS = 16, 64, 4
VOCABULARY = 17
DIGITS = "0123456789"
Figures = dict[str, Any]


def measure(step: Callable[[], None], steps: int) -> Figures:
    """Times `steps` calls after one that is not counted."""
    base = _peak_mib()
    step()
    seconds, cpu_seconds = [], []
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - wall)
        cpu_seconds.append(time.process_time() - cpu)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "base_mib": base, "peak_mib": _peak_mib()}


def compare(ours: str, theirs: str, arguments: dict[str, Any], rounds: int) -> Figures:
    """Runs two sides in turn, `rounds` times each, and takes medians and ratios (theirs / ours)."""
    runs: dict[str, list[Figures]] = {ours: [], theirs: []}
    for _ in range(rounds):
        for name in (ours, theirs):
            runs[name].append(run(name, arguments))
    sides = {name: _summary(results) for name, results in runs.items()}
    return {
        **arguments,
        **sides,
        "time_ratio": sides[theirs]["median_s"] / sides[ours]["median_s"],
        "cpu_time_ratio": sides[theirs]["median_cpu_s"] / sides[ours]["median_cpu_s"],
        "peak_memory_ratio": sides[theirs]["peak_above_base_mib"] / sides[ours]["peak_above_base_mib"],
    }


def run(name: str, arguments: dict[str, Any]) -> Figures:
    """A side in a process of its own."""
    command = [sys.executable, __file__, name, json.dumps(arguments)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(results: list[Figures]) -> Figures:
    seconds = sorted(s for r in results for s in r["seconds"])
    cpu = sorted(s for r in results for s in r["cpu_seconds"])
    above = sorted(r["peak_mib"] - r["base_mib"] for r in results)
    return {
        "median_s": seconds[len(seconds) // 2],
        "min_s": seconds[0],
        "max_s": seconds[-1],
        "median_cpu_s": cpu[len(cpu) // 2],
        "measured_steps": len(seconds),
        "peak_above_base_mib": max(above[len(above) // 2], 1.0),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def noise_reward(response: str, answer: str, rollout: object) -> float:
    """Different for nearly every response, so that every group has a signal and nothing is skipped."""
    return int.from_bytes(hashlib.blake2b(response.encode(), digest_size=4).digest()) / 2**32


def embedded_files(warm_start_steps: int) -> tuple[Path, Path, Path]:
    """Model, training and evaluation files of the embedded default; made once for all sides."""
    from g2rpo_fast.embedded import EmbeddedConfig, prepare

    directory = Path(tempfile.gettempdir()) / f"g2rpo-bench-{os.getuid()}-{warm_start_steps}"
    config = EmbeddedConfig(warm_start_steps=warm_start_steps)
    made = prepare(directory, config, seed=0, report=lambda line: None)
    file = made.model_dir / "config.json"
    longer = json.loads(file.read_text()) | {"max_position_embeddings": 2048}
    file.write_text(json.dumps(longer))
    return made.model_dir, made.train_path, made.eval_path


def long_prompts(length: int) -> list[str]:
    """Digit strings, one token a character."""
    rng = random.Random(length)
    return ["".join(rng.choices(DIGITS, k=length)) for _ in range(256)]


def _parts(values: dict[str, Any]):
    """Our trainer, assembled as `g2rpo-fast train` does."""
    from g2rpo_fast.assemble import assemble
    from g2rpo_fast.config import config_from_dict, load_config

    merged = dataclasses.asdict(load_config("embedded"))
    merged["run"]["threads"] = 1
    for section, keys in values.items():
        merged[section] |= keys
    merged["evaluate"] |= {"every": 0, "profile_prompts": 0}
    merged["checkpoint"]["every"] = 10**6
    merged["run"] |= {"steps": 10**6, "dir": tempfile.mkdtemp()}
    merged["optim"]["updates_per_batch"] = 1
    return assemble(config_from_dict(merged), lambda line: None)


class _Quiet:
    def step(self, *_: object) -> None:
        """Prints nothing."""


def _our_loop(parts, steps: int) -> Figures:
    from g2rpo_fast.train import train_step

    state = [parts.state]

    def step() -> None:
        state[0] = train_step(parts, state[0], _Quiet())

    return measure(step, steps)


def wider_model(layers: int, vocabulary: int) -> Path:
    """SmolLM2-135M's shape with fewer layers and tokens, untrained, and the embedded task's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    directory = Path(tempfile.mkdtemp())
    AutoTokenizer.from_pretrained(embedded_files(0)[0]).save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def ours_step(prompt: int, steps: int, threads: int = 1, wider: dict[str, int] | None = None) -> Figures:
    """Whole step: rollout of 64 forced tokens, rewards, update, optimiser.

    Args:
        wider: of `wider_model`, in the place of the tiny model.
    """
    model_dir = wider_model(**wider) if wider else embedded_files(0)[0]
    data = Path(tempfile.mkdtemp()) / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": p, "answer": "1"}) + "\n" for p in long_prompts(prompt)))
    sys.path.insert(0, str(Path(__file__).parent))
    parts = _parts(
        {
            "model": {"path": str(model_dir)},
            "data": {"path": str(data), "trace_column": None, "max_prompt_tokens": prompt},
            "run": {"prompts_per_step": PROMPTS, "threads": threads},
            "rollout": {"group_size": GROUP, "max_tokens": COMPLETION},
            "reward": {"functions": ["sides:noise_reward"]},
            "guidance": {"enabled": False},
        }
    )
    forced = dataclasses.replace(parts.sampler.sampling, stop_token_ids=())
    parts = dataclasses.replace(parts, sampler=dataclasses.replace(parts.sampler, sampling=forced))
    return _our_loop(parts, steps)


def ours_embedded(steps: int, warm_start_steps: int) -> Figures:
    """The embedded task without guidance: what TRL can do as well."""
    model_dir, train_path, eval_path = embedded_files(warm_start_steps)
    paths = {"path": str(train_path), "eval_path": str(eval_path)}
    return _our_loop(
        _parts({"model": {"path": str(model_dir)}, "data": paths, "guidance": {"enabled": False}}), steps
    )


def _trl(
    model_dir: Path, rows: list[dict[str, str]], reward, settings: dict[str, Any], steps: int
) -> Figures:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.padding_side = "left"
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        learning_rate=1e-4,
        beta=0.0,
        temperature=1.0,
        loss_type="grpo",
        max_steps=steps + 1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10**6,
        **settings,
    )
    marks: list[tuple[float, float]] = []
    base = _peak_mib()

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            marks.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            marks.append((time.perf_counter(), time.process_time()))

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        args=arguments,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks[::2], marks[1::2], strict=True)][1:]
    return {
        "seconds": [wall for wall, _ in spans],
        "cpu_seconds": [cpu for _, cpu in spans],
        "base_mib": base,
        "peak_mib": _peak_mib(),
    }


def trl_step(prompt: int, steps: int) -> Figures:
    """The same step by TRL's GRPOTrainer."""
    model_dir, _, _ = embedded_files(0)
    batch = PROMPTS * GROUP
    settings = {
        "per_device_train_batch_size": batch,
        "num_generations": GROUP,
        "max_completion_length": COMPLETION,
        "generation_kwargs": {"min_new_tokens": COMPLETION},
    }

    def reward(completions: list[str], **columns: object) -> list[float]:
        return [noise_reward(text, "", None) for text in completions]

    return _trl(model_dir, [{"prompt": p} for p in long_prompts(prompt)], reward, settings, steps)


def trl_embedded(steps: int, warm_start_steps: int) -> Figures:
    """The embedded task by TRL's GRPOTrainer."""
    model_dir, train_path, _ = embedded_files(warm_start_steps)
    rows = [json.loads(line) for line in train_path.read_text().splitlines()]
    settings = {
        "per_device_train_batch_size": 16 * 12,
        "num_generations": 12,
        "max_completion_length": 72,
    }

    def reward(completions: list[str], answer: list[str], **columns: object) -> list[float]:
        return [float(c.rpartition("#")[2] == a) for c, a in zip(completions, answer, strict=True)]

    wanted = [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows]
    return _trl(model_dir, wanted, reward, settings, steps)


@dataclasses.dataclass(frozen=True)
class Update:
    """An update's rollouts: random prompts and completions, random advantages."""

    prompt: int
    prompts: int = PROMPTS
    group: int = GROUP
    completion: int = COMPLETION

    def drawn(self):
        """(prompts [P, prompt], completions [P, G, completion], advantages [P, G])."""
        import numpy as np

        rng = np.random.default_rng(self.prompt)
        prompts = rng.integers(3, VOCABULARY, (self.prompts, self.prompt))
        completions = rng.integers(3, VOCABULARY, (self.prompts, self.group, self.completion))
        return prompts, completions, rng.standard_normal((self.prompts, self.group))

    def sequences(self):
        """The same as rows of tokens, prompts first; completions are trained."""
        import numpy as np

        from g2rpo_fast.types import Sequences

        prompts, completions, _ = self.drawn()
        ids = np.concatenate([np.repeat(prompts, self.group, 0), completions.reshape(-1, self.completion)], 1)
        rows, length = ids.shape
        return Sequences(
            ids_N=ids.ravel().astype(np.int32),
            ptr_R1=np.arange(rows + 1, dtype=np.int64) * length,
            trained_N=np.tile(np.arange(length) >= self.prompt, rows),
            group_R=np.repeat(np.arange(self.prompts), self.group).astype(np.int32),
        )


def tree_update(steps: int, token_budget: int = 8192, **shape: int) -> Figures:
    """Our update on given rollouts: plan, forward, backward, optimiser."""
    import numpy as np

    from g2rpo_fast.objective.batch import TrainBatch

    model_dir, train_path, _ = embedded_files(0)
    values: dict[str, Any] = {"model": {"path": str(model_dir)}, "data": {"path": str(train_path)}}
    parts = _parts({**values, "tree": {"token_budget": token_budget}})
    update = Update(**shape)
    sequences, advantage = update.sequences(), update.drawn()[2]
    rows, trained = advantage.size, sequences.trained_N
    batch = TrainBatch(
        sequences=sequences,
        advantage_N=np.repeat(advantage.ravel(), update.prompt + update.completion).astype(np.float32),
        weight_N=(trained / (rows * update.completion)).astype(np.float32),
        rollout_logp_N=np.full(len(trained), np.nan, np.float32),
        rollout_R=np.arange(rows, dtype=np.int32),
        source_R=np.zeros(rows, np.int64),
        num_rollouts=rows,
        num_groups=len(advantage),
    )
    return measure(lambda: parts.learner.update([batch], lr=1e-4) and None, steps)


def padded_update(steps: int, **shape: int) -> Figures:
    """The same update with each prompt repeated for each completion: sdpa, logits of completions only."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model_dir, _, _ = embedded_files(0)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    update = Update(**shape)
    prompts, completions, advantage = update.drawn()
    ids = torch.tensor(prompts).repeat_interleave(update.group, 0)
    ids = torch.cat([ids, torch.tensor(completions).flatten(0, 1)], 1)
    advantage_R = torch.tensor(advantage.ravel(), dtype=torch.float32)

    def step() -> None:
        logits = model(ids, logits_to_keep=update.completion + 1, use_cache=False).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(-1, ids[:, -update.completion :, None])[..., 0]
        ratio = (logp - logp.detach()).exp()
        a = advantage_R[:, None]
        loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return measure(step, steps)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
