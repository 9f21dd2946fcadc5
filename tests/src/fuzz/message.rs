//! [`Author`]: writes messages that are almost right.

use bytes::Bytes;
use fastrand::Rng;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use super::mutate::{damage_some, noise};

/// Levels of messages in messages; deeper ones are made by [`Author::nest`].
const DEPTH_MAX: usize = 5;

/// Elements of a list.
const LIST_MAX: usize = 6;

/// Draws messages of one type.
pub(super) struct Author {
    kind: MessageDescriptor,
    random: Rng,
}

impl Author {
    pub(super) fn new(kind: MessageDescriptor, seed: u64) -> Self {
        Self { kind, random: Rng::with_seed(seed) }
    }

    /// What one call sends: one message, or a few.
    pub(super) fn messages(&mut self, is_stream: bool) -> Vec<Bytes> {
        let count = if is_stream { self.random.usize(0..4) } else { 1 };
        (0..count).map(|_| self.bytes()).collect()
    }

    /// The body of a call of the JSON gateway: a message or a few, as text.
    pub(super) fn text(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        for _ in 0..self.random.usize(1..4) {
            match self.random.u32(0..20) {
                0 => text.extend(noise(&mut self.random, 64)),
                1 => {
                    let depth = self.random.usize(1..4_000);
                    let inner = self.random.choice([r#"{"failure":["#, r#"{"a":"#, "["]);
                    text.extend(inner.unwrap_or_default().repeat(depth).into_bytes());
                }
                _ => {
                    let message = self.message(&self.kind.clone(), 0);
                    text.extend(serde_json::to_vec(&message).expect("messages are JSON"));
                }
            }
        }
        damage_some(&mut self.random, &mut text);
        text
    }

    fn bytes(&mut self) -> Bytes {
        let mut bytes = match self.random.u32(0..20) {
            0 => noise(&mut self.random, 64),
            1 => self.nest(),
            _ => self.message(&self.kind.clone(), 0).encode_to_vec(),
        };
        damage_some(&mut self.random, &mut bytes);
        bytes.into()
    }

    fn message(&mut self, kind: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(kind.clone());
        for field in kind.fields() {
            if self.random.u32(0..3) == 0 || (depth >= DEPTH_MAX && is_message(&field)) {
                continue;
            }
            let value = self.field(&field, depth);
            message.set_field(&field, value);
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        if field.is_list() {
            let count = self.random.usize(0..LIST_MAX);
            return Value::List((0..count).map(|_| self.value(&field.kind(), depth)).collect());
        }
        if field.is_map() {
            return Value::Map(std::collections::HashMap::<MapKey, Value>::new());
        }
        self.value(&field.kind(), depth)
    }

    fn value(&mut self, kind: &Kind, depth: usize) -> Value {
        match kind {
            Kind::Message(kind) => Value::Message(self.message(kind, depth + 1)),
            Kind::Enum(_) => Value::EnumNumber(self.number() as i32),
            Kind::Bool => Value::Bool(self.random.bool()),
            Kind::String => {
                let text = self.random.choice(["", "root", "a", "Ü\u{0}\u{10ffff}", "http://h:1"]);
                Value::String(text.unwrap_or_default().to_owned())
            }
            Kind::Bytes => Value::Bytes(self.key()),
            Kind::Float => Value::F32(f32::NAN),
            Kind::Double => Value::F64(f64::INFINITY),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.number() as i32),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.number() as u32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.number()),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.number() as u64),
        }
    }

    /// Keys that meet each other, and the ends of what there is.
    fn key(&mut self) -> Bytes {
        let long = self.random.usize(0..3_000);
        match self.random.u32(0..12) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            2 => Bytes::from_static(&[0xff; 4]),
            3 => Bytes::from(vec![b'k'; long]),
            _ => Bytes::from(vec![b'a' + self.random.u8(0..8)]),
        }
    }

    fn number(&mut self) -> i64 {
        match self.random.u32(0..8) {
            0 => i64::MIN,
            1 => i64::MAX,
            2 => -1,
            3 => self.random.i64(..),
            _ => self.random.i64(0..10),
        }
    }

    /// A field within itself, more often than any decoder should follow: a transaction in a transaction, for
    /// types that have such.
    fn nest(&mut self) -> Vec<u8> {
        let mut inner = Vec::new();
        let field = self.random.u8(1..6);
        for level in 0..self.random.usize(1..400) {
            let mut outer = vec![(if level % 2 == 0 { field } else { 4 }) << 3 | 2];
            prost::encoding::encode_varint(inner.len() as u64, &mut outer);
            outer.append(&mut inner);
            inner = outer;
        }
        inner
    }
}

fn is_message(field: &FieldDescriptor) -> bool {
    matches!(field.kind(), Kind::Message(_))
}
