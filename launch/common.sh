# shellcheck shell=bash
# What all launchers share: a way to say what they do, and to do it again after a preemption.

CODE_AGAIN=75 # of a run that saved its state and asks to be started again

# show COMMAND...: prints it.
show() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
}

# run COMMAND...: shows it, and runs it unless --dry-run was given.
run() {
  show "$@"
  [[ -n ${DRY_RUN:-} ]] || "$@"
}

# again COMMAND...: runs it until it is done. A run that was preempted (code 75) or killed (128 and more) is started again,
# at most RETRIES times; any other code is an error that would come back. STOPPED says that the preemption was meant.
again() {
  local code left=${RETRIES:-20}
  while true; do
    code=0
    "$@" || code=$?
    ((code == CODE_AGAIN || code >= 128)) && [[ -z ${STOPPED:-} ]] || return "$code"
    ((left-- > 0)) || { echo "Given up: ended with code $code too often." >&2; return "$code"; }
    echo "Ended with code $code; started again in ${RETRY_SECONDS:-10} s, $left more times at most." >&2
    sleep "${RETRY_SECONDS:-10}"
    [[ -z ${STOPPED:-} ]] || return "$code" # meanwhile
  done
}

# passing_signals COMMAND...: runs it to its end, and tells it what this shell is told; bash alone would end at once.
passing_signals() {
  local code=0 child=
  show "$@"
  [[ -z ${DRY_RUN:-} ]] || return 0
  trap 'STOPPED=1; [[ -z ${child:-} ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
  "$@" &
  child=$!
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the command
    code=0
    wait "$child" || code=$?
  done
  return "$code"
}

# outweighs CODE OTHER: whether the code of one process counts, not another's: an error of its own does, and what comes first;
# not what the others' end made of it.
outweighs() { (($1 && ($2 == 0 || $2 == CODE_AGAIN || $2 >= 128))); }

# usage: prints the comment at the head of the script.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# complain MESSAGE: a user's mistake.
complain() {
  echo "Error: $* (--help shows how.)" >&2
  exit 2
}

# number NAME SMALLEST VALUE: a flag that is a whole number.
number() {
  if [[ ! $3 =~ ^(0|[1-9][0-9]*)$ ]] || (($3 < $2)); then complain "--$1=$3 is no whole number, at least $2"; fi
}

# parse "NAMES" WORDS...: puts --name=value into the variable NAME, and what stands behind -- into `arguments`; `name?` is a
# switch, which has no value.
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
        # shellcheck disable=SC2034 # read by the scripts that source this
        arguments=("$@")
        break
        ;;
    esac
    name=${word%%=*} name=${name#--}
    if [[ $word == --* && $known == *" $name? "* ]]; then
      [[ $word != *=* ]] || complain "--$name is a switch and takes no value"
      word='=1'
    elif [[ $word != --* || $known != *" $name "* ]]; then
      complain "unknown flag $word"
    elif [[ $word != *=* ]]; then
      complain "--$name wants a value, as --$name=..."
    fi
    printf -v "${name^^}" %s "${word#*=}"
  done
}
