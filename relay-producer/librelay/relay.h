/*
 * relay.h - the kernel's relay interface, Documentation/filesystems/relay.rst, for ordinary programs: what is written
 * goes into the channels of a mounted relayfs.
 *
 *     cc hello.c $(pkg-config --cflags --libs relay)
 *
 * Names, arguments and meaning are the kernel's; where something differs, it is said below. What has no meaning outside
 * the kernel fails with ENOTSUP. Functions that return int return 0, or -1 with errno set, also where the kernel's return
 * nothing; those that return pointers return NULL with errno set. Errors common to all:
 *
 *     EINVAL    chan is NULL, or was not made by relay_open; an argument is out of range
 *     EBADF     the channel has been closed
 *     ENODEV    no relayfs is mounted there, or its daemon has gone away; later calls look for a new one
 *
 * Every function may be called by any thread. relay_write and relay_reserve write into the buffer of the CPU that the
 * caller is on. relay_write may be called in signal handlers if the message has at most 64 KiB and the buffers are
 * shared with this process (relay-producer -v says whether they are), also when the daemon has crashed, until the channel
 * is closed; save errno there. Load the library before threads start that write in handlers.
 * After fork, parent and child both may go on with a channel. A child of vfork must not.
 *
 * The library's descriptors are 3 or above, and close-on-exec. A program may close them, as daemons close all they have.
 * Before the library writes to a descriptor or closes it, it checks that the descriptor is still its own. Another one
 * with that number is left alone. Without its descriptors the library still writes shared buffers; otherwise relay_write
 * fails with ENODEV. It connects again as after a crash of the daemon: relay_flush does so at once. One race remains:
 * another thread closes a descriptor and opens another one between the check and the write, or the close. So do
 * not close descriptors of the library while a thread is inside one of its functions.
 */
#ifndef RELAY_H
#define RELAY_H

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
#define RELAY_OPTIONAL = NULL
extern "C" {
#else
#define RELAY_OPTIONAL
#endif

/* What struct rchan has in version; each later one has the fields of those before it. */
#define RELAYFS_CHANNEL_VERSION 1
/* Most bytes that subbuf_start_reserve reserves. */
#define RELAY_RESERVE_MAX 256

struct rchan;
struct rchan_callbacks;

/* A place in the tree of a relayfs, see relay_create_dir. */
struct dentry;

/* The buffer of one CPU. Made by the library only, and not to be changed. */
struct rchan_buf {
	struct rchan *chan;
	unsigned int cpu;
};

/*
 * A channel. Made by the library only; fields are added at the end, with a higher version. Only private_data is the
 * program's to change. The geometry is the real one, which need not be what was asked for.
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
	int overwrite;                      /* 1: when full, the oldest sub-buffer is given up */
	size_t header;                      /* bytes at the start of each sub-buffer that are reserved */
};

struct rchan_callbacks {
	/*
	 * Called before this process begins a sub-buffer; 0 refuses, and the message is dropped. A channel created with
	 * this callback is an overwriting one, so that nobody else refuses. Differences to the kernel:
	 *
	 * It is called before anything has changed, and again if the thread was interrupted before the change was made;
	 * so what it counts are tries. It is called by threads on all CPUs, and must not write to the channel (EDEADLK).
	 * Not called for sub-buffers that the daemon begins: for relay_flush, for other programs, for messages of more than
	 * 64 KiB, and for threads that cannot write directly. Where a process cannot write directly at all, or the channel is
	 * global, relay_open fails with ENOTSUP.
	 *
	 * subbuf has room for what subbuf_start_reserve reserves, and becomes the start of the sub-buffer. prev_subbuf is
	 * always NULL: the sub-buffer may be with its reader already. prev_padding is what would be lost at its end.
	 * relay_buf_full(buf) tells whether, once it is finished, all would be full.
	 *
	 * As in the kernel it is called by relay_open as well, where its answer means nothing and what it reserves counts:
	 * it becomes the header of a channel that is created. If an existing channel reserves less, relay_open fails with
	 * EINVAL.
	 */
	int (*subbuf_start)(struct rchan_buf *buf, void *subbuf, void *prev_subbuf, size_t prev_padding);
	/*
	 * Called once by relay_open, for buffer 0, and decides two things. *is_global = 1: one buffer for all CPUs. And the
	 * name: it returns relay_create_buf_file(NAME, DIR), where NAME ends with the 0 of the CPU, which is filename unless
	 * it wants another. NULL: relay_open fails, with the errno it left, or ECANCELED. Nothing else can be decided here.
	 */
	struct dentry *(*create_buf_file)(const char *filename, struct dentry *parent, mode_t mode,
					  struct rchan_buf *buf, int *is_global);
	/* Called once by relay_close, with what create_buf_file returned. */
	int (*remove_buf_file)(struct dentry *dentry);
};

/*
 * Opens a channel of the relayfs that the environment variable RELAYFS names, else of /mnt/relay. One that exists is
 * attached to, as it is: several programs may write to one. Its files are base_filename and the CPU's number.
 *
 * base_filename  A name, or one below directories: "app/log".
 * parent         A directory by relay_create_dir that base_filename is in, or NULL.
 * subbuf_size, n_subbufs
 *                For a channel that is created; not 0.
 * callbacks      May be NULL: when all sub-buffers are full, messages are dropped.
 * private_data   May be left out, as with older kernels.
 *
 * EEXIST: a channel is there whose files would have the same names, or whose directory this would be.
 * ENOTSUP: base_filename is NULL (relay_late_setup_files does not exist here), or a callback cannot be had. ENAMETOOLONG.
 * ENOMEM: more than the daemon's --max-memory. ECONNREFUSED, ENOTCONN: the daemon has died, or is about to end. ETIMEDOUT:
 * it does not answer. EPROTO: what answers is no relayfs. EACCES: its socket is for others.
 */
