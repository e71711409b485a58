#!/usr/bin/env bash
# Runs a command on all workers of a Cloud TPU pod slice, and again where it left off (docs/pod.md).
#
# Each worker has a copy of the code in ~/gdsd_jax, this script included, which starts and watches the command there
# (`tpu_pod.sh worker …`, by ssh). What a worker runs is in ~/gdsd_jax/.tpu_pod: command, log, pid, status. Secrets come
# as a file that only the user may read, and that is gone once the command has them in its environment.
set -euo pipefail

fail() {
  echo "tpu_pod.sh: $1" >&2
  exit 1
}

say() {
  echo "tpu_pod.sh: $1" >&2
}

[ "${BASH_VERSINFO[0]}" -ge 5 ] || fail "needs bash 5 or later (macOS: brew install bash)"
cd "$(dirname "$0")/.."

usage() {
  cat << 'END'
usage: launch/tpu_pod.sh run NAME [OPTION...] -- COMMAND [ARGUMENT...]
       launch/tpu_pod.sh create | install | logs | stop | delete NAME [OPTION...]

  run      all below: creates NAME unless it is there, installs, runs COMMAND on every worker, follows the log of
           worker 0, and starts again while COMMAND leaves with status 75 or the slice is preempted. The command
           survives this script: the same `run` follows it again.
  create   asks for the slice NAME (a queued resource) and waits until it is ready
  install  copies the files that git tracks, as they are here, and installs them on every worker
  logs     follows the log of worker 0
  stop     ends the command on every worker; it saves first
  delete   deletes the slice

  --type=TYPE          accelerator type, e.g. v5litepod-16, v5p-16, v6e-16 (needed to create)
  --spot               a Spot slice: cheaper, and may be preempted
  --runtime=VERSION    TPU software version; by default the one for TYPE
  --create-flag=FLAG   one more flag of `gcloud compute tpus queued-resources create`; may be repeated
  --extras=EXTRAS      extras of the package to install (default: tpu), e.g. tpu,hub,math
  --max-restarts=N     starts COMMAND again at most N times (default: 100)
  --secret=NAME        hands the environment variable NAME to COMMAND, e.g. HF_TOKEN, WANDB_API_KEY; may be repeated
  --shared-disk        --workdir is on a disk that every worker mounts, such as Filestore
  --delete             deletes the slice when COMMAND is done or has failed
  --zone=ZONE, --project=PROJECT   by default those of `gcloud config`
  --dry-run            prints the gcloud commands instead
END
}

quote() { # the arguments as words of a POSIX shell
  local argument space=
  for argument in "$@"; do
    [[ $argument =~ ^[A-Za-z0-9_./:=,+@%-]+$ ]] || argument="'${argument//\'/\'\\\'\'}'"
    printf '%s%s' "$space" "$argument"
    space=' '
  done
}

# ------------------------------------------------------------------------------------ on a worker, in ~/gdsd_jax

worker_install() { # EXTRAS
  PATH=$HOME/.local/bin:$PATH
  # The images come with Python 3.10; uv brings a later one.
  command -v uv > /dev/null || python3 -m pip install --quiet --user uv
  [ -x .venv/bin/python ] || uv venv --quiet --python '>=3.11' .venv
  uv pip install --quiet --python .venv/bin/python -e ".[$1]"
}

worker_start() { # COMMAND [ARGUMENT...]
  [ "$(worker_state)" != running ] || return 0 # gcloud sends a command again when its connection breaks
  mkdir -p .tpu_pod
  quote "$@" > .tpu_pod/command
  rm -f .tpu_pod/status
  touch .tpu_pod/log
  echo $(($(wc -l < .tpu_pod/log) + 1)) > .tpu_pod/first_line
  if [ -e .tpu_pod/secrets ]; then
    # shellcheck disable=SC1091
    . .tpu_pod/secrets
    rm .tpu_pod/secrets
  fi
  # The shell outlives SIGTERM, to write down the status of a command that saves first.
  # shellcheck disable=SC2016
  PATH=$PWD/.venv/bin:$PATH setsid nohup bash -c \
    'trap : TERM; "$@"; echo $? > .tpu_pod/status.new; mv .tpu_pod/status.new .tpu_pod/status' \
    gdsd_jax_tpu_pod "$@" < /dev/null >> .tpu_pod/log 2>&1 &
  echo $! > .tpu_pod/pid
}

