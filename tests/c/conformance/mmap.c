/*
 * mmap(2): a buffer's file refuses it, as on debugfs; map/cpuN gives the ring itself, as the kernel's files that can be
 * mapped do (table 4.8). FUSE asks the daemon for no length and no offset. Message number i after a reset is in slot i,
 * behind the header.
 */
#include "kit.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

static size_t page(void)
{
	return sysconf(_SC_PAGESIZE);
}

/* The length of the ring in pages. */
static size_t ring(void)
{
	return (ch.s * ch.n + page() - 1) / page() * page();
}

static char *map(int fd, int prot, int flags)
{
	char *at = mmap(NULL, ring(), prot, flags, fd, 0);

	CHECK(at != MAP_FAILED, "mmap: expected a map, came %m");
	return at;
}

static void live(void)
{
	int fd = READER();
	char *at = map(RING(), PROT_READ, MAP_SHARED), *twin = map(RING(), PROT_READ, MAP_SHARED);

	WROTE('a', ch.d - 10);
	ARE(at, ch.s - 10, "h a*%zu", ch.d - 10);
	WROTE('b', 20);
	ARE(at, ch.s - 10, "h a*%zu", ch.d - 10);
	ARE(at + ch.s, ch.h + 20, "h b*20");
	ARE(twin + ch.s, ch.h + 20, "h b*20");
	POLLS(fd, READABLE);
	READS(fd, ch.h + 10, "h a*10");
	READS(fd, MIB, "a*%zu h b*20", ch.d - 20);
	ARE(at, ch.s - 10, "h a*%zu", ch.d - 10);
	reset();
	ARE(at + ch.s, ch.h + 20, "h b*20");
	READS(fd, MIB, "h");
	WROTE('c', 10);
	ARE(at, ch.s - 10, "h c*10 a*%zu", ch.d - 20);
	WORKS(munmap(at, ring()));
	READS(fd, MIB, "c*10");
}

static void consumes_nothing(void)
{
	int fd = READER(), ring_fd = RING();
	char *at = map(ring_fd, PROT_READ, MAP_SHARED | MAP_POPULATE);
	char *copy = map(ring_fd, PROT_READ, MAP_PRIVATE | MAP_POPULATE), *read_from = malloc(ring());
	struct stat stat;
	volatile char sum = 0;

	WROTE('a', 20);
	for (size_t i = 0; i < ring(); i++)
		sum += at[i] + copy[i];
	WORKS(fstat(ring_fd, &stat));
	EQ(stat.st_size, ring());
	/* Reading it gives the same bytes, at any time. */
	for (int i = 0; i < 2; i++) {
		EQ(WORKS(pread(ring_fd, read_from, ring(), 0)), ring());
		EQ(memcmp(read_from, at, ring()), 0);
	}
	POLLS(ring_fd, READABLE | POLLOUT | POLLWRNORM);
	free(read_from);
	EQ(lseek(fd, 0, SEEK_CUR), 0);
	READS(fd, MIB, "h a*20");
}

static void lengths(void)
{
	const size_t lens[] = { 1, page(), ch.s, ch.s * ch.n, ring() };
	int fd = RING();

	WROTE('a', 20);
	for (int i = 0; i < 5; i++) {
		char *at = mmap(NULL, lens[i], PROT_READ, MAP_SHARED, fd, 0);

		CHECK(at != MAP_FAILED, "mmap of %zu: expected a map, came %m", lens[i]);
		/* Whole pages, whatever was asked. */
		ARE(at, ch.h + 20, "h a*20");
		WORKS(munmap(at, lens[i]));
	}
	FAILS(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0), EINVAL);
	FAILS(mmap(NULL, page(), PROT_READ, MAP_SHARED, fd, 100), EINVAL);
}

/* Whether looking at a byte ends a process, and by which signal. */
static int signal_at(const volatile char *byte)
{
	pid_t pid = WORKS(fork());

	if (pid == 0) {
		signal(SIGBUS, SIG_DFL);
		(void)*byte;
		_exit(0);
	}
	return ended(pid);
}

static void beyond(void)
{
	int fd = RING();
	char *at = mmap(NULL, ring() + page(), PROT_READ, MAP_SHARED, fd, 0);

	CHECK(at != MAP_FAILED, "mmap of a page more: expected a map, came %m");
	EQ(signal_at(at), 0);
	EQ(signal_at(at + ring() - 1), 0);
	EQ(signal_at(at + ring()), SIGBUS);
	at = mmap(NULL, page(), PROT_READ, MAP_SHARED, fd, ring());
	CHECK(at != MAP_FAILED, "mmap behind the ring: expected a map, came %m");
	EQ(signal_at(at), SIGBUS);
}

