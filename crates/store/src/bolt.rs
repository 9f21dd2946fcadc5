//! Database files of bbolt, read: what etcd's snapshots are. The form of the pages stands in [`etcd`](crate::etcd),
//! which writes them.
//!
//! Nothing in a file is believed: every offset and length is checked, no page is visited twice, and any bytes
//! give pairs or an error.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::etcd::{
    BRANCH, ELEMENT_BYTES, HEAD_BYTES, IS_BUCKET, LEAF, MAGIC, META, VERSION, fnv1a,
};

/// The sizes of pages that systems have.
const PAGE_BYTES: std::ops::RangeInclusive<u64> = 1 << 10..=1 << 16;

/// Bytes of a meta page behind its head.
const META_BYTES: usize = 64;

/// The most bytes that a page and what hangs on it may have: some pairs of the largest that etcd takes.
const PAGE_RUN_BYTES_MAX: u64 = 256 << 20;

/// The deepest tree: with two children a page this would be more pages than any disk holds.
const DEPTH_MAX: usize = 48;

/// Bytes before an inline bucket's page.
const BUCKET_BYTES: usize = 16;

/// Why a file is no database.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is of another form, or damaged.
    #[error("not a whole database of etcd: {0}")]
    Damaged(&'static str),
    /// A bucket is not there.
    #[error("the database has no bucket {0:?}")]
    NoBucket(&'static str),
}

/// Bytes at an offset.
pub trait ReadAt {
    /// Fills `into` from `offset` on.
    ///
    /// # Errors
    /// When there are not so many.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|from| self.get(from..));
        let bytes = from.and_then(|from| from.get(..into.len()));
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A database file.
pub struct Bolt<'f> {
    file: &'f dyn ReadAt,
    page_bytes: u64,
    /// Pages of the file.
    pages: u64,
    root: u64,
}

/// A pair of a bucket.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'p> {
    /// Its key.
    pub key: &'p [u8],
    /// Its value.
    pub value: &'p [u8],
    /// Where the value lies in the file.
    pub value_at: u64,
    is_bucket: bool,
}

/// Where a bucket begins.
#[derive(Clone, Debug)]
enum Root {
    Page(u64),
    /// In its parent, at this offset of the file.
    Inline(Vec<u8>, u64),
}

/// A page with what hangs on it.
struct Page {
    bytes: Vec<u8>,
    at: u64,
}

impl<'f> Bolt<'f> {
    /// Looks for the newer of the two metas that is whole, in a file of so many bytes.
    ///
    /// # Errors
    /// When there is none, or the file is shorter than it says.
    pub fn open(file: &'f dyn ReadAt, bytes: u64) -> Result<Self, BoltError> {
        let first = Meta::read(file, 0).ok();
        let mut metas: Vec<_> = first.into_iter().collect();
        let sizes = (10..=16).map(|bits| 1u64 << bits);
        let second = |size: &u64| first.is_none_or(|first| first.page_bytes == *size);
        for size in sizes.filter(second) {
            let meta = Meta::read(file, size).ok();
            metas.extend(meta.filter(|meta| meta.page_bytes == size));
        }
        let newest = metas.into_iter().max_by_key(|meta| meta.txid);
        let Meta { page_bytes, root, pages, .. } =
            newest.ok_or(BoltError::Damaged("no page of meta"))?;
        if pages > bytes / page_bytes {
            return Err(BoltError::Damaged("shorter than it says"));
        }
        Ok(Self { file, page_bytes, pages, root })
    }

    /// Visits the pairs of the bucket `name` in the order of the file, which is that of keys.
    ///
    /// # Errors
    /// When there is no such bucket, the file is damaged, or `visit` fails.
    pub fn each<E: From<BoltError>>(
        &self,
        name: &'static str,
        visit: &mut dyn FnMut(Pair<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut found = None;
        self.walk(&Root::Page(self.root), &mut |pair| {
            if pair.is_bucket && pair.key == name.as_bytes() {
                found = Some(bucket(pair)?);
            }
            Ok::<_, BoltError>(())
        })?;
        let root = found.ok_or(BoltError::NoBucket(name))?;
        self.walk(&root, &mut |pair| {
            if pair.is_bucket { Ok(()) } else { visit(pair) }
        })
    }

    /// The value that a pair said lies there.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn value(&self, at: u64, bytes: usize) -> Result<Vec<u8>, BoltError> {
        let mut value = vec![0; bytes];
        self.file.read_at(&mut value, at)?;
        Ok(value)
    }

