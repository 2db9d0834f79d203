//! Bytes that are right in themselves and lie in the wrong place: blocks and files of layers, records of the log. And what a read of a
//! page costs after a long run.

use super::*;
use directory::layer_name;
use layer::{LayerFile, LayerWriter, Place};
use manifest::LayerMeta;
use parking_lot::Mutex;

const BLOCK_PAGES: u32 = 4;

fn place(number: u64) -> Place {
    Place { lineage: LINEAGE, timeline: TimelineId::ROOT, number, epoch: Epoch(1) }
}

/// A layer of some pages, each so long that it is a block of its own; all blocks have one length.
fn layer_of(directory: &Arc<Directory>, place: Place, fill: u8) -> (LayerMeta, Bytes) {
    let mut writer = LayerWriter::begin(directory, place).unwrap();
    for page in 1..=BLOCK_PAGES {
        writer.push((PageNo(page), Lsn(10)), &Change::Image(Bytes::from(vec![fill; 20_000]))).unwrap();
    }
    let meta = writer.finish(Lsn(0), Lsn(10)).unwrap().meta().clone();
    (meta.clone(), directory.disk().read(&layer_name(meta.id()), 0, usize::MAX).unwrap())
}

/// What the pages of the layer read as, or `None` where it is damaged.
fn read_all(directory: &Arc<Directory>, meta: &LayerMeta) -> Vec<Option<u8>> {
    let Ok(file) = LayerFile::open(None, Arc::clone(directory.disk()), LINEAGE, meta) else { return vec![None; BLOCK_PAGES as usize] };
    let layer = layer::Layer::new(Arc::new(file), meta).unwrap();
    let read = |page| {
        let mut found = Vec::new();
        layer.collect(PageNo(page), Lsn(10), &mut found).ok()?;
        Some(found[0].body()[0])
    };
    (1..=BLOCK_PAGES).map(read).collect()
}

#[test]
fn a_block_or_a_file_in_another_place_is_found() {
    let disk = disk(1);
    let dir = Directory::open(disk.clone()).unwrap();
    let (meta, good) = layer_of(&dir, place(1), 1);
    let (other_meta, other) = layer_of(&dir, place(2), 2);
    let name = layer_name(meta.id());
    let len = 8 + 17 + 20_000 + if disk.cipher().is_some() { crate::volume::SEAL_BYTES } else { 0 };
    let put = |name: &str, at: usize, bytes: &[u8]| disk.write(name, at as u64, &[Bytes::copy_from_slice(bytes)]).unwrap();
    let good_read = vec![Some(1); BLOCK_PAGES as usize];
    assert_eq!(read_all(&dir, &meta), good_read);
    // Two blocks of one file are swapped.
    for (a, b) in [(0, 1), (1, 3), (2, 3)] {
        put(&name, a * len, &good[b * len..][..len]);
        put(&name, b * len, &good[a * len..][..len]);
        let read = read_all(&dir, &meta);
        let want: Vec<Option<u8>> = (0..BLOCK_PAGES as usize).map(|page| (page != a && page != b).then_some(1)).collect();
        assert_eq!(read, want, "{a} and {b}");
        put(&name, 0, &good);
    }
    // The block of another file, at the same offset and for the same page.
    put(&name, len, &other[len..][..len]);
    assert_eq!(read_all(&dir, &meta), [Some(1), None, Some(1), Some(1)]);
    put(&name, 0, &good);
    // Another file whole: another number, timeline, lineage, epoch.
    put(&name, 0, &other);
    assert_eq!(read_all(&dir, &meta), [None; BLOCK_PAGES as usize]);
    put(&name, 0, &good);
    assert_eq!(read_all(&dir, &meta), good_read);
    for (wrong, why) in [
        (LayerMeta { epoch: Epoch(2), ..meta.clone() }, "epoch"),
        (LayerMeta { upto: Lsn(11), ..meta.clone() }, "LSN"),
        (LayerMeta { checksum: other_meta.checksum, ..meta.clone() }, "checksum"),
    ] {
        assert!(LayerFile::open(None, Arc::clone(dir.disk()), LINEAGE, &wrong).is_err(), "{why}");
    }
    assert!(LayerFile::open(None, Arc::clone(dir.disk()), LineageId(1), &meta).is_err(), "lineage");
    let theirs = Place { timeline: TimelineId(9), ..place(1) };
    let (child_meta, child) = layer_of(&dir, theirs, 3);
    put(&name, 0, &child);
    assert_eq!(read_all(&dir, &meta), [None; BLOCK_PAGES as usize], "a file of another timeline");
    put(&layer_name(child_meta.id()), 0, &good);
    assert_eq!(read_all(&dir, &child_meta), [None; BLOCK_PAGES as usize]);
    // An old file of the same name, as a crash may leave one, or another copy has one: whole, and block by block.
    let (new_meta, new) = layer_of(&dir, place(1), 4);
    assert_eq!(read_all(&dir, &new_meta), [Some(4); BLOCK_PAGES as usize]);
    put(&name, 0, &good);
    assert_eq!(read_all(&dir, &new_meta), [None; BLOCK_PAGES as usize]);
    put(&name, 0, &new);
    for page in 0..BLOCK_PAGES as usize {
        put(&name, page * len, &good[page * len..][..len]);
        assert_eq!(read_all(&dir, &new_meta)[page], None, "a stale block of the same place");
        put(&name, 0, &new);
    }
}

