#!/usr/bin/env bash
# Trains a recipe stage after stage with any launcher, so that each stage may have settings and machines of its own.
#
#   launch/three_stages.sh --config=configs/pro_1b.py --workdir=runs/pro_1b -- launch/local.sh --processes=2 --
#   launch/three_stages.sh --config=configs/pro_7b.py --workdir=runs/pro_7b -- python -m janus_jax.train
#
#   --config=FILE        the recipe
#   --workdir=DIR        one folder for all stages; each starts from the stage before it
#   --stages="1 2 3"     which ones, in order; a recipe that trains its tokenizer begins with tokenizer
#   --stage_N="FLAGS"    more flags of one stage, --stage_3="--config.mesh.tensor=2" say
#   --dry-run            only shows the commands
#
# What stands behind -- starts a training and takes its flags at the end. Done stages are passed over, so the same command
# goes on where it stopped; a stage that was preempted (code 75) or killed is started again, RETRIES times (20).

set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

CONFIG=${CONFIG:-} WORKDIR=${WORKDIR:-} STAGES=${STAGES:-1 2 3}
parse "config workdir stages stage_1 stage_2 stage_3 stage_tokenizer retries" "$@"
[[ $CONFIG && $WORKDIR ]] || complain "--config and --workdir are needed"
[[ $STAGES == *[![:space:]]* ]] || complain "--stages names none"
number retries 0 "${RETRIES:-0}"
((${#arguments[@]})) || complain "what starts a training stands behind --, for example -- python -m janus_jax.train"
[[ ${arguments[0]} == launch/* ]] || . launch/xla_flags.sh # a launcher of this folder does so itself

for stage in $STAGES; do
  [[ -z ${STOPPED:-} ]] || exit "$CODE_AGAIN"
  more=STAGE_${stage^^}
  read -ra flags <<<"${!more:-}"
  again passing_signals "${arguments[@]}" "--config=$CONFIG:$stage" "--workdir=$WORKDIR" ${flags[@]+"${flags[@]}"}
done
