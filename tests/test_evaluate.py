"""`evaluate` on a tiny model: every benchmark to its files and scores, going on where it was killed, and mistakes."""

import json
import re
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from janus_jax import checkpoint, sharding
from janus_jax.data import tokenizer
from janus_jax.errors import UserError
from janus_jax.evaluate import report, runner
from janus_jax.evaluate.drawing.image_sets import PICTURE_SETS
from janus_jax.evaluate.understanding import BENCHMARKS
from janus_jax.recipe import assembly
from janus_jax.shapes import score
from janus_jax.train.held_out import HeldOut
from janus_jax.train.samples import SampleLogger
from tests import test_picture_sets, test_understanding
from tests.conftest import ROOT, environment
from tests.test_train import finish, run

DRIVER = """
import json, sys
from absl import flags
from janus_jax import evaluate
for arguments in json.loads(sys.argv[1]):
    flags.FLAGS(["evaluate", *arguments])
    evaluate.main()
"""


class Painter:
    """Stands in for an Sampler: what it makes depends on what it is asked alone, and it may be stopped."""

    def __init__(self, patience=10**9):
        self.patience, self.calls = patience, 0

    def _work(self):
        if self.calls == self.patience:
            raise KeyboardInterrupt
        self.calls += 1

    def draw(self, prompts, *, seeds, guidance):
        self._work()
        one = lambda p, s: np.random.default_rng((len(p), int(s))).integers(0, 256, (8, 8, 3), np.uint8)
        return np.stack([np.stack([one(p, s) for s in row]) for p, row in zip(prompts, seeds, strict=True)])

    def answer(self, conversations, *, max_tokens, system):
        self._work()
        return [turns[0]["content"][-20:].upper() for turns, _ in conversations]


@pytest.mark.parametrize("name", ["geneval", "mjhq"])
def test_pictures_are_the_same_whatever_the_batch_and_the_cuts(name, tmp_path):
    benchmark = test_picture_sets.made(name, tmp_path / "data")
    prompts, samples = benchmark.read(tmp_path / "data"), benchmark.samples
    draw = lambda painter, out, batch: runner.draw_all(
        painter, benchmark, prompts, out=tmp_path / out, guidance=None, batch=batch, seed=0
    )
    draw(whole := Painter(), "whole", 100)
    assert whole.calls == 1
    with pytest.raises(KeyboardInterrupt):
        draw(Painter(patience=2), "cut", samples)
    draw(rest := Painter(), "cut", samples)
    assert rest.calls == len(prompts) - 2  # none is drawn twice
    draw(idle := Painter(), "cut", samples)
    assert idle.calls == 0
    files = lambda out: {p.relative_to(tmp_path / out): p.read_bytes() for p in (tmp_path / out).rglob("*") if p.is_file()}
    assert files("whole") == files("cut")
    pixels = [Image.open(tmp_path / "whole" / file).tobytes() for p in prompts for file in p.files[:samples]]
    assert len(set(pixels)) == len(pixels)  # every prompt and sample has a seed of its own


def test_answers_go_on_behind_a_line_that_was_cut_off(tmp_path):
    test_understanding.pope(tmp_path / "data")
    benchmark = BENCHMARKS["pope"]
    questions = benchmark.read(tmp_path / "data")
    ask = lambda painter: runner.answer_all(painter, benchmark, questions, out=tmp_path, batch=5)
    with pytest.raises(KeyboardInterrupt):
        ask(Painter(patience=1))
    path = tmp_path / runner.ANSWERS
    assert path.read_text().count("\n") == 5
    with path.open("ab") as file:
        file.write('{"id": "random/9", "answer": "caf\u00e9'.encode()[:-1])  # in the middle of a letter
    answers = ask(rest := Painter())
    assert rest.calls == 2 and answers == [q.content[-20:].upper() for q in questions]
    known = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(entry["id"] for entry in known) == sorted(q.id for q in questions)


