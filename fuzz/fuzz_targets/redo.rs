//! Redo records: what decodes can be laid over any page, and never makes it larger than a page may be.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use parhelion::base::PageNo;
use parhelion::log::redo::{VolumeHeader, difference, put_record, records};

fuzz_target!(|data: &[u8]| {
    let payload = Bytes::copy_from_slice(data);
    if let Ok(found) = records(&payload) {
        let mut again = Vec::new();
        let mut page = vec![0xa5; 512];
        for record in &found {
            put_record(&mut again, record.page, &record.change);
            record.change.apply(&mut page);
            assert!(page.len() <= 1 << 16);
        }
        assert_eq!(again, data);
    }
    let _ = VolumeHeader::from_page(data);
    // Any two pages: their difference makes one of the other.
    let (before, after) = data.split_at(data.len() / 2);
    let n = before.len().min(4096);
    if let Some(change) = difference(&before[..n], &after[..n]) {
        let mut bytes = Vec::new();
        put_record(&mut bytes, PageNo(1), &change);
        let found = records(&Bytes::from(bytes)).expect("what was written reads");
        let mut page = before[..n].to_vec();
        found[0].change.apply(&mut page);
        page.resize(n, 0);
        assert_eq!(page, after[..n]);
    }
});
