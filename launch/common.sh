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

# parse "NAMES" WORDS...: puts --name=value into the variable NAME, and what stands behind -- into `arguments`.
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
    [[ $word == --* && $known == *" $name "* ]] || complain "unknown flag $word"
    [[ $word == *=* ]] || word=1 # a switch
    printf -v "${name^^}" %s "${word#*=}"
  done
}
