import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.ecot_cases import BACKBONE, IMAGE, PAD, SPEC, STOP, agent, agent_kwargs, batch, params, quick_jit, text

from jaxvla.agents import make_agent
from jaxvla.data.schema import TURN_TOKENS, TextSpec
from jaxvla.errors import ConfigError
from jaxvla.models.latent_thinking import think
from jaxvla.models.module import bind

KEY = jax.random.key(7)
loss = quick_jit(lambda agent, params, batch, rng: agent.loss(params, batch, rng), static_argnums=0)
evaluate = quick_jit(lambda agent, params, batch, rng: agent.evaluate(params, batch, rng), static_argnums=0)
sample = quick_jit(
    lambda agent, params, observations, task, rng: agent.sample_actions(params, observations, task, rng),
    static_argnums=0,
)


def test_the_loss_is_the_weighted_sum():
    total, metrics = loss(agent(language_loss_weight=0.25), params(), batch(), KEY)
    assert float(total) == pytest.approx(float(metrics["action_loss"] + 0.25 * metrics["lm_loss"]), rel=1e-6)
    assert metrics["total_loss"] == total
    assert float(metrics["n_latents"]) == 5 / 4
    assert float(metrics["stage"]) == 2
    # Nothing is learned yet, so that every token is about as likely as any other.
    assert float(metrics["lm_loss"]) == pytest.approx(np.log(BACKBONE.text.vocab_size), rel=0.1)


def test_actions_behind_the_end_of_a_trajectory_change_nothing():
    made, weighted = batch(), agent(language_loss_weight=0.25)
    other = made | {"actions": np.where(made["action_pad_mask"][..., None], made["actions"], 7)}
    assert (other["actions"] != made["actions"]).any()
    jax.tree.map(np.testing.assert_array_equal, *(loss(weighted, params(), x, KEY) for x in (made, other)))


def test_samples_without_slots_and_words_are_counted():
    made = batch()
    assert float(loss(agent(language_loss_weight=0.25), params(), made, KEY)[1]["without_reasoning"]) == 0
    labels = made["text"]["labels"].copy()
    labels[1] = False  # the sample without slots
    silent = made | {"text": made["text"] | {"labels": labels}}
    assert made["text"]["stage"][1] == 0
    assert float(loss(agent(language_loss_weight=0.25), params(), silent, KEY)[1]["without_reasoning"]) == 1 / 4


@pytest.mark.parametrize(
    ("changes", "lacks", "frozen"),
    [
        ({"training_mode": "reasoning_only"}, {"action_loss"}, ("action_head",)),
        ({"training_mode": "action_only"}, {"lm_loss", "token_accuracy"}, ("backbone",)),
        ({"language_loss_weight": 0.0}, {"lm_loss", "token_accuracy"}, ()),
    ],
)
def test_what_is_not_trained_is_not_computed(changes, lacks, frozen):
    _, every = jax.eval_shape(agent().loss, params(), batch(), KEY)
    _, metrics = jax.eval_shape(agent(**changes).loss, params(), batch(), KEY)
    assert every.keys() - metrics.keys() == lacks
    assert agent(**changes).frozen_modules == frozen


def test_a_sample_does_not_depend_on_its_batch():
    """Beside other samples, and under other paddings: losses, hits and sampled actions are the same."""
    made, others = batch(), batch(seed=1)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    found = evaluate(agent(), params(), made, KEY)
    for row in range(4):
        mixed = jax.tree.map(
            lambda x, y, row=row: np.concatenate([y[:row], x[row : row + 1], y[row + 1 :]]), made, others
        )
        among_others = evaluate(agent(), params(), mixed, KEY)
        jax.tree.map(lambda x, y, row=row: close(x[row], y[row]), among_others, found)
    wider = batch(spec=TextSpec(14, 4, 9))
    jax.tree.map(close, evaluate(agent(), params(), wider, KEY), found)


