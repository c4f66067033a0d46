"""`evaluate` with a tiny model: files and scores of every benchmark, resuming, wrong flags."""

import json
import re
import signal
import time
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from janus_jax import checkpoint, sharding
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.evaluate import papers, report, runner
from janus_jax.evaluate.base import fingerprint
from janus_jax.evaluate.benchmarks import BENCHMARKS
from janus_jax.inference.sampler import Template
from janus_jax.recipe import load
from janus_jax.shapes import score
from tests.helpers.benchmark_files import PROMPTS, QUESTIONS, WRITERS, put
from tests.helpers.commands import finish, run, start

ON_A_MODEL = ("geneval", "pope", "mmmu")  # several images per prompt, one per question, several


class Guidance(NamedTuple):
    """All settings of image sampling."""

    scale: float
    temperature: float | None
    top_k: int | None
    top_p: float | None
    steps: int | None


class FakeSampler:
    """Results depend on the inputs only; it can be interrupted."""

    def __init__(self, max_calls=10**9):
        self.max_calls = max_calls
        self.calls = 0

    @property
    def mesh(self):
        return sharding.make_mesh()

    @property
    def template(self):
        return Template("plain", ("user", "assistant"), "")

    def guidance(self, **settings):
        return Guidance(**settings)

    def _count_call(self):
        if self.calls == self.max_calls:
            raise KeyboardInterrupt
        self.calls += 1

    def draw(self, prompts, *, seeds, guidance):
        self._count_call()
        one = lambda p, s: np.random.default_rng((len(p), int(s))).integers(
            0, 256, (8, 8, 3), np.uint8
        )
        return np.stack(
            [np.stack([one(p, s) for s in row]) for p, row in zip(prompts, seeds, strict=True)]
        )

    def answer(self, conversations, *, max_tokens, system):
        self._count_call()
        return [turns[0]["content"][-20:].upper() for turns, _ in conversations]


@pytest.mark.parametrize("name", ["geneval", "mjhq"])
def test_images_do_not_depend_on_batches_and_interruptions(name, tmp_path):
    benchmark = BENCHMARKS[name]
    PROMPTS[name](tmp_path / "data")
    prompts, samples = benchmark.read(tmp_path / "data"), benchmark.samples
    draw = lambda sampler, out, batch: runner.draw_all(
        sampler, benchmark, prompts, out=tmp_path / out, guidance=None, batch=batch, seed=0
    )
    draw(whole := FakeSampler(), "whole", 100)
    assert whole.calls == 1
    with pytest.raises(KeyboardInterrupt):
        draw(FakeSampler(max_calls=2), "interrupted", samples)
    draw(rest := FakeSampler(), "interrupted", samples)
    assert rest.calls == len(prompts) - 2  # none is generated twice
    draw(idle := FakeSampler(), "interrupted", samples)
    assert idle.calls == 0
    files = lambda out: {
        p.relative_to(tmp_path / out): p.read_bytes()
        for p in (tmp_path / out).rglob("*")
        if p.is_file()
    }
    assert files("whole") == files("interrupted")
    pixels = [
        Image.open(tmp_path / "whole" / file).tobytes()
        for p in prompts
        for file in p.files[:samples]
    ]
    assert len(set(pixels)) == len(pixels)  # every prompt and sample has a seed of its own


def test_answers_resume_after_an_incomplete_line(tmp_path):
    QUESTIONS["pope"](tmp_path / "data")
    benchmark = BENCHMARKS["pope"]
    questions = benchmark.read(tmp_path / "data")
    ask = lambda sampler: runner.answer_all(sampler, benchmark, questions, out=tmp_path, batch=5)
    with pytest.raises(KeyboardInterrupt):
        ask(FakeSampler(max_calls=1))
    path = tmp_path / runner.ANSWERS
    assert path.read_text().count("\n") == 5
    with path.open("ab") as file:
        file.write(
            '{"id": "random/9", "answer": "caf\u00e9'.encode()[:-1]
        )  # in the middle of a character
    answers = ask(rest := FakeSampler())
    assert rest.calls == 2 and answers == [q.content[-20:].upper() for q in questions]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(q.id for q in questions)


