"""Rows of the embedding, and of the output head, for tokens that the pretrained model does not have."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvla.errors import ConfigError, WeightsError
from jaxvla.models.module import Params
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig

MEAN = "mean"
COPY = "copy:"


def add_tokens(
    params: Params,
    config: Qwen3VLConfig,
    tokens: Mapping[str, str],
    encode: Callable[[str], Iterable[int]],
    used_rows: int,
) -> tuple[Params, Qwen3VLConfig, dict[str, Any]]:
    """Initialises the rows of new tokens: spare rows of the table while there are some, else a longer table.

    The published tables have 151936 rows for 151669 tokens, so a few hundred tokens leave every shape as it is. Near
    rows that were never trained would be a poor start: Coconut copies the row of "<<" ("copy:<<"), which is the mean
    of its rows where the text is several tokens; "mean" is the mean of all rows in use.

    Args:
        params: of a model of this configuration; not changed.
        config: sizes of the model.
        tokens: name to "mean" or "copy:TEXT".
        encode: of the tokenizer with the new tokens, text to ids.
        used_rows: ids below it belong to tokens from before; `vocab_size` of the tokenizer without the new ones.

    Returns:
        The parameters; the configuration, whose vocab_size grew if the table did; and a record for the checkpoint of
        what was done, plain JSON values: {"used_rows": n, "vocab_size": n, "tokens": {name: {"id", "init"}}}. A table
        that grew is placed as XLA chooses; one that did not stays in its shards.

    Raises:
        ConfigError: an unknown initialisation.
        WeightsError: the new ids do not follow `used_rows`, or the table is shorter than that.
    """
    vocab_size = config.text.vocab_size
    if used_rows > vocab_size:
        raise WeightsError(f"the tokenizer has {used_rows} tokens, but the embedding only {vocab_size} rows")
    ids = [_new_id(name, encode) for name in tokens]
    if sorted(ids) != list(range(used_rows, used_rows + len(ids))):
        raise WeightsError(
            f"the new tokens {', '.join(tokens)} have the ids {ids}, not those from {used_rows} on: "
            "add them to the tokenizer, all at once and none that it had"
        )
    sources = [_sources(init, encode, used_rows) for init in tokens.values()]
    grown = max(vocab_size, used_rows + len(ids))

    tables = {"embed_tokens": ("embedding", 0)} | ({} if config.tie_word_embeddings else {"lm_head": ("kernel", 1)})
    text = dict(params["text"])
    for module, (name, axis) in tables.items() if ids else ():
        text[module] = {name: _set_rows(text[module][name], axis, grown, ids, sources, used_rows)}
    record = {
        "used_rows": used_rows,
        "vocab_size": grown,
        "tokens": {name: {"id": i, "init": init} for i, (name, init) in zip(ids, tokens.items())},
    }
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=grown))
    return {**params, "text": text}, config, record


def _set_rows(
    table: Float[Array, "..."],
    axis: int,
    size: int,
    ids: Sequence[int],
    sources: Sequence[Sequence[int]],
    used_rows: int,
) -> Float[Array, "..."]:
    """Row `ids[i]` along `axis` becomes the mean of the rows `sources[i]`; of all rows in use where that is empty."""

    def fill(table: Float[Array, "..."]) -> Float[Array, "..."]:
        rows = jnp.moveaxis(table, axis, 0)
        used = [rows[np.asarray(source)] if source else rows[:used_rows] for source in sources]
        new = jnp.stack([jnp.mean(part, axis=0, dtype=jnp.float32) for part in used]).astype(table.dtype)
        longer = jnp.pad(rows, ((0, size - len(rows)), (0, 0)))
        return jnp.moveaxis(longer.at[np.asarray(ids)].set(new), 0, axis)

    same = table.shape[axis] == size
    return jax.jit(fill, out_shardings=table.sharding if same else None)(table)


def _new_id(name: str, encode: Callable[[str], Iterable[int]]) -> int:
    ids = list(encode(name))
    if len(ids) != 1:
        raise WeightsError(f"the tokenizer splits {name!r} into {len(ids)} tokens: add it to the tokenizer first")
    return int(ids[0])


def _sources(init: str, encode: Callable[[str], Iterable[int]], used_rows: int) -> list[int]:
    """The rows whose mean a new token starts from; empty for all rows in use."""
    if init == MEAN:
        return []
    if not init.startswith(COPY) or init == COPY:
        raise ConfigError(f"no initialisation of a token named {init!r}; there are {MEAN!r} and '{COPY}TEXT'")
    ids = [int(i) for i in encode(init.removeprefix(COPY))]
    if not ids or max(ids) >= used_rows:
        raise ConfigError(f"{init!r} does not copy a token from before: its ids are {ids}, those begin at {used_rows}")
    return ids
