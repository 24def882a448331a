import dataclasses
import functools
import json
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.openvla_cases import LORA, MODEL, TOKENS, WHAT, agent_kwargs, check_frozen, flatten, quick_jit
from agents.rl_cases import random_params
from flax import traverse_util
from models.qwen3_vl import hf_files
from models.torch_files import Saved, prismatic

from jaxvla.agents import make_agent, start_of
from jaxvla.agents.agent import Agent
from jaxvla.agents.backbone import merge_adapters
from jaxvla.agents.language import LanguageConfig, language_from_json, open_language
from jaxvla.agents.openvla_settings import LORA_TARGETS
from jaxvla.agents.openvla_text import lay_out
from jaxvla.data.schema import NO_TOKEN, BatchSpec, InstructionSpec
from jaxvla.data.text.tokenizer import TINY, load_tokenizer
from jaxvla.errors import ConfigError, DataError, WeightsError
from jaxvla.models.lora import LoraConfig, adapted_paths
from jaxvla.models.module import bind
from jaxvla.models.prismatic.config import preset
from jaxvla.models.prismatic.weight_table import param_shapes
from jaxvla.models.prismatic.weights import save_hf
from jaxvla.ops.action_tokens import to_actions, to_tokens
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer

SPEC = BatchSpec(("images0",), (8, 8), 4, 3, action_horizon=2, instruction=InstructionSpec(5, 14))
RNG = jax.random.key(0)
PRESETS = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "configs" / "train_config.py"))["get_config"]
PATCHES = 4


@functools.cache
def make(**changes):
    return make_agent("openvla", agent_kwargs(**changes), SPEC)


@functools.cache
def case():
    """Parameters, and a batch with a padded action and prompts of several lengths."""
    batch = SPEC.fake_batch(3, make().batch_keys, np.random.default_rng(0))
    batch["actions"] = np.tanh(batch["actions"])
    batch["action_pad_mask"][1, 1:] = False
    batch["instruction"][1, 2:] = NO_TOKEN
    batch["instruction"][2] = NO_TOKEN
    return random_params(make()), batch


@functools.cache
def differentiate(agent):
    return quick_jit(jax.value_and_grad(agent.loss, has_aux=True))


@functools.cache
def acting(agent):
    return quick_jit(agent.act)


def test_the_deviation_of_what_is_drawn():
    usual, wide = (jax.device_get(quick_jit(make(**kwargs).init)(RNG)) for kwargs in ({}, {"initializer_range": 0.1}))
    for path, leaf in traverse_util.flatten_dict(wide, sep="/").items():
        scaled = path.startswith(("vision/", "llm/")) and path.endswith(("kernel", "embedding"))
        before = traverse_util.flatten_dict(usual, sep="/")[path]
        np.testing.assert_allclose(leaf, 5 * before if scaled else before, rtol=1e-6)
    assert np.std(wide["llm"]["embed_tokens"]["embedding"]) == pytest.approx(0.1, rel=0.15)
    with pytest.raises(ConfigError, match="initializer_range must be above 0, not 0"):
        make(initializer_range=0)


def test_it_is_an_agent():
    agent, (params, _) = make(), case()
    assert isinstance(agent, Agent)
    again = make_agent("openvla", agent_kwargs(), SPEC)
    assert (again, hash(again)) == (agent, hash(agent))
    assert agent.batch_keys == ("observations", "actions", "action_pad_mask", "instruction")
    drawn = jax.eval_shape(agent.init, RNG)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), drawn)


@quick_jit
def logits_by_hand(params, tokens, images):
    """Of one sequence without padding."""
    model = bind(make().graphdef, params)
    output = model.read(tokens, model.encode_images(images))
    return model.llm.logits(model.llm.norm(output.hidden_btd))


