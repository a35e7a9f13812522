/*
 * Closes standard streams and then uses a library: whatever the library opens, nothing of it is one of them.
 *
 *   streams write MASK MOUNT CHANNEL    opens the channel, prints, writes, flushes, closes. MASK: bit N closes descriptor N
 *   streams print MASK MOUNT CHANNEL    opens and closes the channel often, while a thread prints all the time
 *   streams mount MASK MOUNT            mounts a relayfs, prints, unmounts: for the library that is preloaded
 *
 * Ends with 0, or says on descriptor 100, a copy of its standard error, what is wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <relay.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#define SAY 100

static int mask, ended;

static int is_closed(int fd)
{
	return (mask & (1 << fd)) != 0;
}

static void fail(const char *what)
{
	dprintf(SAY, "closed %d: %s: %s\n", mask, what, strerror(errno));
	_exit(1);
}

/* What was closed is closed, and all that is open besides is not inherited by programs that are executed. */
static void look(const char *when)
{
	int fd;

	for (fd = 0; fd < 100; fd++) {
		int flags = fcntl(fd, F_GETFD), is_wrong;

		if (fd > 2)
			is_wrong = flags >= 0 && !(flags & FD_CLOEXEC);
		else if (is_closed(fd))
			is_wrong = flags >= 0;
		else
			is_wrong = flags < 0;
		if (is_wrong) {
			dprintf(SAY, "closed %d: descriptor %d has flags %d %s\n", mask, fd, flags, when);
			_exit(1);
		}
	}
}

static void print(void)
{
	int fd;

	for (fd = 0; fd <= 2; fd++)
		if (is_closed(fd) && write(fd, "printed by the program\n", 23) >= 0)
			fail("what was printed has gone somewhere");
	printf("printed\n");
	fflush(stdout);
	fprintf(stderr, "printed\n");
}

static void *print_all_the_time(void *unused)
{
	while (!__atomic_load_n(&ended, __ATOMIC_RELAXED))
		print();
	return unused;
}

static void write_messages(const char *point, const char *name)
{
	struct rchan *chan = relay_open_at(point, name, NULL, 4096, 4, NULL, NULL);
	int i;

	if (!chan)
		fail("relay_open_at");
	look("after relay_open_at");
	print();
	for (i = 0; i < 2; i++) {
		if (relay_write(chan, "message\n", 8) || relay_flush(chan))
			fail("writing");
		print();
	}
	if (relay_buf_full(chan->buf[0]) != 0)
		fail("relay_buf_full");
	errno = 0;
	relay_subbufs_consumed(chan, 0, 1);
	if (errno)
		fail("relay_subbufs_consumed");
	look("after all calls");
	if (relay_close(chan))
		fail("relay_close");
}

static void open_often(const char *point, const char *name)
{
	pthread_t thread;
	int i;

	if (pthread_create(&thread, NULL, print_all_the_time, NULL))
		fail("pthread_create");
	for (i = 0; i < 300; i++) {
		struct rchan *chan = relay_open_at(point, name, NULL, 4096, 4, NULL, NULL);

		if (!chan)
			fail("relay_open_at");
		relay_buf_full(chan->buf[0]);
		if (relay_close(chan))
			fail("relay_close");
	}
	__atomic_store_n(&ended, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
}

static void mount_it(const char *point)
{
	if (mount("relayfs", point, "relayfs", 0, NULL))
		fail("mount");
	look("after mount");
	print();
	if (umount(point))
		fail("umount");
}

int main(int argc, char **argv)
{
	int fd;

	if (argc < 4 || fcntl(2, F_DUPFD, SAY) != SAY)
		return 2;
	for (fd = 3; fd < SAY; fd++)
		close(fd);
	mask = atoi(argv[2]);
	for (fd = 0; fd <= 2; fd++)
		if (is_closed(fd))
			close(fd);
	if (!strcmp(argv[1], "write"))
		write_messages(argv[3], argv[4]);
	else if (!strcmp(argv[1], "print"))
		open_often(argv[3], argv[4]);
	else
		mount_it(argv[3]);
	look("at the end");
	return 0;
}