def test_answers_with_any_letter_are_read_again(tmp_path, monkeypatch):
    test_understanding.pope(tmp_path / "data")
    questions = BENCHMARKS["pope"].read(tmp_path / "data")
    monkeypatch.setattr(Painter, "answer", lambda self, asked, **_: ["a\u2028b\x85c\r\nd \u00e9"] * len(asked))
    for _ in range(2):
        answers = runner.answer_all(Painter(), BENCHMARKS["pope"], questions, out=tmp_path, batch=5)
    assert set(answers) == {"a\u2028b\x85c\r\nd \u00e9"}
    (tmp_path / runner.ANSWERS).write_text('{"id": "random/9", "ans\n')
    with pytest.raises(UserError, match="answers.jsonl' holds a line that is no answer"):
        runner.answer_all(Painter(), BENCHMARKS["pope"], questions, out=tmp_path, batch=5)


@pytest.mark.parametrize("name", ["pope", "dpg"])
def test_other_tasks_have_another_digest(name, tmp_path):
    test_understanding.pope(tmp_path / "pope")
    test_picture_sets.made("dpg", tmp_path / "dpg")
    tasks = (PICTURE_SETS | BENCHMARKS)[name].read(tmp_path / name)
    field = "text" if name == "dpg" else "content"
    other = [tasks[0]._replace(**{field: "Do you see a dog?"}), *tasks[1:]]
    assert runner.digest_of(tasks) == runner.digest_of(list(tasks)) != runner.digest_of(other)


def test_settings_that_were_cut_off_or_differ_are_told(tmp_path):
    report.pin(tmp_path, {"tasks": "a", "roles": ("x", "y")})
    report.pin(tmp_path, {"tasks": "a", "roles": ("x", "y")})
    with pytest.raises(UserError, match="results made with tasks = 'a', and this run has 'b'"):
        report.pin(tmp_path, {"tasks": "b", "roles": ("x", "y")})
    (tmp_path / "settings.json").write_text('{"tasks": ')
    with pytest.raises(UserError, match="settings.json' is not JSON"):
        report.pin(tmp_path, {"tasks": "a"})


def test_the_report_has_papers_ours_and_settings_side_by_side(tmp_path, capsys):
    report.write(tmp_path, "pope", {"accuracy": 51.25, "f1": 60.0}, {"seed": 3}, 9)
    page, found = (tmp_path / "evaluation.md").read_text(), json.loads((tmp_path / "evaluation.json").read_text())
    assert "| pope | Janus | Janus-Pro-1B | Janus-Pro-7B | JanusFlow 256 | JanusFlow 384 | ours |" in page
    assert page.count("accuracy/f1 |") == 1 and "| accuracy/f1 | 87 | 86.2 | 87.4 | 85.3 | 88 |  |" in page
    assert "| accuracy |  |  |  |  |  | 51.25 |" in page
    assert "- Janus (Janus, Table 2): accuracy or F1: not stated" in page and "- seed: 3" in page
    assert found["published"][0]["scores"] == {"accuracy/f1": 87.0} and found["scores"]["f1"] == 60
    shown = capsys.readouterr().out
    assert "51.25" in shown and "87.4" in shown and "seed 3" in shown
    report.write(tmp_path, "mme", {"perception": 1444.4444}, {}, 2374)
    assert all(digits in (tmp_path / "evaluation.md").read_text() for digits in ("| 1444.444 |", "| 1567.1 |"))
    report.write(tmp_path, "mjhq", {"drawn": 30000}, {}, 1)
    page = (tmp_path / "evaluation.md").read_text()
    assert page.count("| FID |") == 1 and "| 30000 |" in page


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    test_understanding.pope(tmp_path / "data")
    (tmp_path / "data/val2014/1.jpg").write_bytes(b"no picture")
    questions = BENCHMARKS["pope"].read(tmp_path / "data")
    with pytest.raises(UserError, match=r"val2014/1.jpg' cannot be read"):
        runner.answer_all(Painter(), BENCHMARKS["pope"], questions, out=tmp_path, batch=5)


