/* write LEN N: writes N messages of LEN bytes through librelay and prints how many nanoseconds one took. */
#include <relay.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	static char bytes[65536];
	struct rchan *chan = relay_open("overwritten", NULL, 1048576, 4, NULL);

	if (!chan) {
		perror("relay_open");
		return 1;
	}
	if (argc != 3)
		return 2;
	size_t len = strtoul(argv[1], NULL, 10), n = strtoul(argv[2], NULL, 10);

	if (len > sizeof bytes || n == 0 || !chan->overwrite)
		return 2;
	memset(bytes, 'm', sizeof bytes);
	double begun = seconds();

	for (size_t i = 0; i < n; i++)
		if (relay_write(chan, bytes, len)) {
			perror("relay_write");
			return 1;
		}
	printf("%.3f\n", (seconds() - begun) * 1e9 / n);
	return relay_close(chan) != 0;
}
