/* Error numbers are the system's. See module.h. */
#ifndef RELAYFS_COMPAT_ERRNO_H
#define RELAYFS_COMPAT_ERRNO_H

#ifdef __GNUC__
#pragma GCC system_header
#endif

#if defined(__has_include_next)
#if __has_include_next(<linux/errno.h>)
#include_next <linux/errno.h>
#endif
#endif
#include <errno.h>

#endif
