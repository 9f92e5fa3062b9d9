/* A stand-in for NVIDIA's libnvidia-ml.so.1: two whole GPUs, a partitioned one that tells no utilisation, and
   one that has fallen off the bus. Signatures and numbers as in the driver's nvml.h. */
#include <string.h>

typedef struct { unsigned number; } device;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned gpu, memory; } utilization;

enum { SUCCESS = 0, NOT_SUPPORTED = 3, GPU_IS_LOST = 15 };
#define GIB (1ull << 30)

static device devices[4] = {{0}, {1}, {2}, {3}};

int nvmlInitWithFlags(unsigned flags) { return SUCCESS; }
const char *nvmlErrorString(int code) { return "as planned"; }

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    strncpy(text, "580.65.06", length);
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 4;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **handle) {
    *handle = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(device *handle, memory *out) {
    if (handle->number == 3) return GPU_IS_LOST;
    out->total = 80 * GIB;
    out->used = (handle->number + 1) * GIB;
    out->free = out->total - out->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device *handle, utilization *out) {
    if (handle->number >= 2) return NOT_SUPPORTED;
    out->gpu = 25 * (handle->number + 1);
    out->memory = 99;
    return SUCCESS;
}

int nvmlDeviceGetUUID(device *handle, char *text, unsigned length) {
    static const char *const uuids[4] = {"GPU-aaaa0000", "GPU-bbbb1111", "GPU-cccc2222", "GPU-dddd3333"};
    strncpy(text, uuids[handle->number], length);
    return SUCCESS;
}