#[test]
fn a_record_of_the_log_in_another_place_is_found() {
    let world = World::sized(4, 60);
    // Another copy's tail: the same seqs, written by somebody else.
    let mut stranger = world.cut(20, Generation(2));
    while stranger.frames.len() < 60 {
        stranger.write();
    }
    // Of sealed ones see `record`.
    let disk = Arc::new(SimDisk::plain(1));
    let mut copy = open(&disk);
    drive(&mut copy, vec![CopyRequest::Raise { generation: Generation(1) }]);
    for frame in &world.frames {
        drive(&mut copy, vec![world.append(vec![frame.clone()], LogEnd::EMPTY)]);
    }
    let proven = usize::try_from(copy.wal.end().seq.0 - 1).unwrap();
    drop(copy);
    // Where each frame lies: every file holds its bytes once.
    let files: Vec<(String, Bytes)> = disk
        .list()
        .unwrap()
        .into_iter()
        .filter(|n| n.starts_with("log-"))
        .map(|n| (n.clone(), disk.read(&n, 0, usize::MAX).unwrap()))
        .collect();
    assert!(files.len() > 2);
    let find = |frame: &Frame| {
        let bytes = frame.bytes();
        files.iter().find_map(|(n, b)| b.windows(bytes.len()).position(|w| w == bytes).map(|at| (n, at as u64)))
    };
    let mut put = 0;
    for (i, frame) in world.frames[..proven].iter().enumerate() {
        let (name, at) = find(frame).unwrap();
        let wrong = world
            .frames
            .iter()
            .chain(&stranger.frames[20..])
            .filter(|f| f.bytes() != frame.bytes() && f.bytes().len() == frame.bytes().len());
        for wrong in wrong.take(6) {
            disk.write(name, at, &[wrong.bytes().clone()]).unwrap();
            match try_open(&disk) {
                Err(OpenError::Damaged { .. }) => {}
                Err(e) => panic!("{e}"),
                Ok(_) => panic!("frame {} lies where frame {} was", wrong.seq(), i + 1),
            }
            disk.write(name, at, &[frame.bytes().clone()]).unwrap();
            put += 1;
        }
    }
    assert!(put > 40, "{put}");
    assert_eq!(whole_log(&mut open(&disk)), world.frames);
}

/// Counts what is read of layer files.
struct Counting {
    disk: SimDisk,
    reads: Mutex<(u64, u64)>,
}

