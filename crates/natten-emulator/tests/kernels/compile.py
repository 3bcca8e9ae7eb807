#!/usr/bin/env python3
"""Compiles the .cu files beside this script to the .ptx files that are committed.

usage: compile.py NVRTC_DIR    the folder that holds libnvrtc.so.12 (any NVRTC 12.9)
"""
import ctypes, glob, os, sys

TARGETS = {"simt": "compute_50", "ampere": "compute_80", "hopper": "compute_90a"}


def main():
    folder = sys.argv[1]
    for builtins in glob.glob(folder + "/libnvrtc-builtins.so.*"):
        ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(sorted(glob.glob(folder + "/libnvrtc.so.*"))[0])
    here = os.path.dirname(os.path.abspath(__file__))
    for name, arch in TARGETS.items():
        path = os.path.join(here, name + ".cu")
        if not os.path.exists(path):
            continue
        source = open(path, "rb").read()
        program = ctypes.c_void_p()
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, (name + ".cu").encode(), 0, None, None)
        options = [b"--gpu-architecture=" + arch.encode(), b"--std=c++17", b"-default-device"]
        failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        if failed:
            sys.exit(log.value.decode())
        nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
        ptx = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetPTX(program, ptx)
        with open(os.path.join(here, name + ".ptx"), "wb") as out:
            out.write(ptx.value)


main()
