"""The engine: batches of requests, prefilled and decoded on the trainer's own weights.

Each distinct prefix is encoded once, together with all others of its batch as one prefix tree; rows then
decode side by side, attending to their family's one copy of its keys and to their own tokens behind it.
Rows that have ended leave the batch once they are a quarter of it; where steps are recorded, half of it.
Models that keep more than keys and values decode by their own forward, rows with prefixes of one length side
by side; so do those that do not follow trees.

Dimension key: B rows being decoded, D width, V vocabulary, T steps; S stream positions, K KV heads, E head
width; of `expert_BLK` L layers with experts, K those of one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from g2rpo_fast.backbone import encoder_of, num_positions
from g2rpo_fast.rollout.local.cache import Cache
from g2rpo_fast.rollout.local.decoder import FunctionalDecoder, product_with, recognised
from g2rpo_fast.rollout.local.families import Batch, plan_batches
from g2rpo_fast.rollout.local.graph_decoder import GraphDecoder, Recorder
from g2rpo_fast.rollout.local.hooked_decoder import HookedDecoder
from g2rpo_fast.rollout.local.own_rows import NONE, CachedRows, OwnRows, kind_of_rows
from g2rpo_fast.rollout.local.prefill import Head, Prefill, PrefillFunction
from g2rpo_fast.rollout.local.progress import Progress, Reporter
from g2rpo_fast.rollout.local.routes import Watch, experts_to_host, recorded
from g2rpo_fast.rollout.local.sampling import Draws, draw
from g2rpo_fast.rollout.local.shared_prefix import Family, SharedPrefix
from g2rpo_fast.rollout.local.static_cache import StaticCache
from g2rpo_fast.rollout.requests import check_requests
from g2rpo_fast.rollout.text_decoder import Decode
from g2rpo_fast.types import Completion, Longs, Report, Request, Sampling

BLOCK = 4
"""Steps between two looks at which rows have ended."""

Decoder = FunctionalDecoder | HookedDecoder
DecoderName = Literal["functional", "hooked", "cached", "recomputing"]


@dataclass(frozen=True)
class Wave:
    """Rows that decode side by side."""

    rows: list[int]
    """By their index among the requests."""
    stepper: Decoder | GraphDecoder | OwnRows
    cache: Cache | OwnRows
    hidden_BD: torch.Tensor
    """Of the last token of each row's prefix."""
    expert_BLK: torch.Tensor | None
    """Likewise, where they are recorded."""


