// What `config set` and `reload` share.
#ifndef MAGICPIGCTL_CONFIG_H
#define MAGICPIGCTL_CONFIG_H

// Prints the lines of mpig_daemon_configure for people, or as JSON. Returns enum ctl_exit.
int config_print_changes(const char *text);

#endif
