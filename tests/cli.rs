//! The binary as scripts see it: exit codes, and that errors say what to do next.

use std::process::{Command, Output};

fn parhelion(dir: &std::path::Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parhelion"));
    command.args(args).current_dir(dir).env_remove("PARHELION_CONFIG");
    command.output().expect("the binary runs")
}

#[test]
fn exit_codes_and_hints() {
    let dir = tempfile::tempdir().unwrap();
    for (args, code, parts) in [
        (&["version"][..], 0, &[][..]),
        (&["demo", "--for", "30"], 2, &["time unit needed"]),
        (&["nonsense"], 2, &["unrecognized subcommand"]),
        (&["status"], 2, &["error: which region?", "hint: ", "parhelion demo"]),
        (&["status", "--config", "missing.toml"], 1, &["error: missing.toml cannot be read"]),
        (&["region", "--config", "missing.toml"], 1, &["error: missing.toml cannot be read"]),
        (&["netem", "show"], 3, &["no emulator is running", "start the demo"]),
        (&["demo", "--profile", "moon"], 2, &["moon", "world"]),
        (&["demo", "--dir", "d", "--base-port", "65530"], 2, &["no room for all regions", "hint: "]),
    ] {
        let output = parhelion(dir.path(), args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{args:?}: no '{part}' in {stderr}");
        }
    }
}

#[test]
fn version_and_certs_speak_json() {
    let dir = tempfile::tempdir().unwrap();
    let json = |output: &Output| serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON on stdout");
    let version = json(&parhelion(dir.path(), &["version", "--json"]));
    assert_eq!((&version["name"], &version["version"]), (&"parhelion".into(), &env!("CARGO_PKG_VERSION").into()));
    let args = ["certs", "--dir", "certs", "--cluster", "demo", "--region", "us-east", "--region", "eu-west", "--json"];
    let made = json(&parhelion(dir.path(), &args));
    assert!(made["created"].as_array().is_some_and(|files| files.len() >= 6), "{made}");
    let again = json(&parhelion(dir.path(), &args));
    assert!(again["created"].as_array().is_some_and(Vec::is_empty), "what is fit is kept: {again}");
}
