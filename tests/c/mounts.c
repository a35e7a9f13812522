/*
 * Mounts and unmounts as its arguments say, and prints what each call answers.
 *
 *   mount TYPE TARGET DATA     bind TYPE TARGET DATA     umount TARGET     detach TARGET
 *   open PATH     close     chdir PATH     ignore-children     null TYPE
 *   system COMMAND             fork: the rest is done by a child
 *
 * DATA "-" is none.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, const char *on, int result)
{
	printf("%s %s: %s\n", what, on, result < 0 ? strerror(errno) : "ok");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int fd = -1, status;

	for (argv++, argc--; argc > 0;) {
		const char *what = argv[0], *on = argc > 1 ? argv[1] : "";
		int n = 2;

		if ((!strcmp(what, "mount") || !strcmp(what, "bind")) && argc > 3) {
			const char *data = strcmp(argv[3], "-") ? argv[3] : NULL;
			unsigned long flags = *what == 'b' ? MS_BIND : MS_RDONLY;
			n = 4;
			say(what, argv[2], mount("some-source", argv[2], on, flags, data));
		} else if (!strcmp(what, "umount")) {
			say(what, on, umount(on));
		} else if (!strcmp(what, "detach")) {
			say(what, on, umount2(on, MNT_DETACH));
		} else if (!strcmp(what, "null")) {
			say(what, on, mount(NULL, NULL, on, 0, NULL));
			say(what, "umount", umount(NULL));
		} else if (!strcmp(what, "open")) {
			fd = open(on, O_RDONLY);
			say(what, on, fd);
		} else if (!strcmp(what, "chdir")) {
			say(what, on, chdir(on));
		} else if (!strcmp(what, "system")) {
			status = system(on);
			(void)status;
		} else if (!strcmp(what, "close")) {
			n = 1;
			close(fd);
		} else if (!strcmp(what, "ignore-children")) {
			n = 1;
			signal(SIGCHLD, SIG_IGN);
		} else if (!strcmp(what, "fork")) {
			n = 1;
			if (fork()) {
				wait(&status);
				return 0;
			}
		} else {
			fprintf(stderr, "not understood: %s\n", what);
			return 2;
		}
		argv += n;
		argc -= n;
	}
	return 0;
}
