"""Times candidates for the kernels' static tables on the GPU at hand and prints what to put there.

    python benchmarks/tune.py [--out tuning.json] [--seconds 80]

The tables stay static (ranks and runs must agree bit for bit): this only measures. First the entries as they
are and their neighbours (one number changed), then the rest of the grid, as far as the time goes; the record
is written after each. A tile that does not compile, or asks for more shared memory than there is, is recorded
with its error.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from g2rpo_kernels import Objective, policy_loss, tree_attention
from g2rpo_kernels.linear_logprob import device_chunks, triton_exponentials
from g2rpo_kernels.logprob import triton_launch
from g2rpo_kernels.tree_attention import tile_plan, tiles

from bench_attention import Shape, tree_of
from bench_policy_loss import edges_for
from linear_problem import make_problem
from linear_sides import SIDES, step_of
from timing import Deadline, Run, medians

ROUNDS = 5
Values = tuple[int, ...]
Result = dict[str, object]


@dataclass(frozen=True)
class Table:
    """One entry of a static table: the candidates for it, and the call that uses one."""

    name: str
    now: Values
    choices: tuple[Values, ...]
    """Values to try of each number of the entry."""
    run_with: Callable[[Values], Run]
    """Puts a candidate in the table; `now` puts back what was there."""

    def near(self) -> list[Values]:
        changed = (
            (*self.now[:i], value, *self.now[i + 1 :])
            for i, values in enumerate(self.choices)
            for value in values
        )
        return list(dict.fromkeys([self.now, *changed]))

    def rest(self) -> list[Values]:
        near = set(self.near())
        return [values for values in itertools.product(*self.choices) if values not in near]


def row_tables() -> Iterator[Table]:
    """`policy_loss` from logits: columns at a time, warps, stages; both logit widths."""
    capability = min(torch.cuda.get_device_capability()[0], 10)
    for dtype in (torch.bfloat16, torch.float32):
        logits_TV = torch.randn(8192, 151_936, device="cuda", dtype=dtype)
        target_T = torch.randint(151_936, (8192,), device="cuda")
        edges = edges_for(8192, "cuda")
        key = (capability, logits_TV.element_size())

        def run_with(values: Values, logits_TV=logits_TV, target_T=target_T, edges=edges, key=key) -> Run:
            triton_launch.TILES[key] = triton_launch.Tile(*values)
            return lambda: policy_loss(
                logits_TV.detach().requires_grad_(), target_T, edges, Objective(), impl="triton"
            )

        choices = ((1024, 2048, 4096, 8192), (4, 8, 16), (1, 3, 4))
        yield Table(f"logprob {key}", triton_launch.TILES[key], choices, run_with)


def chunk_table(width: int) -> Table:
    """`linear_policy_loss` of half operands: megabytes of a chunk of logits and their gradient; 16,384 rows,
    V = 151,936. Larger chunks add to d head less often."""
    step = step_of(SIDES["ours"](), make_problem(rows=16_384, width=width, vocabulary=151_936, device="cuda"))

    def run_with(values: Values) -> Run:
        device_chunks.DEVICE_CHUNK_BYTES = values[0] * 1_000_000
        return step

    now = (device_chunks.DEVICE_CHUNK_BYTES // 1_000_000,)
    return Table(f"linear chunks D={width}", now, ((750, 1500, 3000),), run_with)


def exponential_table(width: int) -> Table:
    """The same on Hopper: row tiles that share a read of the head, and warps and stages of the product."""
    step = step_of(SIDES["ours"](), make_problem(rows=16_384, width=width, vocabulary=151_936, device="cuda"))
    names = ("GROUP", "num_warps", "num_stages")

    def run_with(values: Values) -> Run:
        triton_exponentials.OPTIONS.update(zip(names, values, strict=True))
        return step

    now = tuple(int(triton_exponentials.OPTIONS[name]) for name in names)
    return Table(f"linear exponentials D={width}", now, ((8, 16, 32), (4, 8), (3, 4)), run_with)


def attention_tables(width: int) -> Iterator[Table]:
    """One kernel of tree attention at a time, the others as they are in the table."""
    chip = tiles.CHIPS[torch.cuda.get_device_capability()]
    plan = tree_of(Shape(prompt=1024, guidance=512, guided=4, group=8, completion=1024))
    end_S = torch.from_numpy(plan.end_S).cuda()
    q, k, v = (
        torch.randn(len(end_S), heads, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (32, 8, 8)
    )
    before = tiles.tiles_for(chip, torch.bfloat16, width)
    for kernel in ("forward", "query_grad", "kv_grad"):
        now = getattr(before, kernel)

        def run_with(values: Values, kernel=kernel, now=now) -> Run:
            block_q, block_kv, warps, stages = values
            tile = replace(now, block_q=block_q, block_kv=block_kv, warps=warps, stages=stages)
            tiles.HALF[chip, width] = replace(before, **{kernel: tile})
            lists = tile_plan(end_S)

            def run() -> object:
                out = tree_attention(q, k, v, end_S, scale=width**-0.5, impl="triton", tiles=lists)
                if kernel == "forward":
                    return out
                return torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

            return run

        values = (now.block_q, now.block_kv, now.warps, now.stages)
        choices = ((64, 128), (32, 64, 128), (4, 8), (2, 3))
        yield Table(f"tree_attention {chip} {width} {kernel}", values, choices, run_with)


def tried(table: Table, values: Values) -> Result:
    try:
        ms: float | None = 1e3 * medians({"run": table.run_with(values)}, ROUNDS)["run"]
        why = {}
    except Exception as error:  # a candidate may not compile; that is a result
        ms, why = None, {"error": f"{type(error).__name__}: {error}"[:200]}
    finally:
        table.run_with(table.now)
    return {"table": table.name, "tile": list(values), "now": values == table.now, "ms": ms, **why}


def best(results: list[Result]) -> dict[str, list[Result]]:
    """Of each table entry the fastest tile, and the one that is there."""
    found: dict[str, list[Result]] = {}
    for result in sorted((r for r in results if r["ms"] is not None), key=lambda r: float(str(r["ms"]))):
        rows = found.setdefault(str(result["table"]), [])
        if not rows or result["now"]:
            rows.append(result)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tuning.json"))
    parser.add_argument("--seconds", type=float, help="stop after this time (default: the whole grid)")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tune.py: wanted a CUDA device, got none")
    deadline, results = Deadline(given.seconds), []
    linear = [chunk_table(2048), exponential_table(2048)]
    tables = [*attention_tables(128), *linear, *row_tables(), *attention_tables(64)]
    near = [(table, values) for table in tables for values in table.near()]
    rest = [(table, values) for table in tables for values in table.rest()]
    for table, values in [*near, *rest]:
        if deadline.passed():
            break
        results.append(tried(table, values))
        record = {"device": torch.cuda.get_device_name(), "best": best(results), "all": results}
        given.out.write_text(json.dumps(record, indent=1))
    print(json.dumps(best(results), indent=1))


if __name__ == "__main__":
    main()
