/*
 * Writes a line for each argument, or "Hello world", into channel "cpu" of the relayfs on $RELAYFS or /mnt/relay.
 *
 *     cc hello.c $(pkg-config --cflags --libs relay) -o hello && ./hello && cat /mnt/relay/cpu*
 */
#include <relay.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	struct rchan *chan = relay_open("cpu", NULL, 8192, 2, NULL, NULL);
	char line[1024];
	int i, lost = 0;

	if (!chan) {
		perror("relay_open");
		return 1;
	}
	for (i = argc > 1 ? 1 : 0; i < argc; i++) {
		snprintf(line, sizeof line, "%s\n", i > 0 ? argv[i] : "Hello world");
		if (relay_write(chan, line, strlen(line))) {
			perror("relay_write");
			lost = 1;
		}
	}
	relay_close(chan);
	return lost;
}