def by_hand():
    """Losses, hits and errors of each labelled token, one sample after the other."""
    params, batch = case()
    losses, hits, errors = [], [], []
    for i, actions in enumerate(batch["actions"]):
        prompt = [token for token in batch["instruction"][i] if token != NO_TOKEN]
        said = [int(token) for token in 270 - np.digitize(actions.astype(np.float64).ravel(), np.linspace(-1, 1, 256))]
        row = np.array([TOKENS["first"], *prompt, TOKENS["space"], *said, TOKENS["end"]])
        logits = logits_by_hand(params, row[None], batch["observations"]["images0"][i][None])[0]
        logits = np.asarray(logits, np.float64)[PATCHES:]
        labels = row[-7:]
        for j, label in enumerate(labels):
            if not batch["action_pad_mask"][i, min(j, 5) // 3]:
                continue
            scores = logits[len(row) - 8 + j]
            losses.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[label])
            if j < 6:
                hits.append(scores.argmax() == label)
                pair = to_actions(jnp.array([scores.argmax(), label]), 270)
                errors.append(abs(float(pair[0] - pair[1])))
    return losses, hits, errors


def test_the_loss_and_its_metrics_sample_by_sample():
    losses, hits, errors = by_hand()
    assert (len(losses), len(hits)) == (7 + 3 + 7, 6 + 3 + 6)
    (loss, metrics), _ = differentiate(make())(*case(), RNG)
    found = [loss, metrics["token_loss"], metrics["action_accuracy"], metrics["l1"]]
    np.testing.assert_allclose(found, [np.mean(losses)] * 2 + [np.mean(hits), np.mean(errors)], rtol=1e-5)


def test_padded_actions_change_neither_loss_nor_gradient():
    params, batch = case()
    other = batch | {"actions": np.where(batch["action_pad_mask"][..., None], batch["actions"], np.float32(0.7))}
    both = [differentiate(make())(params, each, RNG) for each in (batch, other)]
    assert np.isfinite(both[0][0][0])
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_what_is_said_is_the_likeliest_behind_what_was_said_before():
    params, batch = case()
    actions = acting(make())(params, batch["observations"], batch)
    assert actions.shape == (3, 2, 3)
    assert len(np.unique(actions)) > 3
    for i in range(3):
        prompt = [token for token in batch["instruction"][i] if token != NO_TOKEN]
        row = [TOKENS["first"], *prompt, TOKENS["space"]]
        for _ in range(6):
            logits = logits_by_hand(params, np.array([row]), batch["observations"]["images0"][i][None])
            row.append(int(logits[0, -1].argmax()))
        np.testing.assert_array_equal(actions[i].ravel(), to_actions(jnp.array(row[-6:]), 270))


