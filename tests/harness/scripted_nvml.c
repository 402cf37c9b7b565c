/* libnvidia-ml.so.1 of a scripted box: as much of NVML as Trainshed asks, with the ABI that pynvml calls. What it answers stands in a folder
 * ($SCRIPTED_BOX, written by gpu_box.py and gpu_allocations.py) and is read anew at each call:
 *   driver            lines `key value`: version, cuda (13000), error (an NVML code for every call), hang_ms
 *   card.N            lines `key value`: uuid, name, total, reserved, v2 (0: an older driver), pids, late_ms, lost, mig, parent, persistence, ecc, remap
 *   held.N/PID.START  `bytes old until_ms`: what that life of a process holds; until then the driver still counts `old`
 *   foreign.N         lines `pid bytes compute`: memory of processes that are not here (a display, a neighbour)
 * Facts of the ABI and the codes: nvml.h as pynvml 13 declares it. v1 `used` contains the reserve, v2 `used` does not (structnvmlMemory__v2__t).
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long long u64;
enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, NO_DRIVER = 9, NO_FUNCTION = 13, LOST = 15 };
#define MOST 64
#define NOT_AVAILABLE (~0ULL)

static const char *box(void) { return getenv("SCRIPTED_BOX"); }

static int value(const char *file, const char *key, char *out, int room)
{
    char path[512], name[64], text[256];
    snprintf(path, sizeof path, "%s/%s", box() ? box() : "/nonexistent", file);
    FILE *lines = fopen(path, "r");
    if (!lines) return 0;
    int found = 0;
    while (!found && fscanf(lines, "%63s %255[^\n]", name, text) == 2)
        if (!strcmp(name, key)) { snprintf(out, room, "%s", text); found = 1; }
    fclose(lines);
    return found;
}

static u64 number(const char *file, const char *key, u64 otherwise)
{
    char text[256];
    return value(file, key, text, sizeof text) ? strtoull(text, 0, 10) : otherwise;
}

static int driver(void)
{
    char text[64];
    if (!value("driver", "version", text, sizeof text)) return NO_DRIVER;
    u64 hang = number("driver", "hang_ms", 0);
    if (hang) usleep(hang * 1000);
    return (int)number("driver", "error", OK);
}

static const char *card(const void *handle)
{
    static __thread char file[32];
    snprintf(file, sizeof file, "card.%lu", (unsigned long)handle - 1);
    return file;
}

static int alive(const void *handle)
{
    int code = driver();
    if (code) return code;
    return number(card(handle), "lost", 0) ? LOST : OK;
}

static long start_of(long pid, int *zombie)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    size_t got = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[got] = 0;
    char *rest = strrchr(text, ')');
    long start = -1;
    if (!rest) return -1;
    *zombie = rest[2] == 'Z' || rest[2] == 'X';
    sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %ld", &start);
    return start;
}

static u64 now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (u64)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

typedef struct { unsigned pid; u64 bytes; int listed; } Process;

/* Who holds memory on the card, dead ones included as long as the driver has not taken theirs back. */
static int processes(const void *handle, Process *found)
{
    char folder[512], path[1024], text[128];
    int count = 0;
    unsigned long index = (unsigned long)handle - 1;
    u64 late = number(card(handle), "late_ms", 0);
    snprintf(folder, sizeof folder, "%s/held.%lu", box(), index);
    DIR *entries = opendir(folder);
    struct dirent *entry;
    while (entries && count < MOST && (entry = readdir(entries))) {
        long pid, start;
        u64 bytes, old, until;
        int zombie = 0;
        if (sscanf(entry->d_name, "%ld.%ld", &pid, &start) != 2 || strstr(entry->d_name, ".new")) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        int parts = fscanf(file, "%llu %llu %llu", &bytes, &old, &until);
        fclose(file);
        if (parts != 3) continue;
        int dead = start_of(pid, &zombie) != start || zombie;
        if (dead) { /* noted once, by the link count's change time; the driver takes its memory back `late_ms` after that */
            struct stat at;
            char gone[1100];
            snprintf(gone, sizeof gone, "%s.gone", path);
            if (strstr(entry->d_name, ".gone")) {
                if (stat(path, &at) || now_ms() > (u64)at.st_ctim.tv_sec * 1000 + at.st_ctim.tv_nsec / 1000000 + late) { unlink(path); continue; }
            } else if (!late || rename(path, gone)) { unlink(path); continue; }
        }
        found[count].pid = pid;
        found[count].bytes = now_ms() < until ? old : bytes;
        found[count].listed = !dead && found[count].bytes;
        count++;
    }
    if (entries) closedir(entries);
    snprintf(path, sizeof path, "%s/foreign.%lu", box(), index);
    FILE *lines = fopen(path, "r");
    while (lines && count < MOST && fgets(text, sizeof text, lines))
        if (sscanf(text, "%u %llu %d", &found[count].pid, &found[count].bytes, &found[count].listed) == 3) count++;
    if (lines) fclose(lines);
    return count;
}

static u64 used(const void *handle)
{
    Process found[MOST];
    u64 sum = 0;
    for (int i = processes(handle, found) - 1; i >= 0; i--) sum += found[i].bytes;
    return sum;
}

static int count(int migs)
{
    char file[32], text[64];
    int found = 0;
    for (int i = 0; i < MOST; i++) {
        snprintf(file, sizeof file, "card.%d", i);
        if (!value(file, "uuid", text, sizeof text)) break;
        if (migs || !value(file, "parent", text, sizeof text)) found++;
    }
    return found;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return driver(); }
