//! What is sent: request templates, and the choice of the next one.
//!
//! A request is encoded once, when the run begins. What differs from call to call, the keys, has one size,
//! so a call copies the template and writes the keys' bytes over.

use bytes::{Bytes, BytesMut};
use prost::Message;
use quorate_api::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, compare, request_op,
};

use crate::call::{Method, frame};
use crate::keys::{Draw, Keys};

/// A byte that no value and no other field holds a run of, so that a run of it marks a key's place.
const PLACEHOLDER: u8 = 0xff;

/// A version above every key's, so that comparing with it always succeeds. Its encoding holds no run of
/// [`PLACEHOLDER`].
const VERSION_NEVER_REACHED: i64 = 1 << 62;

/// The kinds of load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Shape {
    /// Puts.
    Put,
    /// Gets of one key.
    Get { serializable: bool },
    /// Gets, `read_ratio` of all, and puts.
    Mixed { read_ratio: f64, serializable: bool },
    /// Reads of `span` neighbouring keys.
    Range { span: u64, serializable: bool },
    /// Compare, then put, else get.
    Txn,
}

impl Shape {
    /// The name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get { serializable: false } => "get, linearizable",
            Self::Get { serializable: true } => "get, serializable",
            Self::Mixed { .. } => "mixed",
            Self::Range { .. } => "range",
            Self::Txn => "txn",
        }
    }

    /// Whether its answers say little unless the keys exist.
    pub(crate) fn reads(self) -> bool {
        match self {
            Self::Get { .. } | Self::Mixed { .. } | Self::Range { .. } => true,
            Self::Put | Self::Txn => false,
        }
    }
}

/// One kind of operation of a workload.
pub(crate) struct Operation {
    /// The name in reports.
    pub(crate) name: &'static str,
    /// What is called.
    pub(crate) method: Method,
    template: Template,
}

/// A source of requests.
pub(crate) struct Workload {
    /// One operation, or for a mix the get and the put.
    pub(crate) operations: Vec<Operation>,
    first_ratio: f64,
    keys: Keys,
    draw: Draw,
}

impl Workload {
    /// The workload of `shape` over `keys`, with values of `value_size` bytes made from `seed`.
    pub(crate) fn new(shape: Shape, keys: Keys, draw: Draw, value_size: usize, seed: u64) -> Self {
        let value = value(value_size, seed);
        let put = || Operation {
            name: "put",
            method: Method::Put,
            template: Template::new(&keys, |key| PutRequest {
                value: value.clone(),
                ..put_request(key(0))
            }),
        };
        let get = |serializable| Operation {
            name: "get",
            method: Method::Range,
            template: Template::new(&keys, |key| RangeRequest {
                key: key(0),
                serializable,
                ..RangeRequest::default()
            }),
        };
        let (operations, first_ratio) = match shape {
            Shape::Put => (vec![put()], 1.0),
            Shape::Get { serializable } => (vec![get(serializable)], 1.0),
            Shape::Mixed { read_ratio, serializable } => {
                (vec![get(serializable), put()], read_ratio)
            }
            Shape::Range { span, serializable } => {
                let template = Template::new(&keys, |key| RangeRequest {
                    key: key(0),
                    range_end: key(span),
                    serializable,
                    ..RangeRequest::default()
                });
                (vec![Operation { name: "range", method: Method::Range, template }], 1.0)
            }
            Shape::Txn => {
                let template = Template::new(&keys, |key| TxnRequest {
                    compare: vec![Compare {
                        key: key(0),
                        result: compare::CompareResult::Less.into(),
                        target: compare::CompareTarget::Version.into(),
                        target_union: Some(compare::TargetUnion::Version(VERSION_NEVER_REACHED)),
                        ..Compare::default()
                    }],
                    success: vec![operation(request_op::Request::RequestPut(PutRequest {
                        value: value.clone(),
                        ..put_request(key(0))
                    }))],
                    failure: vec![operation(request_op::Request::RequestRange(RangeRequest {
                        key: key(0),
                        ..RangeRequest::default()
                    }))],
                });
                (vec![Operation { name: "txn", method: Method::Txn, template }], 1.0)
            }
        };
        Self { operations, first_ratio, keys, draw }
    }