worker_state() { # prints running, idle, or the status of the command that ended
  local pid
  pid=$(cat .tpu_pod/pid 2> /dev/null) || { echo idle && return; }
  if grep -qs gdsd_jax_tpu_pod "/proc/$pid/cmdline"; then
    echo running
  else
    cat .tpu_pod/status 2> /dev/null || echo 137 # killed with its shell, or the worker was started anew
  fi
}

worker_report() { # COMMAND [ARGUMENT...]
  local state
  state=$(worker_state)
  [ "$state" != running ] || [ "$(cat .tpu_pod/command)" = "$(quote "$@")" ] || state=busy
  echo "worker $state"
}

worker_log() { # LINES: "new" for all of this start, else a number of the last lines
  local lines=$1
  [ "$lines" != new ] || lines=+$(cat .tpu_pod/first_line)
  tail -n "$lines" --pid="$(cat .tpu_pod/pid)" -f .tpu_pod/log
}

worker_end() { # PATIENCE: seconds before SIGTERM; then the command may save for five minutes before SIGKILL
  local patience=$1 signal
  for signal in TERM KILL; do
    while [ "$(worker_state)" = running ] && [ "$patience" -gt 0 ]; do
      sleep 1
      patience=$((patience - 1))
    done
    [ "$(worker_state)" = running ] || break
    kill -s "$signal" -- "-$(cat .tpu_pod/pid)"
    patience=300
  done
  while [ "$(worker_state)" = running ]; do sleep 1; done
  echo "worker $(worker_state)"
}

# ------------------------------------------------------------------------------------------------------- from here

run_or_print() {
  if [ -n "$dry_run" ]; then
    printf '%s\n' "$(quote "$@")" >&3
  else
    "$@"
  fi
}

tpus() { # gcloud compute tpus …
  run_or_print gcloud compute tpus "$@" "${location[@]}"
}

on() { # WORKER FUNCTION [ARGUMENT...]: calls worker_FUNCTION there
  ssh_to "$1" "bash gdsd_jax/launch/tpu_pod.sh worker $(quote "${@:2}")"
}

ssh_to() { # WORKER COMMAND; a worker that is gone ends the connection within two minutes
  tpus tpu-vm ssh "$name" --worker="$1" --ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=30 \
    --ssh-flag=-oServerAliveCountMax=4 --command="$2"
}

vm_state() { # READY, CREATING, PREEMPTED, …; nothing when there is none
  if [ -n "$dry_run" ]; then
    echo "$dry_run_vm"
  else
    tpus tpu-vm list --filter="name~/nodes/$name\$" --format="value(state)"
  fi
}

request_state() { # ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, …; nothing when there is none
  [ -n "$dry_run" ] || tpus queued-resources list --filter="name~/queuedResources/$name\$" --format="value(state.state)"
}

delete_vm() {
  if [ -n "$(request_state)" ] || [ -n "$dry_run" ]; then
    tpus queued-resources delete "$name" --force --quiet
  else
    tpus tpu-vm delete "$name" --quiet # made without a queued resource
  fi
}

request_vm() {
  [ -n "$type" ] || fail "there is no TPU $name: --type says what to create, e.g. --type=v5litepod-16"
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="${runtime:-$(default_runtime)}" "${create_flags[@]}"
  installed=''
}

default_runtime() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

ensure_vm() {
  local vm request requested='' told=''
  while :; do
    vm=$(vm_state)
    request=$(request_state)
    case $vm/$request in
      */SUSPENDING | */DELETING) ;; # preempted, on its way out
      READY/SUSPENDED | PREEMPTED/* | TERMINATED/* | STOPPED/* | */SUSPENDED | /ACTIVE)
        say "$name was preempted or stopped; it is created anew"
        delete_vm
        ;;
      READY/*) return ;;
      */FAILED)
        [ -z "$requested" ] || fail "the request failed: gcloud compute tpus queued-resources describe $name says why"
        delete_vm
        ;;
      /)
        request_vm
        requested=yes dry_run_vm=READY
        ;;
    esac
    [ "$told" = "$vm/$request" ] || say "$name: VM ${vm:-none}, request ${request:-none}"
    told=$vm/$request
    [ -n "$dry_run" ] || sleep "$poll"
  done
}

