import json

import numpy as np
import pytest
from PIL import Image

from jaxvla.training.plots import plot_actions, plot_comparison, plot_losses


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def metrics(path, baseline=True):
    rng = np.random.default_rng(0)
    rows = [{"step": 1, "timer/compile_s": 3.0}]
    for step in range(50, 2001, 50):
        value = 6 * np.exp(-step / 500) + 1.5 + 0.1 * rng.normal()
        rows.append({"step": step, "training/loss": value / 2 + 6.4, "training/mse": value})
        if step % 500 == 0 and baseline:
            rows.append({"step": step, "validation/mse": value + 0.4, "validation/mse_mean_action": 6.9})
    rows.append({"step": 2000, "validation/mse": None})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_loss_curves_show_validation(tmp_path):
    plot_losses(metrics(tmp_path / "with.jsonl"), tmp_path / "with.png")
    plot_losses(metrics(tmp_path / "without.jsonl", baseline=False), tmp_path / "without.png")
    red = [(pixels(tmp_path / name) == (0xCC, 0x33, 0x11)).all(-1).sum() for name in ("with.png", "without.png")]
    assert red[0] > 100
    assert red[1] == 0


def test_success_has_a_panel_of_its_own_with_its_band(tmp_path):
    rows = [{"step": step, "training/loss": 1.0, "training/mse": 1.0} for step in range(100, 601, 100)]
    (tmp_path / "without.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows[1::2]:
        rate = row["step"] / 800
        row |= {"rollout/success": rate, "rollout/success_low": rate - 0.2, "rollout/success_high": rate + 0.2}
    (tmp_path / "with.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("with", "without"):
        plot_losses(tmp_path / f"{name}.jsonl", tmp_path / f"{name}.png")
    played, unplayed = pixels(tmp_path / "with.png"), pixels(tmp_path / "without.png")
    assert played.shape[1] == pytest.approx(1.5 * unplayed.shape[1], abs=2)
    panel = played[:, 2 * played.shape[1] // 3 :]
    curve = (panel == (0xAA, 0x66, 0x00)).all(-1)
    band = (panel == (0xEE, 0xE0, 0xCC)).all(-1)
    assert curve.sum() > 100
    assert band.sum() > 20 * curve.sum()
    assert not (unplayed == (0xAA, 0x66, 0x00)).all(-1).any()


def test_stages_are_marked_where_they_begin(tmp_path):
    """A dotted line in either panel at the only switch, and none in a run of one stage."""
    found = []
    for name, switch in (("one", 10**9), ("two", 1000)):
        rows = [
            {
                "step": step,
                "training/loss": 1.0,
                "training/lm_loss": 2.0,
                "training/stage": 0.0 if step <= switch else 3.0,
            }
            for step in range(50, 2001, 50)
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        plot_losses(tmp_path / name, tmp_path / f"{name}.png")
        found.append(pixels(tmp_path / f"{name}.png"))
    changed = (found[0] != found[1]).any(-1)
    columns = np.flatnonzero(changed.sum(0) > 50)
    # One line in each panel, some pixels wide, in the middle of the curve that begins at step 50 and ends at 2000.
    assert 2 <= len(columns) <= 12
    purple = (found[1] == (0xAA, 0x33, 0x77)).all(-1)
    curve = np.flatnonzero(purple.any(0))
    assert curve.min() < columns.min() < curve.max()


def test_an_empty_run_has_a_picture_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    plot_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert pixels(tmp_path / "loss.png").std() > 0


@pytest.mark.parametrize("dims", [1, 3])
def test_actions_have_a_row_per_dimension(tmp_path, dims):
    rng = np.random.default_rng(1)
    true = np.cumsum(rng.normal(0, 0.01, (40, dims)), axis=0)
    true[:, 0] = 0.5  # a dimension that does not move
    names = ["x (m)", "roll (rad)", "gripper (1 open)"][:dims]
    plot_actions(true + rng.normal(0, 0.005, true.shape), true, names, tmp_path / "actions.png")
    height = pixels(tmp_path / "actions.png").shape[0]
    assert height == pytest.approx((1.7 * dims + 0.6) * 110, abs=2)


def test_a_comparison_has_a_bar_with_its_interval_and_a_dot_for_every_seed(tmp_path):
    def draw(name, low, high, seeds):
        plot_comparison(
            {"none": (0.0, (0.0, 0.02)), "latent": (0.6, (low, high))}, {"none": [0.0], "latent": seeds}, name
        )
        return pixels(name)

    wide = draw(tmp_path / "wide.png", 0.3, 0.9, [0.5, 0.6, 0.7])
    narrow = draw(tmp_path / "narrow.png", 0.55, 0.65, [0.6])
    red, black = (
        (wide == colour).all(-1).sum() / (narrow == colour).all(-1).sum() for colour in ((0xCC, 0x33, 0x11), 0)
    )
    assert red > 1.5
    assert black > 1