@pytest.mark.parametrize("hide_words", [0.0, 0.5])
def test_the_validation_error_is_that_of_acting_without_words(hide_words):
    own, made = agent(hide_words=hide_words), batch()
    slots, lengths = (2, 0, 1, 2), (6, 4, 5, 3)  # of the last nothing but the ends of thinking and of the turn
    made["text"] = text(np.random.default_rng(3), (10, 7, 8, 6), slots, lengths)
    made["text"]["labels"][3] = False
    suffix = np.full((4, 3), PAD, np.int32)
    for i, (used, length) in enumerate(zip(slots, lengths)):
        row = made["text"]["suffix"][i, :length]
        said = [*row[: used > 0], *row[-TURN_TOKENS:]]
        suffix[i, : len(said)] = said
    stop = np.array([3, 2, 3, 3], np.int32)
    told = {key: value for key, value in made["text"].items() if key != "labels"}
    told |= {"suffix": suffix, "suffix_stop": stop}
    acted = np.asarray(sample(own, params(), made["observations"], {"text": told}, None).actions_bad)
    inside = made["action_pad_mask"]
    error = (((acted - made["actions"]) ** 2).sum(-1) * inside).sum(1) / inside.sum(1)
    found = evaluate(own, params(), made, KEY)
    np.testing.assert_allclose(found["mse"], error, rtol=1e-5)
    assert (abs(found["mse_with_words"] - error)[:3] > 1e-4).all()
    context, visible = quick_jit(own.look)(params(), made)
    act_on = quick_jit(own.act_on)
    np.testing.assert_allclose(act_on(params(), context, visible, made["observations"]), acted, rtol=1e-5, atol=1e-6)
    without_slots = np.asarray(visible).copy()
    without_slots[:, 10:12] = False
    blind = act_on(params(), context, without_slots, made["observations"])
    np.testing.assert_array_equal((abs(blind - acted) > 1e-5).any((1, 2)), [True, False, True, True])
    other = made | {"text": made["text"] | {"suffix": made["text"]["suffix"].copy()}}
    other["text"]["suffix"][[0, 1, 2], [1, 0, 1]] = 7  # the first word
    np.testing.assert_array_equal(found["lm_loss"].known_b, made["text"]["labels"].any(1))
    again = evaluate(own, params(), other, KEY)
    np.testing.assert_array_equal(found["mse"], again["mse"])
    assert (found["mse_with_words"] != again["mse_with_words"])[:3].all()


def test_actions_are_drawn_by_the_key():
    made = batch()
    likeliest = sample(agent(), params(), made["observations"], {"text": made["text"]}, None)
    assert likeliest.tokens_bm is None
    drawn = [sample(agent(), params(), made["observations"], {"text": made["text"]}, KEY) for _ in range(2)]
    np.testing.assert_array_equal(drawn[0].actions_bad, drawn[1].actions_bad)
    assert (np.asarray(drawn[0].actions_bad) != likeliest.actions_bad).all()


def test_explicit_inference_says_words_and_acts_on_them():
    chatty = agent(inference="explicit", max_new_tokens=5)
    made = batch()
    made["text"] = text(np.random.default_rng(3), (10, 7, 8, 6), (0,) * 4, (0,) * 4, TextSpec(10, 0, 0))
    sampled = sample(chatty, params(), made["observations"], {"text": made["text"]}, None)
    words = np.asarray(sampled.tokens_bm)
    assert words.shape == (4, 5)
    # The same words, given, lead to the same actions; and each is the likeliest after those before it.
    stop = np.where((words == STOP).any(1), (words == STOP).argmax(1) + 1, 5).astype(np.int32)
    given = made["text"] | {"suffix": words, "suffix_stop": stop, "labels": np.arange(5) < stop[:, None]}
    forced = evaluate(chatty, params(), made | {"text": given}, KEY)
    error = ((np.asarray(sampled.actions_bad) - made["actions"]) ** 2).sum(-1)
    inside = made["action_pad_mask"]
    np.testing.assert_allclose((error * inside).sum(1) / inside.sum(1), forced["mse_with_words"], rtol=1e-4)
    np.testing.assert_array_equal(forced["token_accuracy"].value_b, 1)


