"""Walks a reasoning policy from its data to its tenth step, and says where the first thing is wrong, and likely why."""

import dataclasses
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvla.data.schema import Batch
from jaxvla.errors import ConfigError, JaxvlaError
from jaxvla.parallel.feed import to_global
from jaxvla.parallel.sharding import batch_sharding
from jaxvla.reasoning.prompt import DELIMITER, END_OF_THINKING, START_OF_THINKING, THINKING_TOKENS
from jaxvla.training.job import Job
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import abstract_state, create_state, state_shardings
from jaxvla.training.step import make_train_step

STEPS = 10
CHECKS = ("data", "tokens", "alignment", "labels", "forward", "gradients", "steps")


class Finding(NamedTuple):
    """What a check saw.

    Attributes:
        stage: of the curriculum; -1 for what comes before any.
        check: one of `CHECKS`.
        saw: lines that are the same for the same seed.
        cause: the likely cause of a failure; empty where the check passed.
        timing: what differs from run to run.
    """

    stage: int
    check: str
    saw: tuple[str, ...]
    cause: str = ""
    timing: str = ""


class CheckError(Exception):
    """A check did not pass; says what it saw and the likely cause."""

    def __init__(self, saw: str, cause: str) -> None:
        super().__init__(saw)
        self.saw, self.cause = saw, cause


def examine(open_job: Callable[[], Job], mesh: Mesh) -> Iterator[Finding]:
    """Checks stage 0 and the last latent stage, one finding after the other, up to the first failure.

    Args:
        open_job: opens the job, so that what fails there is reported, too.
        mesh: where to run.
    """
    try:
        job = open_job()
        if job.texts is None:
            raise ConfigError("this configuration has no curriculum: check a policy that reasons, such as ecot_tiny")
        if not job.texts.wording.curriculum.reasons:
            raise ConfigError("nothing ever reasons: set config.curriculum.reasoning_dropout below 1")
    except JaxvlaError as error:
        yield Finding(
            -1, "data", (str(error),), "the paths, the data or the join of its reasoning; the line above says"
        )
        return
    curriculum = job.texts.wording.curriculum
    latent = max(curriculum.stages) or len(curriculum.components)
    for stage in (0, latent):
        for finding in _examine_stage(job, mesh, stage):
            yield finding
            if finding.cause:
                return


def _examine_stage(job: Job, mesh: Mesh, stage: int) -> Iterator[Finding]:
    fixed = dataclasses.replace(job, texts=dataclasses.replace(job.texts, training=job.texts.training.at_stage(stage)))
    batch: Batch = {}

    def data() -> Finding:
        stream = fixed.training_batches()
        batch.update(next(stream))
        stream.close()
        return Finding(stage, "data", tuple(_data(fixed, batch, stage)))

    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("data", data),
        ("tokens", lambda: Finding(stage, "tokens", tuple(_tokens(fixed, batch, stage)))),
        ("alignment", lambda: Finding(stage, "alignment", tuple(_alignment(fixed, batch, stage)))),
        ("labels", lambda: Finding(stage, "labels", tuple(_labels(batch["text"])))),
    )
    for name, check in checks:
        finding = _guarded(stage, name, check)
        yield finding
        if finding.cause:
            return
    yield from _train(fixed, batch, mesh, stage)


