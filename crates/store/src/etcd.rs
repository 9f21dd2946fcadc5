//! The keyspace as a database file of etcd: what stock programs take for a snapshot.
//!
//! The file is bbolt's: pages of 4 KiB, a tree of pages for each bucket. It is written from the front to the
//! end, since everything comes in the order of its keys, and the three pages that say where what lies are put
//! in front at last. No library writes it so: they insert into a mapped file, one transaction after the other,
//! and bring a hundred packages along.
//!
//! ```text
//! page    = id u64, flags u16, count u16, overflow u32, elements, keys and values      little endian
//! branch  = { offset u32, key bytes u32, page u64 }
//! leaf    = { flags u32, offset u32, key bytes u32, value bytes u32 }                  flag 1: a bucket
//! bucket  = page u64, sequence u64
//! meta    = magic u32, version u32, page bytes u32, 0, bucket, free list u64, pages u64, txid u64, fnv u64
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};

use prost::Message;
use quorate_types::StateReader;
use quorate_types::machine::StateError;

use crate::group_row::GroupRow;
use crate::kv::alarms::conditions;
use crate::kv::history::{Part, each_write, etcd_revision};
use crate::kv::lease::leases;
use crate::kv::meta::Meta;
use crate::kv::read::View;
use crate::layout::Stamp;
use crate::{auth, etcd_form};

const PAGE_BYTES: usize = 4096;
pub(crate) const HEAD_BYTES: usize = 16;
pub(crate) const ELEMENT_BYTES: usize = 16;
/// Two pages of meta and one of free pages.
const FRONT_PAGES: u64 = 3;
pub(crate) const BRANCH: u16 = 1;
pub(crate) const LEAF: u16 = 2;
pub(crate) const META: u16 = 4;
const FREE_LIST: u16 = 16;
pub(crate) const IS_BUCKET: u32 = 1;
pub(crate) const MAGIC: u32 = 0xED0C_DAED;
pub(crate) const VERSION: u32 = 2;

/// The bytes that the front takes; see [`write_etcd`].
pub const FRONT_BYTES: usize = FRONT_PAGES as usize * PAGE_BYTES;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// It cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The engine failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// It would be larger than it may be.
    #[error("a file of more than {0} bytes")]
    TooLarge(u64),
}

/// A member, as etcd notes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdMember {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// The revision of the keyspace whose group has this row.
///
/// # Errors
/// When its meta is damaged.
pub fn keyspace_revision(row: &GroupRow) -> Result<i64, StateError> {
    Ok(Meta::decode(&row.meta)?.revision)
}

/// Writes the keyspace of `row` and `rows` to `out`, but for the front: that is given, to be put over the
/// first [`FRONT_BYTES`] that were written.
///
/// What lies below the last compaction is left out, as far as it does not stand there: a file of etcd's holds
/// the same once its compaction is done.
///
/// # Errors
/// When the engine or the file fails, or the file would be larger than `bytes_max`.
pub fn write_etcd<W: Write>(
    row: &GroupRow,
    rows: &dyn StateReader,
    members: &[EtcdMember],
    out: W,
    bytes_max: u64,
) -> Result<Vec<u8>, EtcdError> {
    let meta = Meta::decode(&row.meta)?;
    let view = View { rows, revision: meta.revision, floor: meta.floor, pairs: None };
    let mut file = BoltFile::new(out, bytes_max)?;
    let part = Part { revision: meta.revision, standing_at: meta.floor, deletes_at_floor: true };
    let mut keys = Bucket::default();
    each_write(&view, part, &mut |written| {
        keys.put(&mut file, &written.etcd_key(), &written.etcd_value())
    })?;
    keys.finish(&mut file, "key")?;
    let mut facts = BTreeMap::from([
        ("confState", conf_state(row).into_bytes()),
        ("consistent_index", row.applied.index.value().to_be_bytes().to_vec()),
        ("term", row.applied.term.value().to_be_bytes().to_vec()),
    ]);
    if meta.floor > 0 {
        let compacted = etcd_revision(Stamp { revision: meta.floor, sub: 0 }).to_vec();
        facts.insert("finishedCompactRev", compacted.clone());
        facts.insert("scheduledCompactRev", compacted);
    }
    small(&mut file, "meta", facts.into_iter().map(|(key, value)| (key.into(), value)))?;
    let alarms = conditions(rows)?.alarms.into_iter();
    small(&mut file, "alarm", alarms.map(|alarm| (alarm.encode_to_vec(), Vec::new())))?;
    let members =
        members.iter().map(|member| (format!("{:x}", member.id).into_bytes(), member.json()));
    small(&mut file, "members", members)?;
    let version = (b"clusterVersion".to_vec(), b"3.5.0".to_vec());
    small(&mut file, "cluster", [version].into_iter())?;
    let leases = leases(rows)?.into_iter().map(|(id, ttl_s)| etcd_form::lease(id, ttl_s));
    small(&mut file, etcd_form::LEASES, leases)?;
    for (bucket, pairs) in etcd_form::buckets(&auth::load(rows)?) {
        small(&mut file, bucket, pairs.into_iter())?;
    }
    small(&mut file, "members_removed", std::iter::empty())?;
    file.finish()
}

