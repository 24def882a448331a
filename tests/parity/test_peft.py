"""Exported adapters, loaded by PEFT onto the base model: its logits are ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.test_qwen3_vl_weights import jax_logits, load, torch_logits, write_random

from jaxvla.models.lora import LoraConfig, add_lora, merge
from jaxvla.models.qwen3_vl.peft import save_peft

# PEFT asks transformers for what it renamed.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")]

LINEAR = r"text/layers/.*_proj/kernel|visual/(blocks|merger|deepstack_mergers)/.*/?(qkv|proj|linear_fc\d)/kernel"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [LINEAR, r"patch_embed/kernel|q_proj/kernel"])
def test_peft_computes_what_we_compute(tmp_path, tied, targets):
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    model = write_random(tmp_path / "base", tied)
    params, config = load(tmp_path / "base")
    plain = torch_logits(model)
    lora = LoraConfig(rank=3, alpha=5.0, targets=targets, dropout=0.2)
    params = add_lora(jax.random.key(0), params, lora)
    params["lora"] = jax.tree.map(lambda leaf: leaf + 0.1, params["lora"])
    # New tokens, with rows of their own in every table; one of them is read.
    ids = (9, 70)
    text = params["text"] = dict(params["text"])
    table = text["embed_tokens"]["embedding"]
    text["embed_tokens"] = {"embedding": table.at[jnp.array(ids)].add(0.3)}
    if not tied:
        text["lm_head"] = {"kernel": text["lm_head"]["kernel"].at[:, jnp.array(ids)].add(-0.2)}
    save_peft(params, config, lora, tmp_path / "adapters", base=str(tmp_path / "base"), tokens=ids)

    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapters").eval()
    keys = peft.get_peft_model_state_dict(adapted).keys()
    assert keys == peft.utils.load_peft_weights(str(tmp_path / "adapters"), device="cpu").keys()
    expected = jax_logits(merge(params, lora), config)
    np.testing.assert_allclose(torch_logits(adapted), expected, atol=1e-4)
    assert np.abs(expected - plain).max() > 0.01