static void not_written(void)
{
	int fd = RING();
	char *at;

	FAILS(mmap(NULL, ring(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), EACCES);
	FAILS(mmap(NULL, ring(), PROT_WRITE, MAP_SHARED, fd, 0), EACCES);
	at = map(fd, PROT_READ, MAP_SHARED);
	FAILS(mprotect(at, ring(), PROT_READ | PROT_WRITE), EACCES);
}

static void copied(void)
{
	int fd = RING();
	char *mine = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE), *at = map(fd, PROT_READ, MAP_SHARED);

	WROTE('a', 20);
	ARE(mine, ch.h + 20, "h a*20");
	memset(mine, 'X', ch.h + 10);
	ARE(mine, ch.h + 20, "X*%zu a*10", ch.h + 10);
	ARE(at, ch.h + 20, "h a*20");
	READS(READER(), MIB, "h a*20");
}

static void outlives(void)
{
	int fd = RING();
	char *at = map(fd, PROT_READ, MAP_SHARED);

	WORKS(close(fd));
	WROTE('a', 20);
	ARE(at, ch.h + 20, "h a*20");
}

static void inherited(void)
{
	char *at = map(RING(), PROT_READ, MAP_SHARED);
	int go[2];
	pid_t pid;

	WORKS(pipe(go));
	pid = WORKS(fork());
	if (pid == 0) {
		char byte;

		WORKS(read(go[0], &byte, 1));
		ARE(at, ch.h + 20, "h a*20");
		_exit(0);
	}
	WROTE('a', 20);
	WORKS(write(go[1], "!", 1));
	EQ(ended(pid), 0);
}

static void advised(void)
{
	int fd = RING();
	char *at = map(fd, PROT_READ, MAP_SHARED);

	WROTE('a', 20);
	WORKS(madvise(at, ring(), MADV_DONTNEED));
	WORKS(msync(at, ring(), MS_SYNC));
	WORKS(mlock(at, page()));
	ARE(at, ch.h + 20, "h a*20");
	READS(READER(), MIB, "h a*20");
}

static void by_writers(void)
{
	int fd = WORKS(open(ring_of(ch.cpu), O_RDWR)), only = WORKS(open(ring_of(ch.cpu), O_WRONLY));
	char *at = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);

	FAILS(mmap(NULL, ring(), PROT_READ, MAP_SHARED, only, 0), EACCES);
	WROTE('a', 20);
	at[ch.h] = 'X';
	READS(READER(), MIB, "h X*1 a*19");
}

/* A program that maps what it reads finds out at once that it cannot, and reads. */
static void refused(void)
{
	int fd = READER(), both = geteuid() == 0 ? (int)WORKS(open(file_of(ch.cpu), O_RDWR)) : fd;

	WROTE('a', 20);
	for (int i = 0; i < 2; i++) {
		int how = i ? MAP_PRIVATE : MAP_SHARED;

		FAILS(mmap(NULL, ring(), PROT_READ, how, fd, 0), ENODEV);
		FAILS(mmap(NULL, page(), PROT_READ, how | MAP_POPULATE, fd, 0), ENODEV);
		FAILS(mmap(NULL, 1, PROT_READ, how, both, page()), ENODEV);
	}
	FAILS(mmap(NULL, page(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0), ENODEV);
	READS(fd, MIB, "h a*20");
}

static void none(void)
{
	int fd = READER(), ring_fd = RING();
	char *at;

	WROTE('a', 20);
	FAILS(mmap(NULL, ring(), PROT_READ, MAP_SHARED, fd, 0), ENODEV);
	FAILS(mmap(NULL, page(), PROT_READ, MAP_SHARED, fd, 0), ENODEV);
	FAILS(mmap(NULL, ring(), PROT_READ, MAP_SHARED, ring_fd, 0), ENODEV);
	/* A private one is granted, but there is nothing to look at. */
	at = map(fd, PROT_READ, MAP_PRIVATE);
	EQ(signal_at(at), SIGBUS);
	READS(fd, MIB, "h a*20");
}

const struct test mmap_cases[] = {
	{ "mmap-of-the-file-is-refused", RINGS, refused },
	{ "mmap-is-the-live-ring", RINGS | MANY, live },
	{ "mmap-consumes-nothing", RINGS, consumes_nothing },
	{ "mmap-of-any-length-unlike-kernel", RINGS, lengths },
	{ "mmap-beyond-the-ring-unlike-kernel", RINGS, beyond },
	{ "mmap-is-not-written", RINGS, not_written },
	{ "mmap-private-is-a-copy", RINGS, copied },
	{ "mmap-outlives-the-descriptor", RINGS, outlives },
	{ "mmap-is-inherited", RINGS, inherited },
	{ "mmap-is-advised-and-locked", RINGS, advised },
	{ "mmap-by-who-may-write", RINGS | ROOT, by_writers },
	{ "mmap-is-refused-without-passthrough", NO_RINGS, none },
	{ 0 },
};
