/* Flush and reset: rules W7 and W8, table 4.7, H1 to H7, and what the kernel does to later data after empty flushes. */
#include "kit.h"

static void of_empty(void)
{
	for (int cpu = 0; cpu < ch.n_bufs; cpu++)
		POLLS(WORKS(open(file_of(cpu), O_RDONLY)), 0);
	flush();
	for (int cpu = 0; cpu < ch.n_bufs; cpu++) {
		int fd = WORKS(open(file_of(cpu), O_RDONLY));

		POLLS(fd, READABLE);
		READS(fd, MIB, "h %s", OPENED(1));
		POLLS(fd, 0);
	}
	WROTE('d', 10);
	READS(READER(), MIB, "%s d*10", *OPENED(1) ? "" : "h");
}

static void of_some(void)
{
	int fd = READER();

	WROTE('a', 20);
	flush();
	POLLS(fd, READABLE);
	READS(fd, MIB, "h a*20 %s", OPENED(1));
	POLLS(fd, 0);
}

static void of_partly_read(void)
{
	int fd = READER();

	WROTE('b', 20);
	READS(fd, ch.h + 12, "h b*12");
	flush();
	READS(fd, MIB, "b*8 %s", OPENED(1));
}

static void of_each(void)
{
	for (size_t i = 0; i < ch.n; i++) {
		WROTE(letter(i), 10);
		flush();
	}
	for (size_t i = ch.over ? 1 : 0; i < ch.n; i++)
		WANT("h %c*10", letter(i));
	READS(READER(), MIB, "%s", OPENED(ch.n));
}

/* The kernel would deliver what comes later many times, or only after several reads. */
static void many_of_empty(void)
{
	for (size_t n = 1; n <= ch.n + 1; n++) {
		int fd = READER(), blocked = !ch.over && n >= ch.n;

		for (size_t i = 0; i < n; i++)
			flush();
		if (blocked)
			IS_FULL('d', 10);
		else
			WROTE('d', 10);
		POLLS(fd, READABLE);
		READS(fd, 25, "%s", blocked ? "" : "d*10");
		READS(fd, 25, "");
		POLLS(fd, 0);
		WROTE('e', 10);
		READS(fd, MIB, "e*10");
		reset();
		WORKS(close(fd));
	}
}

static void empty_between(void)
{
	for (size_t n = 1; n < ch.n; n++) {
		int fd = READER();

		WROTE('a', 10);
		for (size_t i = 0; i < n; i++)
			flush();
		WROTE('b', 10);
		READS(fd, MIB, "a*10 b*10");
		READS(fd, MIB, "");
		reset();
		WORKS(close(fd));
	}
}

static void forgets(void)
{
	int fd = READER();
	off_t end;

	WROTE('a', ch.d - 10);
	WROTE('b', 20);
	READS(fd, ch.h + 15, "h a*15");
	end = WORKS(lseek(fd, 0, SEEK_END));
	WORKS(lseek(fd, ch.h + 15, SEEK_SET));
	reset();
	EQ(lseek(fd, 0, SEEK_CUR), ch.h + 15);
	EQ(lseek(READER(), 0, SEEK_END), end + ch.h);
	POLLS(fd, 0);
	for (int cpu = 0; cpu < ch.n_bufs; cpu++)
		READS(WORKS(open(file_of(cpu), O_RDONLY)), MIB, "h");
	READS(fd, MIB, "");
	WROTE('c', 10);
	READS(fd, MIB, "c*10");
}

static void unblocks(void)
{
	for (size_t i = 0; i < ch.n; i++)
		WROTE(letter(i), ch.d);
	IS_FULL('X', ch.d);
	reset();
	WROTE('z', ch.d);
	READS(READER(), MIB, "h z*%zu", ch.d);
}

/* What the reader has of a sub-buffer that was overwritten since is forgotten as well. */
static void forgets_lapped(void)
{
	int fd = READER();

	WROTE('F', ch.d);
	READS(fd, ch.h + 10, "h F*10");
	for (size_t i = 0; i < 2 * ch.n + 1; i++)
		WROTE(letter(i), ch.d);
	READS(fd, 10, "F*10");
	reset();
	READS(fd, MIB, "h");
	POLLS(fd, 0);
	WROTE('z', 10);
	READS(fd, MIB, "z*10");
}

const struct test flush_cases[] = {
	{ "flush-of-empty-sub-buffers", KEEPS, of_empty },
	{ "flush-of-some", KEEPS, of_some },
	{ "flush-of-partly-read", KEEPS, of_partly_read },
	{ "flush-after-each", 0, of_each },
	{ "flush-of-empty-many-times-unlike-kernel", NO_HEADER | MANY, many_of_empty },
	{ "flush-of-empty-between-messages-unlike-kernel", NO_HEADER | MANY, empty_between },
	{ "reset-forgets-what-is-unread", MANY, forgets },
	{ "reset-of-a-full-buffer", NO_OVER, unblocks },
	{ "reset-forgets-what-was-overwritten", OVER | MANY, forgets_lapped },
	{ 0 },
};
