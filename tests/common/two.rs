//! Two regions and a witness, each a process of its own on ports of its own, with a lease of 3 s: started, killed and watched one by one.
//!
//! Each of them looks for a kill point of its own ([`Two::arm`]).

use super::{ByHand, Ports, Ready, Region, json_of, parhelion, runs, until};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// Two regions and a witness in a directory, on ports of their own, with a short lease.
pub struct Two {
    dir: tempfile::TempDir,
    pub ready: Ready,
    pub witness_file: PathBuf,
    witness: Option<Child>,
    regions: Vec<Option<ByHand>>,
    ports: Ports,
}

pub const NAMES: [&str; 2] = ["us-east", "eu-west"];
pub const WITNESS: &str = "witness";

impl Two {
    pub fn start() -> Two {
        Two::start_with("")
    }

    /// With more lines in everybody's `[control]`.
    pub fn start_with(more: &str) -> Two {
        Two::start_with_regions(more, "")
    }

    /// And with `of_regions` in the regions' files, behind it.
    pub fn start_with_regions(more: &str, of_regions: &str) -> Two {
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports::reserve(3);
        let at = |region: u16, n: u16| format!("127.0.0.1:{}", ports.base + 100 * region + n);
        let members = format!(
            "[[member]]\nregion = \"us-east\"\nquic = \"{}\"\n[[member]]\nregion = \"eu-west\"\nquic = \"{}\"\n",
            at(0, 0),
            at(1, 0)
        );
        let control = format!("[tls]\ndir = \"certs\"\n[control]\nlease = \"3s\"\n{more}\n");
        let mut regions = Vec::new();
        for (i, name) in (0u16..).zip(NAMES) {
            let config = dir.path().join(format!("{name}.toml"));
            let text = format!(
                "cluster = \"two\"\nregion = \"{name}\"\nfounder = \"us-east\"\ndata_dir = \"{name}\"\n[listen]\nquic = \"{}\"\nwriter = \"{}\"\n\
                 reader = \"{}\"\nhttp = \"{}\"\ninstance = \"{}\"\n{control}{of_regions}[sql]\nuser = \"app\"\ndatabase = \"app\"\n\
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
        let mut two = Two { dir, ready, witness_file: file, witness: None, regions: vec![None, None], ports };
        two.start_witness();
        for i in 0..2 {
            two.start_region(i);
        }
        two
    }

    /// As [`Two::start_with`]; there is a table `t (id integer primary key)` in both regions, and all three hear each other.
    pub fn start_with_table(more: &str) -> Two {
        let two = Two::start_with(more);
        let (us, eu) = (&two.ready.regions[0], &two.ready.regions[1]);
        until("it writes", || two.ready.sql(&us.writer, "create table t (id integer primary key)").map(drop));
        until("it is there", || two.ready.sql(&eu.reader, "select count(*) from t").map(drop));
        two.until_all_vote();
        two
    }

    pub fn start_region(&mut self, i: usize) {
        let (log, point) = (self.log(NAMES[i]), self.point(NAMES[i]));
        self.regions[i] = Some(ByHand::start_with(&self.ready.regions[i].config, &log, &[("PARHELION_KILL_POINT", &point)]));
    }

    pub fn start_witness(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.log(WITNESS)).unwrap();
        let mut command = parhelion();
        command.args(["witness", "--config"]).arg(&self.witness_file).env("PARHELION_KILL_POINT", self.point(WITNESS));
        self.witness = Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("the program runs"));
    }

    /// Starts it again; it must be dead.
    pub fn restart(&mut self, name: &str) {
        match NAMES.iter().position(|n| *n == name) {
            Some(i) => {
                self.regions[i] = None;
                self.start_region(i);
            }
            None => {
                let _ = self.witness.take().expect("it was started").wait();
                self.start_witness();
            }
        }
    }

    pub fn pid(&self, name: &str) -> u32 {
        match NAMES.iter().position(|n| *n == name) {
            Some(i) => self.regions[i].as_ref().expect("it was started").child.id(),
            None => self.witness.as_ref().expect("it was started").id(),
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill_region(&mut self, i: usize) {
        self.regions[i].take().expect("it runs").kill();
    }

    /// Ends a region's process as Ctrl-C does.
    pub fn stop_region(&mut self, i: usize) {
        self.regions[i].take().expect("it runs").stop();
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill_witness(&mut self) {
        let mut witness = self.witness.take().expect("it runs");
        witness.kill().expect("it runs");
        witness.wait().expect("it ends");
    }

    /// In place of the witness before, whose process ends: another one, by another name and with nothing promised, at the same port. Whether it is
    /// a member is for commands to say.
    pub fn next_witness(&mut self, name: &str) {
        self.kill_witness();
        let certs = self.dir.path().join("certs");
        let mut command = parhelion();
        command.args(["certs", "--json", "--cluster", "two", "--region", NAMES[0], "--region", NAMES[1], "--witness", name, "--dir"]);
        json_of(command.arg(certs)).unwrap();
        let text = std::fs::read_to_string(self.dir.path().join("witness.toml")).unwrap();
        let text = text.replace("name = \"witness\"", &format!("name = \"{name}\""));
        let text = text.replace("data_dir = \"witness\"", &format!("data_dir = \"{name}\""));
        self.witness_file = self.dir.path().join(format!("{name}.toml"));
        std::fs::write(&self.witness_file, text).unwrap();
        self.start_witness();
    }

    /// Where the witness listens.
    pub fn witness_quic(&self) -> String {
        format!("127.0.0.1:{}", self.ports.base + 200)
    }

    /// Where one more member may listen; its HTTP port is three above.
    pub fn spare_port(&self) -> u16 {
        self.ports.base + 300
    }

    /// Waits until both regions and the witness are in each other's sight.
    pub fn until_all_vote(&self) -> Value {
        until("all three vote", || {
            let status = self.status(1)?;
            let voters = status["voters"].as_array().cloned().unwrap_or_default();
            let all = voters.len() == 3 && voters.iter().all(|v| v["answered"] == true && v["heard_by_primary"] == true);
            super::ensure(all, &status).map(|()| status)
        })
    }

    /// The process kills itself when it comes to that point.
    pub fn arm(&self, name: &str, point: &str) {
        super::arm(&self.point(name), point);
    }

    /// Whether it came to its point.
    pub fn at_its_point(&self, name: &str) -> bool {
        !self.point(name).exists()
    }

    /// It came to its point: waits until it is dead.
    pub fn until_dead(&self, name: &str) {
        let pid = self.pid(name);
        until("a process that kills itself ends", || super::ensure(!runs(pid), "it runs"));
    }

    fn point(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.kill"))
    }

    /// Where everything of theirs is.
    pub fn root(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    pub fn status(&self, asked: usize) -> Result<Value, String> {
        json_of(parhelion().args(["status", "--json", "--config"]).arg(&self.ready.regions[asked].config))
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["us-east", "eu-west", WITNESS] {
                let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
                let lines: Vec<&str> =
                    log.lines().filter(|l| !["INFO link ", "INFO login refused"].iter().any(|w| l.contains(w))).collect();
                eprintln!("--- {name}\n{}", lines[lines.len().saturating_sub(120)..].join("\n"));
            }
        }
        if let Some(mut witness) = self.witness.take() {
            let _ = witness.kill();
            let _ = witness.wait();
        }
    }
}
