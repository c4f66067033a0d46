#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it, installs this folder on all its hosts, trains, and starts again after a
# preemption. Needs gcloud with a logged-in account.
#
#   launch/tpu_vm.sh --name=janus --zone=us-east5-a --type=v5p-128 --bucket=my-bucket -- \
#     --config=configs/pro_7b.py --workdir=bucket/runs/pro_7b
#
#   --name=NAME      name of the slice (default: janus)
#   --zone=ZONE      zone of the slice
#   --type=TYPE      v5litepod-256, v5p-128, v6e-256, ... (v5p counts cores, two per chip)
#   --slices=N       number of slices, joined by the data-centre network (default: 1); mesh.data must be a multiple
#   --version=NAME   version of the TPU software (default: the one of the type)
#   --project=NAME   project (default: gcloud's own)
#   --bucket=NAME    bucket that every host mounts as the folder `bucket`: all hosts need access to workdir and data
#   --spot           uses spot capacity: cheaper, and may be preempted
#   --keep           leaves the slice running at the end
#   --retries=N      restarts after preemptions and kills (default: 20)
#   --dry-run        prints the commands only
#
# Everything after -- goes to `python -m janus_jax.train`. Environment variables set the same: NAME, ZONE, ...

set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

NAME=${NAME:-janus} ZONE=${ZONE:-} TYPE=${TYPE:-} SLICES=${SLICES:-1} VERSION=${VERSION:-} PROJECT=${PROJECT:-}
BUCKET=${BUCKET:-} SPOT=${SPOT:-} KEEP=${KEEP:-}
parse "name zone type slices version project bucket spot? keep? retries" "$@"
[[ $ZONE && $TYPE ]] || complain "--zone and --type are needed"
number slices 1 "$SLICES"
number retries 0 "${RETRIES:-0}"
((${#arguments[@]})) || complain "the flags of the training follow after --, for example -- --config=configs/pro_7b.py --workdir=bucket/runs/pro_7b"
if [[ -z $VERSION ]]; then
  case $TYPE in
    v5litepod-*) VERSION=v2-alpha-tpuv5-lite ;;
    v5p-*) VERSION=v2-alpha-tpuv5 ;;
    v6e-*) VERSION=v2-alpha-tpuv6e ;;
    *) VERSION=tpu-ubuntu2204-base ;;
  esac
fi

location=("--zone=$ZONE")
[[ -z $PROJECT ]] || location+=("--project=$PROJECT")
nodes=("$NAME")
if ((SLICES > 1)); then
  nodes=()
  for ((i = 0; i < SLICES; i++)); do nodes+=("$NAME-$i"); done
fi

# on_all COMMAND: runs a shell command on every host of every slice at once; returns the first error (see `outweighs`).
on_all() {
  local node pids=() code=0 ended pid
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${location[@]}" --worker=all --command="$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    ended=0
    wait "$pid" || ended=$?
    outweighs "$code" "$ended" || code=$ended
  done
  return "$code"
}

slice_state() {
  [[ -n ${DRY_RUN:-} ]] || gcloud compute tpus queued-resources describe "$NAME" "${location[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

delete_slices() { run gcloud compute tpus queued-resources delete "$NAME" "${location[@]}" --force --quiet; }

# Requests the slices as one queued resource, unless the request exists, and waits until they are active.
create_slices() {
  local options=(--node-id="$NAME") state
  ((SLICES == 1)) || options=("--node-count=$SLICES" "--node-prefix=$NAME")
  [[ -z $SPOT ]] || options+=(--spot)
  state=$(slice_state)
  if [[ $state == FAILED || $state == SUSPENDED ]]; then
    delete_slices || return
    state=
  fi
  if [[ -z $state ]]; then
    run gcloud compute tpus queued-resources create "$NAME" "${location[@]}" "--accelerator-type=$TYPE" \
      "--runtime-version=$VERSION" "${options[@]}" || return
  fi
  [[ -z ${DRY_RUN:-} ]] || return 0
  until state=$(slice_state) && [[ $state == ACTIVE ]]; do
    [[ $state != FAILED && $state != SUSPENDED ]] || return "$CODE_AGAIN"
    echo "Waiting for $SLICES x $TYPE: $state" >&2
    sleep 30
  done
}

# Installs this folder, Python and its packages on every host, mounts the bucket, and ends a training process that a lost
# connection has left there.
install() {
  local archive=${TMPDIR:-/tmp}/janus_jax_$NAME.tar.gz node mount=true
  run tar --create --gzip --file="$archive" --anchored --exclude=./runs --exclude=./data --exclude=./.git \
    --exclude=./.venv . || return
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:janus_jax.tar.gz" "${location[@]}" --worker=all || return
  done
  [[ -z $BUCKET ]] || mount="mkdir -p bucket && \
(mountpoint -q bucket || gcsfuse --implicit-dirs --rename-dir-limit=200000 '$BUCKET' bucket)"
  on_all "pkill -f '[j]anus_jax.train'; mkdir -p janus_jax && tar --extract --gzip --file=janus_jax.tar.gz --directory=janus_jax \
&& cd janus_jax && python3 -m pip install --quiet --user uv && export PATH=\$HOME/.local/bin:\$PATH && \
uv venv --quiet --allow-existing --python=3.12 .venv && uv pip install --quiet -r requirements.txt 'jax[tpu]' && $mount"
}

# Several slices find each other through the metadata of their queued resource.
train() {
  on_all "cd janus_jax && . launch/xla_flags.sh && .venv/bin/python -m janus_jax.train $(printf '%q ' "${arguments[@]}")\
--distributed=auto"
}

attempt() {
  local code=0
  create_slices && install && train || code=$?
  if ((code == 255)) || [[ $code != [02] && $(slice_state) != ACTIVE ]]; then
    code=$CODE_AGAIN # the ssh connection or the slice was lost
  fi
  return "$code"
}

on_exit() {
  code=$?
  [[ -n $KEEP ]] || delete_slices || true
  exit "$code"
}
trap on_exit EXIT
trap 'STOPPED=1; exit "$CODE_AGAIN"' TERM INT
again attempt