class LocalEngine:
    """Implements `types.Engine` over a causal language model of transformers.

    Args:
        model: its parameters are read at every `generate`; nothing is copied in between.
        prefill: encodes distinct prefixes with the same model; None = rows decode by the model's own forward.
        head: the LM head.
        decode: token ids to the text that stop strings are looked for in; `text_decoder` makes one.
        max_rows: most rows decoded at once.
        compute_dtype: of products and KV cache; default the parameters'. Logits are at least float32.
        backbone: the module whose forward gives hidden states; default the model's own.
        recorder: records the functional decoder's steps (`graph_decoder`); None = every step is plain.
        keywords: what the model's own forward is given besides, where rows decode by it.
        experts: context in which forwards add the experts that they choose, see `Watch`; None = nothing is
            recorded of them.

    Attributes:
        decoder_name: "functional" (Llama-shaped models with plain modules) or "hooked" (all others whose
            prefixes are encoded as trees); "cached" (with the model's own cache) or "recomputing" (where that
            is not exact).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        prefill: PrefillFunction | None,
        head: Head,
        decode: Decode,
        max_rows: int = 512,
        compute_dtype: torch.dtype | None = None,
        backbone: nn.Module | None = None,
        recorder: Recorder | None = None,
        keywords: Mapping[str, Any] = NONE,
        experts: Watch | None = None,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows: wanted at least 1, got {max_rows}")
        self._model: Any = model
        self._prefill, self._head, self._decode = prefill, head, decode
        self._max_rows = max_rows
        self._dtype = compute_dtype or model.dtype
        self._backbone: nn.Module = backbone or encoder_of(model)
        self._config = model.config.get_text_config()
        self._version, self._keywords = 0, keywords
        self._watch = experts
        self._own_rows: type[OwnRows] | None = None
        self.decoder_name: DecoderName
        if prefill is None:
            self._own_rows = kind_of_rows(self._backbone, self._vocabulary, keywords)
            self.decoder_name = "cached" if self._own_rows is CachedRows else "recomputing"
        else:
            self.decoder_name = "functional" if recognised(model) else "hooked"
        self._recorder = recorder if self.decoder_name == "functional" else None

    @property
    def _vocabulary(self) -> int:
        return self._model.get_input_embeddings().weight.shape[0]

    def sync(self, version: int) -> None:
        """Records the version: the weights are the trainer's own."""
        self._version = version

    def submit(
        self, requests: list[Request], sampling: Sampling, report: Report | None = None
    ) -> Callable[[], list[Completion]]:
        """Samples at once: the weights are the trainer's own and may change right after."""
        completions = self.generate(requests, sampling, report)
        return lambda: completions

    def release(self) -> None:
        """Nothing is kept between two calls of `generate`."""

    def metrics(self) -> dict[str, float]:
        """Nothing that the step's timings do not say."""
        return {}

    def close(self) -> None:
        """Nothing to give back."""

    @torch.inference_mode()
    def generate(
        self, requests: list[Request], sampling: Sampling, report: Report | None = None
    ) -> list[Completion]:
        """One completion per request, in order; a request's result does not depend on the others.

        Raises:
            ValueError: an empty prompt, a token id outside the vocabulary, a negative `max_tokens`, or more
                tokens than the model has positions for; the request is named.
        """
        check_requests(requests, self._vocabulary, num_positions(self._config))
        empty = Completion(
            token_ids=(), logp=np.zeros(0, np.float32), finish_reason="length", weight_version=self._version
        )
        answers = [empty] * len(requests)
        asked = [i for i, request in enumerate(requests) if request.max_tokens > 0]
        if not asked:
            return answers
        was_training = self._model.training
        self._model.eval()
        try:
            for i, completion in self._sampled(requests, asked, sampling, report):
                answers[i] = completion
        finally:
            self._model.train(was_training)
        return answers

    def _sampled(
        self, requests: list[Request], asked: list[int], sampling: Sampling, report: Report | None
    ) -> Iterator[tuple[int, Completion]]:
        """(index, completion) of the requests in `asked`, wave by wave."""
        reporter = None if report is None else Reporter(report, empty=len(requests) - len(asked))
        waves = self._tree_waves if self._own_rows is None else self._own_waves
        for wave in waves([requests[i] for i in asked]):
            rows = [asked[i] for i in wave.rows]
            progress = Progress([requests[i] for i in rows], sampling, self._decode, reporter)
            self._decode_wave(wave, [requests[i] for i in rows], sampling, progress)
            for place, i in enumerate(rows):
                yield i, progress.completion(place, i, self._version)

    def _tree_waves(self, requests: list[Request]) -> Iterator[Wave]:
        """Whose prefixes are encoded as one prefix tree."""
        assert self._prefill is not None
        decoder = self._decoder(requests)
        for batch in plan_batches([request.prompt_ids for request in requests], self._max_rows):
            prefill = self._prefill([prefix for family in batch.families for prefix in family])
            for rows in batch.waves:
                of_wave = [requests[i] for i in rows]
                last_B = _last_positions(batch, prefill, of_wave)
                index_B = torch.from_numpy(last_B).to(prefill.hidden_SD.device)
                cache = self._cache(decoder, batch, prefill, of_wave, last_B)
                hidden_BD = prefill.hidden_SD.index_select(0, index_B)
                expert_BLK = torch.stack([*prefill.chosen], 1)[index_B] if prefill.chosen else None
                yield Wave(rows, self._stepper(decoder), cache, hidden_BD, expert_BLK)

    def _own_waves(self, requests: list[Request]) -> Iterator[Wave]:
        """Whose prefixes have one length."""
        assert self._own_rows is not None
        device = next(self._backbone.parameters()).device
        lengths = np.array([len(request.prompt_ids) for request in requests])
        for length in np.unique(lengths):
            alike = np.flatnonzero(lengths == length).tolist()
            for start in range(0, len(alike), self._max_rows):
                rows = alike[start : start + self._max_rows]
                prefixes = list(dict.fromkeys(requests[i].prompt_ids for i in rows))
                place = {prefix: i for i, prefix in enumerate(prefixes)}
                index_B = torch.tensor([place[requests[i].prompt_ids] for i in rows], device=device)
                token_FL = torch.tensor(prefixes, device=device)
                with recorded(self._watch) as record:
                    own = self._own_rows(self._backbone, token_FL, index_B, self._dtype, self._keywords)
                expert_FLK = record.of_last_tokens(len(prefixes))
                expert_BLK = None if expert_FLK is None else expert_FLK[index_B]
                yield Wave(rows, own, own, own.hidden_BD, expert_BLK)

    def _decode_wave(
        self, wave: Wave, requests: list[Request], sampling: Sampling, progress: Progress
    ) -> None:
        """Decodes the rows of one wave to their ends; `progress` holds the outcome."""
        cache, hidden_BD = wave.cache, wave.hidden_BD
        stepper: Any = wave.stepper
        logits_dtype = torch.promote_types(hidden_BD.dtype, torch.float32)
        draws = Draws([r.seed for r in requests], device=hidden_BD.device, dtype=logits_dtype)
        head = _LogitsHead(self._head, self._dtype)
        expert_BLK = wave.expert_BLK
        while True:
            block: list[tuple[torch.Tensor, torch.Tensor]] = []
            routes: list[torch.Tensor] = []
            for _ in range(min(BLOCK, progress.steps_left)):
                if block:
                    cache.advance()
                    hidden_BD, expert_BLK = self._step(stepper, block[-1][0][:, 0], cache)
                block.append(draw(head.logits(hidden_BD), draws.next(), sampling))
                routes += () if expert_BLK is None else (expert_BLK,)
            progress.add(*(_to_host(part) for part in zip(*block)), expert_TBLK=experts_to_host(routes))
            alive = progress.alive_B
            if not len(alive):
                return
            token_B = block[-1][0][:, 0]
            if len(alive) <= cache.keep_share * cache.num_rows:
                for rows in (progress, draws, cache):
                    rows.keep(alive)
                token_B = token_B.index_select(0, torch.from_numpy(alive).to(token_B.device))
            cache.advance()
            hidden_BD, expert_BLK = self._step(stepper, token_B, cache)

    def _step(
        self, stepper: Any, token_B: torch.Tensor, cache: Cache | OwnRows
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(hidden states [B, D], the experts of the same tokens where they are recorded)."""
        with recorded(self._watch) as record:
            hidden_BD = stepper.step(token_B, cache)
        return hidden_BD, record.of_last_tokens(len(token_B))

    def _cache(
        self, decoder: Decoder, batch: Batch, prefill: Prefill, requests: list[Request], last_B: Longs
    ) -> Cache:
        """The wave's KV cache: a copy of the prefill's keys for each family that has rows."""
        family_of = {prefix: i for i, family in enumerate(batch.families) for prefix in family}
        family_B = np.array([family_of[r.prompt_ids] for r in requests])
        families = [
            Family.of(prefill, rows, last_B[rows])
            for rows in (np.flatnonzero(family_B == i) for i in np.unique(family_B))
        ]
        device = prefill.hidden_SD.device
        dtype = self._dtype
        if device.type == "cpu":
            dtype = torch.promote_types(dtype, torch.float32)
        prefix = SharedPrefix(prefill, families, dtype=dtype, key_order_E=decoder.key_order_E)
        kind = Cache if self._recorder is None else StaticCache
        return kind(
            prefix,
            torch.tensor([len(r.prompt_ids) for r in requests], device=device),
            heads=[(k_SKE.shape[1], k_SKE.shape[2]) for k_SKE, _ in prefill.keys],
            num_positions=_num_positions(requests),
            dtype=dtype,
        )

    def _decoder(self, requests: list[Request]) -> Decoder:
        if self.decoder_name == "functional":
            return FunctionalDecoder(self._model, num_positions=_num_positions(requests), dtype=self._dtype)
        return HookedDecoder(self._backbone, num_layers=self._config.num_hidden_layers, dtype=self._dtype)

    def _stepper(self, decoder: Decoder) -> Decoder | GraphDecoder:
        """What takes a wave's steps; recordings end with the wave."""
        if self._recorder is None:
            return decoder
        assert isinstance(decoder, FunctionalDecoder)
        return GraphDecoder(decoder, self._recorder)


class _LogitsHead:
    """The LM head, its weight in the compute dtype, its output at least float32."""

    def __init__(self, head: Head, dtype: torch.dtype) -> None:
        on_cpu = head.weight_VD.device.type == "cpu"
        self._dtype = torch.promote_types(dtype, torch.float32) if on_cpu else dtype
        self._weight_VD = head.weight_VD.to(self._dtype)
        self._product = product_with(self._weight_VD)
        self._bias_V, self._scale, self._softcap = head.bias_V, head.scale, head.softcap

    def logits(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        """[B, V] float32 or more, whatever the operands."""
        hidden_BD = (hidden_BD if self._scale == 1 else hidden_BD * self._scale).to(self._dtype)
        if self._dtype in (torch.bfloat16, torch.float16):
            logits_BV = torch.mm(hidden_BD, self._weight_VD.t(), out_dtype=torch.float32)
        else:
            logits_BV = self._product(hidden_BD)
        if self._bias_V is not None:
            logits_BV = logits_BV + self._bias_V
        return logits_BV if self._softcap is None else torch.tanh(logits_BV / self._softcap) * self._softcap


def _to_host(parts: tuple[torch.Tensor, ...]) -> np.ndarray:
    """T columns [B, 1] as one array [T, B]."""
    return torch.stack(parts)[..., 0].cpu().numpy()


def _num_positions(requests: list[Request]) -> int:
    """RoPE positions that decoding may touch: a row that has ended goes on until it leaves the batch."""
    return max(len(r.prompt_ids) for r in requests) + max(r.max_tokens for r in requests)


def _last_positions(batch: Batch, prefill: Prefill, requests: list[Request]) -> Longs:
    """The stream position of each request's last prompt token."""
    prefixes = [prefix for family in batch.families for prefix in family]
    last_of = dict(zip(prefixes, prefill.last_B.tolist(), strict=True))
    return np.array([last_of[r.prompt_ids] for r in requests], dtype=np.int64)
