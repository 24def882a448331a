"""Looks into the slots of a policy: which words can be read from them, and whether its actions depend on them.

    python experiments/probe_slots.py --checkpoint runs/comparison/latent_seed0/latent_20260101_120000

What a linear map reads from a slot is held against what one reads before any slot, from the last token of the
instruction, and against always saying the most frequent. Maps are made from one half of the validation episodes and
judged on the other. Then it says how much of its attention the action head has at the slots, and what becomes of the
actions where slots are hidden from it, or others are put in their place.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tqdm
from absl import flags

from jaxvla import cli
from jaxvla.errors import ConfigError

if TYPE_CHECKING:
    from jaxvla.agents.ecot import ECoT
    from jaxvla.reasoning.record import Reasoning
    from jaxvla.reasoning.texts import Texts, Wording

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A run folder, or the folder of one of its checkpoints.", required=True)
flags.DEFINE_integer("step", None, "Which checkpoint of a run folder; the latest where it is not given.")
flags.DEFINE_string("data_path", "", "Other data of the same layout; that of training where it is empty.")
flags.DEFINE_integer("samples", 4096, "Steps of the validation split, at most.", lower_bound=1)
flags.DEFINE_string("output_path", "", "A JSON file for what was found.")

GRIPPER = "GRIPPER POSITION"


def main(_: list[str]) -> None:
    output = cli.output_path(FLAGS.output_path) if FLAGS.output_path else None
    from jaxvla.agents import make_agent
    from jaxvla.checkpoint import find_checkpoint, read_assets
    from jaxvla.reasoning.texts import Wording
    from jaxvla.serving.stored import read_params
    from jaxvla.training.job import open_job

    checkpoint = find_checkpoint(FLAGS.checkpoint, FLAGS.step, items=("params", "assets"))
    assets = read_assets(checkpoint)
    wording = None if assets.text is None else Wording.from_json(assets.text)
    stage = 0 if wording is None else wording.stage_after(int(checkpoint.name))
    if not stage or not wording.curriculum.reasons:
        raise ConfigError(f"{checkpoint} does not think in slots: give a checkpoint of a stage that has some")
    own = {"data_path": FLAGS.data_path} if FLAGS.data_path else {}
    job = open_job(assets.train_config, {**assets.data_config, **own})
    if job.texts.validation.split.store is None:
        raise ConfigError("the data has no reasoning to read in the slots: set bridgedata_config.reasoning_path")
    agent, params = make_agent(assets.agent, assets.agent_kwargs, assets.spec), read_params(checkpoint, assets)
    size = min(job.config.batch_size, job.validation.num_transitions)
    count = max(min(FLAGS.samples, job.validation.num_transitions) // size, 1)
    batches = list(draw(job, stage, size, count))
    known = [truth for batch in batches for truth in batch.pop("known")]
    episode_n = np.concatenate([batch.pop("episode") for batch in batches])
    columns = Columns(wording, stage, batches[0]["text"]["prefix"].shape[1])
    states = read_states(agent, params, batches, columns)
    found = {
        "checkpoint": str(checkpoint),
        "samples": len(known),
        "words": words(wording.curriculum.latent_components(stage), columns, states, known, episode_n),
        "attention": attention(agent, params, batches, columns),
        "mse": ablations(agent, params, batches, columns, states["slots"].mean(0)),
    }
    print_words(found["words"])
    for name, (share, per_column) in found["attention"].items():
        print(f"attention to {name:<31}{share:8.1%}  {per_column:.2f} times that of a column looked at like any other")
    for name, error in found["mse"].items():
        print(f"{name:<44}{error:8.3f}")
    if output:
        output.write_text(json.dumps(found, indent=1))
        print(f"report       {output}")


class Columns:
    """Where things stand in what the head looks at."""

    def __init__(self, wording: "Wording", stage: int, prefix: int) -> None:
        from jaxvla.reasoning.prompt import DELIMITER, START_OF_THINKING

        curriculum = wording.curriculum
        ending = len(wording.builder.tokenizer.encode(f"{DELIMITER} {START_OF_THINKING}"))
        self.instruction = prefix - ending - 1
        self.slots = slice(prefix, prefix + curriculum.num_slots(stage))
        self.of_component = {
            name: slice(curriculum.num_slots(i), curriculum.num_slots(i + 1))
            for i, name in enumerate(curriculum.latent_components(stage))
        }


def draw(job: Any, stage: int, size: int, count: int) -> Iterator[dict[str, Any]]:
    """Validation batches of one size, with the annotations and the episode of each sample beside them."""
    from jaxvla.data.loader import validation_batches

    texts: Texts = job.texts
    made, split = texts.validation.at_stage(stage), texts.validation.split

    def placed(batch_index: int, trajectory: np.ndarray, step: np.ndarray, *rest: np.ndarray) -> dict[str, np.ndarray]:
        return made(batch_index, trajectory, step, *rest) | {"place": np.stack([trajectory, step], 1)}

    for batch in validation_batches(job.validation, size, job.agent.batch_keys, max_batches=count, text=placed):
        place = batch["text"].pop("place")
        if len(place) == size:
            yield {**batch, "known": split.read(*place.T), "episode": place[:, 0]}


def read_states(agent: "ECoT", params: Any, batches: Sequence[Any], columns: Columns) -> dict[str, np.ndarray]:
    """Hidden states of all samples: "instruction" [n, d], and "slots" [n, k, d]."""
    import jax

    look = jax.jit(lambda params, batch: agent.look(params, batch)[0])
    instruction, slots = [], []
    for batch in tqdm.tqdm(batches, "reading", leave=False):
        context_btd = np.asarray(look(params, batch), np.float32)
        instruction.append(context_btd[:, columns.instruction])
        slots.append(context_btd[:, columns.slots])
    return {"instruction": np.concatenate(instruction), "slots": np.concatenate(slots)}


def words(
    components: Sequence[str],
    columns: Columns,
    states: Mapping[str, np.ndarray],
    known: "Sequence[Reasoning | None]",
    episode_n: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """What of each latent component is read from where: shares of samples, or of the first gripper position the
    explained variance and the median distance (px of 256)."""
    from jaxvla.training.probe import Halves, mean_point, most_frequent, read_classes, read_points

    found: dict[str, dict[str, Any]] = {}
    for component in components:
        given = [{} if truth is None else truth.components() for truth in known]
        has_n = np.array([component in parts for parts in given])
        halves, rows = Halves(episode_n[has_n]), np.flatnonzero(has_n)
        slots_nkd = states["slots"][has_n]
        places = {
            "instruction": states["instruction"][has_n],
            "its slots": slots_nkd[:, columns.of_component[component]].reshape(len(rows), -1),
            "all slots": slots_nkd.reshape(len(rows), -1),
        }
        try:
            if component == GRIPPER:
                points_n2 = np.array([known[i].gripper_positions[0] for i in rows], np.float64)
                read = {name: read_points(x_nd, points_n2, halves) for name, x_nd in places.items()}
                found[component] = {"most frequent": mean_point(points_n2, halves), **read}
            else:
                names = [given[i][component] for i in rows]
                read = {name: read_classes(x_nd, names, halves) for name, x_nd in places.items()}
                found[component] = {"texts": len(set(names)), "most frequent": most_frequent(names, halves), **read}
        except ValueError as error:
            raise ConfigError(f"{component}: {error}: raise --samples, or give more validation data") from error
    return found


def attention(agent: "ECoT", params: Any, batches: Sequence[Any], columns: Columns) -> dict[str, tuple[float, float]]:
    """Where the head looks as it begins: the share of its attention that each part of the context has, the mean over
    layers, heads and tokens, and how many times more a column of that part has than if all had the same."""
    import jax

    @jax.jit
    def shares(params: Any, batch: Any) -> tuple[Any, Any]:
        context_btd, visible_bt = agent.look(params, batch)
        return agent.looks_at(params, context_btd, visible_bt, batch["observations"]).mean(0), visible_bt

    found = [jax.device_get(shares(params, batch)) for batch in tqdm.tqdm(batches, "watching", leave=False)]
    mass_nt, visible_nt = (np.concatenate(arrays) for arrays in zip(*found))
    uniform_nt = visible_nt / visible_nt.sum(1, keepdims=True)
    slots = columns.slots
    parts = {
        "pictures and instruction": slice(slots.start),
        "slots": slots,
        "end of thinking": slice(slots.stop, None),
    }
    sums = {name: (mass_nt[:, part].sum(1).mean(), uniform_nt[:, part].sum(1).mean()) for name, part in parts.items()}
    return {name: (float(mass), float(mass / uniform)) for name, (mass, uniform) in sums.items()}


def ablations(
    agent: "ECoT", params: Any, batches: Sequence[Any], columns: Columns, mean_kd: np.ndarray
) -> dict[str, float]:
    """The validation error of the actions where the head is shown something else than the slots that were thought."""
    import jax
    import jax.numpy as jnp

    from jaxvla.agents.executed import action_mse

    slots = columns.slots
    after = slice(slots.start, None)

    def error(params: Any, batch: Any, context_btd: Any, visible_bt: Any) -> Any:
        return action_mse(agent.act_on(params, context_btd, visible_bt, batch["observations"]), batch, agent.spec, 1)

    changes: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
        "as it thinks": lambda x, v: (x, v),
        "slots hidden": lambda x, v: (x, v.at[:, slots].set(False)),
        "slots and the end of thinking hidden": lambda x, v: (x, v.at[:, after].set(False)),
        "slots as they are in the mean": lambda x, v: (x.at[:, slots].set(jnp.asarray(mean_kd, x.dtype)), v),
        "slots and end of thinking of another sample": lambda x, v: (
            x.at[:, after].set(jnp.roll(x[:, after], 1, 0)),
            v,
        ),
    }

    @jax.jit
    def errors(params: Any, batch: Any) -> dict[str, Any]:
        context = agent.look(params, batch)
        return {name: error(params, batch, *change(*context)) for name, change in changes.items()}

    every = [jax.device_get(errors(params, batch)) for batch in tqdm.tqdm(batches, "hiding", leave=False)]
    return {name: float(np.mean([found[name] for found in every])) for name in changes}


def print_words(found: Mapping[str, Mapping[str, Any]]) -> None:
    """One row for each component."""
    places = ("most frequent", "instruction", "its slots", "all slots")
    print(f"{'':<20}{'texts':>7}" + "".join(f"{place:>16}" for place in places))
    for component, read in found.items():
        cells = [
            f"{read[place]:.1%}" if component != GRIPPER else "{:.2f}, {:.0f} px".format(*read[place])
            for place in places
        ]
        print(f"{component.lower():<20}{read.get('texts', ''):>7}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    cli.run(main)
