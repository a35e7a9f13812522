/* The kernel's linux/relay.h, for modules that are not in a kernel. See module.h. */
#ifndef RELAYFS_COMPAT_RELAY_H
#define RELAYFS_COMPAT_RELAY_H

#include "../../relay.h"

#endif