fn conf_state(row: &GroupRow) -> String {
    let ids = |nodes: &std::collections::BTreeSet<quorate_types::NodeId>| {
        nodes.iter().map(|node| node.value().to_string()).collect::<Vec<_>>().join(",")
    };
    let (voters, learners) = (ids(&row.membership.voters), ids(&row.membership.learners));
    format!(r#"{{"voters":[{voters}],"learners":[{learners}],"auto_leave":false}}"#)
}

impl EtcdMember {
    fn json(&self) -> Vec<u8> {
        let list =
            |urls: &[String]| urls.iter().map(|url| quoted(url)).collect::<Vec<_>>().join(",");
        let (id, name) = (self.id, quoted(&self.name));
        let (peers, clients) = (list(&self.peer_urls), list(&self.client_urls));
        format!(r#"{{"id":{id},"peerURLs":[{peers}],"name":{name},"clientURLs":[{clients}]}}"#)
            .into_bytes()
    }
}

/// A string of JSON.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\0'..' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

/// A bucket of a few pairs; keys ascend.
fn small<W: Write>(
    file: &mut BoltFile<W>,
    name: &'static str,
    pairs: impl Iterator<Item = (Vec<u8>, Vec<u8>)>,
) -> Result<(), EtcdError> {
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort();
    let mut bucket = Bucket::default();
    for (key, value) in pairs {
        bucket.put(file, &key, &value)?;
    }
    bucket.finish(file, name)
}

/// The file on its way out.
struct BoltFile<W> {
    out: W,
    /// Pages so far, the front's included.
    pages: u64,
    /// The first page of each bucket; 0 for an empty one.
    roots: BTreeMap<&'static str, u64>,
    bytes_max: u64,
}

/// A bucket on its way out.
#[derive(Default)]
struct Bucket {
    leaf: Vec<(Vec<u8>, Vec<u8>)>,
    leaf_bytes: usize,
    /// The pages so far, each with its first key.
    children: Vec<(Vec<u8>, u64)>,
}

impl<W: Write> BoltFile<W> {
    fn new(mut out: W, bytes_max: u64) -> Result<Self, EtcdError> {
        out.write_all(&[0; FRONT_BYTES])?;
        Ok(Self { out, pages: FRONT_PAGES, roots: BTreeMap::new(), bytes_max })
    }

    /// Writes a page, with as many behind it as its body needs.
    fn page(&mut self, flags: u16, count: usize, body: &[u8]) -> Result<u64, EtcdError> {
        let pages = (HEAD_BYTES + body.len()).div_ceil(PAGE_BYTES);
        let id = self.pages;
        self.pages += pages as u64;
        if self.pages * PAGE_BYTES as u64 > self.bytes_max {
            return Err(EtcdError::TooLarge(self.bytes_max));
        }
        let mut page = head(id, flags, count, pages - 1);
        page.extend_from_slice(body);
        page.resize(pages * PAGE_BYTES, 0);
        self.out.write_all(&page)?;
        Ok(id)
    }

    /// Writes the bucket of buckets; gives the front.
    fn finish(mut self) -> Result<Vec<u8>, EtcdError> {
        let buckets: Vec<_> = std::mem::take(&mut self.roots)
            .into_iter()
            .map(|(name, root)| {
                let mut value = [root.to_le_bytes(), [0; 8]].concat();
                if root == 0 {
                    // An empty bucket lies in its parent.
                    value.extend(head(0, LEAF, 0, 0));
                }
                (name.as_bytes().to_vec(), value)
            })
            .collect();
        let root = self.page(LEAF, buckets.len(), &leaf(IS_BUCKET, &buckets))?;
        self.out.flush()?;
        let mut front = Vec::with_capacity(FRONT_BYTES);
        for txid in 0..2u64 {
            let mut meta = Vec::new();
            for number in [MAGIC, VERSION, PAGE_BYTES as u32, 0] {
                meta.extend(number.to_le_bytes());
            }
            for number in [root, 0, FRONT_PAGES - 1, self.pages, txid] {
                meta.extend(number.to_le_bytes());
            }
            meta.extend(fnv1a(&meta).to_le_bytes());
            front.extend(head(txid, META, 0, 0));
            front.extend(meta);
            front.resize(front.len().next_multiple_of(PAGE_BYTES), 0);
        }
        front.extend(head(FRONT_PAGES - 1, FREE_LIST, 0, 0));
        front.resize(FRONT_BYTES, 0);
        Ok(front)
    }
}

impl Bucket {
    fn put<W: Write>(
        &mut self,
        file: &mut BoltFile<W>,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), EtcdError> {
        let bytes = ELEMENT_BYTES + key.len() + value.len();
        if HEAD_BYTES + self.leaf_bytes + bytes > PAGE_BYTES {
            self.write_leaf(file)?;
        }
        self.leaf_bytes += bytes;
        self.leaf.push((key.to_vec(), value.to_vec()));
        Ok(())
    }

    fn write_leaf<W: Write>(&mut self, file: &mut BoltFile<W>) -> Result<(), EtcdError> {
        let pairs = std::mem::take(&mut self.leaf);
        self.leaf_bytes = 0;
        let Some((first, _)) = pairs.first() else { return Ok(()) };
        let page = file.page(LEAF, pairs.len(), &leaf(0, &pairs))?;
        self.children.push((first.clone(), page));
        Ok(())
    }

    fn finish<W: Write>(
        mut self,
        file: &mut BoltFile<W>,
        name: &'static str,
    ) -> Result<(), EtcdError> {
        self.write_leaf(file)?;
        while self.children.len() > 1 {
            let mut parents = Vec::new();
            let mut left = &self.children[..];
            while !left.is_empty() {
                let mut bytes = HEAD_BYTES;
                let fits = left.iter().take_while(|(key, _)| {
                    bytes += ELEMENT_BYTES + key.len();
                    bytes <= PAGE_BYTES
                });
                // Never one alone, however long its key is: the tree would not end.
                let count = fits.count().max(2).min(left.len());
                let (taken, rest) = left.split_at(count);
                let page = file.page(BRANCH, taken.len(), &branch(taken))?;
                parents.push((taken[0].0.clone(), page));
                left = rest;
            }
            self.children = parents;
        }
        file.roots.insert(name, self.children.first().map_or(0, |(_, page)| *page));
        Ok(())
    }
}

fn head(id: u64, flags: u16, count: usize, overflow: usize) -> Vec<u8> {
    let count = u16::try_from(count).expect("a page of 4 KiB has few elements");
    let overflow = u32::try_from(overflow).expect("a pair is far smaller than 16 TiB");
    let mut head = id.to_le_bytes().to_vec();
    head.extend(flags.to_le_bytes());
    head.extend(count.to_le_bytes());
    head.extend(overflow.to_le_bytes());
    head
}

fn leaf(flags: u32, pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut data_at = pairs.len() * ELEMENT_BYTES;
    for (at, (key, value)) in pairs.iter().enumerate() {
        body.extend(flags.to_le_bytes());
        for length in [data_at - at * ELEMENT_BYTES, key.len(), value.len()] {
            body.extend((length as u32).to_le_bytes());
        }
        data_at += key.len() + value.len();
    }
    for (key, value) in pairs {
        body.extend_from_slice(key);
        body.extend_from_slice(value);
    }
    body
}

fn branch(children: &[(Vec<u8>, u64)]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut key_at = children.len() * ELEMENT_BYTES;
    for (at, (key, page)) in children.iter().enumerate() {
        for length in [key_at - at * ELEMENT_BYTES, key.len()] {
            body.extend((length as u32).to_le_bytes());
        }
        body.extend(page.to_le_bytes());
        key_at += key.len();
    }
    children.iter().for_each(|(key, _)| body.extend_from_slice(key));
    body
}

pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
