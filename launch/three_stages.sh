#!/usr/bin/env bash
# Trains a recipe stage after stage with any launcher; each stage may have its own settings and machines.
#
#   launch/three_stages.sh --config=configs/pro_1b.py --workdir=runs/pro_1b -- launch/local.sh --processes=2 --
#   launch/three_stages.sh --config=configs/pro_7b.py --workdir=runs/pro_7b -- python -m janus_jax.train
#
#   --config=FILE        the recipe
#   --workdir=DIR        one folder for all stages; each starts from the stage before it
#   --stages="1 2 3"     stages in order; a recipe that trains its tokenizer starts with `tokenizer`
#   --stage_N="FLAGS"    additional flags of one stage, such as --stage_3="--config.mesh.tensor=2"
#   --retries=N          restarts of a stage after preemptions and kills (default: 20)
#   --dry-run            prints the commands only
#
# Everything after -- is the command that starts a training; flags are appended to it. Finished stages are skipped, so the
# same command resumes an interrupted recipe.

set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

CONFIG=${CONFIG:-} WORKDIR=${WORKDIR:-} STAGES=${STAGES:-1 2 3}
parse "config workdir stages stage_1 stage_2 stage_3 stage_tokenizer retries" "$@"
[[ $CONFIG && $WORKDIR ]] || complain "--config and --workdir are needed"
[[ $STAGES == *[![:space:]]* ]] || complain "--stages is empty"
number retries 0 "${RETRIES:-0}"
((${#arguments[@]})) || complain "the command that starts a training follows after --, for example -- python -m janus_jax.train"
[[ ${arguments[0]} == launch/* ]] || . launch/xla_flags.sh # launchers of this folder set the flags themselves

for stage in $STAGES; do
  [[ -z ${STOPPED:-} ]] || exit "$CODE_AGAIN"
  stage_flags=STAGE_${stage^^}
  read -ra flags <<<"${!stage_flags:-}"
  again passing_signals "${arguments[@]}" "--config=$CONFIG:$stage" "--workdir=$WORKDIR" ${flags[@]+"${flags[@]}"}
done
