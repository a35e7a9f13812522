/*
 * areas CASE N: loads librelay by dlopen and writes numbers from 0 to the channel "cpu", each once, from threads that come
 * and go. Prints how many. A number has seven digits and a newline. The test runs it where the C library registers no areas
 * for restartable sequences, so that librelay registers its own. Compiled with -DLINKED, it is linked with librelay.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <relay.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STACK (256 << 10)
#define AT_ONCE 16

static struct rchan *chan;
static __typeof__(&relay_write) put_bytes;
/* In shared memory, for children. */
static atomic_int *next, *failed;

static void put(void)
{
	char line[16];
	int number = atomic_fetch_add(next, 1), digits;

	for (digits = 6; digits >= 0; digits--, number /= 10)
		line[digits] = '0' + number % 10;
	line[7] = '\n';
	if (put_bytes(chan, line, 8))
		atomic_fetch_add(failed, 1);
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void *put_once(void *unused)
{
	put();
	return unused;
}

static void start(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
	int error = pthread_create(thread, attr, run, arg);

	if (error) {
		errno = error;
		die("pthread_create");
	}
}

static long kilobytes(void)
{
	long pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");

	if (!file || fscanf(file, "%ld", &pages) != 1)
		die("statm");
	fclose(file);
	return pages * 4;
}

/* Threads that write once, some at a time. In the end there is no more memory than there was after a tenth of them. */
static void threads(int n)
{
	pthread_t at_once[AT_ONCE];
	long before = 0;

	for (int i = 0; i < n; i += AT_ONCE) {
		if (i >= n / 10 && !before)
			before = kilobytes();
		for (int j = 0; j < AT_ONCE; j++)
			start(&at_once[j], NULL, put_once, NULL);
		for (int j = 0; j < AT_ONCE; j++)
			pthread_join(at_once[j], NULL);
	}
	if (kilobytes() > before + 1024)
		atomic_fetch_add(failed, 1);
}

/* The last destructor of a thread writes, after those of all libraries have run. */
static pthread_key_t key;

static void put_at_end(void *rounds)
{
	if ((long)rounds > 1)
		pthread_setspecific(key, (void *)((long)rounds - 1));
	else
		put();
}

static void *end_late(void *unused)
{
	pthread_setspecific(key, (void *)4L);
	return unused;
}

static void *put_and_end_late(void *unused)
{
	put();
	return end_late(unused);
}

static atomic_int n_detached;

static void *put_detached(void *unused)
{
	put_and_end_late(unused);
	atomic_fetch_add(&n_detached, 1);
	return unused;
}

static void ends(int n)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_key_create(&key, put_at_end);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	for (int i = 0; i < n; i++) {
		start(&thread, NULL, i % 2 ? end_late : put_and_end_late, NULL);
		pthread_join(thread, NULL);
		start(&thread, &attr, put_detached, NULL);
	}
	/* Two numbers of each detached thread, one or two of the others. */
	while (atomic_load(next) < 2 * n + n + (n + 1) / 2)
		sched_yield();
}

/* Memory of a thread's stack and thread-local memory stays as it is once the thread has ended. */
static void *hog(void *stop)
{
	while (!atomic_load((atomic_int *)stop))
		;
	return NULL;
}

static void stacks(int n)
{
	atomic_int stop = 0;
	pthread_attr_t attr;
	pthread_t hogs[4], thread;
	unsigned char *stack =
		mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (stack == MAP_FAILED)
		die("mmap");
	for (int i = 0; i < 4; i++)
		start(&hogs[i], NULL, hog, &stop);
	pthread_attr_init(&attr);
	pthread_attr_setstack(&attr, stack, STACK);
	for (int i = 0; i < n; i++) {
		start(&thread, &attr, put_once, NULL);
		pthread_join(thread, NULL);
		memset(stack, 0xa5, STACK);
		sched_yield();
		put();
		for (int at = 0; at < STACK; at++)
			if (stack[at] != 0xa5) {
				atomic_fetch_add(failed, 1);
				break;
			}
	}
	atomic_store(&stop, 1);
	for (int i = 0; i < 4; i++)
		pthread_join(hogs[i], NULL);
}

/* Threads that the C library did not start, with thread-local memory that it has prepared. */
static int raw_thread(void *unused)
{
	(void)unused;
	put();
	put();
	syscall(SYS_exit, 0);
	return 0;
}

#ifdef LINKED
extern void *_dl_allocate_tls(void *) __attribute__((weak));
#else
#define _dl_allocate_tls ((void *(*)(void *))dlsym(RTLD_DEFAULT, "_dl_allocate_tls"))
#endif

