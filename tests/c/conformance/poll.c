/*
 * poll(2), select(2) and epoll: a finished sub-buffer that is not given back is what they tell of, and nothing else;
 * and whoever sleeps is woken by it. The kernel's table 4.6 and R5.
 */
#include "kit.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>

static void states(void)
{
	int fd = READER();

	POLLS(fd, 0);
	WROTE('a', ch.d - 10);
	POLLS(fd, 0);
	WROTE('b', 10); /* exactly full */
	POLLS(fd, 0);
	WROTE('c', 10);
	POLLS(fd, READABLE);
	READS(fd, ch.h + 10, "h a*10");
	POLLS(fd, READABLE);
	READS(fd, ch.d - 10, "a*%zu b*10", ch.d - 20);
	POLLS(fd, 0); /* though there is c */
	READS(fd, MIB, "h c*10");
	flush();
	POLLS(fd, READABLE);
	READS(fd, MIB, "h");
	POLLS(fd, 0);
	flush(); /* an empty one */
	POLLS(fd, READABLE);
	reset();
	POLLS(fd, 0);
	for (size_t i = 0; i < 2 * ch.n + 1; i++)
		put(ch.cpu, letter(i), ch.d); /* full, or lapped */
	POLLS(fd, READABLE);
}

static void without_data(void)
{
	int fd = READER();

	WROTE('a', 10);
	READS(fd, MIB, "a*10");
	flush();
	POLLS(fd, READABLE);
	READS(fd, MIB, "");
	POLLS(fd, 0);
}

static void times_out(void)
{
	struct pollfd asked = { READER(), POLLIN, 0 };

	WROTE('a', ch.d);
	EQ(poll(&asked, 1, 0), 0);
	EQ(poll(&asked, 1, 20), 0);
	EQ(asked.revents, 0);
}

static void by_select(void)
{
	int fd = READER();
	struct timeval no_time = { 0, 0 };
	fd_set in, out, other;

	for (int is_readable = 0; is_readable < 2; is_readable++) {
		FD_ZERO(&in);
		FD_ZERO(&out);
		FD_ZERO(&other);
		FD_SET(fd, &in);
		FD_SET(fd, &out);
		FD_SET(fd, &other);
		EQ(select(fd + 1, &in, &out, &other, &no_time), is_readable);
		EQ(!!FD_ISSET(fd, &in), is_readable);
		EQ(!!FD_ISSET(fd, &out), 0);
		EQ(!!FD_ISSET(fd, &other), 0);
		if (!is_readable) {
			WROTE('a', 10);
			flush();
		}
	}
}

static void woken_by_a_message(void)
{
	int fd = READER();
	pid_t pid;

	WROTE('a', ch.d);
	pid = sleeper(fd);
	put(ch.cpu, 'b', 1); /* with a single sub-buffer it is dropped, having finished the other */
	EQ(woken(pid), READABLE);
}

static void woken_by_flush(void)
{
	int fd = READER();
	pid_t pid;

	WROTE('a', 1);
	READS(fd, MIB, "h a*1");
	pid = sleeper(fd);
	flush();
	EQ(woken(pid), READABLE);
}

static void woken_in_select(void)
{
	int fd = READER();
	pid_t pid = WORKS(fork());

	if (pid == 0) {
		fd_set in;

		FD_ZERO(&in);
		FD_SET(fd, &in);
		_exit(select(fd + 1, &in, NULL, NULL, NULL) == 1 && FD_ISSET(fd, &in) ? 0 : 1);
	}
	EVENTUALLY(sleeps(pid));
	WROTE('a', 10);
	flush();
	EQ(ended(pid), 0);
}

static void all_woken(void)
{
	enum { N = 12 };
	pid_t pids[N];
	int shared = READER();

	for (int i = 0; i < N; i++)
		pids[i] = sleeper(i % 2 ? shared : READER());
	WROTE('a', 10);
	flush();
	for (int i = 0; i < N; i++)
		EQ(woken(pids[i]), READABLE);
}