def _guarded(stage: int, name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except CheckError as failure:
        return Finding(stage, name, (failure.saw,), failure.cause)
    except JaxvlaError as error:
        return Finding(stage, name, (str(error),), "the data or a setting; the line above says which")


def _data(job: Job, batch: Batch, stage: int) -> Iterator[str]:
    for name, value in batch["observations"].items():
        yield f"observations/{name}: {value.dtype}{list(value.shape)}, {float(value.min()):g} to {float(value.max()):g}"
    yield f"actions: {batch['actions'].dtype}{list(batch['actions'].shape)}, normalized"
    yield from (*job.training.describe_actions(), *job.training.report)
    for name in ("actions", "proprio"):
        value = batch["actions"] if name == "actions" else batch["observations"]["proprio"]
        if not np.isfinite(value).all():
            row = int(np.argwhere(~np.isfinite(value))[0, 0])
            raise CheckError(
                f"{name} of sample {row} hold {value[row].tolist()}", "the data: values that are not finite"
            )
    text, decode = batch["text"], job.texts.wording.builder.tokenizer.decode
    reasons = text["stage"] >= 0
    yield f"{reasons.sum()} of {len(reasons)} samples have reasoning, {text['truncated'].sum()} are cut off"
    if not reasons.any():
        raise CheckError(
            "no sample has any reasoning", "the join of trajectories and annotations: it gave this batch none"
        )
    first = int(np.argmax(reasons))
    read = decode(text["prefix"][first, text["prefix_start"][first] :])
    said = decode(text["suffix"][first, : text["suffix_stop"][first]])
    yield f"sample {first} reads: ...{read[-120:]!r}"
    yield f"sample {first} says: {said[:160]!r}"
    for row in np.flatnonzero(reasons):
        ending = decode(text["prefix"][row, -8:])
        if DELIMITER not in ending:
            raise CheckError(
                f"sample {row} ends its prefix with {ending!r}", f"the text builder: no {DELIMITER!r} there"
            )
    if stage and START_OF_THINKING not in read:
        raise CheckError(f"sample {first} has no {START_OF_THINKING}", "the text builder: thinking tokens are missing")
    if stage and END_OF_THINKING not in said:
        raise CheckError(f"sample {first} has no {END_OF_THINKING}", "the text builder: thinking tokens are missing")


def _tokens(job: Job, batch: Batch, stage: int) -> Iterator[str]:
    wording, text = job.texts.wording, batch["text"]
    tokenizer, rows = wording.builder.tokenizer, job.agent.config.backbone.text.vocab_size
    yield ", ".join(f"{name} {tokenizer.id_of(name)}" for name in THINKING_TOKENS)
    spec = wording.specs[stage]
    size = len(text["stage"])
    expected = {
        "prefix": (size, spec.prefix_length),
        "slots": (size, spec.num_slots),
        "suffix": (size, spec.suffix_length),
        "labels": (size, spec.suffix_length),
    }
    for name, shape in expected.items():
        if text[name].shape != shape:
            raise CheckError(
                f"{name} is {text[name].shape}, not {shape}", "the layout: it does not follow its own sizes"
            )
    highest = max(int(text["prefix"].max()), int(text["suffix"].max()))
    columns = f"{spec.prefix_length} + {spec.num_slots} slots + {spec.suffix_length}"
    yield f"columns: {columns}; ids up to {highest} of {rows}"
    if highest >= rows:
        raise CheckError(
            f"an id is {highest}, the embedding has {rows} rows", "the tokenizer is not that of the backbone"
        )


def _alignment(job: Job, batch: Batch, stage: int) -> Iterator[str]:
    text = batch["text"]
    start = job.texts.wording.builder.tokenizer.id_of(START_OF_THINKING)
    uses = text["slots"].any(1)
    yield f"{uses.sum()} samples think, in {text['slots'].sum(1).min()} to {text['slots'].sum(1).max()} slots"
    wrong = np.flatnonzero(uses & (text["prefix"][:, -1] != start))
    if wrong.size:
        raise CheckError(
            f"sample {wrong[0]} does not end its prefix with {START_OF_THINKING}", "the layout: slots not aligned"
        )
    if (text["slots"][:, 1:] & ~text["slots"][:, :-1]).any():
        raise CheckError("a sample skips a slot", "the layout: slots not aligned")
    if stage and not uses.any():
        raise CheckError("no sample has a slot", "the curriculum: the stage has no latent component")
    pads = np.arange(text["prefix"].shape[1]) < text["prefix_start"][:, None]
    if (text["prefix"][pads] != job.texts.wording.builder.pad_id).any():
        raise CheckError("there are tokens before the start of a prefix", "the layout: padding")


def _labels(text: Mapping[str, Any]) -> Iterator[str]:
    columns = text["prefix"].shape[1] + text["slots"].shape[1] + text["suffix"].shape[1]
    labels = int(text["labels"].sum())
    share = 1 - labels / (len(text["stage"]) * columns)
    yield f"{labels} labels, {share:.1%} of the columns masked: images, instruction, slots, padding"
    if not labels:
        raise CheckError("every label is masked", "the labels: nothing to learn; no words, or all dropped")
    after = text["labels"] & (np.arange(text["labels"].shape[1]) >= text["suffix_stop"][:, None])
    if after.any():
        raise CheckError(f"sample {np.argwhere(after)[0, 0]} has labels on padding", "the labels: padding is learned")


def _train(job: Job, batch: Batch, mesh: Mesh, stage: int) -> Iterator[Finding]:
    """Forward, gradients and some steps on one batch, from one compiled step."""
    try:
        rows, moved, timing = _run(job, batch, mesh)
    except JaxvlaError as error:
        yield Finding(stage, "steps", (str(error),), "parameters unchanged: freezing (optimizer.learning_rates, mode)")
        return
    except jax.errors.JaxRuntimeError as error:
        line = str(error).splitlines()[0]
        memory = "RESOURCE_EXHAUSTED" in line
        yield Finding(stage, "forward", (line,), "out of memory: batch or length" if memory else "see the line above")
        return
    first = rows[0]
    path = f"{first['n_latents']:g} slots per sample" if first["n_latents"] else "no slots: one pass over all words"
    losses = {name: first[name] for name in ("action_loss", "lm_loss", "total_loss") if name in first}
    broken = [name for name, value in losses.items() if not np.isfinite(value)]
    saw = (f"took the path with {path}", ", ".join(f"{name} {value:.5g}" for name, value in losses.items()))
    yield Finding(stage, "forward", saw, "NaN loss: labels or data" if broken else "")
    if broken:
        return
    norms = {name: value for name, value in first.items() if name.startswith("grad_norm")}
    broken = [name for name, value in norms.items() if not np.isfinite(value)]
    saw = (", ".join(f"{name} {value:.4g}" for name, value in sorted(norms.items())),)
    cause = "NaN gradient: the latent pass" if first["n_latents"] else "NaN gradient: a pass over words or the head"
    yield Finding(stage, "gradients", saw, cause if broken else "")
    if broken:
        return
    frozen = job.agent.frozen_modules
    saw = (
        "loss " + " ".join(f"{row['loss']:.4g}" for row in rows),
        ", ".join(f"{name} moved by {value:.4g}" for name, value in moved.items()),
    )
    still = [name for name, value in moved.items() if not value and name not in frozen]
    cause = f"parameters unchanged: freezing of {', '.join(still)}" if still else ""
    if not all(np.isfinite(row["loss"]) for row in rows):
        cause = "NaN loss after some steps: the learning rate, or labels or data"
    yield Finding(stage, "steps", saw, cause, timing)


def _run(job: Job, batch: Batch, mesh: Mesh) -> tuple[list[dict[str, float]], dict[str, float], str]:
    """The metrics of each step, how far each module moved, and what it cost; with the average that training keeps."""
    config, frozen = job.config, job.agent.frozen_modules
    optimizer = make_optimizer(dataclasses.replace(config.optimizer, warmup_steps=0), frozen)
    sharding, ema = batch_sharding(mesh), config.ema_decay > 0
    state = create_state(job.agent, optimizer, config.seed, mesh, ema=ema, pretrained=job.pretrained)
    step = make_train_step(
        job.agent,
        optimizer,
        None,
        state_shardings(abstract_state(job.agent, optimizer, mesh, ema=ema)),
        sharding,
        accumulate_steps=config.accumulate_steps,
        ema_decay=config.ema_decay,
    )
    before = jax.device_get(state.params)
    on_device = to_global(batch, sharding)
    rows, seconds = [], []
    for _ in range(STEPS):
        start = time.perf_counter()
        state, metrics = step(state, on_device)
        rows.append({name: float(value) for name, value in jax.device_get(metrics).items()})
        seconds.append(time.perf_counter() - start)
    after = jax.device_get(state.params)
    moved = {name: _distance(before[name], after[name]) for name in before}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    timing = f"compilation {seconds[0]:.1f} s, then {np.median(seconds[1:]):.3f} s per step, host memory {peak:.2f} GB"
    return rows, moved, timing


def _distance(before: Any, after: Any) -> float:
    squares = jax.tree.map(lambda x, y: float(((x.astype(np.float64) - y) ** 2).sum()), before, after)
    return float(np.sqrt(sum(jax.tree.leaves(squares))))
