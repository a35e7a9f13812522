/* No-overwrite mode with all sub-buffers full: rules W5 and W7, table 4.3. */
#include "kit.h"

/* Step by step, with two messages a sub-buffer and padding behind them. */
static void table(void)
{
	int fd = READER();
	size_t m = ch.d * 7 / 16;

	for (size_t i = 0; i < 2 * ch.n; i++)
		WROTE(letter(i), m);
	POLLS(fd, ch.n > 1 ? READABLE : 0);
	for (int i = 0; i < 3; i++)
		IS_FULL('X', m);
	POLLS(fd, READABLE);
	IS_FULL('X', 1);
	READS(fd, ch.h + 10, "h a*10");
	IS_FULL('X', 1);
	READS(fd, 2 * m - 11, "a*%zu b*%zu", m - 10, m - 1);
	IS_FULL('X', 1);
	READS(fd, 1, "b*1");
	WROTE('T', m);
	WROTE('U', m);
	IS_FULL('X', m);
	for (size_t i = 2; i < 2 * ch.n; i++)
		WANT("%s %c*%zu", i % 2 ? "" : "h", letter(i), m);
	READS(fd, MIB, "h T*%zu U*%zu", m, m);
	POLLS(fd, 0);
	READS(fd, MIB, "");
	WROTE('W', m);
	READS(fd, MIB, "h W*%zu", m);
}

static void fill(void)
{
	for (size_t i = 0; i < ch.n; i++)
		WROTE(letter(i), ch.d);
}

static void reads_all(int fd)
{
	for (size_t i = 0; i < ch.n; i++)
		WANT("h %c*%zu", letter(i), ch.d);
	READS(fd, MIB, "");
}

static void drained(void)
{
	int fd = READER();

	fill();
	IS_FULL('X', ch.d);
	reads_all(fd);
	WROTE('z', ch.d);
	READS(fd, MIB, "h z*%zu", ch.d);
}

static void exact(void)
{
	int fd = READER();

	fill();
	reads_all(fd);
	/* The last one was read before it was finished. */
	for (size_t i = 0; i < ch.n - 1; i++)
		WROTE('k', ch.d);
	IS_FULL('X', ch.d);
}

static void flushed(void)
{
	int fd = READER();

	fill();
	flush();
	IS_FULL('X', 1);
	flush();
	reads_all(fd);
	READS(fd, MIB, "");
	flush(); /* there is room: it opens the next */
	POLLS(fd, 0);
	WROTE('z', 10);
	READS(fd, MIB, "h z*10");
}

static void room_at_once(void)
{
	int fd = READER();

	fill();
	IS_FULL('X', 1);
	for (size_t i = 0; i < 30; i++) {
		READS(fd, ch.s, "h %c*%zu", letter(i), ch.d);
		WROTE(letter(i + ch.n), ch.d);
		IS_FULL('X', ch.d);
	}
}

static void single(void)
{
	int fd = READER();

	WROTE('a', ch.d);
	IS_FULL('X', ch.d);
	READS(fd, ch.s, "h a*%zu", ch.d);
	POLLS(fd, 0);
	WROTE('c', ch.d);
	IS_FULL('X', ch.d);
	READS(fd, MIB, "h c*%zu", ch.d);
	WROTE('e', ch.d);
	READS(fd, MIB, "h e*%zu", ch.d);
	IS_FULL('X', ch.d); /* e was read before it was finished */
	READS(fd, MIB, "");
	WROTE('g', ch.d);
}

static void counted_drops(void)
{
	long long before = counted("dropped");

	fill();
	for (int i = 0; i < 5; i++)
		IS_FULL('X', 1);
	EQ(counted("dropped") - before, 5);
	reset();
	EQ(counted("dropped") - before, 5);
}

const struct test full_cases[] = {
	{ "full-drops-until-a-sub-buffer-is-read", NO_OVER, table },
	{ "full-and-drained", NO_OVER, drained },
	{ "full-exactly", NO_OVER, exact },
	{ "full-and-flushed", NO_OVER, flushed },
	{ "full-has-room-when-read-returns", NO_OVER, room_at_once },
	{ "full-with-a-single-sub-buffer", NO_OVER | ONE, single },
	{ "full-drops-are-counted-unlike-kernel", NO_OVER, counted_drops },
	{ 0 },
};
