//! Where everything of a demo lies: directories, ports, configurations, the ready file.
//!
//! Decides names and numbers only. Region *i* uses base + 100*i* + (0 QUIC, 1 writer, 2 reader, 3 HTTP, 10 + *n* instance
//! *n*, 50 + *j* the emulated link to region *j*). What must stay the same from run to run on one directory (the regions, the
//! profile) is written down there; everything else is made anew at each start, so the ports may change.

use crate::base::{ClusterName, RegionName};
use crate::io::sealing::Key;
use crate::node::report::Role;
use crate::ops::config::{self, RawConfig, RawEncryption, RawListen, RawMember, RawNetem, RawSql, RawTls};
use crate::ops::failure::{FAILED, Failure, USAGE, io_failure};
use crate::ops::netem::{CONTROL_SOCKET, Profile};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

const CLUSTER: &str = "demo";
const USER: &str = "parhelion";
const REGIONS: usize = 3;
const PROFILE: &str = "world";
const SAVED: &str = "demo.json";

/// The whole demo on paper.
pub struct Plan {
    /// Absolute.
    pub dir: PathBuf,
    pub cluster: ClusterName,
    pub profile: Profile,
    pub regions: Vec<Site>,
    /// Held as long as the demo runs.
    _lock: File,
}

/// One region on paper.
#[derive(Clone, Debug)]
pub struct Site {
    pub name: RegionName,
    pub quic: SocketAddr,
    pub writer: SocketAddr,
    pub reader: SocketAddr,
    pub http: SocketAddr,
    pub instance: SocketAddr,
    pub config: PathBuf,
    pub data_dir: PathBuf,
    pub log: PathBuf,
    links_from: u16,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Saved {
    cluster: ClusterName,
    profile: String,
    regions: Vec<RegionName>,
}

/// The ready file, exactly.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Ready {
    pub cluster: ClusterName,
    pub user: String,
    pub password: String,
    pub database: String,
    pub regions: Vec<ReadyRegion>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct ReadyRegion {
    pub name: RegionName,
    pub role: Role,
    pub writer: SocketAddr,
    pub reader: SocketAddr,
    pub http: SocketAddr,
    pub quic: SocketAddr,
    pub pid: u32,
    pub data_dir: PathBuf,
    pub config: PathBuf,
}

impl Plan {
    /// Takes the directory (creating it), and continues what is there.
    ///
    /// # Errors
    /// When another demo has it, or it belongs to a demo with other regions.
    pub fn open(dir: &Path, regions: Option<usize>, profile: Option<&str>, base_port: u16) -> Result<Plan, Failure> {
        let show = dir.display();
        for sub in ["", "regions", "logs", "data"] {
            std::fs::create_dir_all(dir.join(sub)).map_err(io_failure(format!("create {}", dir.join(sub).display())))?;
        }
        let dir = dir.canonicalize().map_err(io_failure(format!("find {show}")))?;
        let lock = lock(&dir)?;
        let saved = saved(&dir)?;
        let profile_name = profile.map_or_else(|| saved.as_ref().map_or(PROFILE, |s| &s.profile).to_owned(), str::to_owned);
        let profile = Profile::load(&profile_name)?;
        let names = profile.regions(regions.unwrap_or_else(|| saved.as_ref().map_or(REGIONS, |s| s.regions.len())))?;
        if let Some(saved) = &saved {
            let common = saved.regions.len().min(names.len());
            if saved.regions[..common] != names[..common] || saved.regions.len() > names.len() {
                let list = |regions: &[RegionName]| regions.iter().map(RegionName::as_str).collect::<Vec<_>>().join(", ");
                let (old, new) = (list(&saved.regions), list(&names));
                return Err(Failure::new(USAGE, format!("{show} holds a global cluster of the regions {old}, and you asked for {new}"))
                    .hint("leave out --regions and --profile to continue it, or give another --dir"));
            }
        }
        let now =
            Saved { cluster: ClusterName::new(CLUSTER).expect("BUG: the demo's name"), profile: profile_name, regions: names.clone() };
        write_whole(&dir.join(SAVED), &serde_json::to_string(&now).expect("BUG: plain data becomes JSON"), 0o644)?;
        let regions = names.into_iter().enumerate().map(|(i, name)| site(&dir, i, name, base_port)).collect::<Result<_, _>>()?;
        Ok(Plan { dir, cluster: now.cluster, profile, regions, _lock: lock })
    }

    #[must_use]
    pub fn names(&self) -> Vec<RegionName> {
        self.regions.iter().map(|r| r.name.clone()).collect()
    }

    #[must_use]
    pub fn site(&self, name: &RegionName) -> &Site {
        self.regions.iter().find(|r| r.name == *name).expect("BUG: a region of the demo is in its plan")
    }

    #[must_use]
    pub fn certs_dir(&self) -> PathBuf {
        self.dir.join("certs")
    }

    fn key_file(&self, site: &Site) -> PathBuf {
        self.dir.join("keys").join(format!("{}.key", site.name))
    }

