#!/usr/bin/env bash
# Submits a command to Slurm by launch/slurm.sbatch (docs/slurm.md).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/secrets.sh
. launch/secrets.sh

usage() {
  cat << 'END'
usage: launch/slurm.sh [--dry-run] [--shared-disk] [SBATCH OPTION...] -- COMMAND [ARGUMENT...]

  launch/slurm.sh --nodes=2 --gpus-per-node=8 -- python launch/train.py --config=CONFIG --workdir=DIR

COMMAND runs once on each node, from the root of the repository, and starts again where it left off after preemption,
the time limit or a node's death. It has the environment that this is called in, HF_TOKEN and the like included.
--dry-run prints the sbatch command instead. --shared-disk says that every node sees --workdir, where it looks local.
END
}

fail() {
  echo "slurm.sh: $1" >&2
  exit 1
}

# Refuses a run's folder that only one node sees, and secrets that process lists would show.
check() { # what sbatch gets
  local word before='' folder secret
  secret=$(secret_in "$@")
  [ -z "$secret" ] \
    || fail "$secret=…: process lists show it: export secrets by their names before; the job gets the environment"
  for word in "$@"; do
    folder=''
    [[ ! $word =~ ^--?workdir=(.*)$ ]] || folder=${BASH_REMATCH[1]}
    [[ ! $before =~ ^--?workdir$ ]] || folder=$word
    before=$word
    [ -z "$folder" ] || [ -n "$shared_disk" ] || ! on_a_nodes_own "$folder" \
      || fail "--workdir=$folder: only one node sees it: a folder of the shared file system, or gs:// (or --shared-disk)"
  done
}

on_a_nodes_own() { # FOLDER: whether it is where every machine has something else; the checkout is seen by all nodes
  [[ $1 = /* ]] || return 1
  case $(realpath -m -- "$1")/ in
    /tmp/* | /var/tmp/* | /dev/shm/* | /run/* | "$(realpath -m -- "${TMPDIR:-/tmp}")"/*) return 0 ;;
    *) return 1 ;;
  esac
}

dry_run='' shared_disk=''
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=yes ;;
    --shared-disk) shared_disk=yes ;;
    *) options+=("$1") ;;
  esac
  shift
done
[ $# -ge 2 ] || fail "no command: write it after --, e.g. -- python launch/train.py --config=configs/gdsd_math.py"
shift
check "${options[@]}" "$@"

submit=(sbatch "${options[@]}" launch/slurm.sbatch "$@")
if [ -n "$dry_run" ]; then
  echo "${submit[*]@Q}"
else
  command -v sbatch > /dev/null || fail "sbatch is not on PATH: run this on a login node of the cluster"
  exec "${submit[@]}"
fi
