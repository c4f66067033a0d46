#!/usr/bin/env bash
# Trains with several processes on this machine, which talk through gloo on CPU and NCCL on GPU.
#
#   launch/local.sh --processes=2 -- --config=configs/tiny.py --workdir=runs/tiny
#
#   --processes=N   how many (2)
#   --devices=N     CPU devices of each (1); with GPUs, process I sees GPU I
#   --port=N        where process 0 listens (a free one)
#   --retries=N     how often a run that was preempted or killed is started again (20)
#   --dry-run       only shows the commands
#
# What stands behind -- goes to `python -m janus_jax.train`. The environment may hold the same: PROCESSES, DEVICES, PORT,
# RETRIES, RETRY_SECONDS, PYTHON. SIGTERM and Ctrl-C are passed on: the state is saved, and the exit code is 75. When one
# process ends, the others end too.

set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

PROCESSES=${PROCESSES:-2} DEVICES=${DEVICES:-1} PORT=${PORT:-} PYTHON=${PYTHON:-python}
parse "processes devices port retries" "$@"
number processes 1 "$PROCESSES"
number devices 1 "$DEVICES"
number port 1 "${PORT:-1}"
number retries 0 "${RETRIES:-0}"
((${#arguments[@]})) || complain "what to train stands behind --, for example -- --config=configs/tiny.py"
. launch/xla_flags.sh

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
pids=()
trap 'STOPPED=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

# Starts all processes, and returns the code of the first that failed; an error of one's own outweighs what it made of
# the others.
attempt() {
  local port=${PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
  local id pid alive ended code=0 patience=120
  pids=()
  for ((id = 0; id < PROCESSES; id++)); do
    local command=(env "JAX_NUM_CPU_DEVICES=$DEVICES")
    ((gpus)) && command=(env "CUDA_VISIBLE_DEVICES=$id")
    command+=("$PYTHON" -m janus_jax.train "${arguments[@]}"
      "--distributed=localhost:$port" "--num_processes=$PROCESSES" "--process_id=$id")
    show "${command[@]}"
    [[ -z ${DRY_RUN:-} ]] || continue
    "${command[@]}" &
    pids+=($!)
  done
  while ((${#pids[@]})); do
    sleep 0.5
    alive=()
    for pid in "${pids[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        alive+=("$pid")
      else
        ended=0
        wait "$pid" || ended=$?
        outweighs "$code" "$ended" || code=$ended
      fi
    done
    pids=("${alive[@]}")
    if ((code && ${#pids[@]} && patience-- == 0)); then # they notice by themselves, but for those that hang
      kill -KILL "${pids[@]}" 2>/dev/null || true
    fi
  done
  return "$code"
}

again attempt