impl Disk for Counting {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.disk.list()
    }
    fn len(&self, name: &str) -> Result<Option<u64>, DiskError> {
        self.disk.len(name)
    }
    fn read(&self, name: &str, offset: u64, len_max: usize) -> Result<Bytes, DiskError> {
        let bytes = self.disk.read(name, offset, len_max)?;
        if name.contains("layer-") {
            let mut reads = self.reads.lock();
            *reads = (reads.0 + 1, reads.1 + bytes.len() as u64);
        }
        Ok(bytes)
    }
    fn write(&self, name: &str, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        self.disk.write(name, offset, parts)
    }
    fn allocate(&self, name: &str, len: u64) -> Result<(), DiskError> {
        self.disk.allocate(name, len)
    }
    fn room(&self) -> u64 {
        self.disk.room()
    }
    fn sync(&self, name: &str) -> Result<(), DiskError> {
        self.disk.sync(name)
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.disk.remove(name)
    }
    fn sync_names(&self) -> Result<(), DiskError> {
        self.disk.sync_names()
    }
    fn cipher(&self) -> Option<&dyn crate::volume::Cipher> {
        self.disk.cipher()
    }
}

#[test]
fn a_read_of_a_page_costs_two_blocks_of_each_layer_at_most_however_long_its_history() {
    const PAGE: usize = 4096;
    const HOT: PageNo = PageNo(5);
    let limits = Limits { memtable_bytes_max: 96 << 10, log_file_bytes: 1 << 20, layers_before_compaction: 4, ..Limits::tiny() };
    let disk = Arc::new(Counting { disk: SimDisk::new(1), reads: Mutex::default() });
    let mut copy = Copy::open(disk.clone(), &limits).unwrap();
    let world = World::founded(1);
    world.fill(&mut copy);
    let mut pen = Pen::new(Epoch(1), world.generation, world.end(), 64 << 10);
    let mut prng = Prng::new(5);
    let mut hot = vec![0; PAGE];
    let mut then: Vec<(Lsn, Vec<u8>)> = Vec::new();
    let (mut worst, mut worst_bytes, mut layers_most, mut written) = (0, 0, 0, 0);
    for round in 0..12_000u32 {
        // Every version is kept: nothing is folded below the horizon. One page is in every mini-transaction.
        let mut payload = Vec::new();
        for page in [HOT, PageNo(u32::try_from(prng.below(40)).unwrap() + 10)] {
            let (at, fill) = (u16::try_from(prng.below(PAGE as u64 - 30)).unwrap(), u8::try_from(prng.between(1, 255)).unwrap());
            let delta = [&at.to_le_bytes()[..], &30u16.to_le_bytes(), &[fill; 30]].concat();
            let change = Change::from_parts(2, Bytes::from(delta)).unwrap();
            if page == HOT {
                change.apply(&mut hot);
            }
            written += change.body().len();
            put_record(&mut payload, page, &change);
        }
        let frames = pen.write(&[payload], true, UnixMicros(1));
        drive(&mut copy, vec![world.append(frames, *pen.end())]);
        if round % 100 != 0 {
            continue;
        }
        then.push((pen.end().end_lsn, hot.clone()));
        layers_most = layers_most.max(copy.pages().layers().len());
        for (at, want) in [then.last().unwrap(), &then[usize::try_from(prng.below(then.len() as u64)).unwrap()]] {
            *disk.reads.lock() = (0, 0);
            let got = copy.pages().read(HOT, *at).unwrap();
            assert_eq!(trimmed(&got), trimmed(want), "at {at}");
            let (reads, bytes) = *disk.reads.lock();
            worst = worst.max(reads);
            worst_bytes = worst_bytes.max(bytes);
        }
    }
    assert!(copy.failed().is_none());
    let stored: u64 = copy.manifest.layers.iter().map(|l| l.bytes).sum();
    let blocks = stored / (32 << 10);
    assert!(blocks > 30, "the history is long: {blocks} blocks");
    assert!(layers_most <= limits.layers_before_compaction, "{layers_most}");
    assert!(worst <= 2 * layers_most as u64, "{worst} blocks ({worst_bytes} bytes) of {blocks}, {layers_most} layers");
    assert!(stored < 4 * written as u64, "images do not outgrow the deltas: {stored} bytes for {written}");
}
