//! What a copy is made of, in one file that is swapped by rename, and the promise that fences it.
//!
//! Decides which layer files exist, up to where they hold the log, and which log files count. Everything that is not named
//! here is left over from a crash and removed. Never decides when to swap: [`super::Copy`] does.

use super::OpenError;
use super::codec::{self, CodecError};
use crate::base::{Epoch, Generation, GroupId, LineageId, LogEnd, Lsn, TimelineId};
use crate::log::History;
use crate::volume::{Disk, DiskError};
use bytes::Bytes;

pub(super) const MANIFEST: &str = "MANIFEST";
pub(super) const PROMISE: &str = "promise";
/// The region's control state, for [`crate::control`]; bytes that mean nothing here.
pub(super) const CONTROL: &str = "control";
/// Says that the pages here differ from those of the other copies, and why; goes when they were replaced.
const DISTRUST: &str = "distrust";
const DISTRUST_MAGIC: [u8; 4] = *b"PHLD";
/// Stands for a file where the damage lies in what the pages say.
pub(super) const PAGES: &str = "pages";
const CONTROL_MAGIC: [u8; 4] = *b"PHLC";
/// Every file under construction ends so; whatever does when a copy is opened was never published.
pub(super) const TEMPORARY: &str = ".tmp";
const MANIFEST_MAGIC: [u8; 4] = *b"PHLA";
const PROMISE_MAGIC: [u8; 4] = *b"PHLV";
pub(super) const VERSION: u16 = 1;
/// More than any manifest needs (one layer is 60 bytes, one term 24).
const FILE_BYTES_MAX: usize = 32 << 20;

/// One layer file, oldest first in the manifest. Their LSN ranges follow one another without gap.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct LayerMeta {
    /// Who wrote it. A child names files of its ancestors beside its own.
    pub timeline: TimelineId,
    pub number: u64,
    pub bytes: u64,
    /// Of its footer, through which it covers the whole file: another file of the same name is found.
    pub checksum: u32,
    /// Of the newest frame in it.
    pub epoch: Epoch,
    /// Versions above this ...
    pub above: Lsn,
    /// ... up to this.
    pub upto: Lsn,
    /// Versions above this are not seen here: where this timeline, or one before it, left the one that wrote the file.
    pub cap: Lsn,
}

impl LayerMeta {
    pub(super) fn id(&self) -> (TimelineId, u64) {
        (self.timeline, self.number)
    }

    /// Versions up to here are seen.
    pub(super) fn end(&self) -> Lsn {
        self.upto.min(self.cap)
    }
}

/// Where a timeline begins: behind this consistency point of its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Origin {
    pub parent: TimelineId,
    pub at: LogEnd,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct Manifest {
    pub timeline: TimelineId,
    /// The protection group whose copy this is.
    pub group: GroupId,
    pub lineage: Option<LineageId>,
    pub origin: Option<Origin>,
    /// Where the log here began: empty for a founded copy, the seed's position for a seeded one, the branch point for a child.
    pub base: LogEnd,
    pub base_history: History,
    /// The layers hold every version up to here; always a consistency point.
    pub flushed: LogEnd,
    pub layers: Vec<LayerMeta>,
    /// Versions below this were folded together: pages cannot be read below it.
    pub folded: Lsn,
    /// Log files with a lower number are void: a seed replaced them.
    pub log_first_number: u64,
    pub next_layer: u64,
}

/// Writes `bytes` as `name` in one step: at a crash it is the old file or the new one.
pub(super) fn publish(disk: &dyn Disk, name: &str, bytes: Bytes) -> Result<(), DiskError> {
    let temporary = format!("{name}{TEMPORARY}");
    disk.write(&temporary, 0, &[bytes])?;
    disk.sync(&temporary)?;
    disk.rename(&temporary, name)
}

impl Manifest {
    pub(super) fn store(&self, disk: &dyn Disk) -> Result<(), DiskError> {
        publish(disk, MANIFEST, codec::encode(MANIFEST_MAGIC, VERSION, self))
    }

    /// `None`: there is no manifest.
    pub(super) fn load(disk: &dyn Disk, timeline: TimelineId) -> Result<Option<Manifest>, OpenError> {
        let Some(manifest) = read_checked::<Manifest>(disk, MANIFEST, MANIFEST_MAGIC)? else { return Ok(None) };
        let joined = manifest.layers.windows(2).all(|w| w[0].end() == w[1].above);
        let nothing = manifest.flushed == manifest.base && manifest.flushed.end_lsn == Lsn(0);
        let whole = manifest.layers.first().is_none_or(|l| l.above == Lsn(0))
            && manifest.layers.last().map_or(nothing, |l| l.end() == manifest.flushed.end_lsn)
            && manifest.layers.iter().all(|l| l.above <= l.end() && (l.timeline != timeline || l.number < manifest.next_layer));
        if manifest.timeline != timeline {
            return Err(OpenError::Damaged { what: MANIFEST.into(), reason: "it belongs to another timeline".into() });
        }
        if !joined || !whole {
            return Err(OpenError::Damaged { what: MANIFEST.into(), reason: "its layers do not follow one another".into() });
        }
        Ok(Some(manifest))
    }
}

pub(super) fn store_promise(disk: &dyn Disk, generation: Generation) -> Result<(), DiskError> {
    publish(disk, PROMISE, codec::encode(PROMISE_MAGIC, VERSION, &generation))
}

/// The control state that is kept here, with its version.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct KeptControl {
    pub version: u64,
    pub bytes: Vec<u8>,
}

pub(super) fn store_control(disk: &dyn Disk, control: &KeptControl) -> Result<(), DiskError> {
    publish(disk, CONTROL, codec::encode(CONTROL_MAGIC, VERSION, control))
}

pub(super) fn load_control(disk: &dyn Disk) -> Result<KeptControl, OpenError> {
    Ok(read_checked(disk, CONTROL, CONTROL_MAGIC)?.unwrap_or_default())
}

pub(super) fn store_distrust(disk: &dyn Disk, reason: &str) -> Result<(), DiskError> {
    publish(disk, DISTRUST, codec::encode(DISTRUST_MAGIC, VERSION, &reason.to_owned()))
}

/// `None`: the pages here are to be read.
pub(super) fn load_distrust(disk: &dyn Disk) -> Result<Option<String>, OpenError> {
    read_checked(disk, DISTRUST, DISTRUST_MAGIC)
}

pub(super) fn remove_distrust(disk: &dyn Disk) -> Result<(), DiskError> {
    disk.remove(DISTRUST)
}

/// `None`: nothing was ever promised here.
pub(super) fn load_promise(disk: &dyn Disk) -> Result<Option<Generation>, OpenError> {
    read_checked(disk, PROMISE, PROMISE_MAGIC)
}

/// What [`publish`] wrote with [`codec::encode`]; `None`: there is no such file.
pub(super) fn read_checked<T: bincode::Decode<()>>(disk: &dyn Disk, name: &str, magic: [u8; 4]) -> Result<Option<T>, OpenError> {
    if disk.len(name)?.is_none() {
        return Ok(None);
    }
    let bytes = disk.read(name, 0, FILE_BYTES_MAX)?;
    match codec::decode(&bytes, magic, VERSION) {
        Ok(value) => Ok(Some(value)),
        Err(CodecError::Unsupported(version)) => Err(OpenError::Unsupported { file: name.into(), version }),
        Err(e) => Err(OpenError::Damaged { what: name.into(), reason: e.to_string() }),
    }
}
