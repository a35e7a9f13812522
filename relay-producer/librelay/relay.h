/*
 * relay.h - the kernel's relay interface, Documentation/filesystems/relay.rst, for ordinary programs: messages go into
 * the channels of a mounted relayfs.
 *
 *     cc hello.c $(pkg-config --cflags --libs relay)
 *
 * Names, arguments and meaning are the kernel's; the comments below name the differences. Functions without a meaning
 * outside the kernel fail with ENOTSUP. Functions that return int return 0, or -1 with errno set, also where the
 * kernel's function returns nothing. Functions that return pointers return NULL with errno set. Errors common to all:
 *
 *     EINVAL    chan is NULL, or was not made by relay_open; an argument is out of range
 *     EBADF     the channel has been closed
 *     ENODEV    no relayfs is mounted there, or its daemon has gone away; later calls look for a new one
 *
 * Every thread may call every function. relay_write and relay_reserve write into the buffer of the CPU that the
 * caller is on. A signal handler may call relay_write if the message has at most 64 KiB and the buffers are shared
 * with this process (relay-producer -v says whether they are). This holds also after a crash of the daemon, until the
 * channel is closed. The handler must save errno. Load the library before starting threads that write in handlers.
 * After fork, both parent and child may use the channel. A child of vfork must not.
 *
 * The library's descriptors are 3 or above, and close-on-exec. A program may close them, as daemons close all they
 * have. Before the library writes to a descriptor or closes it, it checks that the descriptor is still its own. It
 * leaves another descriptor with that number alone. Without its descriptors the library still writes shared buffers;
 * otherwise relay_write fails with ENODEV. It connects again as after a crash of the daemon: relay_flush does so at
 * once. One race remains: another thread closes a descriptor and opens another one between the check and the write,
 * or the close. So do not close descriptors of the library while a thread is inside one of its functions.
 */
