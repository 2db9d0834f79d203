use super::*;
use clap::CommandFactory as _;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("parhelion").chain(line.split(' ')))
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
    let help = Cli::command().render_long_help().to_string();
    assert!(help.split_whitespace().collect::<Vec<_>>().join(" ").contains("3 no region could be reached"), "{help}");
}

#[test]
fn what_the_issue_names_can_be_typed() {
    for line in [
        "demo --regions 3 --profile world --dir d --base-port 7400 --ready-file f --load 200 --for 30s --json",
        "demo",
        "region --config regions/us-east.toml",
        "region add ap-south --quic 10.0.0.9:7400 --json --config f",
        "region remove ap-south --dry-run --timeout 10s",
        "detach eu-west --confirm eu-west --config f --json",
        "force-new-lineage --survivors a,b --i-confirm-old-primary-is-stopped=us-east --config f",
        "retire --lineage 00ff00ff --confirm us-east --config f",
        "invite --region ap-south --ttl 1h --listen 127.0.0.1:0 --address there:7404 --json --config f",
        "join --token-file - --config regions/ap-south.toml --listen 127.0.0.1:7700 --address there:7700 --json",
        "invite --witness w2 --zone c --ttl 1h --json --config f",
        "witness --config regions/witness.toml",
        "witness add w2 --quic 10.0.0.9:7700 --zone c --dry-run --json --config f",
        "witness remove w2 --dry-run --timeout 10s --json",
        "certs --config regions/us-east.toml --renew",
        "certs --dir certs --cluster demo --region us-east --region eu-west",
        "status --watch --json",
        "status --check --config f",
        "lag --json",
        "events --follow",
        "switchover --to eu-west --dry-run --timeout 30s --json",
        "drill --to eu-west --timeout 30s --config f --json",
        "failover --to eu-west --allow-data-loss --max-loss 2s --json",
        "failover --to eu-west --allow-data-loss --primary-is-down us-east --config f",
        "failover report 3f --json",
        "op 3f --json",
        "op",
        "set max_rpo=2s sync=1",
        "netem set us-east eu-west delay=38ms loss=0.5% --dir d",
        "netem set * eu-west blackhole=on --both",
        "netem show --config f",
        "copy stop a1 --config f",
        "copy start c2",
        "copy --config regions/zones/zone-a.toml",
        "copy replace a1 --with /mnt/new",
        "copy replace a1 --cancel",
        "copy slow a1 --delay 50ms",
        "copy slow a1 --delay 0 --config f",
        "volume verify --config f --json",
        "salvage --config f --json",
        "salvage 80000000000000ff --config f --listen 127.0.0.1:0",
        "salvage 51f1db --config f --listen 127.0.0.1:0",
        "salvage 80000000000000ff --config f --diff accounts --json",
        "salvage 51f1db --config f --drop --confirm 51f1db --json",
        "sim --seeds 1 --seed 7",
        "version --json",
    ] {
        parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    for (line, reason) in [
        ("demo --for 30", "time unit needed"),
        ("demo --for soon", "invalid"),
        ("demo --regions 1", "2..=6"),
        ("demo --regions 7", "2..=6"),
        ("demo --base-port 70000", "70000"),
        ("copy stop d1", "the six are a1 a2 b1 b2 c1 c2"),
        ("copy slow a1", "--delay"),
        ("copy", "--config"),
        ("copy slow a1 --delay 2h", "at most 1m"),
        ("salvage --config f --diff t", "ID"),
        ("salvage 51f1db --config f --drop", "--confirm"),
        ("salvage --config f --drop --confirm 51f1db", "ID"),
        ("salvage 51f1db --config f --drop --confirm 51f1db --listen 127.0.0.1:0", "cannot be used with"),
        ("salvage xy --config f", "names no archive and no failover"),
        ("copy replace a1", "--with"),
        ("copy replace a1 --with /x --cancel", "cannot be used with"),
        ("certs", "--config"),
        ("certs --dir d --cluster demo", "--region"),
        ("netem set a b", "KEY=VALUE"),
        ("status --watch --check", "cannot be used with"),
        ("switchover", "--to"),
        ("drill", "--to"),
        ("failover", "--to"),
        ("failover --to eu-west --max-loss 2s", "--allow-data-loss"),
        ("switchover --to EU", "cannot be a name"),
        ("set", "KEY=VALUE"),
        ("region", "--config"),
        ("invite", "--region"),
        ("invite", "--witness"),
        ("invite --region a --witness b", "cannot be used with"),
        ("invite --region a --zone c", "cannot be used with"),
        ("witness", "--config"),
        ("witness add w2", "--quic"),
        ("witness remove", "NAME"),
        ("detach eu-west", "--confirm"),
        ("force-new-lineage --survivors a", "--i-confirm-old-primary-is-stopped"),
        ("retire --lineage 00ff00ff", "--confirm"),
        ("join --token secret --config f", "--token"),
        ("region add ap-south", "--quic"),
        ("lag --watch --every 1", "time unit needed"),
    ] {
        let error = parse(line).expect_err(line).to_string();
        assert!(error.contains(reason), "{line}: {error}");
    }
}
