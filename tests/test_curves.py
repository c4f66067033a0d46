"""Learning curves of a run: from metrics.jsonl to an image."""

import json

import numpy as np
from PIL import Image

from janus_jax.train.curves import read_curves, write_curves


def test_curves_are_by_minutes_of_training(tmp_path):
    """Also where only every second step is logged; a score of 0 is a point, an absent task none."""
    rows = [
        dict(step=i, stage=f"stage_{1 + i // 31}", loss_und=2.0, loss_gen=0.0, seconds=6.0)
        for i in range(2, 61, 2)
    ]
    rows.insert(15, {"step": 30, "shapes/overall": 0.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses, scores, stages = read_curves(tmp_path)
    assert losses.keys() == {("stage_1", "loss_und"), ("stage_2", "loss_und")}
    np.testing.assert_allclose(losses["stage_2", "loss_und"][0][[0, -1]], [3.2, 6.0])
    np.testing.assert_allclose(np.ravel(scores["shapes/overall"]), [3.0, 0.0])
    np.testing.assert_allclose(list(stages.values()), [0.0, 3.0])
    write_curves(tmp_path)
    assert Image.open(tmp_path / "curves.png").size == (900, 600)