def test_answers_with_any_character_are_read_again(tmp_path, monkeypatch):
    QUESTIONS["pope"](tmp_path / "data")
    questions = BENCHMARKS["pope"].read(tmp_path / "data")
    monkeypatch.setattr(
        FakeSampler, "answer", lambda self, turns, **_: ["a\u2028b\x85c\r\nd \u00e9"] * len(turns)
    )
    for _ in range(2):
        answers = runner.answer_all(
            FakeSampler(), BENCHMARKS["pope"], questions, out=tmp_path, batch=5
        )
    assert set(answers) == {"a\u2028b\x85c\r\nd \u00e9"}
    (tmp_path / runner.ANSWERS).write_text('{"id": "random/9", "ans\n')
    with pytest.raises(UserError, match="answers.jsonl"):
        runner.answer_all(FakeSampler(), BENCHMARKS["pope"], questions, out=tmp_path, batch=5)


def test_other_tasks_have_another_fingerprint(tmp_path):
    for name, field in (("pope", "content"), ("dpg", "text")):
        WRITERS[name](tmp_path / name)
        tasks = BENCHMARKS[name].read(tmp_path / name)
        others = [tasks[0]._replace(**{field: "Do you see a dog?"}), *tasks[1:]]
        assert fingerprint(tasks) == fingerprint(list(tasks)) != fingerprint(others)


def test_other_settings_are_refused(tmp_path):
    report.check_settings(tmp_path, {"tasks": "a", "roles": ("x", "y")})
    report.check_settings(tmp_path, {"tasks": "a", "roles": ("x", "y")})
    with pytest.raises(UserError, match="tasks = 'a'.*'b'"):
        report.check_settings(tmp_path, {"tasks": "b", "roles": ("x", "y")})
    (tmp_path / "settings.json").write_text('{"tasks": ')
    with pytest.raises(UserError, match="settings.json"):
        report.check_settings(tmp_path, {"tasks": "a"})


def test_report(tmp_path, capsys):
    report.write(tmp_path, "pope", {"accuracy": 51.25, "f1": 60.0}, {"seed": 3}, 9)
    page = (tmp_path / "evaluation.md").read_text()
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert (
        "| pope | Janus | Janus-Pro-1B | Janus-Pro-7B | JanusFlow 256 | JanusFlow 384 | ours |"
        in page
    )
    assert (
        page.count("accuracy/f1 |") == 1
        and "| accuracy/f1 | 87 | 86.2 | 87.4 | 85.3 | 88 |  |" in page
    )
    assert "| accuracy |  |  |  |  |  | 51.25 |" in page
    assert "- Janus (Janus, Table 2): accuracy or F1: not stated" in page and "- seed: 3" in page
    assert (
        result["published"][0]["scores"] == {"accuracy/f1": 87.0} and result["scores"]["f1"] == 60
    )
    printed = capsys.readouterr().out
    assert "51.25" in printed and "87.4" in printed and "seed 3" in printed
    report.write(tmp_path, "mme", {"perception": 1444.4444}, {}, 2374)
    assert all(
        digits in (tmp_path / "evaluation.md").read_text()
        for digits in ("| 1444.444 |", "| 1567.1 |")
    )
    report.write(tmp_path, "mjhq", {"drawn": 30000}, {}, 1)
    page = (tmp_path / "evaluation.md").read_text()
    assert page.count("| FID |") == 1 and "| 30000 |" in page


def test_unreadable_images_are_named(tmp_path):
    QUESTIONS["pope"](tmp_path / "data")
    (tmp_path / "data/val2014/1.jpg").write_bytes(b"no image")
    questions = BENCHMARKS["pope"].read(tmp_path / "data")
    with pytest.raises(UserError, match="val2014/1.jpg"):
        runner.answer_all(FakeSampler(), BENCHMARKS["pope"], questions, out=tmp_path, batch=5)


