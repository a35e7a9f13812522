//! `.relay/metrics`: Prometheus reads it, no counter falls, and the dashboard names what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Output;

use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Channel, TransportChoice};
use relayfs_tests::pages::{Page, on_mnt_relay};
use relayfs_tests::users::{GROUP, NOBODY, by_user, gid_of, mount_for_all};
use relayfs_tests::{Mount, run, run_with_input, stdout_of, text, tool, workspace};

const NEVER_FALLS: &str = "_total";

fn metrics(mount: &Mount) -> String {
    fs::read_to_string(mount.path(".relay/metrics")).unwrap()
}

/// The samples by name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
    };
    lines.map(sample).collect()
}

/// A mount with every kind of metric.
fn mount_with_all() -> Mount {
    let mount = Mount::new(&["--channel=app/log:timed", "--subbuf-size=4K", "--n-subbufs=2"]);
    mount.send(0, &[&[b'x'; 4000], &[b'x'; 4000], &[b'x'; 4000], &[b'x'; 5000]]);
    fs::write(mount.control("app/log", "msg"), "unread").unwrap();
    mount
}

#[test]
fn promtool_accepts_it() {
    let mount = mount_with_all();
    let checked =
        run_with_input(tool("promtool", "prometheus").args(["check", "metrics"]), metrics(&mount).as_bytes());
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
    assert_eq!(
        (text(&checked.stdout), text(&checked.stderr)),
        (String::new(), String::new()),
        "not one remark"
    );
    let found = samples(&metrics(&mount));
    assert_eq!(found["relayfs_dropped_messages_total{channel=\"cpu\",cpu=\"0\"}"], 1.0);
    assert_eq!(found["relayfs_too_big_messages_total{channel=\"cpu\",cpu=\"0\"}"], 1.0);
    assert_eq!(found["relayfs_channels"], 2.0);
    assert!(found["relayfs_uptime_seconds"] >= 0.0 && found["relayfs_start_time_seconds"] > 1e9);
    assert!(
        !found.contains_key("relayfs_messages_total{channel=\"cpu\",cpu=\"0\"}"),
        "raw channels count none"
    );
}

/// Each number of `stats` that counts is there, with the same value.
#[test]
fn counters_agree_with_stats() {
    let mount = mount_with_all();
    let (stats, found) = (mount.stats("cpu"), samples(&metrics(&mount)));
    let of = |name: &str| found[&format!("relayfs_{name}_total{{channel=\"cpu\",cpu=\"0\"}}")] as u64;
    for (stat, metric) in [
        ("produced", "produced_subbufs"),
        ("consumed", "consumed_subbufs"),
        ("bytes", "written_bytes"),
        ("written", "daemon_messages"),
        ("dropped_bytes", "dropped_bytes"),
        ("full", "full"),
        ("read_bytes", "read_bytes"),
    ] {
        assert_eq!(stats[&format!("cpu0.{stat}")], of(metric), "{stat}");
    }
}

#[test]
fn producers_and_readers_are_counted() {
    let mount = Mount::new(&[]);
    let (channel, reader) = (mount.channel("cpu"), fs::File::open(mount.path("cpu0")).unwrap());
    let found = samples(&metrics(&mount));
    assert_eq!(found["relayfs_channel_producers{channel=\"cpu\",transport=\"socket\"}"], 1.0);
    assert_eq!(found["relayfs_channel_readers{channel=\"cpu\",way=\"read\"}"], 1.0);
    assert_eq!(found["relayfs_connections"], 1.0);
    drop((channel, reader));
}

/// A channel that goes, comes back and outlives daemons counts on under its name.
#[test]
fn no_counter_falls() {
    let mut mount = Mount::new(&["--keep", "--subbuf-size=64", "--n-subbufs=2"]);
    let mut before: BTreeMap<String, f64> = BTreeMap::new();
    for round in 1..=4 {
        let builder =
            Channel::builder(mount.point(), "app/log").transport(TransportChoice::Socket).create(true);
        let channel = builder.open().expect("a channel");
        let messages: [&[u8]; 3] = [&[b'x'; 60], &[b'y'; 60], &[b'z'; 60]];
        let options = BatchOptions { cpu: Some(0), ..BatchOptions::default() };
        assert_eq!(channel.write_batch(&messages, options).unwrap().dropped, 1);
        drop(channel);
        mount.read("app/log0");
        relayfs_tests::eventually("the channel to go", || !mount.control("app/log", "stats").exists());
        if round == 2 {
            mount.end(Signal::SIGTERM);
            mount.restart(&["--keep", "--subbuf-size=64", "--n-subbufs=2"]);
        }
        if round == 3 {
            mount.end(Signal::SIGKILL);
            mount.restart(&["--keep", "--subbuf-size=64", "--n-subbufs=2"]);
        }
        let now = samples(&metrics(&mount));
        for (name, value) in before.iter().filter(|(name, _)| name.contains(NEVER_FALLS)) {
            assert!(now.get(name).is_some_and(|now| now >= value), "{name} in round {round}");
        }
        let dropped = now["relayfs_dropped_messages_total{channel=\"app/log\",cpu=\"0\"}"];
        assert_eq!(dropped, f64::from(round), "in round {round}");
        before = now;
    }
}