struct rchan *relay_open(const char *base_filename, struct dentry *parent, size_t subbuf_size, size_t n_subbufs,
			 const struct rchan_callbacks *cb, void *private_data RELAY_OPTIONAL);

/* The same for the relayfs mounted at mount, which can also be its daemon's socket. NULL: as relay_open. */
struct rchan *relay_open_at(const char *mount, const char *base_filename, struct dentry *parent, size_t subbuf_size,
			    size_t n_subbufs, const struct rchan_callbacks *cb, void *private_data);

/*
 * Closes it. A second time: EBADF. What was written stays and can be read; a channel that a program created goes when it
 * has been read and nobody has it open. Where buffers are not shared, it waits until the daemon has what was written. ENODEV,
 * ETIMEDOUT: it is closed, but the daemon has gone, or not answered for 10 seconds, and may not have the last messages.
 *
 * Other threads may be calling other functions with it, for as long as they like: they get EBADF, or, if what they write at this
 * moment is lost, perhaps 0. A struct rchan is never freed, so a pointer to one that is closed is known as such, EBADF, until 256
 * others have been closed after it; from then on it may be that of another channel. Not to be called in signal handlers.
 */
int relay_close(struct rchan *chan);

/*
 * Writes a message, whole or not at all, and never waits. 0: it is in the buffer, or, where buffers are not shared, on
 * its way to the daemon, which will get it even if this process ends now. Otherwise it is lost, and, but for ENODEV and EBADF,
 * counted: ENOSPC: no room, since no reader has kept up and every sub-buffer is full, or since the socket to the daemon is.
 * EMSGSIZE: longer than any message of this channel can be, which is a sub-buffer without its header, at most 1 MiB.
 * EFAULT: data is NULL, and length is not 0. Or the daemon's errno, where it refused the message, such as EIO.
 */
int relay_write(struct rchan *chan, const void *data, size_t length);

/* The same: outside the kernel there are no interrupts to be kept off. */
int __relay_write(struct rchan *chan, const void *data, size_t length);

/*
 * Room for a message of length bytes, to be filled in and then written by relay_commit, by the next call of a function of
 * this library in the same thread, or by the end of the thread. So a signal handler that writes in between writes it
 * too, as far as it is filled in. Unlike the kernel's it is the thread's own and not in the buffer: whether there is
 * room is decided when it is written. EMSGSIZE, ENOMEM.
 */
void *relay_reserve(struct rchan *chan, size_t length);

/* Writes what was reserved; as relay_write. EINVAL: nothing is reserved by this thread in this channel. */
int relay_commit(struct rchan *chan);

/* Finishes the current sub-buffer of every CPU, and waits for that. ETIMEDOUT: the daemon does not answer. */
int relay_flush(struct rchan *chan);

/*
 * Forgets what is unread, on every CPU. As the next two it is done through the mounted tree, whose owner decides who may.
 * EACCES: not this user. ENOTSUP: the channel was opened by a socket.
 */
int relay_reset(struct rchan *chan);

/*
 * Whether every sub-buffer of a buffer is full. 1, 0, or -1 with errno set. Other than for shared buffers it reads the
 * tree's stats: EACCES, ENOTSUP.
 */
int relay_buf_full(struct rchan_buf *buf);

/*
 * Gives sub-buffers back that were read in a mapping of the buffer (map/cpuN). More than are finished gives back those that
 * are; more than the buffer has, nothing (EINVAL). EACCES, ENOTSUP as for relay_reset.
 */
void relay_subbufs_consumed(struct rchan *chan, unsigned int cpu, size_t subbufs_consumed);

/*
 * Within subbuf_start: reserves the first length bytes of each sub-buffer. EINVAL: outside of it, or more than the channel
 * has reserved (at relay_open: more than RELAY_RESERVE_MAX).
 */
void subbuf_start_reserve(struct rchan_buf *buf, size_t length);

/*
 * A directory of a relayfs, to be a parent. It appears in the tree when a channel is in it. ENAMETOOLONG, EINVAL: no such
 * name can be. Removing takes nothing away, and is there for symmetry.
 */
struct dentry *relay_create_dir(const char *name, struct dentry *parent);
int relay_remove_dir(struct dentry *dentry);

/* For the callbacks above, in place of debugfs_create_file and debugfs_remove. */
struct dentry *relay_create_buf_file(const char *name, struct dentry *parent);
int relay_remove_buf_file(struct dentry *dentry);

/*
 * ENOTSUP, always. The library switches sub-buffers by itself, and relay_flush has them finished; files are there
 * from the beginning.
 */
size_t relay_switch_subbuf(struct rchan_buf *buf, size_t length);
int relay_late_setup_files(struct rchan *chan, const char *base_filename, struct dentry *parent);

/* relay_open with five arguments: NULL for private_data. In C89 it takes GCC or clang. */
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
