#!/usr/bin/env bash
# Everything that is worth doing with our kernels on a real GPU, in stages; writes one report and its raw numbers.
#
#   bash tests/gpu/run.sh [--emulator] [STAGE...]
#
# stages: device load truth suite memcheck racecheck rates bench peers profile cli cpu
#         (default: all of them, in this order)
# OUT     folder of the results (default target/gpu-report); a file of an earlier run stays unless its stage runs again
# KIT     folder of the binary (default target/gpu-kit; tests/gpu/build.sh makes it)
# BUDGET  seconds in all (default 3000): each stage gets at most its own limit and what is left
# FILTER  only problems whose name contains one of these, separated by commas (bench and peers)
# PROFILE targets of the stage profile, as in profile.py
# HAZARD  a check of the suite by its name: racecheck looks at it first and says more
#
# --emulator: the suite on the emulator instead, a sample of it; needs no GPU.
# Exit code: 0 if every stage did, 1 if one failed, 2 if there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
OUT=${OUT:-target/gpu-report}
KIT=${KIT:-target/gpu-kit}
BUDGET=${BUDGET:-3000}
kit=$KIT/natten-gpu-kit
[ -x "$kit" ] || kit=target/release/natten-gpu-kit
[ -x "$kit" ] || { echo "no $KIT/natten-gpu-kit: run tests/gpu/build.sh first"; exit 1; }
mkdir -p "$OUT"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
started=$SECONDS
failed=0
summary=()
export PYTHONUNBUFFERED=1

# stage NAME LIMIT COMMAND...: runs it bounded, keeps its output, notes how it went.
stage() {
  local name=$1 limit=$2 left=$((BUDGET - (SECONDS - started)))
  shift 2
  [ $left -lt "$limit" ] && limit=$left
  if [ "$limit" -lt 5 ]; then
    summary+=("$(printf '%-10s NOT RUN (no time left)' "$name")")
    failed=1
    return
  fi
  echo "== $name (at most $limit s)"
  local start=$SECONDS status
  LIMIT=$limit timeout --kill-after=10 "$limit" "$@" > "$logs/$name.log" 2>&1
  status=$?
  local outcome
  case $status in
    0) outcome="ok" ;;
    124 | 137) outcome="TIMED OUT" ;;
    *) outcome="FAILED (exit code $status)" ;;
  esac
  [ $status -eq 0 ] || failed=1
  summary+=("$(printf '%-10s %-24s %4d s' "$name" "$outcome" $((SECONDS - start)))")
  { echo; echo "== $name: $outcome, $((SECONDS - start)) s"; tail -n 300 "$logs/$name.log"; } >> "$report"
  tail -n 12 "$logs/$name.log"
}

