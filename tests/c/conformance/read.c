/*
 * read(2): never waits, crosses sub-buffers, shows no padding, gives the unfinished sub-buffer too. The kernel's rules
 * R1 to R4 and its table of reads, D1 to D22.
 */
#include "kit.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>

static void empty(void)
{
	static const size_t counts[] = { 0, 1, 4096, MIB };
	int blocking = READER(), not = WORKS(open(file_of(ch.cpu), O_RDONLY | O_NONBLOCK));

	READS(blocking, MIB, "h");
	for (int i = 0; i < 4; i++) {
		READS(blocking, counts[i], "");
		READS(not, counts[i], "");
	}
}

static void goes_on(void)
{
	int fd = READER();

	READS(fd, MIB, "h");
	for (int i = 0; i < 5; i++) {
		WROTE(letter(i), 7);
		READS(fd, MIB, "%c*7", letter(i));
		READS(fd, MIB, "");
	}
}

static void unfinished(void)
{
	int fd = READER();

	WROTE('a', 20);
	READS(fd, ch.h + 15, "h a*15");
	READS(fd, MIB, "a*5");
	WROTE('b', 10);
	READS(fd, MIB, "b*10");
	WROTE('c', ch.d - 30);
	READS(fd, MIB, "c*%zu", ch.d - 30);
	READS(fd, MIB, "");
}

static void nothing_asked(void)
{
	int fd = READER();

	WROTE('a', ch.d);
	READS(fd, MIB, "h a*%zu", ch.d);
	flush();
	POLLS(fd, READABLE);
	EQ(read(fd, NULL, 0), 0);
	POLLS(fd, READABLE);
	READS(fd, MIB, "%s", OPENED(1));
	POLLS(fd, 0);
}

static void crosses(void)
{
	int fd = READER();
	size_t a = ch.d * 7 / 8, z = ch.d / 2;

	WROTE('a', a);
	WROTE('z', z);
	READS(fd, MIB, "h a*%zu h z*%zu", a, z);
	reset();
	WROTE('a', a);
	WROTE('z', z);
	READS(fd, ch.h + a + ch.h + 3, "h a*%zu h z*3", a);
	READS(fd, ch.s, "z*%zu", z - 3);
	READS(fd, ch.s, "");
}

static void padding(void)
{
	int fd = READER();
	size_t d = ch.d;

	WROTE('a', d - 5);
	WROTE('b', 10); /* behind 5 bytes of padding */
	READS(fd, ch.h + d - 8, "h a*%zu", d - 8);
	for (int i = 0; i < 3; i++) {
		POLLS(fd, READABLE);
		READS(fd, 1, "a*1");
	}
	POLLS(fd, 0);
	READS(fd, ch.h, "h");
	for (int i = 0; i < 10; i++)
		READS(fd, 1, "b*1");
	READS(fd, 1, "");
	WROTE('c', d - 19);
	WROTE('d', 20); /* behind 9 bytes */
	READS(fd, d - 29, "c*%zu", d - 29);
	READS(fd, 7, "c*7");
	READS(fd, ch.h + 7, "c*3 h d*4");
	READS(fd, 7, "d*7");
	READS(fd, 7, "d*7");
	READS(fd, 7, "d*2");
	READS(fd, 7, "");
}

/* As many messages as there are sub-buffers, one in each, of bytes that differ; and the stream that they make. */
static size_t fill(char *stream)
{
	size_t len = ch.d * 2 / 3 + 1, at = 0;

	for (size_t i = 0; i < ch.n; i++) {
		memset(stream + at, 0, ch.h);
		for (size_t j = 0; j < len; j++)
			stream[at + ch.h + j] = (i + j) % 251 + 1;
		EQ(put_bytes(ch.cpu, stream + at + ch.h, len), WRITTEN);
		at += ch.h + len;
	}
	return at;
}

static void any_size(void)
{
	static char stream[MIB], got[MIB + 1];
	const size_t counts[] = { ch.s / 500 + 7, ch.s / 100 + 97, ch.s - 1, ch.s, ch.s + 1, MIB };

	for (int i = 0; i < 6; i++) {
		int fd = READER();
		size_t len = fill(stream), n_read = 0;

		for (;;) {
			size_t asked = counts[i] < MIB + 1 - n_read ? counts[i] : MIB + 1 - n_read;
			ssize_t n = WORKS(read(fd, got + n_read, asked));

			EQ(n, asked < len - n_read ? asked : len - n_read);
			if (n == 0)
				break;
			n_read += n;
		}
		CHECK(!memcmp(got, stream, len), "reads of %zu: expected what was written, came something else", counts[i]);
		WORKS(close(fd));
		reset();
	}
}

