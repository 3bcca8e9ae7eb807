#!/usr/bin/env bash
# Builds the GPU check of this crate on a machine without CUDA, and puts what it needs at run time beside it:
#   cuda-build.sh FOLDER      then on the GPU machine: LD_LIBRARY_PATH=FOLDER/run FOLDER/run/cuda_check
# candle links cuBLAS, cuRAND and NVRTC, which are some 700 MB. The check multiplies no matrices and draws no numbers on
# the GPU, so it gets libraries of the same names whose functions do nothing. Of CUDA come the compiler, its headers and the
# runtime, from pinned wheels.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:?folder to build in}"
folder=$(cd "$1" && pwd)
toolkit=$folder/toolkit run=$folder/run stubs=$folder/stubs
mkdir -p "$toolkit" "$run" "$stubs" "$folder/wheels"

if [ ! -x "$toolkit/bin/nvcc.real" ]; then
  [ -x "$folder/venv/bin/pip" ] || python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" download --quiet --no-deps --dest "$folder/wheels" nvidia-cuda-nvcc==13.0.88 \
    nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
  for wheel in "$folder"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$folder/unpacked"
  done
  cp -r "$folder"/unpacked/nvidia/cu13/. "$toolkit"
  find "$toolkit/bin" "$toolkit/nvvm" -type f -exec chmod +x {} +
  ln -sfn lib "$toolkit/lib64"
  ln -sf libcudart.so.13 "$toolkit/lib/libcudart.so"
  mv "$toolkit/bin/nvcc" "$toolkit/bin/nvcc.real"
  # Kernels of quantized matrices take most of the time and the check runs none of them: they are left empty.
  cat > "$toolkit/bin/nvcc" <<'WRAPPER'
#!/usr/bin/env bash
real=$(dirname "$(readlink -f "$0")")/nvcc.real
args=()
for arg in "$@"; do
  case $arg in
    *moe_*.cu | *mmq_*.cu | *mmvq_*.cu) echo > "$TMPDIR/empty.cu"; args+=("$TMPDIR/empty.cu") ;;
    *) args+=("$arg") ;;
  esac
done
exec "$real" "${args[@]}"
WRAPPER
  chmod +x "$toolkit/bin/nvcc"
fi

# stub LIBRARY FILE FOLDER...: a library whose functions, those that cudarc declares in its FOLDERs, do nothing.
(cd "$here" && cargo fetch --quiet)
cudarc=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/cudarc-0.19.10/src | head -n 1)
stub() {
  local library=$1 file=$2 source=$stubs/$1.c; shift 2
  for part in "$@"; do
    grep -rhoE 'pub (unsafe )?fn (cu|nvrtc)[A-Za-z0-9_]+' "$cudarc/$part/sys" | grep -oE '[A-Za-z0-9_]+$'
  done | sort -u | sed 's/.*/int &(void) { return 0; }/' > "$source"
  cc -shared -fPIC -Wl,-soname,"$file" -o "$stubs/$file" "$source"
  ln -sf "$file" "$stubs/lib$library.so"
}
stub cublas libcublas.so.13 cublas
stub cublasLt libcublasLt.so.13 cublaslt
stub curand libcurand.so.10 curand
stub nvrtc libnvrtc.so.13 nvrtc
# Of the driver, to link against only.
stub cuda libcuda.so.1 driver
cp "$stubs"/lib{cublas,cublasLt,nvrtc}.so.13 "$stubs/libcurand.so.10" "$toolkit/lib/libcudart.so.13" "$run"

export TMPDIR=$folder/tmp CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} PATH=$toolkit/bin:$PATH
export CARGO_TARGET_DIR=$folder/target
export RUSTFLAGS="-L native=$stubs -L native=$toolkit/lib -C link-arg=-Wl,--unresolved-symbols=ignore-all"
mkdir -p "$TMPDIR"
cd "$here"
cargo build --release --features cuda --example cuda_check
cp "$CARGO_TARGET_DIR/release/examples/cuda_check" "$run/cuda_check"
strip "$run/cuda_check"
ls -l "$run"
