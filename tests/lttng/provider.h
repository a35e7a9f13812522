/* A message of any length as an event of LTTng-UST. */
#undef LTTNG_UST_TRACEPOINT_PROVIDER
#define LTTNG_UST_TRACEPOINT_PROVIDER relayfs_bench

#undef LTTNG_UST_TRACEPOINT_INCLUDE
#define LTTNG_UST_TRACEPOINT_INCLUDE "./provider.h"

#if !defined(RELAYFS_BENCH_PROVIDER_H) || defined(LTTNG_UST_TRACEPOINT_HEADER_MULTI_READ)
#define RELAYFS_BENCH_PROVIDER_H

#include <stddef.h>
#include <stdint.h>
#include <lttng/tracepoint.h>

LTTNG_UST_TRACEPOINT_EVENT(relayfs_bench, message,
	LTTNG_UST_TP_ARGS(const char *, bytes, size_t, len),
	LTTNG_UST_TP_FIELDS(
		lttng_ust_field_sequence(char, bytes, bytes, uint16_t, len)
	)
)

#endif

#include <lttng/tracepoint-event.h>
