/* For the printed copy of the reader, which does not say where it has it from. */
#include <sys/sysinfo.h>

int get_cputotal(void)
{
	return get_nprocs_conf();
}
