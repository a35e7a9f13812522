/* Functions on strings are the C library's. See module.h. */
#ifndef RELAYFS_COMPAT_STRING_H
#define RELAYFS_COMPAT_STRING_H

#include <string.h>

#endif
