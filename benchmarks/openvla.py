"""How fast OpenVLA trains and acts, and what it holds, in each precision; beside the same in transformers.

    python benchmarks/openvla.py --preset=tiny
    python benchmarks/openvla.py --width=2048 --layers=2 --vision_layers=2 --vocab_size=4096 --train_batch_size=1
    python benchmarks/openvla.py --train_batch_size=16 --remat=block                        for a GPU that holds it all

Weights and inputs are random. "train" is a whole step of AdamW on all parameters, held in float32, products in --dtype;
transformers holds all in float32, too, and runs its products under autocast. "act" is one decision of --robots robots:
towers, prompt, and a token for each of --values values; "first" is the same for one value, so that the rest of "act" is
all loop. What acts in float32 or bfloat16 is held in that; int8 and int4 are held in bfloat16 otherwise, and compute in
it. Passes take turns with a product of square matrices, so that what else the machine does meets all of them; figures
are medians of the rounds. FLOPs are those of the model's products: the masked half of attention, blocks that nothing
reads, and what remat computes again do not count; a backward pass counts twice its forward pass. MFU is their rate over
--peak_tflops, by default that of the square matrices. "held" is what parameters take, "temporary" what else is taken.
"agree" is the share of tokens that are those of bfloat16, each behind the same ones, "first agree" that of the first
token: on random weights logits lie close together, so that trained ones agree more.
"""

import copy
import dataclasses
import functools
import importlib.util
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import traverse_util
from turns import Pass, measure, say

from jaxvla import cli
from jaxvla.agents import make_agent, quantized
from jaxvla.agents.openvla import OpenVLA
from jaxvla.data.schema import BatchSpec, InstructionSpec
from jaxvla.models.layers import cast_matrices
from jaxvla.models.module import bind
from jaxvla.models.prismatic.config import PRESETS, PrismaticConfig, preset
from jaxvla.models.prismatic.weight_table import param_shapes
from jaxvla.models.quantization import MODES, num_bytes
from jaxvla.models.stack import REMAT_POLICIES

FLAGS = flags.FLAGS
flags.DEFINE_enum("preset", "openvla_7b", list(PRESETS), "Sizes, unless the next four change them.")
flags.DEFINE_integer("width", None, "Of the language model; heads of 128, an MLP 2.75 times as wide.", lower_bound=128)
flags.DEFINE_integer("layers", None, "Of the language model.", lower_bound=1)
flags.DEFINE_integer("vision_layers", None, "That are read of each tower, which has one more.", lower_bound=1)
flags.DEFINE_integer("vocab_size", None, "Rows of the embedding table.", lower_bound=512)
flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of the products in training.")
flags.DEFINE_enum("remat", "none", REMAT_POLICIES, "What training keeps for its backward pass.")
flags.DEFINE_integer("train_batch_size", 2, "Samples of a training step; 0 to leave training out.", lower_bound=0)
flags.DEFINE_integer("robots", 1, "That act at once.", lower_bound=1)
flags.DEFINE_integer("samples", 16, "Whose tokens are compared.", lower_bound=1)
flags.DEFINE_integer("values", 7, "Of an action.", lower_bound=2)
flags.DEFINE_integer("prompt", 18, "Tokens of a prompt.", lower_bound=1)
flags.DEFINE_float("peak_tflops", None, "Of the device, in the products' dtype.", lower_bound=0)
flags.DEFINE_integer("rounds", 5, "Of measuring every pass.", lower_bound=1)
flags.DEFINE_bool("transformers", True, "Measure transformers, too, where it, torch and timm are installed.")

PRECISIONS = ("float32", "bfloat16", *MODES)
MATMUL_SIDE = {"cpu": 1024, "gpu": 16384, "tpu": 16384}
# The least seconds between two looks at the clock.
LEAST_SECONDS = 0.1


