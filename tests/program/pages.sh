#!/usr/bin/env bash
# pages.sh PREFIX: every C++ program in the README and in docs/ compiles against the library
# installed there and runs; where a page shows the output, it is that, letter for letter.
# UPDATE=1 writes what came into the pages instead.
set -euo pipefail
prefix=$1
cd "$(dirname "$0")/../.."
root=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cut_out() { # PAGE: PAGE.1.cpp, PAGE.1.txt, PAGE.2.cpp, …
  awk -v base="$folder/$(basename "$1" .md)" '
    /^```cpp$/ {file = base "." ++n ".cpp"; next}
    /^```text$/ {file = base "." n ".txt"; printf "" > file; next}
    /^```$/ {file = ""} file {print > file}' "$1"
}

failed=0
for page in ${PAGES:-README.md docs/*.md}; do
  cut_out "$page"
  for program in "$folder/$(basename "$page" .md)".*.cpp; do
    [ -f "$program" ] || continue
    base=${program%.cpp}
    g++ -std=c++20 -I"$prefix/include" "$program" -L"$prefix/lib" \
      -L"$prefix/lib/$(gcc -print-multiarch)" -lnorma -pthread -o "$base"
    (cd "$folder" && "$base" >"$base.out")
    if [ -n "${UPDATE:-}" ] && [ -f "$base.txt" ]; then
      awk -v out="$base.out" '/^```text$/ {print; while ((getline line < out) > 0) print line; skip = 1; next}
        /^```$/ {skip = 0} !skip {print}' "$root/$page" >"$folder/new"
      cp "$folder/new" "$root/$page"
    elif [ -f "$base.txt" ] && ! diff -u --label "$page says" --label "it prints" "$base.txt" "$base.out"; then
      failed=1
    fi
  done
  echo "$page: its programs run"
done
exit $failed
