/* emit LEN N: emits N events with a payload of LEN bytes and prints how many nanoseconds one took. */
#define LTTNG_UST_TRACEPOINT_CREATE_PROBES
#define LTTNG_UST_TRACEPOINT_DEFINE
#include "provider.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double seconds(void) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
	static char bytes[65535];
	if (argc != 3)
		return 2;
	size_t len = strtoul(argv[1], NULL, 10), n = strtoul(argv[2], NULL, 10);
	if (len > sizeof bytes || n == 0)
		return 2;
	memset(bytes, 'm', sizeof bytes);
	/* What nobody records costs nothing, and would be the wrong number. */
	if (!lttng_ust_tracepoint_enabled(relayfs_bench, message)) {
		fputs("emit: nobody records\n", stderr);
		return 1;
	}
	double begun = seconds();
	for (size_t i = 0; i < n; i++)
		lttng_ust_tracepoint(relayfs_bench, message, bytes, len);
	printf("%.3f\n", (seconds() - begun) * 1e9 / n);
	return 0;
}
