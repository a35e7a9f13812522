/* The same in the words of later kernels, as one copies it from paper. */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/relay.h>

static struct rchan *hello_rchan;

static int __init hello_init(void)
{
	int unused;
	char *msg = "Hello world\n";

	if (!(hello_rchan = relay_open("cpu", NULL, 8192, 2, NULL))) {
		printk(KERN_ERR "relay_open() failed.\n");
		return -ENOMEM;
	}
	relay_write(hello_rchan, msg, strlen(msg));
	printk(KERN_INFO "hello: %d bytes\n", (int)strlen(msg));
	return 0;
}

static void __exit hello_exit(void)
{
	if (hello_rchan)
		relay_close(hello_rchan);
	printk(KERN_INFO "hello: bye\n");
}

module_init(hello_init);
module_exit(hello_exit);
MODULE_AUTHOR("nobody");
MODULE_LICENSE("GPL");
