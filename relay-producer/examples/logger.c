/*
 * Threads that log into one channel, each a number of lines. The channel is a flight recorder: new messages replace the
 * oldest. A signal handler logs, too.
 *
 *     cc -pthread logger.c $(pkg-config --cflags --libs relay) -o logger && ./logger 4 1000
 */
#include <errno.h>
#include <pthread.h>
#include <relay.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct rchan *chan;
static int lines;

/* Accepts every sub-buffer. With a header, this function could fill in its start. */
static int subbuf_start(struct rchan_buf *buf, void *subbuf, void *prev_subbuf, size_t prev_padding)
{
	(void)buf, (void)subbuf, (void)prev_subbuf, (void)prev_padding;
	return 1;
}

static const struct rchan_callbacks overwriting = { subbuf_start, NULL, NULL };

static void on_signal(int number)
{
	static const char line[] = "a signal\n";
	int saved = errno;

	(void)number;
	relay_write(chan, line, sizeof line - 1);
	errno = saved;
}

static void *work(void *argument)
{
	int thread = *(int *)argument, line;

	for (line = 0; line < lines; line++) {
		/* Filled in place, without another buffer. */
		char *text = relay_reserve(chan, 30);

		if (!text) {
			perror("relay_reserve");
			break;
		}
		memset(text, ' ', 30);
		text[sprintf(text, "thread %d line %d", thread, line)] = ' ';
		text[29] = '\n';
		if (relay_commit(chan))
			perror("relay_commit");
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 4, i;
	pthread_t ids[64];
	int numbers[64];

	lines = argc > 2 ? atoi(argv[2]) : 1000;
	if (argc > 3 || threads < 1 || threads > 64 || lines < 0) {
		fprintf(stderr, "usage: logger [THREADS [LINES]], 1 to 64 threads, such as logger 4 1000\n");
		return 2;
	}
	chan = relay_open("app/log", NULL, 262144, 4, &overwriting);
	/* If the daemon writes for this process, there are no callbacks; messages without room are dropped. */
	if (!chan && errno == ENOTSUP)
		chan = relay_open("app/log", NULL, 262144, 4, NULL);
	if (!chan) {
		perror("relay_open");
		return 1;
	}
	signal(SIGUSR1, on_signal);
	for (i = 0; i < threads; i++) {
		numbers[i] = i;
		if (pthread_create(&ids[i], NULL, work, &numbers[i]))
			return 1;
	}
	/* A signal handler may write only with shared buffers. */
	if (chan->overwrite)
		raise(SIGUSR1);
	for (i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	if (relay_flush(chan))
		perror("relay_flush");
	relay_close(chan);
	return 0;
}
