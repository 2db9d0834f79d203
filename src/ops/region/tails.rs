//! Lost tails, opened as databases while the region runs: which tables and keys a failover's lost commits changed.
//!
//! Decides up to which size that is done by itself. What is read is what `parhelion salvage` reads, from this region's own files; nothing is
//! changed, and nobody waits for it.

use crate::base::TimelineId;
use crate::control::Touched;
use crate::io::driver::{self, Inbox};
use crate::node::Event;
use crate::ops::config::Config;
use crate::ops::salvage;

/// Both states are written out to be compared, so this is not done by itself for a database that is larger.
const DATABASE_BYTES_MAX: u64 = 1 << 30;

/// See the module.
pub struct Tails {
    config: Config,
    inbox: Inbox,
    runtime: tokio::runtime::Handle,
}

impl Tails {
    pub fn new(config: &Config, inbox: Inbox) -> Tails {
        Tails { config: config.clone(), inbox, runtime: tokio::runtime::Handle::current() }
    }
}

impl driver::Tails for Tails {
    fn read(&self, archive: TimelineId) {
        let (config, inbox) = (self.config.clone(), self.inbox.clone());
        self.runtime.spawn(async move {
            let read = tokio::task::spawn_blocking(move || touched(&config, archive)).await;
            let touched = read.unwrap_or_else(|e| Err(format!("it could not be read: {e}")));
            inbox.send(Event::Touched { archive, touched });
        });
    }
}

fn touched(config: &Config, archive: TimelineId) -> Result<Touched, String> {
    let tables = salvage::touched(config, archive, Touched::KEYS_WANTED, DATABASE_BYTES_MAX).map_err(|f| f.message)?;
    let mut touched = Touched::default();
    for table in &tables {
        let rows = table.inserted + table.updated + table.deleted;
        touched.add(&table.table, rows, table.rows.iter().map(|row| row.key.as_slice()));
    }
    Ok(touched)
}