def model_config() -> PrismaticConfig:
    config = preset(FLAGS.preset)
    text, changes = config.text, {}
    if FLAGS.width is not None:
        heads = {name: FLAGS.width // 128 for name in ("num_attention_heads", "num_key_value_heads")}
        changes = heads | {"hidden_size": FLAGS.width, "intermediate_size": FLAGS.width * 11 // 4}
    if FLAGS.layers is not None:
        changes["num_hidden_layers"] = FLAGS.layers
    if FLAGS.vocab_size is not None:
        changes["vocab_size"] = FLAGS.vocab_size
    towers = config.towers
    if FLAGS.vision_layers is not None:
        depth = {"num_hidden_layers": FLAGS.vision_layers + 1, "read_layers": FLAGS.vision_layers}
        towers = {name: dataclasses.replace(tower, **depth) for name, tower in towers.items()}
    return dataclasses.replace(config, text=dataclasses.replace(text, **changes), **towers)


def agent_of(config: PrismaticConfig, dtype: str, values: int, remat: str = "none") -> OpenVLA:
    """An agent whose actions have so many values; the last tokens of the vocabulary are those of actions."""
    rows = config.text.vocab_size
    spec = BatchSpec(
        ("images0",), (config.image_size,) * 2, values, values, instruction=InstructionSpec(FLAGS.prompt, rows - 300)
    )
    model = dataclasses.asdict(dataclasses.replace(config, dtype=dtype, remat=remat))
    tokens = {"first": rows - 3, "space": rows - 2, "end": rows - 1, "actions_end": rows - 3}
    return make_agent("openvla", {"model": model, "tokens": tokens}, spec)


def forward_flops(config: PrismaticConfig, tokens: int, logits: int) -> float:
    """Of one sample: an image, so many tokens with it, so many positions with logits."""
    shapes = traverse_util.flatten_dict(param_shapes(config), sep="/")
    kernels = {path: leaf.size for path, leaf in shapes.items() if path.endswith("/kernel") and "/unread/" not in path}

    def size(prefix: str) -> int:
        return sum(count for path, count in kernels.items() if path.startswith(prefix))

    patches, text = config.tokens_per_image, config.text
    products = tokens * size("llm/layers/") + logits * size("llm/lm_head/") + patches * size("projector/")
    products += text.num_hidden_layers * text.hidden_size * tokens * (tokens + 1)
    for name, tower in config.towers.items():
        seen = patches + (1 + tower.num_register_tokens if name == "dino" else 0)
        products += patches * size(f"vision/{name}/patch_embedding") + seen * size(f"vision/{name}/layers/")
        products += 2 * tower.read_layers * tower.hidden_size * seen**2
    return 2.0 * products


def act_flops(config: PrismaticConfig, values: int) -> float:
    return FLAGS.robots * forward_flops(config, config.tokens_per_image + FLAGS.prompt + 1 + values, values)


def train_flops(config: PrismaticConfig) -> float:
    tokens = 1 + config.tokens_per_image + FLAGS.prompt + 1 + FLAGS.values + 1
    return 3 * FLAGS.train_batch_size * forward_flops(config, tokens, FLAGS.values + 1)


def compile_pass(label: str, function: Callable, *inputs: Any, **facts: Any) -> Pass:
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*inputs).compile()
    say(f"compiled {label} in {time.perf_counter() - start:.1f} s")
    facts["temporary"] = compiled.memory_analysis().temp_size_in_bytes
    return Pass(label, lambda: jax.block_until_ready(compiled(*inputs)), **facts)


def matmul_pass(dtype: str) -> Pass:
    side = MATMUL_SIDE[jax.default_backend()]
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    return compile_pass(f"matmul {dtype}", jnp.matmul, a, b, flops=2.0 * side**3)


def train_pass(config: PrismaticConfig) -> Pass:
    agent = agent_of(config, FLAGS.dtype, FLAGS.values, FLAGS.remat)
    batch = agent.spec.fake_batch(FLAGS.train_batch_size, agent.batch_keys, np.random.default_rng(0))
    optimizer, params = optax.adamw(1e-4), jax.jit(agent.init)(jax.random.key(0))

    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, Any]:
        (loss, _), grads = jax.value_and_grad(agent.loss, has_aux=True)(params, batch, jax.random.key(0))
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    carried = [params, jax.jit(optimizer.init)(params)]
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*carried, batch).compile()

    def run() -> None:
        carried[0], carried[1], loss = compiled(*carried, batch)
        jax.block_until_ready(loss)

    held, temporary = num_bytes({"state": carried}), compiled.memory_analysis().temp_size_in_bytes
    return Pass("jaxvla train", run, train_flops(config), held, temporary)


@functools.cache
def acting(config: PrismaticConfig, precision: str, values: int) -> OpenVLA:
    return agent_of(config, "float32" if precision == "float32" else "bfloat16", values)


def act_inputs(agent: OpenVLA, count: int) -> tuple[Any, Any]:
    batch = agent.spec.fake_batch(count, agent.batch_keys, np.random.default_rng(1))
    return batch["observations"], {"instruction": batch["instruction"]}


def in_precision(params: Any, precision: str) -> Any:
    """Parameters as a precision holds them: matrices and tables alone are narrow, and kernels narrower still."""
    if precision == "float32":
        return params
    return quantized("openvla", cast_matrices(params, jnp.bfloat16), precision if precision in MODES else "")


def act_passes(config: PrismaticConfig, params: Any, precision: str) -> list[Pass]:
    held, passes = in_precision(params, precision), []
    for label, values in (("act", FLAGS.values), ("first", 1)):
        agent = acting(config, precision, values)
        facts = {"flops": act_flops(config, values), "held": num_bytes(held)}
        inputs = act_inputs(agent, FLAGS.robots)
        passes.append(compile_pass(f"jaxvla {label} {precision}", agent.act, held, *inputs, **facts))
    return passes


