//! Every bound in one place, with a tiny set beside the real one: with tiny limits each wrap-around and full queue
//! happens within seconds of simulated time.

use std::time::Duration;

/// Bounds and periods of the cores. All sizes in bytes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest payload of one frame. A larger mini-transaction becomes several frames.
    pub frame_payload_bytes_max: usize,
    /// One file of a copy's log; a new one begins past this.
    pub log_file_bytes: u64,
    /// Space that each copy keeps back for what must be written on a full disk. At most half a log file is.
    pub reserve_bytes: u64,
    /// Page versions kept in memory per copy before they are written as a layer file.
    pub memtable_bytes_max: usize,
    /// So many layer files before they are merged.
    pub layers_before_compaction: usize,
    /// Log kept for secondaries and copies that are behind; past it they are seeded with pages.
    pub log_retain_bytes: u64,
    /// Newest frames kept in memory for senders and for copies that are a little behind.
    pub ring_bytes_max: usize,
    /// Frames sent to one copy and not yet acknowledged.
    pub copy_window_bytes_max: usize,
    /// Frames sent to one secondary and not yet durable there (bandwidth x delay of the path, and some).
    pub ship_window_bytes_max: usize,
    /// One unit of shipping: one short QUIC stream. With one frame more it stays below 1 MiB, the most a link takes.
    pub batch_bytes_max: usize,
    /// Secondaries of a global cluster.
    pub secondaries_max: usize,
    /// Between heartbeats to one secondary.
    pub heartbeat_every: Duration,
    /// Without any answer for so long a copy counts as down and is asked again.
    pub copy_silent_after: Duration,
    /// Without progress of its durable position, while there is something to send, a secondary counts as stalled.
    pub stalled_after: Duration,
    /// Without progress for so long the sender asks the secondary for its position again and resumes from there.
    pub resend_after: Duration,
    /// A seed of a secondary reads no more than this while commits are made.
    pub seed_bytes_per_s_max: u64,
    /// The pages that an interrupted seed goes on with stay readable for so long after its link was lost.
    pub seed_held: Duration,
    /// Old page versions stay readable for so long after they were replaced.
    pub version_retain: Duration,
    /// No reader and no secondary's seed keeps versions further back than so many bytes of log: below it, they are told.
    pub version_retain_bytes: u64,
    /// Log is kept for a secondary that is gone no longer than this.
    pub log_retain: Duration,
    /// What the scrub reads of each copy in a second; 0: there is no scrub.
    pub scrub_bytes_per_s: u64,
    /// From the beginning of one pass of the scrub to that of the next.
    pub scrub_every: Duration,
    /// What the scrub reads at once.
    pub scrub_piece_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            frame_payload_bytes_max: 256 << 10,
            log_file_bytes: 32 << 20,
            reserve_bytes: 8 << 20,
            memtable_bytes_max: 32 << 20,
            layers_before_compaction: 10,
            log_retain_bytes: 1 << 30,
            ring_bytes_max: 16 << 20,
            copy_window_bytes_max: 16 << 20,
            ship_window_bytes_max: 32 << 20,
            batch_bytes_max: 768 << 10,
            secondaries_max: 5,
            heartbeat_every: Duration::from_millis(100),
            copy_silent_after: Duration::from_secs(2),
            stalled_after: Duration::from_secs(3),
            resend_after: Duration::from_secs(5),
            seed_bytes_per_s_max: 64 << 20,
            seed_held: Duration::from_secs(600),
            version_retain: Duration::from_secs(60),
            version_retain_bytes: 4 << 30,
            log_retain: Duration::from_secs(24 * 3600),
            scrub_bytes_per_s: 4 << 20,
            scrub_every: Duration::from_secs(24 * 3600),
            scrub_piece_bytes: 128 << 10,
        }
    }
}

impl Limits {
    /// Four-record windows: what a simulation needs to meet every full queue. Without a reserve: disks there have no bound unless a test
    /// sets one, and that test sets both.
    #[must_use]
    pub fn tiny() -> Limits {
        Limits {
            frame_payload_bytes_max: 512,
            log_file_bytes: 4 << 10,
            reserve_bytes: 0,
            memtable_bytes_max: 2 << 10,
            layers_before_compaction: 3,
            log_retain_bytes: 16 << 10,
            ring_bytes_max: 2 << 10,
            copy_window_bytes_max: 2 << 10,
            ship_window_bytes_max: 4 << 10,
            batch_bytes_max: 1 << 10,
            scrub_bytes_per_s: 256 << 10,
            scrub_every: Duration::from_millis(1500),
            scrub_piece_bytes: 4 << 10,
            ..Limits::default()
        }
    }
}
