/*
 * close(2), by whatever way, leaves what was not read; and how open files end when the channel does: table 4.10, of
 * files that can be mapped. Unlike the kernel's, such an end wakes who sleeps.
 */
#include "kit.h"

#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>

static void keeps(void)
{
	char byte;

	WROTE('c', 35);
	READS(READER(), ch.h, "h");
	for (int i = 0; i < 3; i++) {
		int fd = READER();

		READS(fd, 10, "c*10");
		WORKS(close(fd));
		FAILS(close(fd), EBADF);
		FAILS(read(fd, &byte, 1), EBADF);
	}
	READS(READER(), MIB, "c*5");
}

static void of_a_duplicate(void)
{
	int fd = READER(), copy = WORKS(dup(fd));

	WROTE('a', 20);
	READS(fd, ch.h + 10, "h a*10");
	WORKS(close(fd));
	READS(copy, 5, "a*5");
	EQ(lseek(copy, 0, SEEK_CUR), ch.h + 15);
	READS(copy, MIB, "a*5");
}

static void by_dying(void)
{
	int done[2];
	char byte;
	pid_t pid;

	WROTE('a', 30);
	WORKS(pipe(done));
	pid = WORKS(fork());
	if (pid == 0) {
		READS(READER(), ch.h + 10, "h a*10");
		WORKS(write(done[1], "!", 1));
		pause();
	}
	EQ(WORKS(read(done[0], &byte, 1)), 1);
	WORKS(kill(pid, SIGKILL));
	EQ(ended(pid), SIGKILL);
	READS(READER(), MIB, "a*20");
}

static void beside_sleepers(void)
{
	int shared = READER();
	pid_t first = sleeper(shared), second = sleeper(READER());

	for (int i = 0; i < 20; i++) {
		int fd = READER();

		POLLS(fd, 0);
		WORKS(close(fd));
	}
	WORKS(close(shared)); /* the sleeper has it still */
	WROTE('a', 10);
	flush();
	EQ(woken(first), READABLE);
	EQ(woken(second), READABLE);
}

static void while_watched(void)
{
	int fd = READER(), epoll = WORKS(epoll_create1(0));
	struct epoll_event event = { EPOLLIN, { 0 } };

	WORKS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
	WORKS(close(fd));
	WROTE('a', 10);
	flush();
	EQ(epoll_wait(epoll, &event, 1, 0), 0);
	POLLS(READER(), READABLE);
}

const struct test close_cases[] = {
	{ "close-keeps-what-is-unread", 0, keeps },
	{ "close-of-a-duplicate", 0, of_a_duplicate },
	{ "close-by-dying", 0, by_dying },
	{ "close-beside-who-sleeps", KEEPS, beside_sleepers },
	{ "close-while-watched", KEEPS, while_watched },
	{ 0 },
};

void channel_ends(void)
{
	struct stat before, after;
	size_t page = sysconf(_SC_PAGESIZE);
	char *map = NULL;
	int fd, twin, late_ring = -1;
	pid_t pid;

	reset();
	fd = READER();
	twin = READER();
	if (ch.rings)
		map = mmap(NULL, page, PROT_READ, MAP_SHARED, late_ring = RING(), 0);
	CHECK(map != MAP_FAILED, "mmap: expected a map, came %m");
	WROTE('a', 30);
	READS(fd, ch.h + 10, "h a*10");
	POLLS(fd, 0);
	WORKS(fstat(fd, &before));
	pid = sleeper(READER());
	printf("# waiting: now end the channel, umount -l %s\n", ch.mount);
	fflush(stdout);

	EQ(poll(&(struct pollfd){ fd, POLLIN, 0 }, 1, -1), 1);
	POLLS(fd, POLLERR);
	EQ(woken(pid), POLLERR);
	FAILS(open(file_of(ch.cpu), O_RDONLY), ENOENT);
	READS(fd, 5, "a*5");
	READS(twin, MIB, "a*15");
	READS(fd, MIB, "");
	POLLS(fd, POLLERR);
	WORKS(fstat(fd, &after));
	EQ(after.st_size, before.st_size);
	EQ(lseek(fd, 0, SEEK_CUR), ch.h + 15);
	if (ch.rings) {
		ARE(map, ch.h + 30, "h a*30");
		map = mmap(NULL, page, PROT_READ, MAP_SHARED, late_ring, 0);
		CHECK(map != MAP_FAILED, "mmap: expected a map, came %m");
		ARE(map, ch.h + 30, "h a*30");
		WORKS(close(late_ring));
		ARE(map, ch.h + 30, "h a*30");
	}
}
