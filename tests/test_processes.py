"""Many processes through launch/local.sh: the losses of one, their common end, the restart; and what the scripts say."""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax import checkpoint, distributed
from janus_jax.errors import UserError
from tests.conftest import ROOT, environment
from tests.test_train import CONFIG, lines, start

SCRIPTS = sorted((ROOT / "launch").iterdir())


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The recipe, and a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "test_recipe.py").write_text(CONFIG.format(data=str(data)))
    assert finish(start(f"{folder}/test_recipe.py:2", folder / "run", devices=2))[0] == 0
    return folder


def launch(folder, workdir, *flags, processes, retries=0):
    env = environment(devices=1, PYTHON=sys.executable, RETRY_SECONDS="0")
    command = [
        ROOT / "launch/local.sh", f"--processes={processes}", f"--retries={retries}", "--",
        f"--config={folder}/test_recipe.py:2", f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def of_run(process):
    """Ids of the training processes that a launcher has started, by their number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes().decode().split("\0")
        parent = re.search(r"PPid:\s+(\d+)", (path.parent / "status").read_text())
        if int(parent[1]) == process.pid and "janus_jax.train" in words:
            found[int(words[-2].removeprefix("--process_id="))] = int(path.parent.name)
    return found


def finish(process):
    """Every process compiles for itself: four of them on two cores take their time."""
    _, err = process.communicate(timeout=1_200)
    return process.returncode, err


def steps_done(workdir):
    path = Path(workdir) / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(process, workdir, *, steps):
    while process.poll() is None and steps_done(workdir) < steps:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]


def test_four_processes_give_the_losses_of_one(alone, tmp_path):
    code, err = finish(launch(alone, tmp_path, processes=4))
    assert code == 0, err
    one, many = lines(alone / "run"), lines(tmp_path)
    assert [r["step"] for r in many] == list(range(1, 9))
    np.testing.assert_allclose([r["loss"] for r in many], [r["loss"] for r in one], rtol=1e-4)
    for name in ("token_fill", "slot_fill", "ratio"):
        np.testing.assert_allclose([r[name] for r in many], [r[name] for r in one], rtol=1e-6)
    positions = [checkpoint.newest(folder).about["data"] for folder in (alone / "run", tmp_path)]
    assert positions[0] == positions[1] and len(positions[0]) == 4  # every process's shards


def test_one_that_is_killed_ends_the_others_and_the_run_is_started_again(alone, tmp_path):
    process = launch(alone, tmp_path, "--config.samples.prompts=('a red star',)", processes=2, retries=1)
    wait_for(process, tmp_path, steps=5)
    first = of_run(process)
    os.kill(first[1], signal.SIGKILL)
    killed = time.monotonic()
    while Path(f"/proc/{first[0]}").exists():
        assert time.monotonic() - killed < 60
        time.sleep(0.05)
    code, err = finish(process)
    assert code == 0, err
    told = "Error: process 0 of 2 ends. Another process has probably ended|Terminating process because"  # or jax itself
    assert re.search(told, err) and "started again" in err, err
    assert sorted(p.name for p in (tmp_path / "samples").iterdir())[-1] == "0000008_stage_2.png"
    one, many = lines(alone / "run"), lines(tmp_path)
    assert [r["step"] for r in many] == list(range(1, 9))
    np.testing.assert_allclose([r["loss"] for r in many], [r["loss"] for r in one], rtol=1e-4)


def test_sigterm_to_one_saves_all_at_the_same_step(alone, tmp_path):
    process = launch(alone, tmp_path, "--config.save_every=100", processes=2)
    wait_for(process, tmp_path, steps=2)
    os.kill(of_run(process)[1], signal.SIGTERM)
    code, err = finish(process)
    assert code == 75, err
    stopped = checkpoint.newest(tmp_path).step
    assert 2 <= stopped < 8 and len(checkpoint.newest(tmp_path).about["data"]) == 4
    assert finish(start(f"{alone}/test_recipe.py:2", tmp_path, devices=2))[0] == 0  # and one process goes on
    np.testing.assert_allclose([r["loss"] for r in lines(tmp_path)], [r["loss"] for r in lines(alone / "run")], rtol=1e-4)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--num_processes=2"], "--num_processes and --process_id need --distributed"),
        (["--distributed=here", "--num_processes=2", "--process_id=0"], "--distributed is auto, or HOST:PORT"),
        (["--distributed=localhost:1", "--num_processes=2", "--process_id=2"], "which counts from 0"),
        (["--distributed=auto"], "the other processes cannot be found"),
    ],
)
def test_mistakes_are_told(alone, tmp_path, flags, said):
    code, err = finish(start(alone / "test_recipe.py", tmp_path, *flags))
    assert code == 2 and said in err


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


def test_processes_hold_whole_parts_of_the_batch(monkeypatch):
    def mesh(processes, *, fsdp, tensor):
        devices = np.array([Device(p) for p in range(processes) for _ in range(fsdp * tensor // processes)])
        shape = dict(data=1, fsdp=fsdp, tensor=tensor)
        return types.SimpleNamespace(devices=devices.reshape(1, fsdp, tensor), shape=shape)

    monkeypatch.setattr(jax, "process_index", lambda: 2)
    assert distributed.host_share(mesh(4, fsdp=8, tensor=1)) == (2, 4)
    assert distributed.host_share(mesh(4, fsdp=4, tensor=2)) == (2, 4)
    assert distributed.host_share(mesh(4, fsdp=2, tensor=4)) == (1, 2)  # 2 and 3 hold the same rows
    with pytest.raises(UserError, match="one must divide the other"):
        distributed.host_share(mesh(3, fsdp=2, tensor=3))


def script(name, *words, **env):
    return subprocess.run([ROOT / "launch" / name, *words], env=os.environ | env, capture_output=True, text=True)


TRAIN = ["--", "--config=configs/pro_7b.py", "--config.samples.prompts=('a b',)"]
ON_TPU = ["--zone=z", "--type=v5p-128", "--bucket=b", "--spot"]
ON_GKE = ["--image=i", "--accelerator=tpu-v5p-slice", "--topology=4x4x4", "--hosts=16", "--bucket=b", "--spot"]
DRY = [
    ("local.sh", ["--processes=3", *TRAIN], ["--num_processes=3 --process_id=2", "a\\ b"]),
    ("tpu_vm.sh", [*ON_TPU, *TRAIN], ["create janus --zone=z", "--spot", "v2-alpha-tpuv5", "gcsfuse", "--distributed=auto"]),
    ("tpu_vm.sh", [*ON_TPU, "--slices=2", *TRAIN], ["--node-count=2", "ssh janus-1", "xla_flags.sh", "delete janus"]),
    (
        "gke.sh",
        [*ON_GKE, *TRAIN],
        ["kind: JobSet", "maxRestarts: 20", "completions: 16", "- '--config.samples.prompts=(''a b'',)'"],
    ),
    ("slurm.sbatch", ["--config=configs/pro_7b.py"], ["srun", "--distributed=auto"]),
    (
        "three_stages.sh",
        ["--config=c.py", "--workdir=w", "--stage_3=--config.mesh.tensor=2 --config.seed=1", "--", "launch/local.sh", "--"],
        ["launch/local.sh -- --config=c.py:1 --workdir=w\n", "c.py:3 --workdir=w --config.mesh.tensor=2 --config.seed=1"],
    ),
]


@pytest.mark.parametrize("name, words, said", DRY)
def test_scripts_show_what_they_would_do(name, words, said):
    words = ["--dry-run", *words]
    done = script(name, *words)
    assert done.returncode == 0, done.stderr
    for text in said:
        assert text in done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted({name for name, *_ in DRY}))
def test_scripts_tell_mistakes_and_help(name):
    done = script(name, "--help")
    assert done.returncode == 0 and f"launch/{name}" in done.stdout and "--dry-run" in done.stdout
    if name != "slurm.sbatch":
        done = script(name, "--dri-run")
        assert done.returncode == 2 and "Error: unknown flag --dri-run" in done.stderr


@pytest.mark.parametrize(
    "name, words, said",
    [
        ("local.sh", ["--processes", *TRAIN], "--processes wants a value"),
        ("local.sh", ["--devices=x", *TRAIN], "--devices=x is no whole number"),
        ("local.sh", ["--retries=-1", *TRAIN], "--retries=-1 is no whole number"),
        ("local.sh", ["--processes=0", *TRAIN], "--processes=0 is no whole number, at least 1"),
        ("tpu_vm.sh", [*ON_TPU, "--keep=0", *TRAIN], "--keep is a switch and takes no value"),
        ("tpu_vm.sh", [*ON_TPU, "--slices=0", *TRAIN], "--slices=0 is no whole number, at least 1"),
        ("gke.sh", [*ON_GKE, "--hosts=four", *TRAIN], "--hosts=four is no whole number"),
        ("three_stages.sh", ["--config=c", "--workdir=w", "--stages= ", "--", "python"], "--stages names none"),
        ("slurm.sbatch", [], "say what to train"),
    ],
)
def test_flags_that_mean_nothing_are_told(name, words, said):
    done = script(name, *words)
    assert done.returncode == 2 and said in done.stderr


def test_slurm_shows_wherever_it_is_asked_to(tmp_path):
    done = script("slurm.sbatch", "--config=x", "--dry-run", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0 and "+ srun" in done.stderr and "--dry-run" not in done.stderr


def test_a_job_of_slurm_saves_before_it_is_queued_again(tmp_path):
    """A stand-in for srun that tells the task alone to stop, as SLURM does with what it did not start itself."""
    tools = {
        "srun": 'while [[ $1 == --* ]]; do shift; done\n"$@" & task=$!\n'
        f"until [[ -e {tmp_path}/begun ]]; do sleep 0.1; done\nkill -TERM $task; wait $task",
        "scontrol": f'echo "$*" > {tmp_path}/asked',
        "python": f"trap 'touch {tmp_path}/saved; exit 75' TERM; touch {tmp_path}/begun; while true; do sleep 0.1; done",
    }
    for name, lines_of in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines_of}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "python", "SLURM_JOB_ID": "7"}
    done = script("slurm.sbatch", "--config=x", **env)
    assert done.returncode == 75, done.stderr
    assert (tmp_path / "saved").exists() and (tmp_path / "asked").read_text() == "requeue 7\n"


def test_settings_come_from_the_environment_too():
    done = script("local.sh", "--dry-run", *TRAIN, PROCESSES="1", PORT="99")
    assert "--distributed=localhost:99 --num_processes=1 --process_id=0" in done.stderr


@pytest.mark.parametrize(
    "codes, ran, code", [("75 137 0", 3, 0), ("75 75 75", 3, 75), ("2 0", 1, 2), ("1 0", 1, 1), ("0", 1, 0)]
)
def test_what_was_preempted_is_started_again(tmp_path, codes, ran, code):
    """A stand-in for python that ends with one code after the other."""
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/bash\ncd {tmp_path}; [[ $1 == -c ]] && {{ echo 9; exit; }}\n"
        'echo "$@" >> ran; read -r code < codes; sed -i 1d codes; exit "$code"\n'
    )
    python.chmod(0o755)
    env = {"PYTHON": str(python), "RETRY_SECONDS": "0"}
    done = script("local.sh", "--processes=1", "--retries=2", "--", "--config=x", **env)
    assert done.returncode == code and len((tmp_path / "ran").read_text().splitlines()) == ran


def test_a_mistake_of_one_outweighs_what_it_made_of_the_others(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\n[[ $1 == -c ]] && { echo 9; exit; }\n[[ "$*" == *process_id=1 ]] && exit 2\nexit 75\n')
    python.chmod(0o755)
    done = script("local.sh", "--processes=2", "--", "--config=x", PYTHON=str(python), RETRY_SECONDS="0")
    assert done.returncode == 2 and "started again" not in done.stderr


@pytest.fixture
def cloud(tmp_path):
    """A stand-in for gcloud and kubectl that writes down what it is asked, and says what the test wants."""
    for name in ("gcloud", "kubectl"):
        tool = tmp_path / name
        tool.write_text(
            f'#!/bin/bash\ncd {tmp_path}\necho "{name} $*" >> asked\n'
            "[[ $* == *describe* ]] && { cat state 2>/dev/null; exit; }\n"
            '[[ $* == *"get jobset"* ]] && { cat state; exit; }\n'
            '[[ $* == *" create "* ]] && { [[ -e refused ]] && exit 1; echo ACTIVE > state; }\n'
            '[[ $* == *janus_jax.train* ]] && exit "$(cat code)"\n[[ $* == "apply"* ]] && cat > manifest\nexit 0\n'
        )
        tool.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("code", [0, 2])
def test_a_slice_is_made_filled_and_given_back(cloud, code):
    (cloud / "code").write_text(str(code))
    path = {"PATH": f"{cloud}:{os.environ['PATH']}", "TMPDIR": str(cloud)}
    done = script("tpu_vm.sh", *ON_TPU, *TRAIN, **path)
    asked = (cloud / "asked").read_text()
    assert done.returncode == code, done.stderr
    assert asked.index(" create ") < asked.index(" scp ") < asked.index("uv venv") < asked.index("janus_jax.train --config")
    assert asked.splitlines()[-1].startswith("gcloud compute tpus queued-resources delete")
    with tarfile.open(cloud / "janus_jax_janus.tar.gz") as held:
        names = held.getnames()
    assert {"./janus_jax/data/pipeline.py", "./launch/xla_flags.sh", "./requirements.txt"} <= set(names)
    assert not any(name.startswith(("./data/", "./runs/", "./.git/")) for name in names)


def test_a_slice_that_is_refused_ends_the_launcher(cloud):
    (cloud / "refused").touch()
    done = script("tpu_vm.sh", "--retries=1", *ON_TPU, *TRAIN, PATH=f"{cloud}:{os.environ['PATH']}", RETRY_SECONDS="0")
    assert done.returncode != 0 and "scp" not in (cloud / "asked").read_text()


def test_the_manifest_holds_the_flags_as_they_are(cloud):
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load(script("gke.sh", "--dry-run", *ON_GKE, *TRAIN).stdout)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert job["completions"] == 16 and container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"][-2:] == TRAIN[1:]
    assert "rename-dir-limit" in job["template"]["spec"]["volumes"][0]["csi"]["volumeAttributes"]["mountOptions"]


def test_the_table_of_flags_leaves_the_last_word_to_the_environment():
    text = "set -u; . launch/xla_flags.sh; echo $LIBTPU_INIT_ARGS; echo $XLA_FLAGS; echo $XLA_PYTHON_CLIENT_MEM_FRACTION"
    env = os.environ | {"XLA_FLAGS": "--mine=1", "LIBTPU_INIT_ARGS": "--mine=2", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    done = subprocess.run(["bash", "-c", text], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    tpu, gpu, share = done.stdout.splitlines()
    assert tpu.endswith("--mine=2") and gpu.endswith("--mine=1") and share == "0.5"
    page = (ROOT / "docs/pods.md").read_text()
    flags = re.findall(r"--(xla\w+)=", tpu + gpu)
    assert len(flags) > 8 and all(f"`{flag}`" in page for flag in flags)


@pytest.mark.parametrize("name", ["janus_1p3b", "pro_1b", "pro_7b", "flow_1p3b", "flow_1p3b_256"])
def test_the_papers_recipes_run_in_up_to_64_processes(name):
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    shards = config["data"]["shards"]
    assert all(shards % processes == 0 for processes in (1, 2, 4, 8, 16, 32, 64))
    assert all(s["batch"] // s["rows"] % shards == 0 for s in config["stages"].values())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("needs shellcheck")
    done = subprocess.run([shellcheck, "-x", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
