complete -c relay-forward -l to -d 'Forward channels to these servers' -r
complete -c relay-forward -l stream -d 'The stream; its subjects begin with it' -r
complete -c relay-forward -s c -l channel -d 'A channel, as app/log; may be repeated [default: all]' -r
complete -c relay-forward -l host -d 'A host in the stream [--to: the hostname, --from: all]' -r
complete -c relay-forward -l creds -d 'A file of credentials, as nsc(1) makes them' -r -F
complete -c relay-forward -l user-file -d 'User and password [or $NATS_USER, $NATS_PASSWORD]' -r -F
complete -c relay-forward -l token-file -d 'A file with a token [or $NATS_TOKEN]' -r -F
complete -c relay-forward -l tls-ca -d 'Trust only servers that this authority vouches for' -r -F
complete -c relay-forward -l tls-cert -d 'The certificate of this client, as PEM' -r -F
complete -c relay-forward -l tls-key -d 'The key of that certificate, as PEM' -r -F
complete -c relay-forward -s m -l mount -d 'Mount point [$RELAYFS or /mnt/relay]' -r -F
complete -c relay-forward -l flush-interval -d 'Forward small parts this often' -r
complete -c relay-forward -l window -d 'Most unacknowledged messages' -r
complete -c relay-forward -l replicas -d 'Copies of the created stream' -r
complete -c relay-forward -l from -d 'Print channels that these servers have' -r
complete -c relay-forward -l hold -d 'With --follow: wait this long for other hosts, or 1s' -r
complete -c relay-forward -l record -d 'Write recordings below DIR, as DIR/HOST/CHANNEL' -r -F
complete -c relay-forward -s o -l output -d 'Print as short-iso, cat, json or others' -r
complete -c relay-forward -s S -l since -d 'Leave out what is older: -5min, 10:30, ...' -r
complete -c relay-forward -s U -l until -d 'Leave out what is younger' -r
complete -c relay-forward -s n -l lines -d 'Only the last N records of all CPUs together' -r
complete -c relay-forward -s g -l grep -d 'Only records whose text matches' -r
complete -c relay-forward -s p -l level -d 'Only records of this level or a more severe one' -r
complete -c relay-forward -l target -d 'Only records whose target begins with this' -r
complete -c relay-forward -l pid -d 'Only records of this process or thread' -r
complete -c relay-forward -l color -d 'Color levels: auto, always, never' -r -f -a "auto\t'On a terminal, unless NO_COLOR is set'
always\t'Always'
never\t'Never'"
complete -c relay-forward -l tls-required -d 'Refuse servers without TLS'
complete -c relay-forward -l create -d 'Create the stream if it is missing, in files'
complete -c relay-forward -s f -l follow -d 'Read until interrupted'
complete -c relay-forward -l utc -d 'Print times in UTC'
complete -c relay-forward -s h -l help -d 'Print this help'
complete -c relay-forward -s V -l version -d 'Print the version'
