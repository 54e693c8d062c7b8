"""Times candidates for the kernels' static tables on the GPU at hand and prints what to put there.

    python benchmarks/tune.py [--out tuning.json]

The tables stay static (ranks and runs must agree bit for bit): this only measures. A tile that does not
compile, or asks for more shared memory than there is, is recorded with its error.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from g2rpo_kernels import Objective, policy_loss, tree_attention
from g2rpo_kernels.logprob import triton_launch
from g2rpo_kernels.tree_attention import tile_plan, tiles

from bench_attention import Shape, tree_of
from bench_policy_loss import edges_for
from timing import medians

ROUNDS = 5
Result = dict[str, object]


def tune_rows() -> list[Result]:
    """`policy_loss` from logits: columns at a time, warps, stages; both logit widths."""
    capability = min(torch.cuda.get_device_capability()[0], 10)
    results: list[Result] = []
    for dtype in (torch.bfloat16, torch.float32):
        logits_TV = torch.randn(8192, 151_936, device="cuda", dtype=dtype)
        target_T = torch.randint(151_936, (8192,), device="cuda")
        edges, objective = edges_for(8192, "cuda"), Objective()

        def run(logits_TV=logits_TV, target_T=target_T, edges=edges, objective=objective) -> object:
            return policy_loss(logits_TV.detach().requires_grad_(), target_T, edges, objective, impl="triton")

        key = (capability, logits_TV.element_size())
        before = triton_launch.TILES[key]
        for block_v, warps, stages in itertools.product((1024, 2048, 4096, 8192), (4, 8, 16), (1, 3, 4)):
            triton_launch.TILES[key] = triton_launch.Tile(block_v, warps, stages)
            results.append({"table": f"logprob {key}", "tile": [block_v, warps, stages], **timed(run)})
        triton_launch.TILES[key] = before
    return results


def tune_attention(width: int) -> list[Result]:
    """One kernel of tree attention at a time, the others as they are in the table."""
    chip = tiles.CHIPS[torch.cuda.get_device_capability()]
    plan = tree_of(Shape(prompt=1024, guidance=512, guided=4, group=8, completion=1024))
    size = len(plan.token_S)
    end_S = torch.from_numpy(plan.end_S).cuda()
    q, k, v = (
        torch.randn(size, heads, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (32, 8, 8)
    )
    before = tiles.HALF[chip, width]
    results: list[Result] = []
    for kernel in ("forward", "query_grad", "kv_grad"):
        for block_q, block_kv, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3)):
            tile = replace(
                getattr(before, kernel), block_q=block_q, block_kv=block_kv, warps=warps, stages=stages
            )
            tiles.HALF[chip, width] = replace(before, **{kernel: tile})
            lists = tile_plan(end_S)

            def run(lists=lists, backward=kernel != "forward") -> object:
                out = tree_attention(q, k, v, end_S, scale=width**-0.5, impl="triton", tiles=lists)
                if backward:
                    out.backward(torch.ones_like(out))
                return out

            results.append(
                {"table": f"tree_attention {chip} {width} {kernel}", "tile": asdict(tile), **timed(run)}
            )
    tiles.HALF[chip, width] = before
    return results


def timed(run: Callable[[], object]) -> Result:
    try:
        return {"ms": 1e3 * medians({"run": run}, ROUNDS)["run"]}
    except Exception as error:  # a candidate may not compile; that is a result
        return {"ms": None, "error": f"{type(error).__name__}: {error}"[:200]}


def best(results: list[Result]) -> dict[str, Result]:
    """The fastest tile of each table entry."""
    tables = sorted({str(r["table"]) for r in results})
    done = [r for r in results if r["ms"] is not None]
    return {
        table: min((r for r in done if r["table"] == table), key=lambda r: float(r["ms"]))  # type: ignore[arg-type]
        for table in tables
        if any(r["table"] == table for r in done)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tuning.json"))
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        raise SystemExit("tune.py: wanted a CUDA device, got none")
    results = [*tune_rows(), *tune_attention(128), *tune_attention(64)]
    record = {"device": torch.cuda.get_device_name(), "best": best(results), "all": results}
    out.write_text(json.dumps(record, indent=1))
    print(json.dumps(record["best"], indent=1))


if __name__ == "__main__":
    main()
