"""What a client asks, whatever protocol it speaks, and what it is answered."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla.contract import Contract
from jaxvla.errors import JaxvlaError
from jaxvla_client.chunks import Timing

# The key of a request under which clients that know this server say more than other protocols can.
OPTIONS = "jaxvla"


class RequestError(JaxvlaError):
    """A request cannot be answered as it is; the message is for the client."""


class LateError(RequestError):
    """A request's deadline passed before it was its turn."""


class BusyError(RequestError):
    """As many wait, or act, as are admitted."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a client may say beside its observation; see docs/serving.md.

    Attributes:
        policy: name of the checkpoint; empty for that of the connection.
        reset: an episode begins: what was seen before no longer counts.
        seed: from which its draws are made; with `reset` alone.
        observe: the observation is a step that plays earlier actions: nothing is decided.
        deadline_ms: after which nobody waits for the actions any more, from when the server has the request; 0 for no
            deadline.
        timing: "played", actions since its last decision began, None where none is known, and "delay", control steps
            after which it expects this one, of a robot that goes on meanwhile; empty for one that waits.
        contract: what the client takes for true of how the policy is played.
    """

    policy: str = ""
    reset: bool = False
    seed: int = 0
    observe: bool = False
    deadline_ms: float | int = 0.0
    timing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    contract: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: Any) -> "Options":
        """Those of a request.

        Raises:
            RequestError: an unknown key, or a value that makes no sense.
        """
        if not isinstance(values, Mapping):
            raise RequestError(f"{OPTIONS!r} must be a map, not {type(values).__name__}")
        if not values:
            return _NOTHING
        for key, value in values.items():
            if key not in _KINDS:
                raise RequestError(f"{OPTIONS!r} has no key {key!r:.60}; it has {', '.join(_KINDS)}")
            kind = _KINDS[key]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise RequestError(f"{OPTIONS}/{key} is {value!r:.60}, of another type than it must be")
        options = cls(**values)
        if not 0 <= options.deadline_ms < 1e9:
            raise RequestError(f"{OPTIONS}/deadline_ms must be 0 (none) or positive, not {options.deadline_ms}")
        if options.timing and not options.timing.keys() <= {*Timing._fields}:
            raise RequestError(f"{OPTIONS}/timing must have {' and '.join(Timing._fields)}, and nothing else")
        if not 0 <= options.seed < 2**32 or (options.seed and not options.reset):
            raise RequestError(f"{OPTIONS}/seed must be 0 to {2**32 - 1}, beside reset, not {options.seed}")
        return options


_KINDS = {
    **{"policy": str, "reset": bool, "seed": int, "observe": bool, "deadline_ms": int | float},
    **{"timing": Mapping, "contract": Mapping},
}


_NOTHING = Options()


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One message of a client.

    Attributes:
        what: "act", "reset" (an episode begins), or "hello" and "nothing", which need no policy.
        examples: observations of the robots of this client, as they came: one, but for batches of starVLA.
        options: of all of them.
        single: one action is asked for each observation; the server plays the chunk.
        dataset: whose units the actions are to be in; empty where it is not said.
        context: what the answer needs of the message.
    """

    what: str
    examples: tuple[Mapping[str, Any], ...] = ()
    options: Options = _NOTHING
    single: bool = False
    dataset: str = ""
    context: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What was decided.

    Attributes:
        actions: float32 [a, d] of each example; or [d] where a single one is asked for; empty where only observed.
        words: what was said before, of each.
        infer_ms: of the computation, which others may have been part of.
        queue_ms: from when the request was read to the computation.
        previous_ms: of the request before this, all in all; 0 for the first.
    """

    actions: tuple[np.ndarray, ...]
    words: tuple[str, ...]
    infer_ms: float
    queue_ms: float
    previous_ms: float


def check_contract(stated: Mapping[str, Any], contract: Contract) -> None:
    """Whether what a client takes for true of a policy is.

    Args:
        stated: any keys of `Contract.to_json`, as nested.
        contract: of the checkpoint; what it does not know does not count.

    Raises:
        RequestError: it is not, or there is no such key.
    """
    wrong = list(_differences(stated, contract.to_json(), "")) if stated else []
    if wrong:
        raise RequestError(f"the policy is not what the client takes it for: {'; '.join(wrong)}")


def _differences(stated: Mapping[str, Any], true: Mapping[str, Any], above: str) -> Any:
    for key, value in stated.items():
        path = f"{above}{key}"
        if key not in true:
            yield f"its contract has no {path!r:.60}, but {', '.join(true)}"
            continue
        own = list(true[key]) if isinstance(true[key], tuple) else true[key]
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            yield from _differences(value, own, f"{path}/")
        elif own is not None and value != own and (own or key != "control_frequency"):
            yield f"{path} is {own}, the client has {value!r:.60}"