#ifndef RELAY_H
#define RELAY_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#ifdef __cplusplus
#define RELAY_OPTIONAL = NULL
extern "C" {
#else
#define RELAY_OPTIONAL
#endif

/* Value of version in struct rchan. Each later version has the fields of all earlier ones. */
#define RELAYFS_CHANNEL_VERSION 1
/* Most bytes that subbuf_start_reserve can reserve. */
#define RELAY_RESERVE_MAX 256

struct rchan;
struct rchan_callbacks;

/* A place in the tree of a relayfs, see relay_create_dir. */
struct dentry;

/* The buffer of one CPU. Only the library makes it, and the program must not change it. */
struct rchan_buf {
	struct rchan *chan;
	unsigned int cpu;
};

/*
 * A channel. Only the library makes it; later versions add fields at the end. The program may change private_data only.
 * The geometry is the real one, which may differ from the requested one.
 */
struct rchan {
	unsigned int version;
	int is_global;                      /* one buffer for all CPUs */
	size_t subbuf_size;                 /* bytes */
	size_t n_subbufs;
	size_t alloc_size;                  /* bytes of each buffer */
	const struct rchan_callbacks *cb;   /* as given, may be NULL */
	void *private_data;
	size_t last_toobig;                 /* length of the last message that was too big */
	struct rchan_buf **buf;             /* one for each CPU */
	size_t n_bufs;
	struct dentry *parent;              /* as given */
	int has_base_filename;              /* 1 */
	const char *base_filename;          /* as given */
	int overwrite;                      /* 1: a full buffer gives up its oldest sub-buffer */
	size_t header;                      /* reserved bytes at the start of each sub-buffer */
};

struct rchan_callbacks {
	/*
	 * Called before this process begins a sub-buffer; 0 refuses, and the message is dropped. A channel created with
	 * this callback is an overwriting one, so that only the callback refuses. Differences to the kernel:
	 *
	 * It is called before anything has changed, and again if the thread was interrupted before the change was
	 * made. A counter in it counts tries. Threads on all CPUs call it. It must not write to the channel (EDEADLK). It is
	 * not called for sub-buffers that the daemon begins: for relay_flush, for other programs, for messages of
	 * more than 64 KiB, and for threads that cannot write directly. If the process cannot write directly at all,
	 * or the channel is global, relay_open fails with ENOTSUP.
	 *
	 * subbuf has room for the bytes that subbuf_start_reserve reserves, and becomes the start of the sub-buffer.
	 * prev_subbuf is always NULL: a reader may have that sub-buffer already. prev_padding is the number of bytes
	 * that would be unused at its end. relay_buf_full(buf) tells whether all would be full once it is finished.
	 *
	 * As in the kernel, relay_open calls it as well. Its answer means nothing then, but the bytes it reserves
	 * become the header of a channel that is created. If an existing channel reserves less, relay_open fails with
	 * EINVAL.
	 */
	int (*subbuf_start)(struct rchan_buf *buf, void *subbuf, void *prev_subbuf, size_t prev_padding);
	/*
	 * Called once by relay_open, for buffer 0. It decides two things. *is_global = 1: one buffer for all CPUs.
	 * The name: it returns relay_create_buf_file(NAME, DIR), where NAME is filename, or another name that ends
	 * with the CPU's 0. NULL: relay_open fails with the errno that the callback left, or ECANCELED. It can decide
	 * nothing else.
	 */
	struct dentry *(*create_buf_file)(const char *filename, struct dentry *parent, mode_t mode,
					  struct rchan_buf *buf, int *is_global);
	/* Called once by relay_close, with the return value of create_buf_file. */
	int (*remove_buf_file)(struct dentry *dentry);
};

/*
 * Opens a channel of the relayfs named by the environment variable RELAYFS, else of /mnt/relay. An existing channel is
 * opened as it is: several programs may write to one. The names of its files are base_filename and the CPU's number.
 *
 * base_filename  A name, or a name below directories: "app/log".
 * parent         The directory of base_filename, made by relay_create_dir, or NULL.
 * subbuf_size, n_subbufs
 *                For a channel that is created; not 0.
 * callbacks      May be NULL: when all sub-buffers are full, messages are dropped.
 * private_data   May be left out, as with older kernels.
 *
 * EEXIST: a channel exists whose files have the same names, or whose directory this would be.
 * ENOTSUP: base_filename is NULL (relay_late_setup_files does not exist here), or a callback is not possible.
 * ENAMETOOLONG. ENOMEM: more than the daemon's --max-memory. ECONNREFUSED, ENOTCONN: the daemon has died, or is ending.
 * ETIMEDOUT: it does not answer. EPROTO: the peer is not a relayfs. EACCES: its socket is for other users.
 */
struct rchan *relay_open(const char *base_filename, struct dentry *parent, size_t subbuf_size, size_t n_subbufs,
			 const struct rchan_callbacks *cb, void *private_data RELAY_OPTIONAL);

/* relay_open for the relayfs mounted on mount, which can also be the daemon's socket. NULL: as relay_open. */
struct rchan *relay_open_at(const char *mount, const char *base_filename, struct dentry *parent, size_t subbuf_size,
			    size_t n_subbufs, const struct rchan_callbacks *cb, void *private_data);

/*
 * Closes the channel. A second time: EBADF. Written messages stay and can be read. A channel that a program created
 * is removed when it has been read and no process has it open. If buffers are not shared, it waits until the daemon
 * has the messages. ENODEV, ETIMEDOUT: the channel is closed, but the daemon has gone, or has not answered for 10
 * seconds, and may not have the last messages.
 *
 * Other threads may be calling other functions with the channel at any time. They get EBADF. If the message that they
 * are writing at this moment is lost, they may get 0. A struct rchan is never freed, so a pointer to a closed one
 * gives EBADF, until 256 others have been closed after it. From then on it may be that of another channel. Signal
 * handlers must not call it.
 */
int relay_close(struct rchan *chan);

/*
 * Writes a message, whole or not at all, and never waits for a reader. 0: it is in the buffer. If buffers are not
 * shared, 0 means that it is on its way to the daemon, which will get it even if this process ends now. Otherwise the
 * message is lost, and counted except for ENODEV and EBADF. ENOSPC: no room, since no reader has kept up and every
 * sub-buffer is full, or since the socket to the daemon is full. EMSGSIZE: longer than any message of this channel can
 * be, which is a sub-buffer without its header, at most 1 MiB. EFAULT: data is NULL, and length is not 0. Or the
 * daemon's errno, if it refused the message, such as EIO.
 *
 * Few messages wait for the daemon, 0.1 s at most: those of more than 64 KiB for room in the socket, and with shared
 * buffers these and messages that were interrupted 64 times for the daemon's answer. Without an answer in time, 0 means
 * what it means if buffers are not shared. If the daemon goes away meanwhile, ENODEV, and the message may be in the
 * buffer all the same.
 */
int relay_write(struct rchan *chan, const void *data, size_t length);

/* The same function: outside the kernel there are no interrupts to switch off. */
int __relay_write(struct rchan *chan, const void *data, size_t length);

/*
 * Returns room for a message of length bytes. The program fills it in; then relay_commit writes it, or the next call
 * of a function of this library in the same thread, or the end of the thread. So a signal handler that writes in
 * between also writes it, as far as it is filled in. Unlike in the kernel, the room is in the thread's memory and not
 * in the buffer: whether the buffer has room is decided when the message is written. EMSGSIZE, ENOMEM.
 */
void *relay_reserve(struct rchan *chan, size_t length);

/* Writes the reserved message; as relay_write. EINVAL: this thread has reserved nothing in this channel. */
int relay_commit(struct rchan *chan);

/* Finishes the current sub-buffer of every CPU, and waits for that. ETIMEDOUT: the daemon does not answer. */
int relay_flush(struct rchan *chan);

/*
 * Discards everything unread, on every CPU. Like the next two functions it uses the mounted tree, whose owner decides
 * which users may use it. EACCES: this user may not. ENOTSUP: the channel was opened by a socket.
 */
int relay_reset(struct rchan *chan);

/*
 * Returns 1 if every sub-buffer of a buffer is full, 0 if not, or -1 with errno set. If buffers are not shared it
 * reads the tree's stats: EACCES, ENOTSUP.
 */
int relay_buf_full(struct rchan_buf *buf);

/*
 * Gives back sub-buffers that were read in a mapping of the buffer (map/cpuN). A count above the finished ones gives
 * back all of those; a count above the buffer's sub-buffers gives back none (EINVAL). EACCES, ENOTSUP as for
 * relay_reset.
 */
void relay_subbufs_consumed(struct rchan *chan, unsigned int cpu, size_t subbufs_consumed);

/*
 * Within subbuf_start: reserves the first length bytes of each sub-buffer. EINVAL: called elsewhere, or more than the
 * channel has reserved (at relay_open: more than RELAY_RESERVE_MAX).
 */
void subbuf_start_reserve(struct rchan_buf *buf, size_t length);

/*
 * Returns a directory of a relayfs, for use as parent. It appears in the tree when a channel is in it. ENAMETOOLONG,
 * EINVAL: the name is not possible. Removal has no effect; the function exists for symmetry.
 */
struct dentry *relay_create_dir(const char *name, struct dentry *parent);
int relay_remove_dir(struct dentry *dentry);

/* For the callbacks above, in place of debugfs_create_file and debugfs_remove. */
struct dentry *relay_create_buf_file(const char *name, struct dentry *parent);
int relay_remove_buf_file(struct dentry *dentry);

/*
 * Always ENOTSUP. The library switches sub-buffers itself, and relay_flush finishes them; files exist from the
 * beginning.
 */
size_t relay_switch_subbuf(struct rchan_buf *buf, size_t length);
int relay_late_setup_files(struct rchan *chan, const char *base_filename, struct dentry *parent);

/*
 * Timed channels.
 *
 * A timed channel holds records instead of bare messages: each with a time stamp, the thread that wrote it, and an event,
 * which says what its bytes are. Readers merge the records of all CPUs in one order. relay_write, into a timed channel,
 * makes a record of bytes, of at most 64 KiB. The functions below fail with ENOTSUP if the channel is not timed.
 */

/*
 * relay_open_at for a timed channel. mount may be NULL. An existing channel is opened as it is, also if it is not timed.
 * ENOTSUP: callbacks has subbuf_start, which no timed channel has.
 */
struct rchan *relay_open_timed(const char *mount, const char *base_filename, struct dentry *parent, size_t subbuf_size,
			       size_t n_subbufs, const struct rchan_callbacks *cb, void *private_data);

enum relay_level { RELAY_ERROR = 1, RELAY_WARN = 2, RELAY_INFO = 3, RELAY_DEBUG = 4, RELAY_TRACE = 5 };

#ifdef __GNUC__
#define RELAY_PRINTF(text, first) __attribute__((__format__(__printf__, text, first)))
#define RELAY_INLINE static __inline__
#else
#define RELAY_PRINTF(text, first)
#define RELAY_INLINE static inline
#endif

/*
 * Writes a text with its level; otherwise as relay_write. target says which part of the program writes, has at most 255
 * bytes, and may be NULL. The text is UTF-8, needs no zero byte at its end, and should have no newline there. A text or
 * target that is longer than a record is cut, and ends with a mark. EINVAL: there is no such level.
 *
 * A signal handler may call relay_log as it may call relay_write, if target and text have less than 1 KiB. Each thread
 * that writes there should have written before: its first record takes system calls.
 */
int relay_log(struct rchan *chan, int level, const char *target, const void *text, size_t length);

/* Writes a text without level and target; otherwise as relay_log. Signal handlers must not call it. */
int relay_text(struct rchan *chan, const void *text, size_t length);

/*
 * Returns 0 if relay_log and relay_logf would leave a text with this level and target out, since the channel's levels say
 * so: "echo app::db=debug > /mnt/relay/.relay/channels/app/log/level" counts at once, in all programs. That is no error
 * there: both return 0. 1: they would write it, or fail. A program need not ask, but may save the work of making a text.
 * Leaving out takes neither a system call nor memory, also in signal handlers. relay_event heeds the levels too.
 */
int relay_log_enabled(struct rchan *chan, int level, const char *target);

/*
 * relay_log without a target, of a text that printf(3) makes. More than 1023 bytes take memory: ENOMEM. EILSEQ and other
 * errors of vsnprintf(3). Signal handlers must not call it.
 */
int relay_logf(struct rchan *chan, int level, const char *format, ...) RELAY_PRINTF(3, 4);
int relay_vlogf(struct rchan *chan, int level, const char *format, va_list arguments) RELAY_PRINTF(3, 0);

enum relay_type { RELAY_U64 = 1, RELAY_I64 = 2, RELAY_F64 = 3, RELAY_BOOL = 4, RELAY_STR = 5, RELAY_BYTES = 6 };

/* A field of an event. The name is not empty, and no other field of the event has it. */
struct relay_field {
	const char *name;
	int type;                           /* enum relay_type */
};

/*
 * An event of the program. Names have at most 200 bytes, target and file 255. All but name may be 0 or NULL. Texts are
 * UTF-8.
 */
struct relay_definition {
	const char *name;
	int level;                          /* enum relay_level */
	unsigned int line;
	const char *target;                 /* which part of the program writes it */
	const char *file;
	const struct relay_field *fields;
	size_t n_fields;                    /* at most 32 */
};

/* A value of a field; relay_u64 and the other functions below make them. */
struct relay_value {
	int type;
	uint64_t bits;                      /* of a number; 0 or 1 */
	const void *data;                   /* of a text, or bytes */
	size_t length;
};

struct relay_event_class;

/*
 * Defines an event, and waits for the daemon's answer. The same content is the same event, also in other programs, and
 * has the same address here. The object is the library's. It can be used until the channel is closed. If the daemon is
 * replaced, the library defines the event again.
 *
 * EINVAL: a limit of the definition. ENOSPC or another errno of the daemon: too many events. ETIMEDOUT: no answer.
 */
const struct relay_event_class *relay_define(struct rchan *chan, const struct relay_definition *definition);

/*
 * Writes a record of an event, with a value for each field, in their order; otherwise as relay_write. EINVAL: the values
 * do not fit the fields, or event was not made by relay_define. EFAULT: a value has no data, and a length. ENOENT: the
 * daemon does not know the event any more; define it again. Signal handlers must not call it.
 */
int relay_event(const struct relay_event_class *event, const struct relay_value *values, size_t n_values);

RELAY_INLINE struct relay_value relay_value_of(int type, uint64_t bits, const void *data, size_t length)
{
	struct relay_value value;

	value.type = type;
	value.bits = bits;
	value.data = data;
	value.length = length;
	return value;
}

RELAY_INLINE struct relay_value relay_u64(uint64_t number)
{
	return relay_value_of(RELAY_U64, number, NULL, 0);
}

RELAY_INLINE struct relay_value relay_i64(int64_t number)
{
	return relay_value_of(RELAY_I64, (uint64_t)number, NULL, 0);
}

RELAY_INLINE struct relay_value relay_f64(double number)
{
	uint64_t bits;

	memcpy(&bits, &number, sizeof(bits));
	return relay_value_of(RELAY_F64, bits, NULL, 0);
}

RELAY_INLINE struct relay_value relay_bool(int is)
{
	return relay_value_of(RELAY_BOOL, (uint64_t)(is != 0), NULL, 0);
}

/* A text with a zero byte at its end, which is not part of the value. NULL is an empty text. */
RELAY_INLINE struct relay_value relay_str(const char *text)
{
	return relay_value_of(RELAY_STR, 0, text, text ? strlen(text) : 0);
}

RELAY_INLINE struct relay_value relay_bytes(const void *data, size_t length)
{
	return relay_value_of(RELAY_BYTES, 0, data, length);
}

/*
 * A place in the program that logs; RELAY_ERROR and the macros beside it make one for each of their calls. Its address
 * stands for it, so a place is static.
 */
struct relay_site {
	int level;                          /* enum relay_level */
	unsigned int line;
	const char *file;                   /* may be NULL, as target */
	const char *target;                 /* which part of the program it is; NULL: file and line */
	const struct relay_event_class *event; /* the library's, NULL at the start */
	const char *place;                  /* the library's, NULL at the start: file and line */
	void *reserved;                     /* NULL */
};

/*
 * Writes a text as the event of a place: readers get its level, target, file and line; otherwise as relay_log. The first
 * call for a place defines its event, and waits for the daemon's answer, 1 second at most. A text that is longer than a
 * record, and one that cannot have an event now, becomes a record of relay_log with the same level and target. The channel's
 * levels hold as for relay_log, see relay_log_enabled. EINVAL: site
 * is NULL, or there is no such level. relay_logf_at is to it what relay_logf is to relay_log. Signal handlers must not call
 * them.
 */
int relay_log_at(struct rchan *chan, struct relay_site *site, const void *text, size_t length);
int relay_logf_at(struct rchan *chan, struct relay_site *site, const char *format, ...) RELAY_PRINTF(3, 4);
int relay_vlogf_at(struct rchan *chan, struct relay_site *site, const char *format, va_list arguments)
	RELAY_PRINTF(3, 0);

/*
 * RELAY_ERROR(chan, format, ...), RELAY_WARN, RELAY_INFO, RELAY_DEBUG and RELAY_TRACE are statements: relay_logf_at for the
 * place where they stand. A failure sets errno, and a success leaves it as it was. In C89 they need GCC or clang, in C++
 * a compiler for C++11.
 *
 * RELAY_TARGET is the target of the calls behind it. Define it before this file is included, or define it again later.
 * A call with a level above RELAY_LEVEL_MAX does nothing, and evaluates no argument. A constant level takes the calls out of
 * the program: cc -DRELAY_LEVEL_MAX=RELAY_INFO. It may also be a variable.
 */
#ifndef RELAY_TARGET
#define RELAY_TARGET NULL
#endif
#ifndef RELAY_LEVEL_MAX
#define RELAY_LEVEL_MAX RELAY_TRACE
#endif
#ifdef __cplusplus
#define RELAY_HAS_MACROS (__cplusplus >= 201103L)
#elif defined(__GNUC__) || (defined(__STDC_VERSION__) && __STDC_VERSION__ >= 199901L)
#define RELAY_HAS_MACROS 1
#else
#define RELAY_HAS_MACROS 0
#endif
#if RELAY_HAS_MACROS
#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wvariadic-macros"
#endif
#define RELAY_LOG_HERE(chan, level_, ...) \
	do { \
		if ((int)(level_) <= (int)(RELAY_LEVEL_MAX)) { \
			static struct relay_site relay_site_ = { \
				level_, __LINE__, __FILE__, RELAY_TARGET, NULL, NULL, NULL \
			}; \
			(void)relay_logf_at(chan, &relay_site_, __VA_ARGS__); \
		} \
	} while (0)
#define RELAY_ERROR(chan, ...) RELAY_LOG_HERE(chan, 1, __VA_ARGS__)
#define RELAY_WARN(chan, ...) RELAY_LOG_HERE(chan, 2, __VA_ARGS__)
#define RELAY_INFO(chan, ...) RELAY_LOG_HERE(chan, 3, __VA_ARGS__)
#define RELAY_DEBUG(chan, ...) RELAY_LOG_HERE(chan, 4, __VA_ARGS__)
#define RELAY_TRACE(chan, ...) RELAY_LOG_HERE(chan, 5, __VA_ARGS__)
#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif
#endif

/* relay_open with five arguments: NULL for private_data. In C89 this needs GCC or clang. */
#if !defined(__cplusplus) && (defined(__GNUC__) || (defined(__STDC_VERSION__) && __STDC_VERSION__ >= 199901L))
#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wvariadic-macros"
#endif
#define relay_open(...) RELAY_OPEN_SIX(__VA_ARGS__, NULL, NULL)
#define RELAY_OPEN_SIX(name, parent, subbuf_size, n_subbufs, callbacks, private_data, ...) \
	(relay_open)(name, parent, subbuf_size, n_subbufs, callbacks, private_data)
#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif
#endif

#undef RELAY_OPTIONAL

#ifdef __cplusplus
}
#endif

#endif
