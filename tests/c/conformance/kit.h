/*
 * What the cases are written with: a channel under test, messages into one of its buffers, and checks that end the
 * case with what was expected and what came.
 *
 * Each case runs in a process of its own, on a channel that was just reset. Bytes are said as runs: "h a*100 b*5" is
 * a sub-buffer's header, if the channel has any, then 100 times 'a', then 5 times 'b'.
 */
#ifndef KIT_H
#define KIT_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

/* The channel under test, and its buffer that the cases use. */
struct channel {
	const char *mount, *name;
	size_t s, n, h; /* size of a sub-buffer, their number, header of each */
	size_t d;       /* what of a sub-buffer messages can have: s - h */
	int over;       /* overwrites */
	int n_bufs;     /* buffers, each with a file */
	int cpu;        /* the one under test */
	int rings;      /* whether the kernel maps its files: passthrough */
	int modes;      /* whether it goes by their modes: default_permissions */
};
extern struct channel ch;

/* What a case takes of the channel. */
enum {
	MANY = 1,      /* two sub-buffers or more */
	ONE = 2,       /* a single one */
	OVER = 4,      /* overwrite mode */
	NO_OVER = 8,   /* no-overwrite mode */
	HEADER = 16,   /* a header */
	NO_HEADER = 32,
	CPUS = 64,     /* two buffers or more */
	RINGS = 128,   /* files can be mapped */
	NO_RINGS = 256,
	ROOT = 512,    /* who may open the file for writing, whatever its mode */
	USER = 1024,   /* who may not */
	MODES = 4096,  /* a mount on which the kernel goes by the files' modes */
	KEEPS = 2048,  /* a finished sub-buffer can be read: not a single one that is overwritten */
};

struct test {
	const char *name;
	unsigned needs;
	void (*run)(void);
};
extern const struct test open_cases[], attribute_cases[], read_cases[], credit_cases[], full_cases[],
	overwrite_cases[], flush_cases[], header_cases[], poll_cases[], mmap_cases[], splice_cases[], seek_cases[],
	close_cases[], control_cases[];
/* Not one of them: it takes somebody who ends the channel meanwhile. */
void channel_ends(void);

/* Longest time to wait for anything, in seconds, and what one read of "everything" asks for. */
#define DEADLINE 60
#define MIB (1 << 20)
#define READABLE (POLLIN | POLLRDNORM)

/* Says why the case has failed, and ends its process. */
void fail_at(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4), noreturn));
#define FAIL(...) fail_at(__FILE__, __LINE__, __VA_ARGS__)
/* A condition, and what to say if it does not hold. */
#define CHECK(condition, ...) ((condition) ? (void)0 : FAIL(__VA_ARGS__))

/* A number that must be this one. */
void equal_at(const char *file, int line, const char *what, long long got, long long want);
#define EQ(got, want) equal_at(__FILE__, __LINE__, #got, (long long)(got), (long long)(want))

/* A call that must fail with this errno; one that must not fail, and its result. */
void fails_at(const char *file, int line, const char *what, long result, int error, int want);
#define FAILS(call, want) \
	do { \
		errno = 0; \
		long result_ = (long)(call); \
		fails_at(__FILE__, __LINE__, #call, result_, errno, want); \
	} while (0)
long works_at(const char *file, int line, const char *what, long result);
#define WORKS(call) works_at(__FILE__, __LINE__, #call, (long)(call))

/* Paths: a buffer's file, the file that maps its ring, and a control file of the channel. They are good until the fourth call after. */
const char *file_of(int cpu);
const char *ring_of(int cpu);
const char *control(const char *name);
/* The tested buffer's file, open. */
#define READER() ((int)WORKS(open(file_of(ch.cpu), O_RDONLY)))
/* The file that maps its ring, open. */
#define RING() ((int)WORKS(open(ring_of(ch.cpu), O_RDONLY)))

/* What became of a message. */
enum placed { WRITTEN, FULL, TOO_BIG };
enum placed put_bytes(int cpu, const void *bytes, size_t len);
enum placed put(int cpu, char letter, size_t len);
/* Messages of a letter each into the tested buffer, of which must become just this. */
void puts_at(const char *file, int line, char letter, size_t len, enum placed want);
#define WROTE(letter, len) puts_at(__FILE__, __LINE__, letter, len, WRITTEN)
#define IS_FULL(letter, len) puts_at(__FILE__, __LINE__, letter, len, FULL)
#define IS_TOO_BIG(letter, len) puts_at(__FILE__, __LINE__, letter, len, TOO_BIG)
/* The letter of message number i. */
char letter(size_t i);

/* One write(2) to a control file; 0, or an errno. */
int tell(const char *name, const void *bytes, size_t len);
void flush(void);
void reset(void);
/* A number of the tested buffer in `stats`, or of another one. */
long long counted(const char *name);
long long counted_of(int cpu, const char *name);

/* Expected bytes are collected by WANT, as runs, and compared by READS, which may add more. */
void want(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define WANT(...) want(__VA_ARGS__)
void reads_at(const char *file, int line, int fd, size_t count);
#define READS(fd, count, ...) (want(" " __VA_ARGS__), reads_at(__FILE__, __LINE__, fd, count))
/* The same for bytes that came in another way. */
void are_at(const char *file, int line, const char *what, const void *bytes, size_t len);
#define ARE(bytes, len, ...) (want(" " __VA_ARGS__), are_at(__FILE__, __LINE__, #bytes, bytes, len))
/* The header, if a further sub-buffer could be begun when so many are finished and not given back. */
#define OPENED(n_finished) (ch.over || (size_t)(n_finished) < ch.n ? "h" : "")

/* What poll(2) says, asked for everything, without waiting. */
short poll_now(int fd);
void polls_at(const char *file, int line, int fd, short want);
#define POLLS(fd, want) polls_at(__FILE__, __LINE__, fd, want)

/* Waits until a condition holds. */
#define EVENTUALLY(condition) \
	do { \
		for (time_t end_ = deadline(); !(condition);) \
			CHECK(!is_over(end_), "not within %d s: %s", DEADLINE, #condition); \
	} while (0)
time_t deadline(void);
int is_over(time_t end);
/* A process that sleeps in poll(2) on a file until there is something; and what it was told. */
pid_t sleeper(int fd);
short woken(pid_t pid);
/* Whether a process is asleep in poll(2) or select(2) itself, and not in a question to the daemon. */
int sleeps(pid_t pid);
/* The end of a process of ours. */
int ended(pid_t pid);

#endif
