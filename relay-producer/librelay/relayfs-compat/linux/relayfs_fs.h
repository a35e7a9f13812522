/* The name that linux/relay.h had when relayfs was a file system of its own. See module.h. */
#ifndef RELAYFS_COMPAT_RELAYFS_FS_H
#define RELAYFS_COMPAT_RELAYFS_FS_H

#include "relay.h"

#define relayfs_create_dir relay_create_dir
#define relayfs_remove_dir relay_remove_dir

#endif