    /// The next operation's number and its request, ready to be sent.
    pub(crate) fn next(&self, rng: &mut fastrand::Rng) -> (usize, Bytes) {
        let first = self.operations.len() == 1 || rng.f64() < self.first_ratio;
        let number = usize::from(!first);
        let index = self.draw.next(rng);
        (number, self.operations[number].template.fill(&self.keys, index))
    }
}

/// An encoded request, and where its keys go.
struct Template {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
}

/// A key's place in a template.
struct Slot {
    at: usize,
    /// Added to the number of the drawn key.
    offset: u64,
}

impl Template {
    /// Encodes what `request` makes. It names its keys, in the order in which they are encoded, by calling
    /// its argument with an offset from the drawn key.
    fn new<M: Message>(
        keys: &Keys,
        request: impl FnOnce(&mut dyn FnMut(u64) -> Bytes) -> M,
    ) -> Self {
        let marker = Bytes::from(vec![PLACEHOLDER; keys.size()]);
        let mut offsets = Vec::new();
        let message = request(&mut |offset| {
            offsets.push(offset);
            marker.clone()
        });
        let bytes = frame(&message).to_vec();
        let mut slots = Vec::new();
        let mut from = 0;
        for offset in offsets {
            let distance = bytes[from..]
                .windows(marker.len())
                .position(|window| window == marker)
                .expect("every key that was named is in the request");
            slots.push(Slot { at: from + distance, offset });
            from += distance + marker.len();
        }
        Self { bytes, slots }
    }

    /// The request for the key number `index`.
    fn fill(&self, keys: &Keys, index: u64) -> Bytes {
        let mut body = BytesMut::from(&self.bytes[..]);
        for slot in &self.slots {
            keys.write(index + slot.offset, &mut body[slot.at..slot.at + keys.size()]);
        }
        body.freeze()
    }
}

fn put_request(key: Bytes) -> PutRequest {
    PutRequest { key, ..PutRequest::default() }
}

fn operation(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// A value of letters and digits: nothing compresses it much, and it is readable in a terminal.
pub(crate) fn value(size: usize, seed: u64) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..size).map(|_| rng.alphanumeric() as u8).collect::<Vec<u8>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Distribution;

    fn workload(shape: Shape) -> Workload {
        let keys = Keys::new("k/", 8, 10).expect("fits");
        Workload::new(shape, keys, Draw::new(Distribution::Sequential, 10), 300, 1)
    }

    fn decoded<M: Message + Default>(body: &Bytes) -> M {
        M::decode(&body[5..]).expect("a whole message")
    }

    #[test]
    fn puts_carry_the_drawn_key_and_the_value() {
        let puts = workload(Shape::Put);
        let mut rng = fastrand::Rng::with_seed(1);
        for number in 0..12 {
            let (operation, body) = puts.next(&mut rng);
            let request: PutRequest = decoded(&body);
            assert_eq!(operation, 0);
            assert_eq!(request.key, format!("k/00000{}", number % 10));
            assert_eq!(request.value.len(), 300);
        }
    }

    #[test]
    fn ranges_end_a_span_further() {
        let ranges = workload(Shape::Range { span: 5, serializable: true });
        let (_, body) = ranges.next(&mut fastrand::Rng::with_seed(1));
        let request: RangeRequest = decoded(&body);
        assert_eq!(
            (&request.key[..], &request.range_end[..]),
            (&b"k/000000"[..], &b"k/000005"[..])
        );
        assert!(request.serializable);
    }

    #[test]
    fn a_txn_names_its_key_three_times() {
        let txns = workload(Shape::Txn);
        let mut rng = fastrand::Rng::with_seed(1);
        txns.next(&mut rng);
        let request: TxnRequest = decoded(&txns.next(&mut rng).1);
        assert_eq!(request.compare[0].key, "k/000001");
        for branch in [&request.success[0], &request.failure[0]] {
            let key = match branch.request.as_ref().expect("set") {
                request_op::Request::RequestPut(put) => &put.key,
                request_op::Request::RequestRange(range) => &range.key,
                other => panic!("neither a put nor a range: {other:?}"),
            };
            assert_eq!(key, "k/000001");
        }
    }

    #[test]
    fn a_mix_keeps_its_ratio() {
        let mix = workload(Shape::Mixed { read_ratio: 0.25, serializable: false });
        let mut rng = fastrand::Rng::with_seed(1);
        let gets = (0..10_000).filter(|_| mix.next(&mut rng).0 == 0).count();
        assert!((2_300..2_700).contains(&gets), "{gets}");
    }
}
