/* Overwrite mode: the newest N - 1 sub-buffers and the current one stay. Rules W6 and R2, table 4.5. */
#include "kit.h"

/* Messages number `first` to `first + n - 1`, two a sub-buffer. */
static void write_pairs(size_t first, size_t n, size_t m)
{
	for (size_t i = first; i < first + n; i++)
		WROTE(letter(i), m);
}

static void want_pairs(size_t first, size_t n, size_t m)
{
	for (size_t i = first; i < first + n; i++)
		WANT("%s %c*%zu", i % 2 ? "" : "h", letter(i), m);
}

static void newest(void)
{
	const size_t counts[] = { 1, 2, 5, 2 * ch.n, 2 * ch.n + 1, 6 * ch.n + 3 };
	size_t m = ch.d * 7 / 16;

	for (int i = 0; i < 6; i++) {
		int fd = READER();
		size_t n = counts[i], n_subbufs = (n + 1) / 2;
		size_t first = n_subbufs > ch.n ? 2 * (n_subbufs - ch.n) : 0;

		write_pairs(0, n, m);
		POLLS(fd, n_subbufs > 1 ? READABLE : 0);
		want_pairs(first, n - first, m);
		READS(fd, MIB, "");
		POLLS(fd, 0);
		READS(fd, MIB, "");
		WROTE('Z', 1);
		READS(fd, MIB, "Z*1");
		reset();
		WORKS(close(fd));
	}
}

static void whole(void)
{
	int fd = READER();

	for (size_t i = 0; i < 3 * ch.n; i++)
		WROTE(letter(i), ch.d);
	for (size_t i = 2 * ch.n; i < 3 * ch.n; i++)
		WANT("h %c*%zu", letter(i), ch.d);
	READS(fd, MIB, "");
	READS(fd, MIB, "");
	WROTE('Z', 1);
	READS(fd, MIB, "h Z*1");
}

static void flushed(void)
{
	for (size_t i = 0; i < ch.n + 1; i++)
		WROTE(letter(i), ch.d);
	flush(); /* gives up the oldest, though nothing is written there yet */
	for (size_t i = 2; i < ch.n + 1; i++)
		WANT("h %c*%zu", letter(i), ch.d);
	READS(READER(), MIB, "h");
}

static void not_lapped(void)
{
	int fd = READER();
	size_t m = ch.d * 7 / 16;

	write_pairs(0, 1, m);
	READS(fd, ch.h + 5, "h a*5");
	write_pairs(1, 2 * ch.n - 1, m);
	READS(fd, 5, "a*5");
	WANT("a*%zu", m - 10);
	want_pairs(1, 2 * ch.n - 1, m);
	READS(fd, MIB, "");
}

static void lapped(void)
{
	int fd = READER();
	size_t m = ch.d * 7 / 16;

	write_pairs(0, 2 * ch.n, m);
	READS(fd, ch.h + 5, "h a*5");
	write_pairs(2 * ch.n, 1, m);
	POLLS(fd, READABLE);
	READS(fd, 5, "a*5");
	WANT("a*%zu", m - 10);
	want_pairs(1, 2 * ch.n, m);
	READS(fd, MIB, "");
}

static void lapped_twice(void)
{
	int fd = READER();
	size_t m = ch.d * 7 / 16;

	write_pairs(0, 1, m);
	READS(fd, ch.h + 5, "h a*5");
	write_pairs(1, 1 + 4 * ch.n, m);
	WANT("a*%zu", m - 5);
	want_pairs(2 + 2 * ch.n, 2 * ch.n, m);
	READS(fd, MIB, "");
	POLLS(fd, 0);
}

static void single(void)
{
	int fd = READER();
	size_t m = ch.d * 7 / 16;

	write_pairs(0, 3, m);
	POLLS(fd, READABLE);
	READS(fd, MIB, "h c*%zu", m);
	READS(fd, MIB, "");
	POLLS(fd, 0);
	WROTE('d', ch.d);
	WROTE('e', ch.d);
	READS(fd, MIB, "h e*%zu", ch.d);
	WROTE('f', 10);
	flush();
	READS(fd, MIB, "h");
}

static void counted_losses(void)
{
	long long bytes = counted("overwritten_bytes"), subbufs = counted("overwritten_subbufs");

	for (size_t i = 0; i < ch.n + 2; i++)
		WROTE(letter(i), ch.d);
	READS(READER(), 0, "");
	for (size_t i = 2; i < ch.n + 2; i++)
		WANT("h %c*%zu", letter(i), ch.d);
	READS(READER(), MIB, "");
	EQ(counted("overwritten_bytes") - bytes, 2 * ch.s);
	EQ(counted("overwritten_subbufs") - subbufs, 2);
}

const struct test overwrite_cases[] = {
	{ "overwrite-keeps-the-newest", OVER, newest },
	{ "overwrite-gives-up-whole-sub-buffers", OVER, whole },
	{ "overwrite-and-flush", OVER, flushed },
	{ "overwrite-not-yet-lapped", OVER | MANY, not_lapped },
	{ "overwrite-of-what-is-being-read-unlike-kernel", OVER | MANY, lapped },
	{ "overwrite-twice-of-what-is-being-read-unlike-kernel", OVER | MANY, lapped_twice },
	{ "overwrite-with-a-single-sub-buffer", OVER | ONE, single },
	{ "overwrite-is-counted-unlike-kernel", OVER, counted_losses },
	{ 0 },
};
