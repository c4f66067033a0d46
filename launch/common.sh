# shellcheck shell=bash
# Functions of all launchers: flags, messages, and restarts after a preemption.

CODE_AGAIN=75 # exit code of a run that has saved its state and can be started again

# show COMMAND...: prints a command.
show() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
}

# run COMMAND...: prints a command, and runs it except with --dry-run.
run() {
  show "$@"
  [[ -n ${DRY_RUN:-} ]] || "$@"
}

# again COMMAND...: runs a command until it succeeds. After a preemption (code 75) or a kill (128 and above) it starts
# again, at most RETRIES times; any other code is an error that would recur. STOPPED is set when the user stopped the run.
again() {
  local code left=${RETRIES:-20}
  while true; do
    code=0
    "$@" || code=$?
    ((code == CODE_AGAIN || code >= 128)) && [[ -z ${STOPPED:-} ]] || return "$code"
    ((left-- > 0)) || { echo "Error: the run ended with code $code again; no retries are left." >&2; return "$code"; }
    echo "The run ended with code $code; it starts again in ${RETRY_SECONDS:-10} s ($left retries left)." >&2
    sleep "${RETRY_SECONDS:-10}"
    [[ -z ${STOPPED:-} ]] || return "$code" # the user stopped the run during the pause
  done
}

# passing_signals COMMAND...: runs a command and forwards SIGTERM and SIGINT to it; plain bash would exit at once.
passing_signals() {
  local code=0 child=
  show "$@"
  [[ -z ${DRY_RUN:-} ]] || return 0
  trap 'STOPPED=1; [[ -z ${child:-} ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
  "$@" &
  child=$!
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal interrupted `wait`; the command still runs
    code=0
    wait "$child" || code=$?
  done
  return "$code"
}

# outweighs CODE OTHER: whether the exit code CODE takes precedence over OTHER. The first error does; codes of processes
# that ended because another one failed (75, 128 and above) do not replace it.
outweighs() { (($1 && ($2 == 0 || $2 == CODE_AGAIN || $2 >= 128))); }

# usage: prints the comment at the top of the script.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# complain MESSAGE: reports a mistake in the command line and exits.
complain() {
  echo "Error: $*; see --help." >&2
  exit 2
}

# number NAME MINIMUM VALUE: checks a flag that is an integer.
number() {
  if [[ ! $3 =~ ^(0|[1-9][0-9]*)$ ]] || (($3 < $2)); then complain "--$1=$3 must be an integer of at least $2"; fi
}

# parse "NAMES" WORDS...: assigns --name=value to the variable NAME, and everything after -- to `arguments`. `name?` is a
# switch without a value.
parse() {
  local known=" $1 " word name
  shift
  arguments=()
  while (($#)); do
    word=$1
    shift
    case $word in
      --help | -h) usage; exit 0 ;;
      --dry-run) DRY_RUN=1; continue ;;
      --)
        # shellcheck disable=SC2034 # used by the scripts that source this file
        arguments=("$@")
        break
        ;;
    esac
    name=${word%%=*} name=${name#--}
    if [[ $word == --* && $known == *" $name? "* ]]; then
      [[ $word != *=* ]] || complain "--$name takes no value"
      word='=1'
    elif [[ $word != --* || $known != *" $name "* ]]; then
      complain "unknown flag $word"
    elif [[ $word != *=* ]]; then
      complain "--$name needs a value: --$name=..."
    fi
    printf -v "${name^^}" %s "${word#*=}"
  done
}
