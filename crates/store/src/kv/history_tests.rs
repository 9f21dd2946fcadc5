//! Histories with compactions and sweeps, against a slow twin.

use std::collections::BTreeMap;

use quorate_types::GroupId;
use quorate_types::kv::{DeleteRange, Put};
use quorate_types::machine::RowScope;

use super::*;
use crate::engine::{MemState, Overlay, StateEngine};
use crate::kv::hashing::Seeded;
use crate::kv::meta::Meta;
use crate::kv::pairs::Pairs;
use crate::kv::recent::Recent;
use crate::kv::sweep::sweep;
use crate::kv::write::Writer;

const REVISIONS: i64 = 400;

/// Puts and deletes of thirty keys in an order that repeats itself late, compacted at `floor`; swept in part.
fn keyspace(floor: i64, swept_rows: usize) -> (MemState, Meta) {
    let engine = MemState::new();
    let mut overlay = Overlay::new(engine.view());
    let mut batch = overlay.scoped(RowScope::Keyspace, GroupId(1));
    let mut meta = Meta::decode(&[]).unwrap();
    let (mut recent, pairs) = (Recent::new(Seeded(1)), Pairs::new(1, Seeded(1)));
    while meta.revision < REVISIONS {
        let draw = meta.revision * 7919 % 127;
        let key = Bytes::from(format!("key{}", draw % 30));
        let taken = meta.revision + 1;
        let mut writer = Writer::new(&mut batch, &mut recent, &pairs, &meta, taken);
        if draw % 4 == 0 {
            writer
                .delete_range(&DeleteRange { key: key.clone(), ..DeleteRange::default() })
                .unwrap();
        }
        // Also of a key that was just deleted: two writes in one revision.
        writer.put(&Put { key, value: vec![7; draw as usize].into(), ..Put::default() }).unwrap();
        if draw % 5 == 0 {
            let key = format!("key{}", draw % 7).into();
            writer.delete_range(&DeleteRange { key, ..DeleteRange::default() }).unwrap();
        }
        meta.revision = taken;
    }
    meta.floor = floor;
    sweep(&mut meta, swept_rows, &mut batch).unwrap();
    engine.write(overlay.into_rows()).unwrap();
    (engine, meta)
}

fn parts(engine: &MemState, meta: &Meta, part: Part) -> Vec<Written> {
    let rows = engine.view();
    let view = View { rows: &*rows, revision: meta.revision, floor: meta.floor, pairs: None };
    let mut found = Vec::new();
    each_write(&view, part, &mut |written| {
        found.push(written.clone());
        Ok::<_, StateError>(())
    })
    .unwrap();
    found
}

/// The same by the definition, over all that was ever written.
fn twin(all: &[Written], floor: i64, part: Part) -> Vec<Written> {
    let mut newest: BTreeMap<&Bytes, Stamp> = BTreeMap::new();
    for written in all.iter().filter(|written| written.stamp.revision <= part.standing_at) {
        newest.insert(&written.pair.key, written.stamp);
    }
    let counts = |written: &&Written| {
        let revision = written.stamp.revision;
        let stands = newest.get(&written.pair.key) == Some(&written.stamp);
        let shown = !written.is_delete || (part.deletes_at_floor && revision == floor);
        revision <= part.revision && (revision > floor || (stands && shown))
    };
    all.iter().filter(counts).cloned().collect()
}

#[test]
fn a_part_of_the_history_is_the_same_however_far_the_sweep_has_come() {
    let whole = Part { revision: REVISIONS, standing_at: REVISIONS, deletes_at_floor: false };
    let (engine, meta) = keyspace(-1, 0);
    let all = parts(&engine, &meta, whole);
    assert!(all.is_sorted_by_key(|written| written.stamp) && all.len() > REVISIONS as usize);
    for floor in [1, 2, 50, 131, 398, REVISIONS] {
        for part in [
            Part { revision: REVISIONS, standing_at: floor, deletes_at_floor: true },
            whole,
            Part { revision: floor + 1, standing_at: floor + 1, deletes_at_floor: false },
        ] {
            let part = Part { revision: part.revision.min(REVISIONS), ..part };
            let expected = twin(&all, floor, part);
            for swept_rows in [0, 40, 100_000] {
                let (engine, meta) = keyspace(floor, swept_rows);
                assert_eq!(parts(&engine, &meta, part), expected, "{floor} {part:?} {swept_rows}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_into_memory_is_brought_into_order_in_several_goes() {
    let (engine, meta) = keyspace(300, 0);
    let rows = engine.view();
    let view = View { rows: &*rows, revision: meta.revision, floor: meta.floor, pairs: None };
    let part = Part { revision: REVISIONS, standing_at: 300, deletes_at_floor: true };
    let goes = |bytes_max| {
        let (mut found, mut from, mut goes) = (Vec::new(), Some(Stamp::default()), 0);
        while let Some(at) = from {
            from = standing::<StateError>(&view, part, at, bytes_max, &mut |written| {
                found.push(written.clone());
                Ok(())
            })
            .unwrap();
            goes += 1;
        }
        (found, goes)
    };
    let (expected, one) = goes(usize::MAX);
    assert_eq!(one, 1);
    for bytes_max in [0, 100, 500] {
        let (found, many) = goes(bytes_max);
        assert_eq!(found, expected);
        assert!(many > 1, "{many} goes with {bytes_max}");
    }
}
