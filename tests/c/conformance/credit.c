/*
 * When a sub-buffer that was read is given back: at once if it was finished when it was read to its end; otherwise not
 * before the next read(2). The kernel's table 4.4 and R1.
 *
 * In each of these a message that nearly fills a sub-buffer is read to its end, then something happens, and then so
 * many more find room.
 */
#include "kit.h"

static int begin(void)
{
	int fd = READER();

	WROTE('a', ch.d / 2 + 1);
	READS(fd, MIB, "h a*%zu", ch.d / 2 + 1);
	return fd;
}

static void find_room(size_t n)
{
	for (size_t i = 0; i < n; i++)
		WROTE('k', ch.d / 2 + 1);
	IS_FULL('x', ch.d / 2 + 1);
}

static void at_once(void)
{
	begin();
	find_room(ch.n - 1);
}

static void after_the_end(void)
{
	READS(begin(), MIB, "");
	find_room(ch.n - 1);
}

static void after_another_byte(void)
{
	int fd = begin();

	WROTE('b', ch.d / 2 + 1);
	READS(fd, ch.h + 1, "h b*1");
	find_room(ch.n - 1);
}

static void after_another_poll(void)
{
	int fd = begin();

	WROTE('b', ch.d / 2 + 1);
	POLLS(fd, READABLE);
	find_room(ch.n - 2);
}

static void after_flush_and_read(void)
{
	int fd = begin();

	flush();
	READS(fd, MIB, "%s", OPENED(1));
	find_room(ch.n);
}

static void after_flush(void)
{
	begin();
	flush();
	find_room(ch.n - 1);
}

static void after_flush_and_read_of_nothing(void)
{
	int fd = begin();

	flush();
	EQ(read(fd, NULL, 0), 0);
	find_room(ch.n - 1);
}

static void last_byte(void)
{
	int fd = READER();

	WROTE('a', 20);
	flush();
	READS(fd, ch.h + 19, "h a*19");
	POLLS(fd, READABLE);
	READS(fd, 1, "a*1");
	POLLS(fd, 0);
}

const struct test credit_cases[] = {
	{ "credit-not-before-a-read", NO_OVER | MANY, at_once },
	{ "credit-not-by-a-read-before-the-end", NO_OVER | MANY, after_the_end },
	{ "credit-by-a-read-of-the-next", NO_OVER | MANY, after_another_byte },
	{ "credit-not-by-poll", NO_OVER | MANY, after_another_poll },
	{ "credit-by-a-read-after-a-flush", NO_OVER | MANY, after_flush_and_read },
	{ "credit-not-by-a-flush", NO_OVER | MANY, after_flush },
	{ "credit-not-by-a-read-of-0-bytes", NO_OVER | MANY, after_flush_and_read_of_nothing },
	{ "credit-by-the-last-byte", KEEPS, last_byte },
	{ 0 },
};
