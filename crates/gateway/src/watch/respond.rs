//! Events as responses.

use prost::Message;
use quorate_api::etcdserverpb::{ResponseHeader, WatchResponse};
use quorate_api::mvccpb::Event;
use quorate_types::kv::{KeyValue, WatchEvent};

use crate::translate;

/// An event in the words of the API, with the pair before it if that is given and it did not make its key.
pub(crate) fn event(event: &WatchEvent, prev_kv: Option<&KeyValue>) -> Event {
    let prev_kv = prev_kv.filter(|_| !event.is_create());
    Event {
        r#type: event.kind,
        kv: Some(translate::key_value(event.kv.clone())),
        prev_kv: prev_kv.cloned().map(translate::key_value),
    }
}

/// The response of a watch with events.
pub(crate) fn events(header: ResponseHeader, watch_id: i64, events: Vec<Event>) -> WatchResponse {
    WatchResponse { header: Some(header), watch_id, events, ..WatchResponse::default() }
}

/// The response as it is, or, if it has more than one event and `bytes_max` bytes, in parts that have fewer
/// where they have more than one event; all but the last are marked.
pub(crate) fn fragments(mut whole: WatchResponse, bytes_max: usize) -> Vec<WatchResponse> {
    if whole.encoded_len() < bytes_max || whole.events.len() < 2 {
        return vec![whole];
    }
    let events = std::mem::take(&mut whole.events);
    // The mark takes two bytes.
    let head = WatchResponse { fragment: true, ..whole.clone() };
    let (mut parts, mut part, head_bytes) = (Vec::new(), head.clone(), head.encoded_len());
    let mut bytes = head_bytes;
    for event in events {
        let event_bytes = event.encoded_len();
        let with_head = 1 + prost::length_delimiter_len(event_bytes) + event_bytes;
        if !part.events.is_empty() && bytes + with_head >= bytes_max {
            parts.push(std::mem::replace(&mut part, head.clone()));
            bytes = head_bytes;
        }
        bytes += with_head;
        part.events.push(event);
    }
    part.fragment = false;
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use quorate_api::mvccpb;

    use super::*;

    #[test]
    fn parts_are_below_the_bound_and_make_the_whole() {
        let event = |number: usize| Event {
            kv: Some(mvccpb::KeyValue {
                key: vec![b'k'; number % 70].into(),
                ..mvccpb::KeyValue::default()
            }),
            ..Event::default()
        };
        let header = ResponseHeader { revision: 9, ..ResponseHeader::default() };
        let whole = events(header, 7, (0..500).map(event).collect());
        for bytes_max in [1, 100, 1_000, 10_000, 1_000_000] {
            let parts = fragments(whole.clone(), bytes_max);
            let (last, others) = parts.split_last().expect("there is a part");
            assert!(!last.fragment && others.iter().all(|part| part.fragment));
            for part in &parts {
                assert!(part.events.len() == 1 || part.encoded_len() < bytes_max);
                assert_eq!((part.header, part.watch_id), (whole.header, 7));
            }
            let events = parts.into_iter().flat_map(|part| part.events);
            assert!(events.eq(whole.events.iter().cloned()));
        }
    }
}