int nvmlInit_v2(void) { return driver(); }
int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code)
{
    switch (code) {
    case OK: return "Success";
    case INVALID: return "Invalid Argument";
    case UNSUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case SMALL: return "Insufficient Size";
    case NO_DRIVER: return "Driver Not Loaded";
    case NO_FUNCTION: return "Function Not Found";
    case LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *out, unsigned room)
{
    return value("driver", "version", out, room) ? OK : NO_DRIVER;
}

int nvmlSystemGetCudaDriverVersion(int *version)
{
    *version = (int)number("driver", "cuda", 0);
    return driver();
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

int nvmlDeviceGetCount_v2(unsigned *out)
{
    *out = count(0);
    return driver();
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle)
{
    if ((int)index >= count(0)) return INVALID;
    *handle = (void *)(unsigned long)(index + 1);
    return alive(*handle);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle)
{
    char file[32], text[128];
    for (int i = 0; i < count(1); i++) {
        snprintf(file, sizeof file, "card.%d", i);
        if (value(file, "uuid", text, sizeof text) && !strcmp(text, uuid)) {
            *handle = (void *)(unsigned long)(i + 1);
            return alive(*handle);
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned room)
{
    return value(card(handle), "uuid", out, room) ? alive(handle) : INVALID;
}

int nvmlDeviceGetName(void *handle, char *out, unsigned room)
{
    return value(card(handle), "name", out, room) ? alive(handle) : INVALID;
}

int nvmlDeviceGetIndex(void *handle, unsigned *index)
{
    *index = (unsigned)number(card(handle), "parent", (unsigned long)handle - 1);
    return alive(handle);
}

typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory2;

int nvmlDeviceGetMemoryInfo(void *handle, Memory *out)
{
    int code = alive(handle);
    if (code) return code;
    out->total = number(card(handle), "total", 0);
    out->used = used(handle) + number(card(handle), "reserved", 0);
    out->free = out->total - out->used;
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, Memory2 *out)
{
    int code = alive(handle);
    if (code) return code;
    if (!number(card(handle), "v2", 1)) return NO_FUNCTION;
    if (out->version != 0x02000028) return 25; /* argument version mismatch */
    out->total = number(card(handle), "total", 0);
    out->reserved = number(card(handle), "reserved", 0);
    out->used = used(handle);
    out->free = out->total - out->reserved - out->used;
    return OK;
}

typedef struct { unsigned pid; u64 bytes; unsigned instance, compute; } Info;

/* `pids`: shown, hidden (the list is empty), host (numbers of another namespace), zero (right, with 0 bytes), none (right, bytes not available) */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *number_of, Info *out)
{
    char mode[32] = "shown";
    Process found[MOST];
    Info listed[MOST];
    int code = alive(handle);
    unsigned many = 0;
    if (code) return code;
    value(card(handle), "pids", mode, sizeof mode);
    int all = processes(handle, found);
    for (int i = 0; i < all; i++) {
        if (!found[i].listed || !strcmp(mode, "hidden")) continue;
        listed[many].pid = found[i].pid + (!strcmp(mode, "host") ? 4000000 : 0);
        listed[many].bytes = !strcmp(mode, "zero") ? 0 : !strcmp(mode, "none") ? NOT_AVAILABLE : found[i].bytes;
        listed[many].instance = listed[many].compute = ~0U;
        many++;
    }
    unsigned room = *number_of;
    *number_of = many;
    if (many > room) return SMALL;
    memcpy(out, listed, many * sizeof *out);
    return OK;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending)
{
    int code = alive(handle);
    char text[16];
    if (code) return code;
    if (!value(card(handle), "mig", text, sizeof text)) return UNSUPPORTED;
    *current = *pending = atoi(text);
    return OK;
}

int nvmlDeviceIsMigDeviceHandle(void *handle, unsigned *is)
{
    char text[16];
    *is = value(card(handle), "parent", text, sizeof text);
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *most)
{
    *most = number(card(handle), "mig", 0) ? 7 : 0;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **mig)
{
    char file[32], text[16];
    unsigned seen = 0;
    for (int i = 0; i < count(1); i++) {
        snprintf(file, sizeof file, "card.%d", i);
        if (value(file, "parent", text, sizeof text) && strtoul(text, 0, 10) == (unsigned long)handle - 1 && seen++ == index) {
            *mig = (void *)(unsigned long)(i + 1);
            return OK;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetPersistenceMode(void *handle, unsigned *mode)
{
    *mode = (unsigned)number(card(handle), "persistence", 1);
    return alive(handle);
}

int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, u64 *errors)
{
    char text[32];
    (void)counter;
    if (!value(card(handle), "ecc", text, sizeof text)) return UNSUPPORTED; /* consumer cards */
    *errors = kind == 1 ? strtoull(text, 0, 10) : 0;
    return alive(handle);
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed)
{
    char text[32];
    if (!value(card(handle), "remap", text, sizeof text)) return UNSUPPORTED;
    *corrected = *failed = 0;
    *uncorrected = *pending = (unsigned)atoi(text);
    return alive(handle);
}

int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, unsigned *level)
{
    *level = one == other ? 0 : 20; /* a host bridge */
    return alive(one);
}

int nvmlDeviceGetP2PStatus(void *one, void *other, int what, unsigned *status)
{
    (void)one, (void)other, (void)what;
    *status = (unsigned)number("driver", "p2p", 0);
    return OK;
}