def test_every_benchmark_runs_on_a_model(trained, tmp_path):
    jobs = []
    (tmp_path / "data").mkdir()
    for name in (*PICTURE_SETS, *BENCHMARKS):
        data = tmp_path / "data" / name
        if name in PICTURE_SETS:
            test_picture_sets.made(name, data)
        else:
            test_understanding.MAKERS[name](data)
        known = [f"--checkpoint={trained}", f"--benchmark={name}", f"--data={data}", f"--out={tmp_path / name}"]
        jobs.append([*known, "--batch=16", "--guidance=2"])
    command, env = [sys.executable, "-c", DRIVER, json.dumps(jobs)], environment(devices=1)
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, benchmark in (PICTURE_SETS | BENCHMARKS).items():
        found, out = json.loads((tmp_path / name / "evaluation.json").read_text()), tmp_path / name
        tasks = benchmark.read(tmp_path / "data" / name)
        assert found["count"] == len(tasks) and found["settings"]["benchmark"] == name
        assert f"# {name}" in (out / "evaluation.md").read_text()
        assert found["settings"]["tasks"] == runner.digest_of(tasks)
        assert found["settings"]["fingerprint"] == checkpoint.open_saved(trained).fingerprint
        if name in PICTURE_SETS:
            assert all(benchmark.done(out / "pictures", p) for p in tasks) and (out / "sheet.png").exists()
            assert found["settings"]["scale"] == 2 and found["settings"]["pictures_a_prompt"] == benchmark.samples
            continue
        answers = {e["id"]: e["answer"] for e in map(json.loads, (out / runner.ANSWERS).read_text().splitlines())}
        given = [answers[q.id] for q in tasks]
        unit = 1 if name == "mme" else 100
        assert found["scores"] == {k: unit * v for k, v in benchmark.score(tasks, given).items()}
        written = benchmark.write(tmp_path / "again" / name, tasks, given)
        for file in written:
            mine = out / file.relative_to(tmp_path / "again" / name)
            assert mine.exists() and (file.suffix == ".xlsx" or mine.read_bytes() == file.read_bytes())


