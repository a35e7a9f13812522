/*
 * Modules that are not as they should be, one for each name that is defined: FAILS (with this number), HANGS, SLOW (until
 * there is a file of that name), STRANGE (returns a number that means nothing), ALONE (without an exit), NOTHING (no init),
 * UNKNOWN (calls what there is not).
 */
#include <linux/module.h>
#include <linux/kernel.h>
#include <unistd.h>

#ifdef UNKNOWN
void there_is_no_such_function(void);
#endif

#ifndef NOTHING
static int __init odd_init(void)
{
	printk(KERN_INFO "odd: init %d\n", 1);
	printk("<4>odd: a level of long ago\n");
	pr_warn("odd: warning\n");
#if defined(FAILS)
	return FAILS;
#elif defined(HANGS)
	for (;;)
		pause();
#elif defined(SLOW)
	while (access(SLOW, F_OK))
		usleep(1000);
#elif defined(STRANGE)
	return 3;
#elif defined(UNKNOWN)
	there_is_no_such_function();
#endif
	return 0;
}
module_init(odd_init);

#ifndef ALONE
static void __exit odd_exit(void)
{
	printk(KERN_INFO "odd: exit\n");
}
module_exit(odd_exit);
#endif
#endif
