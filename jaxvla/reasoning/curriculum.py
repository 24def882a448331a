"""From words to latents: which components of a sample's reasoning are slots, and which are words, at each stage.

Stage 0 has words only. At stage k the first k components are thought in latent slots, and the others follow in words.
The last stage, with as many latent components as there are, has no words.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from jaxvla.config import unknown_key
from jaxvla.errors import ConfigError
from jaxvla.reasoning.record import Reasoning
from jaxvla.reasoning.words import COMPONENT_SETS, render

# LaRA's box where none is known, in the rendering of `Reasoning.components`.
_WHOLE_IMAGE = "[0.0000 0.0000 1.0000 1.0000]"


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """The keys of config.curriculum.

    Attributes:
        component_set: "ecot" (the eight tags of embodied chain of thought) or "lara" (subtask, box, reason).
        component_order: a permutation of the set's components, or of some of them; () for the set's own order. It is
            the order of the words and the order in which components become latent.
        tag2think_count: slots of a component where it is latent; 1 for those that are not named.
        schedule: (first step, stage) entries; the first at step 0. One entry is a fixed stage.
        uniform_stage_probability: share of samples whose stage is drawn uniformly from 0 to that of the batch, so that
            earlier stages are not forgotten (Coconut's uniform_prob).
        tag_dropout: probability with which a component that would be words is left out, tag and text.
        reasoning_dropout: share of samples without any reasoning, words or slots, so that the policy can act without.
            At 1 nothing ever reasons, in validation neither, and batches have no columns for it.
        slots_for_missing: True gives every sample the slots of all latent components, as at inference, whether they are
            annotated or not. False is LaRA's rule: slots only for those that a sample has; from stage 1 on, the whole
            image is the box of every sample without one, annotated or not. A sample without any slot has, at stage 0,
            the delimiter behind its instruction even where no words follow, and from stage 1 on its bare instruction,
            whatever words it has.
    """

    component_set: str = "ecot"
    component_order: tuple[str, ...] = ()
    tag2think_count: dict[str, int] = dataclasses.field(default_factory=dict)
    schedule: tuple[tuple[int, int], ...] = ((0, 0),)
    uniform_stage_probability: float = 0.0
    tag_dropout: float = 0.0
    reasoning_dropout: float = 0.0
    slots_for_missing: bool = True

    def __post_init__(self) -> None:
        where = "config.curriculum"
        if self.component_set not in COMPONENT_SETS:
            raise ConfigError(f"{where}.component_set must be ecot or lara, not {self.component_set!r}")
        known = COMPONENT_SETS[self.component_set]
        for field in ("component_order", "tag2think_count"):
            for name in getattr(self, field):
                if name not in known:
                    raise ConfigError(unknown_key(f"{where}.{field}.{name}", str(name), known))
        if len(set(self.component_order)) < len(self.component_order):
            raise ConfigError(f"{where}.component_order names a component twice: {self.component_order}")
        for name, count in self.tag2think_count.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ConfigError(f"{where}.tag2think_count.{name} must be a positive whole number, not {count!r}")
        for field in ("uniform_stage_probability", "tag_dropout", "reasoning_dropout"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{where}.{field} must lie in [0, 1], not {getattr(self, field)}")
        self._check_schedule(f"{where}.schedule", len(self.component_order or known))

    def _check_schedule(self, where: str, last: int) -> None:
        steps = [step for step, _ in self.schedule]
        if steps[:1] != [0] or any(a >= b for a, b in itertools.pairwise(steps)):
            raise ConfigError(
                f"{where} must hold (first step, stage) entries, steps rising from 0, not {self.schedule}"
            )
        for _, stage in self.schedule:
            if not 0 <= stage <= last:
                raise ConfigError(f"{where} has a stage {stage}; with {last} components there are stages 0 to {last}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one sample reasons.

    Attributes:
        stage: -1 where it does not reason: no slots, no words, and the bare instruction.
        num_slots: latent slots that it uses.
        words: its components in words, in order, each with its tag; they are joined by single spaces.
    """

    stage: int
    num_slots: int
    words: tuple[str, ...]


_NO_REASONING = Plan(-1, 0, ())


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """The stages of a configuration, and what a sample is at each.

    Attributes:
        config: where it comes from.
        components: in order; there are stages 0 to len(components).
        num_uniforms: random numbers that `plan` takes for a sample, m.
    """

    config: CurriculumConfig
    components: tuple[str, ...] = dataclasses.field(init=False)
    num_uniforms: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        components = self.config.component_order or COMPONENT_SETS[self.config.component_set]
        counts = [self.config.tag2think_count.get(name, 1) for name in components]
        object.__setattr__(self, "components", components)
        object.__setattr__(self, "num_uniforms", 2 + len(components))
        object.__setattr__(self, "_counts", dict(zip(components, counts)))
        object.__setattr__(self, "_slots", tuple(itertools.accumulate(counts, initial=0)))

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages of the schedule, each once, in the order in which they are reached."""
        return tuple(dict.fromkeys(stage for _, stage in self.config.schedule))

    @property
    def last_stage(self) -> int:
        """The stage that training ends with."""
        return self.config.schedule[-1][1]

    @property
    def reasons(self) -> bool:
        """Whether any sample can have words or slots."""
        return self.config.reasoning_dropout < 1

    def stage_at(self, step: int) -> int:
        """The stage of a batch; `step` counts the updates made before it."""
        return [stage for first, stage in self.config.schedule if first <= step][-1]

    def switches(self, start: int, stop: int) -> tuple[tuple[int, int], ...]:
        """(first step, stage) of each change of the stage at a step after `start` and before `stop`."""
        pairs = itertools.pairwise(self.config.schedule)
        return tuple((step, stage) for (_, before), (step, stage) in pairs if stage != before and start < step < stop)

    def latent_components(self, stage: int) -> tuple[str, ...]:
        """The components that are thought in slots."""
        return self.components[:stage]

    def word_components(self, stage: int) -> tuple[str, ...]:
        """The components that are said in words."""
        return self.components[stage:]

    def num_slots(self, stage: int) -> int:
        """The slots of a sample that has every latent component, k."""
        return self._slots[stage]

    def sample_stages(self, stage: int) -> tuple[int, ...]:
        """The stages that samples of a batch may have."""
        return tuple(range(stage + 1)) if self.config.uniform_stage_probability else (stage,)

    def at_stage(self, stage: int) -> "Curriculum":
        """The same components at one fixed stage, with nothing drawn at random: for validation."""
        fixed = {"uniform_stage_probability": 0.0, "tag_dropout": 0.0, "reasoning_dropout": float(not self.reasons)}
        return Curriculum(dataclasses.replace(self.config, schedule=((0, stage),), **fixed))

    def reads_reasoning(self, stage: int) -> bool:
        """Whether what is known about a sample matters in a batch of the stage; not where all of it is latent."""
        said = any(self.word_components(own) for own in self.sample_stages(stage))
        return self.reasons and (said or not self.config.slots_for_missing)

    def words(self, reasoning: Reasoning | None, stage: int) -> dict[str, str]:
        """Every component that a sample has at a stage, in words, latent or not: name to tag and text, in order."""
        given = reasoning.components() if reasoning is not None else {}
        texts = {name: text for name in self.components if (text := given.get(name, "").strip())}
        if stage > 0 and "BBOX" in self.components and not self.config.slots_for_missing:
            texts.setdefault("BBOX", _WHOLE_IMAGE)
        component_set = self.config.component_set
        return {name: render(component_set, name, texts[name]) for name in self.components if name in texts}

    def plan(self, reasoning: Reasoning | None, stage: int, uniforms: Sequence[float] | np.ndarray) -> Plan:
        """How a sample reasons in a batch of `stage`; depends on the arguments alone.

        Args:
            reasoning: what is known about the sample's step; None for nothing.
            stage: of the batch.
            uniforms: [num_uniforms or more] random numbers in [0, 1): for dropping the reasoning, for the sample's
                stage, and for dropping each component's words; the others are not used.
        """
        left_out, mixed, *tags = map(float, uniforms[: self.num_uniforms])
        config = self.config
        if left_out < config.reasoning_dropout:
            return _NO_REASONING
        if mixed < config.uniform_stage_probability:
            stage = int(mixed / config.uniform_stage_probability * (stage + 1))
        words = self.words(reasoning, stage)
        latent = self.latent_components(stage)
        slots = (
            self.num_slots(stage)
            if config.slots_for_missing
            else sum(self._counts[name] for name in latent if name in words)
        )
        kept = tuple(
            words[name]
            for name, u in zip(self.components, tags, strict=True)
            if name in words and name not in latent and u >= config.tag_dropout
        )
        reasons = slots or kept if config.slots_for_missing else slots or stage == 0
        return Plan(stage, slots, kept) if reasons else _NO_REASONING
