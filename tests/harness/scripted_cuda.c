/* libcuda.so.1 of a scripted box: as much as `doctor` calls. A context takes the box's `process: context` bytes of the card that is visible; what it
 * holds is written where scripted_nvml.c reads it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
static u64 context, memory;
static int card;

static u64 fact(const char *file, const char *key, u64 otherwise, char *text)
{
    char path[512], name[64], found[256];
    snprintf(path, sizeof path, "%s/%s", getenv("SCRIPTED_BOX") ? getenv("SCRIPTED_BOX") : "/nonexistent", file);
    FILE *lines = fopen(path, "r");
    while (lines && fscanf(lines, "%63s %255[^\n]", name, found) == 2)
        if (!strcmp(name, key)) {
            if (text) snprintf(text, 256, "%s", found);
            otherwise = strtoull(found, 0, 10);
        }
    if (lines) fclose(lines);
    return otherwise;
}

static int write_it(void)
{
    char path[1024], stat[1024], *rest;
    FILE *file = fopen("/proc/self/stat", "r");
    size_t got = file ? fread(stat, 1, sizeof stat - 1, file) : 0;
    long start = 0;
    if (file) fclose(file);
    stat[got] = 0;
    rest = strrchr(stat, ')');
    if (rest) sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %ld", &start);
    snprintf(path, sizeof path, "%s/held.%d/%d.%ld", getenv("SCRIPTED_BOX"), card, getpid(), start);
    file = fopen(path, "w");
    if (!file) return 999;
    fprintf(file, "%llu 0 0\n", context + memory);
    fclose(file);
    return 0;
}

int cuInit(unsigned flags)
{
    (void)flags;
    return fact("driver", "version", 0, 0) ? 0 : 100; /* no device */
}

int cuDeviceGet(int *device, int index)
{
    const char *seen = getenv("CUDA_VISIBLE_DEVICES");
    char file[32], uuid[256] = "";
    (void)index;
    *device = 0;
    for (card = 0; card < 64; card++) {
        snprintf(file, sizeof file, "card.%d", card);
        fact(file, "uuid", 0, uuid);
        if (!*uuid) return 101; /* invalid device */
        if (!seen || !strcmp(uuid, seen) || (*seen >= '0' && *seen <= '9' && atoi(seen) == card)) return 0;
        *uuid = 0;
    }
    return 101;
}

int cuDevicePrimaryCtxRetain(void **out, int device)
{
    (void)device;
    *out = &context;
    context = fact("process", "context", 0, 0);
    return write_it();
}

int cuCtxSetCurrent(void *ignored) { (void)ignored; return 0; }
int cuCtxSynchronize(void) { return 0; }

int cuMemAlloc_v2(u64 *out, size_t size)
{
    *out = 1;
    memory = size;
    return write_it();
}

int cuMemFree_v2(u64 ignored)
{
    (void)ignored;
    memory = 0;
    return write_it();
}