static void by_readv(void)
{
	static char one[5], two[MIB], three[MIB];
	struct iovec parts[3] = { { one, 5 }, { two, 0 }, { three, ch.s } };
	int fd = READER();

	READS(fd, MIB, "h");
	WROTE('a', ch.d - 5);
	WROTE('b', 15);
	/* The second ends within b, the third gets the rest. */
	parts[1].iov_len = ch.d - 10 + ch.h + 8;
	EQ(WORKS(readv(fd, parts, 3)), ch.d - 5 + ch.h + 15);
	ARE(one, 5, "a*5");
	ARE(two, parts[1].iov_len, "a*%zu h b*8", ch.d - 10);
	ARE(three, 7, "b*7");
	EQ(readv(fd, parts, 3), 0);
}

static void by_preadv2(void)
{
	char bytes[10];
	struct iovec part = { bytes, 10 };
	int fd = READER();

	READS(fd, MIB, "h");
	WROTE('a', 15);
	FAILS(preadv2(fd, &part, 1, -1, RWF_NOWAIT), EOPNOTSUPP);
	EQ(preadv2(fd, &part, 1, -1, 0), 10);
	ARE(bytes, 10, "a*10");
	EQ(preadv2(fd, &part, 1, -1, 0), 5);
	ARE(bytes, 5, "a*5");
	EQ(preadv2(fd, &part, 1, -1, 0), 0);
}

/* Two pages, of which the second cannot be touched: where that begins. */
static char *edge(void)
{
	long page = sysconf(_SC_PAGESIZE);
	char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(pages != MAP_FAILED, "memory: %m");
	WORKS(mprotect(pages + page, page, PROT_NONE));
	return pages + page;
}

static void bad_pointer(void)
{
	char *volatile nowhere = NULL;
	char *end = edge();
	int fd = READER();
	struct iovec part = { end, 10 };

	WROTE('a', 30);
	FAILS(read(fd, nowhere, 100), EFAULT);
	FAILS(read(fd, end, 100), EFAULT);
	FAILS(read(fd, (char *)((uintptr_t)1 << 63), 100), EFAULT);
	FAILS(readv(fd, &part, 1), EFAULT);
	FAILS(readv(fd, (struct iovec *)end, 1), EFAULT);
	EQ(lseek(fd, 0, SEEK_CUR), 0);
	READS(fd, MIB, "h a*30");
}

static void partly_bad_pointer(void)
{
	char *end = edge();
	int fd = READER();

	READS(fd, MIB, "h");
	WROTE('a', 30);
	EQ(read(fd, end - 20, 100), 20);
	ARE(end - 20, 20, "a*20");
	READS(fd, MIB, "a*10");
}

