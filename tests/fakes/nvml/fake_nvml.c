/*
 * A stand-in for libnvidia-ml.so.1, for tests on machines without an NVIDIA driver.
 *
 * It answers the calls that the real Python binding makes from a text file named by FAKE_NVML_STATE, which is
 * read anew on every call, so a test changes the "hardware" while a reader runs. Lines are "key value":
 *
 *   count 1                      number of GPUs           init_error 18        nvmlInit fails with this code
 *   driver 550.54.15             driver version           cuda 12040           CUDA driver version
 *   migs 1                       number of MIG instances, described by mig.<j>.<field> like a GPU, plus
 *   mig.0.parent 0               the GPU it is a slice of
 *   gpu.0.<field> <value>        uuid name total reserved used power_mw limit_mw energy_mj sm_mhz mem_mhz
 *                                gpu_util mem_util temp throttle cc_major cc_minor mig_mode
 *   gpu.0.compute 12:4096,13:na  compute processes as pid:bytes ("na": the value NVML uses for "not available")
 *   gpu.0.graphics 12:4096       graphics processes
 *   gpu.0.err.<call> 3           that call returns this NVML code
 *   gpu.0.sleep_ms.<call> 50     that call blocks first
 *   gpu.0.lost 1                 every call on the device returns NVML_ERROR_GPU_IS_LOST
 *
 * With FAKE_NVML_CALLS set, the name of every device call is appended to that file, one per line.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15,
    UNKNOWN = 999
};

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process_v3;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned version, sensor; int temperature; } temperature_v1;

#define MAX_DEVICES 16
static char handles[2 * MAX_DEVICES]; /* the address is the handle: first the GPUs, then the MIG instances */
static char state[65536];

static int load_state(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t got = fd < 0 ? -1 : read(fd, state + 1, sizeof state - 2);
    if (fd >= 0) close(fd);
    if (got < 0) return UNKNOWN;
    state[0] = '\n'; /* so that every key starts after a newline */
    state[got + 1] = 0;
    return OK;
}

static int text(const char *key, char *out, size_t size) {
    char needle[160];
    snprintf(needle, sizeof needle, "\n%s ", key);
    const char *at = strstr(state, needle);
    if (!at) return 0;
    at += strlen(needle);
    size_t length = strcspn(at, "\n");
    if (length >= size) length = size - 1;
    memcpy(out, at, length);
    out[length] = 0;
    return 1;
}

static unsigned long long number(const char *key, unsigned long long fallback) {
    char value[64];
    return text(key, value, sizeof value) ? strtoull(value, NULL, 0) : fallback;
}

static const char *field_key(const void *handle, const char *field) {
    static char key[128];
    int n = (int)((const char *)handle - handles);
    snprintf(key, sizeof key, "%s.%d.%s", n < MAX_DEVICES ? "gpu" : "mig", n % MAX_DEVICES, field);
    return key;
}

static unsigned long long field(const void *handle, const char *name, unsigned long long fallback) {
    return number(field_key(handle, name), fallback);
}

/* What every device call does first: read the state, log, block, fail. */
static int enter(const void *handle, const char *call) {
    char name[96];
    const char *log = getenv("FAKE_NVML_CALLS");
    if ((const char *)handle < handles || (const char *)handle >= handles + sizeof handles) return INVALID_ARGUMENT;
    if (load_state() != OK) return UNKNOWN;
    if (log) {
        int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        int n = snprintf(name, sizeof name, "%s\n", call);
        if (fd >= 0) { if (write(fd, name, (size_t)n) != n) abort(); close(fd); }
    }
    snprintf(name, sizeof name, "sleep_ms.%s", call);
    usleep((useconds_t)(1000 * field(handle, name, 0)));
    if (field(handle, "lost", 0)) return GPU_IS_LOST;
    snprintf(name, sizeof name, "err.%s", call);
    return (int)field(handle, name, OK);
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return load_state() ? UNKNOWN : (int)number("init_error", OK); }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "fake NVML error"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    if (load_state()) return UNKNOWN;
    if (!text("driver", out, size)) snprintf(out, size, "550.54.15");
    return OK;
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) { if (load_state()) return UNKNOWN; *out = (int)number("cuda", 12040); return OK; }
int nvmlSystemGetCudaDriverVersion(int *out) { return nvmlSystemGetCudaDriverVersion_v2(out); }

int nvmlDeviceGetCount_v2(unsigned *out) { if (load_state()) return UNKNOWN; *out = (unsigned)number("count", 0); return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    if (load_state()) return UNKNOWN;
    if (index >= number("count", 0)) return INVALID_ARGUMENT;
    *out = handles + index;
    return (int)field(*out, "err.handle", OK);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    char value[96];
    if (load_state()) return UNKNOWN;
    for (unsigned n = 0; n < 2 * MAX_DEVICES; n++) {
        unsigned long long present = n < MAX_DEVICES ? number("count", 0) : number("migs", 0);
        if (n % MAX_DEVICES < present && text(field_key(handles + n, "uuid"), value, sizeof value) && !strcmp(value, uuid)) {
            *out = handles + n;
            return OK;
        }
    }
    return NOT_FOUND;
}