static void not_woken(void)
{
	int fd = READER();
	pid_t pid = sleeper(fd);

	WROTE('a', ch.d - 10);
	WROTE('b', 10);
	IS_TOO_BIG('x', ch.s + 1);
	reset();
	WROTE('c', 10);
	READS(fd, MIB, "h c*10");
	EVENTUALLY(sleeps(pid));
	flush();
	EQ(woken(pid), READABLE);
}

static int watch(int fd, uint32_t how)
{
	int epoll = WORKS(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event event = { EPOLLIN | EPOLLOUT | EPOLLPRI | how, { .u64 = 7 } };

	WORKS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
	return epoll;
}

/* What there is within the time: no event is 0. */
static uint32_t told(int epoll, int seconds)
{
	struct epoll_event event = { 0 };
	int n = WORKS(epoll_wait(epoll, &event, 1, seconds * 1000));

	if (n)
		EQ(event.data.u64, 7);
	return n ? event.events : 0;
}

static void level_triggered(void)
{
	int fd = READER(), epoll = watch(fd, 0);

	EQ(told(epoll, 0), 0);
	WROTE('a', ch.d);
	EQ(told(epoll, 0), 0);
	WROTE('b', 10);
	for (int i = 0; i < 3; i++)
		EQ(told(epoll, DEADLINE), EPOLLIN);
	READS(fd, MIB, "h a*%zu h b*10", ch.d);
	EQ(told(epoll, 0), 0);
}

static void edge_triggered(void)
{
	int fd = READER(), epoll = watch(fd, EPOLLET);

	WROTE('a', ch.d);
	EQ(told(epoll, 0), 0);
	for (int i = 0; i < 4; i++) {
		WROTE('b', ch.d);
		EQ(told(epoll, DEADLINE), EPOLLIN);
		EQ(told(epoll, 0), 0); /* once a switch */
		READS(fd, ch.s, "h %c*%zu", i ? 'b' : 'a', ch.d);
	}
	flush();
	EQ(told(epoll, DEADLINE), EPOLLIN);
	EQ(told(epoll, 0), 0);
	/* What is there when it begins, is told. */
	EQ(told(watch(fd, EPOLLET), 0), EPOLLIN);
}

static void one_shot(void)
{
	int fd = READER(), epoll = watch(fd, EPOLLONESHOT);
	struct epoll_event again = { EPOLLIN, { .u64 = 7 } };

	WROTE('a', 10);
	flush();
	EQ(told(epoll, DEADLINE), EPOLLIN);
	EQ(told(epoll, 0), 0);
	WORKS(epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &again));
	EQ(told(epoll, 0), EPOLLIN);
	WORKS(epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL));
	EQ(told(epoll, 0), 0);
}

static void killed(void)
{
	int fd = READER();
	pid_t victim = sleeper(fd), other = sleeper(fd);

	WORKS(kill(victim, SIGKILL));
	EQ(ended(victim), SIGKILL);
	WROTE('a', 10);
	flush();
	EQ(woken(other), READABLE);
}

const struct test poll_cases[] = {
	{ "poll-tells-of-finished-sub-buffers", MANY, states },
	{ "poll-tells-of-one-without-data", NO_HEADER | KEEPS, without_data },
	{ "poll-times-out", 0, times_out },
	{ "poll-by-select", KEEPS, by_select },
	{ "poll-is-woken-by-a-message", 0, woken_by_a_message },
	{ "poll-is-woken-by-flush", 0, woken_by_flush },
	{ "poll-is-woken-in-select", 0, woken_in_select },
	{ "poll-is-woken-for-all", 0, all_woken },
	{ "poll-is-woken-by-nothing-else", 0, not_woken },
	{ "poll-by-epoll-level-triggered", MANY, level_triggered },
	{ "poll-by-epoll-edge-triggered", MANY, edge_triggered },
	{ "poll-by-epoll-one-shot", 0, one_shot },
	{ "poll-of-who-is-killed", 0, killed },
	{ 0 },
};
