#!/usr/bin/env bash
# Trains on a Cloud TPU slice: makes it, installs this folder on all its hosts, trains, and starts over when Google takes
# the slice away. Needs gcloud, logged in.
#
#   launch/tpu_vm.sh --name=janus --zone=us-east5-a --type=v5p-128 --bucket=my-bucket -- \
#     --config=configs/pro_7b.py --workdir=bucket/runs/pro_7b
#
#   --name=NAME      of the slice
#   --zone=ZONE      where
#   --type=TYPE      v5litepod-256, v5p-128, v6e-256, ... (v5p counts cores, two a chip)
#   --slices=N       how many, joined by the data-centre network (1); the config's mesh.data must be a multiple
#   --version=NAME   of the TPU software (the one of the type)
#   --project=NAME   gcloud's own without it
#   --bucket=NAME    a bucket that every host sees as the folder `bucket`: workdir and data must lie where all see them
#   --spot           cheaper, and taken away at times
#   --keep           leaves the slice running in the end
#   --retries=N      how often a slice that is lost is made again (20)
#   --dry-run        only shows the commands
#
# What stands behind -- goes to `python -m janus_jax.train`. The environment may hold the same in capitals: NAME, ZONE, ...

set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

NAME=${NAME:-janus} ZONE=${ZONE:-} TYPE=${TYPE:-} SLICES=${SLICES:-1} VERSION=${VERSION:-} PROJECT=${PROJECT:-}
BUCKET=${BUCKET:-} SPOT=${SPOT:-} KEEP=${KEEP:-}
parse "name zone type slices version project bucket spot keep retries" "$@"
[[ $ZONE && $TYPE ]] || complain "--zone and --type are needed"
((${#arguments[@]})) || complain "what to train stands behind --, for example -- --config=configs/pro_7b.py --workdir=bucket/runs/pro_7b"
if [[ -z $VERSION ]]; then
  case $TYPE in
    v5litepod-*) VERSION=v2-alpha-tpuv5-lite ;;
    v5p-*) VERSION=v2-alpha-tpuv5 ;;
    v6e-*) VERSION=v2-alpha-tpuv6e ;;
    *) VERSION=tpu-ubuntu2204-base ;;
  esac
fi

where=("--zone=$ZONE")
[[ -z $PROJECT ]] || where+=("--project=$PROJECT")
nodes=("$NAME")
if ((SLICES > 1)); then
  nodes=()
  for ((i = 0; i < SLICES; i++)); do nodes+=("$NAME-$i"); done
fi

# on_all COMMAND: runs a shell command on every host of every slice at once.
on_all() {
  local node pids=() code=0 pid
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command="$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
  return "$code"
}

# Waits for the slices, which are asked for as one queued resource.
make_slices() {
  local more=() state
  if ((SLICES > 1)); then more+=("--node-count=$SLICES" "--node-prefix=$NAME"); else more+=("--node-id=$NAME"); fi
  [[ -z $SPOT ]] || more+=(--spot)
  state=$(slice_state)
  if [[ $state != ACTIVE ]]; then
    [[ -z $state ]] || delete_slices
    run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" "--accelerator-type=$TYPE" \
      "--runtime-version=$VERSION" "${more[@]}"
  fi
  until [[ -n ${DRY_RUN:-} || $(slice_state) == ACTIVE ]]; do
    echo "Waiting for $SLICES x $TYPE: $(slice_state)" >&2
    sleep 30
  done
}

slice_state() {
  [[ -n ${DRY_RUN:-} ]] || gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

delete_slices() { run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet; }

install() {
  local archive=/tmp/janus_jax_$NAME.tar.gz node mount=true
  run tar --create --gzip --file="$archive" --exclude=runs --exclude=data --exclude=.git --exclude=.venv .
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:janus_jax.tar.gz" "${where[@]}" --worker=all
  done
  [[ -z $BUCKET ]] || mount="mkdir -p bucket && (mountpoint -q bucket || gcsfuse --implicit-dirs '$BUCKET' bucket)"
  on_all "mkdir -p janus_jax && tar --extract --gzip --file=janus_jax.tar.gz --directory=janus_jax && cd janus_jax && \
python3 -m venv .venv && .venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]' && $mount"
}

# Several slices find each other through what their queued resource tells their hosts.
train() {
  on_all "cd janus_jax && . launch/xla_flags.sh && .venv/bin/python -m janus_jax.train $(printf '%q ' "${arguments[@]}")\
--distributed=auto"
}

attempt() {
  local code=0
  make_slices && install && train || code=$?
  if ((code == 0 || code == 2)); then return "$code"; fi
  [[ -z ${DRY_RUN:-} && $(slice_state) == ACTIVE && $code != "$CODE_AGAIN" && $code != 255 ]] && return "$code"
  return "$CODE_AGAIN" # the slice is gone, or ssh was cut
}

again attempt
[[ -n $KEEP ]] || delete_slices
