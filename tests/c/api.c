/*
 * Calls the functions of relay.h as it is told, line by line, and prints what each returns: a number, or the name of errno.
 *
 *   open SLOT NAME SIZE COUNT [HOW]     HOW: five, refuse, admit, full, header=N, global, name=NAME, none, dir=NAME, write
 *   at SLOT MOUNT NAME SIZE COUNT       MOUNT "-" is NULL; NAME "-" too
 *   timed SLOT MOUNT NAME SIZE COUNT    as at, for a timed channel
 *   log SLOT LEVEL TARGET TEXT | logf SLOT LEVEL NUMBER TEXT     TARGET "-" is NULL
 *   logs SLOT LENGTH                    a text of relay_logf with this length
 *   here SLOT LEVEL TEXT                RELAY_ERROR or another macro, by the level; a place in this file for each
 *   at-null SLOT                        relay_logf_at without a place
 *   text SLOT TEXT
 *   define SLOT NAME [FIELD:TYPE...] | event NAME VALUE...       VALUE of its field; "-" is NULL
 *   write SLOT TEXT | fill SLOT BYTE LENGTH | reserve SLOT TEXT | commit SLOT | thread SLOT TEXT | null SLOT LENGTH
 *   flush, reset, close SLOT | full SLOT CPU | consumed SLOT CPU COUNT
 *   shape SLOT | toobig SLOT | switch | late | calls | go CPU | fork SLOT TEXT | copy SLOT | signal SLOT TEXT
 *   race SLOT THREADS                   closes while threads write
 *   hold SLOT TEXT | release            a thread writes, and stays in subbuf_start until it is released
 *   take-over HOW files|sockets DIR     closes all descriptors from 3 on, and opens the program's own. HOW: close, range, dup2
 *   touched                             0, or what happened to the program's own
 *   become-daemon SLOT HOW DIR COUNT    a child does that with files, and then writes COUNT messages of 100 bytes and flushes
 *
 * SLOT "-" is NULL.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <relay.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOTS 1100

static struct rchan *chans[SLOTS];
static int calls, answer, removed;
static size_t last_padding, to_reserve;
static int writes_in_callback, last_full, nested;
static char file_name[300];
static int make_global, make_none;

static struct rchan *chan_of(const char *slot)
{
	return *slot == '-' ? NULL : chans[atoi(slot) % SLOTS];
}

static const char *name_of_errno(int number)
{
	/* Which has two names. */
	return number == ENOTSUP ? "ENOTSUP" : strerrorname_np(number);
}

static void say(int failed, long value)
{
	if (failed)
		puts(name_of_errno(errno));
	else
		printf("%ld\n", value);
}

/* 0, or -1 and errno, as most functions return. */
static void say_status(int status)
{
	say(status != 0, 0);
}

/* 1: to be held, 2: is held, 0: not, or no more. */
static int held;

