//! One section after the other: what a value means, what it is when it is left out, and which ones are mistakes.

use super::raw::{RawLimits, RawListen, RawLog, RawMember, RawQuic, RawVolume};
use super::{Listen, LogFormat, LogSettings, Member, Serving};
use crate::base::{CopyId, GROUPS_MAX, Layout, Limits, RegionName, SEGMENT_PAGE_BYTES};
use crate::head::embedded::GiveBack;
use crate::io::quic::QuicSettings;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

pub(super) fn listen(raw: &RawListen) -> Result<Listen, String> {
    let parse = |key: &str, text: &str| {
        text.parse::<SocketAddr>().map_err(|_| format!("listen.{key} = \"{text}\" is no address: write IP:port, as in 127.0.0.1:7400"))
    };
    let (quic, writer) = (parse("quic", &raw.quic)?, parse("writer", &raw.writer)?);
    let instance = match &raw.instance {
        Some(text) => parse("instance", text)?,
        // Base + 10 + n, in the numbering of the demo. A base of 0 means "any free port", here too.
        None if quic.port() == 0 => SocketAddr::new(writer.ip(), 0),
        None => match quic.port().checked_add(10) {
            Some(port) => SocketAddr::new(writer.ip(), port),
            None => return Err("listen.quic has a port above 65525: name listen.instance as well".to_owned()),
        },
    };
    let listen = Listen { quic, writer, reader: parse("reader", &raw.reader)?, http: parse("http", &raw.http)?, instance };
    let all =
        [("quic", listen.quic), ("writer", listen.writer), ("reader", listen.reader), ("http", listen.http), ("instance", listen.instance)];
    if raw.expose != Some(true)
        && let Some((key, addr)) = all.iter().find(|(_, addr)| !addr.ip().is_loopback())
    {
        return Err(format!(
            "listen.{key} = \"{addr}\" can be reached from other machines: write 127.0.0.1, or say `expose = true` in [listen]"
        ));
    }
    // QUIC is UDP: only the others can collide.
    let tcp = &all[1..];
    for (i, (key, addr)) in tcp.iter().enumerate() {
        if let Some((other, _)) = tcp[..i].iter().find(|(_, other)| other == addr && addr.port() != 0) {
            return Err(format!("listen.{other} and listen.{key} are both {addr}: each needs a port of its own"));
        }
    }
    Ok(listen)
}

pub(super) fn members(
    region: &RegionName,
    founder: &RegionName,
    raw: Vec<RawMember>,
    secondaries_max: usize,
) -> Result<Vec<Member>, String> {
    let mut members: Vec<Member> = Vec::new();
    for RawMember { region, quic, zone } in raw {
        if members.iter().any(|m| m.region == region) {
            return Err(format!("the member {region} is listed twice"));
        }
        reachable(&quic).map_err(|why| format!("quic = \"{quic}\" of the member {region} {why}"))?;
        members.push(Member { region, quic, zone });
    }
    let names = || members.iter().map(|m| m.region.to_string()).collect::<Vec<_>>().join(", ");
    if members.len() < 2 {
        return Err("a global cluster has at least 2 regions: add a [[member]] with `region` and `quic` for each".to_owned());
    }
    if members.len() > secondaries_max + 1 {
        let count = members.len() - 1;
        return Err(format!(
            "a global cluster has one primary and at most {secondaries_max} secondaries, and here are {count}: take members out ({})",
            names()
        ));
    }
    for (key, name) in [("region", region), ("founder", founder)] {
        if !members.iter().any(|m| m.region == *name) {
            return Err(format!("{key} = \"{name}\" is not among the members ({}): add a [[member]] or correct the name", names()));
        }
    }
    Ok(members)
}

pub(super) fn copies(raw: &BTreeMap<String, String>) -> Result<BTreeMap<CopyId, String>, String> {
    let copy = |(name, addr): (&String, &String)| {
        let id: CopyId = name.parse().map_err(|e| format!("[copies]: {e}"))?;
        reachable(addr).map_err(|why| format!("[copies] {name} = \"{addr}\" {why}"))?;
        Ok((id, addr.clone()))
    };
    raw.iter().map(copy).collect()
}

/// `host:port` that can be reached.
pub(in crate::ops) fn reachable(addr: &str) -> Result<(), &'static str> {
    let good = addr.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
    if !good {
        return Err("is no address: write host:port, as in 127.0.0.1:7400");
    }
    if addr.parse::<SocketAddr>().is_ok_and(|a| a.ip().is_unspecified()) {
        return Err("can be listened on but not reached: name its real address");
    }
    Ok(())
}

pub(super) fn layout(raw: &RawVolume) -> Result<Layout, String> {
    let mut layout = Layout::default();
    if let Some(text) = &raw.segment {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
        let found = units.into_iter().find_map(|(unit, bits)| text.strip_suffix(unit).map(|number| (number.trim_end(), bits)));
        let bytes = found.and_then(|(number, bits)| number.parse::<u64>().ok()?.checked_mul(1 << bits));
        layout.segment_pages = bytes
            .filter(|b| b.is_multiple_of(SEGMENT_PAGE_BYTES))
            .and_then(|b| u32::try_from(b / SEGMENT_PAGE_BYTES).ok())
            .filter(|pages| *pages > 0)
            .ok_or_else(|| {
                format!("volume.segment = \"{text}\": write a size of 4KiB or a multiple of it, below 16TiB, as in \"10GiB\"")
            })?;
    }
    if let Some(groups) = raw.groups {
        if !(1..=GROUPS_MAX).contains(&groups) {
            return Err(format!("volume.groups = {groups}: write 1 to {GROUPS_MAX}"));
        }
        layout.groups = groups;
    }
    Ok(layout)
}