def test_draws_differ_and_are_repeated_by_their_key():
    params, batch = case()
    draw = quick_jit(functools.partial(make().act, temperature=3.0))
    first, again, other = (draw(params, batch["observations"], batch, key) for key in (RNG, RNG, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_validation_of_each_example():
    params, batch = case()
    metrics = quick_jit(make().evaluate)(params, batch, RNG)
    assert set(metrics) == {"mse", "action_accuracy", "l1"}
    acted = acting(make())(params, batch["observations"], batch)
    error = ((np.asarray(acted) - batch["actions"]) ** 2).sum(-1)
    np.testing.assert_allclose(metrics["mse"], [error[0].mean(), error[1, 0], error[2].mean()], rtol=1e-5)
    _, hits, _ = by_hand()
    np.testing.assert_allclose(metrics["action_accuracy"], [np.mean(hits[:6]), np.mean(hits[6:9]), np.mean(hits[9:])])


@pytest.mark.parametrize("what", WHAT)
def test_what_is_frozen_stays_bit_for_bit(what):
    lora = {"lora": LORA} if what == "lora" else {}
    check_frozen(make_agent("openvla", agent_kwargs(train_what=what) | lora, SPEC), case()[1], WHAT[what])


def test_adapters_merge_into_what_is_served():
    kwargs, (_, batch) = agent_kwargs(train_what="lora") | {"lora": LORA}, case()
    agent = make_agent("openvla", kwargs, SPEC)
    params = random_params(agent)
    plain, merged = merge_adapters(kwargs, params)
    assert "lora" not in merged
    served = make_agent("openvla", plain, SPEC)
    found, expected = (
        quick_jit(each.evaluate)(own, batch, RNG)["l1"] for each, own in ((served, merged), (agent, params))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_images_of_several_cameras_stand_one_after_the_other():
    params, batch = case()
    agent = make_agent("openvla", agent_kwargs(num_cameras=0), other(cameras=("images0", "wrist")))
    seen = batch["observations"]
    two, swapped = (
        {"images0": seen["images0"], "wrist": 255 - seen["images0"]},
        {"images0": 255 - seen["images0"], "wrist": seen["images0"]},
    )
    losses = [differentiate(agent)(params, batch | {"observations": each}, RNG)[0][0] for each in (two, swapped)]
    assert abs(losses[0] - losses[1]) > 1e-4


def trained_millions(name, what, **changes):
    model = dataclasses.asdict(preset(name))
    for decided in ("last_layer_apart", "head", "film"):
        del model[decided]
    size = (224, 224)
    spec = BatchSpec(("images0",), size, 7, 7, instruction=InstructionSpec(64, 32001))
    agent = make_agent("openvla", {"model": model | {"dtype": "bfloat16"}, "train_what": what, **changes}, spec)
    optimizer = make_optimizer(OptimizerConfig(1e-4), agent.frozen_modules)
    trained, frozen = optimizer.split(jax.eval_shape(agent.init, RNG))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(frozen)} == {"bfloat16"}
    return sum(leaf.size for leaf in jax.tree.leaves(trained)) / 1e6


# What of SigLIP computes nothing, and counts as trained in the published numbers: a block, a norm, the pooling.
UNREAD = (15_239_504 + 2 * 1152 + 15_238_352) / 1e6


def test_trained_parameters_are_as_many_as_published():
    """7188.1, 6760.4, 465.1 and 914.2 million of the model with one tower; and what LoRA of rank 32 adds."""
    counted = functools.partial(trained_millions, "prismatic_siglip_224px")
    assert counted("full") + UNREAD == pytest.approx(7188.1, abs=0.05)
    assert counted("frozen_vision") == pytest.approx(6760.4, abs=0.05)
    assert counted("last_layer") == pytest.approx(465.1, abs=0.05)
    assert counted("sandwich") + UNREAD == pytest.approx(914.2, abs=0.05)
    for name, expected in (("prismatic_siglip_224px", 97_603_968), ("openvla_7b", 110_828_288)):
        shapes = param_shapes(preset(name))
        flat = flatten(shapes)
        paths = adapted_paths(shapes, LoraConfig(rank=32, targets="/kernel$"))
        rows = [(flat[path].shape[:-2], sum(flat[path].shape[-2:])) for path in paths]
        assert sum(math.prod(layers) * 32 * width for layers, width in rows) == expected
        read = adapted_paths(shapes, LoraConfig(rank=32, targets=LORA_TARGETS))
        assert set(paths) - set(read) == {path for path in paths if "/unread/" in path}


@pytest.mark.parametrize("name", ["openvla", "openvla_lora", "openvla_oft", "openvla_tiny", "openvla_oft_tiny"])
def test_presets_name_every_setting(name):
    config = PRESETS(name).to_dict()
    size, language = config["data"]["image_size"], config["language"]
    cameras = ("images0", "images2")[: config["agent_kwargs"]["num_cameras"] or 1]
    spec = BatchSpec(cameras, size, 8, 7, instruction=InstructionSpec(language["max_length"], 1000))
    agent = make_agent(config["agent"], config["agent_kwargs"], spec)
    kwargs, model = config["agent_kwargs"], config["agent_kwargs"]["model"]
    assert set(vars(agent.config)) == set(kwargs)
    assert set(vars(agent.config.lora)) == set(kwargs["lora"])
    assert set(vars(agent.config.tokens)) == set(kwargs["tokens"])
    assert set(vars(agent.config.parallel)) == set(kwargs["parallel"])
    assert set(vars(agent.config.model)) == {*model, "last_layer_apart", "head", "film"}
    for part in ("text", "dino", "siglip"):
        assert set(vars(getattr(agent.config.model, part))) == set(model[part])
    if "tiny" not in name:
        expected = dataclasses.replace(preset("openvla_7b"), dtype="bfloat16", remat="block")
        assert agent.config.model.published == expected
        # Of what regresses actions the output head computes nothing.
        idle = {"llm/lm_head/kernel"} if kwargs["parallel"]["enabled"] else set()
        shapes, own = param_shapes(agent.config.model), LoraConfig(1, targets=kwargs["lora"]["targets"])
        every = adapted_paths(shapes, dataclasses.replace(own, targets=LORA_TARGETS))
        assert set(every) - set(adapted_paths(shapes, own)) == idle


def other(**changes):
    return dataclasses.replace(SPEC, **changes)


@pytest.mark.parametrize(
    ("spec", "changes", "named"),
    [
        (other(obs_horizon=2), {}, "config.data.obs_horizon to 1, not 2"),
        (other(cameras=()), {}, "num_cameras is 1, and the data has no camera: name"),
        (other(cameras=()), {"num_cameras": 0}, "num_cameras is 0, and the data has no camera: name"),
        (other(cameras=("images0", "wrist")), {}, "num_cameras is 1, and the data has images0, wrist: name others"),
        (other(several_camera_sets=True), {}, "hides no missing cameras"),
        (other(image_size=(8, 12)), {}, r"images of images0 are \(8, 12\), but this model sees \(8, 8\): set config"),
        (other(instruction=None), {}, "config.language.encoder to 'openvla'"),
        (other(instruction=InstructionSpec(8)), {}, "config.language.encoder to 'openvla'"),
        (other(instruction=InstructionSpec(8, 1000)), {}, "has 1000 tokens, more than the 280 that"),
        (SPEC, {"tokens": TOKENS | {"actions_end": 255}}, "actions_end 255 leaves no 256 tokens"),
        (SPEC, {"tokens": TOKENS | {"end": 280}}, "tokens.end 280 is no token of a vocabulary of 280"),
        (SPEC, {"train_what": "head"}, "train_what must be one of full, frozen_vision, last_layer"),
        (SPEC, {"lora": LORA}, "train_what 'full' has no adapters: set it to 'lora'"),
        (SPEC, {"train_what": "lora", "lora": LORA | {"rank": 0, "dropout": 0.0}}, "there are none: set .*lora.rank"),
        (SPEC, {"model": MODEL | {"last_layer_apart": True}}, "decides on model.last_layer_apart: leave that out"),
        (SPEC, {"model": MODEL | {"siglip": None}}, "'fused_gelu_mlp' does not go with 1 tower"),
    ],
)
def test_bad_settings(spec, changes, named):
    with pytest.raises(ConfigError, match=named):
        make_agent("openvla", agent_kwargs(**changes), spec)


def test_training_starts_from_a_checkpoint_of_the_original_training(tmp_path):
    params, path = case()[0], tmp_path / "latest-checkpoint.pt"
    save_hf(params, make().config.model, tmp_path / "folder")
    saved, tensors = Saved(), hf_files.read_files(tmp_path / "folder")
    saved.write(path, prismatic(saved, tensors, 2))
    agent = make(path=str(path))
    start = start_of("openvla", agent)
    settings = "config.agent_kwargs.model.text.rms_norm_eps is 1e-06, where the weights have 1e-05"
    assert start.report == (f"OpenVLA from {path}", settings)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = start.load(jax.tree.map(lambda _: place, jax.eval_shape(agent.init, RNG)))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    # What adapters stand on is quantized as it is read.
    adapted = make_agent("openvla", agent_kwargs(path=str(path), train_what="lora", lora=LORA | {"base": "int8"}), SPEC)
    shardings = jax.tree.map(lambda _: place, jax.eval_shape(adapted.init, RNG))
    held = start_of("openvla", adapted).load(shardings)
    assert jax.tree.structure(held) == jax.tree.structure({name: shardings[name] for name in held})
    kernel = held["llm"]["layers"]["mlp"]["up_proj"]["kernel"].matrix(jnp.float32)
    np.testing.assert_allclose(kernel, params["llm"]["layers"]["mlp"]["up_proj"]["kernel"], atol=0.01)


def test_training_starts_from_a_folder(tmp_path):
    params, folder = case()[0], tmp_path / "openvla"
    save_hf(params, make().config.model, folder)
    agent = make(path=str(folder))
    start = start_of("openvla", agent)
    assert start.report == (f"OpenVLA from {folder}",)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = start.load(jax.tree.map(lambda _: place, jax.eval_shape(agent.init, RNG)))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    last = start_of("openvla", make(path=str(folder), train_what="last_layer"))
    apart = jax.eval_shape(make(train_what="last_layer").init, RNG)
    layer = last.load(jax.tree.map(lambda _: place, apart))["llm"]["last_layer"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(layer, params["llm"]["layers"]["mlp"]["up_proj"]["kernel"][-1:])
    assert start_of("openvla", make()) is None
    text = MODEL["text"] | {"rms_norm_eps": 1e-5}
    half = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    changed = agent_kwargs(model=MODEL | {"text": text, "siglip_pixels": half}, path=str(folder))
    lines = start_of("openvla", make_agent("openvla", changed, SPEC)).report
    assert lines[1] == "config.agent_kwargs.model.text.rms_norm_eps is 1e-05, where the weights have 1e-06"
    assert lines[2].startswith("config.agent_kwargs.model.siglip_pixels is PixelScale(mean=(0.5, 0.5, 0.5), std=(0.25")
    assert len(lines) == 3
    deeper = MODEL | {"text": MODEL["text"] | {"num_hidden_layers": 3}}
    with pytest.raises(ConfigError, match=r"model.text is TextConfig.*but .*/openvla has TextConfig"):
        start_of("openvla", make_agent("openvla", agent_kwargs(model=deeper, path=str(folder)), SPEC))
    load_tokenizer(TINY).save(folder)
    with pytest.raises(ConfigError, match=r"come with a tokenizer of 1000 tokens, but config.language has one of 14"):
        start_of("openvla", agent)
    with pytest.raises(WeightsError, match="does not exist"):
        start_of("openvla", make_agent("openvla", agent_kwargs(path=str(tmp_path / "nowhere")), SPEC))


def test_prompts_have_the_published_ids(samples):
    """Those of two tokenizers of Llama-2, without the first token and the space behind, which the agent puts there."""
    folder = samples / "tok_llama2"
    records = json.loads((folder / "DERIVED_golden_ids.json").read_text())["records"]
    golden = {record["text"]: record["ids_with_29871"] for record in records if "ids_with_29871" in record}
    assert len(golden) > 4
    language = open_language(LanguageConfig("openvla", str(folder)), ())
    for prompt, ids in golden.items():
        text = prompt.removeprefix("In: What action should the robot take to ").removesuffix("?\nOut:")
        if text != text.lower():
            continue
        (row,) = language.encode([text])
        assert row[row != NO_TOKEN].tolist() == ids[1:-1], prompt
    spoken = "put both the alphabet soup and the tomato sauce in the basket"
    (row,) = language.encode([spoken.capitalize() + "."])
    assert (row != NO_TOKEN).sum() == 27
    (vicuna,) = open_language(LanguageConfig("openvla_v01", str(folder)), ()).encode(["pick up the cup"])
    assert 1 + (vicuna != NO_TOKEN).sum() == 51
    again = language_from_json(json.loads(json.dumps(language.to_json())))
    np.testing.assert_array_equal(again.encode([spoken]), language.encode([spoken]))
    with pytest.raises(DataError, match=r"more than 8: shorten it, or train with config.language.max_length=27"):
        open_language(LanguageConfig("openvla", str(folder), max_length=8), ()).encode([spoken])


def test_tokens_around_a_prompt():
    agent = make()
    prompt = jnp.array([[7, 8, 9, NO_TOKEN, NO_TOKEN], [5, NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN]])
    actions = to_tokens(jnp.array([[-1.0, 0, 1] * 2, [0.5] * 6]), 270)
    text = lay_out(agent.config.tokens, prompt, actions)
    rows = [row[:stop].tolist() for row, stop in zip(np.asarray(text.tokens_bt), np.asarray(text.stop_b))]
    assert rows == [[270, 7, 8, 9, 271, 269, 142, 14, 269, 142, 14, 272], [270, 5, 271, *[78] * 6, 272]]
    assert np.asarray(text.space_b).tolist() == [4, 2]
    text = lay_out(agent.config.tokens, prompt, None)
    rows = [row[:stop].tolist() for row, stop in zip(np.asarray(text.tokens_bt), np.asarray(text.stop_b))]
    assert rows == [[270, 7, 8, 9, 271], [270, 5, 271]]
