#!/usr/bin/env bash
# Builds the GPU kit here and lays out what a machine with a GPU needs beside the checkout, target/gpu-kit/: the kit itself,
# the program `natten`, and the CPU benchmark.
# That machine needs no Rust and no network: its C library only has to be as new as this one's.
set -euo pipefail
cd "$(dirname "$0")/../.."
kit=target/gpu-kit
cargo build --release --package natten-gpu-kit --package natten-cli
table=$(cargo bench --no-run --package natten-benches --bench cpu_table 2>&1 | tee /dev/stderr | sed -n 's/.*(\(.*cpu_table-[0-9a-f]*\)).*/\1/p')
rm -rf "$kit"
mkdir -p "$kit"
strip -o "$kit/natten-gpu-kit" target/release/natten-gpu-kit
strip -o "$kit/natten" target/release/natten
strip -o "$kit/cpu_table" "$table"
git rev-parse HEAD > "$kit/commit"
git diff --quiet HEAD || echo "with changes that are not committed" >> "$kit/commit"
# The truth kernels as files: for an assembler, and for whoever wants to read one.
"$kit/natten-gpu-kit" truth-ptx "$kit/truth-ptx" && (cd "$kit" && tar czf truth-ptx.tar.gz truth-ptx && rm -r truth-ptx)
set +e
"$kit/natten-gpu-kit" device > /dev/null 2> "$kit/absent"
status=$?
set -e
rm "$kit/absent"
[ $status -eq 0 ] || [ $status -eq 2 ] || { echo "the kit does not even start here"; exit 1; }
echo
du -ah "$kit" | sort -k2
tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb | sed -n '$s/\t.*//p')
echo "the tree and the kit: $(((tree + $(du -sb "$kit" | cut -f1)) >> 20)) MiB"
echo "carry: $kit (ignored by git, like all of target/)"
echo "then there: bash tests/gpu/run.sh"