static void stay_if_held(void)
{
	int wanted = 1;

	if (__atomic_compare_exchange_n(&held, &wanted, 2, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		while (__atomic_load_n(&held, __ATOMIC_SEQ_CST))
			sched_yield();
}

static int subbuf_start(struct rchan_buf *buf, void *subbuf, void *prev_subbuf, size_t prev_padding)
{
	calls++;
	stay_if_held();
	last_padding = prev_padding;
	last_full = relay_buf_full(buf);
	if (prev_subbuf)
		abort();
	if (to_reserve > 0) {
		subbuf_start_reserve(buf, to_reserve);
		memset(subbuf, 'H', to_reserve < RELAY_RESERVE_MAX ? to_reserve : RELAY_RESERVE_MAX);
	}
	if (writes_in_callback && relay_write(chans[0], "nested", 6))
		nested = errno;
	return answer < 0 ? !last_full : answer;
}

static struct dentry *create_buf_file(const char *filename, struct dentry *parent, mode_t mode, struct rchan_buf *buf,
				      int *is_global)
{
	if (mode != 0400 || buf->cpu != 0)
		abort();
	if (make_none)
		return NULL;
	*is_global = make_global;
	return relay_create_buf_file(*file_name ? file_name : filename, parent);
}

static int remove_buf_file(struct dentry *dentry)
{
	removed++;
	return relay_remove_buf_file(dentry);
}

static void open_chan(char **word, int words)
{
	static struct rchan_callbacks kept[SLOTS];
	int slot = atoi(word[1]) % SLOTS, given = 0, i;
	struct rchan_callbacks *callbacks = &kept[slot];
	struct dentry *parent = NULL;
	const char *name = *word[2] == '-' ? NULL : word[2];
	size_t size = strtoul(word[3], NULL, 10), count = strtoul(word[4], NULL, 10);

	memset(callbacks, 0, sizeof *callbacks);
	answer = 1, to_reserve = 0, writes_in_callback = 0, make_global = 0, make_none = 0, *file_name = 0, calls = 0;
	for (i = 5; i < words; i++) {
		const char *how = word[i];

		if (!strcmp(how, "five")) {
			chans[slot] = relay_open(name, NULL, size, count, NULL);
			say(!chans[slot], 0);
			return;
		} else if (!strncmp(how, "dir=", 4)) {
			parent = relay_create_dir(how + 4, NULL);
			if (!parent) {
				say(1, 0);
				return;
			}
		} else if (!strcmp(how, "bad-dir")) {
			parent = (struct dentry *)kept;
		} else if (!strcmp(how, "global") || !strcmp(how, "none") || !strncmp(how, "name=", 5)) {
			given = 1, callbacks->create_buf_file = create_buf_file;
			callbacks->remove_buf_file = remove_buf_file;
			make_global |= *how == 'g', make_none |= !strcmp(how, "none");
			strcpy(file_name, *how == 'n' && how[1] == 'a' ? how + 5 : "");
		} else {
			given = 1, callbacks->subbuf_start = subbuf_start;
			if (!strncmp(how, "header=", 7))
				to_reserve = atoi(how + 7);
			writes_in_callback |= !strcmp(how, "write");
			answer = !strcmp(how, "refuse") ? 0 : !strcmp(how, "full") ? -1 : 1;
		}
	}
	chans[slot] = relay_open(name, parent, size, count, given ? callbacks : NULL, &kept[slot]);
	if (chans[slot] && (chans[slot]->private_data != &kept[slot] || chans[slot]->parent != parent))
		abort();
	say(!chans[slot], 0);
}

static struct rchan *task_chan;
static pthread_t held_thread;
static const char *task_text;

static void *reserve_and_end(void *unused)
{
	memcpy(relay_reserve(task_chan, strlen(task_text)), task_text, strlen(task_text));
	return unused;
}

static void on_signal(int unused)
{
	(void)unused;
	relay_write(task_chan, task_text, strlen(task_text));
}

static void *write_until_closed(void *count)
{
	while (relay_write(task_chan, "a message of a race\n", 20) == 0 || errno == ENOSPC)
		++*(long *)count;
	if (errno != EBADF)
		abort();
	return NULL;
}

static void *write_text(void *message)
{
	return (void *)(long)(relay_write(task_chan, message, strlen(message)) ? errno : 0);
}

static void hold(struct rchan *chan, const char *text)
{
	static char message[300];

	task_chan = chan;
	snprintf(message, sizeof message, "%s", text);
	__atomic_store_n(&held, 1, __ATOMIC_SEQ_CST);
	if (pthread_create(&held_thread, NULL, write_text, message))
		abort();
	while (__atomic_load_n(&held, __ATOMIC_SEQ_CST) == 1)
		sched_yield();
	say_status(0);
}

static void release(void)
{
	void *result;

	__atomic_store_n(&held, 0, __ATOMIC_SEQ_CST);
	pthread_join(held_thread, &result);
	errno = (long)result;
	say_status(errno);
}

static void race(struct rchan *chan, int n)
{
	pthread_t threads[16];
	long counts[16] = { 0 };
	int i;

	task_chan = chan;
	for (i = 0; i < n && i < 16; i++)
		if (pthread_create(&threads[i], NULL, write_until_closed, &counts[i]))
			abort();
	for (i = 0; i < n && i < 16; i++)
		while (__atomic_load_n(&counts[i], __ATOMIC_RELAXED) < 1000)
			sched_yield();
	int status = relay_close(chan);

	for (i = 0; i < n && i < 16; i++)
		pthread_join(threads[i], NULL);
	say_status(status);
}

#define OWN 16

/* The program's own descriptors: files, or the ends of socket pairs. */
static struct {
	int fd;
	dev_t device;
	ino_t inode;
} own[OWN];

static void take_over(const char *how, const char *what, const char *dir)
{
	int i, pair[2], last_open = 2;

	for (i = 3; i < 1024; i++)
		if (fcntl(i, F_GETFD) >= 0)
			last_open = i;
	for (i = 3; i <= last_open && !strcmp(how, "close"); i++)
		close(i);
	if (!strcmp(how, "range") && close_range(3, ~0U, 0))
		abort();
	for (i = 0; i < OWN; i++) {
		char path[300];
		struct stat found;

		snprintf(path, sizeof path, "%s/own%d", dir, i);
		if (*what == 'f') {
			own[i].fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
		} else if (i % 2 == 0) {
			if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
				abort();
			own[i].fd = pair[0];
		} else {
			own[i].fd = pair[1];
		}
		/* In the place of what is there. */
		if (!strcmp(how, "dup2") && i + 3 <= last_open && own[i].fd > i + 3) {
			if (dup2(own[i].fd, i + 3) < 0)
				abort();
			if (own[i].fd > last_open)
				close(own[i].fd);
			own[i].fd = i + 3;
		}
		if (fstat(own[i].fd, &found))
			abort();
		own[i].device = found.st_dev, own[i].inode = found.st_ino;
	}
}

/* Whether something happened to them, which it says. */
static int is_touched(void)
{
	struct stat found;
	char in[8];
	int i;

	for (i = 0; i < OWN; i++) {
		const char *what = NULL;

		if (fstat(own[i].fd, &found) || found.st_dev != own[i].device || found.st_ino != own[i].inode)
			what = "is closed";
		else if (S_ISREG(found.st_mode) && found.st_size != 0)
			what = "was written to";
		else if (S_ISSOCK(found.st_mode) && (recv(own[i].fd, in, sizeof in, MSG_DONTWAIT) >= 0 || errno != EAGAIN))
			what = "was sent to, or shut down";
		if (what) {
			printf("descriptor %d %s\n", own[i].fd, what);
			return 1;
		}
	}
	return 0;
}

/* A message finishes sub-buffers as others do. */
static int write_and_flush(struct rchan *chan, int count)
{
	char message[100];

	memset(message, 'd', sizeof message);
	for (; count > 0; count--)
		if (relay_write(chan, message, sizeof message))
			return errno;
	return relay_flush(chan) ? errno : 0;
}

static void become_daemon(struct rchan *chan, const char *how, const char *dir, int count)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		setsid();
		take_over(how, "files", dir);
		status = write_and_flush(chan, count);
		if (status == 0 && relay_close(chan))
			status = errno;
		_exit(is_touched() ? 255 : status);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		abort();
	errno = WEXITSTATUS(status);
	say(status != 0, 0);
}

/* A callback that no timed channel has. */
static const struct rchan_callbacks callbacks_of_start = { subbuf_start, NULL, NULL };

static int level_max = RELAY_DEBUG, evaluated;

#define EVENTS 8

/* The events that were defined last. */
static const struct relay_event_class *classes[EVENTS];
static struct relay_definition definitions[EVENTS];
static struct relay_field fields[EVENTS][RELAY_BYTES + 40];

static void define(struct rchan *chan, char **word, int words)
{
	static int count;
	int slot = count++ % EVENTS, i;
	struct relay_definition *made = &definitions[slot];

	memset(made, 0, sizeof *made);
	made->name = strdup(word[0]);
	made->level = RELAY_DEBUG;
	made->target = "api";
	made->file = __FILE__;
	made->line = 7;
	made->fields = fields[slot];
	made->n_fields = words - 1;
	for (i = 1; i < words; i++) {
		char *type = strchr(word[i], ':');

		*type = 0;
		fields[slot][i - 1].name = strdup(word[i]);
		fields[slot][i - 1].type = atoi(type + 1);
	}
	classes[slot] = relay_define(chan, made);
	say(!classes[slot], 0);
}

static void event(char **word, int words)
{
	struct relay_value values[40];
	int slot, i;

	for (slot = 0; slot < EVENTS; slot++)
		if (classes[slot] && !strcmp(definitions[slot].name, word[0]))
			break;
	if (slot == EVENTS) {
		say_status(relay_event((const struct relay_event_class *)definitions, NULL, 0));
		return;
	}
	for (i = 1; i < words; i++) {
		char *text = word[i];

		switch (fields[slot][i - 1].type) {
		case RELAY_U64: values[i - 1] = relay_u64(strtoull(text, NULL, 10)); break;
		case RELAY_I64: values[i - 1] = relay_i64(strtoll(text, NULL, 10)); break;
		case RELAY_F64: values[i - 1] = relay_f64(strtod(text, NULL)); break;
		case RELAY_BOOL: values[i - 1] = relay_bool(atoi(text)); break;
		case RELAY_STR: values[i - 1] = relay_str(*text == '-' ? NULL : text); break;
		default: values[i - 1] = relay_bytes(*text == '-' ? NULL : text, strlen(text));
		}
	}
	say_status(relay_event(classes[slot], words > 1 ? values : NULL, words - 1));
}

/* Returns errno. */
static int log_here(struct rchan *chan, int level, const char *text)
{
	errno = 0;
	switch (level) {
	case RELAY_ERROR: RELAY_ERROR(chan, "%s", text); break;
	case RELAY_WARN: RELAY_WARN(chan, "%s", text); break;
#undef RELAY_TARGET
#define RELAY_TARGET "app::db"
	case RELAY_INFO: RELAY_INFO(chan, "%s", text); break;
#undef RELAY_LEVEL_MAX
#define RELAY_LEVEL_MAX level_max
	case RELAY_DEBUG: RELAY_DEBUG(chan, "%s", text); break;
	default: RELAY_TRACE(chan, "%s%d", text, ++evaluated);
	}
	return errno;
}

static void obey(char **word, int words)
{
	const char *what = word[0];
	struct rchan *chan = words > 1 ? chan_of(word[1]) : NULL;
	size_t number = words > 3 ? strtoul(word[3], NULL, 10) : 0;

	if (!strcmp(what, "open")) {
		open_chan(word, words);
	} else if (!strcmp(what, "at")) {
		chans[atoi(word[1]) % SLOTS] = relay_open_at(*word[2] == '-' ? NULL : word[2], *word[3] == '-' ? NULL : word[3],
							     NULL, strtoul(word[4], NULL, 10), strtoul(word[5], NULL, 10), NULL, NULL);
		say(!chans[atoi(word[1]) % SLOTS], 0);
	} else if (!strcmp(what, "timed")) {
		chans[atoi(word[1]) % SLOTS] = relay_open_timed(*word[2] == '-' ? NULL : word[2], word[3], NULL,
								strtoul(word[4], NULL, 10), strtoul(word[5], NULL, 10),
								words > 6 ? &callbacks_of_start : NULL, NULL);
		say(!chans[atoi(word[1]) % SLOTS], 0);
	} else if (!strcmp(what, "log")) {
		say_status(relay_log(chan, atoi(word[2]), *word[3] == '-' ? NULL : word[3], *word[4] == '-' ? NULL : word[4],
				     strlen(word[4])));
	} else if (!strcmp(what, "enabled")) {
		printf("%d\n", relay_log_enabled(chan, atoi(word[2]), *word[3] == '-' ? NULL : word[3]));
	} else if (!strcmp(what, "logf")) {
		errno = ENOENT;
		say_status(relay_logf(chan, atoi(word[2]), "%d %s: %m", atoi(word[3]), word[4]));
	} else if (!strcmp(what, "logs")) {
		say_status(relay_logf(chan, RELAY_INFO, "%*s", atoi(word[2]), "end"));
	} else if (!strcmp(what, "here")) {
		say(log_here(chan, atoi(word[2]), word[3]) != 0, evaluated);
	} else if (!strcmp(what, "at-null")) {
		say_status(relay_logf_at(chan, NULL, "x"));
	} else if (!strcmp(what, "text")) {
		say_status(relay_text(chan, *word[2] == '-' ? NULL : word[2], strlen(word[2])));
	} else if (!strcmp(what, "define")) {
		define(chan, word + 2, words - 2);
	} else if (!strcmp(what, "event")) {
		event(word + 1, words - 1);
	} else if (!strcmp(what, "write")) {
		say_status(relay_write(chan, word[2], strlen(word[2])));
	} else if (!strcmp(what, "__write")) {
		say_status(__relay_write(chan, word[2], strlen(word[2])));
	} else if (!strcmp(what, "fill")) {
		char *bytes = malloc(number + 1);

		memset(bytes, *word[2], number);
		say_status(relay_write(chan, bytes, number));
		free(bytes);
	} else if (!strcmp(what, "null")) {
		say_status(relay_write(chan, NULL, strtoul(word[2], NULL, 10)));
	} else if (!strcmp(what, "huge")) {
		say_status(relay_write(chan, "x", (size_t)-1));
	} else if (!strcmp(what, "reserve")) {
		char *bytes = relay_reserve(chan, strlen(word[2]));

		if (bytes)
			memcpy(bytes, word[2], strlen(word[2]));
		say(!bytes, 0);
	} else if (!strcmp(what, "reserve-much")) {
		say(!relay_reserve(chan, strtoul(word[2], NULL, 10)), 0);
	} else if (!strcmp(what, "commit")) {
		say_status(relay_commit(chan));
	} else if (!strcmp(what, "thread")) {
		pthread_t thread;

		task_chan = chan, task_text = word[2];
		if (pthread_create(&thread, NULL, reserve_and_end, NULL))
			abort();
		say_status(pthread_join(thread, NULL));
	} else if (!strcmp(what, "fork")) {
		int status;
		pid_t child = fork();

		if (child == 0)
			_exit(relay_write(chan, word[2], strlen(word[2])) || relay_close(chan) ? errno : 0);
		if (child < 0 || waitpid(child, &status, 0) != child)
			abort();
		errno = WEXITSTATUS(status);
		say(status != 0, 0);
	} else if (!strcmp(what, "signal")) {
		task_chan = chan, task_text = word[2];
		signal(SIGUSR1, on_signal);
		say_status(raise(SIGUSR1));
	} else if (!strcmp(what, "race")) {
		race(chan, atoi(word[2]));
	} else if (!strcmp(what, "hold")) {
		hold(chan, word[2]);
	} else if (!strcmp(what, "release")) {
		release();
	} else if (!strcmp(what, "take-over")) {
		take_over(word[1], word[2], word[3]);
		say_status(0);
	} else if (!strcmp(what, "touched")) {
		if (!is_touched())
			say_status(0);
	} else if (!strcmp(what, "become-daemon")) {
		become_daemon(chan, word[2], word[3], atoi(word[4]));
	} else if (!strcmp(what, "flush")) {
		say_status(relay_flush(chan));
	} else if (!strcmp(what, "reset")) {
		say_status(relay_reset(chan));
	} else if (!strcmp(what, "close")) {
		say_status(relay_close(chan));
	} else if (!strcmp(what, "full")) {
		int full = relay_buf_full(chan ? chan->buf[atoi(word[2])] : NULL);

		say(full < 0, full);
	} else if (!strcmp(what, "consumed")) {
		errno = 0;
		relay_subbufs_consumed(chan, strtoul(word[2], NULL, 10), number);
		say(errno != 0, 0);
	} else if (!strcmp(what, "outside")) {
		errno = 0;
		subbuf_start_reserve(chan->buf[0], 1);
		say(errno != 0, 0);
	} else if (!strcmp(what, "switch")) {
		say(relay_switch_subbuf(NULL, 1) == 0, 0);
	} else if (!strcmp(what, "late")) {
		say_status(relay_late_setup_files(NULL, "cpu", NULL));
	} else if (!strcmp(what, "rmdir")) {
		say_status(relay_remove_dir(relay_create_dir("some", NULL)));
	} else if (!strcmp(what, "rmdir-null")) {
		say_status(relay_remove_dir(NULL));
	} else if (!strcmp(what, "mkdir")) {
		say(!relay_create_dir(words > 1 ? word[1] : NULL, NULL), 0);
	} else if (!strcmp(what, "shape")) {
		printf("version %u %zux%zu=%zu bufs %zu global %d overwrite %d header %zu name %s %d\n", chan->version,
		       chan->subbuf_size, chan->n_subbufs, chan->alloc_size, chan->n_bufs, chan->is_global, chan->overwrite,
		       chan->header, chan->base_filename, chan->has_base_filename);
	} else if (!strcmp(what, "toobig")) {
		printf("%zu\n", chan->last_toobig);
	} else if (!strcmp(what, "calls")) {
		printf("calls %d padding %zu full %d nested %s removed %d\n", calls, last_padding, last_full,
		       nested ? name_of_errno(nested) : "0", removed);
		calls = 0;
	} else if (!strcmp(what, "copy")) {
		/* What looks like a channel and was not made by the library. */
		static size_t copy[64];

		memcpy(copy, chan, sizeof *chan);
		say_status(relay_write((struct rchan *)copy, "x", 1));
	} else if (!strcmp(what, "go")) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(atoi(word[1]), &set);
		say_status(sched_setaffinity(0, sizeof set, &set));
	} else {
		printf("what is %s?\n", what);
	}
}

int main(void)
{
	static char line[5000];

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin)) {
		char *word[16], *at;
		int words = 0;

		for (at = strtok(line, " \n"); at && words < 16; at = strtok(NULL, " \n"))
			word[words++] = at;
		if (words > 0)
			obey(word, words);
	}
	return 0;
}