static void raw(int n)
{
	void *(*allocate)(void *) = _dl_allocate_tls;
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!allocate || stack == MAP_FAILED)
		die("no memory for a thread");
	put();
	for (int i = 0; i < n; i++) {
		/* The thread control block is before what is allocated; glibc has up to 4096 bytes of it. */
		char *tcb = allocate(NULL);
		pid_t tid;

		if (!tcb)
			die("_dl_allocate_tls");
		/* Its own address, twice, and the guards of the stack and of pointers. */
		((void **)tcb)[0] = ((void **)tcb)[2] = tcb;
		memcpy(tcb + 0x28, (char *)__builtin_thread_pointer() + 0x28, 16);
		if (clone(raw_thread, stack + STACK,
			  CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
				  CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID,
			  NULL, &tid, tcb, &tid) < 0)
			die("clone");
		while (*(volatile pid_t *)&tid)
			sched_yield();
	}
}

/* Threads whose first write is in a signal handler, while they allocate. */
static atomic_int handled;

static void on_signal(int signal)
{
	(void)signal;
	put();
	atomic_store(&handled, 1);
}

static void *allocate(void *unused)
{
	while (!atomic_load(&handled)) {
		void *memory = malloc(64 + rand() % 100000);

		__asm__ volatile("" ::"r"(memory) : "memory");
		free(memory);
	}
	put();
	return unused;
}

static void signals(int n)
{
	struct sigaction action = { .sa_handler = on_signal };
	pthread_t thread;

	sigaction(SIGUSR1, &action, NULL);
	for (int i = 0; i < n; i++) {
		struct timespec pause = { .tv_nsec = 1000 * (i % 97) };

		atomic_store(&handled, 0);
		start(&thread, NULL, allocate, NULL);
		nanosleep(&pause, NULL);
		pthread_kill(thread, SIGUSR1);
		pthread_join(thread, NULL);
	}
}

/* Children, and their threads and children, by fork(2); children by clone(2), which tells no library. */
static void of_child(int depth);

static void child(int by_clone, int depth)
{
	int status;
	pid_t pid = by_clone ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();

	if (pid < 0)
		die("a child");
	if (pid == 0) {
		/* After clone(2) the C library's locks may be those of threads that the child does not have. */
		if (by_clone) {
			put();
			put();
		} else {
			of_child(depth);
		}
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status)
		atomic_fetch_add(failed, 1);
}

static void of_child(int depth)
{
	pthread_t at_once[AT_ONCE];
	int i;

	/* Before or after the thread that forked. */
	if (depth % 2)
		put();
	for (i = 0; i < AT_ONCE; i++)
		start(&at_once[i], NULL, put_once, NULL);
	for (i = 0; i < AT_ONCE; i++)
		pthread_join(at_once[i], NULL);
	put();
	if (depth)
		child(0, depth - 1);
	put();
}

static void *fork_here(void *unused)
{
	put();
	child(0, 2);
	child(1, 0);
	put();
	return unused;
}

static void forks(int n)
{
	pthread_t thread;

	for (int i = 0; i < n; i++) {
		start(&thread, NULL, fork_here, NULL);
		child(i % 2 ? 0 : 1, 0);
		put();
		pthread_join(thread, NULL);
	}
}

/* Threads that wait for their children by vfork(2), which write nothing: some end, some become other programs. */
static void *vfork_here(void *number)
{
	char *const argv[] = { "true", NULL };
	int status;
	pid_t pid;

	put();
	pid = vfork();
	if (pid == 0) {
		if ((long)number % 2)
			execv("/bin/true", argv);
		_exit(0);
	}
	put();
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		atomic_fetch_add(failed, 1);
	put();
	return NULL;
}

static void vforks(int n)
{
	pthread_t thread;

	for (long i = 0; i < n; i++) {
		start(&thread, NULL, vfork_here, (void *)i);
		vfork_here((void *)(i + 1));
		pthread_join(thread, NULL);
	}
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(int n);
	} cases[] = { { "threads", threads }, { "ends", ends },	  { "stacks", stacks }, { "raw", raw },
		      { "signals", signals }, { "forks", forks }, { "vforks", vforks } };
	atomic_int *counts =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
#ifdef LINKED
	__typeof__(&relay_open) open_channel = relay_open;
	__typeof__(&relay_write) write_bytes = relay_write;
#else
	void *library = dlopen("librelay.so", RTLD_NOW);
	__typeof__(&relay_open) open_channel = library ? dlsym(library, "relay_open") : NULL;
	__typeof__(&relay_write) write_bytes = library ? dlsym(library, "relay_write") : NULL;
#endif

	if (argc != 3 || counts == MAP_FAILED || !open_channel) {
		fprintf(stderr, "areas CASE N, with librelay.so\n");
		return 2;
	}
	next = &counts[0];
	failed = &counts[1];
	put_bytes = write_bytes;
	chan = open_channel("cpu", NULL, 1048576, 8, NULL, NULL);
	if (!chan || !put_bytes)
		die("relay_open");
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		if (!strcmp(argv[1], cases[i].name)) {
			cases[i].run(atoi(argv[2]));
			printf("%d\n", atomic_load(next));
			return atomic_load(failed) != 0;
		}
	return 2;
}