static void processes(void)
{
	enum { N_READERS = 4 };
	static char stream[MIB];
	size_t len = fill(stream), total = 0;
	long(*counts)[256] = mmap(NULL, N_READERS * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	long expected[256] = { 0 };
	pid_t pids[N_READERS];

	CHECK(counts != MAP_FAILED, "memory: %m");
	for (int i = 0; i < N_READERS; i++) {
		pids[i] = WORKS(fork());
		if (pids[i] == 0) {
			int fd = READER();
			unsigned char bytes[97];
			ssize_t n;

			while ((n = WORKS(read(fd, bytes, sizeof bytes))) > 0)
				for (ssize_t j = 0; j < n; j++)
					counts[i][bytes[j]]++;
			_exit(0);
		}
	}
	for (int i = 0; i < N_READERS; i++)
		EQ(ended(pids[i]), 0);
	for (size_t i = 0; i < len; i++)
		expected[(unsigned char)stream[i]]++;
	for (int byte = 0; byte < 256; byte++) {
		long came = 0;

		for (int i = 0; i < N_READERS; i++)
			came += counts[i][byte];
		CHECK(came == expected[byte], "byte %d: expected %ld times, came %ld times", byte, expected[byte], came);
		total += came;
	}
	EQ(total, len);
}

static void in_one_file(void)
{
	for (int i = 0; i < 20; i++)
		WROTE('A' + i, 1);
	for (int i = 0; i < 20; i++)
		WANT("%s%c*1", i ? "" : "h ", 'A' + i);
	READS(READER(), MIB, "");
	/* The others have at most what was sent while it came to them; this one has nothing more. */
	for (int cpu = 0; cpu < ch.n_bufs; cpu++) {
		int fd = WORKS(open(file_of(cpu), O_RDONLY));
		char got[4096];
		ssize_t len;

		while ((len = WORKS(read(fd, got, sizeof got))) > 0)
			for (ssize_t i = 0; i < len; i++)
				CHECK(cpu != ch.cpu && (!got[i] || (got[i] >= 'A' && got[i] < 'A' + 20)), "a byte %d in %s",
				      got[i], file_of(cpu));
	}
}

static void of_another_cpu(void)
{
	int other = (ch.cpu + 1) % ch.n_bufs, fd = WORKS(open(file_of(other), O_RDONLY));

	READS(READER(), MIB, "h");
	READS(fd, MIB, "h");
	EQ(put(other, 'o', 10), WRITTEN);
	READS(fd, MIB, "o*10");
}

static void exact_fill(void)
{
	int fd = READER();

	WROTE('a', ch.d);
	POLLS(fd, 0);
	READS(fd, MIB, "h a*%zu", ch.d);
	READS(fd, MIB, "");
	WROTE('b', 1);
	POLLS(fd, READABLE);
	READS(fd, MIB, "h b*1");
	POLLS(fd, 0);
}

static void not_split(void)
{
	int fd = READER();

	WROTE('a', 10);
	READS(fd, MIB, "h a*10");
	WROTE('b', ch.d); /* all but 10 of it would fit */
	READS(fd, MIB, "h b*%zu", ch.d);
	WROTE('c', ch.d / 2);
	WROTE('d', ch.d / 2 + ch.d % 2);
	READS(fd, MIB, "h c*%zu d*%zu", ch.d / 2, ch.d / 2 + ch.d % 2);
}

static void too_big(void)
{
	int fd = READER();
	off_t end;

	READS(fd, MIB, "h");
	end = lseek(fd, 0, SEEK_END);
	IS_TOO_BIG('x', ch.s + 1);
	POLLS(fd, 0);
	EQ(lseek(fd, 0, SEEK_END), end);
	WORKS(lseek(fd, 0, SEEK_SET));
	WROTE('b', 10);
	IS_TOO_BIG('x', ch.s + 1);
	WROTE('d', 10);
	READS(READER(), MIB, "b*10 d*10");
}

static void follows(void)
{
	int fd = READER();
	size_t len = ch.d / 3;

	for (size_t i = 0; i < 3 * ch.n + 2; i++) {
		WROTE(letter(i), len);
		READS(fd, MIB, "%s %c*%zu", i % 3 ? "" : "h", letter(i), len);
		READS(fd, MIB, "");
	}
}

const struct test read_cases[] = {
	{ "read-of-nothing-there", 0, empty },
	{ "read-goes-on-after-the-end", 0, goes_on },
	{ "read-of-the-unfinished", 0, unfinished },
	{ "read-of-0-bytes-does-nothing", KEEPS, nothing_asked },
	{ "read-crosses-sub-buffers", MANY, crosses },
	{ "read-hides-padding", MANY, padding },
	{ "read-of-any-size", 0, any_size },
	{ "read-by-readv", MANY, by_readv },
	{ "read-by-preadv2", 0, by_preadv2 },
	{ "read-to-a-bad-pointer-unlike-kernel", 0, bad_pointer },
	{ "read-to-a-partly-bad-pointer-unlike-kernel", 0, partly_bad_pointer },
	{ "read-by-processes-at-once", 0, processes },
	{ "read-of-one-buffer-only", 0, in_one_file },
	{ "read-of-another-cpu", CPUS, of_another_cpu },
	{ "read-of-an-exact-fill", MANY, exact_fill },
	{ "read-messages-are-not-split", MANY, not_split },
	{ "read-without-what-was-too-big", 0, too_big },
	{ "read-follows-the-writer", MANY, follows },
	{ 0 },
};