def said(config: PrismaticConfig, params: Any, precision: str, texts_st: np.ndarray) -> np.ndarray:
    """The likeliest token at each place of the actions, of texts that hold others there: [samples, values]."""
    agent = acting(config, precision, FLAGS.values)
    held, (observations, _) = in_precision(params, precision), act_inputs(agent, FLAGS.samples)

    @jax.jit
    def likeliest(held: Any, images_bhwc: jax.Array, text_bt: jax.Array) -> jax.Array:
        model = bind(agent.graphdef, held)
        hidden_bsd = model.read(text_bt, model.encode_images(images_bhwc[:, None])).hidden_btd
        return model.llm.logits(model.llm.norm(hidden_bsd[:, -FLAGS.values :])).argmax(-1)

    images = observations["images0"][:, -1]
    return np.concatenate([likeliest(held, images[i : i + 1], texts_st[i : i + 1]) for i in range(FLAGS.samples)])


def agreements(config: PrismaticConfig, params: Any) -> dict[str, tuple[float, float]]:
    """Of each precision with bfloat16: shares of all tokens, and of first ones."""
    # First token, prompt, space, and all actions but the last.
    length = 1 + FLAGS.prompt + 1 + FLAGS.values - 1
    texts_st = np.random.default_rng(2).integers(0, config.text.vocab_size, (FLAGS.samples, length), np.int32)
    tokens = {precision: said(config, params, precision, texts_st) for precision in PRECISIONS}
    same = {precision: own == tokens["bfloat16"] for precision, own in tokens.items()}
    return {precision: (own.mean(), own[:, 0].mean()) for precision, own in same.items()}