/// Returns the names of metrics in a text.
fn names_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("relayfs_")).collect()
}

#[test]
fn dashboard_and_document_name_metrics_that_exist() {
    let text = metrics(&mount_with_all());
    let there = names_in(&text);
    for file in ["relayfsd/dist/grafana.json", "docs/monitoring.md"] {
        let named = fs::read_to_string(workspace().join(file)).unwrap();
        let named = names_in(&named);
        assert!(named.len() > 10, "{file}");
        let missing: Vec<_> = named.difference(&there).collect();
        assert!(missing.is_empty(), "{file}: {missing:?}");
    }
    let dashboard = fs::read(workspace().join("relayfsd/dist/grafana.json")).unwrap();
    let parsed = run_with_input(tool("python3", "python3").args(["-m", "json.tool"]), &dashboard);
    assert!(parsed.status.success(), "{}", relayfs_tests::text(&parsed.stderr));
}

/// A block of the page below *Prometheus*.
#[track_caller]
fn block<'a>(page: &'a Page, start: &str) -> &'a str {
    let blocks = page.blocks();
    let mut found = blocks.iter().filter(|(of, _, code)| *of == "Prometheus" && code.starts_with(start));
    found.next().unwrap_or_else(|| panic!("no block that begins with {start}")).2
}

/// The copy that the page's units make is what node_exporter serves.
#[test]
fn node_exporter_serves_the_copy_of_the_page() {
    let page = Page::open("monitoring.md");
    let units = block(&page, "# /etc/systemd/system/relayfs-metrics.service\n");
    let (service, timer) = units.split_once("\n\n").expect("two units");
    let dir = tempfile::tempdir().unwrap();
    let mut verify = tool("systemd-analyze", "systemd");
    verify.args(["verify", "--man=no"]);
    for unit in [service, timer] {
        let path = unit.lines().next().and_then(|line| line.strip_prefix("# ")).expect("the path of a unit");
        let path = dir.path().join(path.rsplit('/').next().expect("a name"));
        fs::write(&path, unit).unwrap();
        verify.arg(path);
    }
    let output = run(&mut verify);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));

    let value = |key: &str| service.lines().find_map(|line| line.strip_prefix(key)).expect(key);
    let (place, command) = (value("WorkingDirectory="), value("ExecStart="));
    tool("prometheus-node-exporter", "prometheus-node-exporter");
    let label = block(&page, "sed ");
    let script = format!(
        r#"
        echo unread >/mnt/relay/.relay/channels/app/log/msg
        mount -t tmpfs tmpfs /var/lib
        mkdir -p {place}
        # A second time replaces it.
        for time in 1 2; do (cd {place}; {command}); done
        test relayfs.prom = "$(ls {place})"
        # As the file of another mount.
        ({label}) >{place}/other.prom
        prometheus-node-exporter --collector.disable-defaults --collector.textfile \
            --collector.textfile.directory={place} --web.listen-address=127.0.0.1:0 2>"$DIR/said" &
        address() {{ sed -n 's/.*msg="Listening on".* address=\([0-9.:]*\).*/\1/p' "$DIR/said" | grep .; }}
        eventually address
        python3 -c '{FETCH}' "http://$(address)/metrics"
        echo '# of the mount'
        cat /mnt/relay/.relay/metrics
    "#
    );
    let said = text(&stdout_of(&mut on_mnt_relay(dir.path(), &script)));
    let (served, own) = said.split_once("# of the mount\n").expect("both");
    let served = samples(served);
    assert_eq!(served["node_textfile_scrape_error"], 0.0);
    let own = samples(own);
    assert_eq!(
        served["relayfs_unread_bytes{channel=\"app/log\",cpu=\"0\"}"]
            + served["relayfs_unread_bytes{channel=\"app/log\",cpu=\"1\"}"],
        22.0
    );
    let missing: Vec<_> = own.keys().filter(|name| !served.contains_key(*name)).collect();
    assert!(own.len() > 20 && missing.is_empty(), "{missing:?}");
    let labelled = served.keys().filter(|name| name.contains("mount=\"mnt-relay\""));
    assert_eq!(labelled.count(), own.len());
}

/// Prints what is at a URL, whatever proxies the caller has.
const FETCH: &str = "import sys, urllib.request as request; \
                     opener = request.build_opener(request.ProxyHandler({})); \
                     sys.stdout.write(opener.open(sys.argv[1]).read().decode())";

#[test]
fn promtool_accepts_the_alerts_of_the_page() {
    let page = Page::open("monitoring.md");
    let alerts = block(&page, "- alert:");
    let rules: String = alerts.lines().map(|line| format!("      {line}\n")).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.yml");
    fs::write(&file, format!("groups:\n  - name: relayfs\n    rules:\n{rules}")).unwrap();
    let said = text(&stdout_of(tool("promtool", "prometheus").args(["check", "rules"]).arg(&file)));
    assert!(said.contains("3 rules found"), "{said}");
}

