import contextlib
import json
import os
import pickle
import sqlite3
import threading

import numpy as np
import pytest

from jaxvla.errors import DataError
from jaxvla.reasoning.record import COMPONENTS, Episode, Reasoning
from jaxvla.reasoning.store import ReasoningStore, write_store


def record(episode: int, step: int) -> Reasoning:
    """A record that tells where it belongs; odd steps have no plan."""
    plan = None if step % 2 else f"plan of {episode}"
    return Reasoning(plan=plan, move=f"move {step} ü", gripper_positions=((episode, step),) * 5)


EPISODES = {f"/data/{e}.npy#{e}": {t: record(e, t) for t in range(0, 3 * e + 2, e + 1)} for e in range(4)}


def episodes():
    """Odd ones say how long they are and what they show."""
    for e, (key, steps) in enumerate(EPISODES.items()):
        yield Episode(key, steps, 20 + e, f"put {e} ü") if e % 2 else Episode(key, steps)


@pytest.fixture
def path(tmp_path):
    """Episode e has the steps 0, e + 1, 2 (e + 1), ... below 3 e + 2."""
    path = tmp_path / "of a #1?" / "reasoning.store"
    write_store(path, episodes(), {"format": "test"})
    return path


def test_every_step_is_read_back_at_random(path):
    store = ReasoningStore(path)
    assert len(store) == 4
    assert store.metadata == {"format": "test"}
    np.testing.assert_array_equal(store.find([*EPISODES, "/data/9.npy#9", ""]), [0, 1, 2, 3, -1, -1])
    assert [store.key(e) for e in range(4)] == list(EPISODES)
    wanted = [(e, t) for e in (3, 0, 2, 1, -1) for t in (11, 4, 0, 2, 1, -1)]
    found = store.read(*np.array(wanted).T)
    steps = list(EPISODES.values())
    assert found == [steps[e].get(t) if e >= 0 else None for e, t in wanted]
    assert sum(item is not None for item in found) == 8


def test_counts(path):
    store = ReasoningStore(path)
    np.testing.assert_array_equal(store.episode_counts(np.array([0, 1, 2, 3, -1]))[:, 0], [2, 3, 3, 3, 0])
    counts = store.episode_counts(np.array([1, -1]))
    by_name = dict(zip(("steps", *COMPONENTS), counts[0].tolist()))
    assert {name: n for name, n in by_name.items() if n} == {"steps": 3, "PLAN": 3, "MOVE": 3, "GRIPPER POSITION": 3}
    assert not counts[1].any()
    np.testing.assert_array_equal(store.counts, store.episode_counts(np.arange(4)).sum(0))
    assert store.counts[1 + COMPONENTS.index("PLAN")] == 9  # of 11 steps, all but the odd ones, 0's 1 and 2's 3


def test_what_is_known_of_an_episode_itself(path):
    store = ReasoningStore(path)
    assert [store.facts(e) for e in range(4)] == [(None, 1, ""), (21, 4, "put 1 ü"), (None, 6, ""), (23, 8, "put 3 ü")]


def test_what_write_store_returns_are_the_counts(tmp_path):
    counts = write_store(tmp_path / "a.store", [Episode("a", {5: Reasoning(task="x")}), Episode("empty", {}, 9)], {})
    assert dict(zip(("episodes", "steps", *COMPONENTS), counts.tolist())) == {
        "episodes": 1,
        "steps": 1,
        **{name: int(name == "TASK") for name in COMPONENTS},
    }
    assert os.listdir(tmp_path) == ["a.store"]


