import io
import pickle

import numpy as np
import pytest
from data.raw_files import (
    DATE,
    EARLY,
    SIZE,
    Bomb,
    expected_frame,
    files_of,
    jpeg,
    load,
    make_session,
    make_trajectory,
    to_numpy,
)
from PIL import Image

from jaxvla.data.transforms import images
from jaxvla.errors import DataError


@pytest.mark.parametrize("dicts", [True, False])
def test_content_of_a_trajectory(tmp_path, dicts):
    lang = b" put it in \n\nconfidence: 1\nlift\xff\n"
    folder = tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0" / "traj0"
    states, actions = make_trajectory(folder, seed=5, cameras=("images0", "images1"), lang=lang, dicts=dicts)
    report = to_numpy(tmp_path / "raw", tmp_path / "out")
    assert report.converted == {"train": 1, "val": 0}
    (trajectory,) = load(tmp_path / "out" / "task" / "train" / "out.npy")
    assert list(trajectory) == ["observations", "next_observations", "actions", "terminals", "language", "path"]
    assert trajectory["path"] == f"task/{DATE}/raw/traj_group0/traj0"
    assert trajectory["language"] == ["put it in", "lift�"]
    assert trajectory["terminals"] == [0, 0, 0, 0]
    np.testing.assert_array_equal(trajectory["actions"], actions)
    for part, shift in (("observations", 0), ("next_observations", 1)):
        assert len(trajectory[part]) == 4
        for t, step in enumerate(trajectory[part]):
            assert set(step) == {"images0", "images1", "state", "time_stamp"}
            np.testing.assert_array_equal(step["state"], states[t + shift])
            assert step["time_stamp"] == 100.0 + t + shift
            for camera in (0, 1):
                frame = step[f"images{camera}"]
                assert frame.dtype == np.uint8
                np.testing.assert_array_equal(frame, expected_frame(5, camera, t + shift))


def test_old_rigs_are_shifted_by_one_step(tmp_path):
    folder = tmp_path / "raw" / "task" / EARLY / "raw" / "traj_group0" / "traj0"
    states, actions = make_trajectory(folder, seed=2)
    to_numpy(tmp_path / "raw", tmp_path / "out")
    (trajectory,) = load(tmp_path / "out" / "task" / "train" / "out.npy")
    np.testing.assert_array_equal(trajectory["actions"], actions[:3])
    np.testing.assert_array_equal([step["state"] for step in trajectory["observations"]], states[1:4])
    np.testing.assert_array_equal([step["state"] for step in trajectory["next_observations"]], states[2:5])
    np.testing.assert_array_equal(trajectory["observations"][0]["images0"], expected_frame(2, 0, 1))
    np.testing.assert_array_equal(trajectory["next_observations"][-1]["images0"], expected_frame(2, 0, 4))
    assert [step["time_stamp"] for step in trajectory["observations"]] == [101.0, 102.0, 103.0]
    assert trajectory["language"] == [""]


def test_only_camera_folders_count_in_numeric_order(tmp_path):
    folder = tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0" / "traj0"
    make_trajectory(folder, cameras=("images2", "images10"))
    for name in ("digit_images0", "depth_images0"):
        (folder / name).mkdir()
        (folder / name / "im_0.jpg").write_bytes(b"no image")
    (folder / "images2" / ".DS_Store").write_bytes(b"")
    to_numpy(tmp_path / "raw", tmp_path / "out")
    (trajectory,) = load(tmp_path / "out" / "task" / "train" / "out.npy")
    assert list(trajectory["observations"][0]) == ["images2", "images10", "state", "time_stamp"]


def test_frames_are_resized_as_everywhere_else(tmp_path):
    make_session(tmp_path / "raw" / "task", count=1)
    to_numpy(tmp_path / "raw", tmp_path / "out")
    (trajectory,) = load(tmp_path / "out" / "task" / "train" / "out.npy")
    frames = np.stack([images.decode(jpeg(t), "frame") for t in range(4)])
    expected = images.as_stored(frames, (SIZE, SIZE))
    np.testing.assert_array_equal([step["images0"] for step in trajectory["observations"]], expected)