def why_not_transformers() -> str | None:
    """Why transformers cannot be measured; None where it can."""
    if not FLAGS.transformers:
        return "--notransformers"
    missing = [name for name in ("torch", "transformers", "timm") if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    import torch

    able = jax.default_backend() == "cpu" or (jax.default_backend() == "gpu" and torch.cuda.is_available())
    return None if able else f"torch {torch.__version__} cannot use this {jax.default_backend()}"


def torch_model(config: PrismaticConfig, device: str) -> Any:
    """The published flow: towers of timm, a projector, Llama of transformers, without what nothing reads."""
    import torch
    from timm.models.vision_transformer import VisionTransformer
    from transformers import LlamaConfig, LlamaForCausalLM

    def tower(name: str, size: Any) -> torch.nn.Module:
        dino = {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True, "global_pool": "token"}
        model = VisionTransformer(
            img_size=size.image_size,
            patch_size=size.patch_size,
            embed_dim=size.hidden_size,
            depth=size.read_layers,
            num_heads=size.num_attention_heads,
            mlp_ratio=size.intermediate_size / size.hidden_size,
            num_classes=0,
            **(dino if name == "dino" else {"class_token": False, "global_pool": "map"}),
        )
        model.attn_pool, model.norm = None, torch.nn.Identity()
        return model

    dims, sizes = config.projector_dims, dataclasses.asdict(config.text)
    del sizes["rope_theta"]  # the usual one
    with torch.device(device):
        towers = torch.nn.ModuleList(tower(name, size) for name, size in config.towers.items())
        layers = [part for pair in itertools.pairwise(dims) for part in (torch.nn.Linear(*pair), torch.nn.GELU())]
        llama = LlamaForCausalLM._from_config(LlamaConfig(**sizes), attn_implementation="sdpa")
        return torch.nn.ModuleDict({"towers": towers, "projector": torch.nn.Sequential(*layers[:-1]), "llama": llama})


def torch_passes(config: PrismaticConfig) -> list[Pass]:
    import torch
    from transformers import DynamicCache

    device, vocab_size = {"cpu": "cpu", "gpu": "cuda"}[jax.default_backend()], config.text.vocab_size

    def embed(model: Any, count: int, length: int) -> torch.Tensor:
        dtype = next(model.parameters()).dtype
        pixels = torch.rand(count, 3, config.image_size, config.image_size, device=device, dtype=dtype)
        patches = [tower.forward_features(pixels)[:, -config.tokens_per_image :] for tower in model["towers"]]
        words = model["llama"].get_input_embeddings()(torch.randint(0, vocab_size, (count, length), device=device))
        return torch.cat([words[:, :1], model["projector"](torch.cat(patches, -1)), words[:, 1:]], 1)

    def act(model: Any, values: int) -> list[int]:
        chosen, cache, llama = [], DynamicCache(), model["llama"]
        with torch.no_grad():
            x = embed(model, FLAGS.robots, 1 + FLAGS.prompt + 1)
            for _ in range(values):
                logits = llama(inputs_embeds=x, past_key_values=cache, logits_to_keep=1).logits
                chosen.append(logits.argmax(-1))
                x = llama.get_input_embeddings()(chosen[-1])
        return torch.cat(chosen, 1).tolist()

    def train(model: Any, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=FLAGS.dtype == "bfloat16"):
            x = embed(model, FLAGS.train_batch_size, 1 + FLAGS.prompt + 1 + FLAGS.values + 1)
            logits = model["llama"](inputs_embeds=x, logits_to_keep=FLAGS.values + 2).logits[:, :-1].float()
        labels = torch.randint(0, vocab_size, logits.shape[:2], device=device)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    model, passes = torch_model(config, device), []
    narrow = copy.deepcopy(model).bfloat16()
    if FLAGS.train_batch_size:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
        run = functools.partial(train, model, optimizer)
        passes.append(Pass("transformers train", run, train_flops(config)))
    for one, name in ((model, "float32"), (narrow, "bfloat16")):
        held = sum(x.numel() * x.element_size() for x in one.parameters())
        for label, values in (("act", FLAGS.values), ("first", 1)):
            run = functools.partial(act, one, values)
            passes.append(Pass(f"transformers {label} {name}", run, act_flops(config, values), held))
    return passes


def report_training(passes: list[Pass], peak: float) -> None:
    say(f"\n{'':<28}  samples/s  min..max            MFU  state MB  temporary MB")
    for one in passes:
        rates = [FLAGS.train_batch_size / seconds for seconds in one.seconds]
        spread, mfu = f"{min(rates):.2f}..{max(rates):.2f}", one.flops / one.median / peak
        sizes = "".join(f"{'-' if size is None else f'{size / 1e6:.1f}':>10}" for size in (one.held, one.temporary))
        say(f"{one.label:<28} {FLAGS.train_batch_size / one.median:>10.2f}  {spread:<17} {mfu:>5.2f}{sizes}")


def report_acting(passes: list[Pass], first: list[Pass], agree: dict[str, tuple[float, float]]) -> None:
    """A line for each way to act, whose first token alone is the other pass of the same place."""
    say(f"\n{'':<28} latency ms  min..max            first ms  tokens/s  held MB  temporary MB  agree  first agree")
    for one, alone in zip(passes, first):
        times = [1e3 * seconds for seconds in one.seconds]
        later, count = one.median - alone.median, FLAGS.robots * (FLAGS.values - 1)
        rate = f"{count / later:.1f}" if later > 0 else "-"
        temporary = "-" if one.temporary is None else f"{one.temporary / 1e6:.1f}"
        shares = agree.get(one.label.split()[-1]) if one.label.startswith("jaxvla") else None
        said = f"{'-':>6} {'-':>12}" if shares is None else f"{shares[0]:>6.3f} {shares[1]:>12.3f}"
        say(
            f"{one.label:<28} {1e3 * one.median:>10.1f}  {f'{min(times):.1f}..{max(times):.1f}':<18} "
            f"{1e3 * alone.median:>9.1f} {rate:>9} {one.held / 1e6:>8.1f} {temporary:>13} {said}"
        )


def main(_: list[str]) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    config, reason = model_config(), why_not_transformers()
    size = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(config)))
    say(
        f"{FLAGS.preset}: {config.text.num_hidden_layers} layers of width {config.text.hidden_size}, vocabulary "
        f"{config.text.vocab_size}, {size / 1e6:.1f} M parameters; {jax.devices()[0].device_kind}, {os.cpu_count()} "
        "CPU cores"
    )
    params = jax.jit(acting(config, "float32", FLAGS.values).init)(jax.random.key(0))
    agree = agreements(config, params)
    matmul, training = matmul_pass(FLAGS.dtype), [train_pass(config)] if FLAGS.train_batch_size else []
    ours = [one for precision in PRECISIONS for one in act_passes(config, params, precision)]
    theirs = [] if reason else torch_passes(config)
    trainings, acts = [*training, *theirs[: len(training)]], [*ours, *theirs[len(training) :]]
    measure([matmul, *trainings, *acts], FLAGS.rounds, LEAST_SECONDS)
    peak = FLAGS.peak_tflops * 1e12 if FLAGS.peak_tflops else matmul.flops / matmul.median
    say(f"\nmatmul {matmul.flops / matmul.median / 1e9:.1f} GFLOP/s in {FLAGS.dtype}")
    report_training(trainings, peak)
    report_acting(acts[::2], acts[1::2], agree)
    if reason:
        say(f"transformers: not measured ({reason})")


if __name__ == "__main__":
    cli.run(main)
