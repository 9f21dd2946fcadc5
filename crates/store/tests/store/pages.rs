//! A range read page by page, as streamed ranges are.

use bytes::Bytes;
use prost::Message;
use quorate_store::MemState;
use quorate_types::kv::{Command, DeleteRange, Put, Range, RangeOutcome, command, outcome};

use crate::host::Host;

const KEYS: u32 = 2_100;

fn key(number: u32) -> Bytes {
    format!("{number:04}").into()
}

fn command(body: command::Body) -> Command {
    Command { body: Some(body), ..Command::default() }
}

#[test]
fn a_page_has_no_more_than_a_thousand_keys_and_the_next_ones_make_the_whole() {
    let mut kv = Host::new(MemState::new());
    let puts = (0..KEYS).map(|number| Put { key: key(number), ..Put::default() });
    kv.apply_all(puts.map(|put| command(command::Body::Put(put)).encode_to_vec().into()));
    let end = Bytes::from_static(b"\0");
    let all = DeleteRange { range_end: end.clone(), ..DeleteRange::default() };
    let revision = kv.apply(&command(command::Body::DeleteRange(all))).revision;

    let pages_at = |revision| {
        let (mut start, mut found, mut sizes) = (key(0), Vec::new(), Vec::new());
        loop {
            let (key, range_end) = (start, end.clone());
            let page = Range { key, range_end, revision, page_bytes: 1 << 20, ..Range::default() };
            let Some(outcome::Body::Range(RangeOutcome { kvs, more, .. })) = kv.range(page).body
            else {
                panic!("a range is answered by one")
            };
            sizes.push(kvs.len());
            found.extend(kvs.into_iter().map(|kv| kv.key));
            if !more {
                return (found, sizes);
            }
            let last = found.last().expect("more follows something");
            start = [last, &b"\0"[..]].concat().into();
        }
    };
    assert_eq!(pages_at(revision - 1), ((0..KEYS).map(key).collect(), vec![1_000, 1_000, 100]));
    assert_eq!(pages_at(0), (Vec::new(), vec![0]));
}
