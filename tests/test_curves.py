"""Learning curves of a run: from metrics.jsonl to an image."""

import json

import numpy as np
from PIL import Image

from janus_jax.train.curves import read_curves, write_curves


def test_curves_are_by_minutes_of_training(tmp_path):
    rows = [
        {
            "step": i,
            "stage": f"stage_{1 + i // 30}",
            "loss_und": 2.0,
            "loss_gen": 0.0,
            "seconds": 6.0,
        }
        for i in range(60)
    ]
    rows.insert(30, {"step": 29, "shapes/overall": 0.5})
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    losses, scores, stages = read_curves(tmp_path)
    assert [name for name, _ in stages] == ["stage_1", "stage_2"]
    np.testing.assert_allclose([stages[1][1], *np.ravel(scores["shapes/overall"])], [3.0, 3.0, 0.5])
    write_curves(tmp_path)
    assert Image.open(tmp_path / "curves.png").size == (900, 600)