/// The longest time between two copies of a healthy machine, by the page's timer, is too short for the page's alert.
#[test]
fn alert_of_a_daemon_that_is_down_waits_for_the_timer() {
    let page = Page::open("monitoring.md");
    let units = block(&page, "# /etc/systemd/system/relayfs-metrics.service\n");
    let value = |key: &str| -> f64 {
        let value = units.lines().find_map(|line| line.strip_prefix(key)).expect(key);
        value.trim_end_matches('s').parse().expect("seconds")
    };
    let between = value("OnUnitActiveSec=") + value("AccuracySec=");
    let alerts = block(&page, "- alert:");
    let down = alerts.lines().find(|line| line.contains("node_textfile_mtime_seconds")).expect("the alert");
    let limit: f64 = down.rsplit_once("> ").expect("a limit").1.parse().expect("seconds");
    assert!(2.0 * between < limit, "{between}, {limit}");
}

/// Two mounts of one machine, told apart by the page's label, have channels of one name.
#[test]
fn dashboard_divides_within_each_mount() {
    let dashboard = fs::read_to_string(workspace().join("relayfsd/dist/grafana.json")).unwrap();
    let divided: Vec<&str> = dashboard.lines().filter(|line| line.contains("group_left")).collect();
    let [line] = divided[..] else { panic!("{divided:?}") };
    let expr = line.split_once("\"expr\": ").expect("an expression").1.trim_end_matches(',');
    let expr: String = serde_json::from_str(expr).expect("a string");
    let series = |name: &str, labels: &str, value: u32| {
        ["m1", "m2"].map(|mount| {
            let of = format!("{name}{{instance=\"i\",mount=\"{mount}\",channel=\"cpu\"{labels}}}");
            format!("      - {{series: '{of}', values: '{value}'}}\n")
        })
    };
    let input = [series("relayfs_unread_subbufs", ",cpu=\"0\"", 1), series("relayfs_channel_subbufs", "", 4)];
    let samples = ["m1", "m2"].map(|mount| {
        let labels = format!("{{instance=\"i\",mount=\"{mount}\",channel=\"cpu\",cpu=\"0\"}}");
        format!("          - {{labels: '{labels}', value: 0.25}}\n")
    });
    let test = format!(
        "tests:\n  - interval: 1m\n    input_series:\n{}    promql_expr_test:\n      - expr: '{}'\n        \
         eval_time: 0s\n        exp_samples:\n{}",
        input.concat().concat(),
        expr.replace("$channel", ".*"),
        samples.concat(),
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("test.yml");
    fs::write(&file, &test).unwrap();
    let output = run(tool("promtool", "prometheus").args(["test", "rules"]).arg(&file));
    assert!(output.status.success(), "{test}{}{}", text(&output.stdout), text(&output.stderr));
}

fn reads(mount: &Mount, gid: u32, file: &str) -> Output {
    let mut command = by_user(NOBODY, gid, "/bin/cat");
    run(command.arg(mount.path(file)))
}

const COUNTS: [&str; 5] = [
    ".relay/metrics",
    ".relay/status",
    ".relay/stats",
    ".relay/channels/cpu/stats",
    ".relay/channels/cpu/status",
];

/// The group of `--stats-group` sees counts, and can consume nothing. So does the group of `--group` beside it.
#[test]
fn stats_group_sees_counts_alone() {
    const STATS: u32 = 1; // Debian's `daemon`
    let both = ["--group", GROUP, "--stats-group", "1"];
    for args in [&both[2..], &both] {
        let mount = mount_for_all(args);
        mount.send(0, &[b"kept"]);
        for file in COUNTS {
            let read = reads(&mount, STATS, file);
            assert!(
                read.status.success() && !read.stdout.is_empty(),
                "{args:?} {file}: {}",
                text(&read.stderr)
            );
            assert!(!reads(&mount, NOBODY, file).status.success(), "{file} is not for others");
            assert_eq!(
                reads(&mount, gid_of(GROUP), file).status.success(),
                args.len() > 2,
                "{args:?} {file}"
            );
            assert_eq!(fs::metadata(mount.path(file)).unwrap().mode() & 0o7777, 0o440, "{file}");
        }
        let ring = "snapshot/cpu0 take/cpu0 map/cpu0 consumed/cpu0 control msg flush reset";
        let ring = ring.split(' ').map(|file| format!(".relay/channels/cpu/{file}"));
        for file in ring.chain(["cpu0".to_owned()]) {
            assert!(!reads(&mount, STATS, &file).status.success(), "{file}");
        }
        assert_eq!(mount.read("cpu0"), b"kept");
    }
}

/// The size that a lookup says is that of the text that the open behind it gets.
#[test]
fn size_is_that_of_the_text() {
    let mount = mount_with_all();
    for file in COUNTS {
        let text = fs::read(mount.path(file)).unwrap();
        assert!(text.len() > 50, "{file}");
        let got = run(tool("tail", "coreutils").args(["-c", "40"]).arg(mount.path(file)));
        assert!(got.status.success() && got.stdout.len() == 40 && got.stdout.ends_with(b"\n"), "{file}");
    }
}