@pytest.mark.parametrize("name", WRITERS)
def test_every_benchmark_runs(name, trained, tmp_path, monkeypatch):
    if name not in ON_A_MODEL:
        monkeypatch.setattr(load, "load_sampler", lambda *_, **__: FakeSampler())
    data, out, benchmark = tmp_path / "data", tmp_path / "out", BENCHMARKS[name]
    WRITERS[name](data)
    known = (f"--checkpoint={trained}", f"--benchmark={name}", f"--data={data}", f"--out={out}")
    code, _, err = run("evaluate", *known, "--batch=16", "--guidance=2")
    assert code == 0, err
    result = json.loads((out / "evaluation.json").read_text())
    settings = result["settings"]
    tasks = benchmark.read(data)
    assert result["count"] == len(tasks) and settings["benchmark"] == name
    assert f"# {name}" in (out / "evaluation.md").read_text()
    assert settings["tasks"] == fingerprint(tasks)
    assert settings["fingerprint"] == checkpoint.open_saved(trained).fingerprint
    assert settings["weights"] == "raw" and settings["dtype"] == "float32" and settings["roles"]
    if name in PROMPTS:
        assert (
            all(benchmark.is_done(out / "pictures", p) for p in tasks)
            and (out / "sheet.png").exists()
        )
        assert settings["scale"] == 2 and settings["pictures_a_prompt"] == benchmark.samples
        return
    rows = map(json.loads, (out / runner.ANSWERS).read_text().splitlines())
    by_id = {row["id"]: row["answer"] for row in rows}
    answers = [by_id[q.id] for q in tasks]
    points = 1 if name == "mme" else 100
    assert result["scores"] == {k: points * v for k, v in benchmark.score(tasks, answers).items()}
    for file in benchmark.write(tmp_path / "again", tasks, answers):
        own = out / file.name
        assert own.exists() and (file.suffix == ".xlsx" or own.read_bytes() == file.read_bytes())


def test_shapes_runs_on_a_model(data, trained, tmp_path):
    (tmp_path / "data").mkdir()
    prompts = json.loads((data / "prompts.json").read_text())
    put(tmp_path / "data/prompts.json", {category: part[:2] for category, part in prompts.items()})
    (tmp_path / "data/about.json").symlink_to(data / "about.json")
    questions = score.load_questions(data)[:16]
    write_array_record(tmp_path / "data/questions-heldout.array_record", questions)
    known = (f"--checkpoint={trained}", f"--data={tmp_path}/data", f"--out={tmp_path}/out")
    code, _, err = run("evaluate", *known, "--seeds=2", "--seed=1", "--batch=8")
    assert code == 0, err
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    guidance = checkpoint.open_saved(trained).about["config"]["samples"]["guidance"]
    assert set(result) == {
        *("understanding", "drawing", "ceiling", "floor", "round_trip", "settings")
    }
    assert set(result["drawing"]) == {*prompts, "overall"} == set(result["ceiling"])
    assert result["understanding"]["questions"] == 16
    assert result["understanding"]["majority_answer_baseline"] <= 0.4
    assert result["settings"]["pictures_a_prompt"] == 2 and result["settings"]["seed"] == 1
    assert result["settings"]["scale"] == guidance and set(
        result["settings"]["prompts"].values()
    ) == {2}
    assert (tmp_path / "out/sheet.png").exists()


