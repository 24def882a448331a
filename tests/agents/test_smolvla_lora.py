import jax
import numpy as np
from agents.smolvla_cases import agent_kwargs, quick_jit
from agents.test_smolvla import EXPERT, RNG, SPEC, acting, case, differentiate, make, trained_modules
from flax import traverse_util

from jaxvla.agents import make_agent
from jaxvla.agents.backbone import merge_adapters
from jaxvla.models.smolvla.config import LORA_TARGETS

LORA = {"rank": 2, "targets": LORA_TARGETS, "dropout": 0.3}


def test_adapters_train_alone_and_are_merged_to_act():
    params, batch = case()
    kwargs = agent_kwargs(train_expert_only=True) | {"lora": LORA}
    agent = make_agent("smolvla", kwargs, SPEC)
    shapes = jax.eval_shape(agent.init, RNG)
    paths = sorted(traverse_util.flatten_dict(shapes["lora"], sep="/"))
    assert len(paths) == 2 * (2 * 2 + 5)
    assert {path.split("/")[0] for path in paths} == EXPERT
    assert trained_modules(agent)[0] == {"lora"}
    random = np.random.default_rng(1)
    lora = jax.tree.map(lambda x: 0.3 * random.standard_normal(x.shape, np.float32), shapes["lora"])
    adapted = params | {"lora": lora}
    acted = acting(agent)(adapted, batch["observations"], batch)
    plain, merged = merge_adapters(kwargs, adapted)
    assert plain == agent_kwargs(train_expert_only=True)
    assert merged.keys() == params.keys()
    served = acting(make_agent("smolvla", plain, SPEC))(merged, batch["observations"], batch)
    np.testing.assert_allclose(served, acted, rtol=1e-4, atol=1e-5)
    assert np.abs(served - acting(make())(params, batch["observations"], batch)).max() > 1e-2
    loss = quick_jit(agent.loss)
    first, other, last = (loss(adapted, batch, key)[0] for key in (RNG, RNG, jax.random.key(1)))
    assert first == other != last


def test_adapters_of_the_language_model_learn_where_it_is_trained_else():
    """Whatever `train_expert_only` says, adapters alone are trained, wherever they are."""
    params, batch = case()
    lora = {"rank": 2, "targets": r"^(text|expert)/.*q_proj/kernel$"}
    for alone in (True, False):
        agent = make_agent("smolvla", agent_kwargs(train_expert_only=alone) | {"lora": lora}, SPEC)
        assert trained_modules(agent)[0] == {"lora"}
    adapted = params | {"lora": agent.init(RNG)["lora"]}
    gradient = differentiate(agent)(adapted, batch, RNG)[1]["lora"]
    assert gradient.keys() == {"text", "expert"}
    for path, leaf in traverse_util.flatten_dict(gradient, sep="/").items():
        # Of a product of which one factor is 0 only that one has a gradient.
        assert np.any(leaf[0]) == path.endswith("lora_b"), path


def test_without_adapters_nothing_is_merged():
    params, _ = case()
    plain, same = merge_adapters(agent_kwargs() | {"lora": LORA | {"rank": 0, "dropout": 0.0}}, params)
    assert plain == agent_kwargs()
    jax.tree.map(np.testing.assert_array_equal, same, params)
