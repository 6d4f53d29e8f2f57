#!/usr/bin/env bash
# errors.sh NORMA: whatever goes wrong, the program says so in one line and ends with 1.
set -euo pipefail
norma=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# says TEXT ARGUMENTS…
says() {
  local text=$1 status=0
  shift
  "$norma" "$@" >"$folder/out.txt" 2>"$folder/error.txt" || status=$?
  [ "$status" -eq 1 ] && [ "$(wc -l <"$folder/error.txt")" -eq 1 ] &&
    grep -q "^norma: .*$text" "$folder/error.txt" && return
  echo "errors.sh: norma $* must end with 1 and say '$text', but ended with $status: $(cat "$folder/error.txt")" >&2
  exit 1
}

says "the folder must hold a run" sample "$folder"
says "the command must be one of train, .*, but is smaple; did you mean sample?" smaple "$folder"
says "a run goes on with its own settings, but --steps was given" train --resume "$folder" --steps 9
says "count must be from 1 to 1024, but is -1" train --threads -1
says "but has no such block left" train --task copying --n-heads 1 --d-model 10000000000000 \
  --out "$folder/run"
