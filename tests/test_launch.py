"""The scripts of launch/: what they run, their restarts, their mistakes and help."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from janus_jax import cli
from tests.conftest import ROOT

TRAIN = ["--", "--config=configs/pro_7b.py", "--config.samples.prompts=('a b',)"]
ON_TPU = ["--zone=z", "--type=v5p-128", "--bucket=b", "--spot"]
ON_GKE = [
    "--image=i", "--accelerator=tpu-v5p-slice", "--topology=4x4x4", "--hosts=16", "--bucket=b",
    "--spot",
]  # fmt: skip
STAGES = ["--config=c.py", "--workdir=w", "--stage_3=--config.mesh.tensor=2 --config.seed=1"]
DRY_RUNS = {  # script: its arguments, and texts that it prints with --dry-run
    "local.sh": (
        ["--processes=3", *TRAIN],
        ["--num_processes=3 --process_id=2", "a\\ b"],
    ),
    "tpu_vm.sh": (
        [*ON_TPU, "--slices=2", *TRAIN],
        [
            "create janus --zone=z", "--node-count=2", "--spot", "v2-alpha-tpuv5", "gcsfuse",
            "ssh janus-1", "xla_flags.sh", "--distributed=auto", "delete janus",
        ],
    ),
    "gke.sh": (
        [*ON_GKE, *TRAIN],
        [
            "kind: JobSet", "maxRestarts: 20", "completions: 16",
            "- '--config.samples.prompts=(''a b'',)'",
        ],
    ),
    "slurm.sbatch": (
        ["--config=configs/pro_7b.py"],
        ["+ srun", "--distributed=auto"],
    ),
    "three_stages.sh": (
        [*STAGES, "--", "launch/local.sh", "--"],
        [
            "launch/local.sh -- --config=c.py:1 --workdir=w\n",
            "c.py:3 --workdir=w --config.mesh.tensor=2 --config.seed=1",
        ],
    ),
}  # fmt: skip
MISTAKES = [  # script, arguments, text of the error
    ("local.sh", ["--processes", *TRAIN], "--processes"),
    ("local.sh", ["--devices=x", *TRAIN], "--devices=x"),
    ("local.sh", ["--retries=-1", *TRAIN], "--retries=-1"),
    ("local.sh", ["--processes=0", *TRAIN], "1"),
    ("local.sh", ["--processes=2"], "--config=configs/tiny.py"),
    ("tpu_vm.sh", [*ON_TPU, "--keep=0", *TRAIN], "--keep"),
    ("gke.sh", ["--image=i", *TRAIN], "--hosts"),
    ("three_stages.sh", ["--config=c", "--workdir=w", "--stages= ", "--", "python"], "--stages"),
    ("slurm.sbatch", [], "--config="),
]


def script(name, *arguments, **env):
    command = [ROOT / "launch" / name, *arguments]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True)


def stand_in(folder, name, text):
    """An executable that replaces a program."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_runs_print_the_commands(name):
    arguments, texts = DRY_RUNS[name]
    done = script(name, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    for text in texts:
        assert text in done.stdout + done.stderr


def test_dry_run_may_follow_the_flags_of_slurm(tmp_path):
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = script("slurm.sbatch", "--config=x", "--dry-run", PATH=path)
    assert done.returncode == 0
    assert "+ srun" in done.stderr and "--dry-run" not in done.stderr


def test_environment_variables_set_flags():
    done = script("local.sh", "--dry-run", *TRAIN, PROCESSES="1", PORT="99")
    assert "--distributed=localhost:99 --num_processes=1 --process_id=0" in done.stderr


def test_mistakes_end_with_code_2_and_help():
    for name, arguments, text in MISTAKES:
        done = script(name, *arguments)
        assert done.returncode == 2 and text in done.stderr, (name, arguments, done.stderr)
    for name in DRY_RUNS:
        done = script(name, "--help")
        assert done.returncode == 0, done.stderr
        assert f"launch/{name}" in done.stdout and "--dry-run" in done.stdout
        if name != "slurm.sbatch":  # which passes all flags on
            done = script(name, "--dri-run")
            assert done.returncode == 2 and "--dri-run" in done.stderr


def test_runs_that_were_preempted_or_killed_start_again(tmp_path):
    """A stand-in for python ends with one exit code after the other."""
    text = f'cd {tmp_path}; [[ $1 == -c ]] && {{ echo 9; exit; }}\necho "$@" >> ran\n'
    text += 'read -r code < codes; sed -i 1d codes; exit "$code"'
    env = {"PYTHON": stand_in(tmp_path, "python", text), "RETRY_SECONDS": "0"}
    cases = [([75, 137, 0], 3, 0), ([75, 75, 75], 3, 75), ([2, 0], 1, 2), ([1, 0], 1, 1)]
    for codes, runs, code in cases:
        (tmp_path / "codes").write_text("".join(f"{c}\n" for c in codes))
        (tmp_path / "ran").unlink(missing_ok=True)
        done = script("local.sh", "--processes=1", "--retries=2", "--", "--config=x", **env)
        assert done.returncode == code, codes
        assert len((tmp_path / "ran").read_text().splitlines()) == runs, codes


def test_the_exit_code_is_that_of_the_process_that_failed(tmp_path):
    text = "[[ $1 == -c ]] && { echo 9; exit; }\n"
    text += '[[ "$*" == *process_id=1 ]] && exit 2\nexit 75'
    env = {"PYTHON": stand_in(tmp_path, "python", text), "RETRY_SECONDS": "0", "RETRIES": "1"}
    done = script("local.sh", "--processes=2", "--", "--config=x", **env)
    assert done.returncode == 2


def test_a_job_of_slurm_saves_before_it_is_queued_again(tmp_path):
    """A stand-in for srun signals the task only, as SLURM does, not the task's children."""
    srun = 'while [[ $1 == --* ]]; do shift; done\n"$@" & task=$!\n'
    srun += f"until [[ -e {tmp_path}/begun ]]; do sleep 0.1; done\nkill -TERM $task; wait $task"
    stand_in(tmp_path, "srun", srun)
    stand_in(tmp_path, "scontrol", f'echo "$*" > {tmp_path}/asked')
    python = f"trap 'touch {tmp_path}/saved; exit 75' TERM; touch {tmp_path}/begun\n"
    stand_in(tmp_path, "python", f"{python}while true; do sleep 0.1; done")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "python", "SLURM_JOB_ID": "7"}
    done = script("slurm.sbatch", "--config=x", **env)
    assert done.returncode == 75, done.stderr
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