static int get_text(const void *handle, const char *name, char *out, unsigned size) {
    int code = enter(handle, name);
    if (code == OK && !text(field_key(handle, name), out, size)) return NOT_SUPPORTED;
    return code;
}
int nvmlDeviceGetUUID(const void *h, char *out, unsigned size) { return get_text(h, "uuid", out, size); }
int nvmlDeviceGetName(const void *h, char *out, unsigned size) { return get_text(h, "name", out, size); }
int nvmlDeviceGetIndex(const void *h, unsigned *out) {
    int code = enter(h, "index");
    *out = (unsigned)(((const char *)h - handles) % MAX_DEVICES);
    return code;
}

int nvmlDeviceGetMemoryInfo(const void *h, memory_v1 *out) {
    int code = enter(h, "memory");
    if (code != OK) return code;
    out->total = field(h, "total", 0);
    out->used = field(h, "used", 0) + field(h, "reserved", 0);
    out->free = out->total - out->used;
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(const void *h, memory_v2 *out) {
    int code = enter(h, "memory_v2");
    if (code != OK) return code;
    out->total = field(h, "total", 0);
    out->reserved = field(h, "reserved", 0);
    out->used = field(h, "used", 0);
    out->free = out->total - out->used - out->reserved;
    return OK;
}

static int processes(const void *h, const char *name, unsigned *count, process_v3 *out) {
    static char list[4096];
    unsigned found = 0, room = *count;
    int code = enter(h, name);
    if (code != OK) return code;
    if (!text(field_key(h, name), list, sizeof list)) list[0] = 0;
    for (char *item = strtok(list, ","); item; item = strtok(NULL, ","), found++) {
        char *bytes = strchr(item, ':');
        if (!bytes || !out || found >= room) continue;
        out[found].pid = (unsigned)strtoul(item, NULL, 10);
        out[found].used = strcmp(bytes + 1, "na") ? strtoull(bytes + 1, NULL, 10) : ~0ULL;
        out[found].gi = out[found].ci = 0xFFFFFFFFu;
    }
    *count = found;
    return found > room || (found && !out) ? INSUFFICIENT_SIZE : OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(const void *h, unsigned *n, process_v3 *out) { return processes(h, "compute", n, out); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(const void *h, unsigned *n, process_v3 *out) { return processes(h, "graphics", n, out); }

static int get_unsigned(const void *h, const char *name, unsigned *out) {
    int code = enter(h, name);
    if (code == OK) *out = (unsigned)field(h, name, 0);
    return code;
}
int nvmlDeviceGetPowerUsage(const void *h, unsigned *out) { return get_unsigned(h, "power_mw", out); }
int nvmlDeviceGetEnforcedPowerLimit(const void *h, unsigned *out) { return get_unsigned(h, "limit_mw", out); }
int nvmlDeviceGetTemperature(const void *h, int sensor, unsigned *out) { (void)sensor; return get_unsigned(h, "temp", out); }
int nvmlDeviceGetTemperatureV(const void *h, temperature_v1 *out) { return get_unsigned(h, "temp", (unsigned *)&out->temperature); }
int nvmlDeviceGetClockInfo(const void *h, int kind, unsigned *out) { return get_unsigned(h, kind == 2 ? "mem_mhz" : "sm_mhz", out); }
int nvmlDeviceGetTotalEnergyConsumption(const void *h, unsigned long long *out) {
    int code = enter(h, "energy_mj");
    if (code == OK) *out = field(h, "energy_mj", 0);
    return code;
}
int nvmlDeviceGetUtilizationRates(const void *h, utilization *out) {
    int code = get_unsigned(h, "gpu_util", &out->gpu);
    if (code == OK) out->memory = (unsigned)field(h, "mem_util", 0);
    return code;
}
int nvmlDeviceGetCurrentClocksEventReasons(const void *h, unsigned long long *out) {
    int code = enter(h, "throttle");
    if (code == OK) *out = field(h, "throttle", 0);
    return code;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(const void *h, unsigned long long *out) {
    return nvmlDeviceGetCurrentClocksEventReasons(h, out);
}
int nvmlDeviceGetCudaComputeCapability(const void *h, int *major, int *minor) {
    int code = enter(h, "cc");
    *major = (int)field(h, "cc_major", 9);
    *minor = (int)field(h, "cc_minor", 0);
    return code;
}
int nvmlDeviceGetMigMode(const void *h, unsigned *current, unsigned *pending) {
    int code = enter(h, "mig_mode");
    *current = *pending = (unsigned)field(h, "mig_mode", 0);
    return code;
}
int nvmlDeviceIsMigDeviceHandle(const void *h, unsigned *out) {
    *out = (const char *)h >= handles + MAX_DEVICES;
    return OK;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(const void *h, void **out) {
    if ((const char *)h < handles + MAX_DEVICES) return INVALID_ARGUMENT;
    if (load_state()) return UNKNOWN;
    *out = handles + field(h, "parent", 0);
    return OK;
}
