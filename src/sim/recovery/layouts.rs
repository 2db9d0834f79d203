//! What a crash may have left on the six copies when the first recovery begins.

use super::super::checker::Checked;
use super::super::checker::truth::Truth;
use super::super::disk::SimDisk;
use super::rig::Rig;
use super::{Image, Order};
use crate::base::{CopyId, LogEnd};
use std::sync::Arc;

/// Who has how much: the first four have all that was acknowledged, three of them a transaction more, one the beginning of another.
struct Tails {
    name: &'static str,
    order: [u8; 6],
    /// A transaction that three have, or two.
    unacknowledged: usize,
    /// So many of the first four were replaced by empty disks since.
    replaced: usize,
}

/// A copy has a newer start, three others have an old tail that it outranks.
pub(in crate::sim) const FIGURE_8: &str = "a newer start on c1, an old tail on a1 a2 b1";

const TAILS: [Tails; 5] = [
    Tails { name: "tails on a1 a2 b1 b2", order: [0, 1, 2, 3, 4, 5], unacknowledged: 3, replaced: 0 },
    Tails { name: "tails on c2 c1 b2 b1", order: [5, 4, 3, 2, 1, 0], unacknowledged: 2, replaced: 0 },
    Tails { name: "tails on b1 a1 c1 c2", order: [2, 0, 4, 5, 1, 3], unacknowledged: 3, replaced: 0 },
    Tails { name: "tails, one disk replaced", order: [0, 1, 2, 3, 4, 5], unacknowledged: 3, replaced: 1 },
    Tails { name: "tails, two disks replaced", order: [3, 5, 1, 0, 2, 4], unacknowledged: 2, replaced: 2 },
];

fn empty_disk(i: usize) -> (Arc<SimDisk>, u64) {
    let disk = SimDisk::new(i as u64);
    let hash = disk.content_hash();
    (Arc::new(disk), hash)
}

pub(super) fn nothing() -> Image {
    Image {
        disks: std::array::from_fn(empty_disk),
        claims: [LogEnd::EMPTY; 6],
        truth: Arc::new(Truth::default()),
        incarnation: 1,
        layout: "six empty disks",
        crashes: Vec::new(),
        ways: 1,
    }
}

/// The layouts that are enumerated; the last one is a founding that has not begun.
pub(super) fn all() -> Checked<Vec<Image>> {
    let mut images = TAILS.iter().map(tails).collect::<Checked<Vec<Image>>>()?;
    images.push(figure_8(&images[0])?);
    images.push(nothing());
    Ok(images)
}

/// Raft's figure 8: a recovery on the copies without the tail ended when its first frame was on one of them. That frame outranks the
/// tail that three others have.
fn figure_8(image: &Image) -> Checked<Image> {
    let [b2, c1, c2] = [CopyId(3), CopyId(4), CopyId(5)];
    let mut rig = Rig::new(image, Order::Races(c1), None, false);
    let p = rig.start(image.incarnation);
    for c in [b2, c1, c2] {
        rig.connect(p, c)?;
    }
    let before = rig.claims[c1.index()].generation;
    while rig.claims[c1.index()].generation == before {
        if !rig.advance(Some(p))? {
            return Err(format!("figure 8: the recovery does not begin: {}", rig.describe()));
        }
    }
    let layout = FIGURE_8;
    Ok(Image { disks: rig.disks(), claims: rig.claims, truth: rig.truth, incarnation: image.incarnation + 1, layout, ..image.clone() })
}

fn tails(tails: &Tails) -> Checked<Image> {
    let begin = nothing();
    let mut rig = Rig::new(&begin, Order::Fifo, None, false);
    let p = rig.start(1);
    for c in CopyId::all() {
        rig.connect(p, c)?;
    }
    rig.settle(None, &mut |_| Ok(()))?;
    for frames in [1, 2] {
        rig.write(p, frames)?;
        rig.settle(None, &mut |_| Ok(()))?;
    }
    let rank = |c: CopyId| tails.order.iter().position(|o| *o == c.0).expect("BUG: six copies in some order");
    let durable = rig.write(p, 2)?;
    rig.deliver_some(p, |c| if rank(c) < 4 { usize::MAX } else { 0 })?;
    if *rig.truth.committed() != durable {
        return Err(format!("{}: what four copies have is not durable: {}", tails.name, rig.describe()));
    }
    rig.write(p, 2)?;
    rig.deliver_some(p, |c| if rank(c) < tails.unacknowledged { usize::MAX } else { 0 })?;
    rig.write(p, 3)?;
    rig.deliver_some(p, |c| usize::from(rank(c) == 0))?;
    let mut image = Image { disks: rig.disks(), claims: rig.claims, truth: rig.truth, incarnation: 2, layout: tails.name, ..begin };
    for &i in &tails.order[..tails.replaced] {
        image.disks[usize::from(i)] = empty_disk(usize::from(i));
        image.claims[usize::from(i)] = LogEnd::EMPTY;
    }
    Ok(image)
}
