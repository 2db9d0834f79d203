//! Two regions and a witness, each a process of its own: the smallest cluster that can tell who is cut off.

use super::{ByHand, Ports, Ready, Region, ensure, json_of, parhelion, until};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// Two regions and a witness in a directory, on ports of their own, with a short lease.
pub struct Two {
    pub dir: tempfile::TempDir,
    pub ready: Ready,
    pub witness: Child,
    pub witness_file: PathBuf,
    pub regions: Vec<Option<ByHand>>,
    _ports: Ports,
}

pub const NAMES: [&str; 2] = ["us-east", "eu-west"];

impl Two {
    pub fn start() -> Two {
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports::reserve(3);
        let at = |region: u16, n: u16| format!("127.0.0.1:{}", ports.base + 100 * region + n);
        let members = format!(
            "[[member]]\nregion = \"us-east\"\nquic = \"{}\"\n[[member]]\nregion = \"eu-west\"\nquic = \"{}\"\n",
            at(0, 0),
            at(1, 0)
        );
        let control = "[tls]\ndir = \"certs\"\n[control]\nlease = \"3s\"\n";
        let mut regions = Vec::new();
        for (i, name) in (0u16..).zip(NAMES) {
            let config = dir.path().join(format!("{name}.toml"));
            let text = format!(
                "cluster = \"two\"\nregion = \"{name}\"\nfounder = \"us-east\"\ndata_dir = \"{name}\"\n[listen]\nquic = \"{}\"\nwriter = \"{}\"\n\
                 reader = \"{}\"\nhttp = \"{}\"\ninstance = \"{}\"\n{control}[sql]\nuser = \"app\"\ndatabase = \"app\"\n\
                 [witness]\nquic = \"{}\"\n{members}",
                at(i, 0),
                at(i, 1),
                at(i, 2),
                at(i, 3),
                at(i, 10),
                at(2, 0)
            );
            std::fs::write(&config, text).unwrap();
            regions.push(Region {
                name: name.into(),
                role: String::new(),
                writer: at(i, 1),
                reader: at(i, 2),
                http: at(i, 3),
                quic: at(i, 0),
                pid: 0,
                data_dir: dir.path().join(name),
                config,
            });
        }
        let file = dir.path().join("witness.toml");
        let text = format!(
            "cluster = \"two\"\nname = \"witness\"\ndata_dir = \"witness\"\n[listen]\nquic = \"{}\"\nhttp = \"{}\"\n{control}{members}",
            at(2, 0),
            at(2, 3)
        );
        std::fs::write(&file, text).unwrap();
        json_of(parhelion().args(["certs", "--json", "--config"]).arg(&regions[0].config)).unwrap();
        let password = std::fs::read_to_string(dir.path().join("certs/sql-password")).unwrap().trim().to_owned();
        let ready = Ready { cluster: "two".into(), user: "app".into(), password, database: "app".into(), regions };
        let log = std::fs::File::create(dir.path().join("witness.log")).unwrap();
        let witness =
            parhelion().args(["witness", "--config"]).arg(&file).stdout(Stdio::null()).stderr(log).spawn().expect("the program runs");
        let mut two = Two { dir, ready, witness, witness_file: file, regions: vec![None, None], _ports: ports };
        for i in 0..2 {
            two.start_region(i);
        }
        two
    }

    pub fn start_region(&mut self, i: usize) {
        let log = self.log(NAMES[i]);
        self.regions[i] = Some(ByHand::start(&self.ready.regions[i].config, &log));
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// `kill -9` of a region's process.
    pub fn kill_region(&mut self, i: usize) {
        self.regions[i].take().expect("it runs").kill();
    }

    /// Ends a region's process as Ctrl-C does.
    pub fn stop_region(&mut self, i: usize) {
        self.regions[i].take().expect("it runs").stop();
    }

    /// Waits until both regions and the witness are in each other's sight.
    pub fn until_all_vote(&self) -> Value {
        until("all three vote", || {
            let status = self.status(1)?;
            let voters = status["voters"].as_array().cloned().unwrap_or_default();
            let all = voters.len() == 3 && voters.iter().all(|v| v["answered"] == true && v["heard_by_primary"] == true);
            ensure(all, &status).map(|()| status)
        })
    }

    pub fn status(&self, asked: usize) -> Result<Value, String> {
        json_of(parhelion().args(["status", "--json", "--config"]).arg(&self.ready.regions[asked].config))
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["us-east", "eu-west", "witness"] {
                eprintln!("--- {name}\n{}", super::tail(&self.log(name)));
            }
        }
        let _ = self.witness.kill();
        let _ = self.witness.wait();
    }
}
