"""The policy of a training that goes on."""

import contextlib
from collections.abc import Iterator

import jax

from jaxvla.agents import make_agent
from jaxvla.assets import Assets
from jaxvla.models.module import Params
from jaxvla.reasoning.texts import Wording
from jaxvla.serving.policy import Policy


class LivePolicy:
    """What a training would leave if it ended now. It is compiled once, and once for each stage of a curriculum.

    Adapters are not merged into their backbone, as they are where a checkpoint is loaded: that would be a second copy.

    Args:
        assets: of the checkpoints of the run.
        robots: how many it drives.

    Attributes:
        policy: that of a checkpoint before the first step, without parameters: it says what it needs.
    """

    def __init__(self, assets: Assets, robots: int) -> None:
        self._assets, self._robots = assets, robots
        self._wording = None if assets.text is None else Wording.from_json(assets.text)
        self._stage, self._compiled = self._stage_at(0), False
        self.policy = self._build(0)

    @contextlib.contextmanager
    def at(self, step: int, params: Params) -> Iterator[Policy]:
        """The policy of a checkpoint of `step`.

        Args:
            step: the last one that was taken.
            params: after it, on the device that is to compute. They are not held on to, so that training may donate
                them.
        """
        if self._stage_at(step) != self._stage:
            self.policy, self._stage, self._compiled = self._build(step), self._stage_at(step), False
        shapes, self.policy.params = self.policy.params, params
        try:
            if not self._compiled:
                self.policy.warm_up()
                self._compiled = True
            yield self.policy
        finally:
            self.policy.params = shapes

    def _stage_at(self, step: int) -> int:
        return 0 if self._wording is None else self._wording.stage_after(step)

    def _build(self, step: int) -> Policy:
        assets = self._assets
        own = {} if self._wording is None else {"inference": inference_at(assets, step)}
        agent = make_agent(assets.agent, {**assets.agent_kwargs, **own}, assets.spec)
        shapes = jax.eval_shape(agent.init, jax.random.key(0))
        return Policy(agent, shapes, assets, step, self._robots)


def inference_at(assets: Assets, step: int) -> str | None:
    """How the policy of a checkpoint is to reason: as configured, but not in slots where its stage has none.

    Args:
        assets: of the checkpoint.
        step: of the checkpoint.

    Returns:
        A mode of `load_policy`; None for policies that do not reason.
    """
    if assets.text is None:
        return None
    mode = make_agent(assets.agent, assets.agent_kwargs, assets.spec).config.inference
    return "none" if mode == "implicit" and not Wording.from_json(assets.text).stage_after(step) else mode
