# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_audience_global_optspecs
    string join \n m/mount= c/channel= cpu= f/follow interval= snapshot state= trace= o/output= S/since= U/until= n/lines= g/grep= p/level= target= pid= utc color= window= list exec= h/help V/version
end

function __fish_audience_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_audience_global_optspecs) -- $cmd 2>/dev/null
    # The value of the last option is being typed.
    or argparse -s (__fish_audience_global_optspecs) -- $cmd[1..-2] 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_audience_using_subcommand
    set -l cmd (__fish_audience_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c audience -n "__fish_audience_needs_command" -s m -l mount -d 'Mount point [$RELAYFS or /mnt/relay]' -r -F
complete -c audience -n "__fish_audience_needs_command" -s c -l channel -d 'The channel, as app/log' -r
complete -c audience -n "__fish_audience_needs_command" -l cpu -d 'Read only this CPU\'s file' -r
complete -c audience -n "__fish_audience_needs_command" -l interval -d 'With --follow: look this often' -r
complete -c audience -n "__fish_audience_needs_command" -l state -d 'Print what a dead daemon left' -r -F
complete -c audience -n "__fish_audience_needs_command" -l trace -d 'Print a recording of a timed channel' -r -F
complete -c audience -n "__fish_audience_needs_command" -s o -l output -d 'Print as short-iso, cat, json or others' -r
complete -c audience -n "__fish_audience_needs_command" -s S -l since -d 'Leave out what is older: -5min, 10:30, ...' -r
complete -c audience -n "__fish_audience_needs_command" -s U -l until -d 'Leave out what is younger' -r
complete -c audience -n "__fish_audience_needs_command" -s n -l lines -d 'Only the last N records of all CPUs together' -r
complete -c audience -n "__fish_audience_needs_command" -s g -l grep -d 'Only records whose text matches' -r
complete -c audience -n "__fish_audience_needs_command" -s p -l level -d 'Only records of this level or a more severe one' -r
complete -c audience -n "__fish_audience_needs_command" -l target -d 'Only records whose target begins with this' -r
complete -c audience -n "__fish_audience_needs_command" -l pid -d 'Only records of this process or thread' -r
complete -c audience -n "__fish_audience_needs_command" -l color -d 'Color levels: auto, always, never' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set'
always\t'Always'
never\t'Never'"
complete -c audience -n "__fish_audience_needs_command" -l window -d 'With --follow: wait for other CPUs [100ms]' -r
complete -c audience -n "__fish_audience_needs_command" -l exec -d 'Run a program that mounts relayfs itself' -r
complete -c audience -n "__fish_audience_needs_command" -s f -l follow -d 'Read until interrupted'
complete -c audience -n "__fish_audience_needs_command" -l snapshot -d 'Print the buffers, and consume nothing'
complete -c audience -n "__fish_audience_needs_command" -l utc -d 'Print times in UTC'
complete -c audience -n "__fish_audience_needs_command" -l list -d 'List the channels with mode and geometry'
complete -c audience -n "__fish_audience_needs_command" -s h -l help -d 'Print this help'
complete -c audience -n "__fish_audience_needs_command" -s V -l version -d 'Print the version'
complete -c audience -n "__fish_audience_needs_command" -f -a "record" -d 'Record a channel into files, one for each CPU'
complete -c audience -n "__fish_audience_needs_command" -f -a "convert" -d 'Convert a recording of a timed channel'
complete -c audience -n "__fish_audience_needs_command" -f -a "report" -d 'Make a page for a browser'
complete -c audience -n "__fish_audience_needs_command" -f -a "watch" -d 'Save the last seconds of a timed channel when something happens'
complete -c audience -n "__fish_audience_needs_command" -f -a "status" -d 'Show how channels fare: rates, fill, losses'
complete -c audience -n "__fish_audience_needs_command" -f -a "top" -d 'Show channels live'
complete -c audience -n "__fish_audience_using_subcommand record" -s m -l mount -d 'Mount point [$RELAYFS or /mnt/relay]' -r -F
complete -c audience -n "__fish_audience_using_subcommand record" -s c -l channel -d 'The channel, as app/log' -r
complete -c audience -n "__fish_audience_using_subcommand record" -l cpu -d 'Read only this CPU\'s file' -r
complete -c audience -n "__fish_audience_using_subcommand record" -s o -l output -d 'Directory for the files' -r -F
complete -c audience -n "__fish_audience_using_subcommand record" -l rotate-size -d 'Begin another file at this size' -r
complete -c audience -n "__fish_audience_using_subcommand record" -l rotate-interval -d 'Begin another file at this age' -r
complete -c audience -n "__fish_audience_using_subcommand record" -l rotate-count -d 'Keep this many, remove the oldest' -r
complete -c audience -n "__fish_audience_using_subcommand record" -l total-size -d 'Keep all files below this size' -r
complete -c audience -n "__fish_audience_using_subcommand record" -l duration -d 'End after this time' -r
complete -c audience -n "__fish_audience_using_subcommand record" -l progress -d 'Time between two reports, 0 for none' -r
complete -c audience -n "__fish_audience_using_subcommand record" -l all -d 'Record every channel'
complete -c audience -n "__fish_audience_using_subcommand record" -l append -d 'Continue the recording in DIR'
complete -c audience -n "__fish_audience_using_subcommand record" -l dated -d 'Record into a new directory in DIR'
complete -c audience -n "__fish_audience_using_subcommand record" -s h -l help -d 'Print this help'
complete -c audience -n "__fish_audience_using_subcommand convert" -s o -l output -d 'File for the result; - is standard output' -r -F
complete -c audience -n "__fish_audience_using_subcommand convert" -l perfetto -d 'Make a trace for ui.perfetto.dev'
complete -c audience -n "__fish_audience_using_subcommand convert" -l json -d 'Make a JSON object of each record'
complete -c audience -n "__fish_audience_using_subcommand convert" -l text -d 'Make a line of each record'
complete -c audience -n "__fish_audience_using_subcommand convert" -s h -l help -d 'Print this help'
complete -c audience -n "__fish_audience_using_subcommand report" -s m -l mount -d 'Mount point [$RELAYFS or /mnt/relay]' -r -F
complete -c audience -n "__fish_audience_using_subcommand report" -s c -l channel -d 'A channel, repeatable [default: all]' -r
complete -c audience -n "__fish_audience_using_subcommand report" -s o -l output -d 'File for the page; - is standard output' -r -F
complete -c audience -n "__fish_audience_using_subcommand report" -l duration -d 'Watch the channels for this time' -r
complete -c audience -n "__fish_audience_using_subcommand report" -l messages -d 'Most messages, the newest' -r
complete -c audience -n "__fish_audience_using_subcommand report" -l snapshot -d 'Report what the buffers hold now'
complete -c audience -n "__fish_audience_using_subcommand report" -s h -l help -d 'Print this help'
complete -c audience -n "__fish_audience_using_subcommand watch" -s m -l mount -d 'Mount point [$RELAYFS or /mnt/relay]' -r -F
complete -c audience -n "__fish_audience_using_subcommand watch" -s c -l channel -d 'The channel, as app/log' -r
complete -c audience -n "__fish_audience_using_subcommand watch" -l on -d 'Save at level>=LEVEL, match=REGEX or exit' -r
complete -c audience -n "__fish_audience_using_subcommand watch" -s o -l output -d 'Directory for the traces' -r -F
complete -c audience -n "__fish_audience_using_subcommand watch" -l last -d 'Save what is this much older' -r
complete -c audience -n "__fish_audience_using_subcommand watch" -l keep -d 'Keep this many, remove the oldest' -r
complete -c audience -n "__fish_audience_using_subcommand watch" -l every -d 'Save at most one in this time' -r
complete -c audience -n "__fish_audience_using_subcommand watch" -l interval -d 'Look this often' -r
complete -c audience -n "__fish_audience_using_subcommand watch" -s h -l help -d 'Print this help'
complete -c audience -n "__fish_audience_using_subcommand status" -s m -l mount -d 'Mount point [$RELAYFS or /mnt/relay]' -r -F
complete -c audience -n "__fish_audience_using_subcommand status" -s c -l channel -d 'A channel, repeatable [default: all]' -r
complete -c audience -n "__fish_audience_using_subcommand status" -l interval -d 'Time between two looks' -r
complete -c audience -n "__fish_audience_using_subcommand status" -l json -d 'Print one line of JSON'
complete -c audience -n "__fish_audience_using_subcommand status" -s w -l watch -d 'Print again until interrupted'
complete -c audience -n "__fish_audience_using_subcommand status" -s h -l help -d 'Print this help'
complete -c audience -n "__fish_audience_using_subcommand top" -s m -l mount -d 'Mount point [$RELAYFS or /mnt/relay]' -r -F
complete -c audience -n "__fish_audience_using_subcommand top" -l interval -d 'Time between two looks' -r
complete -c audience -n "__fish_audience_using_subcommand top" -s h -l help -d 'Print this help'