def test_a_killed_run_goes_on_and_other_settings_are_refused(trained, tmp_path):
    test_picture_sets.made("geneval", tmp_path / "data")
    lines = [json.dumps({"tag": "colors", "include": [], "prompt": f"a photo of cat {i}"}) for i in range(12)]
    (tmp_path / "data/evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    flags = [f"--checkpoint={trained}", "--benchmark=geneval", f"--data={tmp_path}/data", f"--out={tmp_path}/out"]
    process = run("evaluate", *flags, "--batch=4")
    pictures = tmp_path / "out/pictures"
    while process.poll() is None and len(list(pictures.glob("*/grid.png"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    finish(process)
    before = {p: p.stat().st_mtime_ns for p in pictures.glob("*/grid.png")}
    assert 2 <= len(before) < 12, "the run ended before it could be killed"
    code, err = finish(run("evaluate", *flags, "--batch=8"))
    assert code == 0, err
    assert len(list(pictures.glob("*/samples/*.png"))) == 48
    assert all(p.stat().st_mtime_ns == then for p, then in before.items())
    code, err = finish(run("evaluate", *flags, "--guidance=3"))
    assert code == 2 and "results made with scale" in err and "another folder" in err


def test_the_same_step_of_another_run_is_told_apart(tmp_path):
    found = []
    for name, scale in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        writer = checkpoint.Writer(tmp_path / name, keep=1)
        writer.save(1, params={"llm/norm/scale": jnp.full(3, scale)}, about={"stage": "stage_1"})
        writer.wait()
        found.append(checkpoint.open_saved(tmp_path / name).fingerprint)
    assert found[0] == found[2] != found[1] and re.fullmatch("[0-9a-f]{16}", found[0])


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--benchmark=pope", "--data={data}", "--out={out}"], "pope: .*coco_pope"),
        (["--benchmark=pope", "--data={data}"], "with --out"),
        (["--benchmark=geneval", "--data={data}", "--out={out}", "--features=x.onnx"], "--features and --reference"),
        (["--benchmark=fid", "--data={data}", "--out={out}"], "known: .*'shapes', 'geneval'"),
        (["--data={data}/prompts.json", "--out={out}", "--top_p=0"], "--temperature=0 draws the likeliest"),
        (["--data={data}", "--out={out}"], "No prompts.json of this set"),
        (["--benchmark=pope", "--data={pope}", "--out={file}"], "cannot be made a folder"),
        (["--benchmark=pope", "--data={pope}", "--out={out}"], "val2014/1.jpg' cannot be read"),
    ],
)
def test_mistakes_are_told_in_a_sentence(trained, tmp_path, flags, said):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prompts.json").write_text("[1, 2]")
    test_understanding.pope(tmp_path / "pope")
    (tmp_path / "pope/val2014/1.jpg").write_bytes(b"no picture")
    named = dict(data=tmp_path / "data", out=tmp_path / "out", pope=tmp_path / "pope", file=tmp_path / "data/prompts.json")
    flags = [flag.format(**named) for flag in flags]
    code, err = finish(run("evaluate", f"--checkpoint={trained}", *flags))
    assert code == 2 and "Traceback" not in err
    assert re.search(said, err), err


def test_losses_on_held_out_records_come_from_the_parameters_as_they_are(config):
    config = config.to_dict() | {"held_out": {"sources": {"understanding": {"captions": 1}}, "batches": 2}}
    network = assembly.build_network(config, "stage_2")
    found = []
    for count in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:count])
        log = types.SimpleNamespace(write=lambda step, values: found.append((step, values)))
        with jax.set_mesh(mesh):
            params = jax.device_put(
                network.fresh(jax.random.key(0)), sharding.param_shardings(mesh, network.abstract, network.axes)
            )
            batches, mixture = assembly.held_out_batches(config, "stage_2", network, mesh=mesh, host=(0, 1))
            held_out = HeldOut(network, batches, mixture=mixture, mesh=mesh, log=log)
            held_out(7, params)
            held_out(7, jax.tree.map(lambda x: 2 * x, params))
    (step, one), (_, other), (_, eight), _ = found
    assert step == 7 and 3 < one["held_out/loss"] < 9 and one["held_out/loss"] != other["held_out/loss"]
    assert one["held_out/loss"] == pytest.approx(one["held_out/loss_und"])  # there is nothing else
    assert one == pytest.approx(eight, rel=1e-4)


def test_without_held_out_records_nothing_is_measured(config):
    network, mesh = assembly.build_network(config.to_dict(), "stage_2"), sharding.make_mesh()
    batches, mixture = assembly.held_out_batches(config.to_dict(), "stage_2", network, mesh=mesh, host=(0, 1))
    assert not batches
    HeldOut(network, batches, mixture=mixture, mesh=mesh, log=None)(7, {})


def test_shapes_are_scored_while_a_run_trains(config, data, monkeypatch):
    config.samples.shapes = str(data)
    found, network = [], assembly.build_network(config.to_dict(), "stage_3")
    log = types.SimpleNamespace(write=lambda step, values: found.append((step, values)))
    sampler = SampleLogger(network, tokenizer.load(data / "tokenizer.json"), config.to_dict(), "stage_3", folder=None, log=log)

    def draw_all(sampler, prompts, *, seeds, guidance):
        assert guidance.scale == config.samples.guidance and seeds == [0]
        rng = np.random.default_rng(0)
        return {c: np.stack([[score._real_picture(rng, c, p)] for p in ps]) for c, ps in prompts.items()}

    monkeypatch.setattr(score, "draw_all", draw_all)
    sampler.score(7, network.fresh(jax.random.key(0)))
    assert found == [(7, {f"shapes/{c}": 1.0 for c in (*score.load_prompts(data), "overall")})]
