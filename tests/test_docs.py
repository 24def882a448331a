"""The method that docs/architecture.md writes down is an agent; messages in docs/formats.md are those of the code."""

import ast
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxvla.agents.agent import Agent
from jaxvla.data.schema import BatchSpec

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
SPEC = BatchSpec((), (8, 8), proprio_dim=5, action_dim=3, action_horizon=2)


def test_the_method_of_the_docs_learns(monkeypatch):
    code, preset = re.findall(r"```python\n(.*?)```", TEXT.partition("### A new method")[2], re.DOTALL)
    module = types.ModuleType("state_mse")
    monkeypatch.setitem(sys.modules, "state_mse", module)  # dataclasses look their module up
    exec(code, module.__dict__)
    values = {"base": dict}
    exec(preset, values)
    agent = module.make_state_mse(values["_state_mse"]()["agent_kwargs"], SPEC)
    assert isinstance(agent, Agent)
    params = agent.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, agent.spec.fake_batch(4, agent.batch_keys, np.random.default_rng(0)))
    (loss, metrics), gradients = jax.value_and_grad(agent.loss, has_aux=True)(params, batch, jax.random.key(1))
    assert loss == metrics["mse"] > 0
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))
    actions = agent.act(params, batch["observations"], {})
    expected = ((actions - batch["actions"]) ** 2).sum(-1).mean(1)
    np.testing.assert_allclose(agent.evaluate(params, batch, jax.random.key(2))["mse"], expected, rtol=1e-5)


def literals() -> list[str]:
    """The strings of the sources but docstrings; "\\0" stands for what is filled in."""
    found = []
    for path in (path for folder in ("jaxvla", "data_processing") for path in (ROOT / folder).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if node in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def stands_in(fragment: str, sources: str) -> bool:
    """Whether a message of the sources has this part; "..." is anything, and a number may be filled in."""
    tokens = re.split(r"('?\.\.\.'?|\d+)", fragment)
    kinds = (
        "[^\n]*" if "..." in token else rf"(?:{token}|\0)" if token.isdigit() else re.escape(token) for token in tokens
    )
    return re.search("".join(kinds), sources) is not None


def test_messages_of_the_tables_are_those_of_the_sources():
    sources = "\n".join(text.replace("\n", " ") for text in literals())
    rows, kinds = [], None
    for line in (ROOT / "docs" / "formats.md").read_text().splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        kinds = (kinds or cells) if cells else None  # the head of the table
        if kinds and kinds[-1] in ("the message", "the reason") and cells != kinds and set(cells[0]) != {"-"}:
            rows.append(cells)
    fragments = [fragment for cells in rows for fragment in re.findall("`(.*?)`", cells[-1])]
    assert [fragment for fragment in fragments if not stands_in(fragment, sources)] == []
    assert [cells for cells in rows if "`" not in cells[-1] and cells[-1] != "as above"] == []
    assert len(fragments) > 100
    assert not stands_in("holds no dated folders (like 2021-07-23_14-05-59)", sources)
    assert not stands_in("fewer than 2 transition ", sources)