    /// Makes a key for each region that has none: their copies are sealed from the first start on.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn make_keys(&self) -> Result<(), Failure> {
        std::fs::create_dir_all(self.dir.join("keys")).map_err(io_failure("make the directory for keys"))?;
        for file in self.regions.iter().map(|site| self.key_file(site)).filter(|file| !file.exists()) {
            Key::make(&file).map_err(|e| Failure::new(FAILED, e))?;
        }
        Ok(())
    }

    #[must_use]
    pub fn netem_socket(&self) -> PathBuf {
        self.dir.join(CONTROL_SOCKET)
    }

    /// The ports that the emulated links should have, so that a region started by hand finds them again.
    #[must_use]
    pub fn link_ports(&self) -> BTreeMap<(RegionName, RegionName), u16> {
        let mut ports = BTreeMap::new();
        for from in &self.regions {
            for (to, port) in self.regions.iter().zip(from.links_from..) {
                ports.insert((from.name.clone(), to.name.clone()), port);
            }
        }
        ports
    }

    /// Writes each region's file. `link` tells where a region reaches another.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_configs(&self, link: impl Fn(&RegionName, &RegionName) -> SocketAddr) -> Result<(), Failure> {
        for site in &self.regions {
            let member = |other: &Site| RawMember {
                region: other.name.clone(),
                quic: if other.name == site.name { site.quic } else { link(&site.name, &other.name) }.to_string(),
                zone: None,
            };
            let raw = RawConfig {
                copies: BTreeMap::new(),
                cluster: self.cluster.clone(),
                region: site.name.clone(),
                data_dir: Path::new("../data").join(site.name.as_str()),
                founder: self.regions[0].name.clone(),
                listen: RawListen {
                    quic: site.quic.to_string(),
                    writer: site.writer.to_string(),
                    reader: site.reader.to_string(),
                    http: site.http.to_string(),
                    instance: Some(site.instance.to_string()),
                    expose: None,
                },
                tls: RawTls { dir: "../certs".into() },
                encryption: self.key_file(site).exists().then(|| RawEncryption { key_file: self.key_file(site) }),
                sql: RawSql { user: USER.to_owned(), database: USER.to_owned(), password_file: None },
                netem: Some(RawNetem { control: Path::new("..").join(CONTROL_SOCKET) }),
                log: None,
                quic: None,
                limits: None,
                volume: None,
                control: None,
                witness: None,
                member: self.regions.iter().map(member).collect(),
            };
            write_whole(&site.config, &config::render(&raw), 0o644)?;
        }
        Ok(())
    }

    /// The first port that somebody else has, as a sentence.
    ///
    /// # Errors
    /// That sentence.
    pub fn check_ports(&self) -> Result<(), Failure> {
        for site in &self.regions {
            let tcp = [("writer", site.writer), ("reader", site.reader), ("HTTP", site.http), ("instance", site.instance)];
            for (what, addr) in tcp {
                TcpListener::bind(addr).map(drop).map_err(|e| port_failure(what, site, addr, &e))?;
            }
            UdpSocket::bind(site.quic).map(drop).map_err(|e| port_failure("QUIC", site, site.quic, &e))?;
        }
        Ok(())
    }

    /// What goes into the ready file.
    #[must_use]
    pub fn ready(&self, password: &str, role: impl Fn(&RegionName) -> Role, pid: impl Fn(&RegionName) -> u32) -> Ready {
        let region = |r: &Site| ReadyRegion {
            name: r.name.clone(),
            role: role(&r.name),
            writer: r.writer,
            reader: r.reader,
            http: r.http,
            quic: r.quic,
            pid: pid(&r.name),
            data_dir: r.data_dir.clone(),
            config: r.config.clone(),
        };
        Ready {
            cluster: self.cluster.clone(),
            user: USER.to_owned(),
            password: password.to_owned(),
            database: USER.to_owned(),
            regions: self.regions.iter().map(region).collect(),
        }
    }
}

fn port_failure(what: &str, site: &Site, addr: SocketAddr, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::AddrInUse {
        let message = format!("port {} ({what} of {}) is in use by another process", addr.port(), site.name);
        Failure::new(FAILED, message).hint("choose other ports with --base-port, or end what uses it (a region that you started by hand?)")
    } else {
        Failure::new(FAILED, format!("cannot listen on {addr} ({what} of {}): {error}", site.name))
            .hint("choose other ports with --base-port")
    }
}

fn site(dir: &Path, i: usize, name: RegionName, base_port: u16) -> Result<Site, Failure> {
    let wrong =
        || Failure::new(USAGE, format!("--base-port {base_port} leaves no room for all regions")).hint("use one between 1024 and 64000");
    let first =
        u16::try_from(i * 100).ok().and_then(|n| base_port.checked_add(n)).filter(|p| *p >= 1 && *p <= u16::MAX - 100).ok_or_else(wrong)?;
    let at = |n: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, first + n));
    Ok(Site {
        quic: at(0),
        writer: at(1),
        reader: at(2),
        http: at(3),
        instance: at(10),
        links_from: first + 50,
        config: dir.join("regions").join(format!("{name}.toml")),
        data_dir: dir.join("data").join(name.as_str()),
        log: dir.join("logs").join(format!("{name}.log")),
        name,
    })
}

fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("demo.lock");
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).open(&path).map_err(io_failure(format!("open {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Failure::new(FAILED, format!("another demo is running on {}", dir.display()))
            .hint("end it, or give this one another --dir and --base-port")),
        Err(std::fs::TryLockError::Error(e)) => Err(io_failure(format!("lock {}", path.display()))(e)),
    }
}

fn saved(dir: &Path) -> Result<Option<Saved>, Failure> {
    let path = dir.join(SAVED);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_failure(format!("read {}", path.display())))?,
    };
    serde_json::from_str(&text).map(Some).map_err(|e| {
        Failure::new(FAILED, format!("{} is damaged: {e}", path.display())).hint("give another --dir; the data in this one stays as it is")
    })
}

/// In one step: a reader sees the old file or the new one, never half of it.
///
/// # Errors
/// When it cannot be written.
pub fn write_whole(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let write = || -> std::io::Result<()> {
        match std::fs::remove_file(&beside) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        drop(file);
        std::fs::rename(&beside, path)
    };
    write().map_err(io_failure(format!("write {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::config::Config;

    #[test]
    fn ports_configs_and_the_ready_file_are_as_documented() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::open(dir.path(), None, None, 7400).unwrap();
        let names = plan.names();
        assert_eq!(names.len(), 3);
        let second = &plan.regions[1];
        let ports = [second.quic, second.writer, second.reader, second.http, second.instance].map(|a| a.port());
        assert_eq!(ports, [7500, 7501, 7502, 7503, 7510]);
        let links = plan.link_ports();
        assert_eq!(links[&(names[1].clone(), names[2].clone())], 7552);
        plan.write_configs(|from, to| SocketAddr::from((Ipv4Addr::LOCALHOST, links[&(from.clone(), to.clone())]))).unwrap();
        let config = Config::load_with(&second.config, &|_| None).unwrap();
        assert_eq!((config.listen.http, config.admin_addr()), (second.http, "127.0.0.1:7500"));
        assert_eq!(config.member(&names[2]).unwrap().quic, "127.0.0.1:7552");
        assert_eq!(config.data_dir.canonicalize().ok(), second.data_dir.canonicalize().ok());

        let role = |n: &RegionName| if *n == names[0] { Role::Primary } else { Role::Secondary };
        let json = serde_json::to_value(plan.ready("secret", role, |_| 42)).unwrap();
        let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&json), ["cluster", "database", "password", "regions", "user"]);
        assert_eq!(keys(&json["regions"][0]), ["config", "data_dir", "http", "name", "pid", "quic", "reader", "role", "writer"]);
        assert_eq!((&json["regions"][1]["writer"], &json["regions"][0]["role"]), (&"127.0.0.1:7501".into(), &"primary".into()));
    }

    #[test]
    fn a_directory_belongs_to_one_demo_at_a_time_and_to_its_regions() {
        let dir = tempfile::tempdir().unwrap();
        let first = Plan::open(dir.path(), Some(2), Some("us"), 7400).unwrap();
        let names = first.names();
        let second = Plan::open(dir.path(), None, None, 8400).map(|_| ()).unwrap_err();
        assert!(second.message.contains("another demo is running"), "{second:?}");
        drop(first);
        assert_eq!(Plan::open(dir.path(), None, None, 8400).unwrap().names(), names, "continued without asking again");
        let other = Plan::open(dir.path(), None, Some("europe"), 7400).map(|_| ()).unwrap_err();
        assert!(other.code == USAGE && other.message.contains("holds a global cluster of the regions"), "{other:?}");
        assert_eq!(Plan::open(dir.path(), Some(3), None, 7400).unwrap().names().len(), 3, "a new region may join");
        assert!(Plan::open(dir.path(), Some(2), None, 7400).is_err(), "and may not silently be left out");
    }

    #[test]
    fn a_taken_port_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = Plan::open(dir.path(), Some(2), None, 7400).unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        for site in &mut plan.regions {
            for addr in [&mut site.quic, &mut site.writer, &mut site.reader, &mut site.http, &mut site.instance] {
                addr.set_port(0);
            }
        }
        plan.check_ports().unwrap();
        plan.regions[1].http = taken.local_addr().unwrap();
        let failure = plan.check_ports().unwrap_err();
        let port = taken.local_addr().unwrap().port();
        assert!(failure.message.contains(&format!("port {port} (HTTP of {})", plan.regions[1].name)), "{failure:?}");
        assert!(failure.hint.unwrap().contains("--base-port"));
        assert!(site(dir.path(), 5, plan.regions[0].name.clone(), 65_000).is_err());
    }
}
