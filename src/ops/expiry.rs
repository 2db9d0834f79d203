//! The end of a process's own certificate, looked at when it starts and as long as it runs.
//!
//! Decides nothing but how often, and says it in the log; a region and a witness also show it in `status` and as a metric. What is renewed on
//! the disk is taken up at the next start: until then the certificate that runs is the one that counts.

use crate::base::UnixMicros;
use crate::io::clock;
use crate::io::tls::Material;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

const EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// As long as it is held.
pub struct Watch(tokio::task::JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Of a process whose file is `config`.
#[must_use]
pub fn watch(material: &Arc<Material>, config: &Path) -> Watch {
    let (material, config) = (Arc::clone(material), config.to_path_buf());
    let look = move |now| material.expiry_warning(now, &config);
    Watch(tokio::spawn(look_on(EVERY, clock::unix_now, look, |warning| tracing::warn!("{warning}"))))
}

/// At once, and then every `every`.
async fn look_on(every: Duration, now: impl Fn() -> UnixMicros, look: impl Fn(UnixMicros) -> Option<String>, say: impl Fn(String)) {
    let mut due = tokio::time::interval(every);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        if let Some(warning) = look(now()) {
            say(warning);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ClusterName, RegionName};
    use crate::ops::certs::{CertOptions, create};
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn a_certificate_is_looked_at_every_day_and_its_end_is_said_more_and_more_loudly() {
        const DAY: u64 = 24 * 60 * 60 * 1_000_000;
        let dir = tempfile::tempdir().unwrap();
        let (cluster, region) = (ClusterName::new("demo").unwrap(), RegionName::new("us-east").unwrap());
        let made = UnixMicros(1_795_171_265_000_000);
        create(dir.path(), &cluster, std::slice::from_ref(&region), &CertOptions { days: 33, ..CertOptions::new(made) }).unwrap();
        let config = Path::new("us-east.toml");
        let material = Arc::new(Material::load(dir.path(), &cluster, &region, config, made).unwrap());
        // Each look is a day after the one before.
        let looks = AtomicU64::new(0);
        let now = move || UnixMicros(made.0 + looks.fetch_add(1, Ordering::Relaxed) * DAY);
        let (tx, mut said) = mpsc::unbounded_channel();
        let look = move |now| material.expiry_warning(now, config).map(|warning| (now, warning));
        let task = tokio::spawn(look_on(
            Duration::from_millis(1),
            now,
            move |now| look(now).map(|(now, warning)| format!("{} {warning}", (now.0 - made.0) / DAY)),
            move |warning| drop(tx.send(warning)),
        ));
        let mut days = Vec::new();
        while let Some(warning) = said.recv().await {
            let (day, warning) = warning.split_once(' ').unwrap();
            days.push((day.parse::<u64>().unwrap(), warning.to_owned()));
            if day == "32" {
                break;
            }
        }
        task.abort();
        assert!(days[0].0 > 0 && days.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "nothing at first, then every day: {days:?}");
        assert!(days[0].1.starts_with("the certificate of us-east ends in 30 days"), "{days:?}");
        let tone = |tone: &str| days.iter().filter(|(_, w)| w.starts_with(tone)).count();
        assert!(tone("attention: ") == 7 && tone("soon: ") == 6 && tone("URGENT: ") >= 1, "{days:?}");
    }
}
