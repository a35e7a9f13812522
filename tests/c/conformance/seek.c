/*
 * lseek(2) and pread(2). The kernel's relay files have no position (F19, F20); here it is the one in the stream since
 * creation, and a read is served from there or from the cursor, whichever is further on.
 */
#include "kit.h"

#include <sys/stat.h>
#include <sys/uio.h>

static void refusals(void)
{
	int fd = READER();
	char byte;

	FAILS(lseek(fd, 0, 42), EINVAL);
	FAILS(lseek(fd, -1, SEEK_SET), EINVAL);
	FAILS(pread(fd, &byte, 1, -1), EINVAL);
	WROTE('a', 10);
	READS(fd, MIB, "h a*10");
}

static void positions(void)
{
	int fd = READER();
	struct stat stat;

	EQ(lseek(fd, 0, SEEK_CUR), 0);
	WROTE('a', 30);
	READS(fd, ch.h + 10, "h a*10");
	EQ(lseek(fd, 0, SEEK_CUR), ch.h + 10);
	WORKS(fstat(fd, &stat));
	EQ(lseek(fd, 0, SEEK_END), stat.st_size);
	EQ(lseek(fd, ch.h + 10, SEEK_SET), ch.h + 10);
	READS(fd, MIB, "a*20"); /* seeking alone consumes nothing */
	READS(fd, MIB, "");
	EQ(lseek(fd, 0, SEEK_CUR), ch.h + 30);
}

static void back(void)
{
	int fd = READER();

	WROTE('a', 20);
	WROTE('b', 10);
	READS(fd, ch.h + 25, "h a*20 b*5");
	EQ(lseek(fd, -10, SEEK_CUR), ch.h + 15);
	READS(fd, 7, "a*5 b*2");
	READS(fd, MIB, "b*3"); /* so far it has been */
	READS(fd, MIB, "b*5");
	READS(READER(), MIB, ""); /* another open file has seen nothing */
	EQ(lseek(fd, 0, SEEK_SET), 0);
	READS(fd, MIB, "h a*20 b*10");
	READS(fd, MIB, "");
}

static void forward(void)
{
	int fd = READER();
	off_t end;

	WROTE('a', 20);
	WROTE('b', 20);
	end = WORKS(lseek(fd, 0, SEEK_END));
	EQ(lseek(fd, -5, SEEK_END), end - 5);
	READS(fd, MIB, "b*5");
	READS(READER(), MIB, ""); /* what was passed over is gone */
}

static void across(void)
{
	int fd = READER();

	for (size_t i = 0; i < ch.n; i++)
		WROTE(letter(i), ch.d);
	WORKS(lseek(fd, -10, SEEK_END));
	READS(fd, MIB, "%c*10", letter(ch.n - 1));
	POLLS(fd, 0);
	for (size_t i = 0; i < ch.n - 1; i++)
		WROTE('z', ch.d); /* it has made room */
}

static void beyond(void)
{
	int fd = READER();
	char bytes[10];
	off_t end;

	WROTE('a', 20);
	end = WORKS(lseek(fd, 0, SEEK_END));
	EQ(pread(fd, bytes, 10, end), 0);
	EQ(pread(fd, bytes, 10, end + (1 << 20)), 0);
	WROTE('c', 10);
	READS(READER(), MIB, "c*10");
}

static void by_pread(void)
{
	int fd = READER(), other = READER();
	char bytes[20];
	struct iovec parts[2] = { { bytes, 4 }, { bytes + 4, 6 } };

	READS(fd, MIB, "h");
	WROTE('a', 20);
	WROTE('b', 20);
	READS(fd, 10, "a*10");
	/* Behind the cursor is at the cursor. */
	EQ(pread(other, bytes, 10, 0), 10);
	ARE(bytes, 10, "a*10");
	EQ(preadv(other, parts, 2, 10), 10);
	ARE(bytes, 10, "b*10");
	EQ(pread(other, bytes, 0, 0), 0);
	EQ(lseek(other, 0, SEEK_CUR), 0);
	READS(fd, MIB, "b*10");
}

const struct test seek_cases[] = {
	{ "lseek-refusals", 0, refusals },
	{ "lseek-goes-by-the-stream-unlike-kernel", 0, positions },
	{ "lseek-back-gives-the-same-again-unlike-kernel", 0, back },
	{ "lseek-forward-consumes-unlike-kernel", 0, forward },
	{ "lseek-forward-across-sub-buffers-unlike-kernel", 0, across },
	{ "lseek-beyond-the-end-unlike-kernel", 0, beyond },
	{ "pread-goes-by-the-stream-unlike-kernel", 0, by_pread },
	{ 0 },
};