# What a stage runs. LIMIT is its own; programs that can, stop by themselves a little before.
soft() { echo $((LIMIT > 60 ? LIMIT - 20 : LIMIT * 3 / 4)); }
device() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu --format=csv \
    || echo "nvidia-smi did not answer"
  "$kit" device
}
# The driver's cache of compiled kernels would hide how long compiling takes.
load() { CUDA_CACHE_DISABLE=1 "$kit" load "$OUT"; }
truth() { "$kit" truth "$OUT"; }
suite() { "$kit" suite "$OUT" tests/golden seconds="$(soft)"; }
emulated() { "$kit" suite "$OUT" tests/golden emulator=1 every=60 seconds="$(soft)"; }
# A sample only: the tools slow kernels down tenfold and more. One part a family: kernels by name, tiles at what is chosen, their
# backward, and CUDA cores. What a part has no time for is said and is no failure.
sanitize() {
  command -v compute-sanitizer > /dev/null || { echo "no compute-sanitizer here"; return 3; }
  local tool=$1 sparse=$2 status=0 part
  shift 2
  for part in ${HAZARD:+"filter=${HAZARD// /#}"} "filter=by#name every=$((23 * sparse))" "filter=oracle#tiles every=$((37 * sparse))" \
    "filter=oracle#tiles every=$((73 * sparse)) capabilities=8.0" "filter=oracle#windows every=$((61 * sparse)) capabilities=5.0" \
    "filter=oracle#arranged every=$((17 * sparse))" "filter=oracle#attention every=$((47 * sparse))"; do
    echo "-- $tool ${part//#/ }"
    local words=()
    for word in $part; do words+=("${word//#/ }"); done
    compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9 --show-backtrace no "$@" \
      "$kit" suite "$logs" tests/golden "${words[@]}" threads=1 sample=1 seconds=$((LIMIT / 9)) || status=$?
  done
  return $status
}
memcheck() { sanitize memcheck 1 --print-limit 20; }
# Both kinds of report: the analysis names the instructions, each hazard its threads and addresses.
racecheck() { sanitize racecheck 2 --racecheck-report all --print-limit 16; }
rates() { python3 tests/gpu/peers.py rates "$logs/rates.json"; }
bench() {
  local matmul=""
  [ -f "$logs/rates.json" ] && matmul=matmul=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["matmul_bf16_tflops"])' "$logs/rates.json")
  # shellcheck disable=SC2086
  "$kit" bench "$OUT" $matmul filter="${FILTER:-}" seconds="$(soft)"
}
peers() { python3 tests/gpu/peers.py peers "$OUT/peers.json" --filter "${FILTER:-}" --seconds "$(soft)"; }
profile() {
  command -v ncu > /dev/null || { echo "no ncu here"; return 3; }
  # shellcheck disable=SC2086
  python3 tests/gpu/profile.py "$kit" "$logs" --seconds $((LIMIT - 5)) ${PROFILE:-}
}
# The program `natten` on this machine's GPU: each line says how it ended.
cli() {
  local natten=$KIT/natten status=0 line
  [ -x "$natten" ] || { echo "no $natten: build.sh makes it"; return 3; }
  while read -r line; do
    echo "\$ natten $line"
    # shellcheck disable=SC2086
    timeout 30 "$natten" $line < /dev/null || { echo "-> exit code $?"; status=1; }
  done << 'EOF'
devices
verify tests/golden --backend cuda
profile -i 64 64 -w 13 -n 8 -d 64 --dtype bf16 --backend cuda --backprop --json
profile -i 64 64 -w 13 -n 8 -d 64 --dtype bf16 --backend cuda --optimize
profile -i 30 48 80 -w 18 24 24 -n 24 -d 128 --dtype bf16 --backend cuda
EOF
  return $status
}
# The CPU backend here: how it scales over more cores than most machines have.
cpu() {
  local table=$KIT/cpu_table isa threads="" cores n
  [ -x "$table" ] || { echo "no $table: build.sh makes it"; return 3; }
  cores=$(nproc)
  isa=$("$KIT/natten" devices --json | python3 -c 'import json, sys; print(next(k["kernel"] for k in json.load(sys.stdin)["cpu"]["kernels"] if k["is_chosen"])[4:])')
  for n in 1 2 4 8 16 32; do [ "$n" -le "$cores" ] && threads+=${threads:+,}$n; done
  lscpu | grep -E 'Model name|^CPU\(s\)|Thread|L2|L3'
  "$table" --pass forward --markdown --isa "$isa" --elements f32,bf16 --threads "$threads" --only C1,C2,C3,C4,C5,L0,L1,L5s --seconds 0.4
}
export -f profile cli cpu device load truth suite emulated soft sanitize memcheck racecheck rates bench peers
export kit KIT OUT logs

report=$OUT/report.txt
{ date -u '+%Y-%m-%d %H:%M UTC'; cat "$KIT/commit" 2> /dev/null; uname -srm; } > "$report"
stages=()
emulate=0
for word in "$@"; do
  case $word in
    --emulator) emulate=1 ;;
    device | load | truth | suite | memcheck | racecheck | rates | bench | peers | profile | cli | cpu) stages+=("$word") ;;
    *) echo "unknown stage: $word"; sed -n '2,15p' "$0"; exit 1 ;;
  esac
done
if [ $emulate -eq 1 ]; then
  stage emulated 600 bash -c emulated
else
  # The stage cpu alone needs no GPU.
  if [ "${stages[*]}" != cpu ] && ! "$kit" device > /dev/null; then
    exit 2
  fi
  [ ${#stages[@]} -gt 0 ] || stages=(device load truth suite memcheck racecheck rates bench peers profile cli cpu)
  declare -A limits=([device]=30 [load]=120 [truth]=150 [suite]=240 [memcheck]=100 [racecheck]=100
    [rates]=60 [bench]=300 [peers]=800 [profile]=100 [cli]=90 [cpu]=130)
  for name in "${stages[@]}"; do
    stage "$name" "${limits[$name]}" bash -c "$name"
  done
fi

{
  echo
  [ $emulate -eq 1 ] || python3 tests/gpu/summary.py "$OUT" 2>&1 || echo "(no tables: tests/gpu/summary.py did not run)"
  echo
  echo "stage      outcome                  time"
  printf '%s\n' "${summary[@]}"
} | tee -a "$report"
tar czf "$OUT/logs.tar.gz" -C "$logs" .
rm -f "$OUT/truth.lines"
exit $failed
