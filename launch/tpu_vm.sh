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
parse "name zone type slices version project bucket spot? keep? retries" "$@"
[[ $ZONE && $TYPE ]] || complain "--zone and --type are needed"
number slices 1 "$SLICES"
number retries 0 "${RETRIES:-0}"
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

# on_all COMMAND: runs a shell command on every host of every slice at once; an error of a host's own outweighs the others'.
on_all() {
  local node pids=() code=0 ended pid
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command="$1" &
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
  [[ -n ${DRY_RUN:-} ]] || gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

delete_slices() { run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet; }

# Asks for the slices as one queued resource, unless they were asked for before, and waits until they are there.
make_slices() {
  local more=(--node-id="$NAME") state
  ((SLICES == 1)) || more=("--node-count=$SLICES" "--node-prefix=$NAME")
  [[ -z $SPOT ]] || more+=(--spot)
  state=$(slice_state)
  if [[ $state == FAILED || $state == SUSPENDED ]]; then
    delete_slices || return
    state=
  fi
  if [[ -z $state ]]; then
    run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" "--accelerator-type=$TYPE" \
      "--runtime-version=$VERSION" "${more[@]}" || return
  fi
  [[ -z ${DRY_RUN:-} ]] || return 0
  until state=$(slice_state) && [[ $state == ACTIVE ]]; do
    [[ $state != FAILED && $state != SUSPENDED ]] || return "$CODE_AGAIN"
    echo "Waiting for $SLICES x $TYPE: $state" >&2
    sleep 30
  done
}

# This folder, Python and its packages on every host, and the bucket; a trainer that a cut connection left there is ended.
install() {
  local archive=${TMPDIR:-/tmp}/janus_jax_$NAME.tar.gz node mount=true
  run tar --create --gzip --file="$archive" --anchored --exclude=./runs --exclude=./data --exclude=./.git \
    --exclude=./.venv . || return
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:janus_jax.tar.gz" "${where[@]}" --worker=all || return
  done
  [[ -z $BUCKET ]] || mount="mkdir -p bucket && \
(mountpoint -q bucket || gcsfuse --implicit-dirs --rename-dir-limit=200000 '$BUCKET' bucket)"
  on_all "pkill -f '[j]anus_jax.train'; mkdir -p janus_jax && tar --extract --gzip --file=janus_jax.tar.gz --directory=janus_jax \
&& cd janus_jax && python3 -m pip install --quiet --user uv && export PATH=\$HOME/.local/bin:\$PATH && \
uv venv --quiet --allow-existing --python=3.12 .venv && uv pip install --quiet -r requirements.txt 'jax[tpu]' && $mount"
}

# Several slices find each other through what their queued resource tells their hosts.
train() {
  on_all "cd janus_jax && . launch/xla_flags.sh && .venv/bin/python -m janus_jax.train $(printf '%q ' "${arguments[@]}")\
--distributed=auto"
}

attempt() {
  local code=0
  make_slices && install && train || code=$?
  if ((code == 255)) || [[ $code != [02] && $(slice_state) != ACTIVE ]]; then
    code=$CODE_AGAIN # ssh was cut, or the slice is gone
  fi
  return "$code"
}

leave() {
  code=$?
  [[ -n $KEEP ]] || delete_slices || true
  exit "$code"
}
trap leave EXIT
trap 'STOPPED=1; exit "$CODE_AGAIN"' TERM INT
again attempt
