#!/usr/bin/env bash
# best.sh NORMA: the step with the best validation has a checkpoint, also between the regular ones.
set -euo pipefail
norma=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# A rate at which the loss soon grows, on some processors to NaN: the best step is not the last.
"$norma" train --task copying --n-layers 1 --n-heads 1 --d-model 16 --batch 4 --steps 45 --lr 30 \
  --min-lr 0 --schedule constant --warmup 5 --eval-every 10 --checkpoint-every 100 \
  --out "$folder/run" >"$folder/out.txt"
best=$(awk -F, 'NR > 1 && $3 ~ /^[0-9]/ && (!step || $3 < loss) { loss = $3; step = $1 } END { print step }' \
  "$folder/run/metrics.csv")
fail() {
  echo "best.sh: $*; metrics: $(cut -d, -f1,3 "$folder/run/metrics.csv" | grep -v ',$' | tr '\n' ' ')" >&2
  exit 1
}
[ "$best" -lt 45 ] || fail "the best step must not be the last"
[ -f "$folder/run/$(printf 'step-%06d.safetensors' "$best")" ] ||
  fail "step $best, the best, must have a checkpoint, but there are: $(cd "$folder/run" && ls)"
echo "the best step was $best"