def test_cameras_that_a_robot_has_not_count_as_absent():
    """Not as black pictures: what stands in their tokens, whatever their size, reaches neither actions nor words."""
    sizes = {"cameras": ("images0", "wrist"), "camera_sizes": (("wrist", (32, 64)),), "text": TextSpec(14, 2, 6)}
    spec = dataclasses.replace(SPEC, several_camera_sets=True, **sizes)
    chatty = make_agent("ecot", agent_kwargs() | {"inference": "explicit", "max_new_tokens": 3}, spec)
    rng, own = np.random.default_rng(0), quick_jit(chatty.init)(jax.random.key(1))
    made = chatty.spec.fake_batch(3, ("observations", "actions", "action_pad_mask"), rng)
    made["observations"]["camera_mask"][:, :, 1] = [[True], [False], [True]]
    words = text(rng, (8, 6, 9), (2, 0, 1), (6, 4, 5), chatty.spec.text)
    # A picture of one token comes first, then one of two; the text behind is of the second.
    first, wide = IMAGE, (*IMAGE[:2], *IMAGE[1:])
    for row, start in enumerate(words["prefix_start"]):
        words["prefix"][row, start - 4 : start + 3] = (*first, *wide)
    made["text"] = words | {"prefix_start": words["prefix_start"] - 4}
    other = {**made["observations"], "wrist": 255 - made["observations"]["wrist"]}

    def all_of(params, made):
        acted = chatty.sample_actions(params, made["observations"], made, None)
        return {**chatty.evaluate(params, made, KEY), "words": acted.tokens_bm, "actions": acted.actions_bad}

    run = quick_jit(all_of)
    found, changed = (
        jax.tree.map(np.asarray, run(own, {**made, "observations": x})) for x in (made["observations"], other)
    )
    for name in ("mse", "mse_with_words", "actions"):
        same = (found[name] == changed[name]).reshape(3, -1).all(1).tolist()
        assert same == [False, True, False], name
    assert (found["lm_loss"].value_b == changed["lm_loss"].value_b).tolist() == [False, True, False]
    assert (found["words"][1] == changed["words"][1]).all()
    shown = {**made["observations"], "wrist": made["observations"]["wrist"] * 0}
    shown["camera_mask"] = np.ones_like(shown["camera_mask"])
    assert (np.asarray(run(own, {**made, "observations": shown})["actions"])[1] != found["actions"][1]).any()


def test_the_context_may_be_normalized():
    normed, made = agent(context_hidden="post_norm"), batch()

    def contexts(params, made):
        model = bind(normed.backbone, params["backbone"])
        thought = think(model, made["text"], **normed._seen(made["observations"]))
        states, _ = normed._context(model, thought, made["text"], jnp.zeros(4, bool))
        return states, thought.valid_bt

    states, valid = quick_jit(contexts)(params(), made)
    # A fresh norm has weights of one, so that the mean square of every state is one.
    np.testing.assert_allclose(np.mean(np.asarray(states)[np.asarray(valid)] ** 2, -1), 1, rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training_mode": "half"}, "training_mode must be one of full, reasoning_only, action_only"),
        ({"inference": "loud"}, "inference must be one of implicit, explicit, none"),
        ({"hide_words": 1.5}, "hide_words must lie in"),
        ({"language_loss_weight": -1.0}, "language_loss_weight must be 0 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"latent_hidden": "raw"}, "no latent_hidden named 'raw'"),
        ({"langauge_loss_weight": 1.0}, "did you mean language_loss_weight"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        agent(**changes)


def test_images_and_histories_that_do_not_fit():
    kwargs = agent_kwargs()
    with pytest.raises(ConfigError, match="multiples of 32 pixels, not 48 x 32"):
        make_agent("ecot", kwargs, dataclasses.replace(SPEC, image_size=(48, 32)))
    with pytest.raises(ConfigError, match=r"config\.data\.obs_horizon to 1, not 2"):
        make_agent("ecot", kwargs, dataclasses.replace(SPEC, obs_horizon=2))
