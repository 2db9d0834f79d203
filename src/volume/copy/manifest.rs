//! What a copy is made of, in one file that is swapped by rename, and the promise that fences it.
//!
//! Decides which layer files exist, up to where they hold the log, and which log files count. Everything that is not named
//! here is left over from a crash and removed. Never decides when to swap: [`super::Copy`] does.

use super::codec::{self, CodecError};
use super::{OpenError, sealed};
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
/// Of a manifest that says something about rewinding.
const VERSION_REWOUND: u16 = 2;
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
    /// Stands in the file from version 2 on.
    pub rewinds: Rewinds,
}

/// What rewinding left behind; see [`super::rewind`].
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct Rewinds {
    pub cut: Option<Cut>,
    /// The last order that was carried out: the generation that gave it, and its number there.
    pub done: (Generation, u64),
    /// The newest reign for whose sake it was: what lies here is that reign's history, and outranks any log that ends in an older one.
    pub reign: Epoch,
    pub archives: Vec<Archive>,
}

/// The log was cut without a frame that replaces what goes.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct Cut {
    /// Of the files with a lower number ...
    pub below: u64,
    /// ... this is the last one of the log ...
    pub last: u64,
    /// ... which ends here while there is no newer file.
    pub at: LogEnd,
    /// Terms up to there.
    pub history: History,
}

/// A tail that was cut and is kept. Its pages are those of the timeline of the same id.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) struct Archive {
    pub id: TimelineId,
    /// The tail begins behind this.
    pub base: LogEnd,
    /// Its last frame, and its last consistency point.
    pub end: LogEnd,
    pub consistent: LogEnd,
    /// The frames behind this are kept: behind the base, or where the layers ended when that was earlier.
    pub from: LogEnd,
    /// The log files that hold them, oldest first. They stay whatever is trimmed.
    pub files: Vec<u64>,
}

/// A manifest as version 1 has it.
#[derive(bincode::Encode, bincode::Decode)]
struct Plain {
    timeline: TimelineId,
    group: GroupId,
    lineage: Option<LineageId>,
    origin: Option<Origin>,
    base: LogEnd,
    base_history: History,
    flushed: LogEnd,
    layers: Vec<LayerMeta>,
    folded: Lsn,
    log_first_number: u64,
    next_layer: u64,
}

impl From<&Manifest> for Plain {
    fn from(m: &Manifest) -> Plain {
        let Manifest { timeline, group, lineage, origin, base, flushed, folded, log_first_number, next_layer, .. } = *m;
        let (base_history, layers) = (m.base_history.clone(), m.layers.clone());
        Plain { timeline, group, lineage, origin, base, base_history, flushed, layers, folded, log_first_number, next_layer }
    }
}

impl From<Plain> for Manifest {
    fn from(p: Plain) -> Manifest {
        Manifest {
            timeline: p.timeline,
            group: p.group,
            lineage: p.lineage,
            origin: p.origin,
            base: p.base,
            base_history: p.base_history,
            flushed: p.flushed,
            layers: p.layers,
            folded: p.folded,
            log_first_number: p.log_first_number,
            next_layer: p.next_layer,
            rewinds: Rewinds::default(),
        }
    }
}

/// Writes `bytes` as `name` in one step: at a crash it is the old file or the new one.
pub(super) fn publish(disk: &dyn Disk, name: &str, bytes: Bytes) -> Result<(), DiskError> {
    let temporary = format!("{name}{TEMPORARY}");
    disk.write(&temporary, 0, &[sealed::seal(disk, name.as_bytes(), bytes)?])?;
    disk.sync(&temporary)?;
    disk.rename(&temporary, name)
}

impl Manifest {
    /// As version 1 when it says no more than that can: an older parhelion reads it.
    pub(super) fn store(&self, disk: &dyn Disk) -> Result<(), DiskError> {
        let bytes = if self.rewinds == Rewinds::default() {
            codec::encode(MANIFEST_MAGIC, VERSION, &Plain::from(self))
        } else {
            codec::encode(MANIFEST_MAGIC, VERSION_REWOUND, self)
        };
        publish(disk, MANIFEST, bytes)
    }

    /// Up to here the log was surely durable in the region. The base of a seed proves nothing: it may have come to this copy alone.
    pub(super) fn proves_durable(&self) -> LogEnd {
        if self.flushed == self.base { LogEnd::EMPTY } else { self.flushed }
    }

    /// The archive, if it is here.
    pub(super) fn archive(&self, id: TimelineId) -> Option<&Archive> {
        self.rewinds.archives.iter().find(|a| a.id == id)
    }

    /// `None`: there is no manifest.
    pub(super) fn load(disk: &dyn Disk, timeline: TimelineId) -> Result<Option<Manifest>, OpenError> {
        let manifest = match read_checked::<Plain>(disk, MANIFEST, MANIFEST_MAGIC) {
            Err(OpenError::Unsupported { version: VERSION_REWOUND, .. }) => {
                read_version::<Manifest>(disk, MANIFEST, MANIFEST_MAGIC, VERSION_REWOUND)?
            }
            found => found?.map(Manifest::from),
        };
        let Some(manifest) = manifest else { return Ok(None) };
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
    read_version(disk, name, magic, VERSION)
}

fn read_version<T: bincode::Decode<()>>(disk: &dyn Disk, name: &str, magic: [u8; 4], version: u16) -> Result<Option<T>, OpenError> {
    if disk.len(name)?.is_none() {
        return Ok(None);
    }
    let Some(bytes) = sealed::open_file(disk, name, disk.read(name, 0, FILE_BYTES_MAX)?) else {
        return Err(OpenError::Damaged { what: name.into(), reason: sealed::BROKEN.into() });
    };
    match codec::decode(&bytes, magic, version) {
        Ok(value) => Ok(Some(value)),
        Err(CodecError::Unsupported(version)) => Err(OpenError::Unsupported { file: name.into(), version }),
        Err(e) => Err(OpenError::Damaged { what: name.into(), reason: e.to_string() }),
    }
}