def test_enlarged_frames_are_counted(tmp_path):
    make_session(tmp_path / "raw" / "task", count=3, cameras=("images0", "images1"))
    report = to_numpy(tmp_path / "raw", tmp_path / "out", im_size=32)
    assert report.notes == [
        "3 trajectories have frames of less than 32 pixels a side, such as 24 x 40: enlarged, which adds no detail; "
        "convert with --im_size 24"
    ]
    assert not to_numpy(tmp_path / "raw", tmp_path / "small", im_size=24).notes


def edit_pickle(name, change):
    def apply(folder):
        value = pickle.loads((folder / name).read_bytes())
        (folder / name).write_bytes(pickle.dumps(change(value)))

    return apply


def cut(name, keep):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def edit_observations(**values):
    return edit_pickle("obs_dict.pkl", lambda observations: observations | values)


def edit_policy(change):
    return edit_pickle("policy_out.pkl", change)


def huge() -> bytes:
    """A JPEG that says it has 65535 x 65535 pixels."""
    data = bytearray(jpeg(0))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = b"\xff" * 4
    return bytes(data)


def depth() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((24, 40), 900, np.uint16)).save(data, "PNG")
    return data.getvalue()


def small() -> bytes:
    data = io.BytesIO()
    Image.open(io.BytesIO(jpeg(0))).resize((20, 12)).save(data, "JPEG")
    return data.getvalue()


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