def test_a_killed_run_resumes_and_other_settings_are_refused(trained, tmp_path):
    lines = [
        json.dumps({"tag": "colors", "include": [], "prompt": f"a photo of cat {i}"})
        for i in range(12)
    ]
    put(tmp_path / "data/evaluation_metadata.jsonl", "\n".join(lines) + "\n")
    flags = [
        f"--checkpoint={trained}",
        "--benchmark=geneval",
        f"--data={tmp_path}/data",
        f"--out={tmp_path}/out",
    ]
    process = start("evaluate", *flags, "--batch=4")
    images = tmp_path / "out/pictures"
    while process.poll() is None and len(list(images.glob("*/grid.png"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    finish(process)
    before = {p: p.stat().st_mtime_ns for p in images.glob("*/grid.png")}
    assert 2 <= len(before) < 12, "the run ended before it could be killed"
    code, _, err = run("evaluate", *flags, "--batch=8")
    assert code == 0, err
    assert len(list(images.glob("*/samples/*.png"))) == 48
    assert all(p.stat().st_mtime_ns == then for p, then in before.items())
    code, _, err = run("evaluate", *flags, "--guidance=3")
    assert code == 2 and "scale" in err and "--out" in err


def test_fingerprints_of_checkpoints(tmp_path):
    fingerprints = []
    for name, scale in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        writer = checkpoint.Writer(tmp_path / name, keep=1)
        writer.save(1, params={"llm/norm/scale": jnp.full(3, scale)}, about={"stage": "stage_1"})
        writer.wait()
        fingerprints.append(checkpoint.open_saved(tmp_path / name).fingerprint)
    first, other, again = fingerprints
    assert first == again != other and re.fullmatch("[0-9a-f]{16}", first)


def test_wrong_flags_and_files(trained, tmp_path):
    QUESTIONS["pope"](tmp_path / "pope")
    (tmp_path / "pope/val2014/1.jpg").write_bytes(b"no image")
    put(tmp_path / "data/prompts.json", "[1, 2]")
    data, pope, out = f"--data={tmp_path}/data", f"--data={tmp_path}/pope", f"--out={tmp_path}/out"
    for flags, message in [
        (["--benchmark=pope", data, out], "pope: .*coco_pope"),
        (["--benchmark=pope", data], "--out"),
        (
            ["--benchmark=geneval", data, out, "--features=x.onnx"],
            "--features.*--reference.*mjhq or coco",
        ),
        (["--benchmark=fid", data, out], "fid.*'shapes', 'geneval'"),
        ([data, out, "--top_p=0"], "--top_p.*--temperature=0"),
        ([data, out], "prompts.json.*/data"),
        (["--benchmark=pope", pope, f"--out={tmp_path}/data/prompts.json"], "prompts.json"),
        (["--benchmark=pope", pope, out], "val2014/1.jpg"),
    ]:
        code, _, err = run("evaluate", f"--checkpoint={trained}", *flags)
        assert code == 2 and "Traceback" not in err
        assert re.search(message, err), err
    code, _, err = run("evaluate", data, out)
    assert code == 2 and "--checkpoint" in err


def test_published_scores_are_consistent():
    for model, scores in papers.SCORES["geneval"].items():
        tags = [value for tag, value in scores.items() if tag != "overall"]
        assert len(tags) == 6 and scores["overall"] == pytest.approx(np.mean(tags), abs=0.01), model
    assert {b: list(models) for b, models in papers.SOURCES.items()} == {
        b: list(m) for b, m in papers.SCORES.items()
    }
    (row,) = papers.rows("pope", "Janus-Pro-1B")
    assert (
        row[:3] == ("Janus-Pro-1B", {"accuracy/f1": 86.2}, "Janus-Pro, Table 3")
        and "F1: not stated" in row.settings
    )
    assert [r.model for r in papers.rows("mjhq")] == ["Janus", "JanusFlow 256", "JanusFlow 384"]
    assert papers.rows("dpg", "Janus")[0].settings.startswith(
        "guidance not stated"
    )  # printed by Janus-Pro's paper
    assert papers.rows("coco", "Janus-Pro-7B") == papers.rows("shapes") == []
    with pytest.raises(UserError, match="Bagel"):
        papers.rows("pope", "Bagel")
