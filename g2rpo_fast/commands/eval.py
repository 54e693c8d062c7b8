"""`g2rpo-fast eval MODEL DATA`: how often a model is right, greedily and in samples. Never guided."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2rpo_fast.commands.common import loading, names_and_options, note, telling_interrupts
from g2rpo_fast.progress import Progress
from g2rpo_fast.usage import print_to_pipe

if TYPE_CHECKING:
    from g2rpo_fast.model_source import ModelSource


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What is measured, and where it goes."""

    samples: int = 8
    """Samples of each problem, for pass@k and the majority's vote; 0 = the greedy response alone."""
    k: tuple[int, ...] = ()
    """The k of pass@k; none given: 1, 2, 4, ... up to --samples."""
    out: str | None = None
    """File for a JSON line a problem: prompt, responses, rewards, vote. It is there once all are done; until
    then they are in FILE.partial."""
    json: bool = False
    """Print the summary as JSON."""

    def check(self, temperature: float) -> None:
        """Raises ValueError."""
        if self.samples < 0:
            raise ValueError(f"--samples: wanted at least 0, got {self.samples}")
        if self.samples and temperature == 0:
            raise ValueError(
                "--temperature: wanted above 0 for samples (the greedy response is measured beside them; "
                "--samples 0 measures it alone), got 0"
            )
        wrong = [k for k in self.k if not 1 <= k <= self.samples]
        if wrong:
            raise ValueError(f"--k: wanted from 1 to --samples = {self.samples}, got {wrong[0]}")


def run(words: Sequence[str]) -> int:
    names, options = names_and_options("eval", words, ("MODEL", "DATA"))
    from g2rpo_fast.config.some_keys import SAMPLING_KEYS, read_options
    from g2rpo_fast.evaluation.settings import starting_sections
    from g2rpo_fast.model_source import ModelSource, find_model

    source = find_model(names[0]) if names else ModelSource(name="MODEL", path="MODEL")
    sections, notes = starting_sections(source)
    offered = {
        "data": (
            "subset", "eval_split", "format", "prompt_column", "answer_column", "template", "chat",
            "system_prompt", "template_kwargs", "max_prompt_tokens", "on_bad_row", "eval_rows",
        ),
        "reward": tuple(sections["reward"].__dataclass_fields__),
        **SAMPLING_KEYS,
    }  # fmt: skip
    asked, sections = read_options(
        options,
        EvalOptions(),
        sections,
        offered,
        prog="g2rpo-fast eval MODEL DATA",
        description="Accuracy of a model (a directory, a hub id, or RUN, RUN:STEP, RUN:best) on DATA, a "
        "file, a folder or a hub id, as data.eval_path is. Values start from the run's configuration, or "
        "from the defaults.",
    )
    asked.check(sections["rollout"].temperature)
    for line in notes:
        note(line)
    loading("g2rpo_fast.evaluation.ready")
    with telling_interrupts():
        _evaluate(source, names[1], asked, sections)
    return 0


def _evaluate(source: ModelSource, data: str, asked: EvalOptions, sections: dict[str, Any]) -> None:
    from g2rpo_fast.data.sources import fetched
    from g2rpo_fast.evaluation.items import measure
    from g2rpo_fast.evaluation.problems import check_file, judged_problems
    from g2rpo_fast.evaluation.ready import ready
    from g2rpo_fast.evaluation.settings import config_of
    from g2rpo_fast.evaluation.summary import as_text, powers_of_two, summarize
    from g2rpo_fast.evaluation.write import item_lines
    from g2rpo_fast.model.vocabulary import load_tokenizer
    from g2rpo_fast.rewards.loading import load_rewards

    config = config_of(sections)
    rows = fetched(data, config.data, key="DATA")
    check_file(rows, config.data, key="DATA", answers=True)
    rewards = load_rewards(config.reward)
    with item_lines(asked.out) as write:
        with Progress().phase(f"loading {source.name}"):
            tokenizer = load_tokenizer(source.path)
            found = judged_problems(rows, config.data, tokenizer, rewards)
            loaded = ready(source, tokenizer, sections, found.prompts)
        items = []
        with Progress().phase("evaluating", len(found.prompts), "problems") as told:
            for item in measure(
                loaded,
                rewards,
                found.prompts,
                samples=asked.samples,
                max_tokens=config.rollout.max_tokens,
                seed=config.run.seed,
                rows=config.rollout.max_rows,
            ):
                write(item.to_dict())
                items.append(item)
                told(len(items))
    summary = summarize(items, asked.k or powers_of_two(asked.samples), votes=rewards.finds_answers)
    left_out = {"too_long": found.num_too_long, "cannot_be_used": len(found.skipped)}
    settings = _settings(source, data, sections, loaded.device)
    if asked.json:
        print_to_pipe(json.dumps({**settings, "left_out": left_out, **summary}, indent=1))
        return
    more = "".join(f", {count} {why.replace('_', ' ')} left out" for why, count in left_out.items() if count)
    title = f"{source.name} on {data}: {len(items)} problems{more}, without guidance"
    print_to_pipe(f"{title}\n{as_text(summary)}")


def _settings(source: ModelSource, data: str, sections: dict[str, Any], device: str) -> dict[str, Any]:
    """What the figures depend on."""
    from g2rpo_fast.versions import versions

    rollout, run = sections["rollout"], sections["run"]
    kept = ("max_tokens", "temperature", "top_p", "top_k", "stop_strings", "stop_token_ids")
    settings = {key: getattr(rollout, key) for key in kept}
    return {
        "model": source.name,
        "step": source.step,
        "data": data,
        "settings": {**settings, "seed": run.seed, "reward": list(sections["reward"].channels)},
        "device": device,
        "versions": versions(),
    }
