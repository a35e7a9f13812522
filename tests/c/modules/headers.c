/* With SYSTEM a program that wants the system's headers, otherwise a module that includes one of the C library's. */
#include <linux/kernel.h>
#include <linux/module.h>
#include <sys/sysinfo.h>

#ifdef SYSTEM

#include <relay.h>

#if !defined(MODULE_INIT_IGNORE_MODVERSIONS) || defined(MODULE_LICENSE)
#error not the headers of the system
#endif
int flags = MODULE_INIT_IGNORE_MODVERSIONS;

#else

#include <linux/relay.h>

int init_module(void)
{
	struct sysinfo info;

	return sysinfo(&info) ? -EINVAL : 0;
}

MODULE_LICENSE("GPL");
EXPORT_SYMBOL(init_module);

#endif