install_code() {
  local archive=gdsd_jax.tar.gz
  if [ -z "$dry_run" ]; then
    archive=$temporary/$archive
  fi
  if [ -z "$dry_run" ] && [ ! -e "$archive" ]; then # packed once: edits made meanwhile must not come with a restart
    # Tracked files with their uncommitted changes, less those that were deleted.
    git ls-files -z | while IFS= read -r -d '' file; do
      if [ -e "$file" ]; then printf '%s\0' "$file"; fi
    done | tar -czf "$archive" --null -T - || fail "install: the code must be a git checkout"
  fi
  tpus tpu-vm scp "$archive" "$name:gdsd_jax.tar.gz" --worker=all \
    && ssh_to all "mkdir -p gdsd_jax && tar -xzf gdsd_jax.tar.gz -C gdsd_jax" \
    && on all install "$extras" \
    && installed=yes
}

# By file, not as arguments, which `ps` shows here and there. The folder is the user's alone before the file is there.
send_secrets() {
  local file=secrets variable
  [ ${#secrets[@]} -gt 0 ] || return 0
  if [ -z "$dry_run" ]; then
    file=$temporary/secrets
    (
      umask 077
      for variable in "${secrets[@]}"; do printf 'export %s=%q\n' "$variable" "${!variable}"; done > "$file"
    )
  fi
  ssh_to all "mkdir -p gdsd_jax/.tpu_pod && chmod 700 gdsd_jax/.tpu_pod" \
    && tpus tpu-vm scp "$file" "$name:gdsd_jax/.tpu_pod/secrets" --worker=all
}

launch() { # starts the command on all workers, unless it runs there already
  local reports
  reports=$(ssh_to all "test ! -e gdsd_jax/.tpu_pod || bash gdsd_jax/launch/tpu_pod.sh worker report $(quote "$@")") \
    || return 1
  case $reports in
    *busy*) fail "another command runs on $name: launch/tpu_pod.sh stop $name" ;;
    *running*) say "the command runs already on $name; following it" ;;
    *) { [ -n "$installed" ] || install_code; } && send_secrets && on all start "$@" ;;
  esac
}

follow() { # the log of worker 0, until its command has ended or its VM is gone
  local lines=new report vm
  while :; do
    on 0 log "$lines" || true
    if report=$(on 0 report "$@"); then
      [[ $report = *running* ]] || return 0
    else
      vm=$(vm_state) || vm=unknown # no network here, perhaps
      [ "$vm" = READY ] || [ "$vm" = unknown ] || return 0
    fi
    say "the connection to worker 0 broke; connecting again"
    lines=10
    sleep "$poll"
  done
}

# What to do after the workers' commands ended with the given statuses: 75 and death by a signal start again, anything
# else but 0 on any worker is an error that would come again.
verdict() { # STATUS...
  local status result=0
  for status in "$@"; do
    case $status in
      0) ;;
      75 | idle) result=again ;; # idle: a new VM took the old one's place
      *)
        [ "$status" -ge 128 ] || { echo "$status" && return; }
        result=again
        ;;
    esac
  done
  echo $result
}

