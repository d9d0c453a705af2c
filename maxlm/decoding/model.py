"""`maxlm.load`: a trained model for notebooks, evaluation and tests; docs/api.md describes it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from maxlm.config.errors import UserError
from maxlm.config.model import ModelConfig
from maxlm.config.positions.embedded import LearnedPosition
from maxlm.data.tokenizers import Tokenizer
from maxlm.decoding import loading
from maxlm.decoding.forward import HIDDEN, LOGITS, make_forward, nats_of
from maxlm.decoding.generate import Generator
from maxlm.decoding.sampling import Sampling, check_sampling
from maxlm.decoding.shapes import length_bucket, rows_bucket
from maxlm.decoding.weights import Weights, without_values
from maxlm.models.cost import parameter_count

Prompt = str | Sequence[int]
T = TypeVar("T")


def load(
    path: Path | str,
    *,
    step: int | None = None,
    mesh: Mapping[str, int] | None = None,
    dtype: str | None = None,
) -> Model:
    """Load a trained model onto devices of this process.

    Args:
      path: a run directory, one checkpoint of it, what `maxlm import` has made, or a folder of
        published weights.
      step: the checkpoint to load, by default the newest that is whole.
      mesh: devices along the axes `data`, `fsdp`, `expert` and `tensor`, such as {"tensor": 4}; by
        default one device.
      dtype: of weights and activations: float32, bfloat16 or float16; by default that of the
        training.

    Raises:
      UserError: what is there cannot be loaded, or does not fit the devices.
    """
    devices = jax.local_devices()
    return Model(loading.load(loading.find(path, step), mesh or {}, dtype, devices=devices))


class Model:
    """A model on its devices; `load` makes it.

    Attributes:
      config: its architecture.
      tokenizer: the one it was trained with; None where there is none.
      num_parameters: a tied embedding counts once.
      num_ids: ids that mean something: the tokenizer's, or else the model's vocabulary. Others only
        fill the vocabulary up; they have no logits and are never generated.
      step: of the checkpoint; None: these are published weights.
    """

    def __init__(self, loaded: loading.Loaded):
        self.config: ModelConfig = loaded.config.model
        self.tokenizer: Tokenizer | None = loaded.tokenizer
        self.num_parameters: int = parameter_count(self.config)
        self.num_ids: int = loaded.num_ids
        self.step: int | None = loaded.step
        self._ends = loaded.ends
        self._weights, self._mesh = Weights(loaded.decoder, loaded.mesh), loaded.config.mesh
        declared = without_values(loaded.decoder)
        parts = loaded.config, loaded.config.mesh, declared, loaded.mesh, loaded.dtype
        readings = {"logits": LOGITS, "hidden": HIDDEN, "nats": nats_of(self.num_ids)}
        self._forward = {
            name: make_forward(*parts, reading=reading) for name, reading in readings.items()
        }
        self._generator = Generator(
            self._weights, loaded.mesh, num_ids=self.num_ids, compute_dtype=loaded.dtype
        )

    def logits(self, tokens: Any, segment_ids: Any = None) -> np.ndarray:
        """Return the fp32 logits of the token after each token.

        Args:
          tokens: whole numbers (T,) or (B, T): lists or arrays. Nothing is added; what was trained
            on documents knows them with BOS in front.
          segment_ids: of the same shape: tokens see those before them that have the same number,
            and count their positions from 0 where it changes; those with 0 are filling, whose
            logits mean nothing. By default each row is one document.

        Returns:
          (T, num_ids) or (B, T, num_ids).

        Raises:
          UserError: tokens that are none, or shapes that do not fit.
        """
        return self._read("logits", tokens, segment_ids)[..., : self.num_ids]

    def hidden(self, tokens: Any, segment_ids: Any = None) -> np.ndarray:
        """Return the fp32 hidden states of each token that logits are made of, normalised.

        Args:
          tokens, segment_ids: as for `logits`.

        Returns:
          (T, D) or (B, T, D).
        """
        return self._read("hidden", tokens, segment_ids)

    def nats(self, tokens: Any, segment_ids: Any = None) -> np.ndarray:
        """Return -ln p of each token after the first, given those before it, fp32.

        Args:
          tokens, segment_ids: as for `logits`; where the next token is of another segment, the
            number means nothing.

        Returns:
          (T - 1,) or (B, T - 1).
        """
        return self._read("nats", tokens, segment_ids)[..., :-1]

    def _read(self, name: str, tokens: Any, segment_ids: Any) -> np.ndarray:
        tokens, segments = _whole_numbers("tokens", tokens), None
        if tokens.ndim not in (1, 2) or not tokens.size:
            raise UserError(
                f"tokens has the shape {tokens.shape}; give (T,) or (B, T), at least one token"
            )
        self._check_ids(tokens)
        if segment_ids is not None:
            segments = _whole_numbers("segment_ids", segment_ids)
            if segments.shape != tokens.shape or segments.min() < 0:
                raise UserError(
                    f"segment_ids has the shape {segments.shape} and needs that of tokens, {tokens.shape}, and "
                    "numbers from 0 on"
                )
        self._check_length(tokens.shape[-1], 0)
        tokens_BT = np.atleast_2d(tokens)
        segments_BT = np.ones_like(tokens_BT) if segments is None else np.atleast_2d(segments)
        rows = rows_bucket(len(tokens_BT), self._mesh.batch_devices)
        fill = (
            (0, rows - len(tokens_BT)),
            (0, length_bucket(tokens_BT.shape[1]) - tokens_BT.shape[1]),
        )
        fields = tokens_BT, segments_BT, _positions(segments_BT)
        filled = [np.pad(field, fill).astype(np.int32) for field in fields]
        length = tokens_BT.shape[1]
        found = np.asarray(self._forward[name](self._weights.stacked(), *filled, length=length))
        cut = found[: tokens_BT.shape[0], : tokens_BT.shape[1]]
        return cut[0] if tokens.ndim == 1 else cut

    def generate(
        self,
        prompts: Any,
        *,
        max_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] = 0,
        stop: Collection[int | str] = (),
    ) -> Any:
        """Return what follows each prompt, up to the end of its document.

        Args:
          prompts: one, or a list of several, which are continued together. A prompt is a text, which
            gets BOS in front, or a list of token ids, which gets nothing.
          max_tokens: tokens to generate at most, for each.
          temperature: logits are divided by it; 0 takes the likeliest token.
          top_k: choose among the k likeliest tokens; None: all.
          top_p: choose among the likeliest tokens that together have this probability; None: all.
          seed: of the random choices. Same seed and prompts, same answers. One for each prompt of
            a list: then an answer does not depend on the prompts beside its own.
          stop: tokens that end an answer besides the tokenizer's EOS and those that came with
            published weights: ids, or what special tokens are called.

        Returns:
          a text for a text, ids for ids, without the prompt; a list for a list of prompts.

        Raises:
          UserError: a setting out of its range, prompts without a token or longer than the model's
            positions.
        """
        alone = isinstance(prompts, str) or _is_ids(prompts)
        several: list[Prompt] = [prompts] if alone else list(prompts)
        ids = [self._prompt_ids(prompt) for prompt in several]
        several_seeds = tuple(seed) if isinstance(seed, Sequence) else seed
        sampling = Sampling(temperature, top_k, top_p, several_seeds)
        if isinstance(seed, Sequence) and len(seed) != len(several):
            raise UserError(
                f"seed: {len(seed)} numbers for {len(several)} prompts; give one for each"
            )
        steps = list(self._steps(ids, max_tokens, sampling, stop)) if ids else []
        answers: list[Any] = []
        for prompt, row in zip(
            several, zip(*steps, strict=True) if steps else [()] * len(ids), strict=True
        ):
            own = [token for token in row if token is not None]
            answers.append(self._continuation(prompt, own) if isinstance(prompt, str) else own)
        return answers[0] if alone else answers

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Collection[int | str] = (),
    ) -> Iterator[str]:
        """Yield what `generate` returns for one text, piece by piece, never half a character."""
        ids = self._prompt_ids(prompt)
        sampling = Sampling(temperature, top_k, top_p, seed)
        stream = self._own_tokenizer().stream()
        stream.push(ids)
        for (token,) in self._steps([ids], max_tokens, sampling, stop):
            if token is not None and (piece := stream.push([token])):
                yield piece
        if rest := stream.end():
            yield rest

    def _steps(
        self, ids: list[list[int]], max_tokens: int, sampling: Sampling, stop: Collection[int | str]
    ) -> Iterator[list[int | None]]:
        if problems := [
            f"{name}={value} {text}" for name, value, text in check_sampling(sampling, max_tokens)
        ]:
            raise UserError("; ".join(problems))
        self._check_length(max(map(len, ids)), max_tokens)
        return self._generator(
            ids, max_tokens=max_tokens, sampling=sampling, stop_ids=self._stop_ids(stop)
        )

    def _continuation(self, prompt: str, ids: list[int]) -> str:
        """Decode what follows a prompt: as part of its text, at whose start alone a space may go."""
        stream = self._own_tokenizer().stream()
        stream.push(self._prompt_ids(prompt))
        return stream.push(ids) + stream.end()

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            tokenizer = self._own_tokenizer()
            of_text = [tokenizer.bos_id, *tokenizer.encode(prompt)]
            self._check_ids(np.asarray(of_text))
            return of_text
        ids = _whole_numbers("a prompt", prompt)
        if ids.ndim != 1 or not ids.size:
            raise UserError(
                f"a prompt has the shape {ids.shape}; give a text, or a list of at least one token id"
            )
        self._check_ids(ids)
        return [int(token) for token in ids]

    def _own_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(
                "this model was saved without a tokenizer; give token ids in place of texts"
            )
        return self.tokenizer

    def _stop_ids(self, stop: Collection[int | str]) -> set[int]:
        specials = self.tokenizer.specials if self.tokenizer else {}
        unknown = [name for name in stop if isinstance(name, str) and name not in specials]
        if unknown:
            raise UserError(
                f"stop: {unknown[0]!r} is no special token of the tokenizer; it has {sorted(specials)}"
            )
        ids = {specials[name] if isinstance(name, str) else int(name) for name in stop}
        return ids | self._ends

    def _check_ids(self, ids: np.ndarray) -> None:
        if ids.min() < 0 or ids.max() >= self.num_ids:
            wrong = ids[(ids < 0) | (ids >= self.num_ids)].flat[0]
            raise UserError(f"token id {wrong} is not in [0, {self.num_ids}), the model's ids")

    def _check_length(self, num_tokens: int, max_tokens: int) -> None:
        position = self.config.position
        if isinstance(position, LearnedPosition) and num_tokens + max_tokens > position.max_length:
            generated = f" and max_tokens={max_tokens}, together" if max_tokens else ","
            raise UserError(
                f"the prompt has {num_tokens} tokens{generated} more than model.position.max_length="
                f"{position.max_length}; shorten the prompt or lower max_tokens"
            )


def _is_ids(prompts: Any) -> bool:
    """Return whether this is one prompt of token ids, and not a list of prompts."""
    return len(prompts) > 0 and np.ndim(prompts[0]) == 0 and not isinstance(prompts[0], str)


def _whole_numbers(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "iu":
        raise UserError(f"{name} must be whole numbers, rows of one length")
    return array.astype(np.int64)


def _positions(segments_BT: np.ndarray) -> np.ndarray:
    """Return each token's place since its segment began; 0 for filling."""
    columns = np.arange(segments_BT.shape[1])
    starts = np.diff(segments_BT, axis=1, prepend=-1) != 0
    begins = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    return np.where(segments_BT > 0, columns - begins, 0)
