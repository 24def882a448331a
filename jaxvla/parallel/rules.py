"""How the parameters of the package's models are split, by their paths.

Matrices are split in both directions: "tensor" takes the axis along which parts can be computed apart (heads, the width
of an MLP, the vocabulary), "fsdp" the other one, whose parts are gathered for the layer that runs. So a layer costs two
sums over "tensor", one behind the attention and one behind the MLP, and logits stay where their rows of the vocabulary
are. Kernels whose columns are several things side by side (queries, keys and values; scale and shift) would be cut
across these by "tensor": of them both take the rows.
"""

import dataclasses

from jax.sharding import PartitionSpec

# An axis of an array is split by one axis of the mesh, by several, or not.
MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Split:
    """How arrays of one kind are split, where their sizes allow it.

    Attributes:
        axes: for each of their axes but the leading one of a layer stack, which is never split. An axis that does not
            divide stays whole, and an array with another number of axes is of another kind.
    """

    axes: tuple[MeshAxes, ...]


# (regex searched in a parameter's path "a/b/c", how it is split); the first match wins. A PartitionSpec is meant as it
# is: it is an error where it does not fit.
Rules = tuple[tuple[str, PartitionSpec | Split], ...]

COLUMNS = Split(("fsdp", "tensor"))
ROWS = Split(("tensor", "fsdp"))
SIDE_BY_SIDE = Split((("fsdp", "tensor"), None))

# Paths whose axis 0 is the layer axis of a scan.
STACKED = (
    r"(^|/)(layers|last_layer|blocks|deepstack_mergers|rest)/"
    r"|(^|/)(encoder|decoder)/(attention|cross_attention|mlp|attention_norm|cross_attention_norm|mlp_norm)/"
)

# What stands behind the path of a kernel whose integers and scales are arrays of their own (models/quantization.py).
# Both are split as it would be.
QUANTIZED = r"(?<=/kernel)/(values|scale)$"

MODELS: Rules = (
    # Vocabularies, [v, d] and [d, v].
    (r"embed_tokens/embedding$", ROWS),
    (r"lm_head/kernel$", COLUMNS),
    # Decoders, vision towers, diffusion transformers.
    (r"(self_attn|attention)/[qkv]_proj/kernel$", COLUMNS),
    (r"(self_attn|attention|attn)/(o_proj|out_proj|proj|out)/kernel$", ROWS),
    (r"(^|/)(gate_proj|up_proj|linear_fc1|up)/kernel$", COLUMNS),
    (r"(^|/)(down_proj|linear_fc2|down)/kernel$", ROWS),
    (r"(self_attn|attn)/qkv/kernel$|pool/kv/kernel$|attention/kernel$|layers/\w+/modulation/kernel$", SIDE_BY_SIDE),
    # From vision to language. The last layer of three has no partner that would take its parts.
    (r"projector/fc1/kernel$", COLUMNS),
    (r"projector/fc2/kernel$", ROWS),
    (r"projector/fc3/kernel$|(^|/)connector/kernel$", SIDE_BY_SIDE),
    # Adapters [in, rank] and [rank, out], as their kernels.
    (r"([qkv]_proj|gate_proj|up_proj|linear_fc1|lm_head)/lora_a$", Split(("fsdp", None))),
    (r"([qkv]_proj|gate_proj|up_proj|linear_fc1|lm_head)/lora_b$", Split((None, "tensor"))),
    (r"(o_proj|out_proj|down_proj|linear_fc2)/lora_a$", Split(("tensor", None))),
    (r"(o_proj|out_proj|down_proj|linear_fc2)/lora_b$", Split((None, "fsdp"))),
)
