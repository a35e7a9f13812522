/*
 * The files in which the channel is written, flushed, reset, given back and counted: what the kernel leaves to relay's
 * clients, and so has no table of. They are in .relay/channels/NAME/.
 */
#include "kit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void messages(void)
{
	static char too_long[3 * MIB];
	int fd = WORKS(open(control("msg"), O_WRONLY | O_TRUNC)), reader = READER();
	long long bytes = counted("bytes");

	EQ(write(fd, "", 0), 0);
	FAILS(write(fd, too_long, sizeof too_long), EMSGSIZE);
	FAILS(pread(fd, too_long, 1, 0), EBADF);
	EQ(counted("bytes"), bytes);
	READS(reader, MIB, "h");
	WROTE('a', 1);
	READS(reader, MIB, "a*1");
}

static void commands(void)
{
	static const char *const bad[] = { "0", "2", "", "11", "1\n\n", " 1", "yes" };
	int fd = READER();

	WROTE('a', 10);
	for (int i = 0; i < 7; i++)
		for (int which = 0; which < 2; which++) {
			int said = tell(which ? "flush" : "reset", bad[i], strlen(bad[i]));

			EQ(said, *bad[i] ? EINVAL : 0); /* nothing is nothing, and does nothing */
		}
	POLLS(fd, 0);
	EQ(tell("flush", "1\n", 2), 0);
	POLLS(fd, READABLE);
	EQ(tell("reset", "1", 1), 0);
	POLLS(fd, 0);
	READS(fd, MIB, "h");
}

static const char *consumed(void)
{
	static char name[40];

	snprintf(name, sizeof name, "consumed/cpu%d", ch.cpu);
	return name;
}

/* The number of the next sub-buffer to be given back. */
static long long next(void)
{
	char text[40] = "";
	int fd = WORKS(open(control(consumed()), O_RDONLY));

	WORKS(read(fd, text, sizeof text - 1));
	WORKS(close(fd));
	return atoll(text);
}

static int give_back(long long from, long long count)
{
	char text[80];

	return tell(consumed(), text, snprintf(text, sizeof text, "%lld %lld\n", from, count));
}

static void given_back(void)
{
	int fd = READER();
	long long first = next();

	WROTE('a', ch.d);
	EQ(give_back(first, 1), EINVAL); /* not finished */
	WROTE('b', ch.d);
	POLLS(fd, READABLE);
	EQ(give_back(first + 1, 1), ESTALE);
	EQ(give_back(first, 2), EINVAL);
	EQ(give_back(first, 0), 0);
	EQ(next(), first);
	EQ(give_back(first, 1), 0);
	EQ(next(), first + 1);
	POLLS(fd, 0);
	EQ(give_back(first, 1), ESTALE); /* somebody else was there first */
	READS(fd, MIB, "h b*%zu", ch.d);
	flush();
	POLLS(fd, READABLE);
	EQ(give_back(first + 1, 1), 0);
	POLLS(fd, 0);
	READS(fd, MIB, "h");
}

static void partly_read(void)
{
	int fd = READER();
	long long first = next();

	WROTE('a', ch.d);
	WROTE('b', ch.d);
	READS(fd, ch.h + 10, "h a*10");
	EQ(give_back(first, 1), 0);
	READS(fd, MIB, "h b*%zu", ch.d); /* the kernel's next read would begin 10 bytes later */
}

static void accounts(void)
{
	static const char *const names[] = { "read_bytes", "overwritten_bytes", "discarded_bytes" };
	int fd = READER();

	for (int step = 0; step < 4; step++) {
		long long left = counted("bytes");
		size_t unread = step == 0 ? ch.h : step == 1 ? ch.h + 30 : step == 2 ? 20 : 0;

		if (step == 1) {
			WROTE('a', 30);
			left = counted("bytes");
		} else if (step == 2) {
			READS(fd, ch.h + 10, "h a*10");
		} else if (step == 3) {
			READS(fd, MIB, "a*20");
		}
		for (int i = 0; i < 3; i++)
			left -= counted(names[i]);
		EQ(left, unread);
	}
}

const struct test control_cases[] = {
	{ "control-msg", 0, messages },
	{ "control-flush-and-reset", KEEPS, commands },
	{ "control-consumed", MANY, given_back },
	{ "control-consumed-of-partly-read-unlike-kernel", MANY, partly_read },
	{ "control-stats-account-for-every-byte", 0, accounts },
	{ 0 },
};