def test_a_store_survives_pickling_and_serves_many_threads(path):
    store = pickle.loads(pickle.dumps(ReasoningStore(path)))
    episodes = np.repeat([0, 1, 2, 3], 2)
    steps = np.array([0, 1, 0, 2, 3, 6, 4, 8])
    expected = [list(EPISODES.values())[e][t] for e, t in zip(episodes, steps)]
    results = []
    threads = [threading.Thread(target=lambda: results.append(store.read(episodes, steps))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_it_holds_no_file_open_after_its_threads_and_itself_are_gone(path):
    def held():
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return [link for link in links if os.path.exists(link) and os.readlink(link) == str(path)]

    store = ReasoningStore(path)
    thread = threading.Thread(target=store.read, args=(np.array([0]), np.array([0])))
    thread.start()
    thread.join()
    assert len(held()) == 1
    del store
    assert held() == []


def test_a_read_only_file_in_a_read_only_folder_is_enough(path):
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        assert ReasoningStore(path).read(np.array([1]), np.array([2])) == [record(1, 2)]
    finally:
        path.parent.chmod(0o755)


def test_the_same_episodes_give_the_same_bytes(path, tmp_path):
    write_store(tmp_path / "again.store", episodes(), {"format": "test"})
    assert (tmp_path / "again.store").read_bytes() == path.read_bytes()


def test_a_failed_write_leaves_what_was_there(path):
    before = path.read_bytes()

    def broken():
        yield Episode("a", {0: Reasoning(task="x")})
        raise DataError("the annotations are cut off")

    with pytest.raises(DataError, match="cut off"):
        write_store(path, broken(), {})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([Episode("a", {0: Reasoning(task="x")})] * 2, "episode 'a' comes twice"),
        ([Episode("a", {-1: Reasoning(task="x")})], r"steps -1 to -1"),
        ([Episode("a", {1 << 20: Reasoning(task="x")})], r"outside 0 to 2\^20"),
        ([Episode("a", {})], "no annotated step"),
        ([], "no annotated step"),
    ],
)
def test_episodes_that_cannot_be_written(tmp_path, episodes, message):
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / "a.store", episodes, {})
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*cannot be written"):
        write_store(tmp_path / "file" / "a.store", episodes(), {})


def foreign(path):
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE episodes (id INTEGER)")
    connection.close()


def older(path):
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.close()


def cut(keep):
    """Keeps so many bytes; all but so many where it is negative."""

    def apply(path):
        with open(path, "r+b") as file:
            file.truncate(keep if keep > 0 else path.stat().st_size + keep)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no reasoning store"),
        (lambda path: (path.unlink(), path.mkdir()), "no reasoning store"),
        (lambda path: execute(path, "DELETE FROM meta"), "is damaged"),
        (lambda path: execute(path, "UPDATE meta SET value = '{'"), "is damaged"),
        (lambda path: execute(path, "DELETE FROM episodes"), "is damaged"),
        (lambda path: path.write_text(json.dumps({"a": 1}) * 500), "no reasoning store, or a damaged one"),
        (lambda path: path.write_text(""), "is no reasoning store"),
        (foreign, "is no reasoning store"),
        (older, r"of version 1, not 2: make it with data_processing/reasoning_to_store\.py --overwrite"),
        (cut(50), "is no reasoning store"),
        (cut(4096), "damaged"),
        (cut(-4096), "damaged"),
        (cut(-1), "bytes, it is damaged"),
    ],
)
def test_a_file_that_is_no_whole_store_is_named(path, damage, message):
    damage(path)
    with pytest.raises(DataError, match=message) as error:
        ReasoningStore(path)
    assert str(path) in str(error.value)
    assert "data_processing/reasoning_to_store.py" in str(error.value)
    assert "\n" not in str(error.value)


def execute(path, command):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(command)


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_garbled_step_is_named(tmp_path, content):
    path = tmp_path / "r.store"
    write_store(path, [Episode("a", {2: Reasoning(task="x")})], {})
    execute(path, f"UPDATE steps SET reasoning = '{content}'")
    with pytest.raises(DataError, match=r"r\.store is damaged at step 2 of 'a': make it with"):
        ReasoningStore(path).read(np.array([0]), np.array([2]))


def test_a_store_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "r.store"
    write_store(path, [Episode("a", {2: Reasoning(task="x")})], {})

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"r\.store: cannot be read: Permission denied$"):
        ReasoningStore(path)


def test_damage_after_opening_is_named(tmp_path):
    path = tmp_path / "long.store"
    write_store(path, [Episode("a", {t: Reasoning(task="x" * 200) for t in range(2000)})], {})
    store = ReasoningStore(path)
    with open(path, "r+b") as file:
        file.seek(20 * 4096)
        file.write(b"\xff" * 40 * 4096)
    with pytest.raises(DataError, match=r"long\.store is no reasoning store, or a damaged one"):
        store.read(np.zeros(2000, int), np.arange(2000))
