"""A small SmolVLA policy in a file of ours."""

from agents.smolvla_cases import agent_kwargs
from interchange.act_policies import DATA
from serving.policies import make

from jaxvla.agents.language import LanguageConfig, open_language
from jaxvla.contract import Execution
from jaxvla.data.schema import BatchSpec
from jaxvla.interchange.native import write_native

LANGUAGE = open_language(LanguageConfig("tokens", max_length=12, on_overflow="truncate"), ())
SPEC = BatchSpec(("top", "wrist"), (20, 16), 5, 3, action_horizon=4, instruction=LANGUAGE.spec)
# The tower sees with a scale and patches of its own, and the vocabulary is that of the small tokenizer.
KWARGS = agent_kwargs()
KWARGS["model"]["text"] = KWARGS["model"]["text"] | {"vocab_size": 1000}


def save_run(folder, spec=SPEC, **others):
    """A policy of ours after 3 steps; returns its parameters and assets."""
    data = DATA | {"cameras": {name: f"observation.images.{name}" for name in spec.cameras}}
    own = {"execution": Execution(execute_steps=4), "data_config": data, "language": LANGUAGE.to_json()} | others
    params, assets = make("smolvla", KWARGS, spec, values=(-0.3, 0.3), **own)
    write_native(folder, params, assets, 3, "")
    return params, assets
