#!/usr/bin/env bash
# Sourced by tpu_pod.sh and slurm.sh: finds secrets in a command, where process lists and logs would show them.

# NAME=VALUE in a word or a script in it, a flag, and the token of the hub by itself. What begins with $ is looked up
# where the command runs, credentials that begin with / are the path of their file.
_assigned="(^|[^a-z0-9_.-])([a-z_][a-z0-9_]*)((token|key|secret|password)=[\"']?[^\$\"' ]|credentials?=[\"']?[^\$\"' /])"
_flag='^(--?([a-z][a-z0-9_-]*[_-])?(token|api[_-]?key|secret|password))'
_token='(^|[^a-z0-9])hf_[a-z0-9]{30,}'

secret_in() { # WORD...: prints the name of a secret whose value is among the words, nothing if there is none
  local word before='' found=''
  shopt -s nocasematch
  for word in "$@"; do
    if [[ $word =~ $_token ]]; then
      found=hf_
    elif [[ $word != --config* && $word =~ $_assigned ]]; then
      found=${BASH_REMATCH[2]}${BASH_REMATCH[3]%%=*}
    elif [[ $word =~ $_flag=[^\$] || $before =~ $_flag$ && $word != [-\$]* ]]; then
      found=${BASH_REMATCH[1]}
    fi
    [ -z "$found" ] || break
    before=$word
  done
  shopt -u nocasematch
  printf '%s' "$found"
}
