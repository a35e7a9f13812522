complete -c relay-producer -s m -l mount -d 'Mount point or socket [$RELAYFS or /mnt/relay]' -r -F
complete -c relay-producer -l wait-mount -d 'Wait until relayfs is mounted' -r
complete -c relay-producer -s c -l channel -d 'Write to this channel' -r
complete -c relay-producer -l create -d 'Create the channel if it does not exist' -r
complete -c relay-producer -l cpu -d 'Write to the buffer of this CPU' -r
complete -c relay-producer -l transport -d 'By auto, shared or socket' -r -f -a "auto\t'Write into shared buffers if possible, else send to the daemon'
shared\t'Write into shared buffers, or fail'
socket\t'Send to the daemon'"
complete -c relay-producer -l level -d 'Set the level: error, warn, info, debug, trace' -r
complete -c relay-producer -l target -d 'Say which part of a program it is of' -r
complete -c relay-producer -l chunk -d 'Cut input into messages of this size' -r
complete -c relay-producer -l wait -d 'Wait for room, for ever or for DURATION' -r
complete -c relay-producer -l exec -d 'Run a program and keep its output' -r
complete -c relay-producer -l load -d 'Run a module written for the kernel' -r -F
complete -c relay-producer -l for -d 'End the module after this time' -r
complete -c relay-producer -l timed -d 'Create a timed channel'
complete -c relay-producer -s n -l no-newline -d 'Add no newline to a MESSAGE'
complete -c relay-producer -s 0 -l null -d 'End messages of standard input at a NUL'
complete -c relay-producer -l flush -d 'At the end, finish the current sub-buffers'
complete -c relay-producer -s v -l verbose -d 'Print channel, geometry and transport'
complete -c relay-producer -s h -l help -d 'Print this help'
complete -c relay-producer -s V -l version -d 'Print the version'
