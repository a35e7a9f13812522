/*
 * relay_logf and relay_logf_at: texts that printf(3) makes. In C, since a function with any number of arguments cannot be
 * written in Rust.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "relay.h"

/* Longest text that is made on the stack, with its end. */
#define ON_STACK 1024

/* Writes a text: site is NULL for a record with this level alone. */
static int write_text(struct rchan *chan, int level, struct relay_site *site, const char *text, size_t length)
{
	return site ? relay_log_at(chan, site, text, length) : relay_log(chan, level, NULL, text, length);
}

/* Whether the channel's levels let a text through, as far as that is known before the text is made. */
static int is_enabled(struct rchan *chan, int level, struct relay_site *site)
{
	const char *target;

	if (!site)
		return relay_log_enabled(chan, level, NULL);
	/* Until the first call has set it, the library finds out. */
	target = site->target && *site->target ? site->target : __atomic_load_n(&site->place, __ATOMIC_ACQUIRE);
	return !target || relay_log_enabled(chan, site->level, target);
}

static int print(struct rchan *chan, int level, struct relay_site *site, const char *format, va_list arguments)
{
	char text[ON_STACK], *longer;
	va_list again;
	int length, saved, status;

	if (!format) {
		errno = EFAULT;
		return -1;
	}
	if (!is_enabled(chan, level, site))
		return 0;
	/* %m in the format is the caller's. */
	saved = errno;
	va_copy(again, arguments);
	length = vsnprintf(text, sizeof(text), format, arguments);
	if (length < 0) {
		status = -1;
	} else if ((size_t)length < sizeof(text)) {
		errno = saved;
		status = write_text(chan, level, site, text, length);
	} else if (!(longer = malloc((size_t)length + 1))) {
		status = -1;
	} else {
		errno = saved;
		if (vsnprintf(longer, (size_t)length + 1, format, again) == length)
			status = write_text(chan, level, site, longer, length);
		else
			status = -1;
		free(longer);
	}
	va_end(again);
	/* So a program can log between a failure and the look at errno. */
	if (!status)
		errno = saved;
	return status;
}

int relay_vlogf(struct rchan *chan, int level, const char *format, va_list arguments)
{
	return print(chan, level, NULL, format, arguments);
}

int relay_logf(struct rchan *chan, int level, const char *format, ...)
{
	va_list arguments;
	int status;

	va_start(arguments, format);
	status = print(chan, level, NULL, format, arguments);
	va_end(arguments);
	return status;
}

int relay_vlogf_at(struct rchan *chan, struct relay_site *site, const char *format, va_list arguments)
{
	if (!site) {
		errno = EINVAL;
		return -1;
	}
	return print(chan, 0, site, format, arguments);
}

int relay_logf_at(struct rchan *chan, struct relay_site *site, const char *format, ...)
{
	va_list arguments;
	int status;

	va_start(arguments, format);
	status = relay_vlogf_at(chan, site, format, arguments);
	va_end(arguments);
	return status;
}