    fn walk<E: From<BoltError>>(
        &self,
        root: &Root,
        visit: &mut dyn FnMut(Pair<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let damaged = |what| E::from(BoltError::Damaged(what));
        let page = match root {
            Root::Page(page) => *page,
            Root::Inline(bytes, at) => return leaf(bytes, *at, visit),
        };
        // A page that came twice would make a file without an end.
        let mut left = self.pages;
        let mut waiting = vec![(page, 0)];
        while let Some((page, depth)) = waiting.pop() {
            left = left.checked_sub(1).ok_or_else(|| damaged("a page in two places"))?;
            if depth > DEPTH_MAX {
                return Err(damaged("a tree that is too deep"));
            }
            let Page { bytes, at } = self.page(page)?;
            match number16(&bytes, 8) {
                Some(LEAF) => leaf(&bytes, at, visit)?,
                Some(BRANCH) => {
                    let mut children = children(&bytes)?;
                    children.reverse();
                    waiting.extend(children.into_iter().map(|child| (child, depth + 1)));
                    if waiting.len() as u64 > self.pages {
                        return Err(damaged("a page in two places"));
                    }
                }
                _ => return Err(damaged("a page of another kind")),
            }
        }
        Ok(())
    }

    fn page(&self, page: u64) -> Result<Page, BoltError> {
        if page >= self.pages {
            return Err(BoltError::Damaged("a page behind the end"));
        }
        let at = page * self.page_bytes;
        let mut head = [0; HEAD_BYTES];
        self.file.read_at(&mut head, at)?;
        if number64(&head, 0) != Some(page) {
            return Err(BoltError::Damaged("a page in the wrong place"));
        }
        let run = u64::from(number32(&head, 12).unwrap_or_default()) + 1;
        let bytes = run.saturating_mul(self.page_bytes);
        if page + run > self.pages || bytes > PAGE_RUN_BYTES_MAX {
            return Err(BoltError::Damaged("a page that is too long"));
        }
        let bytes = self.value(at, usize::try_from(bytes).expect("bounded above"))?;
        Ok(Page { bytes, at })
    }
}

#[derive(Clone, Copy)]
struct Meta {
    page_bytes: u64,
    root: u64,
    pages: u64,
    txid: u64,
}

impl Meta {
    fn read(file: &dyn ReadAt, at: u64) -> Result<Self, BoltError> {
        let mut page = [0; HEAD_BYTES + META_BYTES];
        file.read_at(&mut page, at)?;
        let (head, meta) = page.split_at(HEAD_BYTES);
        let checksum = fnv1a(&meta[..META_BYTES - 8]);
        let page_bytes = number32(meta, 8)
            .map(u64::from)
            .filter(|bytes| PAGE_BYTES.contains(bytes) && bytes.is_power_of_two());
        let read = || {
            let fits = number16(head, 8)? == META
                && number32(meta, 0)? == MAGIC
                && number32(meta, 4)? == VERSION
                && number64(meta, META_BYTES - 8)? == checksum;
            let [root, pages, txid] = [16, 40, 48].map(|at| number64(meta, at));
            Some(Self { page_bytes: page_bytes?, root: root?, pages: pages?, txid: txid? })
                .filter(|_| fits)
        };
        read().ok_or(BoltError::Damaged("a page of meta"))
    }
}

/// Whether a file begins as a database of etcd does.
#[must_use]
pub fn is_bolt(beginning: &[u8]) -> bool {
    let flags = number16(beginning, 8);
    let magic = number32(beginning, HEAD_BYTES);
    matches!(flags, Some(META)) && magic == Some(MAGIC)
}

fn bucket(pair: Pair<'_>) -> Result<Root, BoltError> {
    let root = number64(pair.value, 0).ok_or(BoltError::Damaged("a bucket"))?;
    if root != 0 {
        return Ok(Root::Page(root));
    }
    let inline = pair.value.get(BUCKET_BYTES..).ok_or(BoltError::Damaged("a bucket"))?;
    Ok(Root::Inline(inline.to_vec(), pair.value_at + BUCKET_BYTES as u64))
}

fn leaf<E: From<BoltError>>(
    page: &[u8],
    at: u64,
    visit: &mut dyn FnMut(Pair<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let damaged = || BoltError::Damaged("a page of pairs");
    if number16(page, 8) != Some(LEAF) {
        return Err(damaged().into());
    }
    let count = number16(page, 10).ok_or_else(damaged)?;
    for number in 0..usize::from(count) {
        let element = HEAD_BYTES + number * ELEMENT_BYTES;
        let field = |field: usize| {
            number32(page, element + 4 * field).map(|value| value as usize).ok_or_else(damaged)
        };
        let (flags, position, key, value) = (field(0)?, field(1)?, field(2)?, field(3)?);
        let value_from = element + position + key;
        let key = page.get(element + position..value_from).ok_or_else(damaged)?;
        let value = page.get(value_from..value_from + value).ok_or_else(damaged)?;
        let is_bucket = flags & IS_BUCKET as usize != 0;
        visit(Pair { key, value, value_at: at + value_from as u64, is_bucket })?;
    }
    Ok(())
}

fn children(page: &[u8]) -> Result<Vec<u64>, BoltError> {
    let damaged = BoltError::Damaged("a page of branches");
    let count = number16(page, 10).map_or(0, usize::from);
    let child = |number: usize| number64(page, HEAD_BYTES + number * ELEMENT_BYTES + 8);
    (0..count).map(child).collect::<Option<_>>().ok_or(damaged)
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn number64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
