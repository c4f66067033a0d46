"""The log of a run, and the trace of a few of its steps."""

import json

import pytest

from janus_jax.errors import UserError
from janus_jax.train import metrics


def test_steps_to_profile_are_checked(tmp_path):
    for steps in ("3", "5:3", "0:2", "a:b"):
        with pytest.raises(UserError, match=f"config.profile_steps.*'{steps}'.*10:13"):
            metrics.Profile(steps, tmp_path)


def test_a_trace_starts_where_a_run_resumes_among_its_steps(tmp_path, monkeypatch, caplog):
    calls = []
    monkeypatch.setattr(metrics.jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(metrics.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profile = metrics.Profile("2:5", tmp_path)
    for step in (3, 4, 5, 6):
        profile.before(step)
        profile.after(step, {})
        assert calls == (["start"] if step == 3 else ["start", "stop"])
    profile.close()
    assert calls == ["start", "stop"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_trace_of_steps_that_a_stage_does_not_run_is_a_warning(tmp_path, caplog):
    profile = metrics.Profile("7:9", tmp_path)
    profile.before(6)
    profile.close()
    assert "7 to 8" in caplog.text


def test_every_step_has_one_line_after_a_restart(tmp_path):
    log = metrics.Log(tmp_path, resumed_step=0)
    for step in range(1, 6):
        log.write(step, {"stage": "stage_1", "loss": 1.0 * step, "ratio": [0.5, 0.0, 0.5]})
    log.close()
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # a line that a killed process has not finished
    log = metrics.Log(tmp_path, resumed_step=3)
    log.write(4, {"stage": "stage_1", "loss": 40.0})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
