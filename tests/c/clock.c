/* Loaded before the C library: clocks that are set, and another clock source, for the program that has it.
 *
 * CLOCK_OFFSETS names a file of three numbers of 64 bits: nanoseconds that are added to CLOCK_REALTIME, to CLOCK_MONOTONIC
 * and to CLOCK_BOOTTIME. CLOCK_SOURCE names a file that takes the place of the kernel's, with the name of the clock source.
 * All programs with the same files have the same clocks, and a test changes them while they run.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define SOURCE "/sys/devices/system/clocksource/clocksource0/current_clocksource"
#define SECOND 1000000000LL

static const volatile int64_t *offsets;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_open64)(const char *, int, ...);

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("CLOCK_OFFSETS");

	real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
	real_open64 = dlsym(RTLD_NEXT, "open64");
	if (path != NULL) {
		int fd = real_open64(path, O_RDONLY | O_CLOEXEC);
		void *found = mmap(NULL, 3 * sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);

		if (fd < 0 || found == MAP_FAILED)
			abort();
		offsets = found;
	}
}

int clock_gettime(clockid_t id, struct timespec *now)
{
	int64_t nanoseconds;
	int result = real_clock_gettime(id, now);

	if (result != 0 || offsets == NULL)
		return result;
	switch (id) {
	case CLOCK_REALTIME:
		nanoseconds = offsets[0];
		break;
	case CLOCK_MONOTONIC:
		nanoseconds = offsets[1];
		break;
	case CLOCK_BOOTTIME:
		nanoseconds = offsets[2];
		break;
	default:
		return result;
	}
	nanoseconds += now->tv_sec * SECOND + now->tv_nsec;
	now->tv_sec = nanoseconds / SECOND;
	now->tv_nsec = nanoseconds % SECOND;
	return result;
}

int open64(const char *path, int flags, ...)
{
	const char *source = getenv("CLOCK_SOURCE");
	mode_t mode = 0;

	if (flags & (O_CREAT | O_TMPFILE)) {
		va_list rest;

		va_start(rest, flags);
		mode = va_arg(rest, mode_t);
		va_end(rest);
	}
	if (real_open64 == NULL)
		real_open64 = dlsym(RTLD_NEXT, "open64");
	return real_open64(source != NULL && strcmp(path, SOURCE) == 0 ? source : path, flags, mode);
}
