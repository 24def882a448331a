"""Rows that weight tables have in common, see `jaxvla.models.weights.Row`: names as torch gives them, ours beside."""

from jaxvla.models.weights import COPY, TRANSPOSE, Row


def linear(name: str, path: str, shape: str) -> tuple[Row, Row]:
    """A layer with a bias; the width of its output is the first axis of `shape`.

    Args:
        name: of the layer there; several, with spaces between, are one layer here.
        path: of the layer here.
        shape: axes of the weight there, by their names.
    """
    names = name.split()
    return (
        (" ".join(f"{part}.weight" for part in names), path + "/kernel", TRANSPOSE, shape),
        (" ".join(f"{part}.bias" for part in names), path + "/bias", COPY, shape.split()[0]),
    )


def norm(name: str, path: str, shape: str) -> tuple[Row, Row]:
    """A LayerNorm of this width."""
    return (name + ".weight", path + "/scale", COPY, shape), (name + ".bias", path + "/bias", COPY, shape)


def decoder_layer(name: str, path: str, width: str, ffn: str, key_input: str) -> tuple[Row, ...]:
    """A `jaxvla.models.decoder.DecoderLayer` without norms of queries and keys, as Llama has it.

    Args:
        name, path: what stands before its parts, there and here.
        width, ffn, key_input: axes of the tokens, of the MLP, and of what keys are made of.
    """
    return (
        (name + "input_layernorm.weight", path + "input_layernorm/scale", COPY, width),
        (name + "post_attention_layernorm.weight", path + "post_attention_layernorm/scale", COPY, width),
        (name + "self_attn.q_proj.weight", path + "self_attn/q_proj/kernel", TRANSPOSE, f"q {width}"),
        (name + "self_attn.k_proj.weight", path + "self_attn/k_proj/kernel", TRANSPOSE, f"kv {key_input}"),
        (name + "self_attn.v_proj.weight", path + "self_attn/v_proj/kernel", TRANSPOSE, f"kv {key_input}"),
        (name + "self_attn.o_proj.weight", path + "self_attn/o_proj/kernel", TRANSPOSE, f"{width} q"),
        (name + "mlp.gate_proj.weight", path + "mlp/gate_proj/kernel", TRANSPOSE, f"{ffn} {width}"),
        (name + "mlp.up_proj.weight", path + "mlp/up_proj/kernel", TRANSPOSE, f"{ffn} {width}"),
        (name + "mlp.down_proj.weight", path + "mlp/down_proj/kernel", TRANSPOSE, f"{width} {ffn}"),
    )
