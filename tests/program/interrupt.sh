#!/usr/bin/env bash
# interrupt.sh NORMA: Ctrl-C against a real run with dropout. The first one finishes the step, saves
# and says how to go on; what goes on, on another number of threads, equals the uninterrupted run
# byte for byte but for its speed. The second one leaves at once.
set -euo pipefail
norma=$1
folder=$(mktemp -d)
child=
cleanup() {
  [ -z "$child" ] || kill -KILL "$child" 2>/dev/null || true
  rm -rf "$folder"
}
trap cleanup EXIT
fail() {
  echo "interrupt.sh: $*" >&2
  exit 1
}
# within SECONDS COMMAND…: until it holds
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || fail "waited too long for: $*"
    sleep 0.02
  done
}
gone() { ! kill -0 "$child" 2>/dev/null; }
curve() { cut -d, -f1-5 "$1/metrics.csv"; } # all but tokens a second

run=(--task copying --n-layers 2 --n-heads 2 --d-model 64 --dropout 0.2 --batch 16 --steps 300
  --warmup 10 --eval-every 100 --checkpoint-every 20)

"$norma" train "${run[@]}" --threads 1 --out "$folder/whole" >"$folder/whole.txt"
[ "$(curve "$folder/whole" | wc -l)" -eq 301 ] || fail "the whole run must have 300 lines"

# Its first checkpoint is there: it is under way.
"$norma" train "${run[@]}" --threads 1 --out "$folder/part" >"$folder/part.txt" 2>&1 &
child=$!
within 120 test -s "$folder/part/metrics.csv"
sleep 0.05 # on, to a step without a checkpoint
kill -INT "$child"
within 60 gone
wait "$child" || fail "an interrupted run must end with 0, but ended with $?"
child=
step=$(sed -n 's/^stopped after step \([0-9]*\); go on with: norma train --resume .*/\1/p' "$folder/part.txt")
[ -n "$step" ] || fail "an interrupted run must say how to go on, but said: $(tail -n 3 "$folder/part.txt")"
[ "$step" -lt 300 ] || fail "the run must be interrupted before its end"
[ "$(curve "$folder/part" | wc -l)" -eq $((step + 1)) ] || fail "metrics.csv must end at step $step"
[ -f "$folder/part/$(printf 'step-%06d.safetensors' "$step")" ] || fail "step $step must be saved"

"$norma" train --resume "$folder/part" --threads 3 >"$folder/resumed.txt"
grep -q "^going on after step $step$" "$folder/resumed.txt" || fail "it must go on after step $step"
cmp <(curve "$folder/whole") <(curve "$folder/part") || fail "the two curves must be the same bytes"

# A step of a minute: the first signal waits for its end, here a scheduler's; the second does not.
"$norma" train --task copying --n-layers 4 --d-model 512 --batch 16384 --accumulate 2048 --steps 2 \
  --out "$folder/long" >"$folder/long.txt" 2>&1 &
child=$!
within 120 grep -qs "^run " "$folder/long.txt"
sleep 0.5
kill -TERM "$child"
sleep 0.5
gone && fail "SIGTERM must finish the step"
begin=$SECONDS
kill -INT "$child"
within 10 gone
status=0
wait "$child" || status=$?
child=
[ "$status" -eq 130 ] || fail "the second Ctrl-C must leave with 130, but left with $status"
[ -z "$(ls "$folder/long" | grep safetensors)" ] || fail "nothing may be saved in the middle of a step"
echo "interrupted after step $step, gone on to the same bytes; the second Ctrl-C left within $((SECONDS - begin)) s"
