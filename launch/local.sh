#!/usr/bin/env bash
# Trains with several processes on this machine; they communicate through gloo on CPU and NCCL on GPU.
#
#   launch/local.sh --processes=2 -- --config=configs/tiny.py --workdir=runs/tiny
#
#   --processes=N   number of processes (default: 2)
#   --devices=N     CPU devices per process (default: 1); with GPUs, process I uses GPU I
#   --port=N        port of process 0 (default: a free one)
#   --retries=N     restarts after preemptions and kills (default: 20)
#   --dry-run       prints the commands only
#
# Everything after -- goes to `python -m janus_jax.train`. Environment variables set the same: PROCESSES, DEVICES, PORT,
# RETRIES, RETRY_SECONDS, PYTHON. SIGTERM and Ctrl-C are forwarded: the run saves its state and exits with code 75. When
# one process fails, the others end, too.

set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

PROCESSES=${PROCESSES:-2} DEVICES=${DEVICES:-1} PORT=${PORT:-} PYTHON=${PYTHON:-python}
parse "processes devices port retries" "$@"
number processes 1 "$PROCESSES"
number devices 1 "$DEVICES"
number port 1 "${PORT:-1}"
number retries 0 "${RETRIES:-0}"
((${#arguments[@]})) || complain "the flags of the training follow after --, for example -- --config=configs/tiny.py"
. launch/xla_flags.sh

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
pids=()
trap 'STOPPED=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

# Starts all processes and returns the exit code of the first that failed (see `outweighs`).
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
    if ((code && ${#pids[@]} && patience-- == 0)); then # they end by themselves, unless they hang
      kill -KILL "${pids[@]}" 2>/dev/null || true
    fi
  done
  return "$code"
}

again attempt
