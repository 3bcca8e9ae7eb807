// A CUDA driver for tests of how we deal with drivers. Plain: no device, every function answers CUDA_ERROR_NO_DEVICE. With
// -DBROKEN most functions are missing, as in a library that only pretends. With -DDEVICE there is a device whose memory is the
// host's and whose kernels do nothing; it says what is loaded and unloaded, and `stub_reset` resets it as cudaDeviceReset would.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;

#ifdef DEVICE

static unsigned long long generation = 1;
static void *current;

#define PRESENT(name, params, body) \
  CUresult name params { \
    body; \
    return 0; \
  }

void stub_reset(void) { generation++; }

PRESENT(cuInit, (unsigned flags), )
PRESENT(cuDeviceGetCount, (int *count), *count = 1)
PRESENT(cuDeviceGet, (int *device, int ordinal), *device = ordinal)
PRESENT(cuDevicePrimaryCtxRetain, (void **context, int device), *context = &generation)
PRESENT(cuDevicePrimaryCtxRelease_v2, (int device), )
PRESENT(cuCtxGetCurrent, (void **context), *context = current)
PRESENT(cuCtxSetCurrent, (void *context), current = context)
PRESENT(cuCtxGetId, (void *context, unsigned long long *id), *id = generation)
PRESENT(cuCtxSynchronize, (void), )
// Compute capability 8.0, 1 of everything else.
PRESENT(cuDeviceGetAttribute, (int *value, int attribute, int device),
        *value = attribute == 75 ? 8 : attribute == 76 ? 0 : attribute == 97 ? 163 << 10 : 1)
PRESENT(cuDeviceGetName, (char *name, int length, int device), strncpy(name, "stub", length))
PRESENT(cuDeviceTotalMem_v2, (size_t *bytes, int device), *bytes = 1 << 30)
PRESENT(cuMemGetInfo_v2, (size_t *free, size_t *total), *free = *total = 1 << 30)
PRESENT(cuEventCreate, (void **event, unsigned flags), *event = &current)
PRESENT(cuEventDestroy_v2, (void *event), )
PRESENT(cuEventQuery, (void *event), )
PRESENT(cuEventRecord, (void *event, void *stream), )
PRESENT(cuEventSynchronize, (void *event), )
PRESENT(cuStreamCreate, (void **stream, unsigned flags), *stream = &generation)
PRESENT(cuStreamDestroy_v2, (void *stream), )
PRESENT(cuMemHostAlloc, (void **memory, size_t bytes, unsigned flags), *memory = malloc(bytes))
PRESENT(cuMemFreeHost, (void *memory), free(memory))
PRESENT(cuStreamWaitEvent, (void *stream, void *event, unsigned flags), )
PRESENT(cuStreamSynchronize, (void *stream), )
PRESENT(cuMemAlloc_v2, (void **address, size_t bytes), *address = malloc(bytes))
PRESENT(cuMemFree_v2, (void *address), free(address))
PRESENT(cuMemAllocAsync, (void **address, size_t bytes, void *stream), *address = malloc(bytes))
PRESENT(cuMemFreeAsync, (void *address, void *stream), free(address))
PRESENT(cuMemcpyHtoDAsync_v2, (void *to, const void *from, size_t bytes, void *stream), memcpy(to, from, bytes))
PRESENT(cuMemcpyDtoHAsync_v2, (void *to, const void *from, size_t bytes, void *stream), memcpy(to, from, bytes))
PRESENT(cuMemcpyDtoDAsync_v2, (void *to, const void *from, size_t bytes, void *stream), memcpy(to, from, bytes))
PRESENT(cuModuleLoadDataEx, (void **module, const void *text, unsigned options, void *names, void *values),
        *module = &generation; puts("STUB loads"); fflush(stdout))
PRESENT(cuModuleUnload, (void *module), puts("STUB unloads"); fflush(stdout))
PRESENT(cuModuleGetFunction, (void **function, void *module, const char *name), *function = module)
PRESENT(cuFuncSetAttribute, (void *function, int attribute, int value), )
PRESENT(cuLaunchKernel,
        (void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
         void *stream, void **params, void **extra), )
PRESENT(cuGetErrorName, (int code, const char **name), *name = "STUB")
PRESENT(cuGetErrorString, (int code, const char **text), *text = "stub")

#else

#define ABSENT(name) \
  CUresult name(void) { return 100; }

ABSENT(cuInit)
ABSENT(cuDeviceGetCount)
#ifndef BROKEN
ABSENT(cuCtxGetCurrent)
ABSENT(cuCtxSetCurrent)
ABSENT(cuDeviceGet)
ABSENT(cuDeviceGetAttribute)
ABSENT(cuDeviceGetName)
ABSENT(cuDevicePrimaryCtxRetain)
ABSENT(cuDevicePrimaryCtxRelease_v2)
ABSENT(cuDeviceTotalMem_v2)
ABSENT(cuEventCreate)
ABSENT(cuEventDestroy_v2)
ABSENT(cuEventQuery)
ABSENT(cuEventRecord)
ABSENT(cuMemGetInfo_v2)
ABSENT(cuMemcpyDtoDAsync_v2)
ABSENT(cuEventSynchronize)
ABSENT(cuFuncSetAttribute)
ABSENT(cuGetErrorName)
ABSENT(cuGetErrorString)
ABSENT(cuLaunchKernel)
ABSENT(cuMemAlloc_v2)
ABSENT(cuMemFree_v2)
ABSENT(cuMemcpyDtoHAsync_v2)
ABSENT(cuMemcpyHtoDAsync_v2)
ABSENT(cuModuleGetFunction)
ABSENT(cuModuleLoadDataEx)
ABSENT(cuModuleUnload)
ABSENT(cuStreamSynchronize)
ABSENT(cuStreamWaitEvent)
#endif
#endif