@pytest.fixture
def cloud(tmp_path):
    """Stand-ins for gcloud and kubectl, which log their calls to `asked` and answer from files."""
    for name in ("gcloud", "kubectl"):
        stand_in(
            tmp_path,
            name,
            f'cd {tmp_path}\necho "{name} $*" >> asked\n'
            "[[ $* == *describe* ]] && { cat state 2>/dev/null; exit; }\n"
            '[[ $* == *"get jobset"* ]] && { cat state; exit; }\n'
            '[[ $* == *" create "* ]] && { [[ -e refused ]] && exit 1; echo ACTIVE > state; }\n'
            '[[ $* == *janus_jax.train* ]] && exit "$(cat code)"\n'
            '[[ $* == "apply"* ]] && cat > manifest\nexit 0',
        )
    return tmp_path


def test_a_slice_is_created_trained_on_and_deleted(cloud):
    for code in (0, 2):
        (cloud / "code").write_text(str(code))
        for name in ("asked", "state"):
            (cloud / name).unlink(missing_ok=True)
        path = {"PATH": f"{cloud}:{os.environ['PATH']}", "TMPDIR": str(cloud)}
        done = script("tpu_vm.sh", *ON_TPU, *TRAIN, **path)
        assert done.returncode == code, done.stderr
        asked = (cloud / "asked").read_text()
        steps = (" create ", " scp ", "uv venv", "janus_jax.train --config")
        places = [asked.index(step) for step in steps]
        assert places == sorted(places)
        assert asked.splitlines()[-1].startswith("gcloud compute tpus queued-resources delete")
    with tarfile.open(cloud / "janus_jax_janus.tar.gz") as archive:
        names = archive.getnames()
    files = {"./janus_jax/data/pipeline.py", "./launch/xla_flags.sh", "./requirements.txt"}
    assert files <= set(names)
    assert not any(name.startswith(("./data/", "./runs/", "./.git/")) for name in names)


def test_a_refused_slice_ends_the_launcher(cloud):
    (cloud / "refused").touch()
    env = {"PATH": f"{cloud}:{os.environ['PATH']}", "RETRY_SECONDS": "0"}
    done = script("tpu_vm.sh", "--retries=1", *ON_TPU, *TRAIN, **env)
    assert done.returncode != 0
    assert "scp" not in (cloud / "asked").read_text()


def test_the_manifest_of_gke_is_valid():
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load(script("gke.sh", "--dry-run", *ON_GKE, *TRAIN).stdout)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert job["completions"] == 16
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"][-2:] == TRAIN[1:]
    assert "rename-dir-limit" in pod["volumes"][0]["csi"]["volumeAttributes"]["mountOptions"]


def test_flags_of_the_environment_take_precedence():
    names = ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    text = "set -u; . launch/xla_flags.sh; " + "; ".join(f"echo ${name}" for name in names)
    env = os.environ | dict(zip(names, ("--mine=2", "--mine=1", "0.5")))
    command = ["bash", "-c", text]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    tpu, gpu, share = done.stdout.splitlines()
    assert tpu.endswith("--mine=2") and gpu.endswith("--mine=1") and share == "0.5"
    page = (ROOT / "docs/pods.md").read_text()
    flags = re.findall(r"--(xla\w+)=", tpu + gpu)
    assert len(flags) > 8
    assert all(f"`{flag}`" in page for flag in flags)


def test_the_papers_recipes_run_in_up_to_64_processes():
    for name in ("janus_1p3b", "pro_1b", "pro_7b", "flow_1p3b", "flow_1p3b_256"):
        config = cli.load_config(name).to_dict()
        shards = config["data"]["shards"]
        assert all(shards % processes == 0 for processes in (1, 2, 4, 8, 16, 32, 64))
        assert all(s["batch"] // s["rows"] % shards == 0 for s in config["stages"].values())


def test_shellcheck_finds_nothing():
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=path)
    if shellcheck is None:
        pytest.skip("needs shellcheck")
    for file in sorted((ROOT / "launch").iterdir()):
        done = subprocess.run([shellcheck, "-x", file], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