FAULTS = {
    "no observations": (lambda f: (f / "obs_dict.pkl").unlink(), "obs_dict.pkl is missing", "traj1"),
    "no policy": (lambda f: (f / "policy_out.pkl").unlink(), "policy_out.pkl is missing", "traj1"),
    "half pickle": (cut("obs_dict.pkl", 60), "damaged or refused pickle", "obs_dict.pkl"),
    "code": (edit_policy(lambda p: [*p, Bomb()]), "damaged or refused pickle", "posix.system"),
    "no dict": (edit_pickle("obs_dict.pkl", lambda o: [1]), "obs_dict.pkl has no full_state", "traj1"),
    "no state": (edit_pickle("obs_dict.pkl", lambda o: {"qpos": o["qpos"]}), "has no full_state", "traj1"),
    "policy is a dict": (edit_policy(lambda p: {"a": 1}), "policy_out.pkl is no list", "dict"),
    "policy is a number": (edit_policy(lambda p: np.array(1.0)), "policy_out.pkl is no list", "rray"),
    "actions ragged": (edit_policy(lambda p: [[1.0], [1.0, 2.0]]), "actions are no table of numbers", "traj1"),
    "actions too big": (edit_policy(lambda p: [[10**400] * 7] * 4), "actions are no table of numbers", "traj1"),
    "clock is a table": (edit_observations(time_stamp=np.ones((5, 2))), "another shape than [steps]", "[5, 2]"),
    "no action": (edit_policy(lambda p: [p[0], {"policy_type": ""}]), "policy_out.pkl lacks actions", "step 1"),
    "half the steps": (edit_policy(lambda p: p[:2]), "lengths disagree", "2 actions need 3"),
    "no steps": (edit_policy(lambda p: []), "lengths disagree", "0 actions need 1"),
    "states short": (edit_observations(full_state=np.ones((4, 7))), "lengths disagree", "4 states"),
    "clock short": (edit_observations(time_stamp=[1.0]), "lengths disagree", "1 time stamps"),
    "states narrow": (edit_observations(full_state=np.ones((5, 6))), "states have another shape", "[5, 6]"),
    "states ragged": (edit_observations(full_state=[[1], [1, 2]]), "states are no table of numbers", "traj1"),
    "states are words": (edit_observations(full_state="words"), "states are no table of numbers", "traj1"),
    "states are one number": (edit_observations(full_state=1.0), "states have another shape", "[]"),
    "nan": (edit_observations(full_state=np.full((5, 7), np.nan)), "states are not finite", "step 0"),
    "inf": (edit_policy(lambda p: [*p[:3], {"actions": [np.inf] * 7}]), "actions are not finite", "step 3"),
    "half image": (cut("images0/im_3.jpg", 200), "damaged image", "images0/im_3.jpg"),
    "empty image": (cut("images0/im_0.jpg", 0), "damaged image", "images0/im_0.jpg"),
    "huge header": (lambda f: (f / "images0/im_1.jpg").write_bytes(huge()), "damaged image", "images0/im_1.jpg"),
    "depth": (put("images0/im_2.jpg", depth()), "image that is no camera's picture", "im_2.jpg: the image has 16 bits"),
    "other size": (put("images0/im_3.jpg", small()), "frames change their size", "12 x 20 pixels, the frame before"),
    "no first image": (lambda f: (f / "images0/im_0.jpg").unlink(), "a frame is missing", "images0/im_0.jpg"),
    "no last image": (lambda f: (f / "images0/im_4.jpg").unlink(), "lengths disagree", "4 images0"),
    "image too many": (lambda f: (f / "images0/im_5.jpg").write_bytes(jpeg(1)), "lengths disagree", "6 images0"),
    "no cameras": (lambda f: (f / "images0").rename(f / "pictures0"), "no images folder", "traj1"),
    "second camera empty": (lambda f: (f / "images1").mkdir(), "lengths disagree", "0 images1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_trajectory_is_skipped_with_its_reason(tmp_path, fault):
    break_it, reason, detail = FAULTS[fault]
    make_session(tmp_path / "raw" / "task")
    break_it(tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0" / "traj1")
    report = to_numpy(tmp_path / "raw", tmp_path / "out")
    assert report.converted == {"train": 1, "val": 1}
    ((found, details),) = report.skipped.items()
    assert reason in found
    assert len(details) == 1
    assert detail in details[0]
    assert "traj1" in details[0]
    assert f"  1  {found}\n       {details[0]}" in report.table(1.0)


@pytest.mark.parametrize(("date", "steps"), [(DATE, 1), (DATE, 0), (EARLY, 2), (EARLY, 0)])
def test_too_short_trajectories_are_skipped(tmp_path, date, steps):
    make_session(tmp_path / "raw" / "task", date, count=2, first_seed=3, steps=4)
    make_trajectory(tmp_path / "raw" / "task" / date / "raw" / "traj_group1" / "traj1000", steps=steps)
    report = to_numpy(tmp_path / "raw", tmp_path / "out")
    assert list(report.skipped) == ["fewer than 2 transitions"]
    assert sum(report.converted.values()) == 2


def test_unreadable_clock_is_not_needed(tmp_path):
    make_session(tmp_path / "raw" / "task", count=1)
    folder = tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0" / "traj0"
    edit_pickle("obs_dict.pkl", lambda o: {"full_state": o["full_state"]})(folder)
    to_numpy(tmp_path / "raw", tmp_path / "out")
    (trajectory,) = load(tmp_path / "out" / "task" / "train" / "out.npy")
    assert set(trajectory["observations"][0]) == {"images0", "state"}


def test_all_skipped_is_an_error_and_writes_nothing(tmp_path):
    make_session(tmp_path / "raw" / "task", count=2, steps=1)
    report = to_numpy(tmp_path / "raw", tmp_path / "out")
    with pytest.raises(
        DataError, match=r"all 2 trajectories were skipped, 2 for: fewer than 2 transitions, as .*traj\d"
    ):
        report.check(max_skipped=1.0)
    assert files_of(tmp_path / "out") == {}
