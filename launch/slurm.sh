#!/usr/bin/env bash
# Submits a command to Slurm by launch/slurm.sbatch (docs/slurm.md).
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat << 'END'
usage: launch/slurm.sh [--dry-run] [SBATCH OPTION...] -- COMMAND [ARGUMENT...]

  launch/slurm.sh --nodes=2 --gpus-per-node=8 -- python launch/train.py --config=CONFIG --workdir=DIR

COMMAND runs once on each node, from the root of the repository, and starts again where it left off after preemption,
the time limit or a node's death. --dry-run prints the sbatch command instead.
END
}

fail() {
  echo "slurm.sh: $1" >&2
  exit 1
}

dry_run=
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=yes ;;
    *) options+=("$1") ;;
  esac
  shift
done
[ $# -ge 2 ] || fail "no command: write it after --, e.g. -- python launch/train.py --config=configs/gdsd_math.py"
shift

submit=(sbatch "${options[@]}" launch/slurm.sbatch "$@")
if [ -n "$dry_run" ]; then
  echo "${submit[*]@Q}"
else
  command -v sbatch > /dev/null || fail "sbatch is not on PATH: run this on a login node of the cluster"
  exec "${submit[@]}"
fi
