// A CUDA driver without a device: every function answers CUDA_ERROR_NO_DEVICE. With -DBROKEN most are missing, as in a
// library that only pretends. Compiled by tests/driver_absent.rs.
typedef int CUresult;
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
