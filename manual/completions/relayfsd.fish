# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_relayfsd_global_optspecs
    string join \n subbuf-size= n-subbufs= overwrite header= channel= create-on-write flush-interval= max-memory= max-channels= max-connections= group= stats-group= socket-mode= shared= socket= state-dir= log-file= keep discard f/foreground d/debug s/single-thread v/verbose o= h/help V/version
end

function __fish_relayfsd_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_relayfsd_global_optspecs) -- $cmd 2>/dev/null
    # The value of the last option is being typed.
    or argparse -s (__fish_relayfsd_global_optspecs) -- $cmd[1..-2] 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_relayfsd_using_subcommand
    set -l cmd (__fish_relayfsd_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c relayfsd -n "__fish_relayfsd_needs_command" -l subbuf-size -d 'Set the size of a sub-buffer [default: 256K]' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l n-subbufs -d 'Set the sub-buffers of each CPU [default: 4]' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l header -d 'Begin sub-buffers with zeroes [default: 0]' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l channel -d 'Add a channel, or change "cpu"; repeatable' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l flush-interval -d 'Delay of poll(), or never' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l max-memory -d 'Limit the memory of all channels [default: 1/4]' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l max-channels -d 'Limit the channels' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l max-connections -d 'Limit the producers' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l group -d 'Let this group read the files and send' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l stats-group -d 'Let this group see status and metrics' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l socket-mode -d 'Set the socket\'s mode [default: 0600]' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l shared -d 'Users that get the buffers' -r -f -a "never\t'No user: all messages go over the socket'
owner\t'Root, and the daemon\'s own user'
group\t'Root, the daemon\'s own user, and the members of `--group`'
all\t'Every user that can connect'"
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l socket -d 'Create the socket here' -r -F
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l state-dir -d 'Keep the buffers here, on a tmpfs' -r -F
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l log-file -d 'Log here in the background [default: syslog]' -r -F
complete -c relayfsd -n "__fish_relayfsd_needs_command" -s o -d 'Set mount options: NAME[=VALUE],...' -r
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l overwrite -d 'When full, give up the oldest messages'
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l create-on-write -d 'Create a channel when a producer names it'
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l keep -d 'At the end, keep every channel'
complete -c relayfsd -n "__fish_relayfsd_needs_command" -l discard -d 'At the end, remove every channel'
complete -c relayfsd -n "__fish_relayfsd_needs_command" -s f -l foreground -d 'Stay, and log to standard error'
complete -c relayfsd -n "__fish_relayfsd_needs_command" -s d -l debug -d 'Log everything; implies -f'
complete -c relayfsd -n "__fish_relayfsd_needs_command" -s s -l single-thread -d 'Serve files with one thread'
complete -c relayfsd -n "__fish_relayfsd_needs_command" -s v -l verbose -d 'Say what was mounted, where and how large'
complete -c relayfsd -n "__fish_relayfsd_needs_command" -s h -l help -d 'Print this help'
complete -c relayfsd -n "__fish_relayfsd_needs_command" -s V -l version -d 'Print the version'
complete -c relayfsd -n "__fish_relayfsd_needs_command" -a "doctor" -d 'Check this machine for what relayfsd needs'
complete -c relayfsd -n "__fish_relayfsd_using_subcommand doctor" -l state-dir -d 'Look at this state directory' -r -F
complete -c relayfsd -n "__fish_relayfsd_using_subcommand doctor" -s h -l help -d 'Print this help'