/// `[volume]` over the rest.
pub(super) fn volume(raw: &RawVolume, limits: Limits) -> Result<Limits, String> {
    let checked = |key: &str, value: u64, min: u64, max: u64| {
        within(key, value, min, max).map_err(|sentence| sentence.replacen("limits.", "volume.", 1))
    };
    let scrub_mb_per_s = checked("scrub_mb_per_s", raw.scrub_mb_per_s.unwrap_or(limits.scrub_bytes_per_s >> 20), 0, 1 << 20)?;
    let every_s = checked("scrub_every_s", raw.scrub_every_s.unwrap_or(limits.scrub_every.as_secs()), 1, 365 * 86_400)?;
    Ok(Limits { scrub_bytes_per_s: scrub_mb_per_s << 20, scrub_every: Duration::from_secs(every_s), ..limits })
}

/// The other part of `[volume]`.
pub(super) fn give_back(raw: &RawVolume) -> Result<GiveBack, String> {
    let d = GiveBack::default();
    let of_volume = |sentence: String| sentence.replacen("limits.", "volume.", 1);
    let mb_per_s = within("give_back_mb_per_s", raw.give_back_mb_per_s.unwrap_or(d.bytes_per_s >> 20), 0, 1 << 20).map_err(of_volume)?;
    let keep_percent = within("keep_free_percent", raw.keep_free_percent.unwrap_or(d.keep_percent), 0, 90).map_err(of_volume)?;
    Ok(GiveBack { bytes_per_s: mb_per_s << 20, keep_percent, ..d })
}

pub(super) fn limits(raw: &RawLimits) -> Result<Limits, String> {
    let d = Limits::default();
    Ok(Limits {
        secondaries_max: within("secondaries_max", raw.secondaries_max.unwrap_or(d.secondaries_max), 1, 15)?,
        log_retain_bytes: within("log_retain_bytes", raw.log_retain_bytes.unwrap_or(d.log_retain_bytes), 1 << 20, 1 << 44)?,
        // Log goes by whole files: they are small against their budget.
        log_file_bytes: d.log_file_bytes.min(raw.log_retain_bytes.unwrap_or(d.log_retain_bytes) / 4),
        log_retain: seconds("log_retain_s", raw.log_retain_s, d.log_retain)?,
        version_retain: seconds("version_retain_s", raw.version_retain_s, d.version_retain)?,
        version_retain_bytes: within("version_retain_bytes", raw.version_retain_bytes.unwrap_or(d.version_retain_bytes), 1 << 20, 1 << 44)?,
        seed_held: seconds("seed_held_s", raw.seed_held_s, d.seed_held)?,
        seed_bytes_per_s_max: within("seed_bytes_per_s_max", raw.seed_bytes_per_s_max.unwrap_or(d.seed_bytes_per_s_max), 1 << 16, 1 << 40)?,
        memtable_bytes_max: within("memtable_bytes_max", raw.memtable_bytes_max.unwrap_or(d.memtable_bytes_max), 1 << 16, 1 << 32)?,
        ..d
    })
}

pub(super) fn serving(raw: &RawLimits) -> Result<Serving, String> {
    Ok(Serving {
        readers: within("readers", raw.readers.unwrap_or(4), 1, 256)?,
        pool_bytes_max: within("pool_bytes_max", raw.pool_bytes_max.unwrap_or(32 << 20), 1 << 20, 1 << 40)?,
        connections_max: within("connections_max", raw.connections_max.unwrap_or(200), 1, 100_000)?,
        idle_in_transaction: Duration::from_millis(within(
            "idle_in_transaction_ms",
            raw.idle_in_transaction_ms.unwrap_or(5_000),
            10,
            3_600_000,
        )?),
        commit_wait: Duration::from_millis(within("commit_wait_ms", raw.commit_wait_ms.unwrap_or(10_000), 10, 3_600_000)?),
        writer_wait: Duration::from_millis(within("writer_wait_ms", raw.writer_wait_ms.unwrap_or(10_000), 10, 3_600_000)?),
    })
}

pub(super) fn quic(raw: &RawQuic) -> Result<QuicSettings, String> {
    let d = QuicSettings::default();
    let udp_buffer_bytes = raw.udp_buffer_bytes.unwrap_or(d.udp_buffer_bytes);
    if !(64 << 10..=1 << 30).contains(&udp_buffer_bytes) {
        return Err(format!("quic.udp_buffer_bytes = {udp_buffer_bytes}: it must lie between 65536 and 1073741824"));
    }
    Ok(QuicSettings { congestion: raw.congestion.unwrap_or(d.congestion), udp_buffer_bytes })
}

/// `[log]`, and what the environment says of it.
pub(in crate::ops) fn complete_log(raw: Option<RawLog>, env: &dyn Fn(&str) -> Option<String>) -> Result<LogSettings, String> {
    let log = raw.unwrap_or_default();
    let format = match env("PARHELION_LOG_FORMAT").as_deref() {
        None => log.format.unwrap_or_default(),
        Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => return Err(format!("PARHELION_LOG_FORMAT is '{other}' in the environment: text or json")),
    };
    Ok(LogSettings { level: env("PARHELION_LOG").or(log.level).unwrap_or_else(|| "info".to_owned()), format })
}

/// Up to a month.
fn seconds(key: &str, given: Option<u64>, default: Duration) -> Result<Duration, String> {
    Ok(Duration::from_secs(within(key, given.unwrap_or(default.as_secs()), 1, 31 * 24 * 3600)?))
}

fn within<T: PartialOrd + std::fmt::Display>(key: &str, value: T, min: T, max: T) -> Result<T, String> {
    if value < min || value > max { Err(format!("limits.{key} = {value}: it must lie between {min} and {max}")) } else { Ok(value) }
}
