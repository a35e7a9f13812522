/*
 * Threads that open files, map or read or poll them, and close them, again and again: openers THREADS TIMES FILE...
 * Every second open maps, and looks where it has mapped; now and then a map outlives its descriptor. Buffers' files,
 * which are outside of .relay, must refuse that. Prints how many opens there were, or what was refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char **files;
static int n_files, times;
static long n_opens;

static void *work(void *number)
{
	unsigned random = (unsigned)(long)number;
	char bytes[64], *kept = NULL;

	for (int i = 0; i < times; i++) {
		const char *file = files[rand_r(&random) % n_files];
		int fd = open(file, O_RDONLY);

		if (fd < 0) {
			perror(file);
			exit(1);
		}
		if (i % 2) {
			char *at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);

			if (!strstr(file, "/.relay/")) {
				if (at != MAP_FAILED || errno != ENODEV) {
					fprintf(stderr, "%s: mapped, or another error: %m\n", file);
					exit(1);
				}
			} else if (at == MAP_FAILED || *(volatile char *)at == 1) {
				perror("mmap");
				exit(1);
			} else if (i % 16 == 1) {
				if (kept)
					munmap(kept, 4096);
				kept = at;
			} else {
				munmap(at, 4096);
			}
		} else if (i % 4) {
			struct pollfd asked = { fd, POLLIN, 0 };

			poll(&asked, 1, 0);
		} else if (read(fd, bytes, sizeof bytes) < 0) {
			perror("read");
			exit(1);
		}
		close(fd);
		__atomic_add_fetch(&n_opens, 1, __ATOMIC_RELAXED);
	}
	if (kept)
		munmap(kept, 4096);
	return NULL;
}

int main(int argc, char **argv)
{
	int n_threads = atoi(argv[1]);
	pthread_t threads[64];

	times = atoi(argv[2]);
	files = argv + 3;
	n_files = argc - 3;
	for (long i = 0; i < n_threads; i++)
		if (pthread_create(&threads[i], NULL, work, (void *)i))
			return 1;
	for (int i = 0; i < n_threads; i++)
		pthread_join(threads[i], NULL);
	printf("%ld\n", n_opens);
	return 0;
}