run() { # COMMAND [ARGUMENT...]; leaves the status in $result
  local restarts=0 reports why statuses
  while :; do
    ensure_vm
    reports='' why='the slice was preempted'
    if launch "$@"; then
      follow "$@"
      # The others leave by themselves within a minute; a save may take longer.
      reports=$(on all end 300) || reports=''
    elif [ "$(vm_state)" = READY ]; then
      fail "the workers could not be set up"
    fi
    [ -z "$dry_run" ] || return 0
    read -ra statuses <<< "$(sed -n 's/^worker //p' <<< "$reports" | tr '\n' ' ')"
    if [ ${#statuses[@]} -gt 0 ]; then
      result=$(verdict "${statuses[@]}")
      [ "$result" = again ] || return 0
      why="the workers left with status ${statuses[*]}"
    fi
    restarts=$((restarts + 1))
    [ $restarts -le "$max_restarts" ] || fail "$why; not started again after $max_restarts restarts (--max-restarts)"
    say "$why; starting again ($restarts of at most $max_restarts times)"
    sleep "$poll"
  done
}

# Refuses a run's folder that the other workers do not see and that is gone with its VM, and secrets that all could read.
check_command() { # COMMAND [ARGUMENT...]
  local word before='' folder workdirs=0 trains='' secret
  secret=$(secret_in "$@" "${create_flags[@]}")
  [ -z "$secret" ] \
    || fail "run: $secret=…: process lists show it: export a secret by its name, HF_TOKEN say, and give --secret=HF_TOKEN"
  for word in "$@"; do
    [[ ! $word =~ (^|/)(launch/(pre)?train\.py|gdsd-(pre)?train)$ ]] || trains=yes
    folder=''
    [[ ! $word =~ ^--?workdir=(.*)$ ]] || folder=${BASH_REMATCH[1]:-.}
    [[ ! $before =~ ^--?workdir$ ]] || folder=$word
    before=$word
    [ -n "$folder" ] || continue
    workdirs=$((workdirs + 1))
    [[ $folder = gs://* ]] || [ -n "$shared_disk" ] \
      || fail "run: --workdir=$folder: each worker has a disk of its own: gs://BUCKET/DIR (or --shared-disk, if all mount it)"
  done
  [ -z "$trains" ] || [ $workdirs -gt 0 ] || [ -n "$shared_disk" ] \
    || fail "run: the command needs --workdir=gs://BUCKET/DIR: each worker has a disk of its own"
}

# --------------------------------------------------------------------------------------------------- command line

if [ "${1:-}" = worker ]; then
  "worker_$2" "${@:3}"
  exit
fi

# shellcheck source=launch/secrets.sh
. launch/secrets.sh

exec 3>&1 # where --dry-run prints, whoever reads the standard output of a function
poll=${TPU_POD_POLL_SECONDS:-15}
type='' runtime='' extras=tpu max_restarts=100 delete='' dry_run='' dry_run_vm='' installed='' result=0
location=() create_flags=() command=() secrets=() shared_disk=''

action=${1:-}
case $action in
  create | install | run | logs | stop | delete) ;;
  -h | --help | help) usage && exit ;;
  *) usage >&2 && exit 1 ;;
esac
name=${2:-}
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "$action: NAME must be lowercase letters, digits and -, not '$name'"
shift 2

while [ $# -gt 0 ]; do
  case $1 in
    --type=?*) type=${1#*=} ;;
    --spot) create_flags+=(--spot) ;;
    --runtime=?*) runtime=${1#*=} ;;
    --create-flag=?*) create_flags+=("${1#*=}") ;;
    --extras=?*) extras=${1#*=} ;;
    --max-restarts=?*) max_restarts=${1#*=} ;;
    --secret=?*) secrets+=("${1#*=}") ;;
    --shared-disk) shared_disk=yes ;;
    --delete) delete=yes ;;
    --zone=?* | --project=?*) location+=("$1") ;;
    --dry-run) dry_run=yes ;;
    --) shift && command=("$@") && break ;;
    *) fail "$1 is no option of $action; options are --NAME=VALUE, and the command comes after --" ;;
  esac
  shift
done
[[ $max_restarts =~ ^[0-9]+$ ]] || fail "--max-restarts: must be a whole number, not '$max_restarts'"
for secret in "${secrets[@]}"; do
  [[ $secret =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] \
    || fail "--secret: the name of an environment variable, not its value: export it, and give --secret=HF_TOKEN"
  [ -n "${!secret:-}" ] || fail "--secret=$secret: the environment has no $secret: export it"
done
if [ "$action" = run ]; then
  check_command "${command[@]}"
  [ ${#command[@]} -gt 0 ] || fail "run: no command: write it after --, e.g. -- python launch/train.py --config=…"
else
  [ ${#command[@]} = 0 ] || fail "$action: takes no command"
fi
if [ -z "$dry_run" ]; then
  command -v gcloud > /dev/null || fail "gcloud is not on PATH: https://cloud.google.com/sdk/docs/install"
  temporary=$(mktemp -d)
  trap 'rm -r "$temporary"' EXIT
fi

case $action in
  create) ensure_vm ;;
  install) install_code ;;
  logs) on 0 log new ;;
  stop) on all end 0 ;;
  delete) delete_vm ;;
  run)
    trap 'say "the command goes on on $name: the same run follows it again, stop ends it"; exit 130' INT
    run "${command[@]}"
    [ -z "$delete" ] || delete_vm
    [ "$result" = 0 ] || fail "the command failed with status $result"
    ;;
esac
